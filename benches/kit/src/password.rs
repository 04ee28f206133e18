//! Proofs of a password, the client's side: MD5 and SCRAM-SHA-256 (RFC 5802, RFC 7677).
//!
//! The salted password is kept from one login to the next, as good drivers do; servers are not verified. The nonce is constant:
//! this proves nothing to nobody but a pooler under test.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use md5::Md5;
use sha2::{Digest, Sha256};

const NONCE: &str = "a-nonce-of-no-worth";

/// `md5` and the digest of the digest of password and user, with the salt.
pub fn md5(user: &str, password: &str, salt: &[u8]) -> String {
    let inner = hex(&Md5::digest([password, user].concat()));
    format!("md5{}", hex(&Md5::digest([inner.as_bytes(), salt].concat())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was derived last: the challenge's salt and count, and the salted password.
#[derive(Default)]
pub struct Salted(Option<(String, [u8; 32])>);

/// Name of the mechanism and the first message, as the body of SASLInitialResponse.
pub fn scram_first() -> Vec<u8> {
    let first = format!("n,,{}", bare());
    let length = u32::try_from(first.len()).expect("short");
    [b"SCRAM-SHA-256\0".as_slice(), &length.to_be_bytes(), first.as_bytes()].concat()
}

fn bare() -> String {
    format!("n=,r={NONCE}")
}

/// The answer to the server's challenge, `None` if that cannot be read.
pub fn scram_final(password: &str, challenge: &[u8], salted: &mut Salted) -> Option<Vec<u8>> {
    let challenge = std::str::from_utf8(challenge).ok()?;
    let (nonce, derivation) = challenge.strip_prefix("r=")?.split_once(",s=")?;
    if salted.0.as_ref().is_none_or(|(known, _)| known != derivation) {
        let (salt, count) = derivation.split_once(",i=")?;
        let mut key = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), &STANDARD.decode(salt).ok()?, count.parse().ok()?, &mut key);
        salted.0 = Some((derivation.to_owned(), key));
    }
    let key = hmac(&salted.0.as_ref()?.1, b"Client Key");
    let unproved = format!("c=biws,r={nonce}");
    let signature = hmac(&Sha256::digest(key), format!("{},{challenge},{unproved}", bare()).as_bytes());
    let proof: Vec<u8> = key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    Some(format!("{unproved},p={}", STANDARD.encode(proof)).into_bytes())
}

fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}
