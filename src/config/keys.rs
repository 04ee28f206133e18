//! THE table of settings: name, type, default, whether a reload applies it, and a few words of help.
//!
//! The order is the row order of SHOW CONFIG. From the table come the fields of [`Settings`], their defaults, SET, and
//! the rows of SHOW CONFIG; a new setting is one line here. How a value is read and printed is decided by its type
//! (`value.rs`).

use std::fmt;

use super::ldap;
use super::metrics_address::MetricsAddress;
use super::value::{AuthType, LogFormat, PoolMode, SslMode, Switch, Value};
use crate::time::Micros;

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub name: &'static str,
    /// Text of the default column of SHOW CONFIG; `None` is NULL, and a reload does not bring such a setting back.
    pub default: Option<&'static str>,
    /// False: only a restart applies another value.
    pub changeable: bool,
    pub help: &'static str,
    /// What a value must be.
    pub expects: &'static str,
}

/// A row of SHOW CONFIG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: &'static str,
    pub value: Option<String>,
    pub default: Option<&'static str>,
    pub changeable: bool,
}

/// Why a value was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetError {
    /// There is no setting of this name.
    Unknown,
    /// The text is no value of the setting's type.
    BadValue,
    /// The console cannot look up users for others.
    ReservedAuthDbname,
}

impl SetError {
    /// The log line that says more than "invalid value", if there is more to say.
    #[must_use]
    pub fn detail(self, key: &str) -> Option<String> {
        match self {
            Self::Unknown => Some(format!("unknown parameter: pgbouncer/{key}")),
            Self::BadValue => None,
            Self::ReservedAuthDbname => {
                Some("cannot use the reserved \"pgbouncer\" database as an auth_dbname".to_owned())
            }
        }
    }
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown parameter",
            Self::BadValue => "invalid value",
            Self::ReservedAuthDbname => "the database \"pgbouncer\" is reserved",
        })
    }
}

impl std::error::Error for SetError {}

macro_rules! settings {
    ($($name:ident: $ty:ty = $default:expr, $when:ident, $help:literal;)*) => {
        /// The values of all settings, one field each, named as in the file.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings {
            $(#[doc = $help] pub $name: $ty,)*
        }

        /// The table as data.
        pub const TABLE: &[Key] = &[
            $(Key { name: stringify!($name), default: $default, changeable: settings!(@$when), help: $help,
                expects: <$ty as Value>::EXPECTED },)*
        ];

        impl Default for Settings {
            fn default() -> Self {
                Self { $($name: <$ty as Value>::initial($default),)* }
            }
        }

        impl Settings {
            /// Reads `value` into the setting `key`, changeable or not; a refused value changes nothing.
            ///
            /// # Errors
            /// The name is unknown, or the value is not one of its type.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), SetError> {
                if key == "auth_dbname" && value == super::CONSOLE_DATABASE {
                    return Err(SetError::ReservedAuthDbname);
                }
                match key {
                    $(stringify!($name) => self.$name = Value::parse(value).ok_or(SetError::BadValue)?,)*
                    _ => return Err(SetError::Unknown),
                }
                Ok(())
            }

            /// The value of `key` as SHOW CONFIG prints it: outer `None` for an unknown key, inner `None` for NULL.
            #[must_use]
            pub fn get(&self, key: &str) -> Option<Option<String>> {
                match key {
                    $(stringify!($name) => Some(self.$name.print()),)*
                    _ => None,
                }
            }

            /// The text that a file must have for `key` to get the very value it has; `None` if there is none.
            #[must_use]
            pub fn written(&self, key: &str) -> Option<String> {
                match key {
                    $(stringify!($name) => self.$name.written(),)*
                    _ => None,
                }
            }

            /// Takes the value of `key` from `other`; an unknown key does nothing.
            pub fn copy_from(&mut self, key: &str, other: &Self) {
                match key {
                    $(stringify!($name) => self.$name.clone_from(&other.$name),)*
                    _ => {}
                }
            }
        }
    };
    (@reload) => { true };
    (@restart) => { false };
}

settings! {
    admin_users: String = Some(""), reload, "users with full rights on the console";
    application_name_add_host: Switch = Some("0"), reload, "append the client address to application_name at login";
    auth_dbname: Option<String> = None, reload, "entry on which auth_query runs";
    auth_file: Option<String> = None, reload, "list of user names and secrets";
    auth_hba_file: String = Some(""), reload, "access rules for auth_type=hba";
    auth_ident_file: Option<String> = None, reload, "user name maps for the access rules";
    auth_ldap_options: Option<String> = None, reload, "options of auth_type=ldap";
    auth_query: String = Some(
        "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid \
         WHERE rolname=$1 AND rolcanlogin"
    ), reload, "query that fetches the secret of a user missing from auth_file";
    auth_type: AuthType = Some("md5"), reload, "how clients prove who they are";
    auth_user: Option<String> = None, reload, "role that runs auth_query";
    autodb_idle_timeout: Micros = Some("3600"), reload,
        "drop unused databases made from the * entry after this time; 0 never";
    cancel_wait_timeout: Micros = Some("10"), reload, "give up forwarding a cancel request after this time; 0 never";
    client_idle_timeout: Micros = Some("0"), reload,
        "close clients without a server that are silent this long; 0 never";
    client_login_timeout: Micros = Some("60"), reload, "time a client has to log in; 0 no limit";
    client_tls13_ciphers: Option<String> = None, reload, "TLS 1.3 suites for clients";
    client_tls_ca_file: String = Some(""), reload, "CA bundle for client certificates";
    client_tls_cert_file: String = Some(""), reload, "certificate shown to clients";
    client_tls_ciphers: String = Some("default"), reload, "TLS 1.2 ciphers for clients";
    client_tls_dheparams: String = Some("auto"), reload, "DHE key exchange with clients: auto or none";
    client_tls_ecdhcurve: String = Some("auto"), reload, "ECDH curve with clients";
    client_tls_key_file: String = Some(""), reload, "private key of client_tls_cert_file";
    client_tls_protocols: String = Some("secure"), reload, "TLS versions for clients";
    client_tls_sslmode: SslMode = Some("disable"), reload, "whether clients may or must use TLS";
    conffile: Option<String> = None, reload, "path of the configuration file, read at the next reload";
    default_pool_size: i64 = Some("20"), reload, "server connections per pool; 0 unlimited";
    disable_pqexec: Switch = Some("0"), restart, "refuse the simple query protocol";
    dns_max_ttl: Micros = Some("15"), reload, "how long a resolved name is reused";
    dns_nxdomain_ttl: Micros = Some("15"), reload, "how long a failed lookup is remembered";
    dns_zone_check_period: Micros = Some("0"), reload, "how often zone serials are polled; 0 never";
    idle_transaction_timeout: Micros = Some("0"), reload, "close connections idle in a transaction this long; 0 never";
    ignore_startup_parameters: String = Some(""), reload, "startup parameters to accept and drop";
    job_name: String = Some("pgbouncer"), restart, "service name on Windows, kept for old files";
    listen_addr: String = Some(""), restart, "addresses to listen on; * all; empty none";
    listen_backlog: i64 = Some("128"), restart, "length of the accept queue";
    listen_port: i64 = Some("6432"), restart, "TCP port and suffix of the Unix socket";
    log_connections: Switch = Some("1"), reload, "log logins and new server connections";
    log_disconnections: Switch = Some("1"), reload, "log why connections close";
    log_pooler_errors: Switch = Some("1"), reload, "log errors the pooler sends to clients";
    log_stats: Switch = Some("1"), reload, "log a line of statistics every stats_period";
    logfile: String = Some(""), reload, "log file, reopened at reload";
    login_notify_message: String = Some(""), reload, "notice sent to clients at login";
    max_client_conn: i64 = Some("100"), reload, "limit of client connections";
    max_db_client_connections: i64 = Some("0"), reload, "limit of client connections per database; 0 none";
    max_db_connections: i64 = Some("0"), reload, "limit of server connections per database; 0 none";
    max_packet_size: u64 = Some("2147483647"), reload, "bytes of the largest message accepted";
    max_prepared_statements: i64 = Some("200"), reload, "named statements kept per server connection; 0 no tracking";
    max_user_client_connections: i64 = Some("0"), reload, "limit of client connections per user; 0 none";
    max_user_connections: i64 = Some("0"), reload, "limit of server connections per user; 0 none";
    min_pool_size: i64 = Some("0"), reload, "server connections a pool keeps open";
    peer_id: i64 = Some("0"), reload, "number of this process among its peers; 0 alone";
    pidfile: String = Some(""), restart, "file for the process number; empty none";
    pkt_buf: i64 = Some("4096"), restart, "bytes of a connection buffer";
    pool_mode: PoolMode = Some("session"), reload, "when a server connection returns to its pool";
    pool_idle_timeout: Micros = Some("0"), reload, "free a pool without connections after this time; 0 never";
    query_timeout: Micros = Some("0"), reload, "longest run of one query; 0 no limit";
    query_wait_notify: i64 = Some("5"), reload, "seconds in the queue before a client is told; 0 never";
    query_wait_timeout: Micros = Some("120"), reload, "longest wait for a server; 0 no limit";
    reserve_pool_size: i64 = Some("0"), reload, "extra server connections for a pool under pressure";
    reserve_pool_timeout: Micros = Some("5"), reload, "wait after which the reserve is used; 0 no reserve";
    resolv_conf: String = Some(""), restart, "resolver configuration in place of the system one";
    sbuf_loopcnt: i64 = Some("5"), reload, "reads from one socket before others get a turn; 0 no limit";
    scram_iterations: i64 = Some("4096"), reload, "iterations of SCRAM secrets made from plain passwords";
    server_check_delay: Micros = Some("30"), reload, "idle time after which a server is checked before use; 0 always";
    server_check_query: String = Some("<empty>"), reload, "query of that check; empty none";
    server_connect_timeout: Micros = Some("15"), reload,
        "time a server connection has to connect and log in; 0 no limit";
    server_fast_close: Switch = Some("0"), reload, "in session mode close outdated servers as soon as they are idle";
    server_idle_timeout: Micros = Some("600"), reload, "close servers unused this long; 0 never";
    server_lifetime: Micros = Some("3600"), reload, "close servers older than this; 0 after one use";
    server_login_retry: Micros = Some("15"), reload, "pause after a failed server login";
    server_reset_query: String = Some("DISCARD ALL"), reload, "query that cleans a server after session use";
    server_reset_query_always: Switch = Some("0"), reload, "run server_reset_query in every pool mode";
    server_round_robin: Switch = Some("0"), reload, "use the server released longest ago first";
    server_tls13_ciphers: Option<String> = None, reload, "TLS 1.3 suites for servers";
    server_tls_ca_file: String = Some(""), reload, "CA bundle for server certificates";
    server_tls_cert_file: String = Some(""), reload, "certificate shown to servers";
    server_tls_ciphers: String = Some("default"), reload, "TLS 1.2 ciphers for servers";
    server_tls_key_file: String = Some(""), reload, "private key of server_tls_cert_file";
    server_tls_protocols: String = Some("secure"), reload, "TLS versions for servers";
    server_tls_sslmode: SslMode = Some("prefer"), reload, "whether servers may or must use TLS";
    so_reuseport: Switch = Some("0"), restart, "let several processes share a port";
    stats_period: i64 = Some("60"), reload, "seconds of an averaging period";
    stats_users: String = Some(""), reload, "users who may only look on the console";
    suspend_timeout: Micros = Some("10"), reload, "time SUSPEND gives connections to drain; 0 no limit";
    syslog: Switch = Some("0"), reload, "log to syslog as well";
    syslog_facility: String = Some("daemon"), reload, "syslog facility";
    syslog_ident: String = Some("pgbouncer"), reload, "name in syslog";
    tcp_defer_accept: Switch = Some("1"), reload, "wake up only for TCP clients that sent something";
    tcp_keepalive: Switch = Some("1"), reload, "probe silent TCP connections";
    tcp_keepcnt: i64 = Some("0"), reload, "probes lost before a connection is dead; 0 system default";
    tcp_keepidle: i64 = Some("0"), reload, "seconds of silence before the first probe; 0 system default";
    tcp_keepintvl: i64 = Some("0"), reload, "seconds between probes; 0 system default";
    tcp_socket_buffer: i64 = Some("0"), reload, "bytes of socket buffers; 0 system default";
    tcp_user_timeout: i64 = Some("0"), reload, "milliseconds sent data may stay unacknowledged; 0 system default";
    track_extra_parameters: String = Some("IntervalStyle"), restart, "further server parameters kept per client";
    transaction_timeout: Micros = Some("0"), reload, "longest transaction; 0 no limit";
    unix_socket_dir: String = Some("/tmp"), restart, "directory of the Unix socket; @name abstract; empty none";
    unix_socket_group: String = Some(""), restart, "group of the Unix socket";
    unix_socket_mode: i64 = Some("0777"), restart, "permissions of the Unix socket";
    user: Option<String> = None, restart, "Unix user to become";
    verbose: Option<i64> = None, reload, "0 normal, 1 debug, 2 everything";
    // Ours, not PgBouncer's, hence last.
    cancel_on_disconnect: Switch = Some("0"), reload,
        "cancel what a server still runs when its client leaves or is closed";
    console_probes: Switch = Some("0"), reload,
        "answer BEGIN, SELECT 1 and the like on the console by simple query too";
    log_format: LogFormat = Some("text"), reload, "what log lines look like: PgBouncer's text, or JSON objects";
    log_rate_limit: i64 = Some("0"), reload, "lines of one kind written in a second, the rest is counted; 0 no limit";
    metrics_listen: MetricsAddress = Some(""), restart, "where /metrics is served: address:port or a path; empty nowhere";
    server_drain_timeout: Micros = Some("0"), reload,
        "seconds in which a server whose client left in mid-query may answer, to be used again; 0 it is closed at once";
    worker_threads: i64 = Some("0"), restart, "threads that serve clients; 0 one for each core";
}

impl Settings {
    /// SHOW CONFIG, in the order of the table.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        TABLE
            .iter()
            .map(|key| Row {
                key: key.name,
                value: self.shown(key.name),
                default: key.default,
                changeable: key.changeable,
            })
            .collect()
    }

    /// A value without the password that it may hold.
    pub(super) fn shown(&self, key: &str) -> Option<String> {
        let value = self.get(key).flatten();
        if key == "auth_ldap_options" { value.map(|text| ldap::masked(&text)) } else { value }
    }

    /// What a `[pgbouncer]` header does on reload: every changeable setting that has a default gets it back.
    pub fn reset_changeable(&mut self) {
        self.reset(|key| key.changeable);
    }

    /// Brings back the defaults of the settings that `which` picks; those whose default is NULL stay as they are.
    pub(crate) fn reset(&mut self, which: impl Fn(&Key) -> bool) {
        let defaults = Self::default();
        for key in TABLE.iter().filter(|key| key.default.is_some() && which(key)) {
            self.copy_from(key.name, &defaults);
        }
    }

    /// The query that checks a parked server: `None` no check, `Some("")` the empty query (written `<empty>`).
    #[must_use]
    pub fn check_query(&self) -> Option<&str> {
        match self.server_check_query.as_str() {
            "" => None,
            "<empty>" => Some(""),
            query => Some(query),
        }
    }
}

/// The line of the table for `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    TABLE.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_order_with_value_and_default() {
        let rows = Settings::default().rows();
        assert_eq!(rows.len(), TABLE.len());
        assert_eq!(rows.first().map(|row| row.key), Some("admin_users"));
        assert_eq!(rows.last().map(|row| row.key), Some("worker_threads"));
        let at = |name| rows.iter().position(|row| row.key == name).expect("a setting");
        assert_eq!(at("pool_idle_timeout"), at("pool_mode") + 1);
        assert_eq!(at("query_timeout"), at("pool_mode") + 2);
        for row in &rows {
            let value = row.value.as_deref();
            match row.key {
                "unix_socket_mode" => assert_eq!((value, row.default), (Some("511"), Some("0777"))),
                "verbose" => assert_eq!((value, row.default), (Some("0"), None)),
                _ => assert_eq!(value, row.default, "{}", row.key),
            }
        }
    }

    #[test]
    fn what_is_set_is_got() {
        let mut settings = Settings::default();
        for (key, value, printed) in [
            ("admin_users", "a, b", "a, b"),
            ("auth_user", "", ""),
            ("auth_type", "HBA", "hba"),
            ("log_stats", "5", "5"),
            ("max_client_conn", "0x10", "16"),
            ("max_packet_size", "10", "10"),
            ("query_timeout", "1.5", "1.5"),
            ("unix_socket_mode", "0700", "448"),
            ("verbose", "2", "2"),
            ("auth_dbname", "pgbouncer2", "pgbouncer2"),
        ] {
            assert_eq!(settings.set(key, value), Ok(()), "{key}");
            assert_eq!(settings.get(key), Some(Some(printed.to_owned())), "{key}");
        }
        let before = settings.clone();
        for (key, value, error, detail) in [
            ("Pool_mode", "session", SetError::Unknown, Some("unknown parameter: pgbouncer/Pool_mode")),
            ("pool_mode", "x", SetError::BadValue, None),
            ("log_stats", "on", SetError::BadValue, None),
            (
                "auth_dbname",
                "pgbouncer",
                SetError::ReservedAuthDbname,
                Some("cannot use the reserved \"pgbouncer\" database as an auth_dbname"),
            ),
        ] {
            assert_eq!(settings.set(key, value), Err(error), "{key}");
            assert_eq!(error.detail(key).as_deref(), detail, "{key}");
        }
        assert_eq!(settings, before);
        assert_eq!(settings.get("nosuch"), None);
        assert_eq!(settings.get("auth_file"), Some(None));
    }

    #[test]
    fn reset_spares_what_has_no_default_and_what_needs_a_restart() {
        let mut settings = Settings::default();
        for (key, value) in [("pool_mode", "statement"), ("auth_user", "a"), ("verbose", "1"), ("listen_port", "1")] {
            settings.set(key, value).expect("valid");
        }
        settings.reset_changeable();
        assert_eq!(settings.pool_mode, PoolMode::Session);
        assert_eq!(settings.auth_user.as_deref(), Some("a"));
        assert_eq!(settings.verbose, Some(1));
        assert_eq!(settings.listen_port, 1);
    }

    #[test]
    fn check_query_knows_empty_from_none() {
        let mut settings = Settings::default();
        assert_eq!(settings.check_query(), Some(""));
        settings.server_check_query.clear();
        assert_eq!(settings.check_query(), None);
        settings.server_check_query.push_str("select 1");
        assert_eq!(settings.check_query(), Some("select 1"));
    }
}
