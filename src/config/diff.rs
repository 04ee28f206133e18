//! What a reload changes for the pools: which entries and peers go, and whose servers are no longer right.

use super::{Config, Database};

/// The differences between the configuration in force and the next one that somebody has to act on. Sizes, limits,
/// modes, timeouts and passwords need no action: they are looked up when they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub databases_added: Vec<String>,
    /// Their clients and servers are dropped.
    pub databases_removed: Vec<String>,
    /// Their servers are closed as soon as they are free, and cached login replies are forgotten.
    pub databases_to_reconnect: Vec<String>,
    /// Entries made from `*` are to be made again and their servers closed as soon as they are free.
    pub wildcard_changed: bool,
    pub peers_removed: Vec<u16>,
    /// The address of these is another one.
    pub peers_to_reconnect: Vec<u16>,
}

impl Config {
    /// What changes between this configuration and the `next` one.
    #[must_use]
    pub fn changes_to(&self, next: &Self) -> Changes {
        let mut changes = Changes {
            databases_added: next
                .databases
                .keys()
                .filter(|&name| !self.databases.contains_key(name))
                .cloned()
                .collect(),
            wildcard_changed: self.wildcard != next.wildcard,
            ..Changes::default()
        };
        for (name, db) in &self.databases {
            match next.databases.get(name) {
                None => changes.databases_removed.push(name.clone()),
                Some(new) if db.needs_reconnect(new) => changes.databases_to_reconnect.push(name.clone()),
                Some(_) => {}
            }
        }
        for (&id, peer) in &self.peers {
            match next.peers.get(&id) {
                None => changes.peers_removed.push(id),
                Some(new) if (&peer.host, peer.port) != (&new.host, new.port) => changes.peers_to_reconnect.push(id),
                Some(_) => {}
            }
        }
        changes
    }
}

impl Database {
    /// Are servers opened for this entry wrong for `new`, the same entry after a reload?
    #[must_use]
    pub fn needs_reconnect(&self, new: &Self) -> bool {
        self.server_dbname() != new.server_dbname()
            || self.host != new.host
            || self.port != new.port
            || self.user != new.user
            || self.forced_user_kept < new.forced_user_kept
            || self.connect_query != new.connect_query
            || self.auth_dbname != new.auth_dbname
            || self.auth_query != new.auth_query
            || self.load_balance_hosts != new.load_balance_hosts
    }
}

#[cfg(test)]
mod tests {
    use super::super::connstr::{parse_database, parse_peer};
    use super::*;

    #[test]
    fn only_what_a_server_was_opened_with_needs_a_reconnect() {
        let base = "host=h port=1 user=u password=p";
        for (change, want) in [
            ("", false),
            ("dbname=a", false),
            ("dbname=b", true),
            ("host=i", true),
            ("port=2", true),
            ("user=v", true),
            ("connect_query=x", true),
            ("auth_dbname=x", true),
            ("auth_query=x", true),
            ("load_balance_hosts=disable", true),
            ("password=q", false),
            ("auth_user=x", false),
            ("pool_size=1", false),
            ("pool_mode=session", false),
            ("server_lifetime=1", false),
            ("max_db_connections=1", false),
            ("application_name=x", false),
        ] {
            let old = parse_database("a", base).expect("valid");
            let new = parse_database("a", &format!("{base} {change}")).expect("valid");
            assert_eq!(old.needs_reconnect(&new), want, "{change}");
        }
        let old = parse_database("a", base).expect("valid");
        let new = Database { forced_user_kept: 1, ..old.clone() };
        assert!(old.needs_reconnect(&new), "the user was to go");
        assert!(!new.needs_reconnect(&new.clone()), "SET changes nothing");
        assert!(!new.needs_reconnect(&old), "it is named again");
    }

    #[test]
    fn changes_of_a_whole_configuration() {
        let config = |databases: &[(&str, &str)], peers: &[(&str, &str)], wildcard: Option<&str>| Config {
            databases: databases
                .iter()
                .map(|&(name, text)| (name.to_owned(), parse_database(name, text).expect("valid")))
                .collect(),
            peers: peers.iter().map(|&(id, text)| parse_peer(id, text).expect("valid")).map(|p| (p.id, p)).collect(),
            wildcard: wildcard.map(str::to_owned),
            ..Config::default()
        };
        let old = config(
            &[("gone", ""), ("moved", "port=1"), ("same", "pool_size=1")],
            &[("1", "host=a"), ("2", "host=a"), ("3", "host=a pool_size=1")],
            None,
        );
        let new = config(
            &[("moved", "port=2"), ("new", ""), ("same", "pool_size=2")],
            &[("2", "host=b"), ("3", "host=a"), ("4", "host=a")],
            Some("host=x"),
        );
        let want = Changes {
            databases_added: vec!["new".to_owned()],
            databases_removed: vec!["gone".to_owned()],
            databases_to_reconnect: vec!["moved".to_owned()],
            wildcard_changed: true,
            peers_removed: vec![1],
            peers_to_reconnect: vec![2],
        };
        assert_eq!(old.changes_to(&new), want);
        assert_eq!(old.changes_to(&old), Changes::default());
        let mut other = old.clone();
        other.settings.pool_mode = crate::config::PoolMode::Statement;
        assert_eq!(old.changes_to(&other), Changes::default());
    }
}
