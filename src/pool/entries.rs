//! How entries, pools and users come and go, and how clients attach to them (pooling.md 1, signals-and-cli.md 3.3).

use std::sync::Arc;

use super::Pools;
use super::api::{Action, Attached, LaunchKind, PoolInfo};
use super::limits::{Entry, EntryKind, limit};
use super::pool::{Pool, Sizes};
use super::slot::ServerState;
use crate::config::{CONSOLE_DATABASE, Config, Database, Level, PoolMode, WILDCARD, effective};
use crate::disconnect::Disconnect;
use crate::id::{DbId, PoolId, ServerId, UserId};
use crate::time::Micros;

impl<S, R: Clone> Pools<S, R> {
    /// Brings in a changed configuration, after a reload or SET.
    pub fn configure(&mut self, config: Arc<Config>, now: Micros) {
        let old = std::mem::replace(&mut self.config, Arc::clone(&config));
        let changes = old.changes_to(&config);
        // all values first: whatever is closed makes room, and who fills it goes by the new limits
        let mut stale = if changes.wildcard_changed { self.remake_auto_entries() } else { Vec::new() };
        stale.extend(self.adopt(&config));
        for name in &changes.databases_removed {
            if let Some(&db) = self.names.get(name) {
                self.drop_entry(db, now);
            }
        }
        for id in &changes.peers_removed {
            if let Some(db) = self.peers.remove(id) {
                let text = format!("dropping peer {id} as it does not exist anymore");
                self.actions.push_back(Action::Log(Level::Warning, text));
                self.remove_entry(db, &Disconnect::silent("peer removed"), now);
            }
        }
        for db in stale {
            self.reconnect_entry(db, now);
        }
        self.serve_all(now);
    }

    /// Names of the auth_file; their user objects stay for ever.
    pub fn set_known_users(&mut self, names: impl Iterator<Item = String>) {
        for name in names {
            self.user(&name);
        }
    }

    /// Makes or changes what the configuration names, and looks up every effective value again. Returns the entries whose
    /// servers are no longer right.
    pub(super) fn adopt(&mut self, config: &Config) -> Vec<DbId> {
        for name in config.users.keys() {
            self.user(name);
        }
        let mut stale = Vec::new();
        for (name, database) in &config.databases {
            if let Some(user) = &database.user {
                self.user(user);
            }
            stale.extend(self.adopt_entry(name, database));
        }
        for (id, peer) in &config.peers {
            if let Some(&db) = self.peers.get(id) {
                self.entries[db].kind = EntryKind::Peer(Arc::new(peer.clone()));
            }
        }
        self.resize();
        stale
    }

    fn adopt_entry(&mut self, name: &str, database: &Database) -> Option<DbId> {
        let Some(&db) = self.names.get(name) else {
            let entry = Entry::new(Arc::new(database.clone()), EntryKind::Configured);
            let db = self.entries.insert(entry);
            self.names.insert(name.to_owned(), db);
            return None;
        };
        let entry = &mut self.entries[db];
        entry.kind = EntryKind::Configured;
        entry.idle_since = None;
        let stale = entry.database.needs_reconnect(database);
        if *entry.database != *database {
            entry.database = Arc::new(database.clone());
        }
        stale.then_some(db)
    }

    fn remake_auto_entries(&mut self) -> Vec<DbId> {
        let autos: Vec<DbId> = self.names.values().copied().filter(|&db| self.is_auto(db)).collect();
        for &db in &autos {
            let name = self.entries[db].database.name.clone();
            match self.config.auto_database(&name) {
                Some(Ok(database)) => {
                    let entry = &mut self.entries[db];
                    entry.database = Arc::new(database);
                    entry.auth_user = None;
                }
                Some(Err(error)) => self.log_lines(error.log_lines()),
                None => {}
            }
        }
        autos
    }

    fn is_auto(&self, db: DbId) -> bool {
        matches!(self.entries[db].kind, EntryKind::Auto)
    }

    fn log_lines(&mut self, lines: Vec<crate::config::LogLine>) {
        self.actions.extend(lines.into_iter().map(|line| Action::Log(line.level, line.text)));
    }

    fn resize(&mut self) {
        for id in 0..self.users.len() {
            if let Ok(id) = u32::try_from(id) {
                self.size_user(UserId(id));
            }
        }
        let entries: Vec<DbId> = self.entries.iter().map(|(id, _)| id).collect();
        for db in entries {
            self.size_entry(db);
        }
        let pools: Vec<PoolId> = self.pools.iter().map(|(id, _)| id).collect();
        for id in pools {
            let pool = &self.pools[id];
            let sizes = self.sizes(pool.db, pool.user);
            self.pools[id].sizes = sizes;
        }
    }

    fn sizes(&self, db: DbId, user: UserId) -> Sizes {
        let entry = &self.entries[db];
        if let EntryKind::Peer(peer) = &entry.kind {
            let pool_size = limit(effective::peer_pool_size(&self.config, peer));
            return Sizes { pool_size, reserve: 0, min: 0, lifetime: Micros::ZERO, mode: PoolMode::Statement };
        }
        let (config, database, user) = (&*self.config, &*entry.database, &*self.users[user.0 as usize].name);
        Sizes {
            pool_size: limit(effective::pool_size(config, database, user)),
            reserve: limit(effective::reserve_pool_size(config, database, user)),
            min: limit(effective::min_pool_size(config, database)),
            lifetime: effective::server_lifetime(config, database),
            mode: effective::pool_mode(config, database, user),
        }
    }

    /// The entry of that name; made from `*` if there is none, brought back if it was idle.
    pub fn find_database(&mut self, name: &str, _now: Micros) -> Option<DbId> {
        if let Some(&db) = self.names.get(name) {
            self.entries[db].idle_since = None;
            return Some(db);
        }
        // the wildcard is no database: a client that asks for it by its name asks for one that is not there
        if name == CONSOLE_DATABASE || name == WILDCARD {
            return None;
        }
        let database = match self.config.auto_database(name)? {
            Ok(database) => database,
            Err(error) => {
                self.log_lines(error.log_lines());
                return None;
            }
        };
        if let Some(user) = &database.user {
            let user = user.clone();
            self.user(&user);
        }
        let db = self.entries.insert(Entry::new(Arc::new(database), EntryKind::Auto));
        self.names.insert(name.to_owned(), db);
        self.size_entry(db);
        self.registered = Some(format!("registered new auto-database: {name}"));
        Some(db)
    }

    /// The line about an entry that was made by the call before: for whoever asked for it, to log it as his own. Unless it
    /// is taken it is one of the actions.
    pub fn take_registered(&mut self) -> Option<String> {
        self.registered.take()
    }

    #[must_use]
    pub fn database(&self, db: DbId) -> Option<Arc<Database>> {
        self.entries.get(db).map(|entry| Arc::clone(&entry.database))
    }

    #[must_use]
    pub fn disabled(&self, db: DbId) -> bool {
        self.entries.get(db).is_some_and(|entry| entry.disabled)
    }

    #[must_use]
    pub fn login_reply(&self, pool: PoolId) -> Option<R> {
        self.pools.get(pool)?.reply.clone()
    }

    #[must_use]
    pub fn describe(&self, pool: PoolId) -> Option<PoolInfo> {
        let pool = self.pools.get(pool)?;
        let entry = &self.entries[pool.db];
        let user = self.users[pool.user.0 as usize].name.clone();
        let peer = match &entry.kind {
            EntryKind::Peer(peer) => Some(Arc::clone(peer)),
            EntryKind::Configured | EntryKind::Auto => None,
        };
        let forced = entry.database.user.as_deref() == Some(&*user);
        Some(PoolInfo { database: Arc::clone(&entry.database), user, forced, peer })
    }

    /// Counts a client that has proved who it is on the entry and its login user, and finds its pool. Undone by `detach`.
    ///
    /// # Errors
    /// A limit of clients is reached, or the entry was dropped meanwhile. `limits_exempt` lifts the limits.
    pub fn attach(
        &mut self,
        db: DbId,
        login_user: &str,
        limits_exempt: bool,
        now: Micros,
    ) -> Result<Attached, Disconnect> {
        let Some(entry) = self.entries.get_mut(db).filter(|entry| !entry.removed) else {
            return Err(Disconnect::fatal("database removed"));
        };
        entry.idle_since = None;
        let database = Arc::clone(&entry.database);
        let user = self.user(login_user);
        self.count_client(db, user, limits_exempt)?;
        let pool_user = self.user(effective::pool_user(&database, login_user));
        let pool = self.pool_of(db, pool_user, now);
        self.pools[pool].attached += 1;
        Ok(Attached { pool, user })
    }

    /// The login reply was sent: the client counts as active. Once for each client.
    pub fn client_ready(&mut self, pool: PoolId, now: Micros) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.ready += 1;
            pool.last_used = now;
        }
    }

    /// The socket of a client is gone. `ready`: `client_ready` was called for it. It must have no ticket and no server.
    pub fn detach(&mut self, pool: PoolId, login_user: UserId, ready: bool, now: Micros) {
        let Some(state) = self.pools.get_mut(pool) else { return };
        state.attached -= 1;
        state.ready -= u32::from(ready);
        state.last_used = now;
        let db = state.db;
        self.entries[db].clients -= 1;
        self.users[login_user.0 as usize].clients -= 1;
        self.reap(pool);
    }

    /// The mode of a pool.
    #[must_use]
    pub fn pool_mode(&self, pool: PoolId) -> Option<PoolMode> {
        self.pools.get(pool).map(|pool| pool.sizes.mode)
    }

    /// The pool of an entry and a pool user.
    pub fn pool_named(&mut self, db: DbId, user: &str, now: Micros) -> Option<PoolId> {
        self.auth_pool(db, user, now)
    }

    /// The pool in which users of other entries are looked up: (auth entry, auth_user).
    pub fn auth_pool(&mut self, db: DbId, user: &str, now: Micros) -> Option<PoolId> {
        let entry = self.entries.get_mut(db).filter(|entry| !entry.removed)?;
        entry.idle_since = None;
        let user = self.user(user);
        Some(self.pool_of(db, user, now))
    }

    pub(super) fn pool_of(&mut self, db: DbId, user: UserId, now: Micros) -> PoolId {
        match self.position(db, user) {
            Ok(at) => self.entries[db].pools[at],
            Err(_) => self.add_pool(db, user, now),
        }
    }

    fn position(&self, db: DbId, user: UserId) -> Result<usize, usize> {
        let name = |user: UserId| &*self.users[user.0 as usize].name;
        self.entries[db].pools.binary_search_by(|&pool| name(self.pools[pool].user).cmp(name(user)))
    }

    pub(super) fn add_pool(&mut self, db: DbId, user: UserId, now: Micros) -> PoolId {
        let at = self.position(db, user).unwrap_or_else(|at| at);
        let sizes = self.sizes(db, user);
        let pool = self.pools.insert(Pool::new(db, user, sizes, now));
        self.entries[db].pools.insert(at, pool);
        self.users[user.0 as usize].pools.push(pool);
        pool
    }

    /// Drops an entry that the configuration no longer has, or that was idle for too long.
    pub(super) fn drop_entry(&mut self, db: DbId, now: Micros) {
        let name = self.entries[db].database.name.clone();
        let text = format!("dropping database '{name}' as it does not exist anymore or inactive auto-database");
        self.actions.push_back(Action::Log(Level::Warning, text));
        self.names.remove(&name);
        self.remove_entry(db, &Disconnect::fatal("database removed"), now);
    }

    fn remove_entry(&mut self, db: DbId, why: &Disconnect, now: Micros) {
        self.entries[db].removed = true;
        self.drop_pools(db, why, now);
        self.reap_entry(db);
    }

    pub(super) fn drop_pools(&mut self, db: DbId, why: &Disconnect, now: Micros) {
        // a removed entry goes with its last pool
        while let Some(&pool) = self.entries.get(db).and_then(|entry| entry.pools.first()) {
            self.drop_pool(pool, why, now);
        }
    }

    /// Takes a pool out of its entry and tells everybody in it to go.
    pub(super) fn drop_pool(&mut self, id: PoolId, why: &Disconnect, now: Micros) {
        let (db, user) = (self.pools[id].db, self.pools[id].user);
        self.entries[db].pools.retain(|&pool| pool != id);
        self.entries[db].dying_pools += 1;
        self.users[user.0 as usize].pools.retain(|&pool| pool != id);
        self.pools[id].dying = true;
        self.pools[id].reply = None;
        self.refuse_waiters(id, why);
        self.drop_all_cancels(id, "database removed");
        self.empty_slots(id, why);
        for server in self.servers_of(id) {
            self.close_unlinked(server, why.reason.clone());
        }
        if self.pools[id].attached > 0 {
            self.actions.push_back(Action::CloseClients { pool: id, why: why.clone() });
        }
        self.reap(id);
        self.relieve(db, user, now);
    }

    /// Takes back the servers that clients were granted and have not collected yet.
    fn empty_slots(&mut self, id: PoolId, why: &Disconnect) {
        use super::api::Collected;
        for server in self.servers_of(id) {
            let Some(ticket) = self.servers[server].slot.take() else { continue };
            let slot = std::mem::replace(&mut self.waiters[ticket].slot, Collected::Refused(why.clone()));
            if let Collected::Granted(grant) = slot {
                self.servers[server].conn = Some(grant.conn);
            }
        }
    }

    /// Every server of a pool, as a list that may be changed under way.
    pub(super) fn servers_of(&self, id: PoolId) -> Vec<ServerId> {
        let pool = &self.pools[id];
        let idle = pool.idle_lists().iter().flat_map(|list| list.iter(&self.servers));
        let others = ServerState::SHOWN.into_iter().filter(|&state| state != ServerState::Idle);
        let others = others.flat_map(|state| pool.list(state).iter(&self.servers));
        idle.chain(others).map(|(id, _)| id).collect()
    }

    /// Frees a dying pool to which nobody refers any more. True: it is gone.
    pub(super) fn reap(&mut self, id: PoolId) -> bool {
        let Some(pool) = self.pools.get(id) else { return true };
        if !pool.dying || pool.is_referred_to() {
            return false;
        }
        let db = pool.db;
        self.pools.remove(id);
        self.entries[db].dying_pools -= 1;
        self.reap_entry(db);
        true
    }

    fn reap_entry(&mut self, db: DbId) {
        if self.entries.get(db).is_some_and(|entry| entry.removed && entry.dying_pools == 0 && entry.pools.is_empty()) {
            self.entries.remove(db);
        }
    }

    /// Replaces every server of an entry as it falls free.
    pub(super) fn reconnect_entry(&mut self, db: DbId, now: Micros) {
        for pool in self.entries[db].pools.clone() {
            self.pools[pool].reply = None;
            for server in self.servers_of(pool) {
                let state = &self.servers[server];
                match (state.state, state.kind) {
                    (ServerState::New, LaunchKind::Login) => self.doom(server, "connect string changed".into()),
                    (ServerState::New | ServerState::ActiveCancel, _) => {}
                    _ => self.tag(server),
                }
            }
            self.serve(pool, now);
        }
    }
}
