//! Finds message boundaries in a byte stream that arrives in arbitrary pieces.
//!
//! A regular message is one type byte, a 4-byte length that counts itself, and a body. The scanner owns no buffer: it
//! remembers at most the bytes of a header that was cut and how much of a body is still to come. Lengths are checked here,
//! before anybody computes with them.

/// Type byte and length.
pub const HEADER_LEN: usize = 5;

/// What `head_len` is inside a body.
const IN_BODY: u8 = HEADER_LEN as u8;

/// Where a stream stands between two reads.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    head: [u8; HEADER_LEN],
    /// How much of the header has come; all of it, and we are in the body. Zero between two messages.
    head_len: u8,
    left: u32,
}

/// One step of a scan. Positions are offsets into the input of that call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A message that lies completely in the input: `start..end`, header included.
    Whole { tag: u8, start: usize, end: usize },
    /// The header of a message of which something is missing; [`Scanner::header`] has its bytes. `Body` items follow.
    Begin { tag: u8, body_len: u32 },
    /// A piece of the body of the message last begun; the piece may be empty when `last`.
    Body { start: usize, end: usize, last: bool },
}

/// A length below four, or a message over the limit. Carries up to eight bytes from the header on, for the error text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadHeader {
    pub bytes: Vec<u8>,
}

impl BadHeader {
    /// The bytes in lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self) -> String {
        use std::fmt::Write as _;
        self.bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl Scanner {
    /// True between two messages: nothing of a message has been seen that is not complete.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        self.head_len == 0
    }

    /// True inside a body, that is after `Begin` and before its last `Body`.
    #[must_use]
    pub const fn in_body(&self) -> bool {
        self.head_len == IN_BODY
    }

    /// Bytes of the current body that have not come yet.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// The bytes of a header that was cut; empty in a body and between two messages.
    #[must_use]
    pub fn partial_header(&self) -> &[u8] {
        if self.in_body() { &[] } else { &self.head[..usize::from(self.head_len)] }
    }

    /// How many bytes are known to be missing of the message being read: of its body, or of its header; zero between two
    /// messages.
    #[must_use]
    pub const fn missing(&self) -> usize {
        match self.head_len {
            0 => 0,
            IN_BODY => self.left as usize,
            got => HEADER_LEN - got as usize,
        }
    }

    /// The header of the message last begun.
    #[must_use]
    pub const fn header(&self) -> [u8; HEADER_LEN] {
        self.head
    }

    /// The type and body length of the message that starts at `pos`, without consuming it; `None` if its header is not all
    /// there, in which case the scanner keeps what there is and `pos` moves to the end of the input.
    ///
    /// # Errors
    /// [`BadHeader`] for an impossible length.
    #[inline]
    pub fn peek(&mut self, input: &[u8], pos: &mut usize, limit: u32) -> Result<Option<(u8, u32)>, BadHeader> {
        debug_assert!(!self.in_body());
        // almost every header comes whole
        if self.head_len == 0
            && let Some(&head) = input.get(*pos..).and_then(<[u8]>::first_chunk)
            && let Some(body_len) = body_len(head, limit)
        {
            return Ok(Some((head[0], body_len)));
        }
        self.peek_piece(input, pos, limit)
    }

    /// [`Scanner::peek`] where the header is not all there, or wrong.
    fn peek_piece(&mut self, input: &[u8], pos: &mut usize, limit: u32) -> Result<Option<(u8, u32)>, BadHeader> {
        let rest = &input[*pos..];
        let have = usize::from(self.head_len);
        let mut head = self.head;
        let take = rest.len().min(HEADER_LEN - have);
        head[have..have + take].copy_from_slice(&rest[..take]);
        if have + take < HEADER_LEN {
            self.head = head;
            self.head_len += u8::try_from(take).unwrap_or(0);
            *pos = input.len();
            return Ok(None);
        }
        let body_len = body_len(head, limit).ok_or_else(|| self.bad(rest))?;
        Ok(Some((head[0], body_len)))
    }

    /// The next item at `pos`, which moves behind it; `None` when the input is used up.
    ///
    /// `limit` is the largest message accepted, type byte included (`max_packet_size`).
    ///
    /// # Errors
    /// [`BadHeader`] for an impossible length.
    #[inline(always)]
    pub fn next(&mut self, input: &[u8], pos: &mut usize, limit: u32) -> Result<Option<Item>, BadHeader> {
        let start = *pos;
        // almost every message comes whole
        if self.at_boundary()
            && let Some(&[tag, a, b, c, d]) = input.get(start..).and_then(<[u8]>::first_chunk)
            && let Some(body_len) = body_len([tag, a, b, c, d], limit)
            && input.len() - start - HEADER_LEN >= body_len as usize
        {
            let end = start + HEADER_LEN + body_len as usize;
            *pos = end;
            return Ok(Some(Item::Whole { tag, start, end }));
        }
        if start == input.len() && self.at_boundary() {
            return Ok(None);
        }
        self.next_piece(input, pos, limit)
    }

    /// The next item where the message is not all there, or there is none.
    fn next_piece(&mut self, input: &[u8], pos: &mut usize, limit: u32) -> Result<Option<Item>, BadHeader> {
        let start = *pos;
        let rest = &input[start..];
        if self.in_body() {
            return Ok(self.body(rest.len(), start, pos));
        }
        let Some((_, body_len)) = self.peek(input, pos, limit)? else { return Ok(None) };
        let missing = HEADER_LEN - usize::from(self.head_len);
        let mut head = self.head;
        head[HEADER_LEN - missing..].copy_from_slice(&rest[..missing]);
        *pos = start + missing;
        Ok(Some(self.begin(head, body_len)))
    }

    fn begin(&mut self, head: [u8; HEADER_LEN], body_len: u32) -> Item {
        self.head = head;
        self.head_len = IN_BODY;
        self.left = body_len;
        Item::Begin { tag: head[0], body_len }
    }

    fn body(&mut self, available: usize, start: usize, pos: &mut usize) -> Option<Item> {
        let take = available.min(self.left as usize);
        if take == 0 && self.left > 0 {
            return None;
        }
        self.left -= u32::try_from(take).unwrap_or(self.left);
        let last = self.left == 0;
        if last {
            self.head_len = 0;
        }
        *pos = start + take;
        Some(Item::Body { start, end: start + take, last })
    }

    fn bad(&self, rest: &[u8]) -> BadHeader {
        let mut bytes = self.partial_header().to_vec();
        bytes.extend_from_slice(&rest[..rest.len().min(8 - bytes.len())]);
        BadHeader { bytes }
    }
}

/// The body length that a header announces, if it is possible and within the limit.
fn body_len(head: [u8; HEADER_LEN], limit: u32) -> Option<u32> {
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if len < 4 || len >= limit || len > i32::MAX as u32 {
        return None;
    }
    Some(len - 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = i32::MAX as u32;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut m = vec![tag];
        m.extend_from_slice(&u32::try_from(body.len() + 4).expect("short").to_be_bytes());
        m.extend_from_slice(body);
        m
    }

    /// Puts the messages together again from whatever the scanner says about the pieces.
    fn reassemble(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut scan = Scanner::default();
        let mut done = Vec::new();
        let mut current = Vec::new();
        for piece in pieces {
            let mut pos = 0;
            while let Some(item) = scan.next(piece, &mut pos, LIMIT).expect("valid") {
                match item {
                    Item::Whole { start, end, .. } => done.push(piece[start..end].to_vec()),
                    Item::Begin { .. } => current = scan.header().to_vec(),
                    Item::Body { start, end, last } => {
                        current.extend_from_slice(&piece[start..end]);
                        if last {
                            done.push(std::mem::take(&mut current));
                        }
                    }
                }
            }
        }
        assert!(scan.at_boundary());
        done
    }

    #[test]
    fn any_two_cuts_give_the_same_messages() {
        let messages = [message(b'Q', b"select 1\0"), message(b'S', b""), message(b'd', &[7; 30]), message(b'H', b"")];
        let stream = messages.concat();
        for a in 0..=stream.len() {
            for b in a..=stream.len() {
                assert_eq!(reassemble(&[&stream[..a], &stream[a..b], &stream[b..]]), messages, "cuts {a} {b}");
            }
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for len in [0_u32, 3, 0x8000_0000, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(b"abcdef");
            for cut in 0..5 {
                let mut scan = Scanner::default();
                let mut pos = 0;
                assert_eq!(scan.next(&bytes[..cut], &mut pos, LIMIT), Ok(None));
                let mut pos = 0;
                let bad = scan.next(&bytes[cut..], &mut pos, LIMIT).expect_err("refused");
                assert_eq!(bad.bytes, bytes[..8]);
            }
        }
    }

    #[test]
    fn limit_counts_the_type_byte() {
        let m = message(b'd', &[0; 95]);
        assert_eq!(m.len(), 100);
        assert!(Scanner::default().next(&m, &mut 0, 100).is_ok());
        assert!(Scanner::default().next(&m, &mut 0, 99).is_err());
    }

    #[test]
    fn a_reader_that_stops_at_boundaries_asks_for_what_is_missing() {
        let stream = [message(b'd', &[7; 30]), message(b'S', b""), message(b'd', &[7; 3])].concat();
        for first in 1..stream.len() {
            let (mut scan, mut at) = (Scanner::default(), 0);
            let mut take = first;
            while take > 0 {
                let piece = &stream[at..at + take];
                let mut pos = 0;
                while scan.next(piece, &mut pos, LIMIT).expect("valid").is_some() {}
                at += take;
                take = scan.missing();
            }
            assert!(scan.at_boundary() && [35, 40, 48].contains(&at), "{first} {at}");
        }
    }

    #[test]
    fn peek_does_not_consume() {
        let m = message(b'P', b"abc");
        let mut scan = Scanner::default();
        let mut pos = 0;
        assert_eq!(scan.peek(&m, &mut pos, LIMIT), Ok(Some((b'P', 3))));
        assert_eq!(scan.next(&m, &mut pos, LIMIT), Ok(Some(Item::Whole { tag: b'P', start: 0, end: 8 })));
    }
}
