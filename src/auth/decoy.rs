//! What somebody whom nobody knows is taken for: the most usual kind of user, so that the way he is asked for his password
//! does not tell that he is none.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use sha2::{Digest as _, Sha256};

use super::scram::{MAX_ITERATIONS, SALT_BYTES};
use super::secret::Secret;

/// What a SCRAM challenge shows of the secret behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    pub iterations: u32,
    pub salt_bytes: usize,
}

impl Shape {
    /// That of a verifier made from a plain password.
    #[must_use]
    pub const fn derived(iterations: u32) -> Self {
        Self { iterations, salt_bytes: SALT_BYTES }
    }
}

/// The kinds of secrets that may be the most usual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Md5,
    Scram,
}

/// Bytes of the key that salts are made with.
pub const KEY_BYTES: usize = 32;

/// The most usual of what the users of a configuration show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Decoy {
    /// The kind of secret that a stranger would have.
    pub kind: Kind,
    /// Iterations of most SCRAM secrets that are computed at all, the work of checking a password in clear text; none if nobody
    /// has such a secret.
    pub clear_text: Option<u32>,
    /// What his challenge looks like.
    pub scram: Shape,
    /// What salts are made with that nobody has chosen. Random: from one that was made of users' secrets their passwords could be
    /// guessed, for salts are told to everybody.
    pub key: [u8; KEY_BYTES],
}

impl Decoy {
    /// Who has no password is nobody's example. `scram_iterations` are those of verifiers made from plain passwords.
    #[must_use]
    pub fn of<'a>(secrets: impl Iterator<Item = &'a Secret>, scram_iterations: u32, key: [u8; KEY_BYTES]) -> Self {
        let (mut shapes, mut plain, mut hashed) = (HashMap::<Shape, usize>::new(), 0, 0);
        for secret in secrets {
            match secret {
                Secret::None => {}
                Secret::Plain(_) => plain += 1,
                Secret::Md5(_) => hashed += 1,
                Secret::Scram(secret) => {
                    let shape = Shape { iterations: secret.iterations, salt_bytes: secret.salt.len() };
                    *shapes.entry(shape).or_default() += 1;
                }
            }
        }
        let mut work = HashMap::<u32, usize>::new();
        for (shape, users) in shapes.iter().filter(|(shape, _)| shape.iterations <= MAX_ITERATIONS) {
            *work.entry(shape.iterations).or_default() += users;
        }
        let own = most_usual(&shapes);
        let kind = match shapes.values().sum::<usize>() {
            with_scram if with_scram > plain + hashed => Kind::Scram,
            _ if hashed > plain => Kind::Md5,
            _ => Kind::Plain,
        };
        let derived = Shape::derived(scram_iterations);
        let scram = match (kind, own) {
            (Kind::Scram, Some((shape, _))) => shape,
            // whoever has an MD5 secret shows nothing of his own
            (Kind::Md5, Some((shape, users))) if users > plain => shape,
            _ => derived,
        };
        let clear_text = most_usual(&work).map(|(iterations, _)| iterations);
        Self { kind, clear_text, scram, key }
    }
}

impl fmt::Debug for Decoy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoy").field("kind", &self.kind).field("scram", &self.scram).finish_non_exhaustive()
    }
}

fn most_usual<T: Copy + Ord + Hash>(counts: &HashMap<T, usize>) -> Option<(T, usize)> {
    counts.iter().map(|(what, users)| (*what, *users)).max_by_key(|&(what, users)| (users, what))
}

/// The salt of a user whose secret brings none, and of somebody who does not exist: the same whenever the name is asked for,
/// and not to be foretold without the `key`.
#[must_use]
pub fn salt(user: &str, key: &[u8], bytes: usize) -> Vec<u8> {
    let keyed = Sha256::new().chain_update(key).chain_update(user);
    let blocks = (0_u64..).flat_map(|number| keyed.clone().chain_update(number.to_be_bytes()).finalize());
    blocks.take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scram(iterations: u32, salt: &str) -> Secret {
        let key = "A".repeat(43);
        let secret = Secret::classify(format!("SCRAM-SHA-256${iterations}:{salt}${key}=:{key}="));
        assert!(matches!(secret, Secret::Scram(_)));
        secret
    }

    fn md5() -> Secret {
        Secret::classify(format!("md5{}", "0".repeat(32)))
    }

    fn plain() -> Secret {
        Secret::classify("secret")
    }

    const LONG: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const SHORT: &str = "c2FsdA==";

    const OWN: [u8; KEY_BYTES] = [7; KEY_BYTES];

    /// Kind, work of clear text, and challenge.
    fn of(secrets: &[Secret]) -> (Kind, Option<u32>, Shape) {
        let Decoy { kind, clear_text, scram, .. } = Decoy::of(secrets.iter(), 4096, OWN);
        (kind, clear_text, scram)
    }

    #[test]
    fn the_majority_counts() {
        let (usual, derived) = (Shape { iterations: 10_000, salt_bytes: 4 }, Shape::derived(4096));
        for secrets in [vec![], vec![Secret::None], vec![plain()], vec![md5(), plain()], vec![plain(), Secret::None]] {
            assert_eq!(of(&secrets), (Kind::Plain, None, derived));
        }
        assert_eq!(of(&[md5()]), (Kind::Md5, None, derived));
        let strong = || scram(10_000, SHORT);
        let by_most = (Kind::Scram, Some(10_000), usual);
        assert_eq!(of(&[strong()]), by_most);
        assert_eq!(of(&[Secret::None, Secret::None, strong()]), by_most);
        assert_eq!(of(&[strong(), scram(9_000, LONG), strong()]), by_most);
        assert_eq!(of(&[strong(), strong(), plain()]), by_most);
        assert_eq!(of(&[strong(), md5()]), (Kind::Md5, Some(10_000), usual));
        assert_eq!(of(&[strong(), plain()]), (Kind::Plain, Some(10_000), derived));
        assert_eq!(of(&[strong(), plain(), md5(), md5()]), (Kind::Md5, Some(10_000), derived));
        let fewest_in_all = [strong(), scram(9_000, LONG), plain(), plain()];
        assert_eq!(of(&fewest_in_all), (Kind::Plain, Some(10_000), derived), "as a whole, not method by method");
    }

    #[test]
    fn nobody_waits_for_work_that_is_never_done() {
        let impossible = || scram(MAX_ITERATIONS + 1, LONG);
        assert_eq!(of(&[impossible()]).1, None);
        assert_eq!(of(&[impossible(), impossible(), scram(5000, LONG)]).1, Some(5000));
    }

    #[test]
    fn salts_belong_to_name_and_process() {
        let salt = |user, key: &[u8]| salt(user, key, SALT_BYTES);
        assert_eq!(salt("nobody", b"key"), salt("nobody", b"key"));
        assert_ne!(salt("nobody", b"key"), salt("somebody", b"key"));
        assert_ne!(salt("nobody", b"key"), salt("nobody", b"another"));
        for bytes in [0, 1, 16, 32, 33, 100] {
            assert_eq!(super::salt("nobody", b"key", bytes).len(), bytes);
        }
        let long = super::salt("nobody", b"key", 96);
        assert_ne!(long[..32], long[32..64]);
        assert_ne!(long[32..64], long[64..]);
    }
}
