//! What somebody whom nobody knows is taken for: the most usual kind of user, so that the way he is asked for his password
//! does not tell that he is none.

use std::collections::HashMap;
use std::hash::Hash;

use sha2::{Digest as _, Sha256};

use super::scram::SALT_BYTES;
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

/// The most usual of what the users of a configuration show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoy {
    /// Iterations of most SCRAM secrets, the work of checking a password in clear text; none if nobody has such a secret.
    pub clear_text: Option<u32>,
    /// What `md5` comes to: SCRAM, if that is what it comes to for most.
    pub md5: Option<Shape>,
    pub scram: Shape,
}

impl Decoy {
    /// Who has no password is nobody's example. `scram_iterations` are those of verifiers made from plain passwords.
    #[must_use]
    pub fn of<'a>(secrets: impl Iterator<Item = &'a Secret>, scram_iterations: u32) -> Self {
        let derived = Shape::derived(scram_iterations);
        let (mut own, mut plain, mut hashed) = (HashMap::<Shape, usize>::new(), 0, 0);
        for secret in secrets {
            match secret {
                Secret::None => {}
                Secret::Plain(_) => plain += 1,
                Secret::Md5(_) => hashed += 1,
                Secret::Scram(secret) => {
                    let shape = Shape { iterations: secret.iterations, salt_bytes: secret.salt.len() };
                    *own.entry(shape).or_default() += 1;
                }
            }
        }
        let mut work = HashMap::<u32, usize>::new();
        for (shape, users) in &own {
            *work.entry(shape.iterations).or_default() += users;
        }
        let clear_text = most_usual(&work).map(|(iterations, _)| iterations);
        let with_scram: usize = own.values().sum();
        let md5 = most_usual(&own).filter(|_| with_scram > plain + hashed).map(|(shape, _)| shape);
        *own.entry(derived).or_default() += plain;
        let usual = most_usual(&own).filter(|(_, users)| *users > own[&derived]);
        Self { clear_text, md5, scram: usual.map_or(derived, |(shape, _)| shape) }
    }
}

fn most_usual<T: Copy + Ord + Hash>(counts: &HashMap<T, usize>) -> Option<(T, usize)> {
    counts.iter().map(|(what, users)| (*what, *users)).max_by_key(|&(what, users)| (users, what))
}

/// The salt of a user whose secret brings none, and of somebody who does not exist: the same whenever the name is asked for,
/// and not to be foretold without the process's own `key`.
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

    #[test]
    fn nobody_is_like_a_plain_password() {
        let none = Decoy { clear_text: None, md5: None, scram: Shape::derived(4096) };
        for secrets in [vec![], vec![Secret::None], vec![plain()], vec![md5(), plain()], vec![md5()]] {
            assert_eq!(Decoy::of(secrets.iter(), 4096), none);
        }
    }

    #[test]
    fn the_majority_counts() {
        let usual = Shape { iterations: 10_000, salt_bytes: 4 };
        let decoy = |secrets: &[Secret]| Decoy::of(secrets.iter(), 4096);
        let scram_alone = Decoy { clear_text: Some(10_000), md5: Some(usual), scram: usual };
        assert_eq!(decoy(&[scram(10_000, SHORT)]), scram_alone);
        assert_eq!(decoy(&[Secret::None, Secret::None, scram(10_000, SHORT)]), scram_alone);
        assert_eq!(decoy(&[scram(10_000, SHORT), scram(9_000, LONG), scram(10_000, SHORT)]), scram_alone);
        let as_many = [scram(10_000, SHORT), md5()];
        assert_eq!(decoy(&as_many), Decoy { clear_text: Some(10_000), md5: None, scram: usual });
        let as_many = [scram(10_000, SHORT), plain()];
        assert_eq!(decoy(&as_many), Decoy { clear_text: Some(10_000), md5: None, scram: Shape::derived(4096) });
        let most = [scram(10_000, SHORT), scram(10_000, SHORT), plain()];
        assert_eq!(decoy(&most), scram_alone);
        let mixed = [scram(10_000, SHORT), scram(9_000, LONG), plain(), scram(4096, LONG)];
        assert_eq!(decoy(&mixed).scram, Shape::derived(4096), "plain passwords look like secrets of 4,096 iterations");
        assert_eq!(decoy(&mixed).md5, Some(usual));
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
