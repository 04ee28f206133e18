//! Input as decisions: bytes are taken from its front; when they are gone every answer is 0.

use pgusher::wire::scan::{Item, Scanner};

pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn one(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Up to `n` bytes.
    pub(crate) fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A stretch with its length before it.
    pub(crate) fn stretch(&mut self) -> &'a [u8] {
        let len = self.one();
        self.take(usize::from(len))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.one())
    }
}

/// Cuts bytes into pieces of 1 to 16 bytes as `seed` says; seed 0 cuts everywhere.
pub(crate) fn pieces(bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let (mut state, mut rest, mut cut) = (seed, bytes, Vec::new());
    while !rest.is_empty() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
        let most = if state >> 63 == 0 { 4 } else { 16 };
        let n = 1 + (state >> 33) as usize % most;
        let (piece, after) = rest.split_at(n.min(rest.len()));
        cut.push(piece);
        rest = after;
    }
    cut
}

/// The messages in what a stranger says, up to a header that cannot be one; the last one may be unfinished.
pub(crate) fn said(bytes: &[u8]) -> (Vec<(u8, &[u8])>, bool) {
    let (mut scan, mut pos, mut found) = (Scanner::default(), 0, Vec::new());
    loop {
        match scan.next(bytes, &mut pos, u32::MAX) {
            Ok(Some(Item::Whole { tag, start, end })) => found.push((tag, &bytes[start + 5..end])),
            Ok(Some(Item::Begin { tag, .. })) => found.push((tag, &bytes[pos..])),
            Ok(Some(Item::Body { .. })) => {}
            Ok(None) => return (found, true),
            Err(_) => return (found, false),
        }
    }
}

/// The messages in bytes that we have written ourselves; the last one may be unfinished.
pub(crate) fn messages(bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let (found, good) = said(bytes);
    assert!(good, "what we write has good headers");
    found
}

/// Asserts that bytes are nothing but whole messages.
pub(crate) fn whole_messages(bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let found = messages(bytes);
    let len: usize = found.iter().map(|(_, body)| body.len() + 5).sum();
    assert_eq!(len, bytes.len(), "an unfinished message");
    found
}
