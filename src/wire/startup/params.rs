//! What a startup message says: the keys and values of its body, in the order and with the words that PgBouncer's
//! clients know.

use std::borrow::Cow;

use crate::disconnect::Disconnect;
use crate::wire::fields::split_cstr;

/// Longest text of an error that is built from what a client sent.
const MAX_ERROR_BYTES: usize = 127;

/// The version a client is told when it asked for more.
const PROTOCOL_3: u32 = 0x3_0000;

/// What kind of connection a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    #[default]
    None,
    Logical,
    Physical,
}

impl Replication {
    /// The value of `replication` as given by a client. Anything that is neither `database` nor a boolean is as good as
    /// not said.
    fn parse(value: &str) -> Self {
        if value == "database" {
            Self::Logical
        } else if parse_bool(value) == Some(true) {
            Self::Physical
        } else {
            Self::None
        }
    }

    /// The value for a server's startup message, none for an ordinary connection.
    #[must_use]
    pub const fn startup_value(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Logical => Some("database"),
            Self::Physical => Some("yes"),
        }
    }

    /// The word in the log.
    #[must_use]
    pub const fn log(self) -> &'static str {
        match self {
            Self::None => "no",
            Self::Logical => "database",
            Self::Physical => "yes",
        }
    }

    /// The word in SHOW.
    #[must_use]
    pub const fn show(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Logical => "logical",
            Self::Physical => "physical",
        }
    }
}

/// A boolean as PostgreSQL reads it: unique prefixes of the words, in any case.
fn parse_bool(value: &str) -> Option<bool> {
    const WORDS: [(&str, usize, bool); 8] = [
        ("true", 1, true),
        ("false", 1, false),
        ("yes", 1, true),
        ("no", 1, false),
        ("on", 2, true),
        ("off", 2, false),
        ("1", 1, true),
        ("0", 1, false),
    ];
    WORDS
        .iter()
        .find(|(word, least, _)| {
            value.len() >= *least
                && word.as_bytes().get(..value.len()).is_some_and(|w| w.eq_ignore_ascii_case(value.as_bytes()))
        })
        .map(|&(_, _, meaning)| meaning)
}

/// What decides the fate of a startup parameter.
pub struct Rules<'a> {
    /// The position of a tracked parameter, whose names compare without regard to case.
    pub tracked: &'a dyn Fn(&str) -> Option<usize>,
    /// The tokens of ignore_startup_parameters.
    pub ignored: &'a [&'a str],
    /// The client's address when application_name_add_host is on.
    pub add_host: Option<&'a str>,
}

impl Rules<'_> {
    fn ignores(&self, key: &str) -> bool {
        self.ignored.contains(&key)
    }
}

/// A startup message that was understood. Text that is not UTF-8 has been replaced as `String::from_utf8_lossy` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartupParams {
    pub minor: u16,
    pub user: String,
    /// Never empty: the user's name where the client named no database.
    pub database: String,
    pub replication: Replication,
    /// Tracked parameters by position, each at most once.
    pub tracked: Vec<(usize, String)>,
    /// Protocol extensions asked for (`_pq_.*`), none of which is supported.
    pub extensions: Vec<String>,
    /// `options` of a replication client, which go to the server as they are.
    pub options: Option<String>,
}

/// A startup message that is refused, and what the log says before the connection's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub disconnect: Disconnect,
    pub warning: Option<String>,
}

impl Refused {
    fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self { disconnect: Disconnect::fatal(clip(text.into())), warning: None }
    }

    fn parameter(what: &str, key: &str, value: &str) -> Self {
        let warning = Some(format!("{what}: {key}={value}"));
        Self { warning, ..Self::new(format!("{what}: {key}")) }
    }
}

fn clip(mut text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() > MAX_ERROR_BYTES {
        let end = text.floor_char_boundary(MAX_ERROR_BYTES);
        text.to_mut().truncate(end);
    }
    text
}

impl StartupParams {
    /// Reads the keys and values of a startup message; `body` is what follows the protocol version.
    ///
    /// # Errors
    /// Keys are judged in the order of the packet before its layout is, as clients of PgBouncer expect.
    pub fn parse(minor: u16, body: &[u8], rules: &Rules<'_>) -> Result<Self, Refused> {
        let mut params = Self { minor, replication: find_replication(body), ..Self::default() };
        let mut named = false;
        let mut pairs = Pairs(body);
        for (key, value) in pairs.by_ref() {
            named |= key == b"application_name";
            params.take(&text(key), text(value), rules)?;
        }
        if pairs.0 != [0] {
            return Err(Refused::new("invalid startup packet layout: expected terminator as last byte"));
        }
        if !named {
            params.default_application_name(rules);
        }
        if params.user.is_empty() {
            return Err(Refused::new("no username supplied"));
        }
        if params.database.is_empty() {
            params.database.clone_from(&params.user);
        }
        Ok(params)
    }

    fn take(&mut self, key: &str, value: Cow<'_, str>, rules: &Rules<'_>) -> Result<(), Refused> {
        match key {
            "user" => self.user = value.into_owned(),
            "database" => self.database = value.into_owned(),
            "replication" => {}
            "options" if self.replication != Replication::None => self.options = Some(value.into_owned()),
            "options" => self.take_options(&value, rules)?,
            _ if key.starts_with("_pq_.") => self.extensions.push(key.to_owned()),
            _ => match (rules.tracked)(key) {
                Some(index) => self.track(index, with_host(key, value, rules)),
                None if rules.ignores(key) => {}
                None => return Err(Refused::parameter("unsupported startup parameter", key, &value)),
            },
        }
        Ok(())
    }

    fn take_options(&mut self, text: &str, rules: &Rules<'_>) -> Result<(), Refused> {
        let mut rest = text;
        while let Some((argument, after)) = next_option(rest) {
            rest = after;
            let Some((key, value)) = argument.as_deref().and_then(|argument| argument.split_once('=')) else {
                return Err(Refused::new(
                    "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed",
                ));
            };
            if let Some(index) = (rules.tracked)(key) {
                self.track(index, value.to_owned());
            } else if !rules.ignores(key) && !rules.ignores("options") {
                return Err(Refused::parameter("unsupported startup parameter in options", key, value));
            }
        }
        Ok(())
    }

    fn track(&mut self, index: usize, value: String) {
        match self.tracked.iter_mut().find(|(known, _)| *known == index) {
            Some((_, old)) => *old = value,
            None => self.tracked.push((index, value)),
        }
    }

    fn default_application_name(&mut self, rules: &Rules<'_>) {
        if let (Some(host), Some(index)) = (rules.add_host, (rules.tracked)("application_name")) {
            self.track(index, format!("app - {host}"));
        }
    }

    /// Whether the client must be told that it gets plain protocol 3.0.
    #[must_use]
    pub fn wants_negotiation(&self) -> bool {
        self.minor > 0 || !self.extensions.is_empty()
    }

    /// Appends NegotiateProtocolVersion: the full version 3.0, and the extensions that are not known here.
    pub fn negotiate(&self, out: &mut Vec<u8>) {
        let names: usize = self.extensions.iter().map(|name| name.len() + 1).sum();
        let len = u32::try_from(12 + names).expect("the names came in one packet of 64 KiB");
        let count = u32::try_from(self.extensions.len()).expect("the names came in one packet of 64 KiB");
        out.push(b'v');
        for number in [len, PROTOCOL_3, count] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for name in &self.extensions {
            out.extend_from_slice(name.as_bytes());
            out.push(0);
        }
    }
}

/// Only the documented spelling of `application_name` gets the host appended.
fn with_host(key: &str, value: Cow<'_, str>, rules: &Rules<'_>) -> String {
    match rules.add_host {
        Some(host) if key == "application_name" => format!("{value} - {host}"),
        _ => value.into_owned(),
    }
}

/// Whether the client wants to replicate decides what `options` mean, wherever in the packet it stands.
fn find_replication(body: &[u8]) -> Replication {
    let last = Pairs(body).filter(|(key, _)| *key == b"replication").last();
    last.map_or(Replication::None, |(_, value)| Replication::parse(&text(value)))
}

/// Whether the message asks for the database `name`; `body` is what follows the protocol version. The last word counts.
#[must_use]
pub fn names_database(body: &[u8], name: &str) -> bool {
    Pairs(body).filter(|(key, _)| *key == b"database").last().is_some_and(|(_, value)| value == name.as_bytes())
}

/// Keys and values up to the terminator or the first defect; what is left over tells which.
struct Pairs<'a>(&'a [u8]);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, rest) = split_cstr(self.0).filter(|(key, _)| !key.is_empty())?;
        let (value, rest) = split_cstr(rest)?;
        self.0 = rest;
        Some((key, value))
    }
}

/// As [`String::from_utf8_lossy`], and faster where nothing is to be replaced.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Takes one argument off `options`: unescaped, or none where it is neither `-c` nor `--`. Ends with the text.
fn next_option(text: &str) -> Option<(Option<String>, &str)> {
    let text = text.trim_start_matches(is_space);
    if text.is_empty() {
        return None;
    }
    let argument = match text.strip_prefix("-c") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => match text.strip_prefix("--") {
            Some(rest) => rest,
            None => return Some((None, "")),
        },
    };
    let mut unescaped = String::new();
    let mut chars = argument.char_indices();
    let mut end = argument.len();
    while let Some((at, c)) = chars.next() {
        if is_space(c) {
            end = at;
            break;
        }
        if c == '\\' {
            unescaped.extend(chars.next().map(|(_, quoted)| quoted));
        } else {
            unescaped.push(c);
        }
    }
    Some((Some(unescaped), &argument[end..]))
}

/// White space as C's `isspace` knows it in every locale.
const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

#[cfg(test)]
mod tests {
    use super::{Refused, Replication, Rules, StartupParams, names_database};

    /// Tracked: `DateStyle` at 0, `application_name` at 1, `search_path` at 2.
    fn position(name: &str) -> Option<usize> {
        ["datestyle", "application_name", "search_path"].iter().position(|known| name.eq_ignore_ascii_case(known))
    }

    fn with(body: &str, ignored: &str, add_host: Option<&str>) -> Result<StartupParams, Refused> {
        let ignored: Vec<&str> = ignored.split(',').collect();
        StartupParams::parse(0, body.as_bytes(), &Rules { tracked: &position, ignored: &ignored, add_host })
    }

    fn parse(body: &str) -> Result<StartupParams, Refused> {
        with(body, "", None)
    }

    /// The error of a packet with this `options` value, or the tracked values.
    fn options(value: &str, ignored: &str) -> Result<Vec<(usize, String)>, String> {
        let body = format!("user\0u\0options\0{value}\0\0");
        with(&body, ignored, None)
            .map(|params| params.tracked)
            .map_err(|refused| refused.disconnect.reason.into_owned())
    }

    #[test]
    fn the_last_database_counts() {
        for (body, named) in [
            ("user\0u\0database\0db\0\0", true),
            ("database\0db\0user\0u\0database\0x\0\0", false),
            ("user\0db\0\0", false),
            ("database\0db", false),
        ] {
            assert_eq!(names_database(body.as_bytes(), "db"), named, "{body:?}");
        }
    }

    #[test]
    fn every_row_of_keys() {
        let params = parse("user\0u\0database\0d\0DATESTYLE\0ISO\0application_name\0psql\0_pq_.x\0y\0\0").unwrap();
        assert_eq!((&*params.user, &*params.database, params.replication), ("u", "d", Replication::None));
        assert_eq!(params.tracked, [(0, "ISO".to_owned()), (1, "psql".to_owned())]);
        assert_eq!((&*params.extensions, params.options), (["_pq_.x".to_owned()].as_slice(), None));
        let refused = parse("user\0u\0work_mem\x001MB\0\0").unwrap_err();
        assert_eq!(refused.disconnect.reason, "unsupported startup parameter: work_mem");
        assert_eq!(refused.warning.as_deref(), Some("unsupported startup parameter: work_mem=1MB"));
        assert!(with("user\0u\0work_mem\x001MB\0\0", "x,work_mem", None).is_ok());
        assert!(with("user\0u\0WORK_MEM\x001MB\0\0", "work_mem", None).is_err());
        assert!(with("user\0u\0work_mem\x001MB\0\0", "options", None).is_err());
    }

    #[test]
    fn users_and_databases() {
        for (body, expected) in [
            ("user\0u\0\0", Ok(("u", "u"))),
            ("user\0u\0database\0\0\0", Ok(("u", "u"))),
            ("user\0a\0database\0b\0user\0c\0database\0d\0\0", Ok(("c", "d"))),
            ("\0", Err("no username supplied")),
            ("user\0\0database\0d\0\0", Err("no username supplied")),
            ("User\0u\0\0", Err("unsupported startup parameter: User")),
        ] {
            let result = parse(body);
            let result = result.as_ref().map(|params| (&*params.user, &*params.database));
            assert_eq!(result.map_err(|refused| &*refused.disconnect.reason), expected, "{body:?}");
        }
    }

    #[test]
    fn layouts() {
        for body in ["", "user\0u\0", "user\0u", "user\0u\0\0x", "user\0u\0\0\0", "user", "user\0u\0database\0d"] {
            let refused = parse(body).unwrap_err();
            assert_eq!(
                refused.disconnect.reason, "invalid startup packet layout: expected terminator as last byte",
                "{body:?}"
            );
        }
        // keys are judged first
        assert!(parse("user\0u\0work_mem\0x\0").unwrap_err().disconnect.reason.contains("work_mem"));
    }

    #[test]
    fn replication_words() {
        for (value, expected) in [
            ("database", Replication::Logical),
            ("Database", Replication::None),
            ("true", Replication::Physical),
            ("T", Replication::Physical),
            ("yes", Replication::Physical),
            ("yE", Replication::Physical),
            ("on", Replication::Physical),
            ("1", Replication::Physical),
            ("o", Replication::None),
            ("off", Replication::None),
            ("false", Replication::None),
            ("0", Replication::None),
            ("11", Replication::None),
            ("truer", Replication::None),
            ("", Replication::None),
            ("maybe", Replication::None),
        ] {
            assert_eq!(parse(&format!("replication\0{value}\0user\0u\0\0")).unwrap().replication, expected, "{value}");
        }
    }

    #[test]
    fn options_of_replication_clients_pass_unread() {
        let params = parse("user\0u\0options\0-c anything -x\0replication\0database\0\0").unwrap();
        assert_eq!((params.options.as_deref(), params.replication), (Some("-c anything -x"), Replication::Logical));
    }

    #[test]
    fn options_grammar() {
        for (text, value) in [
            ("-c search_path=a", "a"),
            ("-csearch_path=a", "a"),
            ("-c   search_path=a", "a"),
            ("--search_path=a", "a"),
            ("  --search_path=a  ", "a"),
            ("\t--search_path=a\n", "a"),
            ("-c search_path=a -c search_path=b", "b"),
            ("-c search_path=a=b", "a=b"),
            ("-c search_path=", ""),
            ("-c search_path=a\\ b", "a b"),
            ("-c search_path=a\\\\b", "a\\b"),
            ("-c search\\_path=a", "a"),
            ("-c search_path=a\\", "a"),
            ("-c SEARCH_PATH=a", "a"),
        ] {
            assert_eq!(options(text, ""), Ok(vec![(2, value.to_owned())]), "{text}");
        }
        assert_eq!(options("", ""), Ok(vec![]));
        let long = "x".repeat(60_000);
        assert_eq!(options(&format!("-c search_path={long}"), ""), Ok(vec![(2, long)]));
        assert_eq!(options("--datestyle=ISO -csearch_path=x", ""), Ok(vec![(0, "ISO".into()), (2, "x".into())]));
    }

    #[test]
    fn options_refused() {
        let form = "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed";
        for text in ["search_path=a", "-c", "--", "-c search_path", "-d search_path=a", "- -", "-c search_path=a b"] {
            assert_eq!(options(text, "options"), Err(form.into()), "{text}");
        }
        let unknown = "unsupported startup parameter in options: work_mem";
        assert_eq!(options("-c work_mem=1 -x", ""), Err(unknown.into()));
        assert_eq!(options("-c work_mem=1 -x", "work_mem"), Err(form.into()));
        assert_eq!(options("-c work_mem=1", "work_mem"), Ok(vec![]));
        assert_eq!(options("-c work_mem=1", "options"), Ok(vec![]));
        let refused = parse("user\0u\0options\0-c work_mem=1MB\0\0").unwrap_err();
        assert_eq!(refused.warning.as_deref(), Some("unsupported startup parameter in options: work_mem=1MB"));
    }

    #[test]
    fn the_host_goes_behind_the_application_name() {
        for (body, expected) in [
            ("user\0u\0application_name\0psql\0\0", "psql - 1.2.3.4:5"),
            ("user\0u\0\0", "app - 1.2.3.4:5"),
            ("user\0u\0application_name\0\0\0", " - 1.2.3.4:5"),
        ] {
            let params = with(body, "", Some("1.2.3.4:5")).unwrap();
            assert_eq!(params.tracked, [(1, expected.to_owned())], "{body:?}");
        }
    }

    #[test]
    fn negotiation() {
        let mut params = parse("user\0u\0\0").unwrap();
        assert!(!params.wants_negotiation());
        params.minor = 2;
        assert!(params.wants_negotiation());
        let mut out = Vec::new();
        params.negotiate(&mut out);
        assert_eq!(out, b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0");
        let params = parse("user\0u\0_pq_.a\0\0_pq_.bc\0x\0\0").unwrap();
        assert!(params.wants_negotiation());
        out.clear();
        params.negotiate(&mut out);
        assert_eq!(out, b"v\0\0\0\x1b\0\x03\0\0\0\0\0\x02_pq_.a\0_pq_.bc\0");
    }

    #[test]
    fn errors_made_of_a_clients_words_are_short() {
        let refused = parse(&format!("user\0u\0{}\0v\0\0", "\u{e4}".repeat(1000))).unwrap_err();
        assert!((126..=127).contains(&refused.disconnect.reason.len()));
    }
}
