//! What is known about a user's password: plain text, MD5 hash or SCRAM secret, told apart by their form alone.
//!
//! Texts come from auth_file, `password=` and rows of auth_query. A plain password is bytes in whatever encoding. Secrets never
//! show up in `Debug`, and are overwritten in memory when dropped.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroize;

/// Base64 as PostgreSQL reads it: padded, but not strict about the unused bits of the last digit.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Length of a SHA-256 digest and therefore of every SCRAM key.
pub const KEY_BYTES: usize = 32;

/// A stored password.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Secret {
    /// No password: matches nothing.
    #[default]
    None,
    Plain(Vec<u8>),
    /// `md5` and 32 lower-case hexadecimal digits: the MD5 hash of password followed by user name.
    Md5(String),
    Scram(ScramSecret),
}

/// A SCRAM-SHA-256 secret as `pg_authid` keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramSecret {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: [u8; KEY_BYTES],
    pub server_key: [u8; KEY_BYTES],
    /// The text it was read from: what a server that asks for a clear-text password is sent.
    pub text: String,
}

impl Secret {
    /// Decides the kind of a secret by its form. Whatever is not exactly one of the hashed forms is a plain password.
    #[must_use]
    pub fn classify(bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        if bytes.is_empty() {
            Self::None
        } else if is_md5(text) {
            Self::Md5(text.to_owned())
        } else if let Some(secret) = ScramSecret::parse(text) {
            Self::Scram(secret)
        } else {
            Self::Plain(bytes.to_vec())
        }
    }

    /// What the secret was made from, empty for none.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::None => b"",
            Self::Plain(password) => password,
            Self::Md5(text) => text.as_bytes(),
            Self::Scram(secret) => secret.text.as_bytes(),
        }
    }

    #[must_use]
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

fn is_md5(text: &str) -> bool {
    text.len() == 35
        && text.strip_prefix("md5").is_some_and(|hex| hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

impl ScramSecret {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; nothing if any part is not as it should be.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (parameters, keys) = rest.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        if !iterations.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let iterations = iterations.parse().ok().filter(|&n| n > 0)?;
        let salt = BASE64.decode(salt).ok().filter(|salt| !salt.is_empty())?;
        Some(Self {
            iterations,
            salt,
            stored_key: decode_key(stored_key)?,
            server_key: decode_key(server_key)?,
            text: text.to_owned(),
        })
    }
}

fn decode_key(text: &str) -> Option<[u8; KEY_BYTES]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "Secret::None",
            Self::Plain(_) => "Secret::Plain(..)",
            Self::Md5(_) => "Secret::Md5(..)",
            Self::Scram(_) => "Secret::Scram(..)",
        })
    }
}

impl fmt::Debug for ScramSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramSecret").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        match self {
            Self::Plain(password) => password.zeroize(),
            Self::Md5(text) => text.zeroize(),
            Self::None | Self::Scram(_) => {}
        }
    }
}

impl Drop for ScramSecret {
    fn drop(&mut self) {
        self.stored_key.zeroize();
        self.server_key.zeroize();
        self.text.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::{ScramSecret, Secret};

    /// The password `pencil`, as PostgreSQL would store it.
    const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                         wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn kind(text: &str) -> &'static str {
        match Secret::classify(text) {
            Secret::None => "none",
            Secret::Plain(_) => "plain",
            Secret::Md5(_) => "md5",
            Secret::Scram(_) => "scram",
        }
    }

    #[test]
    fn kinds_are_told_apart_by_form() {
        for (text, expected) in [
            ("", "none"),
            ("x", "plain"),
            ("md5", "plain"),
            ("md5d41d8cd98f00b204e9800998ecf8427e", "md5"),
            ("md5D41d8cd98f00b204e9800998ecf8427e", "plain"),
            ("md5d41d8cd98f00b204e9800998ecf8427", "plain"),
            ("md5d41d8cd98f00b204e9800998ecf8427ee", "plain"),
            ("MD5d41d8cd98f00b204e9800998ecf8427e", "plain"),
            (SCRAM, "scram"),
            ("SCRAM-SHA-256$", "plain"),
            ("SCRAM-SHA-256$4096:", "plain"),
            ("SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "plain"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn a_password_in_another_encoding_is_its_bytes() {
        let secret = Secret::classify(b"p\xe4ss");
        assert!(matches!(&secret, Secret::Plain(password) if password == b"p\xe4ss"));
        assert_eq!(secret.bytes(), b"p\xe4ss");
        assert!(matches!(Secret::classify(b"md5d41d8cd98f00b204e9800998ecf8427\xe4"), Secret::Plain(_)));
    }

    #[test]
    fn a_damaged_scram_secret_is_a_plain_password() {
        for (from, to) in [
            ("$4096:", "$:"),
            ("$4096:", "$0:"),
            ("$4096:", "$-1:"),
            ("$4096:", "$+4096:"),
            ("$4096:", "$99999999999:"),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaJ0SNY7soEsUEjb6gQ="),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
            ("4qY=:", "4qY=$"),
            ("2dU=", "2dU=="),
            ("2dU=", "2dU= "),
            ("WG5d", "!G5d"),
        ] {
            assert_eq!(kind(&SCRAM.replacen(from, to, 1)), "plain", "{from} -> {to}");
        }
    }

    #[test]
    fn parts_of_a_scram_secret() {
        let secret = ScramSecret::parse(SCRAM).unwrap();
        assert_eq!((secret.iterations, secret.salt.len()), (4096, 16));
        assert_eq!((secret.stored_key[0], secret.server_key[0]), (0x58, 0xc1));
        assert_eq!(Secret::classify(SCRAM).bytes(), SCRAM.as_bytes());
    }

    #[test]
    fn debug_tells_nothing() {
        for text in ["hunter2", SCRAM, "md5d41d8cd98f00b204e9800998ecf8427e"] {
            let shown = format!("{:?} {:?}", Secret::classify(text), ScramSecret::parse(text));
            assert!(!shown.contains("hunter2") && !shown.contains("d41d") && !shown.contains("W22Z"), "{shown}");
        }
    }
}
