//! The columns of every SHOW topic: a contract with exporters, checked against the fixture in `tests/fixtures`.

use crate::admin::command::Topic;

/// The SQL type a column is announced as; values are text in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Int4,
    Int8,
    Numeric,
    Bytea,
}

impl Kind {
    #[must_use]
    pub const fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Int4 => 23,
            Self::Int8 => 20,
            Self::Numeric => 1700,
            Self::Bytea => 17,
        }
    }

    #[must_use]
    pub const fn typlen(self) -> i16 {
        match self {
            Self::Int4 => 4,
            Self::Int8 => 8,
            Self::Text | Self::Numeric | Self::Bytea => -1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

const fn int4(name: &'static str) -> Column {
    Column { name, kind: Kind::Int4 }
}

const fn int8(name: &'static str) -> Column {
    Column { name, kind: Kind::Int8 }
}

const fn numeric(name: &'static str) -> Column {
    Column { name, kind: Kind::Numeric }
}

const fn bytea(name: &'static str) -> Column {
    Column { name, kind: Kind::Bytea }
}

/// The columns of a topic; none for HELP, which answers with a notice.
#[must_use]
pub const fn of(topic: Topic) -> &'static [Column] {
    match topic {
        Topic::Clients | Topic::Servers => SOCKETS.split_at(SOCKETS.len() - BUFFER_COLUMNS).0,
        Topic::Sockets | Topic::ActiveSockets => &SOCKETS,
        Topic::Config => &CONFIG,
        Topic::Databases => &DATABASES,
        Topic::Fds => &FDS,
        Topic::Help => &[],
        Topic::Lists => &LISTS,
        Topic::Peers => &PEERS,
        Topic::PeerPools => &PEER_POOLS,
        Topic::Pools => &POOLS,
        Topic::Stats => &STATS,
        Topic::StatsTotals => &STATS_TOTALS,
        Topic::StatsAverages => &STATS_AVERAGES,
        Topic::Users => &USERS,
        Topic::Version => &VERSION,
        Topic::Totals => &TOTALS,
        Topic::Mem => &MEM,
        Topic::DnsHosts => &DNS_HOSTS,
        Topic::DnsZones => &DNS_ZONES,
        Topic::State => &STATE,
        Topic::Waits => &WAITS,
        Topic::Latency => &LATENCY,
        Topic::Advice => &ADVICE,
    }
}

/// How many columns at the end of [`SOCKETS`] are about buffers and missing from CLIENTS and SERVERS.
const BUFFER_COLUMNS: usize = 7;

const SOCKETS: [Column; 28] = [
    text("type"),
    text("user"),
    text("database"),
    text("replication"),
    text("state"),
    text("addr"),
    int4("port"),
    text("local_addr"),
    int4("local_port"),
    text("connect_time"),
    text("request_time"),
    int4("wait"),
    int4("wait_us"),
    int4("close_needed"),
    text("ptr"),
    text("link"),
    int4("remote_pid"),
    text("tls"),
    text("application_name"),
    int4("prepared_statements"),
    int4("id"),
    int4("recv_pos"),
    int4("pkt_pos"),
    int4("pkt_remain"),
    int4("send_pos"),
    int4("send_remain"),
    int4("pkt_avail"),
    int4("send_avail"),
];

const CONFIG: [Column; 4] = [text("key"), text("value"), text("default"), text("changeable")];

const DATABASES: [Column; 17] = [
    text("name"),
    text("host"),
    int4("port"),
    text("database"),
    text("force_user"),
    int4("pool_size"),
    int4("min_pool_size"),
    int4("reserve_pool_size"),
    int4("server_lifetime"),
    text("pool_mode"),
    text("load_balance_hosts"),
    int4("max_connections"),
    int4("current_connections"),
    int4("max_client_connections"),
    int4("current_client_connections"),
    int4("paused"),
    int4("disabled"),
];

const FDS: [Column; 15] = [
    int4("fd"),
    text("task"),
    text("user"),
    text("database"),
    text("addr"),
    int4("port"),
    int8("cancel"),
    int4("link"),
    text("client_encoding"),
    text("std_strings"),
    text("datestyle"),
    text("timezone"),
    text("password"),
    bytea("scram_client_key"),
    bytea("scram_server_key"),
];

const LISTS: [Column; 2] = [text("list"), int4("items")];

const PEERS: [Column; 4] = [int4("peer_id"), text("host"), int4("port"), int4("pool_size")];

const PEER_POOLS: [Column; 5] = [
    int4("peer_id"),
    int4("cl_active_cancel_req"),
    int4("cl_waiting_cancel_req"),
    int4("sv_active_cancel"),
    int4("sv_login"),
];

const POOLS: [Column; 17] = [
    text("database"),
    text("user"),
    int4("cl_active"),
    int4("cl_waiting"),
    int4("cl_active_cancel_req"),
    int4("cl_waiting_cancel_req"),
    int4("sv_active"),
    int4("sv_active_cancel"),
    int4("sv_being_canceled"),
    int4("sv_idle"),
    int4("sv_used"),
    int4("sv_tested"),
    int4("sv_login"),
    int4("maxwait"),
    int4("maxwait_us"),
    text("pool_mode"),
    text("load_balance_hosts"),
];

const STATS: [Column; 23] = [
    text("database"),
    numeric("total_server_assignment_count"),
    numeric("total_xact_count"),
    numeric("total_query_count"),
    numeric("total_received"),
    numeric("total_sent"),
    numeric("total_xact_time"),
    numeric("total_query_time"),
    numeric("total_wait_time"),
    numeric("total_client_parse_count"),
    numeric("total_server_parse_count"),
    numeric("total_bind_count"),
    numeric("avg_server_assignment_count"),
    numeric("avg_xact_count"),
    numeric("avg_query_count"),
    numeric("avg_recv"),
    numeric("avg_sent"),
    numeric("avg_xact_time"),
    numeric("avg_query_time"),
    numeric("avg_wait_time"),
    numeric("avg_client_parse_count"),
    numeric("avg_server_parse_count"),
    numeric("avg_bind_count"),
];

const STATS_TOTALS: [Column; 12] = [
    text("database"),
    numeric("server_assignment_count"),
    numeric("xact_count"),
    numeric("query_count"),
    numeric("bytes_received"),
    numeric("bytes_sent"),
    numeric("xact_time"),
    numeric("query_time"),
    numeric("wait_time"),
    numeric("client_parse_count"),
    numeric("server_parse_count"),
    numeric("bind_count"),
];

const STATS_AVERAGES: [Column; 12] = [
    text("database"),
    numeric("server_assignment_count"),
    numeric("xact_count"),
    numeric("query_count"),
    numeric("bytes_received"),
    numeric("bytes_sent"),
    numeric("xact_time"),
    numeric("query_time"),
    numeric("wait_time"),
    numeric("avg_client_parse_count"),
    numeric("avg_server_parse_count"),
    numeric("avg_bind_count"),
];

const USERS: [Column; 8] = [
    text("name"),
    text("pool_size"),
    text("reserve_pool_size"),
    text("pool_mode"),
    int4("max_user_connections"),
    int4("current_connections"),
    int4("max_user_client_connections"),
    int4("current_client_connections"),
];

const VERSION: [Column; 1] = [text("version")];

const TOTALS: [Column; 2] = [text("name"), numeric("value")];

const MEM: [Column; 5] = [text("name"), int4("size"), int4("used"), int4("free"), int4("memtotal")];

const DNS_HOSTS: [Column; 3] = [text("hostname"), int8("ttl"), text("addrs")];

const DNS_ZONES: [Column; 3] = [text("zonename"), int8("serial"), int4("count")];

const STATE: [Column; 2] = [text("key"), text("value")];

const WAITS: [Column; 11] = [
    text("database"),
    text("user"),
    text("cause"),
    text("kind"),
    int4("position"),
    int4("wait"),
    int4("wait_us"),
    text("addr"),
    int4("port"),
    text("application_name"),
    int4("id"),
];

const LATENCY: [Column; 14] = [
    text("database"),
    text("user"),
    int8("wait_count"),
    int8("wait_p50"),
    int8("wait_p95"),
    int8("wait_p99"),
    int8("query_count"),
    int8("query_p50"),
    int8("query_p95"),
    int8("query_p99"),
    int8("xact_count"),
    int8("xact_p50"),
    int8("xact_p95"),
    int8("xact_p99"),
];

const ADVICE: [Column; 5] = [text("severity"), text("database"), text("user"), text("setting"), text("advice")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_topics_are_as_published() {
        let fixture = include_str!("../../../tests/fixtures/show_columns.json");
        let published: serde_json::Value = serde_json::from_str(fixture).expect("the fixture is JSON");
        let published = published.as_object().expect("a map of topics");
        assert_eq!(published.len() + Topic::OURS.len(), Topic::ALL.len());
        for topic in Topic::ALL.into_iter().filter(|topic| !Topic::OURS.contains(topic)) {
            let ours: Vec<_> = of(topic)
                .iter()
                .map(|column| serde_json::json!([column.name, column.kind.oid(), column.kind.typlen()]))
                .collect();
            assert_eq!(published.get(topic.name()), Some(&serde_json::Value::Array(ours)), "{topic:?}");
        }
    }
}
