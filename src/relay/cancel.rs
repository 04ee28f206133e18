//! Cancel keys: what clients get instead of a server's key, and where a request that names one has to go.
//!
//! Layout of a key (8 bytes, random where nothing else is said): the sign bit of byte 0 is clear, so that the first
//! half looks like a process id. Among peers byte 1 and 2 hold the id of the pooler that made the key (low byte first),
//! and the two low bits of byte 7 count how often a request may still be passed on.

/// The bits of the last byte that count hops; a fresh key has all of them.
const TTL_BITS: u8 = 3;

/// The code of a CancelRequest message.
const CANCEL_REQUEST: u32 = 80_877_102;

/// A key as clients see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CancelKey(pub [u8; 8]);

/// Where a cancel request belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Here: the client with exactly this key.
    Local(CancelKey),
    /// At another pooler, which is to be sent this key.
    Peer { id: u16, key: CancelKey },
    /// It has been passed on too often and goes nowhere.
    Exhausted,
}

impl CancelKey {
    /// A key for a new client; `peer_id` 0 is a pooler without peers.
    #[must_use]
    pub fn generate(random: [u8; 8], peer_id: u16) -> Self {
        let mut key = random;
        key[0] &= 0x7f;
        if peer_id > 0 {
            [key[1], key[2]] = peer_id.to_le_bytes();
            key[7] |= TTL_BITS;
        }
        Self(key)
    }

    /// Decides about a request that names this key, at the pooler `own_id` (0: no peers).
    #[must_use]
    pub fn route(self, own_id: u16) -> Route {
        let mut key = self.0;
        let id = u16::from_le_bytes([key[1], key[2]]);
        if own_id == 0 {
            Route::Local(self)
        } else if id == own_id {
            key[7] |= TTL_BITS;
            Route::Local(Self(key))
        } else if key[7] & TTL_BITS == 0 {
            Route::Exhausted
        } else {
            key[7] -= 1;
            Route::Peer { id, key: Self(key) }
        }
    }

    /// Appends BackendKeyData.
    pub fn backend_key_data(self, out: &mut Vec<u8>) {
        out.push(b'K');
        out.extend_from_slice(&12_u32.to_be_bytes());
        out.extend_from_slice(&self.0);
    }
}

/// Appends the CancelRequest for `key`: a server's own, or the one a peer is to be sent.
pub fn cancel_request(key: [u8; 8], out: &mut Vec<u8>) {
    out.extend_from_slice(&16_u32.to_be_bytes());
    out.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
    out.extend_from_slice(&key);
}

/// Keys let anybody stop a query, so they stay out of logs.
impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CancelKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::{CancelKey, Route, cancel_request};

    #[test]
    fn keys_without_peers_are_random_but_for_the_sign() {
        assert_eq!(CancelKey::generate([0xff; 8], 0).0, [0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(CancelKey::generate([0; 8], 0).0, [0; 8]);
        let key = CancelKey([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(key.route(0), Route::Local(key));
    }

    #[test]
    fn keys_among_peers_name_their_maker() {
        assert_eq!(CancelKey::generate([0xf0; 8], 0x0201).0, [0x70, 1, 2, 0xf0, 0xf0, 0xf0, 0xf0, 0xf3]);
    }

    #[test]
    fn a_request_for_a_peer_loses_a_hop_each_time() {
        let mut key = CancelKey::generate([0; 8], 2);
        for left in [2, 1, 0] {
            let Route::Peer { id: 2, key: next } = key.route(1) else { panic!("not passed on") };
            assert_eq!(next.0[7], left);
            key = next;
        }
        assert_eq!(key.route(1), Route::Exhausted);
        // at home the hops do not matter any more
        assert_eq!(key.route(2), Route::Local(CancelKey::generate([0; 8], 2)));
    }

    #[test]
    fn wire_forms() {
        let mut out = Vec::new();
        cancel_request([1, 2, 3, 4, 5, 6, 7, 8], &mut out);
        assert_eq!(out, b"\0\0\0\x10\x04\xd2\x16\x2e\x01\x02\x03\x04\x05\x06\x07\x08");
        out.clear();
        CancelKey([9; 8]).backend_key_data(&mut out);
        assert_eq!(out, b"K\0\0\0\x0c\x09\x09\x09\x09\x09\x09\x09\x09");
    }
}
