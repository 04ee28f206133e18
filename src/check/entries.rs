//! The lists of `[databases]`, `[users]` and `[peers]`, pair by pair: all that is wrong with them, not only the first thing.

use super::Severity;
use crate::config::connstr::{self, DATABASE_KEYS, EntryError, NUMBER_KEYS, PEER_KEYS, USER_KEYS};
use crate::config::load::nearest;
use crate::config::mask::{self, MASK};
use crate::config::{Database, LoadBalanceHosts, Peer, PoolMode, UserSettings, value::Value as _};

/// Something about an entry.
pub(super) struct Mistake {
    pub severity: Severity,
    pub text: String,
    pub remedy: String,
}

impl Mistake {
    fn error(text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, text: text.into(), remedy: remedy.into() }
    }

    fn warning(text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, text: text.into(), remedy: remedy.into() }
    }
}

pub(super) fn database(name: &str, text: &str) -> (Database, Vec<Mistake>) {
    let mut db = Database::new(name);
    let mut mistakes = each(text, DATABASE_KEYS, |key, value| connstr::set_database_key(&mut db, key, value));
    if let Err(error @ (EntryError::Reserved | EntryError::NameTooLong(_))) = connstr::parse_database(name, "") {
        mistakes.push(refused(&error, DATABASE_KEYS));
    }
    (db, mistakes)
}

pub(super) fn user(text: &str) -> (UserSettings, Vec<Mistake>) {
    let mut user = UserSettings::default();
    let mistakes = each(text, USER_KEYS, |key, value| connstr::set_user_key(&mut user, key, value));
    (user, mistakes)
}

/// The peer if nothing about it is an error.
pub(super) fn peer(id: &str, text: &str) -> (Option<Peer>, Vec<Mistake>) {
    // each pair alone, with the host that every peer needs
    let alone =
        |key: &str, value: String| match connstr::parse_peer("1", &format!("{key}='{}'", value.replace('\'', "''"))) {
            Err(EntryError::PeerWithoutHost(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
    let mut mistakes = each(text, PEER_KEYS, alone);
    match connstr::parse_peer(id, text) {
        Ok(peer) => (Some(peer), mistakes),
        Err(error @ (EntryError::PeerId | EntryError::PeerWithoutHost(_))) => {
            mistakes.push(refused(&error, PEER_KEYS));
            (None, mistakes)
        }
        Err(_) => (None, mistakes),
    }
}

/// Offers every pair to `set`.
fn each(
    text: &str,
    known: &[&'static str],
    mut set: impl FnMut(&str, String) -> Result<(), EntryError>,
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut seen = Vec::new();
    for pair in connstr::pairs(text) {
        let Ok((key, value)) = pair else {
            mistakes.push(Mistake::error(
                "syntax error in the list of the entry",
                "write key=value pairs with spaces between them, and values with spaces in single quotes",
            ));
            break;
        };
        mistakes.extend(doubtful(key, &value, known));
        if seen.contains(&key) {
            mistakes.push(Mistake::warning(format!("{key} is there twice"), "the last one counts: remove the other"));
        }
        seen.push(key);
        if let Err(error) = set(key, value) {
            mistakes.push(refused(&error, known));
        }
    }
    mistakes
}

/// A value that is taken, and perhaps not as it was meant.
fn doubtful(key: &str, value: &str, known: &[&'static str]) -> Option<Mistake> {
    if !known.contains(&key) {
        return None;
    }
    if key == "reserve_pool" {
        let text = "reserve_pool is the old name of reserve_pool_size";
        return Some(Mistake::warning(text, "write reserve_pool_size"));
    }
    if value.split_once('=').is_some_and(|(word, _)| known.contains(&word)) {
        let text = format!(
            "the value of {key} is \"{}\"",
            if key == "password" { MASK.to_owned() } else { mask::refused(value) }
        );
        return Some(Mistake::warning(text, format!("leave {key} out: values cannot be empty")));
    }
    if !NUMBER_KEYS.contains(&key) {
        return None;
    }
    let digits = value.strip_prefix('-').unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        let value = mask::refused(value);
        let text = format!("the value of {key} is \"{value}\", of which only leading digits count");
        return Some(Mistake::warning(text, "write a whole number"));
    }
    if value.starts_with('-') && key != "port" {
        let text = format!("the value of {key} is negative, which is as if it were not set");
        return Some(Mistake::warning(text, format!("leave {key} out")));
    }
    None
}

fn refused(error: &EntryError, known: &[&'static str]) -> Mistake {
    let hint = |key: &str| match nearest(key, known.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("the parameters are {}", known.join(", ")),
    };
    let remedy = match error {
        EntryError::UnknownKey(key) | EntryError::UnknownUserKey(key) => hint(key),
        EntryError::Port(_) => "write a number from 1 to 65535".to_owned(),
        EntryError::PoolMode(_) => format!("write {}", PoolMode::EXPECTED),
        EntryError::LoadBalanceHosts(_) => format!("write {}", LoadBalanceHosts::EXPECTED),
        EntryError::Reserved => "that is the name of the console: take another one".to_owned(),
        EntryError::NameTooLong(name) => {
            let text = format!("the name of database \"{name}\" is too long");
            return Mistake::error(text, format!("names have at most {} bytes", connstr::MAX_DATABASE_NAME));
        }
        EntryError::PeerId => "write the peer's peer_id before the `=`".to_owned(),
        EntryError::PeerWithoutHost(_) => "add host=".to_owned(),
        EntryError::Syntax | EntryError::UserSyntax => "write key=value pairs".to_owned(),
    };
    Mistake::error(error.to_string(), remedy)
}
