//! Messages of PostgreSQL's protocol: made, and found in what was read.

pub const TERMINATE: &[u8] = b"X\0\0\0\x04";
pub const SYNC: &[u8] = b"S\0\0\0\x04";
/// What a client sends before TLS; the number is the protocol's.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Bodies of longer messages are passed over unread.
const LONGEST_KEPT: usize = 16 * 1024;

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("messages made here are small");
    [&[kind], length.to_be_bytes().as_slice(), body].concat()
}

/// A startup packet of protocol 3.0.
pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let body = [b"\0\x03\0\0user\0", user.as_bytes(), b"\0database\0", database.as_bytes(), b"\0\0"].concat();
    let length = u32::try_from(body.len() + 4).expect("names are short");
    [length.to_be_bytes().as_slice(), &body].concat()
}

/// Finds messages in a stream that is read in pieces.
#[derive(Default)]
pub struct Messages {
    /// Bytes of a long message still to come.
    skip: usize,
    /// The beginning of a message whose end has not been read.
    rest: Vec<u8>,
}

impl Messages {
    /// Calls `each` with the type and body of every message that ends in `input`; a long one that was cut counts when it
    /// begins, with an empty body.
    pub fn feed(&mut self, mut input: &[u8], mut each: impl FnMut(u8, &[u8])) {
        loop {
            let skipped = self.skip.min(input.len());
            self.skip -= skipped;
            input = &input[skipped..];
            if input.is_empty() {
                return;
            }
            if !self.rest.is_empty() {
                let wanted = if self.rest.len() < 5 { 5 } else { whole(&self.rest) };
                let taken = (wanted - self.rest.len()).min(input.len());
                self.rest.extend_from_slice(&input[..taken]);
                input = &input[taken..];
                if self.rest.len() < 5 {
                    return;
                }
                let length = whole(&self.rest);
                if length > LONGEST_KEPT {
                    each(self.rest[0], b"");
                    self.skip = length - self.rest.len();
                    self.rest.clear();
                } else if self.rest.len() == length {
                    each(self.rest[0], &self.rest[5..]);
                    self.rest.clear();
                }
                continue;
            }
            if input.len() < 5 {
                self.rest.extend_from_slice(input);
                return;
            }
            let length = whole(input);
            if length <= input.len() {
                each(input[0], &input[5..length]);
                input = &input[length..];
            } else if length > LONGEST_KEPT {
                each(input[0], b"");
                self.skip = length;
            } else {
                self.rest.extend_from_slice(input);
                return;
            }
        }
    }
}

/// Bytes of the message whose header is at the beginning, its type included.
fn whole(header: &[u8]) -> usize {
    u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize + 1
}

/// The text up to the next NUL, and what follows that.
pub fn text(body: &[u8]) -> (&[u8], &[u8]) {
    match body.iter().position(|byte| *byte == 0) {
        Some(end) => (&body[..end], &body[end + 1..]),
        None => (body, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let long = message(b'D', &vec![7; LONGEST_KEPT]);
        let stream = [message(b'T', b"columns"), long, message(b'C', b""), message(b'Z', b"I")].concat();
        for cut in [1, 3, 5, 6, 11, 4096, stream.len()] {
            let (mut messages, mut found) = (Messages::default(), Vec::new());
            for piece in stream.chunks(cut) {
                messages.feed(piece, |kind, body| found.push((kind, body.len() % LONGEST_KEPT)));
            }
            assert_eq!(found, [(b'T', 7), (b'D', 0), (b'C', 0), (b'Z', 1)], "pieces of {cut} bytes");
        }
    }
}
