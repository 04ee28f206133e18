//! Startup-style packets: the only messages without a type byte, and what a startup message says.
//!
//! [`next`] tells what the first bytes of a connection are, from a buffer that grows; [`StartupParams::parse`] reads
//! the body of a startup message. Nothing found here reaches a server before the client has proved who it is. Source:
//! PostgreSQL's "Message Formats" chapter and PgBouncer's observed answers to malformed packets.

use std::fmt::Write as _;
use std::ops::Range;

use crate::disconnect::Disconnect;

mod params;

pub use params::{Refused, Replication, Rules, StartupParams, names_database};

/// Bytes of length and code in front of a startup-style packet.
const HEADER_BYTES: usize = 8;

/// Bytes of type and length in front of a regular message.
const REGULAR_HEADER_BYTES: usize = 5;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const PROTOCOL_2: u32 = 0x2_0000;

/// What a connection that has not logged in yet says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Not decidable yet: read more.
    NeedMore,
    SslRequest {
        total_len: usize,
    },
    GssEncRequest {
        total_len: usize,
    },
    CancelRequest {
        key: [u8; 8],
    },
    /// A cancel request whose body is not one key: closed, nobody is told.
    BadCancelRequest,
    /// A startup message of protocol 3: `body` is the range of its keys and values.
    Startup {
        minor: u16,
        body: Range<usize>,
        total_len: usize,
    },
    /// A regular message, of which the header has arrived; `total_len` includes the type byte.
    Regular {
        tag: u8,
        total_len: usize,
    },
    /// Protocol 2.
    OldProtocol,
    /// Not PostgreSQL at all: the first bytes in hexadecimal.
    BadHeader {
        hex: String,
    },
}

impl Step {
    /// The reason to close a connection that began like this; none for the steps that can be served.
    #[must_use]
    pub fn refusal(&self) -> Option<Disconnect> {
        match self {
            Self::BadCancelRequest => Some(Disconnect::silent("bad cancel request")),
            Self::OldProtocol => Some(Disconnect::fatal("old V2 protocol not supported")),
            Self::BadHeader { hex } => Some(Disconnect::fatal(format!("bad packet header: '{hex}'"))),
            Self::Regular { tag: b'p', .. } => Some(Disconnect::fatal("client password pkt before startup packet")),
            Self::Regular { .. } => Some(Disconnect::silent("bad packet")),
            _ => None,
        }
    }
}

/// Looks at the bytes received so far. `max_packet_bytes` bounds regular messages; startup-style packets are bounded by
/// their 16-bit length.
#[must_use]
pub fn next(buf: &[u8], max_packet_bytes: u32) -> Step {
    match buf {
        [] => Step::NeedMore,
        [0, ..] => match buf.first_chunk::<HEADER_BYTES>() {
            Some(header) => startup_style(header, buf),
            None => Step::NeedMore,
        },
        [tag, ..] => match buf.first_chunk::<REGULAR_HEADER_BYTES>() {
            Some(&[_, a, b, c, d]) => regular(*tag, u32::from_be_bytes([a, b, c, d]), max_packet_bytes, buf),
            None => Step::NeedMore,
        },
    }
}

fn regular(tag: u8, len: u32, max_packet_bytes: u32, buf: &[u8]) -> Step {
    match len.checked_add(1).filter(|&total| len >= 4 && total <= max_packet_bytes).map(usize::try_from) {
        Some(Ok(total_len)) => Step::Regular { tag, total_len },
        _ => bad_header(buf),
    }
}

fn startup_style(header: &[u8; HEADER_BYTES], buf: &[u8]) -> Step {
    let [_, second, len_high, len_low, a, b, c, d] = *header;
    let total_len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let code = u32::from_be_bytes([a, b, c, d]);
    let known = matches!(code, CANCEL_REQUEST | SSL_REQUEST | GSSENC_REQUEST | PROTOCOL_2) || code >> 16 == 3;
    if second != 0 || !known || total_len < HEADER_BYTES {
        return bad_header(buf);
    }
    if code == PROTOCOL_2 {
        return Step::OldProtocol;
    }
    if code == CANCEL_REQUEST && total_len != 2 * HEADER_BYTES {
        return Step::BadCancelRequest;
    }
    let Some(body) = buf.get(HEADER_BYTES..total_len) else { return Step::NeedMore };
    match code {
        SSL_REQUEST => Step::SslRequest { total_len },
        GSSENC_REQUEST => Step::GssEncRequest { total_len },
        CANCEL_REQUEST => match body.try_into() {
            Ok(key) => Step::CancelRequest { key },
            Err(_) => Step::BadCancelRequest,
        },
        _ => Step::Startup { minor: u16::from_be_bytes([c, d]), body: HEADER_BYTES..total_len, total_len },
    }
}

fn bad_header(buf: &[u8]) -> Step {
    let mut hex = String::new();
    for byte in buf.iter().take(8) {
        write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
    }
    Step::BadHeader { hex }
}

#[cfg(test)]
mod tests {
    use super::{Rules, StartupParams, Step, next};

    const MAX: u32 = 0x7fff_ffff;

    fn bad(hex: &str) -> Step {
        Step::BadHeader { hex: hex.to_owned() }
    }

    #[test]
    fn first_bytes() {
        let cancel = Step::CancelRequest { key: *b"12345678" };
        let startup = |minor, len| Step::Startup { minor, body: 8..len, total_len: len };
        for (bytes, step) in [
            (b"".as_slice(), Step::NeedMore),
            (b"\0", Step::NeedMore),
            (b"\0\0\0\x08\x04\xd2\x16", Step::NeedMore),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Step::SslRequest { total_len: 8 }),
            (b"\0\0\0\x08\x04\xd2\x16\x2f\x16\x03", Step::SslRequest { total_len: 8 }),
            (b"\0\0\0\x08\x04\xd2\x16\x30", Step::GssEncRequest { total_len: 8 }),
            (b"\0\0\0\x10\x04\xd2\x16\x2e12345678", cancel),
            (b"\0\0\0\x10\x04\xd2\x16\x2e1234567", Step::NeedMore),
            (b"\0\0\0\x0f\x04\xd2\x16\x2e1234567", Step::BadCancelRequest),
            (b"\0\0\0\x08\x04\xd2\x16\x2e", Step::BadCancelRequest),
            (b"\0\0\0\x08\0\x02\0\0", Step::OldProtocol),
            (b"\0\0\0\x09\0\x03\0\0\0", startup(0, 9)),
            (b"\0\0\0\x08\0\x03\0\0", startup(0, 8)),
            (b"\0\0\0\x09\0\x03\0\x02\0", startup(2, 9)),
            (b"\0\0\0\x09\0\x03\xff\xff\0more", startup(0xffff, 9)),
            (b"\0\0\xff\xff\0\x03\0\0\0", Step::NeedMore),
            (b"\0\0\0\x22\0\x04\0\0", bad("0000002200040000")),
            (b"\0\0\0\x07\0\x03\0\0", bad("0000000700030000")),
            (b"\0\0\0\x07\x04\xd2\x16\x2f", bad("0000000704d2162f")),
            (b"\0\0\0\0\0\x02\0\0\0\0", bad("0000000000020000")),
            (b"\0\x01\0\x08\0\x03\0", Step::NeedMore),
            (b"\0\x01\0\x08\0\x03\0\0\0", bad("0001000800030000")),
            (b"p\0\0\0\x05", Step::Regular { tag: b'p', total_len: 6 }),
            (b"p\0\0\0", Step::NeedMore),
            (b"Q\0\0\0\x03xx", bad("51000000037878")),
            (b"Q\xff\xff\xff\xff", bad("51ffffffff")),
            (b"Q\x7f\xff\xff\xff", bad("517fffffff")),
            (b"GET / HTTP/1.1", Step::Regular { tag: b'G', total_len: 0x4554_202f + 1 }),
        ] {
            assert_eq!(next(bytes, MAX), step, "{bytes:?}");
        }
        assert_eq!(next(b"Q\0\0\x10\0", 4096), bad("5100001000"));
    }

    #[test]
    fn refusals_of_first_bytes() {
        for (step, text) in [
            (Step::OldProtocol, Some(("old V2 protocol not supported", true))),
            (bad("51"), Some(("bad packet header: '51'", true))),
            (Step::BadCancelRequest, Some(("bad cancel request", false))),
            (Step::Regular { tag: b'p', total_len: 5 }, Some(("client password pkt before startup packet", true))),
            (Step::Regular { tag: b'Q', total_len: 5 }, Some(("bad packet", false))),
            (Step::NeedMore, None),
            (Step::SslRequest { total_len: 8 }, None),
        ] {
            let refusal = step.refusal();
            assert_eq!(refusal.as_ref().map(|refusal| (&*refusal.reason, refusal.tell)), text);
        }
    }

    #[test]
    fn damaged_packets_never_panic_and_decide_the_same_however_they_are_cut() {
        let good = b"\0\0\0\x5a\0\x03\0\0user\0u\0replication\0on\0options\0-c a=\\b --c=d\0_pq_.a\0\0\
                     application_name\0psql\0DateStyle\0ISO\0\0";
        let mut state = 4_711_u64;
        let mut below = move |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % limit
        };
        for _ in 0..100_000 {
            let mut bytes = good.to_vec();
            for _ in 0..=below(3) {
                let at = below(bytes.len().max(1)).min(bytes.len());
                match below(4) {
                    0 if at < bytes.len() => bytes[at] = b"\0\0=-c\\ \xffu"[below(9)],
                    1 => bytes.insert(at, b"\0\0=-c\\ \xffu"[below(9)]),
                    2 if at < bytes.len() => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let whole = next(&bytes, MAX);
            match next(&bytes[..below(bytes.len() + 1)], MAX) {
                // how many bytes of a bad header are shown depends on how many have come
                Step::NeedMore | Step::BadHeader { .. } => {}
                early => assert_eq!(early, whole),
            }
            if let Step::Startup { body, .. } = whole {
                let tracked = |name: &str| (name != "a").then_some(name.len());
                let rules = Rules { tracked: &tracked, ignored: &[], add_host: Some("h") };
                let _ = StartupParams::parse(0, &bytes[body], &rules);
            }
        }
    }
}
