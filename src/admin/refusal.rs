//! Why the console does not do what it was asked: from one value the wire error, its SQLSTATE and the log text.

use std::fmt;

/// An error answer of the console; the connection survives it, except for the two that forbid a kind of message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such command; carries the query as it came, which need not be UTF-8.
    InvalidCommand(Vec<u8>),
    BadArguments,
    AdminNeeded,
    DatabaseRequired,
    NoSuchDatabase(String),
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
    /// Parse, Bind or Execute; the connection is closed afterwards.
    ExtendedProtocol,
    /// Describe, Close, Flush, Sync or FunctionCall, by its type byte; the connection is closed afterwards.
    UnsupportedMessage(u8),
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
            _ => "08P01",
        }
    }

    /// The text for the wire, with the bytes of the query as they came.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::InvalidCommand(query) => [b"invalid command '", query.as_slice(), b"', use SHOW HELP;"].concat(),
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
            Self::NoSuchDatabase(database) => write!(f, "no such database: {database}"),
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
            Self::ExtendedProtocol => f.write_str("extended query protocol not supported by admin console"),
            Self::UnsupportedMessage(tag) => write!(f, "unsupported packet type for admin console: {tag}"),
        }
    }
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
            (Refusal::NoSuchDatabase(db()), "no such database: p0"),
            (Refusal::DatabaseNotPaused(db()), "database p0 is not paused"),
            (admin(AdminVerb::Pause), "cannot pause admin db: pgbouncer"),
            (admin(AdminVerb::Enable), "cannot enable admin db: pgbouncer"),
            (admin(AdminVerb::WaitIn), "cannot wait in admin db: pgbouncer"),
            (Refusal::UnsupportedMessage(b'S'), "unsupported packet type for admin console: 83"),
        ] {
            assert_eq!(refusal.to_string(), text);
            assert_eq!(refusal.text(), text.as_bytes());
            assert_eq!(refusal.sqlstate(), "08P01");
        }
        assert_eq!(Refusal::ReloadFailed.sqlstate(), "F0000");
        assert_eq!(Refusal::InvalidCommand(vec![0xff]).text(), b"invalid command '\xff', use SHOW HELP;");
    }
}
