//! The `key=value` lists of `[databases]`, `[users]` and `[peers]`.
//!
//! Only the space separates pairs; a value runs to the next space or stands in single quotes with `''` for one; there
//! are no empty values, so `host= port=3` gives the host `port=3`. Numbers are read as C's `atoi` does.

use std::fmt;

use super::mask::{self, MASK};
use super::value::atoi;
use super::{CONSOLE_DATABASE, Database, LoadBalanceHosts, LogLine, Peer, PoolMode, UserSettings};

/// Longest name of an entry, in bytes; PostgreSQL's own limit of a name.
pub const MAX_DATABASE_NAME: usize = 63;

/// Why an entry was refused. [`fmt::Display`] gives the line to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryError {
    Syntax,
    UserSyntax,
    UnknownKey(String),
    UnknownUserKey(String),
    Port(String),
    PoolMode(String),
    LoadBalanceHosts(String),
    Reserved,
    NameTooLong(String),
    PeerId,
    PeerWithoutHost(u16),
}

impl EntryError {
    /// The lines to log, in order.
    #[must_use]
    pub fn log_lines(&self) -> Vec<LogLine> {
        let line = LogLine::error(self.to_string());
        match self {
            Self::NameTooLong(name) => vec![LogLine::warning(format!("too long db name: {name}")), line],
            _ => vec![line],
        }
    }
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("syntax error in connection string"),
            Self::UserSyntax => f.write_str("syntax error in user settings"),
            // keys may be URLs, and values, of which none is empty, the pair that follows
            Self::UnknownKey(key) => write!(f, "unrecognized connection parameter: {}", mask::refused(key)),
            Self::UnknownUserKey(key) => write!(f, "unrecognized user parameter: {}", mask::refused(key)),
            Self::Port(text) => write!(f, "invalid port: {}", mask::refused(text)),
            Self::PoolMode(text) => write!(f, "invalid pool mode: {}", mask::refused(text)),
            Self::LoadBalanceHosts(text) => write!(f, "invalid load_balance_hosts: {}", mask::refused(text)),
            Self::Reserved => write!(f, "database name \"{CONSOLE_DATABASE}\" is reserved"),
            // PgBouncer's words, whatever the reason
            Self::NameTooLong(_) => f.write_str("cannot create database, no memory?"),
            Self::PeerId => f.write_str("ids of peers must be a number larger than 0 and at most 65536"),
            Self::PeerWithoutHost(id) => write!(f, "host was not provided for peer {id}"),
        }
    }
}

impl std::error::Error for EntryError {}

/// What a line of `[databases]` may say.
pub const DATABASE_KEYS: &[&str] = &[
    "dbname",
    "host",
    "port",
    "user",
    "password",
    "auth_user",
    "auth_query",
    "auth_dbname",
    "pool_size",
    "min_pool_size",
    "reserve_pool_size",
    "reserve_pool",
    "connect_query",
    "pool_mode",
    "query_wait_timeout",
    "load_balance_hosts",
    "max_db_connections",
    "max_db_client_connections",
    "server_lifetime",
    "client_encoding",
    "datestyle",
    "timezone",
    "application_name",
];

/// What a line of `[users]` may say.
pub const USER_KEYS: &[&str] = &[
    "pool_mode",
    "pool_size",
    "reserve_pool_size",
    "max_user_connections",
    "max_user_client_connections",
    "query_timeout",
    "idle_transaction_timeout",
    "transaction_timeout",
    "query_wait_timeout",
    "client_idle_timeout",
];

/// What a line of `[peers]` may say.
pub const PEER_KEYS: &[&str] = &["host", "port", "pool_size"];

/// Keys whose values are numbers.
pub(crate) const NUMBER_KEYS: &[&str] = &[
    "port",
    "pool_size",
    "min_pool_size",
    "reserve_pool_size",
    "reserve_pool",
    "query_wait_timeout",
    "max_db_connections",
    "max_db_client_connections",
    "server_lifetime",
    "max_user_connections",
    "max_user_client_connections",
    "query_timeout",
    "idle_transaction_timeout",
    "transaction_timeout",
    "client_idle_timeout",
];

/// Reads one line of `[databases]`, or what `*` says about `name`.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_database(name: &str, connstr: &str) -> Result<Database, EntryError> {
    if name == CONSOLE_DATABASE {
        return Err(EntryError::Reserved);
    }
    let mut db = Database::new(name);
    for pair in pairs(connstr) {
        let (key, value) = pair.map_err(|Malformed| EntryError::Syntax)?;
        set_database_key(&mut db, key, value)?;
    }
    if name.len() > MAX_DATABASE_NAME {
        return Err(EntryError::NameTooLong(name.to_owned()));
    }
    Ok(db)
}

/// Takes one pair into an entry.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn set_database_key(db: &mut Database, key: &str, value: String) -> Result<(), EntryError> {
    match key {
        "dbname" => db.dbname = Some(value),
        "host" => db.host = Some(value),
        "port" => db.port = parse_port(value)?,
        "user" => db.user = Some(value),
        "password" => db.password = Some(value),
        "auth_user" => db.auth_user = Some(value),
        "auth_query" => db.auth_query = Some(value),
        "auth_dbname" => db.auth_dbname = Some(value),
        "pool_size" => db.pool_size = not_negative(&value),
        "min_pool_size" => db.min_pool_size = not_negative(&value),
        "reserve_pool_size" | "reserve_pool" => db.reserve_pool_size = not_negative(&value),
        "connect_query" => db.connect_query = Some(value),
        "pool_mode" => db.pool_mode = Some(parse_pool_mode(value)?),
        "query_wait_timeout" => db.query_wait_timeout = not_negative(&value),
        "load_balance_hosts" => {
            db.load_balance_hosts = LoadBalanceHosts::from_text(&value).ok_or(EntryError::LoadBalanceHosts(value))?;
        }
        "max_db_connections" => db.max_db_connections = positive(&value),
        "max_db_client_connections" => db.max_db_client_connections = positive(&value),
        "server_lifetime" => db.server_lifetime = positive(&value),
        "client_encoding" => db.client_encoding = Some(value),
        "datestyle" => db.datestyle = Some(value),
        "timezone" => db.timezone = Some(value),
        "application_name" => db.application_name = Some(value),
        _ => return Err(EntryError::UnknownKey(key.to_owned())),
    }
    Ok(())
}

/// Reads one line of `[users]`.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_user(text: &str) -> Result<UserSettings, EntryError> {
    let mut user = UserSettings::default();
    for pair in pairs(text) {
        let (key, value) = pair.map_err(|Malformed| EntryError::UserSyntax)?;
        set_user_key(&mut user, key, value)?;
    }
    Ok(user)
}

/// Takes one pair into a user's settings.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn set_user_key(user: &mut UserSettings, key: &str, value: String) -> Result<(), EntryError> {
    match key {
        "pool_mode" => user.pool_mode = Some(parse_pool_mode(value)?),
        "pool_size" => user.pool_size = not_negative(&value),
        "reserve_pool_size" => user.reserve_pool_size = not_negative(&value),
        "max_user_connections" => user.max_user_connections = positive(&value),
        "max_user_client_connections" => user.max_user_client_connections = positive(&value),
        "query_timeout" => user.query_timeout = positive(&value),
        "idle_transaction_timeout" => user.idle_transaction_timeout = positive(&value),
        "transaction_timeout" => user.transaction_timeout = positive(&value),
        "query_wait_timeout" => user.query_wait_timeout = not_negative(&value),
        "client_idle_timeout" => user.client_idle_timeout = positive(&value),
        _ => return Err(EntryError::UnknownUserKey(key.to_owned())),
    }
    Ok(())
}

/// Reads one line of `[peers]`; its key is the number of the peer.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_peer(id: &str, text: &str) -> Result<Peer, EntryError> {
    let id = Some(id)
        .filter(|id| id.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|id| id.parse().ok())
        .filter(|&id: &u16| id > 0)
        .ok_or(EntryError::PeerId)?;
    let mut host = None;
    let mut port = Peer::DEFAULT_PORT;
    let mut pool_size = None;
    for pair in pairs(text) {
        let (key, value) = pair.map_err(|Malformed| EntryError::Syntax)?;
        match key {
            "host" => host = Some(value),
            "port" => port = parse_port(value)?,
            "pool_size" => pool_size = not_negative(&value),
            _ => return Err(EntryError::UnknownKey(key.to_owned())),
        }
    }
    let host = host.ok_or(EntryError::PeerWithoutHost(id))?;
    Ok(Peer { id, host, port, pool_size })
}

fn parse_port(text: String) -> Result<u16, EntryError> {
    u16::try_from(atoi(&text)).ok().filter(|&port| port != 0).ok_or(EntryError::Port(text))
}

fn parse_pool_mode(text: String) -> Result<PoolMode, EntryError> {
    PoolMode::from_text(&text).ok_or(EntryError::PoolMode(text))
}

/// For keys whose negative values mean "not set".
fn not_negative(text: &str) -> Option<i64> {
    Some(atoi(text)).filter(|&value| value >= 0)
}

/// For keys whose values up to 0 mean "not set".
fn positive(text: &str) -> Option<i64> {
    Some(atoi(text)).filter(|&value| value > 0)
}

/// No `key=value` list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The pairs of a list; after an error there are no more.
pub(crate) fn pairs(text: &str) -> impl Iterator<Item = Result<(&str, String), Malformed>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            return None;
        }
        let pair = next_pair(&mut rest);
        if pair.is_err() {
            rest = "";
        }
        Some(pair)
    })
}

fn next_pair<'a>(rest: &mut &'a str) -> Result<(&'a str, String), Malformed> {
    let text = *rest;
    let (key, text) = text.split_at(text.find([' ', '=']).ok_or(Malformed)?);
    let text = text.trim_start_matches(' ').strip_prefix('=').ok_or(Malformed)?.trim_start_matches(' ');
    let (value, tail) = match text.strip_prefix('\'') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let (value, tail) = text.split_at(text.find(' ').unwrap_or(text.len()));
            (value.to_owned(), tail)
        }
    };
    if key.is_empty() || value.is_empty() {
        return Err(Malformed);
    }
    // Whatever stands right behind a value is taken for the separator, even when a quote is not followed by a space.
    let mut tail = tail.chars();
    tail.next();
    *rest = tail.as_str();
    Ok((key, value))
}

/// The value up to its closing quote, and what follows it.
fn unquote(text: &str) -> Result<(String, &str), Malformed> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (part, tail) = rest.split_once('\'').ok_or(Malformed)?;
        value.push_str(part);
        match tail.strip_prefix('\'') {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return Ok((value, tail)),
        }
    }
}

/// `connstr` as it may be shown: with `...` in place of every password, and of all that may belong to one if the text is
/// none that counts.
pub(crate) fn masked(connstr: &str) -> String {
    const KEY: &str = "password";
    if parse_database("", connstr).is_err() {
        return mask::refused(connstr);
    }
    let mut out = String::with_capacity(connstr.len());
    let mut rest = connstr;
    while let Some(at) = rest.find(KEY) {
        let (head, tail) = rest.split_at(at + KEY.len());
        out.push_str(head);
        rest = tail;
        let Some(value) = tail.trim_start_matches(' ').strip_prefix('=').map(|value| value.trim_start_matches(' '))
        else {
            continue;
        };
        out.push_str(&tail[..tail.len() - value.len()]);
        out.push_str(MASK);
        rest = match value.strip_prefix('\'') {
            // a quote that does not end the value may stand in the middle of the password
            Some(quoted) => {
                unquote(quoted).map(|(_, tail)| tail).ok().filter(|tail| tail.starts_with(' ')).unwrap_or("")
            }
            None => &value[value.find(' ').unwrap_or(value.len())..],
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<(String, String)>, Malformed> {
        pairs(text).map(|pair| pair.map(|(key, value)| (key.to_owned(), value))).collect()
    }

    #[test]
    fn pairs_as_written() {
        for (text, want) in [
            ("", &[][..]),
            ("   ", &[]),
            ("a=b", &[("a", "b")]),
            (" a = b  c=d ", &[("a", "b"), ("c", "d")]),
            ("host= port=3", &[("host", "port=3")]),
            ("a=x\ty c=d", &[("a", "x\ty"), ("c", "d")]),
            ("a='b c' d=e", &[("a", "b c"), ("d", "e")]),
            ("a='it''s' d=e'", &[("a", "it's"), ("d", "e'")]),
            ("a='b'xc=d", &[("a", "b"), ("c", "d")]),
            ("a=b'c d=e", &[("a", "b'c"), ("d", "e")]),
        ] {
            let want: Vec<_> = want.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            assert_eq!(list(text), Ok(want), "{text:?}");
        }
        for text in ["a", "a b", "=b", "a=", "a= ", "a=''", "a='b", "a=b c", "a=b =c", "a=b [users]"] {
            assert_eq!(list(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn every_database_key() {
        let db = parse_database(
            "a",
            "dbname=b host=h,/tmp port=1 user=u password='p''w' auth_user=au auth_query='select ''x''' auth_dbname=ad \
             pool_size=0 min_pool_size=2 reserve_pool=3 connect_query='select 1' pool_mode=Statement \
             query_wait_timeout=0 load_balance_hosts=DISABLE max_db_connections=4 max_db_client_connections=5 \
             server_lifetime=6 client_encoding=UTF8 datestyle=ISO timezone=GMT application_name=app",
        );
        let some = |text: &str| Some(text.to_owned());
        let want = Database {
            name: "a".to_owned(),
            dbname: some("b"),
            host: some("h,/tmp"),
            port: 1,
            user: some("u"),
            password: some("p'w"),
            forced_user_kept: 0,
            auth_user: some("au"),
            auth_query: some("select 'x'"),
            auth_dbname: some("ad"),
            pool_size: Some(0),
            min_pool_size: Some(2),
            reserve_pool_size: Some(3),
            connect_query: some("select 1"),
            pool_mode: Some(PoolMode::Statement),
            query_wait_timeout: Some(0),
            load_balance_hosts: LoadBalanceHosts::Disable,
            max_db_connections: Some(4),
            max_db_client_connections: Some(5),
            server_lifetime: Some(6),
            client_encoding: some("UTF8"),
            datestyle: some("ISO"),
            timezone: some("GMT"),
            application_name: some("app"),
        };
        assert_eq!(db, Ok(want));
        assert_eq!(parse_database("a", ""), Ok(Database::new("a")));
        let unset = "pool_size=-1 min_pool_size=-1 reserve_pool_size=-1 query_wait_timeout=-1 max_db_connections=0 \
                     max_db_client_connections=-1 server_lifetime=0";
        assert_eq!(parse_database("a", unset), Ok(Database::new("a")));
        assert!(DATABASE_KEYS.iter().all(|key| {
            !matches!(parse_database("a", &format!("{key}=?")), Err(EntryError::UnknownKey(_) | EntryError::Syntax))
        }));
    }

    #[test]
    fn database_mistakes() {
        let long = "a".repeat(64);
        for (name, text, line) in [
            ("a", "bar", "syntax error in connection string"),
            ("a", "host=", "syntax error in connection string"),
            ("a", "Host=x", "unrecognized connection parameter: Host"),
            ("a", "password='a'host=b", "unrecognized connection parameter: ost"),
            ("a", "port=x", "invalid port: x"),
            ("a", "port=0", "invalid port: 0"),
            ("a", "port=65536", "invalid port: 65536"),
            ("a", "pool_mode=x", "invalid pool mode: x"),
            ("a", "load_balance_hosts=on", "invalid load_balance_hosts: on"),
            ("pgbouncer", "nonsense", "database name \"pgbouncer\" is reserved"),
            (&long, "port=x", "invalid port: x"),
            (&long, "", "cannot create database, no memory?"),
        ] {
            let error = parse_database(name, text).expect_err(text);
            assert_eq!(error.to_string(), line, "{text:?}");
        }
        assert_eq!(parse_database(&long[1..], "").map(|db| db.name.len()), Ok(63));
        let lines = EntryError::NameTooLong(long.clone()).log_lines();
        assert_eq!(lines[0], LogLine::warning(format!("too long db name: {long}")));
        assert_eq!(lines[1], LogLine::error("cannot create database, no memory?"));
    }

    #[test]
    fn user_lines() {
        let all = "pool_mode=session pool_size=0 reserve_pool_size=2 max_user_connections=3 \
                   max_user_client_connections=4 query_timeout=5 idle_transaction_timeout=6 transaction_timeout=7 \
                   query_wait_timeout=0 client_idle_timeout=9";
        let want = UserSettings {
            pool_mode: Some(PoolMode::Session),
            pool_size: Some(0),
            reserve_pool_size: Some(2),
            max_user_connections: Some(3),
            max_user_client_connections: Some(4),
            query_timeout: Some(5),
            idle_transaction_timeout: Some(6),
            transaction_timeout: Some(7),
            query_wait_timeout: Some(0),
            client_idle_timeout: Some(9),
        };
        assert_eq!(parse_user(all), Ok(want));
        let unset = "pool_size=-1 reserve_pool_size=-1 max_user_connections=0 max_user_client_connections=0 \
                     query_timeout=0 idle_transaction_timeout=x transaction_timeout=-1 client_idle_timeout=0";
        assert_eq!(parse_user(unset), Ok(UserSettings::default()));
        for (text, line) in [
            ("garbage", "syntax error in user settings"),
            ("foo=1", "unrecognized user parameter: foo"),
            ("pool_mode=zz", "invalid pool mode: zz"),
        ] {
            assert_eq!(parse_user(text).map_err(|error| error.to_string()), Err(line.to_owned()), "{text:?}");
        }
        assert!(USER_KEYS.iter().all(|key| !matches!(
            parse_user(&format!("{key}=?")),
            Err(EntryError::UnknownUserKey(_) | EntryError::UserSyntax)
        )));
    }

    #[test]
    fn peer_lines() {
        let peer = |id, port, pool_size| Ok(Peer { id, host: "h".to_owned(), port, pool_size });
        assert_eq!(parse_peer("1", "host=h"), peer(1, 6432, None));
        assert_eq!(parse_peer("65535", "host=h port=2 pool_size=3"), peer(65_535, 2, Some(3)));
        let bad_id = "ids of peers must be a number larger than 0 and at most 65536";
        for (id, text, line) in [
            ("0", "host=h", bad_id),
            ("65536", "host=h", bad_id),
            ("-1", "host=h", bad_id),
            ("+1", "host=h", bad_id),
            ("", "host=h", bad_id),
            ("x", "host=h", bad_id),
            ("1", "", "host was not provided for peer 1"),
            ("1", "host=h user=x", "unrecognized connection parameter: user"),
            ("1", "host", "syntax error in connection string"),
            ("1", "host=h port=x", "invalid port: x"),
        ] {
            assert_eq!(
                parse_peer(id, text).map_err(|error| error.to_string()),
                Err(line.to_owned()),
                "{id:?} {text:?}"
            );
        }
    }

    #[test]
    fn no_password_in_a_log_line() {
        for (text, want) in [
            ("host=a port=x", "host=a port=x"),
            ("host=a password=geheim port=1", "host=a password=... port=1"),
            ("host=a password=geheim port=x", "host=a password=..."),
            ("password = 'ge''heim' port=1", "password = ... port=1"),
            ("port=x password='geheim", "port=x password=..."),
            ("password='ge'heim port=x", "password=..."),
            ("host=a password=my geheim", "host=a password=..."),
            ("dbname=password host=x", "dbname=password host=x"),
            ("password=a password=b", "password=... password=..."),
            ("password", "password"),
            ("password=", "password="),
        ] {
            assert_eq!(masked(text), want, "{text:?}");
        }
        for text in ["port= password=geheim", "postgres://u:geheim@h/?a=b", "pool_mode= passwd=geheim"] {
            let line = parse_database("a", text).expect_err("refused").to_string();
            assert!(!line.contains("geheim"), "{line}");
        }
        let db = parse_database("a", "password=geheim").expect("valid");
        assert!(!format!("{db:?}").contains("geheim"));
    }
}
