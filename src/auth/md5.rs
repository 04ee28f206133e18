//! MD5 passwords: the stored hash, and the answer to a challenge with a salt.

use md5::{Digest, Md5};

use super::secret::Secret;

/// `md5` and the hexadecimal MD5 digest of `text` followed by `salt`: the one operation both steps of PostgreSQL's
/// scheme use.
fn hash(text: &[u8], salt: &[u8]) -> String {
    let digest = Md5::new().chain_update(text).chain_update(salt).finalize();
    let mut out = String::with_capacity(35);
    out.push_str("md5");
    // by hand: formatting takes longer than the digest
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    out.extend(digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    out
}

/// The form in which PostgreSQL stores the password of `user`.
#[must_use]
pub fn stored(password: &[u8], user: &str) -> String {
    hash(password, user.as_bytes())
}

/// The answer to an MD5 challenge by someone who knows `secret`; none if it is not of a kind that can answer.
#[must_use]
pub fn answer(secret: &Secret, user: &str, salt: [u8; 4]) -> Option<String> {
    match secret {
        Secret::None => Some(respond(&stored(b"", user), salt)),
        Secret::Plain(password) => Some(respond(&stored(password, user), salt)),
        Secret::Md5(stored) => Some(respond(stored, salt)),
        Secret::Scram(_) => None,
    }
}

fn respond(stored: &str, salt: [u8; 4]) -> String {
    hash(stored.strip_prefix("md5").unwrap_or(stored).as_bytes(), &salt)
}

#[cfg(test)]
mod tests {
    use super::{answer, stored};
    use crate::auth::secret::Secret;

    #[test]
    fn stored_form_is_postgresqls() {
        // SELECT 'md5' || md5('secret' || 'alice')
        assert_eq!(stored(b"secret", "alice"), "md54a0a68b43b6cd5cf266fa02f196e2371");
        assert_eq!(stored(b"", ""), "md5d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn a_hash_answers_as_its_password_does() {
        let salt = [1, 2, 3, 255];
        let plain = answer(&Secret::classify("secret"), "alice", salt);
        assert_eq!(plain, answer(&Secret::classify(stored(b"secret", "alice")), "alice", salt));
        assert_ne!(plain, answer(&Secret::classify("secret"), "alice", [1, 2, 3, 254]));
        assert_ne!(plain, answer(&Secret::classify("secret"), "alicf", salt));
        assert_eq!(plain.map(|text| text.len()), Some(35));
    }

    #[test]
    fn a_scram_secret_cannot_answer() {
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                    wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(answer(&Secret::classify(text), "alice", [0; 4]), None);
    }
}
