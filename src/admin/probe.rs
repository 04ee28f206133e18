//! What drivers, pools and tools say to any server without being asked, and what the console makes of it.
//!
//! Only the extended protocol is this forgiving, unless `console_probes` says otherwise: a simple query of the same text keeps
//! PgBouncer's documented error, which scripts and log watchers know. The list is closed: a mistyped name of one of our own
//! settings must stay an error.

use super::show::columns::{Column, Kind};

/// A statement that asks for nothing a console could do, and is answered harmlessly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing but white space and comments.
    Empty,
    /// Answered with its tag.
    Nothing(&'static str),
    /// A transaction starts, as far as portals are concerned.
    BlockStarts(&'static str),
    BlockEnds(&'static str),
    /// SET of a parameter that a PostgreSQL server has and the console has not.
    SetIgnored,
    /// DISCARD ALL or DEALLOCATE ALL: prepared statements are forgotten.
    ForgetAll(&'static str),
    /// DEALLOCATE of one prepared statement.
    Forget(String),
    /// One row of one column.
    Value {
        column: Column,
        value: String,
    },
}

/// What SHOW answers besides its topics and the parameters of [`super::command::Fake`].
const SHOWN: [(&[&str], &str, &str); 16] = [
    (&["transaction_isolation"], "transaction_isolation", "read committed"),
    (&["transaction", "isolation", "level"], "transaction_isolation", "read committed"),
    (&["transaction_read_only"], "transaction_read_only", "off"),
    (&["default_transaction_read_only"], "default_transaction_read_only", "off"),
    (&["in_hot_standby"], "in_hot_standby", "off"),
    (&["is_superuser"], "is_superuser", "on"),
    (&["server_version"], "server_version", super::reply::SERVER_VERSION),
    (&["server_encoding"], "server_encoding", "UTF8"),
    (&["time", "zone"], "TimeZone", "GMT"),
    (&["search_path"], "search_path", "\"$user\", public"),
    (&["intervalstyle"], "IntervalStyle", "postgres"),
    (&["integer_datetimes"], "integer_datetimes", "on"),
    (&["bytea_output"], "bytea_output", "hex"),
    (&["max_identifier_length"], "max_identifier_length", "63"),
    (&["statement_timeout"], "statement_timeout", "0"),
    (&["lock_timeout"], "lock_timeout", "0"),
];

/// The functions that SELECT may call, without arguments.
const FUNCTIONS: [(&str, &str); 4] = [
    ("version", super::show::VERSION),
    ("current_database", crate::config::CONSOLE_DATABASE),
    ("current_schema", "public"),
    // void
    ("pg_advisory_unlock_all", ""),
];

/// The parameters of PostgreSQL that drivers and frameworks set on their own, in small letters.
const SETTABLE: [&str; 27] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "escape_string_warning",
    "extra_float_digits",
    "geqo",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "lc_messages",
    "lc_monetary",
    "lock_timeout",
    "plan_cache_mode",
    "role",
    "row_security",
    "search_path",
    "ssl_renegotiation_limit",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "timezone",
];

/// The words that may follow BEGIN and START TRANSACTION.
const MODES: [&str; 14] = [
    "work",
    "transaction",
    "isolation",
    "level",
    "read",
    "uncommitted",
    "committed",
    "repeatable",
    "serializable",
    "write",
    "only",
    "not",
    "deferrable",
    ",",
];

impl Probe {
    /// The probe that `query` is, if it is one.
    #[must_use]
    pub fn find(query: &[u8]) -> Option<Self> {
        let mut probes = Self::find_all(query)?;
        let last = probes.pop().unwrap_or(Self::Empty);
        probes.is_empty().then_some(last)
    }

    /// The probes that the statements of `query` are, if they all are; none of an empty one.
    #[must_use]
    pub fn find_all(query: &[u8]) -> Option<Vec<Self>> {
        statements(std::str::from_utf8(query).ok()?)?.iter().map(|words| Self::of(words)).collect()
    }

    fn of(words: &[String]) -> Option<Self> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Some(match words.as_slice() {
            ["begin", modes @ ..] if all_of(modes, &MODES) => Self::BlockStarts("BEGIN"),
            ["start", "transaction", modes @ ..] if all_of(modes, &MODES) => Self::BlockStarts("START TRANSACTION"),
            ["commit" | "end", how @ ..] if plain_end(how) => Self::BlockEnds("COMMIT"),
            ["rollback" | "abort", how @ ..] if plain_end(how) => Self::BlockEnds("ROLLBACK"),
            ["rollback", "to", _] | ["rollback", "to", "savepoint", _] => Self::Nothing("ROLLBACK"),
            ["savepoint", _] => Self::Nothing("SAVEPOINT"),
            ["release", _] | ["release", "savepoint", _] => Self::Nothing("RELEASE"),
            ["discard", "all"] => Self::ForgetAll("DISCARD ALL"),
            ["discard", "plans"] => Self::Nothing("DISCARD PLANS"),
            ["discard", "sequences"] => Self::Nothing("DISCARD SEQUENCES"),
            ["discard", "temp" | "temporary"] => Self::Nothing("DISCARD TEMP"),
            ["deallocate", "all"] | ["deallocate", "prepare", "all"] => Self::ForgetAll("DEALLOCATE ALL"),
            ["deallocate", "prepare", name] | ["deallocate", name] => Self::Forget(unquoted(name)),
            ["reset", _] | ["reset", "session", "authorization"] => Self::Nothing("RESET"),
            ["unlisten", _] => Self::Nothing("UNLISTEN"),
            ["close", "all"] => Self::Nothing("CLOSE CURSOR ALL"),
            ["set", assignment @ ..] if is_server_setting(assignment) => Self::SetIgnored,
            ["select", number] => integer(number)?,
            ["select", function, "(", ")"] => call(function)?,
            ["show", parameter @ ..] => shown(parameter)?,
            _ => return None,
        })
    }

    /// The one column of a probe that answers with a row.
    #[must_use]
    pub fn column(&self) -> Option<Column> {
        match self {
            Self::Value { column, .. } => Some(*column),
            _ => None,
        }
    }
}

fn all_of(words: &[&str], known: &[&str]) -> bool {
    words.iter().all(|word| known.contains(word))
}

/// What may follow COMMIT or ROLLBACK; `PREPARED` is no such word.
fn plain_end(how: &[&str]) -> bool {
    all_of(how, &["work", "transaction", "and", "no", "chain"])
}

fn is_server_setting(assignment: &[&str]) -> bool {
    match assignment {
        ["transaction", modes @ ..] | ["session", "characteristics", "as", "transaction", modes @ ..] => {
            !modes.is_empty() && all_of(modes, &MODES)
        }
        ["session" | "local", rest @ ..] if !matches!(rest, ["=" | "to", ..]) => is_server_setting(rest),
        ["time", "zone", _, ..] | ["names", _] => true,
        [name, "=" | "to", _, ..] => SETTABLE.contains(name),
        _ => false,
    }
}

fn integer(text: &str) -> Option<Probe> {
    let number: i32 = text.parse().ok()?;
    let column = Column { name: "?column?", kind: Kind::Int4 };
    Some(Probe::Value { column, value: number.to_string() })
}

fn call(function: &str) -> Option<Probe> {
    let function = function.strip_prefix("pg_catalog.").unwrap_or(function);
    let &(name, value) = FUNCTIONS.iter().find(|(name, _)| *name == function)?;
    Some(text(name, value))
}

fn shown(parameter: &[&str]) -> Option<Probe> {
    let &(_, column, value) = SHOWN.iter().find(|(words, ..)| *words == parameter)?;
    Some(text(column, value))
}

fn text(name: &'static str, value: &str) -> Probe {
    Probe::Value { column: Column { name, kind: Kind::Text }, value: value.to_owned() }
}

fn unquoted(name: &str) -> String {
    match name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

/// The words of each statement in small letters, quoted ones as they stand, other characters one by one; without comments,
/// semicolons and empty statements. `None` for what is cut short.
fn statements(mut rest: &str) -> Option<Vec<Vec<String>>> {
    let (mut all, mut found) = (Vec::new(), Vec::new());
    let end = |all: &mut Vec<_>, found: Vec<String>| (!found.is_empty()).then(|| all.push(found));
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else {
            end(&mut all, found);
            return Some(all);
        };
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, next)| next);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/")?.1;
        } else if first == ';' {
            end(&mut all, std::mem::take(&mut found));
            rest = &rest[1..];
        } else {
            let length = match first {
                '\'' | '"' => 2 + rest[1..].find(first)?,
                _ => rest.find(|c: char| !is_word(c)).unwrap_or(rest.len()).max(first.len_utf8()),
            };
            let (word, next) = rest.split_at(length);
            found.push(if first == '\'' || first == '"' { word.to_owned() } else { word.to_ascii_lowercase() });
            rest = next;
        }
    }
}

const fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::command::{Command, Fake, Rights, Topic};
    use crate::config::keys;

    fn value(name: &'static str, kind: Kind, value: &str) -> Option<Probe> {
        Some(Probe::Value { column: Column { name, kind }, value: value.to_owned() })
    }

    #[test]
    fn what_drivers_say() {
        for (query, expected) in [
            ("", Some(Probe::Empty)),
            (" ; ", Some(Probe::Empty)),
            ("-- ping", Some(Probe::Empty)),
            ("BEGIN", Some(Probe::BlockStarts("BEGIN"))),
            ("begin isolation level read committed, read write;", Some(Probe::BlockStarts("BEGIN"))),
            ("START TRANSACTION READ ONLY", Some(Probe::BlockStarts("START TRANSACTION"))),
            ("COMMIT;", Some(Probe::BlockEnds("COMMIT"))),
            ("END", Some(Probe::BlockEnds("COMMIT"))),
            ("COMMIT PREPARED 'x'", None),
            ("/* bye */ ROLLBACK", Some(Probe::BlockEnds("ROLLBACK"))),
            ("rollback to savepoint s1", Some(Probe::Nothing("ROLLBACK"))),
            ("SAVEPOINT s1", Some(Probe::Nothing("SAVEPOINT"))),
            ("RELEASE SAVEPOINT s1", Some(Probe::Nothing("RELEASE"))),
            ("DISCARD ALL", Some(Probe::ForgetAll("DISCARD ALL"))),
            ("DEALLOCATE ALL", Some(Probe::ForgetAll("DEALLOCATE ALL"))),
            ("DEALLOCATE \"_pg3_0\"", Some(Probe::Forget("_pg3_0".into()))),
            ("DEALLOCATE PREPARE a", Some(Probe::Forget("a".into()))),
            ("RESET ALL", Some(Probe::Nothing("RESET"))),
            ("UNLISTEN *", Some(Probe::Nothing("UNLISTEN"))),
            ("CLOSE ALL", Some(Probe::Nothing("CLOSE CURSOR ALL"))),
            ("SELECT 1", value("?column?", Kind::Int4, "1")),
            ("select -1;", value("?column?", Kind::Int4, "-1")),
            ("SELECT 99999999999", None),
            ("select pg_catalog.version()", value("version", Kind::Text, "PgBouncer 1.25.2")),
            ("SELECT current_database()", value("current_database", Kind::Text, "pgbouncer")),
            ("SELECT pg_sleep()", None),
            ("SHOW TRANSACTION ISOLATION LEVEL", value("transaction_isolation", Kind::Text, "read committed")),
            ("show transaction_isolation", value("transaction_isolation", Kind::Text, "read committed")),
            ("SHOW TIME ZONE", value("TimeZone", Kind::Text, "GMT")),
            ("SET extra_float_digits = 3", Some(Probe::SetIgnored)),
            ("SET application_name = 'PostgreSQL JDBC Driver'", Some(Probe::SetIgnored)),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Some(Probe::SetIgnored)),
            ("SET SESSION statement_timeout TO 5", Some(Probe::SetIgnored)),
            ("SET LOCAL search_path TO a, b", Some(Probe::SetIgnored)),
            ("SET TIME ZONE 'UTC'", Some(Probe::SetIgnored)),
            ("SET NAMES 'UTF8'", Some(Probe::SetIgnored)),
            ("SET defualt_pool_size = 5", None),
            ("SET search_path", None),
            ("SELECT 1; SELECT 2", None),
            ("SELECT 'open", None),
            ("SELECT é", None),
            ("/* open", None),
        ] {
            assert_eq!(Probe::find(query.as_bytes()), expected, "{query:?}");
        }
        assert_eq!(Probe::find(b"SELECT \xff"), None);
    }

    #[test]
    fn several_at_once() {
        let reset = b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
        let unlocked = value("pg_advisory_unlock_all", Kind::Text, "");
        let rest = ["CLOSE CURSOR ALL", "UNLISTEN", "RESET"].map(Probe::Nothing);
        assert_eq!(Probe::find_all(reset), Some(unlocked.into_iter().chain(rest).collect()));
        assert_eq!(Probe::find_all(b"; ;"), Some(vec![]));
        assert_eq!(Probe::find_all(b"BEGIN; SHOW POOLS"), None);
    }

    /// No command of the console is mistaken for small talk.
    #[test]
    fn probes_shadow_no_command() {
        let topics = Topic::ALL.iter().map(|topic| format!("SHOW {}", topic.name()));
        let fakes = Fake::ALL.iter().map(|fake| format!("SHOW {}", fake.name()));
        let settings = keys::TABLE.iter().map(|key| format!("SET {} = 1", key.name));
        let others = ["RELOAD", "PAUSE", "RESUME p0", "KILL", "SUSPEND", "SHUTDOWN", "WAIT_CLOSE"].map(str::to_owned);
        for query in topics.chain(fakes).chain(settings).chain(others) {
            assert!(Command::parse(query.as_bytes(), Rights::Admin).is_ok(), "{query}");
            assert_eq!(Probe::find(query.as_bytes()), None, "{query}");
        }
    }
}
