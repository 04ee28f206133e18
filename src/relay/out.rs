//! What is to be written to one side: ranges of the input just read, and bytes of our own, in order.
//!
//! Neighbouring ranges merge, so a read of many forwarded messages is usually one write.

use std::ops::Range;

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A range of the input of this turn.
    Input(Range<usize>),
    /// A range of [`Out::own`].
    Own(Range<usize>),
}

/// Output for one side, gathered during a turn.
#[derive(Debug, Default)]
pub struct Out {
    pieces: Vec<Piece>,
    own: Vec<u8>,
}

impl Out {
    /// Forwards a range of the input.
    #[inline]
    pub fn forward(&mut self, start: usize, end: usize) {
        if start == end {
            return;
        }
        if let Some(Piece::Input(last)) = self.pieces.last_mut()
            && last.end == start
        {
            last.end = end;
            return;
        }
        self.pieces.push(Piece::Input(start..end));
    }

    /// Lets `fill` append bytes of our own.
    pub fn own(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.own.len();
        fill(&mut self.own);
        let end = self.own.len();
        if start == end {
            return;
        }
        if let Some(Piece::Own(last)) = self.pieces.last_mut() {
            last.end = end;
            return;
        }
        self.pieces.push(Piece::Own(start..end));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Number of pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The pieces as byte slices; `input` must be the input that the ranges were made from.
    pub fn slices<'a>(&'a self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.pieces.iter().map(move |piece| match piece {
            Piece::Input(range) => &input[range.clone()],
            Piece::Own(range) => &self.own[range.clone()],
        })
    }

    /// All of it, if it is one piece.
    #[inline]
    #[must_use]
    pub fn single<'a>(&'a self, input: &'a [u8]) -> Option<&'a [u8]> {
        match self.pieces.as_slice() {
            [Piece::Input(range)] => Some(&input[range.clone()]),
            [Piece::Own(range)] => Some(&self.own[range.clone()]),
            _ => None,
        }
    }

    /// Total number of bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Input(range) | Piece::Own(range) => range.len(),
            })
            .sum()
    }

    /// Forgets everything and keeps the memory, unless one turn made it large.
    #[inline]
    pub fn clear(&mut self) {
        self.pieces.clear();
        if !self.own.is_empty() {
            self.own.clear();
            self.own.shrink_to(64 * 1024);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_order_is_kept() {
        let input = b"abcdefgh";
        let mut out = Out::default();
        out.forward(0, 2);
        out.forward(2, 4);
        out.own(|own| own.extend_from_slice(b"X"));
        out.own(|own| own.extend_from_slice(b"Y"));
        out.own(|_| ());
        out.forward(5, 5);
        out.forward(6, 8);
        assert_eq!(out.len(), 3);
        assert_eq!(out.slices(input).collect::<Vec<_>>().concat(), b"abcdXYgh");
        assert_eq!(out.bytes(), 8);
        assert_eq!(out.single(input), None);
        out.clear();
        assert!(out.is_empty());
        assert_eq!(out.single(input), None);
        out.own(|own| own.extend_from_slice(b"Z"));
        assert_eq!(out.single(input), Some(&b"Z"[..]));
        out.clear();
        out.forward(1, 3);
        assert_eq!(out.single(input), Some(&b"bc"[..]));
    }
}
