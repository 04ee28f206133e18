//! Numbers that do not fit together, or not into the machine.

use std::collections::BTreeMap;

use super::{Judge, Place};
use crate::config::{Database, Settings, effective};

impl Judge<'_> {
    /// `listed` are the users of `auth_file`.
    pub(super) fn limits(&mut self, listed: &BTreeMap<String, Place>) {
        self.descriptors(listed);
        self.sizes();
        self.waits();
        for db in self.config().databases.values() {
            self.entry(db);
        }
    }

    fn descriptors(&mut self, listed: &BTreeMap<String, Place>) {
        let (config, limit) = (self.config(), self.machine.fd_limit);
        let clients = config.settings.max_client_conn;
        let expected = effective::expected_fds(config, listed.keys().map(String::as_str), []);
        if expected > limit {
            let text = format!(
                "max_client_conn={clients} and the servers of all pools need {expected} file descriptors, here a process \
                 has at most {limit}"
            );
            self.warn(
                self.at("max_client_conn"),
                text,
                "raise the limit (LimitNOFILE=, ulimit -Hn) or lower the sizes",
            );
        }
    }

    fn sizes(&mut self) {
        let s = &self.config().settings;
        let (pool, min) = (s.default_pool_size, s.min_pool_size);
        if min > pool && pool > 0 {
            let text =
                format!("min_pool_size={min} is more than default_pool_size={pool}, and no pool can have as many");
            self.warn(self.at("min_pool_size"), text, "lower min_pool_size or raise default_pool_size");
        }
        for (key, limit) in
            [("max_db_connections", s.max_db_connections), ("max_user_connections", s.max_user_connections)]
        {
            if limit > 0 && pool > limit {
                let text =
                    format!("default_pool_size={pool} is more than {key}={limit}, and no pool can grow so large");
                self.warn(self.at(key), text, format!("raise {key} or lower default_pool_size"));
            }
        }
        let clients = s.max_client_conn;
        if pool > clients {
            let text = format!("default_pool_size={pool} is more than max_client_conn={clients}");
            self.warn(self.at("default_pool_size"), text, "pools have fewer servers than there are clients: lower it");
        }
        let limits = [
            ("max_db_client_connections", s.max_db_client_connections),
            ("max_user_client_connections", s.max_user_client_connections),
        ];
        for (key, limit) in limits {
            if limit > clients {
                let text = format!("{key}={limit} is more than max_client_conn={clients} and never counts");
                self.warn(self.at(key), text, "lower it or raise max_client_conn");
            }
        }
        for (key, value) in numbers(s) {
            if value < 0 {
                self.warn(self.at(key), format!("{key}={value} is negative"), "write 0 where no limit is meant");
            }
        }
    }

    /// Times of which one makes the other meaningless.
    fn waits(&mut self) {
        let s = &self.config().settings;
        if s.reserve_pool_size > 0 {
            if s.reserve_pool_timeout.is_zero() {
                let text = "reserve_pool_timeout=0 turns reserve_pool_size off";
                self.warn(
                    self.at("reserve_pool_timeout"),
                    text,
                    "write the seconds after which the reserve may be used",
                );
            } else if !s.query_wait_timeout.is_zero() && s.reserve_pool_timeout >= s.query_wait_timeout {
                let text =
                    "clients are disconnected by query_wait_timeout before reserve_pool_timeout gives them a server";
                self.warn(self.at("reserve_pool_timeout"), text, "make it shorter than query_wait_timeout");
            }
        }
        if s.server_lifetime < s.server_idle_timeout && self.says("server_idle_timeout") && !s.server_lifetime.is_zero()
        {
            let text = "server_idle_timeout is longer than server_lifetime and never counts";
            self.warn(self.at("server_idle_timeout"), text, "make it shorter than server_lifetime");
        }
        if !s.transaction_timeout.is_zero() {
            for (key, time) in
                [("query_timeout", s.query_timeout), ("idle_transaction_timeout", s.idle_transaction_timeout)]
            {
                if time > s.transaction_timeout {
                    let text = format!("{key} is longer than transaction_timeout and never counts inside transactions");
                    self.warn(self.at(key), text, "make it shorter than transaction_timeout");
                }
            }
        }
    }

    /// What one entry says against itself or the settings.
    fn entry(&mut self, db: &Database) {
        let config = self.config();
        let user = db.user.as_deref().unwrap_or("");
        let size = effective::pool_size(config, db, user);
        let min = effective::min_pool_size(config, db);
        let own = |value: Option<i64>| value.is_some();
        let place = self.at_database(&db.name);
        let name = &db.name;
        if min > size && size > 0 && (own(db.min_pool_size) || own(db.pool_size)) {
            let text = format!("database \"{name}\" has min_pool_size={min}, more than its pool_size={size}");
            self.warn(place.clone(), text, "lower min_pool_size or raise pool_size");
        }
        let most = effective::max_db_connections(config, db);
        if most > 0 && size > most && (own(db.max_db_connections) || own(db.pool_size)) {
            let text = format!("database \"{name}\" has pool_size={size}, more than its max_db_connections={most}");
            self.warn(place.clone(), text, "raise max_db_connections or lower pool_size");
        }
        if let Some(clients) = db.max_db_client_connections.filter(|&n| n > config.settings.max_client_conn) {
            let text =
                format!("database \"{name}\" has max_db_client_connections={clients}, more than max_client_conn");
            self.warn(place, text, "lower it or raise max_client_conn");
        }
    }
}

/// The settings that count something: below 0 there is nothing to count.
fn numbers(s: &Settings) -> [(&'static str, i64); 10] {
    [
        ("default_pool_size", s.default_pool_size),
        ("max_client_conn", s.max_client_conn),
        ("max_db_client_connections", s.max_db_client_connections),
        ("max_db_connections", s.max_db_connections),
        ("max_prepared_statements", s.max_prepared_statements),
        ("max_user_client_connections", s.max_user_client_connections),
        ("max_user_connections", s.max_user_connections),
        ("min_pool_size", s.min_pool_size),
        ("reserve_pool_size", s.reserve_pool_size),
        ("worker_threads", s.worker_threads),
    ]
}
