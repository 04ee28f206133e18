//! Text to a typed, immutable [`Config`].
//!
//! Files come in through a reader that the caller supplies, log lines go out as values, and a load builds its `Config`
//! aside: when it fails, whatever was in force stays in force, whole. `ini.rs` knows the lines of a file, `load.rs`
//! what they mean, `connstr.rs` the `key=value` lists of the entries, `keys.rs` the settings, `effective.rs` which of
//! several values counts, `diff.rs` what a reload changes, `dump.rs` makes a file of a `Config`, `tls.rs` knows what
//! the TLS settings ask for, `userlist.rs` the file of users, `hba.rs` and `ident.rs` the access rules, `ldap.rs` the
//! options of LDAP logins, `metrics_address.rs` where metrics are served.

pub mod connstr;
mod diff;
pub mod dump;
pub mod effective;
pub mod hba;
pub mod ident;
pub(crate) mod ini;
pub mod keys;
pub mod ldap;
pub(crate) mod load;
pub(crate) mod mask;
pub mod metrics_address;
pub mod tls;
pub mod userlist;
pub mod value;
mod words;

use std::collections::BTreeMap;
use std::fmt;

pub use connstr::EntryError;
pub use diff::Changes;
pub use keys::{Key, Row, SetError, Settings};
pub use load::{LoadFailed, Loaded, NeedsRestart, ReadFile, load};
pub use userlist::Userlist;
pub use value::{AuthType, LoadBalanceHosts, LogFormat, PoolMode, SslMode};

/// The name of the console; no entry can have it.
pub const CONSOLE_DATABASE: &str = "pgbouncer";

/// The entry from which others are made, when a name has none of its own.
pub const WILDCARD: &str = "*";

/// Everything the configuration file says.
#[derive(Clone, Default, PartialEq)]
pub struct Config {
    pub settings: Settings,
    /// The entries of `[databases]` by name, without `*`.
    pub databases: BTreeMap<String, Database>,
    /// The connection string of the `*` entry, as written; it is read when a name needs it.
    pub wildcard: Option<String>,
    pub users: BTreeMap<String, UserSettings>,
    pub peers: BTreeMap<u16, Peer>,
}

/// One entry of `[databases]`. `None` means that the line does not say; `effective` has the value that counts.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    pub name: String,
    /// Name on the server; the entry's own when unset.
    pub dbname: Option<String>,
    /// Name, address, directory of a Unix socket, or a comma list of these; unset is `unix_socket_dir`.
    pub host: Option<String>,
    pub port: u16,
    /// The forced user: one pool for all clients.
    pub user: Option<String>,
    pub password: Option<String>,
    /// Loads that found no user here any more, and kept the one before.
    pub forced_user_kept: u32,
    pub auth_user: Option<String>,
    pub auth_query: Option<String>,
    pub auth_dbname: Option<String>,
    /// 0 is unlimited.
    pub pool_size: Option<i64>,
    pub min_pool_size: Option<i64>,
    pub reserve_pool_size: Option<i64>,
    pub connect_query: Option<String>,
    pub pool_mode: Option<PoolMode>,
    /// Seconds; 0 is no limit.
    pub query_wait_timeout: Option<i64>,
    pub load_balance_hosts: LoadBalanceHosts,
    /// Above 0.
    pub max_db_connections: Option<i64>,
    /// Above 0.
    pub max_db_client_connections: Option<i64>,
    /// Seconds, above 0.
    pub server_lifetime: Option<i64>,
    pub client_encoding: Option<String>,
    pub datestyle: Option<String>,
    pub timezone: Option<String>,
    pub application_name: Option<String>,
}

impl Database {
    /// The port of a server when the entry names none.
    pub const DEFAULT_PORT: u16 = 5432;

    /// The entry of an empty connection string.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dbname: None,
            host: None,
            port: Self::DEFAULT_PORT,
            user: None,
            password: None,
            forced_user_kept: 0,
            auth_user: None,
            auth_query: None,
            auth_dbname: None,
            pool_size: None,
            min_pool_size: None,
            reserve_pool_size: None,
            connect_query: None,
            pool_mode: None,
            query_wait_timeout: None,
            load_balance_hosts: LoadBalanceHosts::RoundRobin,
            max_db_connections: None,
            max_db_client_connections: None,
            server_lifetime: None,
            client_encoding: None,
            datestyle: None,
            timezone: None,
            application_name: None,
        }
    }

    /// The database name in the server's startup packet.
    #[must_use]
    pub fn server_dbname(&self) -> &str {
        self.dbname.as_deref().unwrap_or(&self.name)
    }
}

/// One line of `[users]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserSettings {
    pub pool_mode: Option<PoolMode>,
    /// 0 is unlimited.
    pub pool_size: Option<i64>,
    pub reserve_pool_size: Option<i64>,
    /// Above 0.
    pub max_user_connections: Option<i64>,
    /// Above 0.
    pub max_user_client_connections: Option<i64>,
    /// Seconds, above 0.
    pub query_timeout: Option<i64>,
    /// Seconds, above 0.
    pub idle_transaction_timeout: Option<i64>,
    /// Seconds, above 0.
    pub transaction_timeout: Option<i64>,
    /// Seconds; 0 is no limit.
    pub query_wait_timeout: Option<i64>,
    /// Seconds, above 0.
    pub client_idle_timeout: Option<i64>,
}

/// One line of `[peers]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: u16,
    pub host: String,
    pub port: u16,
    pub pool_size: Option<i64>,
}

impl Peer {
    /// The port of a peer whose line names none.
    pub const DEFAULT_PORT: u16 = 6432;
}

/// The level of a line that a load wants logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Error,
    Warning,
    Log,
    /// Only with `verbose`.
    Debug,
}

/// A line to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub level: Level,
    pub text: String,
    /// The line of the file that it is about, from 1 on, where that is known.
    pub line: Option<usize>,
    /// It does not begin with the connection that it came up with.
    pub bare: bool,
}

impl LogLine {
    fn new(level: Level, text: impl Into<String>) -> Self {
        Self { level, text: text.into(), line: None, bare: false }
    }

    pub(crate) fn error(text: impl Into<String>) -> Self {
        Self::new(Level::Error, text)
    }

    pub(crate) fn warning(text: impl Into<String>) -> Self {
        Self::new(Level::Warning, text)
    }

    pub(crate) fn debug(text: impl Into<String>) -> Self {
        Self::new(Level::Debug, text)
    }

    pub(crate) fn log(text: impl Into<String>) -> Self {
        Self::new(Level::Log, text)
    }

    /// The same without a connection before it.
    pub(crate) fn bare(self) -> Self {
        Self { bare: true, ..self }
    }

    /// The same, about this line.
    pub(crate) fn at(self, line: usize) -> Self {
        Self { line: Some(line), ..self }
    }
}

impl Config {
    /// The entry that `*` makes for `name`; `None` when there is no `*`. Its string is read only now, so a mistake in
    /// it shows up here.
    #[must_use]
    pub fn auto_database(&self, name: &str) -> Option<Result<Database, EntryError>> {
        self.wildcard.as_deref().map(|connstr| connstr::parse_database(name, connstr))
    }

    /// What SET on the console makes of this configuration: a copy with `key` set. A setting that only a restart
    /// applies is left alone, as PgBouncer leaves it, and its value is not looked at.
    ///
    /// # Errors
    /// The name is unknown, or the value is not one of its type; [`SetError::detail`] has the line to log.
    pub fn set_setting(&self, key: &str, value: &str) -> Result<Self, SetError> {
        let mut config = self.clone();
        if keys::find(key).is_none_or(|key| key.changeable) {
            config.settings.set(key, value)?;
        }
        Ok(config)
    }
}

/// Without the password, and without values that could carry one.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("name", &self.name)
            .field("dbname", &self.dbname)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "..."))
            .field("pool_size", &self.pool_size)
            .field("min_pool_size", &self.min_pool_size)
            .field("reserve_pool_size", &self.reserve_pool_size)
            .field("pool_mode", &self.pool_mode)
            .finish_non_exhaustive()
    }
}

/// The `*` string may hold a password, so it is only said whether there is one.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("settings", &self.settings)
            .field("databases", &self.databases)
            .field("wildcard", &self.wildcard.as_ref().map(|_| "..."))
            .field("users", &self.users)
            .field("peers", &self.peers)
            .finish()
    }
}
