//! The reference of the settings: docs/settings.md and the manual page pgbouncer.ini(5), made from the tables in
//! `config::keys` and `config::connstr` and from the texts below.
//!
//! The test fails when a file is not what the tables say; `UPDATE=1 cargo test --test reference` writes both anew.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use pgusher::config::connstr::{DATABASE_KEYS, PEER_KEYS, USER_KEYS, parse_database, parse_peer, parse_user};
use pgusher::config::keys::{Key, TABLE};

/// Settings that PgBouncer does not have.
const OURS: [&str; 7] = [
    "cancel_on_disconnect",
    "console_probes",
    "log_format",
    "log_rate_limit",
    "metrics_listen",
    "server_drain_timeout",
    "worker_threads",
];

/// Key, an example, and what it means: lines of `[databases]`.
const DATABASES: &[(&str, &str, &str)] = &[
    ("dbname", "db", "name of the database on the server; default: the name of the line"),
    (
        "host",
        "db.example.com",
        "name, address, directory of a Unix socket, or a comma list of them; default: unix_socket_dir",
    ),
    ("port", "5432", "port of the server; default 5432"),
    ("user", "app", "log in to the server as this user, whoever the client is: one pool for all"),
    ("password", "secret", "password of that user; default: the one in auth_file, or auth_query's"),
    ("auth_user", "lookup", "role that runs auth_query for this database"),
    ("auth_query", "'SELECT 1'", "query that fetches secrets for this database"),
    ("auth_dbname", "admin", "line on which auth_query runs"),
    ("pool_size", "20", "servers of each pool; default: default_pool_size"),
    ("min_pool_size", "5", "servers that each pool keeps open; default: min_pool_size"),
    ("reserve_pool_size", "5", "extra servers of each pool; default: reserve_pool_size"),
    ("reserve_pool", "5", "old name of reserve_pool_size"),
    ("connect_query", "'SELECT 1'", "query that runs on each new server before its first use"),
    ("pool_mode", "transaction", "when servers return to their pool; default: pool_mode"),
    ("query_wait_timeout", "30", "seconds a client may wait for a server; default: query_wait_timeout"),
    ("load_balance_hosts", "disable", "round-robin: hosts of a list take turns; disable: the first that answers"),
    ("max_db_connections", "50", "servers of all pools of this database together"),
    ("max_db_client_connections", "500", "clients of this database"),
    ("server_lifetime", "3600", "seconds after which a server is replaced; default: server_lifetime"),
    ("client_encoding", "UTF8", "client_encoding of new servers"),
    ("datestyle", "ISO", "DateStyle of new servers"),
    ("timezone", "UTC", "TimeZone of new servers"),
    ("application_name", "pooler", "application_name of new servers"),
];

/// Lines of `[users]`.
const USERS: &[(&str, &str, &str)] = &[
    ("pool_mode", "session", "when servers of this user's pools return; wins over the database's"),
    ("pool_size", "5", "servers of each of this user's pools; wins over the database's"),
    ("reserve_pool_size", "2", "extra servers of each of this user's pools"),
    ("max_user_connections", "10", "servers of this user in all databases together"),
    ("max_user_client_connections", "100", "clients of this user"),
    ("query_timeout", "60", "seconds one query may run"),
    ("idle_transaction_timeout", "60", "seconds a transaction may be idle"),
    ("transaction_timeout", "60", "seconds a transaction may take"),
    ("query_wait_timeout", "30", "seconds this user's clients may wait for a server"),
    ("client_idle_timeout", "600", "seconds this user's clients may be silent"),
];

/// Lines of `[peers]`.
const PEERS: &[(&str, &str, &str)] = &[
    ("host", "10.0.0.2", "name, address or directory of the Unix socket of the peer; needed"),
    ("port", "6432", "port of the peer; default 6432"),
    ("pool_size", "20", "connections that may forward cancel requests at once; default: default_pool_size"),
];

type Section = (&'static str, &'static str, &'static [(&'static str, &'static str, &'static str)]);

const SECTIONS: [Section; 3] = [
    (
        "databases",
        "`name = key=value ...`: a database as clients name it. `*` is for all names without a line.",
        DATABASES,
    ),
    ("users", "`name = key=value ...`: what counts for one user.", USERS),
    (
        "peers",
        "`peer_id = key=value ...`: another pooler behind the same address, which cancel requests may be meant for.",
        PEERS,
    ),
];

fn default_of(key: &Key) -> String {
    match key.default {
        None => "not set".to_owned(),
        Some("") => "empty".to_owned(),
        Some(text) => text.to_owned(),
    }
}

fn applies(key: &Key) -> &'static str {
    if key.changeable { "reload" } else { "restart" }
}

fn markdown() -> String {
    let mut out = String::from(
        "# Settings\n\nMade from the tables in the source by `UPDATE=1 cargo test --test reference`; do not edit.\n\n\
         A file has the sections `[pgbouncer]`, `[databases]`, `[users]` and `[peers]`. Lines that begin with `;` or `#` are \
         comments; a value is the rest of its line, without quotes; `%include file` reads another file. \
         `pgbouncer --check FILE` says what is wrong with one, `SHOW CONFIG` on the console what is in force.\n\n\
         ## [pgbouncer]\n\nSettings in **bold** are not in PgBouncer. What a *restart* changes is not changed by a reload.\n\n\
         | setting | meaning | value | default | changed by |\n| --- | --- | --- | --- | --- |\n",
    );
    for key in TABLE {
        let stars = if OURS.contains(&key.name) { "**" } else { "" };
        let default = default_of(key).replace('|', "\\|");
        writeln!(
            out,
            "| {stars}`{}`{stars} | {} | {} | {default} | {} |",
            key.name,
            key.help,
            key.expects,
            applies(key)
        )
        .expect("a string");
    }
    for (name, text, keys) in SECTIONS {
        write!(out, "\n## [{name}]\n\n{text}\n\n| key | meaning |\n| --- | --- |\n").expect("a string");
        for (key, _, meaning) in keys {
            writeln!(out, "| `{key}` | {meaning} |").expect("a string");
        }
    }
    out
}

/// Text for roff: no line of it may look like a request.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn man() -> String {
    let mut out = String::from(
        ".\\\" Made from the tables in the source by `UPDATE=1 cargo test --test reference`; do not edit.\n\
         .TH PGBOUNCER.INI 5 \"\" \"pgusher\" \"Databases\"\n.SH NAME\npgbouncer.ini \\- configuration file of pgbouncer\n\
         .SH DESCRIPTION\nA file has the sections [pgbouncer], [databases], [users] and [peers]. Lines that begin with ; or # are \
         comments;\na value is the rest of its line, without quotes; %include \\fIfile\\fR reads another file.\n\
         .B pgbouncer \\-\\-check\nsays what is wrong with a file.\n.SH [pgbouncer]\n",
    );
    for key in TABLE {
        let ours = if OURS.contains(&key.name) { " Not in PgBouncer." } else { "" };
        writeln!(
            out,
            ".TP\n.B {}\n{}. Value: {}. Default: {}. Changed by a {}.{ours}",
            roff(key.name),
            roff(key.help),
            roff(key.expects),
            roff(&default_of(key)),
            applies(key)
        )
        .expect("a string");
    }
    for (name, text, keys) in SECTIONS {
        write!(out, ".SH [{name}]\n{}\n", roff(text)).expect("a string");
        for (key, _, meaning) in keys {
            writeln!(out, ".TP\n.B {}\n{}.", roff(key), roff(meaning)).expect("a string");
        }
    }
    out.push_str(".SH SEE ALSO\n.BR pgbouncer (1)\n");
    out
}

#[test]
fn the_reference_is_what_the_tables_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, wanted) in [("docs/settings.md", markdown()), ("etc/man/pgbouncer.ini.5", man())] {
        if std::env::var_os("UPDATE").is_some() {
            fs::write(root.join(file), &wanted).expect("writable");
        }
        let found = fs::read_to_string(root.join(file)).unwrap_or_default();
        assert!(found == wanted, "{file} is not current: UPDATE=1 cargo test --test reference");
    }
}

#[test]
fn every_key_of_an_entry_is_there_and_its_example_is_read() {
    fn names(keys: &[(&'static str, &str, &str)]) -> Vec<&'static str> {
        keys.iter().map(|(name, ..)| *name).collect()
    }
    assert_eq!(names(DATABASES), DATABASE_KEYS);
    assert_eq!(names(USERS), USER_KEYS);
    assert_eq!(names(PEERS), PEER_KEYS);
    let all = |keys: &[(&str, &str, &str)]| keys.iter().map(|(k, v, _)| format!("{k}={v} ")).collect::<String>();
    parse_database("d", &all(DATABASES)).expect("good");
    parse_user(&all(USERS)).expect("good");
    parse_peer("1", &all(PEERS)).expect("good");
    for ours in OURS {
        assert!(TABLE.iter().any(|key| key.name == ours), "{ours}");
    }
}
