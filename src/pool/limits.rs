//! Counts of entries and users, whom to evict when one of their limits is reached, and who gets the room that falls free.

use std::borrow::Cow;
use std::sync::Arc;

use super::Pools;
use super::api::Action;
use super::slot::ServerState;
use crate::config::{Database, Peer, effective};
use crate::disconnect::Disconnect;
use crate::id::{DbId, PoolId, ServerId, UserId};
use crate::time::Micros;

#[derive(Debug)]
pub(super) enum EntryKind {
    /// From `[databases]`.
    Configured,
    /// From `*`.
    Auto,
    /// Not an entry at all: it owns the pool of a peer.
    Peer(Arc<Peer>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) database: Arc<Database>,
    pub(super) kind: EntryKind,
    /// Sorted by name of the pool user.
    pub(super) pools: Vec<PoolId>,
    /// Pools taken out of `pools` that still exist.
    pub(super) dying_pools: u32,
    /// Those that have proved who they are.
    pub(super) clients: u32,
    /// Server connections in every state, those of dying pools included.
    pub(super) connections: u32,
    /// Connections ordered closed that still count.
    pub(super) evicting: u32,
    /// A launch failed for want of room.
    pub(super) starved: bool,
    pub(super) max_connections: u32,
    pub(super) max_clients: u32,
    pub(super) paused: bool,
    pub(super) disabled: bool,
    /// Under whom users were first looked up.
    pub(super) auth_user: Option<Arc<str>>,
    /// Since when an auto entry is unused.
    pub(super) idle_since: Option<Micros>,
    /// Out of the table of names; it exists until its pools are gone.
    pub(super) removed: bool,
}

impl Entry {
    pub(super) fn new(database: Arc<Database>, kind: EntryKind) -> Self {
        Self {
            database,
            kind,
            pools: Vec::new(),
            dying_pools: 0,
            clients: 0,
            connections: 0,
            evicting: 0,
            starved: false,
            max_connections: 0,
            max_clients: 0,
            paused: false,
            disabled: false,
            auth_user: None,
            idle_since: None,
            removed: false,
        }
    }

    pub(super) fn is_peer(&self) -> bool {
        matches!(self.kind, EntryKind::Peer(_))
    }
}

#[derive(Debug, Default)]
pub(super) struct User {
    pub(super) name: String,
    /// Pools of all entries with this pool user.
    pub(super) pools: Vec<PoolId>,
    pub(super) connections: u32,
    /// Those that have proved who they are, at the console too.
    pub(super) clients: u32,
    pub(super) evicting: u32,
    pub(super) starved: bool,
    pub(super) max_connections: u32,
    pub(super) max_clients: u32,
}

/// A limit as configured; nothing and what makes no sense is 0, unlimited.
pub(super) fn limit(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// Whose limit is meant.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Entry(DbId),
    User(UserId),
}

impl<S, R: Clone> Pools<S, R> {
    /// The object of a user; made if need be, and kept for ever.
    pub fn user(&mut self, name: &str) -> UserId {
        if let Some(&id) = self.user_names.get(name) {
            return id;
        }
        let id = UserId(u32::try_from(self.users.len()).expect("fewer than 2^32 users fit into memory"));
        self.users.push(User { name: name.to_owned(), ..User::default() });
        self.user_names.insert(name.to_owned(), id);
        self.size_user(id);
        id
    }

    /// Looks up the limits of a user again.
    pub(super) fn size_user(&mut self, id: UserId) {
        let user = &mut self.users[id.0 as usize];
        user.max_connections = limit(effective::max_user_connections(&self.config, &user.name));
        user.max_clients = limit(effective::max_user_client_connections(&self.config, &user.name));
    }

    pub(super) fn size_entry(&mut self, id: DbId) {
        let entry = &mut self.entries[id];
        if entry.is_peer() {
            return;
        }
        entry.max_connections = limit(effective::max_db_connections(&self.config, &entry.database));
        entry.max_clients = limit(effective::max_db_client_connections(&self.config, &entry.database));
    }

    /// Counts a client on its entry and its login user, unless a limit forbids it: one that has proved who it is, for strangers
    /// must not use up what is for users.
    pub(super) fn count_client(&mut self, db: DbId, user: UserId, exempt: bool) -> Result<(), Disconnect> {
        let entry = &self.entries[db];
        entry_limit(entry.max_clients, entry.clients, exempt)?;
        self.count_user_client(user, exempt)?;
        self.entries[db].clients += 1;
        Ok(())
    }

    fn count_user_client(&mut self, user: UserId, exempt: bool) -> Result<(), Disconnect> {
        let user = &mut self.users[user.0 as usize];
        user_limit(user.max_clients, user.clients, exempt)?;
        user.clients += 1;
        Ok(())
    }

    /// Whoever comes to an entry that is full need not be asked for a password: this tells nothing about users.
    ///
    /// # Errors
    /// `max_db_client_connections` is reached.
    pub fn entry_has_room(&self, db: DbId) -> Result<(), Disconnect> {
        self.entries.get(db).map_or(Ok(()), |entry| entry_limit(entry.max_clients, entry.clients, false))
    }

    /// The same for a login that ends without being counted. Not before a password: it tells who is known.
    ///
    /// # Errors
    /// `max_user_client_connections` is reached.
    pub fn user_has_room(&self, login_user: &str) -> Result<(), Disconnect> {
        let user = self.user_names.get(login_user).map(|id| &self.users[id.0 as usize]);
        user.map_or(Ok(()), |user| user_limit(user.max_clients, user.clients, false))
    }

    /// As [`Self::entry_has_room`], for the console, which has the limit of any other database.
    ///
    /// # Errors
    /// `max_db_client_connections` is reached.
    pub fn console_has_room(&self, limits_exempt: bool) -> Result<(), Disconnect> {
        let max = limit(self.config.settings.max_db_client_connections);
        entry_limit(max, self.console_clients, limits_exempt)
    }

    /// Counts a client of the console. `limits_exempt`: its name is in admin_users.
    ///
    /// # Errors
    /// The limits of the console entry and of the user.
    pub fn attach_console(&mut self, login_user: &str, limits_exempt: bool) -> Result<UserId, Disconnect> {
        self.console_has_room(limits_exempt)?;
        let user = self.user(login_user);
        self.count_user_client(user, limits_exempt)?;
        self.console_clients += 1;
        Ok(user)
    }

    pub fn detach_console(&mut self, user: UserId) {
        self.console_clients = self.console_clients.saturating_sub(1);
        if let Some(user) = self.users.get_mut(user.0 as usize) {
            user.clients = user.clients.saturating_sub(1);
        }
    }

    /// Is there room for one more connection of this pool? Evicts for it if `evict`.
    pub(super) fn make_room(&mut self, pool: PoolId, evict: bool) -> bool {
        let (db, user) = (self.pools[pool].db, self.pools[pool].user);
        self.make_room_at(Holder::Entry(db), evict) && self.make_room_at(Holder::User(user), evict)
    }

    fn make_room_at(&mut self, holder: Holder, evict: bool) -> bool {
        loop {
            let (max, connections, evicting) = self.holding(holder);
            if max == 0 || connections < max {
                return true;
            }
            if !evict || evicting > 0 || !self.evict_one(holder) {
                self.set_starved(holder, true);
                return false;
            }
        }
    }

    fn holding(&self, holder: Holder) -> (u32, u32, u32) {
        match holder {
            Holder::Entry(db) => {
                let entry = &self.entries[db];
                (entry.max_connections, entry.connections, entry.evicting)
            }
            Holder::User(user) => {
                let user = &self.users[user.0 as usize];
                (user.max_connections, user.connections, user.evicting)
            }
        }
    }

    fn set_starved(&mut self, holder: Holder, starved: bool) {
        match holder {
            Holder::Entry(db) => self.entries[db].starved = starved,
            Holder::User(user) => self.users[user.0 as usize].starved = starved,
        }
    }

    fn is_starved(&self, holder: Holder) -> bool {
        match holder {
            Holder::Entry(db) => self.entries[db].starved,
            Holder::User(user) => self.users[user.0 as usize].starved,
        }
    }

    fn pools_of(&self, holder: Holder) -> &[PoolId] {
        match holder {
            Holder::Entry(db) => &self.entries[db].pools,
            Holder::User(user) => &self.users[user.0 as usize].pools,
        }
    }

    /// Closes the unlinked server that was unused longest. False: there is none.
    fn evict_one(&mut self, holder: Holder) -> bool {
        let Some((_, id)) = self.pools_of(holder).iter().filter_map(|&pool| self.least_recent(pool)).min() else {
            return false;
        };
        self.note_room(self.servers[id].pool);
        self.close_unlinked(id, "evicted".into());
        true
    }

    /// A connection of the pool is about to be closed; the next `launch` sees to those who lack room because of it.
    pub(super) fn note_room(&mut self, pool: PoolId) {
        let (db, user) = (self.pools[pool].db, self.pools[pool].user);
        if self.entries[db].starved || self.users[user.0 as usize].starved {
            self.freed.push((db, user));
        }
    }

    /// The idle server of the pool that was unused longest, and when nobody waits also one that is used or tested.
    pub(super) fn least_recent(&self, pool: PoolId) -> Option<(Micros, ServerId)> {
        let pool = &self.pools[pool];
        let idle = pool.idle_lists().iter().flat_map(|list| list.iter(&self.servers));
        let unsure = [ServerState::Used, ServerState::Tested]
            .into_iter()
            .filter(|_| pool.waiting.is_empty())
            .flat_map(|state| pool.list(state).iter(&self.servers));
        idle.chain(unsure)
            .filter(|(_, server)| server.doomed.is_none())
            .map(|(id, server)| (server.last_used, id))
            .min()
    }

    /// Closes a server that no client is linked to: at once when it is parked, through its worker otherwise.
    pub(super) fn close_unlinked(&mut self, id: ServerId, reason: Cow<'static, str>) {
        let server = &mut self.servers[id];
        let pool = server.pool;
        if let Some(conn) = server.conn.take() {
            self.forget(id);
            self.actions.push_back(Action::Close { server: id, pool, conn, reason });
        } else {
            self.doom(id, reason);
        }
    }

    /// Orders a worker to close a server it has in its hands; the first order counts.
    pub(super) fn doom(&mut self, id: ServerId, reason: Cow<'static, str>) {
        let server = &mut self.servers[id];
        if server.doomed.is_some() {
            return;
        }
        server.doomed = Some(reason.clone());
        let (pool, home) = (server.pool, server.home);
        let (db, user) = (self.pools[pool].db, self.pools[pool].user);
        self.entries[db].evicting += 1;
        self.users[user.0 as usize].evicting += 1;
        self.actions.push_back(Action::Evict { server: id, home, reason });
    }

    /// A server of this entry and user was closed or became idle: whoever lacks room because of their limits tries again,
    /// the longest waiting pool first.
    #[inline]
    pub(super) fn relieve(&mut self, db: DbId, user: UserId, now: Micros) {
        if self.users[user.0 as usize].starved || self.entries.get(db).is_some_and(|entry| entry.starved) {
            self.relieve_starved(db, user, now);
        }
    }

    fn relieve_starved(&mut self, db: DbId, user: UserId, now: Micros) {
        for holder in [Holder::Entry(db), Holder::User(user)] {
            if matches!(holder, Holder::Entry(db) if !self.entries.contains(db)) || !self.is_starved(holder) {
                continue;
            }
            self.set_starved(holder, false);
            self.feed(holder, now);
        }
    }

    fn feed(&mut self, holder: Holder, now: Micros) {
        let mut fed = 0;
        while let Some((seq, pool)) = self.hungriest(holder, fed) {
            fed = seq + 1;
            self.launch(pool, true, now);
            if self.is_starved(holder) {
                return;
            }
        }
    }

    /// The pool whose first client is in line for longest, among those queued at `from` or later that lack servers.
    fn hungriest(&self, holder: Holder, from: u64) -> Option<(u64, PoolId)> {
        self.pools_of(holder)
            .iter()
            .filter(|&&id| self.lacks_server(id))
            .filter_map(|&id| Some((self.first_seq(id)?, id)))
            .filter(|&(seq, _)| seq >= from)
            .min()
    }

    pub(super) fn first_seq(&self, pool: PoolId) -> Option<u64> {
        self.first_in_line(pool).map(|ticket| self.waiters[ticket].seq)
    }
}

fn entry_limit(max: u32, count: u32, exempt: bool) -> Result<(), Disconnect> {
    refuse_above(max, count, exempt, "client connections exceeded (max_db_client_connections)")
}

fn user_limit(max: u32, count: u32, exempt: bool) -> Result<(), Disconnect> {
    refuse_above(max, count, exempt, "client connections exceeded (max_user_client_connections)")
}

fn refuse_above(max: u32, count: u32, exempt: bool, text: &'static str) -> Result<(), Disconnect> {
    if max > 0 && count >= max && !exempt {
        return Err(Disconnect::fatal(text));
    }
    Ok(())
}
