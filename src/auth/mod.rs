//! Login machines, both directions: clients that log in to us and we that log in to servers.
//!
//! Nothing here draws a random number, reads a file, hashes for long or waits: nonces and salts are arguments, and the
//! one slow step (PBKDF2, thousands of HMACs) is handed out as a [`scram::Derivation`] which the caller runs wherever
//! it does not hold up other connections. Messages are appended to the caller's buffer, complete with type and length.
//!
//! A login identity is decided by the caller once and never changes inside a machine. What a peer says is bounded
//! before it is kept, and every length is compared before it is used.

pub mod certificate;
pub mod choice;
pub mod client;
pub mod decoy;
pub mod facts;
pub mod issuer;
pub mod lookup;
pub mod md5;
pub mod scram;
pub mod scram_client;
pub mod scram_server;
pub mod secret;
pub mod server;

#[cfg(test)]
mod exchange_tests;

use subtle::ConstantTimeEq;

/// Longest user name in bytes; a longer one is refused with `username too long`.
pub const MAX_USER_BYTES: usize = 127;

/// Longest password in bytes; a longer one never matches.
pub const MAX_PASSWORD_BYTES: usize = 65_530;

/// Compares two secrets in a time that depends on neither their contents nor where they differ.
///
/// Digests are compared instead of the texts so that their lengths do not show either.
#[must_use]
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    use sha2::{Digest, Sha256};
    Sha256::digest(a).as_slice().ct_eq(Sha256::digest(b).as_slice()).into()
}

/// Appends one message: type, length and what `body` writes.
pub(crate) fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = u32::try_from(out.len() - at).expect("login messages are bounded far below 4 GiB");
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::{message, same_secret};

    #[test]
    fn secrets_compare_by_content_and_length() {
        for (a, b, same) in [("", "", true), ("a", "a", true), ("a", "b", false), ("a", "aa", false), ("", "a", false)]
        {
            assert_eq!(same_secret(a.as_bytes(), b.as_bytes()), same, "{a:?} {b:?}");
        }
    }

    #[test]
    fn message_counts_itself_but_not_its_type() {
        let mut out = vec![7];
        message(&mut out, b'p', |out| out.extend_from_slice(b"ab\0"));
        assert_eq!(out, b"\x07p\0\0\0\x07ab\0");
    }
}
