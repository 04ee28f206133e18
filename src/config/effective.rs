//! Which of several values counts.
//!
//! Sizes and the pool mode: the `[users]` line of the pool user, then the entry, then the setting. What concerns a
//! whole entry: the entry, then the setting. What concerns one side of a link: the user of that side (pool user towards
//! the server, login user towards the client), then the setting. The pool user is the entry's forced user, or the login
//! user where there is none, so under a forced user the login user's `pool_size` does not count.
//!
//! A value given for one user never reaches another one; PgBouncer lets one user's `client_idle_timeout` disconnect
//! everybody else.

use std::collections::HashSet;

use super::{CONSOLE_DATABASE, Config, Database, Peer, PoolMode, UserSettings};
use crate::time::Micros;

/// Descriptors for listeners and the like.
const SPARE_FDS: u64 = 10;
/// The `pool_size` of the console's entry, which counts although nobody connects there.
const CONSOLE_POOL_SIZE: u64 = 2;

/// Seconds as the entries have them; those kept in an entry are never negative.
fn seconds(value: i64) -> Micros {
    Micros::from_secs(u64::try_from(value).unwrap_or(0))
}

fn of_user<T>(config: &Config, user: &str, pick: impl Fn(&UserSettings) -> Option<T>) -> Option<T> {
    config.users.get(user).and_then(pick)
}

/// The user of the pool that serves `login_user` on this entry.
#[must_use]
pub fn pool_user<'a>(db: &'a Database, login_user: &'a str) -> &'a str {
    db.user.as_deref().unwrap_or(login_user)
}

/// Server connections of one pool; 0 is unlimited.
#[must_use]
pub fn pool_size(config: &Config, db: &Database, pool_user: &str) -> i64 {
    of_user(config, pool_user, |user| user.pool_size).or(db.pool_size).unwrap_or(config.settings.default_pool_size)
}

/// Server connections beyond `pool_size` for clients that wait too long.
#[must_use]
pub fn reserve_pool_size(config: &Config, db: &Database, pool_user: &str) -> i64 {
    of_user(config, pool_user, |user| user.reserve_pool_size)
        .or(db.reserve_pool_size)
        .unwrap_or(config.settings.reserve_pool_size)
}

#[must_use]
pub fn pool_mode(config: &Config, db: &Database, pool_user: &str) -> PoolMode {
    of_user(config, pool_user, |user| user.pool_mode).or(db.pool_mode).unwrap_or(config.settings.pool_mode)
}

#[must_use]
pub fn min_pool_size(config: &Config, db: &Database) -> i64 {
    db.min_pool_size.unwrap_or(config.settings.min_pool_size)
}

#[must_use]
pub fn server_lifetime(config: &Config, db: &Database) -> Micros {
    db.server_lifetime.map_or(config.settings.server_lifetime, seconds)
}

/// Server connections of the entry over all users; 0 is unlimited.
#[must_use]
pub fn max_db_connections(config: &Config, db: &Database) -> i64 {
    db.max_db_connections.unwrap_or(config.settings.max_db_connections)
}

/// Clients of the entry; 0 is unlimited.
#[must_use]
pub fn max_db_client_connections(config: &Config, db: &Database) -> i64 {
    db.max_db_client_connections.unwrap_or(config.settings.max_db_client_connections)
}

/// Server connections of a pool user over all entries; 0 is unlimited.
#[must_use]
pub fn max_user_connections(config: &Config, pool_user: &str) -> i64 {
    of_user(config, pool_user, |user| user.max_user_connections).unwrap_or(config.settings.max_user_connections)
}

/// Clients of a login user over all entries; 0 is unlimited.
#[must_use]
pub fn max_user_client_connections(config: &Config, login_user: &str) -> i64 {
    of_user(config, login_user, |user| user.max_user_client_connections)
        .unwrap_or(config.settings.max_user_client_connections)
}

/// Limit of a query running on a server; waiting is limited by the setting alone.
#[must_use]
pub fn query_timeout(config: &Config, pool_user: &str) -> Micros {
    of_user(config, pool_user, |user| user.query_timeout).map_or(config.settings.query_timeout, seconds)
}

#[must_use]
pub fn idle_transaction_timeout(config: &Config, pool_user: &str) -> Micros {
    of_user(config, pool_user, |user| user.idle_transaction_timeout)
        .map_or(config.settings.idle_transaction_timeout, seconds)
}

#[must_use]
pub fn transaction_timeout(config: &Config, pool_user: &str) -> Micros {
    of_user(config, pool_user, |user| user.transaction_timeout).map_or(config.settings.transaction_timeout, seconds)
}

#[must_use]
pub fn client_idle_timeout(config: &Config, login_user: &str) -> Micros {
    of_user(config, login_user, |user| user.client_idle_timeout).map_or(config.settings.client_idle_timeout, seconds)
}

#[must_use]
pub fn query_wait_timeout(config: &Config, db: &Database, login_user: &str) -> Micros {
    of_user(config, login_user, |user| user.query_wait_timeout)
        .or(db.query_wait_timeout)
        .map_or(config.settings.query_wait_timeout, seconds)
}

/// Descriptors that the configuration may come to use when the file of users lists these, and clients or servers of these
/// databases are taken over: as many as PgBouncer expects, who counts a pool for each user that it knows by name, the
/// console's own one among them, in each entry that there is, those made from `*` for what is taken over among them.
#[must_use]
pub fn expected_fds<'a>(
    config: &'a Config,
    listed: impl IntoIterator<Item = &'a str>,
    taken_over: impl IntoIterator<Item = &'a str>,
) -> u64 {
    let unknown = |name: &&str| *name != CONSOLE_DATABASE && !config.databases.contains_key(*name);
    let made: HashSet<&str> = taken_over.into_iter().filter(unknown).collect();
    let made: Vec<Database> = made.into_iter().filter_map(|name| config.auto_database(name)?.ok()).collect();
    let entries = || config.databases.values().chain(&made);
    let of_entries = entries().filter_map(|entry| entry.auth_user.as_deref());
    let of_lines = config.users.keys().map(String::as_str);
    // entries made here do not live as long as the names that were given
    let listed = listed.into_iter().map(|name| -> &str { name });
    let users: HashSet<&str> = listed.chain(of_lines).chain(of_entries).chain([CONSOLE_DATABASE]).collect();
    let pools_of = |entry: &Database| if entry.user.is_some() { 1 } else { users.len() as u64 };
    let size_of = |entry: &Database| entry.pool_size.unwrap_or(config.settings.default_pool_size);
    let servers = |entry| u64::try_from(size_of(entry)).unwrap_or(0).saturating_mul(pools_of(entry));
    let clients = u64::try_from(config.settings.max_client_conn).unwrap_or(0);
    entries().map(servers).fold(clients + SPARE_FDS + CONSOLE_POOL_SIZE, u64::saturating_add)
}

/// The role that looks up users for this entry.
#[must_use]
pub fn auth_user<'a>(config: &'a Config, db: &'a Database) -> Option<&'a str> {
    db.auth_user.as_deref().or(config.settings.auth_user.as_deref())
}

#[must_use]
pub fn auth_query<'a>(config: &'a Config, db: &'a Database) -> &'a str {
    db.auth_query.as_deref().unwrap_or(&config.settings.auth_query)
}

/// The entry on which users of this entry are looked up; `None` is the entry itself.
#[must_use]
pub fn auth_dbname<'a>(config: &'a Config, db: &'a Database) -> Option<&'a str> {
    db.auth_dbname.as_deref().or(config.settings.auth_dbname.as_deref())
}

/// Connections that may forward cancel requests to a peer at the same time.
#[must_use]
pub fn peer_pool_size(config: &Config, peer: &Peer) -> i64 {
    peer.pool_size.unwrap_or(config.settings.default_pool_size)
}

#[cfg(test)]
mod tests {
    use super::super::connstr::{parse_database, parse_peer, parse_user};
    use super::*;

    /// Settings 1x, an entry that says nothing or 2x, a user `u` that says nothing or 3x.
    fn config(user: &str) -> Config {
        let mut config = Config::default();
        for (key, value) in [
            ("default_pool_size", "10"),
            ("reserve_pool_size", "11"),
            ("min_pool_size", "12"),
            ("server_lifetime", "13"),
            ("max_db_connections", "14"),
            ("max_db_client_connections", "15"),
            ("max_user_connections", "16"),
            ("max_user_client_connections", "17"),
            ("query_timeout", "18"),
            ("idle_transaction_timeout", "19"),
            ("transaction_timeout", "110"),
            ("client_idle_timeout", "111"),
            ("query_wait_timeout", "112"),
            ("auth_user", "global"),
        ] {
            config.settings.set(key, value).expect("valid");
        }
        config.users.insert("u".to_owned(), parse_user(user).expect("valid"));
        config
    }

    fn entry(text: &str) -> Database {
        parse_database("a", text).expect("valid")
    }

    const USER: &str = "pool_mode=statement pool_size=30 reserve_pool_size=31 max_user_connections=36 \
                        max_user_client_connections=37 query_timeout=38 idle_transaction_timeout=39 \
                        transaction_timeout=310 client_idle_timeout=311 query_wait_timeout=312";
    const ENTRY: &str = "pool_mode=transaction pool_size=20 reserve_pool_size=21 min_pool_size=22 server_lifetime=23 \
                         max_db_connections=24 max_db_client_connections=25 query_wait_timeout=212 auth_user=own";

    #[test]
    fn user_then_entry_then_setting() {
        let (with, without) = (config(USER), config(""));
        let (says, silent) = (entry(ENTRY), entry(""));
        for (config, db, size, reserve, mode, wait) in [
            (&with, &says, 30, 31, PoolMode::Statement, 312),
            (&with, &silent, 30, 31, PoolMode::Statement, 312),
            (&without, &says, 20, 21, PoolMode::Transaction, 212),
            (&without, &silent, 10, 11, PoolMode::Session, 112),
        ] {
            assert_eq!(pool_size(config, db, "u"), size);
            assert_eq!(reserve_pool_size(config, db, "u"), reserve);
            assert_eq!(pool_mode(config, db, "u"), mode);
            assert_eq!(query_wait_timeout(config, db, "u"), Micros::from_secs(wait));
        }
    }

    #[test]
    fn entry_then_setting() {
        let config = config(USER);
        for (text, min, lifetime, servers, clients, auth) in
            [(ENTRY, 22, 23, 24, 25, "own"), ("", 12, 13, 14, 15, "global")]
        {
            let db = entry(text);
            assert_eq!(min_pool_size(&config, &db), min);
            assert_eq!(server_lifetime(&config, &db), Micros::from_secs(lifetime));
            assert_eq!(max_db_connections(&config, &db), servers);
            assert_eq!(max_db_client_connections(&config, &db), clients);
            assert_eq!(auth_user(&config, &db), Some(auth));
        }
        assert_eq!(auth_query(&config, &entry("auth_query=q")), "q");
        assert_eq!(auth_query(&config, &entry("")), config.settings.auth_query);
        assert_eq!(auth_dbname(&config, &entry("auth_dbname=d")), Some("d"));
        assert_eq!(auth_dbname(&config, &entry("")), None);
        let peer = |text| parse_peer("1", text).expect("valid");
        assert_eq!(peer_pool_size(&config, &peer("host=h")), 10);
        assert_eq!(peer_pool_size(&config, &peer("host=h pool_size=3")), 3);
    }

    /// The last column: what a value for `u` must not do to others.
    #[test]
    fn user_then_setting_and_nobody_else() {
        let config = config(USER);
        for (name, own, other) in [("u", true, false), ("v", false, true)] {
            let want = |mine: i64, all: i64| if own { mine } else { all };
            let secs = |mine: u64, all: u64| Micros::from_secs(if other { all } else { mine });
            assert_eq!(max_user_connections(&config, name), want(36, 16));
            assert_eq!(max_user_client_connections(&config, name), want(37, 17));
            assert_eq!(query_timeout(&config, name), secs(38, 18));
            assert_eq!(idle_transaction_timeout(&config, name), secs(39, 19));
            assert_eq!(transaction_timeout(&config, name), secs(310, 110));
            assert_eq!(client_idle_timeout(&config, name), secs(311, 111));
        }
    }

    #[test]
    fn zero_counts_where_it_means_no_limit() {
        let config = config("query_wait_timeout=0 pool_size=0");
        let db = entry("query_wait_timeout=5 pool_size=5");
        assert_eq!(query_wait_timeout(&config, &db, "u"), Micros::ZERO);
        assert_eq!(pool_size(&config, &db, "u"), 0);
        let db = entry("query_wait_timeout=0 pool_size=0");
        assert_eq!(query_wait_timeout(&config, &db, "v"), Micros::ZERO);
        assert_eq!(pool_size(&config, &db, "v"), 0);
    }

    /// Figures of PgBouncer 1.18 with three users in its file.
    #[test]
    fn descriptors_are_counted_like_pgbouncer_does() {
        let expected = |entries: &[&str], lines: &[&str]| {
            let mut config = Config::default();
            for (at, text) in entries.iter().enumerate() {
                config.databases.insert(format!("db{at}"), entry(text));
            }
            config.users.extend(lines.iter().map(|name| ((*name).to_owned(), parse_user("").expect("valid"))));
            expected_fds(&config, ["a", "b", "c"], [])
        };
        for (entries, lines, want) in [
            (&[][..], &[][..], 112),
            (&[""], &[], 192),
            (&[""], &["a", "pgbouncer"], 192),
            (&[""], &["x", "y"], 232),
            (&["", ""], &[], 272),
            (&["user=f"], &[], 132),
            (&["user=f", ""], &[], 212),
            (&["pool_size=5"], &[], 132),
            (&["pool_size=0"], &[], 112),
            (&["user=f pool_size=5", "pool_size=7"], &[], 145),
            (&["auth_user=s"], &[], 212),
            (&["min_pool_size=3 reserve_pool_size=9 max_db_connections=6"], &[], 192),
        ] {
            assert_eq!(expected(entries, lines), want, "{entries:?} {lines:?}");
        }
        let mut config = Config::default();
        config.databases.insert("db".to_owned(), entry(""));
        assert_eq!(expected_fds(&config, ["a", "b", "c"], ["x"]), 192, "there is no entry that x could have");
        config.wildcard = Some("pool_size=5".to_owned());
        let taken_over = ["x", "x", "db", CONSOLE_DATABASE, "y"];
        assert_eq!(expected_fds(&config, ["a", "b", "c"], taken_over), 192 + 2 * 4 * 5);
    }

    #[test]
    fn a_forced_user_is_the_pool_user() {
        assert_eq!(pool_user(&entry("user=f"), "u"), "f");
        assert_eq!(pool_user(&entry(""), "u"), "u");
    }
}
