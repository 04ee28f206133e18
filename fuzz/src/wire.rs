//! Message boundaries, first packets, cancel keys.

use pgusher::relay::cancel::{CancelKey, Route, cancel_request};
use pgusher::wire::scan::{Item, Scanner};
use pgusher::wire::startup::{self, Rules, StartupParams, Step};

use super::bytes::{Bytes, pieces, whole_messages};

/// What a scanner finds: (type, body bytes) of the messages that ended, and whether it ended in an error.
fn scanned(input: &[&[u8]], limit: u32) -> (Vec<(u8, Vec<u8>)>, bool) {
    let (mut scan, mut done, mut current) = (Scanner::default(), Vec::new(), Vec::new());
    for piece in input {
        let mut pos = 0;
        loop {
            let before = pos;
            let item = match scan.next(piece, &mut pos, limit) {
                Err(bad) => {
                    assert!(bad.bytes.len() <= 8);
                    return (done, true);
                }
                Ok(item) => item,
            };
            assert!(before <= pos && pos <= piece.len(), "beyond the buffer");
            match item {
                None => {
                    assert_eq!(pos, piece.len(), "bytes are left over");
                    break;
                }
                Some(Item::Whole { tag, start, end }) => {
                    assert!(before == start && end == pos && end - start >= 5);
                    done.push((tag, piece[start + 5..end].to_vec()));
                }
                Some(Item::Begin { tag, body_len }) => {
                    assert!(scan.in_body() && scan.left() == body_len && scan.header()[0] == tag);
                    current.clear();
                }
                Some(Item::Body { start, end, last }) => {
                    assert!(before == start && end == pos && last != scan.in_body());
                    current.extend_from_slice(&piece[start..end]);
                    if last {
                        done.push((scan.header()[0], current.clone()));
                    }
                }
            }
        }
    }
    (done, false)
}

/// The same by the plainest of means.
fn counted(mut bytes: &[u8], limit: u32) -> (Vec<(u8, Vec<u8>)>, bool) {
    let mut done = Vec::new();
    while let [tag, a, b, c, d, rest @ ..] = bytes {
        let len = u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
        if len < 4 || len >= u64::from(limit) || len > 0x7fff_ffff {
            return (done, true);
        }
        let Some(body) = usize::try_from(len - 4).ok().and_then(|len| rest.get(..len)) else { break };
        done.push((*tag, body.to_vec()));
        bytes = &rest[body.len()..];
    }
    (done, false)
}

pub(crate) fn scan(data: &[u8]) {
    let mut from = Bytes(data);
    let seed = u64::from(from.one());
    let limit = [u32::MAX, 0x7fff_ffff, 100, 20][usize::from(from.one() & 3)];
    let expected = counted(from.0, limit);
    assert_eq!(scanned(&[from.0], limit), expected);
    assert_eq!(scanned(&pieces(from.0, seed), limit), expected);
}

pub(crate) fn startup(data: &[u8]) {
    let mut from = Bytes(data);
    let choice = from.one();
    let limit = if choice & 1 == 0 { 0x7fff_ffff } else { 4096 };
    let bytes = from.0;
    let whole = startup::next(bytes, limit);
    for cut in 0..bytes.len().min(300) {
        match startup::next(&bytes[..cut], limit) {
            // how many bytes of a bad header are shown depends on how many have come
            Step::NeedMore | Step::BadHeader { .. } => {}
            early => assert_eq!(early, whole, "after {cut} bytes"),
        }
    }
    let _ = whole.refusal();
    let (Step::SslRequest { total_len } | Step::GssEncRequest { total_len } | Step::Startup { total_len, .. }) = whole
    else {
        return;
    };
    assert!(total_len >= 8 && total_len <= bytes.len());
    let Step::Startup { minor, body, total_len } = whole else { return };
    assert!(body.start == 8 && body.end == total_len);
    let body = &bytes[body];
    let tracked =
        |name: &str| ["client_encoding", "application_name", "DateStyle"].iter().position(|known| *known == name);
    let ignored = ["options", "extra"];
    let rules = Rules {
        tracked: &tracked,
        ignored: if choice & 2 == 0 { &[] } else { &ignored },
        add_host: (choice & 4 != 0).then_some("10.0.0.1:5"),
    };
    match StartupParams::parse(minor, body, &rules) {
        Err(refused) => assert!(refused.disconnect.tell && !refused.disconnect.reason.is_empty()),
        Ok(params) => understood(&params, body),
    }
    let _ = startup::names_database(body, "pgbouncer");
}

fn understood(params: &StartupParams, body: &[u8]) {
    assert!(!params.user.is_empty() && !params.database.is_empty());
    assert_eq!(body.last(), Some(&0));
    let mut indices: Vec<_> = params.tracked.iter().map(|(index, _)| *index).collect();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), params.tracked.len(), "a parameter twice");
    let mut out = Vec::new();
    params.negotiate(&mut out);
    let said = whole_messages(&out);
    assert!(said.len() == 1 && said[0].0 == b'v');
}

pub(crate) fn cancel_key(data: &[u8]) {
    let mut from = Bytes(data);
    let (key, own, other) = (from.array::<8>(), u16::from_le_bytes(from.array()), u16::from_le_bytes(from.array()));
    let ours = CancelKey::generate(key, own);
    assert!(ours.0[0] & 0x80 == 0, "a negative process id");
    assert_eq!(ours.route(own), Route::Local(ours), "our own keys come home");
    if own > 0 && other > 0 && other != own {
        // from a stranger's pooler it finds home, changed in nothing that counts
        let Route::Peer { id, key } = ours.route(other) else { panic!("kept by somebody else") };
        assert!(id == own && key.route(own) == Route::Local(ours));
    }
    let (mut key, mut hops) = (CancelKey(key), 0);
    while let Route::Peer { key: next, .. } = key.route(if hops % 2 == 0 { own } else { other }) {
        key = next;
        hops += 1;
        assert!(hops <= 4, "a request that is passed on for ever");
    }
    let mut out = Vec::new();
    cancel_request(key.0, &mut out);
    assert_eq!(startup::next(&out, 0x7fff_ffff), Step::CancelRequest { key: key.0 });
}
