//! What the console and signals do to the pools (console.md 6). `Err` is the text of the console's error.

use std::net::IpAddr;

use super::Pools;
use super::api::{Action, Address, CloseScope, LaunchKind, PauseMode, ShutdownMode};
use super::slot::{Server, ServerState};
use crate::config::CONSOLE_DATABASE;
use crate::disconnect::Disconnect;
use crate::id::{DbId, PoolId, ServerId};
use crate::time::Micros;

const BUSY: &str = "already suspended/paused";

impl<S, R: Clone> Pools<S, R> {
    #[must_use]
    pub fn pause_mode(&self) -> PauseMode {
        self.pause
    }

    #[must_use]
    pub fn shutdown_mode(&self) -> ShutdownMode {
        self.shutdown
    }

    /// Whether PAUSE or KILL, of all or of one entry, would be done.
    ///
    /// # Errors
    /// Paused or suspended already.
    pub fn may_pause(&self) -> Result<(), String> {
        if self.pause == PauseMode::None { Ok(()) } else { Err(BUSY.into()) }
    }

    /// Whether SUSPEND would be done.
    ///
    /// # Errors
    /// Paused or suspended already, or an entry is paused.
    pub fn may_suspend(&self) -> Result<(), String> {
        self.may_pause()?;
        // nobody would find one that sleeps, to resume it; it has nothing to suspend either
        if self.listed().any(|db| self.entries[db].paused) {
            return Err("cannot suspend with paused databases".into());
        }
        Ok(())
    }

    /// PAUSE: nothing is handed out; unlinked servers are closed. Done when `is_drained`.
    ///
    /// # Errors
    /// Paused or suspended already.
    pub fn pause_all(&mut self, _now: Micros) -> Result<(), String> {
        self.may_pause()?;
        self.start_pause();
        Ok(())
    }

    fn start_pause(&mut self) {
        self.pause = PauseMode::Paused;
        self.frozen = false;
        for pool in self.pool_ids() {
            self.drain(pool);
        }
        self.actions.push_back(Action::Drained);
    }

    /// Closes what no client is linked to; tests and cancels are left to end.
    fn drain(&mut self, pool: PoolId) {
        if self.entries[self.pools[pool].db].is_peer() {
            return;
        }
        for id in self.servers_of(pool) {
            let server = &self.servers[id];
            match (server.state, server.kind) {
                (ServerState::Idle | ServerState::Used, _) | (ServerState::New, LaunchKind::Login) => {
                    self.close_unlinked(id, "pause mode".into());
                }
                _ => {}
            }
        }
    }

    /// No server connection is left: a global PAUSE, or the shutdown that waits for servers, is complete.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.connections == 0
    }

    /// RESUME: ends PAUSE and SUSPEND; entries that are paused stay so.
    ///
    /// # Errors
    /// Nothing to resume, or the process is going down.
    pub fn resume_all(&mut self, now: Micros) -> Result<(), String> {
        if self.pause == PauseMode::None {
            return Err("pooler is not paused/suspended".into());
        }
        if self.shutdown != ShutdownMode::None {
            return Err("pooler is shutting down".into());
        }
        self.resume_everything(now);
        Ok(())
    }

    /// Nobody is left who could end a suspension: it ends by itself, also while the process is going down.
    pub fn unsuspend(&mut self, now: Micros) {
        if self.pause == PauseMode::Suspended {
            self.resume_everything(now);
        }
    }

    fn resume_everything(&mut self, now: Micros) {
        self.pause = PauseMode::None;
        self.frozen = false;
        self.serve_all(now);
    }

    /// SUSPEND begins: nothing is swept any more, but whoever waits is still served, for only then is he at rest.
    ///
    /// # Errors
    /// See `may_suspend`.
    pub fn suspend(&mut self, _now: Micros) -> Result<(), String> {
        self.may_suspend()?;
        self.pause = PauseMode::Suspended;
        Ok(())
    }

    /// All clients are at rest: nothing is handed out or opened any more, and what nobody is linked to and is not idle is
    /// closed. Done when `is_settled`. Does nothing unless suspended.
    pub fn freeze(&mut self) {
        if self.pause != PauseMode::Suspended {
            return;
        }
        self.frozen = true;
        let unsafe_ones: Vec<ServerId> = self
            .servers
            .iter()
            .filter(|(_, server)| match server.state {
                ServerState::Used | ServerState::Tested => true,
                ServerState::New => server.kind == LaunchKind::Login,
                _ => false,
            })
            .map(|(id, _)| id)
            .collect();
        for id in unsafe_ones {
            self.close_unlinked(id, "close unsafe file descriptors on suspend".into());
        }
    }

    /// Somebody was not at rest after all.
    pub fn thaw(&mut self, now: Micros) {
        if std::mem::replace(&mut self.frozen, false) {
            self.serve_all(now);
        }
    }

    /// Every server is idle, or linked to a client that knows it.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.servers.iter().all(|(_, server)| match server.state {
            ServerState::Idle => true,
            ServerState::Active => server.slot.is_none(),
            _ => false,
        })
    }

    /// Does anybody wait for a server of this pool?
    #[must_use]
    pub fn has_waiters(&self, pool: PoolId) -> bool {
        self.pools.get(pool).is_some_and(|pool| !pool.waiting.is_empty() || !pool.replicating.is_empty())
    }

    /// SHUTDOWN in one of its waiting modes.
    pub fn set_shutdown(&mut self, mode: ShutdownMode, now: Micros) {
        let before = std::mem::replace(&mut self.shutdown, mode);
        if mode == ShutdownMode::WaitForServers {
            self.start_pause();
            let why = Disconnect::fatal("server shutting down");
            for pool in self.pool_ids() {
                self.refuse_waiters(pool, &why);
            }
        } else if before == ShutdownMode::WaitForServers || self.pause == PauseMode::Suspended {
            // clients that are waited for need servers, and RESUME is refused from now on
            self.resume_everything(now);
        }
    }

    /// PAUSE of one entry. True: done at once; else done when `paused_entries_drained`.
    ///
    /// # Errors
    /// A global pause is on; no such entry.
    pub fn pause_db(&mut self, name: &str, now: Micros) -> Result<bool, String> {
        self.may_pause()?;
        let db = self.named(name, "pause", now)?;
        self.entries[db].paused = true;
        if self.entries[db].connections == 0 {
            return Ok(true);
        }
        for pool in self.entries[db].pools.clone() {
            self.drain(pool);
            let (db, user) = (self.pools[pool].db, self.pools[pool].user);
            self.relieve(db, user, now);
        }
        self.actions.push_back(Action::Drained);
        Ok(false)
    }

    /// An entry is paused that a PAUSE may be waiting for: it is listed, or fell asleep as the last of its servers left.
    #[must_use]
    pub fn has_paused_entry(&self) -> bool {
        let seen = |db: DbId| self.entries[db].idle_since.is_none() || !self.entries[db].pools.is_empty();
        self.names.values().any(|&db| self.entries[db].paused && seen(db))
    }

    /// No paused entry has a server connection.
    #[must_use]
    pub fn paused_entries_drained(&self) -> bool {
        self.entries.iter().all(|(_, entry)| !entry.paused || entry.connections == 0)
    }

    /// RESUME of one entry.
    ///
    /// # Errors
    /// No such entry, or it is not paused.
    pub fn resume_db(&mut self, name: &str, now: Micros) -> Result<(), String> {
        let not_paused = || format!("database {name} is not paused");
        // the console's entry is there, but cannot be paused
        if name == CONSOLE_DATABASE {
            return Err(not_paused());
        }
        let db = self.existing(name)?;
        if !std::mem::replace(&mut self.entries[db].paused, false) {
            return Err(not_paused());
        }
        for pool in self.entries[db].pools.clone() {
            self.serve(pool, now);
        }
        Ok(())
    }

    /// DISABLE: no new logins.
    ///
    /// # Errors
    /// No name, the console's name, or no such entry.
    pub fn disable_db(&mut self, name: Option<&str>, now: Micros) -> Result<(), String> {
        let name = name.ok_or("a database is required")?;
        let db = self.named(name, "disable", now)?;
        self.entries[db].disabled = true;
        Ok(())
    }

    /// ENABLE: undoes DISABLE.
    ///
    /// # Errors
    /// No name, the console's name, or no such entry.
    pub fn enable_db(&mut self, name: Option<&str>, _now: Micros) -> Result<(), String> {
        let name = name.ok_or("a database is required")?;
        if name == CONSOLE_DATABASE {
            return Err(format!("cannot enable admin db: {name}"));
        }
        let db = self.existing(name)?;
        self.entries[db].disabled = false;
        Ok(())
    }

    /// RECONNECT of one entry or all: every server is replaced as it falls free.
    ///
    /// # Errors
    /// The console's name, or no such entry.
    pub fn reconnect(&mut self, name: Option<&str>, now: Micros) -> Result<(), String> {
        for db in self.meant(name, "reconnect", now)? {
            self.reconnect_entry(db, now);
        }
        Ok(())
    }

    /// KILL of one entry or all that have pools: pauses it and drops its clients, servers and pools.
    ///
    /// # Errors
    /// A global pause is on; the console's name; no such entry.
    pub fn kill(&mut self, name: Option<&str>, now: Micros) -> Result<(), String> {
        self.may_pause()?;
        for db in self.meant(name, "kill", now)? {
            self.entries[db].paused = true;
            self.drop_pools(db, &Disconnect::fatal("database removed"), now);
        }
        Ok(())
    }

    /// WAIT_CLOSE. `None`: done at once; else done when `close_pending` says no.
    ///
    /// # Errors
    /// The console's name, or no such entry.
    pub fn wait_close(&mut self, name: Option<&str>, now: Micros) -> Result<Option<CloseScope>, String> {
        let Some(name) = name else {
            return Ok((self.connections > 0).then_some(CloseScope::All));
        };
        let db = self.named(name, "wait in", now)?;
        Ok((self.entries[db].connections > 0).then_some(CloseScope::Entry(db)))
    }

    /// Is a server left that waits to be closed?
    #[must_use]
    pub fn close_pending(&self, scope: CloseScope) -> bool {
        self.pools.iter().any(|(_, pool)| pool.close_needed > 0 && scope.covers(pool.db))
    }

    #[must_use]
    pub fn close_needed(&self, server: ServerId) -> bool {
        self.servers.get(server).is_some_and(|server| server.close_needed)
    }

    /// A connection in state new was made to this address.
    pub fn located(&mut self, server: ServerId, address: Address) {
        if let Some(server) = self.servers.get_mut(server) {
            server.address = Some(address);
        }
    }

    /// A host name no longer has these addresses: servers there are to be closed as soon as they are free. Only those of
    /// entries with just that name, for in a list of hosts nobody can tell whose address it was.
    pub fn addresses_gone(&mut self, host: &str, gone: &[IpAddr]) {
        let there = |server: &Server<S>| {
            server.kind == LaunchKind::Login
                && self.entries[self.pools[server.pool].db].database.host.as_deref() == Some(host)
                && matches!(&server.address, Some(Address::Tcp(addr)) if gone.contains(&addr.ip()))
        };
        let found: Vec<ServerId> = self.servers.iter().filter(|(_, server)| there(server)).map(|(id, _)| id).collect();
        for server in found {
            self.tag(server);
        }
    }

    /// The server is to be closed as soon as it is free.
    pub fn mark_close_needed(&mut self, server: ServerId) {
        self.tag(server);
    }

    /// The entries a command means: the one of that name, or all that have pools.
    fn meant(&mut self, name: Option<&str>, verb: &str, now: Micros) -> Result<Vec<DbId>, String> {
        match name {
            Some(name) => Ok(vec![self.named(name, verb, now)?]),
            None => Ok(self.names.values().copied().filter(|&db| !self.entries[db].pools.is_empty()).collect()),
        }
    }

    fn named(&mut self, name: &str, verb: &str, now: Micros) -> Result<DbId, String> {
        if name == CONSOLE_DATABASE {
            return Err(format!("cannot {verb} admin db: {name}"));
        }
        self.find_database(name, now).ok_or_else(|| no_such(name))
    }

    /// The entry of that name, brought back if it was idle; none is made.
    fn existing(&mut self, name: &str) -> Result<DbId, String> {
        let db = self.names.get(name).copied().ok_or_else(|| no_such(name))?;
        self.entries[db].idle_since = None;
        Ok(db)
    }

    pub(super) fn pool_ids(&self) -> Vec<PoolId> {
        self.pools.iter().map(|(id, _)| id).collect()
    }

    pub(super) fn serve_all(&mut self, now: Micros) {
        for pool in self.pool_ids() {
            self.serve(pool, now);
        }
    }
}

fn no_such(name: &str) -> String {
    format!("no such database: {name}")
}
