//! User name maps (`auth_ident_file`): which system user, or which name in a certificate, may be which database user.
//!
//! `MAP SYSTEM-USER DATABASE-USER` on a line; several lines make one map and are tried in order. A database user `all`
//! without quotes is anybody. Lines with a mistake are left out, with a warning.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::LogLine;
use super::load::io_error_text;
use super::words::{Words, lines};

/// All maps of a file, by name.
pub type Maps = BTreeMap<String, Arc<Map>>;

/// One map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    pub name: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    system_user: String,
    /// None: any.
    database_user: Option<String>,
}

impl Map {
    /// The system users that may log in as `database_user`, in the order of the file.
    pub fn system_users<'a>(&'a self, database_user: &'a str) -> impl Iterator<Item = &'a str> {
        self.entries
            .iter()
            .filter(move |entry| entry.database_user.as_deref().is_none_or(|user| user == database_user))
            .map(|entry| entry.system_user.as_str())
    }
}

/// The line to log when the file cannot be read.
#[must_use]
pub fn unreadable(path: &str, error: &io::Error) -> LogLine {
    LogLine::error(format!("could not open ident config file {path}: {}", io_error_text(error)))
}

/// Reads the text of a file: its maps, and the lines to log.
#[must_use]
pub fn parse(text: &[u8]) -> (Maps, Vec<LogLine>) {
    let mut maps: BTreeMap<String, Map> = BTreeMap::new();
    let mut log = Vec::new();
    for (number, line) in lines(text) {
        match line.map(|line| entry(line, number, &mut log)) {
            Some(Some(Some((name, entry)))) => {
                let map = maps.entry(name).or_insert_with_key(|name| Map { name: name.clone(), entries: Vec::new() });
                map.entries.push(entry);
            }
            Some(Some(None)) => {}
            Some(None) | None => {
                log.push(LogLine::warning(format!("could not parse ident config line {number}")).at(number));
            }
        }
    }
    (maps.into_iter().map(|(name, map)| (name, Arc::new(map))).collect(), log)
}

/// Outer `None`: a mistake. Inner `None`: nothing but blanks and comment.
fn entry(line: &str, number: usize, log: &mut Vec<LogLine>) -> Option<Option<(String, Entry)>> {
    let mut words = Words::new(line);
    if words.at_end() {
        return Some(None);
    }
    let name = words.plain()?;
    let system_user = words.any()?;
    let database_user = if words.eat("all") { None } else { Some(words.any()?) };
    if !words.at_end() {
        log.push(LogLine::warning(format!("ident line {number}: unsupported parameters")).at(number));
        return None;
    }
    Some(Some((name, Entry { system_user, database_user })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(log: &[LogLine]) -> Vec<&str> {
        log.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn maps_are_tried_in_order() {
        let (maps, log) = parse(
            b"# a comment\nm  root   postgres # another\nm \"joe smith\" all\r\nm root \"all\"\n\nother x y\nm root postgres",
        );
        assert_eq!(texts(&log), [""; 0]);
        let users = |map: &str, user| maps[map].system_users(user).collect::<Vec<_>>();
        assert_eq!(maps.keys().collect::<Vec<_>>(), ["m", "other"]);
        assert_eq!(users("m", "postgres"), ["root", "joe smith", "root"]);
        assert_eq!(users("m", "all"), ["joe smith", "root"]);
        assert_eq!(users("m", "Postgres"), ["joe smith"]);
        assert_eq!(users("other", "y"), ["x"]);
        assert_eq!(users("other", "x"), [""; 0]);
    }

    #[test]
    fn bad_lines_are_left_out() {
        for (line, log) in [
            ("m", &["could not parse ident config line 1"][..]),
            ("m a", &["could not parse ident config line 1"]),
            ("m a ,", &["could not parse ident config line 1"]),
            ("\"m\" a b", &["could not parse ident config line 1"]),
            ("m \"a b", &["could not parse ident config line 1"]),
            ("m a b c", &["ident line 1: unsupported parameters", "could not parse ident config line 1"]),
            ("m a b,c", &["ident line 1: unsupported parameters", "could not parse ident config line 1"]),
            ("m a \0b", &["could not parse ident config line 1"]),
        ] {
            let (maps, found) = parse(line.as_bytes());
            assert!(maps.is_empty(), "{line}");
            assert_eq!(texts(&found), log, "{line}");
        }
        assert_eq!(texts(&parse(b"m \xff b\nm a b").1), ["could not parse ident config line 1"]);
    }

    #[test]
    fn unreadable_names_file_and_reason() {
        let line = unreadable("/x", &io::Error::from_raw_os_error(2));
        assert_eq!(line, LogLine::error("could not open ident config file /x: No such file or directory"));
    }
}
