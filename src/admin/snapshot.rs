//! A plain picture of the daemon at one moment, in the rows that SHOW needs.
//!
//! The shell copies it together, [`super::show`] puts it in order and into words. Rows may come in any order, except that
//! sockets of one list keep theirs. Times of day are unix seconds and become text when shown.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::stats::{Averages, Counters};
use crate::time::Micros;
use crate::wire::startup::Replication;

/// One row of SHOW POOLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolRow {
    pub database: String,
    pub user: String,
    /// Logged in, whether linked or not.
    pub cl_active: u64,
    pub cl_waiting: u64,
    pub cl_active_cancel_req: u64,
    pub cl_waiting_cancel_req: u64,
    pub sv_active: u64,
    pub sv_active_cancel: u64,
    pub sv_being_canceled: u64,
    pub sv_idle: u64,
    pub sv_used: u64,
    pub sv_tested: u64,
    pub sv_login: u64,
    /// How long the first queued client has been waiting.
    pub maxwait: Micros,
    pub pool_mode: String,
    /// `None` unless the entry's host is a comma list.
    pub load_balance_hosts: Option<String>,
}

/// One row of SHOW DATABASES; limits are the effective ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseRow {
    pub name: String,
    pub host: Option<String>,
    pub port: u16,
    /// The name on the server.
    pub database: String,
    pub force_user: Option<String>,
    pub pool_size: i64,
    pub min_pool_size: i64,
    pub reserve_pool_size: i64,
    /// Seconds.
    pub server_lifetime: i64,
    pub pool_mode: Option<String>,
    pub load_balance_hosts: Option<String>,
    pub max_connections: i64,
    pub current_connections: u64,
    pub max_client_connections: i64,
    pub current_client_connections: u64,
    pub paused: bool,
    pub disabled: bool,
}

/// One row of SHOW USERS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRow {
    pub name: String,
    pub pool_size: Option<i64>,
    pub reserve_pool_size: Option<i64>,
    pub pool_mode: Option<String>,
    pub max_user_connections: i64,
    pub current_connections: u64,
    pub max_user_client_connections: i64,
    pub current_client_connections: u64,
}

/// Where a socket belongs; also the order in which sockets are shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Home {
    Pool { database: Arc<str>, user: Arc<str> },
    PeerPool { peer_id: u16 },
    None,
}

/// The list a socket is in; the declared order is the order of rows within a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketState {
    ClActive,
    ClWaiting,
    ClActiveCancel,
    ClWaitingCancel,
    SvActive,
    /// Active for a client who has left.
    SvDraining,
    SvIdle,
    SvUsed,
    SvTested,
    SvLogin,
    SvActiveCancel,
    SvBeingCanceled,
    /// Not logged in yet.
    ClLogin,
}

impl SocketState {
    #[must_use]
    pub const fn is_client(self) -> bool {
        matches!(self, Self::ClActive | Self::ClWaiting | Self::ClActiveCancel | Self::ClWaitingCancel | Self::ClLogin)
    }
}

/// One end of a socket as SHOW prints it, without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(IpAddr),
    Unix,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(ip) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// How far a socket's input has come, bytes from the start of its buffer. A socket whose console query is being answered
/// holds that query: [`Buffers::holding`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// End of what has been received.
    pub recv_pos: usize,
    /// End of what has been parsed.
    pub pkt_pos: usize,
    /// Still missing of the message being handled.
    pub pkt_remain: usize,
    /// End of what has been sent on.
    pub send_pos: usize,
}

impl Buffers {
    /// `bytes` received and not looked at yet.
    #[must_use]
    pub const fn holding(bytes: usize) -> Self {
        Self { recv_pos: bytes, pkt_pos: 0, pkt_remain: 0, send_pos: 0 }
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.recv_pos == self.send_pos
    }
}

/// One client or server connection: a row of SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketRow {
    pub home: Home,
    pub state: SocketState,
    /// Login user of a client, user used towards a server; `None` while unknown.
    pub user: Option<Arc<str>>,
    pub replication: Replication,
    pub addr: Address,
    pub port: u16,
    pub local_addr: Address,
    pub local_port: u16,
    /// Unix seconds.
    pub connect_time: i64,
    /// Unix seconds.
    pub request_time: i64,
    /// Since the current query started; zero when there is none.
    pub wait: Micros,
    pub close_needed: bool,
    /// A number that no other socket shown has.
    pub ptr: u64,
    /// The `ptr` of the counterpart while linked.
    pub link: Option<u64>,
    pub remote_pid: i32,
    /// Such as `TLSv1.3/TLS_AES_256_GCM_SHA384`; empty without TLS.
    pub tls: String,
    pub application_name: String,
    pub prepared_statements: u64,
    /// Never given twice; shown as [`shown_id`].
    pub id: u64,
    pub buffers: Buffers,
    /// For SHOW FDS alone.
    pub handover: Option<Box<Handover>>,
}

/// What SHOW FDS says of a socket beyond the other views.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Handover {
    /// Unset while there is no socket yet.
    pub fd: Option<i32>,
    /// The cancel key as a big-endian number.
    pub cancel: i64,
    pub client_encoding: Option<String>,
    pub std_strings: Option<String>,
    pub datestyle: Option<String>,
    pub timezone: Option<String>,
    /// Client and server key of the SCRAM login with which the pool's servers are logged in.
    pub scram_keys: Option<(Vec<u8>, Vec<u8>)>,
    /// The secret of a user who is in no file.
    pub password: Option<Vec<u8>>,
}

/// Without the secrets.
impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover").field("fd", &self.fd).finish_non_exhaustive()
    }
}

/// What the column `id` shows of a socket's number: the column is an int4, and numbers may outgrow it in a busy month.
/// KILL_CLIENT compares with this.
#[must_use]
pub const fn shown_id(id: u64) -> u64 {
    id & 0x7fff_ffff
}

/// One database entry in SHOW STATS and its two halves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsRow {
    pub database: String,
    pub totals: Counters,
    pub averages: Averages,
}

/// The counters of one pool, now and at the older snapshot.
#[derive(Clone, Copy, Debug)]
pub struct PoolStats<'a> {
    pub database: &'a str,
    pub now: Counters,
    pub older: Counters,
}

/// The entries that `pools` belong to, by name. `span` is the time since the older snapshots.
#[must_use]
pub fn stats_rows<'a>(pools: impl IntoIterator<Item = PoolStats<'a>>, span: Micros) -> Vec<StatsRow> {
    let mut entries = BTreeMap::<&str, (Counters, Counters)>::new();
    for pool in pools {
        let (now, older) = entries.entry(pool.database).or_default();
        *now += pool.now;
        *older += pool.older;
    }
    let row = |(database, (now, older)): (&str, (Counters, Counters))| StatsRow {
        database: database.to_owned(),
        totals: now,
        averages: Averages::between(older, now, span),
    };
    entries.into_iter().map(row).collect()
}

/// All pools together, for SHOW TOTALS and the log line.
#[must_use]
pub fn stats_total<'a>(pools: impl IntoIterator<Item = PoolStats<'a>>, span: Micros) -> (Counters, Averages) {
    let (mut now, mut older) = (Counters::default(), Counters::default());
    for pool in pools {
        now += pool.now;
        older += pool.older;
    }
    (now, Averages::between(older, now, span))
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerRow {
    pub peer_id: u16,
    pub host: String,
    pub port: u16,
    /// Effective.
    pub pool_size: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerPoolRow {
    pub peer_id: u16,
    pub cl_active_cancel_req: u64,
    pub cl_waiting_cancel_req: u64,
    pub sv_active_cancel: u64,
    pub sv_login: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsHostRow {
    pub hostname: String,
    /// Seconds until the next lookup.
    pub ttl: u64,
    /// Without ports.
    pub addrs: Vec<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsZoneRow {
    pub zonename: String,
    pub serial: u32,
    /// Host names in the zone.
    pub count: u64,
}

/// SHOW LISTS. Objects now existing, the console's included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListsSnapshot {
    pub databases: u64,
    pub users: u64,
    pub peers: u64,
    pub pools: u64,
    pub peer_pools: u64,
    pub free_clients: u64,
    pub used_clients: u64,
    pub login_clients: u64,
    pub free_servers: u64,
    pub used_servers: u64,
    pub dns_names: u64,
    pub dns_zones: u64,
    pub dns_queries: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemRow {
    pub name: String,
    /// Of one object, bytes.
    pub size: u64,
    pub used: u64,
    pub free: u64,
    /// Bytes.
    pub memtotal: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigRow {
    pub key: String,
    pub value: Option<String>,
    pub default: Option<String>,
    pub changeable: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FdTask {
    /// A listening socket.
    #[default]
    Pooler,
    Client,
    Server,
}

/// One row of SHOW FDS, in the order they are to be sent. It holds secrets: no `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FdRow {
    pub fd: i32,
    pub task: FdTask,
    pub user: Option<String>,
    pub database: Option<String>,
    /// Peer address, or `unix`.
    pub addr: String,
    pub port: u16,
    /// The cancel key as a big-endian number.
    pub cancel: i64,
    /// Descriptor of the linked socket, or 0.
    pub link: i32,
    pub client_encoding: Option<String>,
    pub std_strings: Option<String>,
    pub datestyle: Option<String>,
    pub timezone: Option<String>,
    /// Of users not listed in a file.
    pub password: Option<Vec<u8>>,
    pub scram_client_key: Option<Vec<u8>>,
    pub scram_server_key: Option<Vec<u8>>,
}

/// SHOW STATE: of the whole pooler; single databases paused do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Active,
    Paused,
    Suspended,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_the_sum_of_its_pools() {
        let bytes = |client_bytes| Counters { client_bytes, ..Counters::default() };
        let pool = |database, now, older| PoolStats { database, now: bytes(now), older: bytes(older) };
        let pools = [pool("b", 30, 10), pool("a", 5, 5), pool("b", 70, 10)];
        let rows = stats_rows(pools, Micros::from_secs(2));
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.database.as_str(), row.totals.client_bytes, row.averages.figures().client_bytes))
            .collect();
        assert_eq!(shown, [("a", 5, 0), ("b", 100, 40)]);
        let (now, averages) = stats_total(pools, Micros::from_secs(2));
        assert_eq!((now.client_bytes, averages.figures().client_bytes), (105, 40));
    }

    #[test]
    fn a_shown_id_fits_its_column() {
        assert_eq!(shown_id(25), 25);
        assert!(i32::try_from(shown_id(u64::MAX)).is_ok());
    }
}
