//! Answers are taken apart again with a small reader, and compared with the rows published for each topic.

use super::*;

/// A field of a DataRow.
pub(crate) type Value = Option<String>;

/// `a|b|c`, with `~` for NULL.
pub(crate) fn texts(line: &str) -> Vec<Value> {
    line.split('|').map(|text| (text != "~").then(|| text.to_owned())).collect()
}

/// The messages of `bytes`; every length must be right.
pub(crate) fn messages(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while let [tag, a, b, c, d, tail @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (body, next) = tail.split_at(length - 4);
        found.push((*tag, body.to_vec()));
        rest = next;
    }
    assert!(rest.is_empty(), "bytes left over");
    found
}

/// The DataRows of a whole answer; the messages around them must be right, and each row as wide as announced.
pub(crate) fn rows(bytes: &[u8]) -> Vec<Vec<Value>> {
    let messages = messages(bytes);
    let (head, rest) = messages.split_first().expect("a RowDescription");
    let (last, data) = rest.split_last().expect("a CommandComplete");
    assert_eq!((head.0, last), (b'T', &(b'C', b"SHOW\0".to_vec())));
    let rows = data.iter().map(|(tag, body)| {
        assert_eq!((*tag, &body[..2]), (b'D', &head.1[..2]));
        fields(&body[2..])
    });
    let rows: Vec<_> = rows.collect();
    let width = usize::from(u16::from_be_bytes([head.1[0], head.1[1]]));
    assert!(rows.iter().all(|row| row.len() == width));
    rows
}

fn fields(mut rest: &[u8]) -> Vec<Value> {
    let mut fields = Vec::new();
    while let [a, b, c, d, tail @ ..] = rest {
        let length = i32::from_be_bytes([*a, *b, *c, *d]);
        let (value, next) = tail.split_at(usize::try_from(length).unwrap_or(0));
        fields.push((length >= 0).then(|| String::from_utf8(value.to_vec()).expect("text")));
        rest = next;
    }
    fields
}

fn shown(write: impl FnOnce(&mut Vec<u8>)) -> Vec<Vec<Value>> {
    let mut out = Vec::new();
    write(&mut out);
    rows(&out)
}

fn table_of(lines: &[&str]) -> Vec<Vec<Value>> {
    lines.iter().map(|line| texts(line)).collect()
}

/// The very bytes that PgBouncer 1.18 sent for three answers whose shape has not changed since.
#[test]
fn bytes_are_those_of_the_original() {
    let mut out = Vec::new();
    fake(&mut out, Fake::ClientEncoding);
    let original = b"T\0\0\0\x28\0\x01client_encoding\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
                     D\0\0\0\x0f\0\x01\0\0\0\x05UTF-8C\0\0\0\x09SHOW\0";
    assert_eq!(out, original);

    out.clear();
    dns_zones(&mut out, &[]);
    let original = b"T\0\0\0\x52\0\x03zonename\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
                     serial\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0\
                     count\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0C\0\0\0\x09SHOW\0";
    assert_eq!(out, original);

    out.clear();
    totals(&mut out, &Counters::default(), &Averages::default());
    let original = b"T\0\0\0\x35\0\x02name\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
                     value\0\0\0\0\0\0\0\0\0\x06\xa4\xff\xff\xff\xff\xff\xff\0\0";
    assert!(out.starts_with(original));
}

#[test]
fn pools_and_databases() {
    let pool = PoolRow {
        database: "p0".into(),
        user: "app".into(),
        cl_active: 2,
        cl_waiting: 1,
        sv_active: 2,
        maxwait: Micros(3_571_335),
        pool_mode: "transaction".into(),
        ..PoolRow::default()
    };
    let other = PoolRow { user: "aaa".into(), load_balance_hosts: Some("disable".into()), ..pool.clone() };
    let first = PoolRow { database: "a".into(), user: "z".into(), ..PoolRow::default() };
    let expected = table_of(&[
        "a|z|0|0|0|0|0|0|0|0|0|0|0|0|0||~",
        "p0|aaa|2|1|0|0|2|0|0|0|0|0|0|3|571335|transaction|disable",
        "p0|app|2|1|0|0|2|0|0|0|0|0|0|3|571335|transaction|~",
    ]);
    assert_eq!(shown(|out| pools(out, &[pool, other, first])), expected);

    let console = DatabaseRow {
        name: "pgbouncer".into(),
        port: 6432,
        database: "pgbouncer".into(),
        force_user: Some("pgbouncer".into()),
        pool_size: 2,
        server_lifetime: 3600,
        pool_mode: Some("statement".into()),
        current_client_connections: 1,
        ..DatabaseRow::default()
    };
    let entry = DatabaseRow {
        name: "p0".into(),
        host: Some("127.0.0.1".into()),
        port: 5432,
        database: "p0".into(),
        force_user: Some("app".into()),
        pool_size: 2,
        reserve_pool_size: 2,
        server_lifetime: i64::MAX,
        current_connections: 2,
        current_client_connections: 3,
        paused: true,
        ..DatabaseRow::default()
    };
    let expected = table_of(&[
        "p0|127.0.0.1|5432|p0|app|2|0|2|2147483647|~|~|0|2|0|3|1|0",
        "pgbouncer|~|6432|pgbouncer|pgbouncer|2|0|0|3600|statement|~|0|0|0|1|0|0",
    ]);
    assert_eq!(shown(|out| databases(out, &[console, entry])), expected);
}

#[test]
fn user_sizes_are_padded_text() {
    let batch = UserRow {
        name: "batch".into(),
        pool_size: Some(1),
        reserve_pool_size: Some(2),
        pool_mode: Some("transaction".into()),
        max_user_connections: 3,
        ..UserRow::default()
    };
    let app =
        UserRow { name: "app".into(), current_connections: 6, current_client_connections: 6, ..UserRow::default() };
    let expected = table_of(&["app|||~|0|6|0|6", "batch|        1|        2|transaction|3|0|0|0"]);
    assert_eq!(shown(|out| users(out, &[batch, app])), expected);
}

#[test]
fn statistics() {
    let totals_of = Counters {
        server_assignment_count: 2,
        xact_count: 3,
        query_count: 3,
        client_bytes: 48,
        server_bytes: 164,
        xact_time: 30512,
        query_time: 30391,
        wait_time: 8158,
        ..Counters::default()
    };
    let averages = Averages::between(Counters::default(), totals_of, Micros::from_secs(60));
    let row = StatsRow { database: "p0".into(), totals: totals_of, averages };
    let sums = "2|3|3|48|164|30512|30391|8158|0|0|0";
    let means = "0|0|0|0|2|10170|10130|4079|0|0|0";
    let one = std::slice::from_ref(&row);
    assert_eq!(shown(|out| stats(out, one)), [texts(&format!("p0|{sums}|{means}"))]);
    assert_eq!(shown(|out| stats_totals(out, one)), [texts(&format!("p0|{sums}"))]);
    assert_eq!(shown(|out| stats_averages(out, one)), [texts(&format!("p0|{means}"))]);

    let first = StatsRow { database: "P0".into(), ..row.clone() };
    let names: Vec<_> = shown(|out| stats(out, &[row.clone(), first])).into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(names, texts("P0|p0"));

    let all = shown(|out| totals(out, &totals_of, &row.averages));
    assert_eq!(all.len(), 22);
    assert_eq!(all[0], texts("total_server_assignment_count|2"));
    assert_eq!(all[4], texts("total_server_bytes|164"));
    assert_eq!(all[10], texts("total_ps_bind_count|0"));
    assert_eq!(all[16], texts("avg_xact_time|10170"));
    assert_eq!(all[21], texts("avg_ps_bind_count|0"));
}

#[test]
fn lists_in_order() {
    let lists_now = ListsSnapshot {
        databases: 1,
        users: 2,
        peers: 3,
        pools: 4,
        peer_pools: 5,
        free_clients: 6,
        used_clients: 7,
        login_clients: 8,
        free_servers: 9,
        used_servers: 10,
        dns_names: 11,
        dns_zones: 12,
        dns_queries: 13,
    };
    let expected = table_of(&[
        "databases|1",
        "users|2",
        "peers|3",
        "pools|4",
        "peer_pools|5",
        "free_clients|6",
        "used_clients|7",
        "login_clients|8",
        "free_servers|9",
        "used_servers|10",
        "dns_names|11",
        "dns_zones|12",
        "dns_queries|13",
        "dns_pending|0",
    ]);
    assert_eq!(shown(|out| lists(out, &lists_now)), expected);
}

#[test]
fn peers_and_memory() {
    let peer = |peer_id| PeerRow { peer_id, host: "/run/pgbouncer2".into(), port: 6432, pool_size: 20 };
    let expected = table_of(&["1|/run/pgbouncer2|6432|20", "2|/run/pgbouncer2|6432|20"]);
    assert_eq!(shown(|out| peers(out, &[peer(2), peer(1)])), expected);
    let pool = PeerPoolRow { peer_id: 2, cl_waiting_cancel_req: 1, sv_login: 1, ..PeerPoolRow::default() };
    assert_eq!(shown(|out| peer_pools(out, &[pool])), [texts("2|0|1|0|1")]);
    let cache = MemRow { name: "client_cache".into(), size: 1760, used: 10, free: 40, memtotal: 88000 };
    assert_eq!(shown(|out| mem(out, &[cache])), [texts("client_cache|1760|10|40|88000")]);
}

#[test]
fn configuration_and_names() {
    let setting = ConfigRow {
        key: "admin_users".into(),
        value: Some("marko".into()),
        default: Some(String::new()),
        changeable: true,
    };
    let logfile = ConfigRow { key: "job_name".into(), ..ConfigRow::default() };
    let expected = table_of(&["admin_users|marko||yes", "job_name|~|~|no"]);
    assert_eq!(shown(|out| config(out, &[setting, logfile])), expected);

    let addr = |text: &str| text.parse().expect("an address");
    let host = DnsHostRow { hostname: "db".into(), ttl: 14, addrs: vec![addr("127.0.0.1"), addr("::1")] };
    let many = DnsHostRow { hostname: "many".into(), ttl: u64::MAX, addrs: vec![addr("10.0.0.1"); 200] };
    let hosts = shown(|out| dns_hosts(out, &[host, many]));
    assert_eq!(hosts[0], texts("db|14|127.0.0.1:0,[::1]:0"));
    let list = hosts[1][2].clone().expect("addresses");
    assert!(list.len() > 950 && list.len() <= MAX_ADDRESSES && list.ends_with("10.0.0.1:0"));
    let zone = DnsZoneRow { zonename: "example.com".into(), serial: 2_026_050_801, count: 3 };
    assert_eq!(shown(|out| dns_zones(out, &[zone])), [texts("example.com|2026050801|3")]);
}

#[test]
fn file_descriptors() {
    let client = FdRow {
        fd: 13,
        task: FdTask::Client,
        user: Some("app".into()),
        database: Some("p0".into()),
        addr: "127.0.0.1".into(),
        port: 51602,
        cancel: 5_428_931_563_195_870_182,
        link: 14,
        client_encoding: Some("UTF8".into()),
        std_strings: Some("on".into()),
        datestyle: Some("ISO, MDY".into()),
        timezone: Some("Etc/UTC".into()),
        ..FdRow::default()
    };
    let listener = FdRow { fd: 6, addr: "127.0.0.1".into(), port: 6432, ..FdRow::default() };
    let keyed = FdRow { scram_client_key: Some(vec![0, 0xab]), password: Some("x".into()), ..listener.clone() };
    let expected = table_of(&[
        "6|pooler|~|~|127.0.0.1|6432|0|0|~|~|~|~|~|~|~",
        "13|client|app|p0|127.0.0.1|51602|5428931563195870182|14|UTF8|on|ISO, MDY|Etc/UTC|~|~|~",
        "6|pooler|~|~|127.0.0.1|6432|0|0|~|~|~|~|x|\\x00ab|~",
    ]);
    assert_eq!(shown(|out| fds(out, [listener.clone(), client.clone(), keyed.clone()])), expected);
}

#[test]
fn small_answers() {
    assert_eq!(shown(version), [texts("PgBouncer 1.25.2")]);
    assert_eq!(shown(|out| state(out, State::Active)), table_of(&["active|yes", "paused|no", "suspended|no"]));
    assert_eq!(shown(|out| state(out, State::Suspended)), table_of(&["active|no", "paused|no", "suspended|yes"]));
    for parameter in Fake::ALL {
        assert_eq!(shown(|out| fake(out, parameter)), [texts(parameter.value())]);
    }
}

#[test]
fn help_is_a_notice() {
    let mut out = Vec::new();
    help(&mut out);
    let messages = messages(&out);
    assert_eq!(messages[1], (b'C', b"SHOW\0".to_vec()));
    let (tag, body) = &messages[0];
    assert_eq!(*tag, b'N');
    let body = String::from_utf8(body.clone()).expect("text");
    let start = "SNOTICE\0C00000\0MConsole usage\0D\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
                 \tSHOW PEERS|PEER_POOLS\n\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\tSHOW DNS_HOSTS|DNS_ZONES\n\
                 \tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\tSET key = arg\n\tRELOAD\n\tPAUSE [<db>]\n";
    assert!(body.starts_with(start), "{body:?}");
    assert!(body.ends_with("\n\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n\tWAIT_CLOSE [<db>]\0\0"), "{body:?}");
    assert_eq!(body.matches("\n\t").count(), 18);
}
