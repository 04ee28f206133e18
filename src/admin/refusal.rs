//! Why the console does not do what it was asked: from one value the wire error, its SQLSTATE and the log text.

use std::fmt;

/// An error answer of the console; the connection survives it, except for the one that forbids a kind of message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such command; carries the query as it came, which need not be UTF-8.
    InvalidCommand(Vec<u8>),
    BadArguments,
    AdminNeeded,
    DatabaseRequired,
    /// Carries the name as it came, which need not be UTF-8.
    NoSuchDatabase(Vec<u8>),
    /// The command does not apply to the console's own entry.
    AdminDatabase {
        verb: AdminVerb,
        database: String,
    },
    AlreadyPaused,
    PausedDatabases,
    NotPaused,
    DatabaseNotPaused(String),
    ShuttingDown,
    SetFailed,
    ReloadFailed,
    InvalidClientPointer,
    ClientNotFound,
    /// FunctionCall, by its type byte; the connection is closed afterwards.
    UnsupportedMessage(u8),
    /// A message of the extended protocol is cut short or names nothing known.
    Malformed,
    /// Console commands have no parameters.
    Parameters,
    NoStatement(Vec<u8>),
    StatementExists(Vec<u8>),
    NoPortal(Vec<u8>),
    PortalExists(Vec<u8>),
    /// It has run and has no rows to give.
    PortalDone(Vec<u8>),
    ResultFormat,
    ResultFormats {
        given: usize,
        columns: usize,
    },
    NameTooLong,
    /// Of prepared statements or portals.
    TooManyNamed,
    /// What the pools answered.
    Pools(String),
}

/// What was tried on the console's own entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminVerb {
    Pause,
    Disable,
    Enable,
    Reconnect,
    Kill,
    WaitIn,
}

impl AdminVerb {
    const fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Reconnect => "reconnect",
            Self::Kill => "kill",
            Self::WaitIn => "wait in",
        }
    }
}

impl Refusal {
    #[must_use]
    pub const fn sqlstate(&self) -> &'static str {
        match self {
            Self::ReloadFailed => "F0000",
            Self::NoStatement(_) => "26000",
            Self::StatementExists(_) => "42P05",
            Self::NoPortal(_) => "34000",
            Self::PortalExists(_) => "42P03",
            Self::PortalDone(_) => "55000",
            Self::ResultFormat => "22023",
            Self::NameTooLong => "42622",
            Self::TooManyNamed => "53400",
            Self::Parameters => "0A000",
            _ => "08P01",
        }
    }

    /// The text for the wire, with the bytes of the query as they came.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::InvalidCommand(query) => [b"invalid command '", query.as_slice(), b"', use SHOW HELP;"].concat(),
            Self::NoSuchDatabase(name) => [b"no such database: ", name.as_slice()].concat(),
            other => other.to_string().into_bytes(),
        }
    }
}

/// The text for the log; bytes that are not UTF-8 are replaced.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidCommand(query) => {
                write!(f, "invalid command '{}', use SHOW HELP;", String::from_utf8_lossy(query))
            }
            Self::Pools(text) => f.write_str(text),
            Self::BadArguments => f.write_str("bad arguments"),
            Self::AdminNeeded => f.write_str("admin access needed"),
            Self::DatabaseRequired => f.write_str("a database is required"),
            Self::NoSuchDatabase(name) => write!(f, "no such database: {}", lossy(name)),
            Self::AdminDatabase { verb, database } => write!(f, "cannot {} admin db: {database}", verb.word()),
            Self::AlreadyPaused => f.write_str("already suspended/paused"),
            Self::PausedDatabases => f.write_str("cannot suspend with paused databases"),
            Self::NotPaused => f.write_str("pooler is not paused/suspended"),
            Self::DatabaseNotPaused(database) => write!(f, "database {database} is not paused"),
            Self::ShuttingDown => f.write_str("pooler is shutting down"),
            Self::SetFailed => f.write_str("SET failed"),
            Self::ReloadFailed => f.write_str("RELOAD failed, see logs for additional details"),
            Self::InvalidClientPointer => f.write_str("invalid client pointer supplied"),
            Self::ClientNotFound => f.write_str("client not found"),
            Self::UnsupportedMessage(tag) => write!(f, "unsupported packet type for admin console: {tag}"),
            Self::Malformed => f.write_str("invalid message format"),
            Self::Parameters => f.write_str("console commands take no parameters"),
            Self::NoStatement(name) => write!(f, "prepared statement \"{}\" does not exist", lossy(name)),
            Self::StatementExists(name) => write!(f, "prepared statement \"{}\" already exists", lossy(name)),
            Self::NoPortal(name) => write!(f, "portal \"{}\" does not exist", lossy(name)),
            Self::PortalExists(name) => write!(f, "portal \"{}\" already exists", lossy(name)),
            Self::PortalDone(name) => write!(f, "portal \"{}\" cannot be run", lossy(name)),
            Self::ResultFormat => f.write_str("unsupported format code"),
            Self::ResultFormats { given, columns } => {
                write!(f, "bind message has {given} result formats but query has {columns} columns")
            }
            Self::NameTooLong => f.write_str("name of a prepared statement or portal is too long"),
            Self::TooManyNamed => f.write_str("too many prepared statements or portals"),
        }
    }
}

fn lossy(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let db = || "p0".to_owned();
        let admin = |verb| Refusal::AdminDatabase { verb, database: "pgbouncer".to_owned() };
        for (refusal, text) in [
            (Refusal::InvalidCommand(b"BEGIN".to_vec()), "invalid command 'BEGIN', use SHOW HELP;"),
            (Refusal::NoSuchDatabase(b"p0".to_vec()), "no such database: p0"),
            (Refusal::DatabaseNotPaused(db()), "database p0 is not paused"),
            (admin(AdminVerb::Pause), "cannot pause admin db: pgbouncer"),
            (admin(AdminVerb::Enable), "cannot enable admin db: pgbouncer"),
            (admin(AdminVerb::WaitIn), "cannot wait in admin db: pgbouncer"),
            (Refusal::UnsupportedMessage(b'F'), "unsupported packet type for admin console: 70"),
        ] {
            assert_eq!(refusal.to_string(), text);
            assert_eq!(refusal.text(), text.as_bytes());
            assert_eq!(refusal.sqlstate(), "08P01");
        }
        assert_eq!(Refusal::ReloadFailed.sqlstate(), "F0000");
        assert_eq!(Refusal::InvalidCommand(vec![0xff]).text(), b"invalid command '\xff', use SHOW HELP;");
        assert_eq!(Refusal::NoSuchDatabase(vec![0xff]).text(), b"no such database: \xff");
    }
}
