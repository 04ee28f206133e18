//! What a tick decides, three times a second (pooling.md 5.4): lifetimes, sizes, checks, retries, unused pools and entries.

use std::borrow::Cow;

use super::Pools;
use super::api::{Action, PauseMode};
use super::limits::EntryKind;
use super::list::End;
use super::pool::Sizes;
use super::slot::{Server, ServerState};
use crate::config::Level;
use crate::disconnect::Disconnect;
use crate::id::{DbId, PoolId, ServerId};
use crate::time::Micros;

impl<S, R: Clone> Pools<S, R> {
    /// Call it three times a second. While suspended it only sees to those who still wait.
    pub fn tick(&mut self, now: Micros) {
        if self.pause == PauseMode::Suspended {
            return self.serve_all(now);
        }
        self.make_forced_pools(now);
        self.give_up_left(now);
        let mut pools = std::mem::take(&mut self.pool_scratch);
        pools.extend(self.pools.iter().map(|(id, _)| id));
        for pool in pools.drain(..) {
            if self.pools.get(pool).is_some_and(|pool| !pool.dying) {
                self.look_after(pool, now);
            }
        }
        self.pool_scratch = pools;
        self.look_after_auto_entries(now);
    }

    /// Entries with a forced user and a minimum have their pool before the first client comes.
    fn make_forced_pools(&mut self, now: Micros) {
        let wanting = |entry: &super::Entry| {
            entry.pools.is_empty()
                && entry.idle_since.is_none()
                && !entry.removed
                && !entry.is_peer()
                && entry.database.user.is_some()
                && entry.database.min_pool_size.unwrap_or(self.config.settings.min_pool_size) > 0
        };
        let entries: Vec<DbId> = self.entries.iter().filter(|(_, entry)| wanting(entry)).map(|(id, _)| id).collect();
        for db in entries {
            if let Some(name) = self.entries[db].database.user.clone() {
                let user = self.user(&name);
                self.pool_of(db, user, now);
            }
        }
    }

    fn look_after(&mut self, id: PoolId, now: Micros) {
        self.sweep_unlinked(id, now);
        self.shrink(id);
        self.serve(id, now);
        self.keep_minimum(id, now);
        let (db, user) = (self.pools[id].db, self.pools[id].user);
        self.relieve(db, user, now);
        let pool = &mut self.pools[id];
        if pool.ready > 0 || pool.has_waiters() || pool.connections > 0 {
            pool.last_used = now;
        } else {
            self.drop_if_unused(id, now);
        }
    }

    fn sweep_unlinked(&mut self, id: PoolId, now: Micros) {
        let mut servers = std::mem::take(&mut self.server_scratch);
        let pool = &self.pools[id];
        for list in pool.idle_lists() {
            servers.extend(list.iter(&self.servers).map(|(id, _)| id));
        }
        for state in [ServerState::Used, ServerState::Tested] {
            servers.extend(pool.list(state).iter(&self.servers).map(|(id, _)| id));
        }
        for server in servers.drain(..) {
            self.sweep(id, server, now);
        }
        self.server_scratch = servers;
    }

    fn sweep(&mut self, pool: PoolId, id: ServerId, now: Micros) {
        if self.servers[id].doomed.is_some() {
            return;
        }
        if let Some(reason) = self.reason_to_end(pool, id, now) {
            self.close_unlinked(id, reason);
            return;
        }
        let server = &self.servers[id];
        let settings = &self.config.settings;
        let unsure = settings.check_query().is_some() && now.since(server.last_used) > settings.server_check_delay;
        if server.state == ServerState::Idle && unsure {
            let home = server.home;
            self.move_to(id, ServerState::Used, home, End::Front);
        }
    }

    fn reason_to_end(&mut self, pool: PoolId, id: ServerId, now: Micros) -> Option<Cow<'static, str>> {
        let server: &Server<S> = &self.servers[id];
        let timeout = self.config.settings.server_idle_timeout;
        let state = &self.pools[pool];
        if server.close_needed {
            return Some("database configuration changed".into());
        }
        if !timeout.is_zero() && now.since(server.last_used) > timeout && state.connected() > state.sizes.min {
            return Some("server idle timeout".into());
        }
        if state.finds_too_old(server, now) {
            self.pools[pool].last_lifetime_close = Some(now);
            return Some("server lifetime over".into());
        }
        None
    }

    /// Closes what a smaller size leaves over.
    fn shrink(&mut self, id: PoolId) {
        loop {
            let pool = &self.pools[id];
            let most = pool.sizes.pool_size.saturating_add(pool.sizes.reserve);
            if pool.sizes.pool_size == 0 || pool.connected() <= most {
                return;
            }
            let idle = pool.idle_lists().iter().filter_map(|list| list.last()).min_by_key(|&id| self.servers[id].stamp);
            let Some(server) = pool.list(ServerState::Used).first().or(idle) else { return };
            self.close_unlinked(server, "too many servers in the pool".into());
        }
    }

    fn keep_minimum(&mut self, id: PoolId, now: Micros) {
        let pool = &self.pools[id];
        let Sizes { pool_size, min, .. } = pool.sizes;
        let connected = pool.connected();
        let wanted = connected < min && (pool_size == 0 || connected < pool_size);
        let entry = &self.entries[pool.db];
        let forced = entry.database.user.is_some() && entry.idle_since.is_none();
        let someone = pool.ready > 0 || pool.has_waiters() || forced;
        if wanted && someone && !self.is_held(id) {
            self.launch(id, false, now);
        }
    }

    fn drop_if_unused(&mut self, id: PoolId, now: Micros) {
        let timeout = self.config.settings.pool_idle_timeout;
        let pool = &self.pools[id];
        let age = now.since(pool.last_used);
        let entry = &self.entries[pool.db];
        let kept = entry.is_peer() || (entry.database.user.is_some() && pool.sizes.min > 0);
        if timeout.is_zero() || age <= timeout || kept || pool.is_referred_to() {
            return;
        }
        let user = &self.users[pool.user.0 as usize].name;
        let name = &entry.database.name;
        let age = age.secs();
        let text =
            format!("cleaning up idle pool for user {user} on db {name} because: pool idle timeout (age= {age}s)");
        self.actions.push_back(Action::Log(Level::Log, text));
        self.drop_pool(id, &Disconnect::silent("pool idle timeout"), now);
    }

    /// Auto entries without clients and servers go to sleep, and later away.
    fn look_after_auto_entries(&mut self, now: Micros) {
        let timeout = self.config.settings.autodb_idle_timeout;
        let autos: Vec<DbId> =
            self.names.values().copied().filter(|&db| matches!(self.entries[db].kind, EntryKind::Auto)).collect();
        for db in autos {
            if !self.is_unused(db) {
                self.entries[db].idle_since = None;
                continue;
            }
            let entry = &mut self.entries[db];
            let since = *entry.idle_since.get_or_insert(now);
            if !timeout.is_zero() && now.since(since) > timeout && !entry.paused {
                self.drop_entry(db, now);
            }
        }
    }

    fn is_unused(&self, db: DbId) -> bool {
        let entry = &self.entries[db];
        entry.clients == 0
            && entry.connections == 0
            && !entry.pools.iter().any(|&pool| self.pools[pool].is_referred_to())
    }
}
