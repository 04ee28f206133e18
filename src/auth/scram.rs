//! SCRAM-SHA-256 (RFC 5802, RFC 7677): keys, proofs and the attribute grammar that both sides share.
//!
//! [`Derivation`] is the only slow operation: as many HMACs as the iteration count says, milliseconds for the usual
//! 4096. It is plain data so that the caller can run it elsewhere and keep the result.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use stringprep::tables;
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::decoy::{self, Decoy, Shape};
use super::secret::{BASE64, KEY_BYTES, ScramSecret};

/// The mechanism spoken everywhere.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// The same bound to the TLS connection that it runs in, so that nobody can sit in the middle.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// What the messages of a bound exchange begin with: the one type of channel binding, and no authorization identity.
pub(crate) const BOUND_HEADER: &str = "p=tls-server-end-point,,";

/// Most iterations anybody may make us compute; a server could otherwise stop us with a number.
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// Random bytes of our nonces; base64 makes 24 characters of them.
pub const NONCE_BYTES: usize = 18;

/// Salt of verifiers made here.
pub const SALT_BYTES: usize = 16;

/// Longest SCRAM message accepted: user names, nonces and salts of honest peers stay far below it.
pub const MAX_MESSAGE_BYTES: usize = 2048;

/// A SHA-256 digest or a key of that size.
pub type Key = [u8; KEY_BYTES];

/// What PBKDF2 makes of a password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SaltedKeys {
    pub client_key: Key,
    pub stored_key: Key,
    pub server_key: Key,
}

/// What proves a user's identity to any server that has the same secret: enough to log in without the password.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ScramKeys {
    pub client_key: Key,
    pub server_key: Key,
}

impl From<&SaltedKeys> for ScramKeys {
    fn from(keys: &SaltedKeys) -> Self {
        Self { client_key: keys.client_key, server_key: keys.server_key }
    }
}

/// Work to do outside: the password, salt and count from which [`SaltedKeys`] are made. A key for caches, too.
#[derive(Clone, PartialEq, Eq)]
pub struct Derivation {
    pub password: Zeroizing<Vec<u8>>,
    pub salt: Vec<u8>,
    pub iterations: u32,
}

impl Derivation {
    /// Does the work; takes milliseconds.
    #[must_use]
    pub fn run(&self) -> SaltedKeys {
        derive(&self.password, &self.salt, self.iterations)
    }
}

/// SaltedPassword and the keys that follow from it. Slow in proportion to `iterations`.
#[must_use]
pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> SaltedKeys {
    let mut salted = Zeroizing::new([0; KEY_BYTES]);
    pbkdf2::pbkdf2_hmac::<Sha256>(&prepare(password), salt, iterations, salted.as_mut());
    let client_key = hmac(salted.as_ref(), &[b"Client Key"]);
    SaltedKeys { client_key, stored_key: sha256(&client_key), server_key: hmac(salted.as_ref(), &[b"Server Key"]) }
}

/// SASLprep where it can be applied, the raw bytes where not: PostgreSQL does the same on both ends.
fn prepare(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password).ok().filter(|text| !text.is_ascii()).and_then(saslprep);
    prepared.unwrap_or_else(|| Zeroizing::new(password.to_vec()))
}

/// RFC 4013 as PostgreSQL has it: what is prohibited, unassigned or written in both directions is looked for before the text
/// is normalized, not after. `None`: it cannot be applied.
fn saslprep(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mapped = |letter: char| match letter {
        space if tables::non_ascii_space_character(space) => Some(' '),
        nothing if tables::commonly_mapped_to_nothing(nothing) => None,
        other => Some(other),
    };
    let mapped: Zeroizing<Vec<char>> = Zeroizing::new(text.chars().filter_map(mapped).collect());
    let (first, last) = (*mapped.first()?, *mapped.last()?);
    if mapped.iter().any(|&letter| is_prohibited(letter) || tables::unassigned_code_point(letter)) {
        return None;
    }
    let leftwards = tables::bidi_r_or_al;
    if mapped.iter().any(|&letter| leftwards(letter)) {
        let rightwards = mapped.iter().any(|&letter| tables::bidi_l(letter));
        if rightwards || !leftwards(first) || !leftwards(last) {
            return None;
        }
    }
    // once, so that no copy of a part stays behind
    let mut prepared = Zeroizing::new(Vec::with_capacity(12 * text.len()));
    for letter in mapped.iter().copied().nfkc() {
        prepared.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Some(prepared)
}

fn is_prohibited(letter: char) -> bool {
    tables::non_ascii_space_character(letter)
        || tables::ascii_control_character(letter)
        || tables::non_ascii_control_character(letter)
        || tables::private_use(letter)
        || tables::non_character_code_point(letter)
        || tables::inappropriate_for_plain_text(letter)
        || tables::inappropriate_for_canonical_representation(letter)
        || tables::change_display_properties_or_deprecated(letter)
        || tables::tagging_character(letter)
}

pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

pub(crate) fn sha256(bytes: &[u8]) -> Key {
    Sha256::digest(bytes).into()
}

pub(crate) fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// Compares keys in constant time.
pub(crate) fn same_key(a: &Key, b: &Key) -> bool {
    a.ct_eq(b).into()
}

/// What is needed to check a client's proof; it does not reveal the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: Key,
    pub server_key: Key,
    /// Made here from a plain password: its keys are worth nothing to a server, which has another salt.
    pub derived: bool,
}

impl Verifier {
    /// A verifier from the result of a derivation.
    #[must_use]
    pub fn derived(keys: &SaltedKeys, salt: Vec<u8>, iterations: u32) -> Self {
        Self { iterations, salt, stored_key: keys.stored_key, server_key: keys.server_key, derived: true }
    }

    /// A verifier for somebody who does not exist, with the salt that a user of that name would have.
    #[must_use]
    pub fn mock(user: &str, decoy: &Decoy) -> Self {
        let keys: Key = Sha256::new().chain_update(user).chain_update(decoy.key).finalize().into();
        let Shape { iterations, salt_bytes } = decoy.scram;
        let salt = decoy::salt(user, &decoy.key, salt_bytes);
        Self { iterations, salt, stored_key: keys, server_key: keys, derived: true }
    }

    /// Would one that is made from a plain password now have the same iterations and salt?
    #[must_use]
    pub fn is_current(&self, user: &str, iterations: u32, key: &[u8]) -> bool {
        self.derived && self.iterations == iterations && self.salt == decoy::salt(user, key, SALT_BYTES)
    }
}

impl From<&ScramSecret> for Verifier {
    fn from(secret: &ScramSecret) -> Self {
        Self {
            iterations: secret.iterations,
            salt: secret.salt.clone(),
            stored_key: secret.stored_key,
            server_key: secret.server_key,
            derived: false,
        }
    }
}

impl fmt::Debug for SaltedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaltedKeys(..)")
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(..)")
    }
}

impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Derivation").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("iterations", &self.iterations)
            .field("derived", &self.derived)
            .finish_non_exhaustive()
    }
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// What a defect is called in the log; peers are told less.
pub type Defect = Cow<'static, str>;

pub(crate) fn malformed(what: impl fmt::Display) -> Defect {
    format!("malformed SCRAM message ({what})").into()
}

/// Refuses what no honest peer sends before any of it is looked at.
pub(crate) fn check_message(message: &[u8]) -> Result<(), Defect> {
    if message.is_empty() {
        Err(malformed("empty message"))
    } else if message.len() > MAX_MESSAGE_BYTES {
        Err(malformed("message is too long"))
    } else if message.contains(&0) {
        Err(malformed("length mismatch"))
    } else {
        Ok(())
    }
}

/// Reads `a=value` attributes separated by commas.
pub(crate) struct Attributes<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Attributes<'a> {
    pub(crate) const fn new(message: &'a [u8]) -> Self {
        Self { rest: Some(message) }
    }

    /// Whether everything has been read. A comma at the end has nothing behind it, as PostgreSQL sees it.
    pub(crate) const fn at_end(&self) -> bool {
        self.left() == 0
    }

    /// Bytes that have not been read.
    pub(crate) const fn left(&self) -> usize {
        match self.rest {
            Some(rest) => rest.len(),
            None => 0,
        }
    }

    /// The value of the next attribute, which has to be called `name`.
    pub(crate) fn expect(&mut self, name: u8) -> Result<&'a [u8], Defect> {
        let name = char::from(name);
        match self.rest {
            Some([first, ..]) if char::from(*first) == name => {}
            _ => return Err(malformed(format_args!("attribute \"{name}\" expected"))),
        }
        if !matches!(self.rest, Some([_, b'=', ..])) {
            return Err(malformed(format_args!("expected \"=\" after attribute \"{name}\"")));
        }
        self.any().map(|(_, value)| value)
    }

    /// The next attribute, whatever it is called. The end of a message is a NUL to PgBouncer.
    pub(crate) fn any(&mut self) -> Result<(u8, &'a [u8]), Defect> {
        match self.rest {
            None | Some([]) => Err(malformed("attribute expected, but found invalid character \"0x00\"")),
            Some([name, ..]) if !name.is_ascii_alphabetic() => {
                Err(malformed(format_args!("attribute expected, but found invalid character \"{}\"", show(*name))))
            }
            Some([name, b'=', value @ ..]) => {
                let end = value.iter().position(|&b| b == b',');
                self.rest = end.map(|end| &value[end + 1..]);
                Ok((*name, &value[..end.unwrap_or(value.len())]))
            }
            Some([name, ..]) => {
                let name = char::from(*name);
                Err(malformed(format_args!("expected character \"=\" after attribute \"{name}\"")))
            }
        }
    }
}

/// A byte for the log.
pub(crate) fn show(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// Whether a nonce is made of the characters RFC 5802 permits.
pub(crate) fn is_printable(nonce: &[u8]) -> bool {
    nonce.iter().all(|&b| (0x21..=0x7e).contains(&b) && b != b',')
}

#[cfg(test)]
mod tests {
    use super::{Attributes, check_message, derive, encode, prepare, xor};

    #[test]
    fn keys_are_postgresqls() {
        // The salt of RFC 7677's example; the keys are those other implementations publish for it.
        let salt = super::decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = derive(b"pencil", &salt, 4096);
        assert_eq!(encode(&keys.stored_key), "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=");
        assert_eq!(encode(&keys.server_key), "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=");
    }

    #[test]
    fn passwords_are_prepared_where_possible() {
        for (raw, expected) in [
            (b"abc".as_slice(), b"abc".as_slice()),
            ("\u{2168}".as_bytes(), b"IX"),
            ("a\u{a0}b".as_bytes(), b"a b"),
            ("I\u{ad}X".as_bytes(), b"IX"),
            ("\u{ad}".as_bytes(), "\u{ad}".as_bytes()),
            ("tab\t".as_bytes(), b"tab\t"),
            (b"\xff\xfe", b"\xff\xfe"),
            // not there yet in Unicode 3.2, though they can be taken apart
            ("pass\u{1d43}".as_bytes(), "pass\u{1d43}".as_bytes()),
            ("x\u{2090}".as_bytes(), "x\u{2090}".as_bytes()),
            // written to the right itself, to the left when taken apart
            ("\u{2135}a".as_bytes(), "\u{5d0}a".as_bytes()),
            ("\u{340}".as_bytes(), "\u{340}".as_bytes()),
            ("\u{5d0}a".as_bytes(), "\u{5d0}a".as_bytes()),
            ("\u{5d0}\u{ad}\u{5d0}".as_bytes(), "\u{5d0}\u{5d0}".as_bytes()),
        ] {
            assert_eq!(prepare(raw).as_slice(), expected, "{raw:?}");
        }
    }

    #[test]
    fn attributes_are_read_in_order() {
        let mut attributes = Attributes::new(b"r=a=b,s=,x=1");
        assert_eq!(attributes.expect(b'r').unwrap(), b"a=b");
        assert_eq!(attributes.expect(b's').unwrap(), b"");
        assert!(!attributes.at_end());
        assert_eq!(attributes.any().unwrap(), (b'x', b"1".as_slice()));
        assert!(attributes.at_end());
        assert!(attributes.any().is_err());
    }

    #[test]
    fn defects_are_named() {
        for (message, expected) in [
            (b"s=1".as_slice(), "attribute \"r\" expected"),
            (b"", "attribute \"r\" expected"),
            (b"r", "expected \"=\" after attribute \"r\""),
            (b"r,", "expected \"=\" after attribute \"r\""),
        ] {
            let defect = Attributes::new(message).expect(b'r').unwrap_err();
            assert_eq!(defect, format!("malformed SCRAM message ({expected})"));
        }
        let defect = Attributes::new(b"\x01=").any().unwrap_err();
        assert_eq!(defect, "malformed SCRAM message (attribute expected, but found invalid character \"0x01\")");
        assert!(check_message(b"").is_err() && check_message(b"a\0").is_err() && check_message(&[b'a'; 2049]).is_err());
        assert!(check_message(&[b'a'; 2048]).is_ok());
    }

    #[test]
    fn xor_is_its_own_inverse() {
        let (a, b) = ([0x5a; 32], [0xf0; 32]);
        assert_eq!(xor(&xor(&a, &b), &b), a);
    }
}
