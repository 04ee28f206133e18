//! A configuration as a file again: one that loads to the same, except that passwords are masked.
//!
//! Every setting is there, at its value or, where it has none, as a comment. `conffile` is not: it would send the next
//! reload to another file.

use std::fmt::Write as _;

use super::connstr::masked;
use super::mask::MASK;
use super::value::{LoadBalanceHosts, is_c_space};
use super::{Config, Database, Peer, UserSettings, keys};

/// The text of the file.
#[must_use]
pub fn dump(config: &Config) -> String {
    let mut out = String::from("[pgbouncer]\n");
    for key in keys::TABLE.iter().filter(|key| key.name != "conffile") {
        let value = match config.settings.written(key.name) {
            Some(_) if key.name == "auth_ldap_options" => config.settings.shown(key.name),
            Some(number) if key.name == "unix_socket_mode" => Some(octal(&number)),
            value => value,
        };
        // writing to a String cannot fail
        let _ = match value {
            Some(value) => writeln!(out, "{} = {value}", key.name),
            None => writeln!(out, "; {} is not set", key.name),
        };
    }
    out.push_str("\n[databases]\n");
    for db in config.databases.values() {
        line(&mut out, &db.name, &database(db));
    }
    if let Some(text) = &config.wildcard {
        let _ = writeln!(out, "* = {}", masked(text));
    }
    if !config.users.is_empty() {
        out.push_str("\n[users]\n");
        config.users.iter().for_each(|(name, user)| line(&mut out, name, &user_pairs(user)));
    }
    if !config.peers.is_empty() {
        out.push_str("\n[peers]\n");
        config.peers.values().for_each(|peer| line(&mut out, &peer.id.to_string(), &peer_pairs(peer)));
    }
    out
}

/// A number as permissions are usually written.
fn octal(number: &str) -> String {
    number.parse::<u32>().map_or_else(|_| number.to_owned(), |mode| format!("{mode:#05o}").replacen("0o", "0", 1))
}

type Pairs = Vec<(&'static str, Option<String>)>;

fn line(out: &mut String, name: &str, pairs: &Pairs) {
    out.push_str(&quoted_name(name));
    out.push_str(" =");
    for (key, value) in pairs {
        if let Some(value) = value {
            let _ = write!(out, " {key}={}", quoted_value(value));
        }
    }
    out.push('\n');
}

fn quoted_name(name: &str) -> String {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        name.to_owned()
    } else if name.contains('\'') {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        format!("'{name}'")
    }
}

fn quoted_value(value: &str) -> String {
    if value.contains(|c| is_c_space(c) || c == '\'') {
        format!("'{}'", value.replace('\'', "''"))
    } else {
        value.to_owned()
    }
}

fn database(db: &Database) -> Pairs {
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    let balanced = (db.load_balance_hosts != LoadBalanceHosts::RoundRobin).then(|| db.load_balance_hosts.to_string());
    vec![
        ("host", db.host.clone()),
        ("port", Some(db.port.to_string())),
        ("dbname", Some(db.server_dbname().to_owned())),
        ("user", db.user.clone()),
        ("password", db.password.as_ref().map(|_| MASK.to_owned())),
        ("auth_user", db.auth_user.clone()),
        ("auth_query", db.auth_query.clone()),
        ("auth_dbname", db.auth_dbname.clone()),
        ("pool_mode", db.pool_mode.map(|mode| mode.to_string())),
        ("pool_size", number(db.pool_size)),
        ("min_pool_size", number(db.min_pool_size)),
        ("reserve_pool_size", number(db.reserve_pool_size)),
        ("max_db_connections", number(db.max_db_connections)),
        ("max_db_client_connections", number(db.max_db_client_connections)),
        ("query_wait_timeout", number(db.query_wait_timeout)),
        ("server_lifetime", number(db.server_lifetime)),
        ("load_balance_hosts", balanced),
        ("connect_query", db.connect_query.clone()),
        ("client_encoding", db.client_encoding.clone()),
        ("datestyle", db.datestyle.clone()),
        ("timezone", db.timezone.clone()),
        ("application_name", db.application_name.clone()),
    ]
}

fn user_pairs(user: &UserSettings) -> Pairs {
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    vec![
        ("pool_mode", user.pool_mode.map(|mode| mode.to_string())),
        ("pool_size", number(user.pool_size)),
        ("reserve_pool_size", number(user.reserve_pool_size)),
        ("max_user_connections", number(user.max_user_connections)),
        ("max_user_client_connections", number(user.max_user_client_connections)),
        ("query_timeout", number(user.query_timeout)),
        ("idle_transaction_timeout", number(user.idle_transaction_timeout)),
        ("transaction_timeout", number(user.transaction_timeout)),
        ("query_wait_timeout", number(user.query_wait_timeout)),
        ("client_idle_timeout", number(user.client_idle_timeout)),
    ]
}

fn peer_pairs(peer: &Peer) -> Pairs {
    let size = peer.pool_size.map(|size| size.to_string());
    vec![("host", Some(peer.host.clone())), ("port", Some(peer.port.to_string())), ("pool_size", size)]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::load;
    use super::*;

    fn loaded(text: &str) -> Config {
        let (result, log) = load(Path::new("f"), &|_| Ok(text.as_bytes().to_vec()), None);
        result.unwrap_or_else(|_| panic!("{log:?}\n{text}")).config
    }

    const FILE: &str = "[databases]\n\
        a = host=h port=5433 dbname='other db' pool_size=0 load_balance_hosts=disable connect_query='select ''x'''\n\
        'b c' = client_encoding=UTF8 timezone='x\ty' pool_mode=statement\n\
        \"it's \"\"q\"\"\" = application_name=a'b\n\
        * = host=w user=u password='se cret' pool_size=4\n\
        forced = user=f password=hush auth_query='select 1'\n\
        [users]\nu = pool_mode=transaction query_timeout=5\n'' '' = pool_size=2\n\
        [peers]\n1 = host=p\n2 = host=/tmp port=99 pool_size=3\n\
        [pgbouncer]\nquery_timeout = 1234567.891234\nserver_lifetime = 0.000001\nunix_socket_mode = 0700\nauth_user = \n\
        verbose = 1\nmax_packet_size = -1\nauth_type = scram-sha-256\nidle_transaction_timeout = 0.3\n";

    #[test]
    fn what_is_dumped_loads_to_the_same() {
        let text = FILE.replace("'' '' = pool_size=2\n", "'x y' = pool_size=2\n");
        let mut config = loaded(&text);
        let dumped = dump(&config);
        assert!(!dumped.contains("cret") && !dumped.contains("hush"), "{dumped}");
        let again = loaded(&dumped);
        assert_eq!(dump(&again), dumped);
        // what the dump adds is what counts anyway, what it masks is masked
        for db in config.databases.values_mut() {
            db.dbname = Some(db.server_dbname().to_owned());
            db.password = db.password.as_ref().map(|_| MASK.to_owned());
        }
        config.wildcard = config.wildcard.as_deref().map(masked);
        assert_eq!(again, config);
    }

    #[test]
    fn defaults_load_to_themselves() {
        let defaults = dump(&Config::default());
        let again = loaded(&defaults);
        assert!(defaults.contains("\nunix_socket_mode = 0777\n") && defaults.contains("\n; auth_user is not set\n"));
        assert_eq!(dump(&again), defaults);
    }
}
