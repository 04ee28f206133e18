//! SHOW: from rows of a snapshot to RowDescription, DataRows and the tag `SHOW`. ReadyForQuery is the caller's.
//!
//! Rows are put in their published order here, so that a snapshot may be copied together in any order.

pub mod columns;
mod insight;
pub mod row;
mod sockets;

use std::fmt::Write;

use self::columns::{Column, Kind};
pub use self::insight::{advice, latency, waits};
pub use self::sockets::{AT_A_TIME, Shell, active_sockets, clients, fds_of, give_way_between, servers, sockets};
use super::command::{Fake, Topic};
use super::handover::hex;
use super::reply;
use super::snapshot::{
    ConfigRow, DatabaseRow, DnsHostRow, DnsZoneRow, FdRow, FdTask, ListsSnapshot, MemRow, PeerPoolRow, PeerRow,
    PoolRow, State, StatsRow, UserRow,
};
use crate::stats::{Averages, Counters};
use crate::time::Micros;

/// What the program calls itself where scripts look for the version they know.
pub const VERSION: &str = "PgBouncer 1.25.2";

const HELP: &str = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\tSHOW PEERS|PEER_POOLS\n\tSHOW \
    FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\tSHOW DNS_HOSTS|DNS_ZONES\n\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\
    \n\tSET key = arg\n\tRELOAD\n\tPAUSE [<db>]\n\tRESUME [<db>]\n\tDISABLE <db>\n\tENABLE <db>\n\tRECONNECT [<db>]\n\tKILL \
    [<db>]\n\tKILL_CLIENT <client_id>\n\tSUSPEND\n\tSHUTDOWN\n\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n\tWAIT_CLOSE \
    [<db>]";

/// Where the list of addresses of a host is cut, bytes.
const MAX_ADDRESSES: usize = 1000;

/// The names of the counters in SHOW TOTALS, in the order of [`Counters::in_order`].
const TOTALS: [&str; 11] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
];

/// Writes a whole answer: `rows` in the order given.
fn table<R>(
    out: &mut Vec<u8>,
    topic: Topic,
    rows: impl IntoIterator<Item = R>,
    fill: impl Fn(&mut row::Fields<'_>, R),
) {
    row::description(out, topic);
    for source in rows {
        row::data(out, columns::of(topic).len(), |fields| fill(fields, source));
    }
    reply::complete(out, "SHOW");
}

fn sorted<'a, R, K: Ord>(rows: &'a [R], key: impl Fn(&'a R) -> K) -> Vec<&'a R> {
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by_key(|row| key(row));
    rows
}

/// SHOW POOLS, by database and user.
pub fn pools(out: &mut Vec<u8>, rows: &[PoolRow]) {
    let rows = sorted(rows, |row| (&row.database, &row.user));
    table(out, Topic::Pools, rows, |fields, row| {
        fields.text(&row.database).text(&row.user);
        fields.int4(row.cl_active).int4(row.cl_waiting).int4(row.cl_active_cancel_req).int4(row.cl_waiting_cancel_req);
        fields.int4(row.sv_active).int4(row.sv_active_cancel).int4(row.sv_being_canceled).int4(row.sv_idle);
        fields.int4(row.sv_used).int4(row.sv_tested).int4(row.sv_login);
        let Micros(maxwait) = row.maxwait;
        fields.int4(row.maxwait.secs()).int4(maxwait % 1_000_000);
        fields.text(&row.pool_mode).maybe(row.load_balance_hosts.as_deref());
    });
}

/// SHOW DATABASES, by name.
pub fn databases(out: &mut Vec<u8>, rows: &[DatabaseRow]) {
    table(out, Topic::Databases, sorted(rows, |row| &row.name), |fields, row| {
        fields.text(&row.name).maybe(row.host.as_deref()).int4(row.port).text(&row.database);
        fields.maybe(row.force_user.as_deref());
        fields.int4(row.pool_size).int4(row.min_pool_size).int4(row.reserve_pool_size).int4(row.server_lifetime);
        fields.maybe(row.pool_mode.as_deref()).maybe(row.load_balance_hosts.as_deref());
        fields.int4(row.max_connections).int4(row.current_connections);
        fields.int4(row.max_client_connections).int4(row.current_client_connections);
        fields.flag(row.paused).flag(row.disabled);
    });
}

/// SHOW USERS, by name. The two sizes are text: empty without an override, else right-aligned.
pub fn users(out: &mut Vec<u8>, rows: &[UserRow]) {
    let size = |size: Option<i64>| size.map(|size| format!("{size:>9}")).unwrap_or_default();
    table(out, Topic::Users, sorted(rows, |row| &row.name), |fields, row| {
        fields.text(&row.name).text(&size(row.pool_size)).text(&size(row.reserve_pool_size));
        fields.maybe(row.pool_mode.as_deref());
        fields.int4(row.max_user_connections).int4(row.current_connections);
        fields.int4(row.max_user_client_connections).int4(row.current_client_connections);
    });
}

fn counters(fields: &mut row::Fields<'_>, counters: &Counters) {
    for value in counters.in_order() {
        fields.display(value);
    }
}

/// SHOW STATS, by database.
pub fn stats(out: &mut Vec<u8>, rows: &[StatsRow]) {
    table(out, Topic::Stats, sorted(rows, |row| &row.database), |fields, row| {
        fields.text(&row.database);
        counters(fields, &row.totals);
        counters(fields, row.averages.figures());
    });
}

/// SHOW STATS_TOTALS, by database.
pub fn stats_totals(out: &mut Vec<u8>, rows: &[StatsRow]) {
    table(out, Topic::StatsTotals, sorted(rows, |row| &row.database), |fields, row| {
        counters(fields.text(&row.database), &row.totals);
    });
}

/// SHOW STATS_AVERAGES, by database.
pub fn stats_averages(out: &mut Vec<u8>, rows: &[StatsRow]) {
    table(out, Topic::StatsAverages, sorted(rows, |row| &row.database), |fields, row| {
        counters(fields.text(&row.database), row.averages.figures());
    });
}

/// SHOW TOTALS.
pub fn totals(out: &mut Vec<u8>, totals: &Counters, averages: &Averages) {
    let rows = [("total_", totals), ("avg_", averages.figures())];
    let rows = rows.into_iter().flat_map(|(prefix, counters)| {
        TOTALS.into_iter().zip(counters.in_order()).map(move |(name, value)| (format!("{prefix}{name}"), value))
    });
    table(out, Topic::Totals, rows, |fields, (name, value)| {
        fields.text(&name).display(value);
    });
}

/// SHOW LISTS.
pub fn lists(out: &mut Vec<u8>, lists: &ListsSnapshot) {
    let rows = [
        ("databases", lists.databases),
        ("users", lists.users),
        ("peers", lists.peers),
        ("pools", lists.pools),
        ("peer_pools", lists.peer_pools),
        ("free_clients", lists.free_clients),
        ("used_clients", lists.used_clients),
        ("login_clients", lists.login_clients),
        ("free_servers", lists.free_servers),
        ("used_servers", lists.used_servers),
        ("dns_names", lists.dns_names),
        ("dns_zones", lists.dns_zones),
        ("dns_queries", lists.dns_queries),
        // PgBouncer has long had nothing to count here, and exporters expect the row
        ("dns_pending", 0),
    ];
    table(out, Topic::Lists, rows, |fields, (name, items)| {
        fields.text(name).int4(items);
    });
}

/// SHOW PEERS, by id.
pub fn peers(out: &mut Vec<u8>, rows: &[PeerRow]) {
    table(out, Topic::Peers, sorted(rows, |row| row.peer_id), |fields, row| {
        fields.int4(row.peer_id).text(&row.host).int4(row.port).int4(row.pool_size);
    });
}

/// `SHOW PEER_POOLS`, by id.
pub fn peer_pools(out: &mut Vec<u8>, rows: &[PeerPoolRow]) {
    table(out, Topic::PeerPools, sorted(rows, |row| row.peer_id), |fields, row| {
        fields.int4(row.peer_id).int4(row.cl_active_cancel_req).int4(row.cl_waiting_cancel_req);
        fields.int4(row.sv_active_cancel).int4(row.sv_login);
    });
}

/// SHOW MEM, in the order given.
pub fn mem(out: &mut Vec<u8>, rows: &[MemRow]) {
    table(out, Topic::Mem, rows, |fields, row| {
        fields.text(&row.name).int4(row.size).int4(row.used).int4(row.free).int4(row.memtotal);
    });
}

/// SHOW CONFIG, in the order given, which is the order of the settings table.
pub fn config(out: &mut Vec<u8>, rows: &[ConfigRow]) {
    table(out, Topic::Config, rows, |fields, row| {
        fields.text(&row.key).maybe(row.value.as_deref()).maybe(row.default.as_deref());
        fields.text(if row.changeable { "yes" } else { "no" });
    });
}

/// `SHOW DNS_HOSTS`, in the order given.
pub fn dns_hosts(out: &mut Vec<u8>, rows: &[DnsHostRow]) {
    table(out, Topic::DnsHosts, rows, |fields, row| {
        fields.text(&row.hostname).int8(row.ttl).text(&addresses(row));
    });
}

fn addresses(row: &DnsHostRow) -> String {
    let mut text = String::new();
    for addr in &row.addrs {
        let separator = if text.is_empty() { "" } else { "," };
        let whole = text.len();
        write!(text, "{separator}{}", std::net::SocketAddr::new(*addr, 0)).expect("a String takes everything");
        if text.len() > MAX_ADDRESSES {
            text.truncate(whole);
            break;
        }
    }
    text
}

/// `SHOW DNS_ZONES`, in the order given.
pub fn dns_zones(out: &mut Vec<u8>, rows: &[DnsZoneRow]) {
    table(out, Topic::DnsZones, rows, |fields, row| {
        fields.text(&row.zonename).int8(row.serial).int4(row.count);
    });
}

/// SHOW FDS, in the order given. To send each row with its descriptor use [`fds_head`], [`fds_row`] and
/// [`reply::complete`] instead.
pub fn fds(out: &mut Vec<u8>, rows: impl IntoIterator<Item = FdRow>) {
    fds_head(out);
    for row in rows {
        fds_row(out, &row);
    }
    reply::complete(out, "SHOW");
}

/// The RowDescription of SHOW FDS.
pub fn fds_head(out: &mut Vec<u8>) {
    row::description(out, Topic::Fds);
}

/// One `DataRow` of SHOW FDS.
pub fn fds_row(out: &mut Vec<u8>, row: &FdRow) {
    let task = match row.task {
        FdTask::Pooler => "pooler",
        FdTask::Client => "client",
        FdTask::Server => "server",
    };
    let bytea = |key: Option<&Vec<u8>>| key.map(|key| hex(key));
    row::data(out, columns::of(Topic::Fds).len(), |fields| {
        fields.int4(row.fd).text(task).maybe(row.user.as_deref()).maybe(row.database.as_deref());
        fields.text(&row.addr).int4(row.port).int8(row.cancel).int4(row.link);
        fields.maybe(row.client_encoding.as_deref()).maybe(row.std_strings.as_deref());
        fields.maybe(row.datestyle.as_deref()).maybe(row.timezone.as_deref()).bytes(row.password.as_deref());
        fields.maybe(bytea(row.scram_client_key.as_ref()).as_deref());
        fields.maybe(bytea(row.scram_server_key.as_ref()).as_deref());
    });
}

/// SHOW HELP: a notice, no rows.
pub fn help(out: &mut Vec<u8>) {
    reply::notice(out, "Console usage", Some(HELP));
    reply::complete(out, "SHOW");
}

/// SHOW VERSION.
pub fn version(out: &mut Vec<u8>) {
    table(out, Topic::Version, [VERSION], |fields, version| {
        fields.text(version);
    });
}

/// SHOW STATE.
pub fn state(out: &mut Vec<u8>, state: State) {
    let rows = [("active", State::Active), ("paused", State::Paused), ("suspended", State::Suspended)];
    table(out, Topic::State, rows, |fields, (key, this)| {
        fields.text(key).text(if this == state { "yes" } else { "no" });
    });
}

/// SHOW of a parameter that the console only pretends to have.
pub fn fake(out: &mut Vec<u8>, fake: Fake) {
    row::columns_description(out, std::iter::once(Column { name: fake.name(), kind: Kind::Text }), |_| 0);
    row::data(out, 1, |fields| {
        fields.text(fake.value());
    });
    reply::complete(out, "SHOW");
}

#[cfg(test)]
pub(super) mod tests;
