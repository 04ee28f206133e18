//! When a new connection is opened, and what becomes of the attempt.

use super::api::{Action, Address, FailureKind, LaunchKind, LoginFailure, Released};
use super::list::End;
use super::slot::ServerState;
use super::{Origin, Pools};
use crate::disconnect::Disconnect;
use crate::id::{PoolId, ServerId, WorkerId};
use crate::time::Micros;

/// Longest reason that is remembered, and longest text of a fast failure, in bytes; PgBouncer's buffers.
const REASON_BYTES: usize = 99;
const FAST_FAIL_BYTES: usize = 127;

impl<S, R: Clone> Pools<S, R> {
    /// Does somebody in this pool need a connection that is neither there nor on its way?
    pub(super) fn lacks_server(&self, id: PoolId) -> bool {
        let pool = &self.pools[id];
        let coming = pool.count(ServerState::Tested) + pool.count(ServerState::Used) + pool.idle;
        !pool.waiting_login.is_empty()
            || !pool.replicating.is_empty()
            || !pool.cancels_waiting.is_empty()
            || pool.waiting.len() > coming
    }

    /// Opens a connection if the rules allow one (pooling.md 4.3). The caller knows that one is wanted; `evict`: others may
    /// be closed for it.
    pub(super) fn launch(&mut self, id: PoolId, evict: bool, now: Micros) {
        self.try_launch(id, evict, now);
        // what was closed on the way may have counted on somebody else's limit as well
        while let Some((db, user)) = self.freed.pop() {
            self.relieve(db, user, now);
        }
    }

    fn try_launch(&mut self, id: PoolId, evict: bool, now: Micros) {
        let pool = &self.pools[id];
        let retry = self.config.settings.server_login_retry;
        if pool.dying
            || self.frozen
            || pool.count(ServerState::New) > 0
            || (pool.connect_failed && now.since(pool.last_launch) < retry)
        {
            return;
        }
        let size = pool.sizes.pool_size;
        // a cancel may pass while all is paused: it can be what ends the pause
        if !pool.cancels_waiting.is_empty() && (size == 0 || pool.connections < size.saturating_mul(2)) {
            return self.open(id, LaunchKind::Cancel, now);
        }
        if self.is_held(id) || self.entries[pool.db].is_peer() {
            return;
        }
        let full = size > 0 && pool.reply.is_some() && pool.connections >= size;
        let reserve = full && self.may_use_reserve(id, now);
        if full && !reserve && !self.make_way(id) {
            return;
        }
        if !self.make_room(id, evict) {
            return;
        }
        if reserve {
            let first = self.first_in_line(id).map(|ticket| self.waiters[ticket].want.client);
            self.actions.extend(first.map(Action::TakesReserve));
        }
        self.open(id, LaunchKind::Login, now);
    }

    fn may_use_reserve(&self, id: PoolId, now: Micros) -> bool {
        let pool = &self.pools[id];
        let timeout = self.config.settings.reserve_pool_timeout;
        let waited = |ticket| now.since(self.waiters[ticket].want.since) >= timeout;
        !timeout.is_zero()
            && pool.connections < pool.sizes.pool_size.saturating_add(pool.sizes.reserve)
            && self.first_in_line(id).is_some_and(waited)
    }

    fn open(&mut self, id: PoolId, kind: LaunchKind, now: Micros) {
        let home = self.opener(id, kind);
        let pool = &mut self.pools[id];
        pool.last_launch = now;
        pool.last_used = now;
        let server = self.enlist(id, kind, home, now);
        self.actions.push_back(Action::Launch { server, pool: id, kind, home });
    }

    /// The worker that opens a connection: the one of whoever asked first, else in turn.
    fn opener(&mut self, id: PoolId, kind: LaunchKind) -> WorkerId {
        let pool = &self.pools[id];
        if kind == LaunchKind::Cancel
            && let Some(request) = pool.cancels_waiting.first()
        {
            return self.cancels[request].client.worker;
        }
        match self.first_in_line(id) {
            Some(ticket) => self.waiters[ticket].want.home,
            None => self.last_home,
        }
    }

    /// What a logged-in client hears at once when logging in has been failing and no connection is left.
    pub(super) fn fast_fail(&self, id: PoolId) -> Option<Disconnect> {
        let pool = &self.pools[id];
        let reason = pool.login_failed.as_deref()?;
        if pool.connections > pool.count(ServerState::New) {
            return None;
        }
        let mut text = format!("server login has been failing, cached error: {reason} (server_login_retry)");
        cut(&mut text, FAST_FAIL_BYTES);
        Some(Disconnect::fatal(text))
    }

    /// Login, and connect_query if there is one, are done. `reply` is kept if the pool has none.
    pub fn logged_in(&mut self, server: ServerId, conn: S, reply: R, home: WorkerId, now: Micros) -> Released<S> {
        let Some(state) = self.servers.get_mut(server) else { return unknown(conn) };
        state.home = home;
        state.last_used = now;
        let id = state.pool;
        let doomed = state.doomed.is_some();
        let replication = state.replication;
        let pool = &mut self.pools[id];
        pool.connect_failed = false;
        pool.login_failed = None;
        if replication {
            return self.replication_ready(server, conn, now);
        }
        if !doomed && pool.reply.is_none() {
            pool.reply = Some(reply);
            self.answer_logins(id);
        }
        self.last_home = home;
        let released = self.settle_for(server, conn, Origin::Login, now);
        // the next one in line may open the next one
        self.serve(id, now);
        released
    }

    /// A connection logged in and went before anybody could have it. The next attempt need not wait.
    pub fn lost_after_login(&mut self, server: ServerId, now: Micros) {
        if let Some(state) = self.servers.get(server) {
            let pool = &mut self.pools[state.pool];
            pool.connect_failed = false;
            pool.login_failed = None;
        }
        self.gone(server, now);
    }

    /// A connection that a predecessor had opened; `link_inherited` or `park_inherited` says what it is doing.
    pub fn inherit(&mut self, pool: PoolId, home: WorkerId, address: Option<Address>, now: Micros) -> ServerId {
        let server = self.enlist(pool, LaunchKind::Login, home, now);
        self.servers[server].address = address;
        server
    }

    /// An inherited connection is linked to a client at its home.
    pub fn link_inherited(&mut self, server: ServerId) {
        let home = self.servers[server].home;
        self.move_to(server, ServerState::Active, home, End::Back);
    }

    /// An inherited connection is a replication client's own.
    pub fn inherit_replication(&mut self, server: ServerId) {
        if let Some(server) = self.servers.get_mut(server) {
            server.replication = true;
        }
    }

    /// An inherited connection is idle.
    pub fn park_inherited(&mut self, server: ServerId, conn: S, now: Micros) {
        if self.servers.contains(server) {
            let _ = self.make_idle(server, conn, now);
        }
    }

    /// The login reply that a predecessor had for a pool.
    pub fn inherit_reply(&mut self, pool: PoolId, reply: R) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.reply.get_or_insert(reply);
        }
    }

    /// A connection in state new came to nothing.
    pub fn login_failed(&mut self, server: ServerId, failure: LoginFailure, now: Micros) {
        let Some(state) = self.servers.get(server) else { return };
        // one that was ordered closed says nothing about the server
        if state.doomed.is_some() || state.state != ServerState::New {
            return self.gone(server, now);
        }
        let id = state.pool;
        if state.replication {
            return self.replication_failed(server, failure.reason, now);
        }
        self.forget(server);
        let pool = &mut self.pools[id];
        let mut reason = failure.reason;
        cut(&mut reason, REASON_BYTES);
        pool.connect_failed = true;
        pool.login_failed = Some(reason);
        let usable = pool.connected() > 0 && pool.reply.is_some();
        if let FailureKind::Login { relay: Some(why) } = failure.kind
            && !usable
        {
            self.refuse_waiters(id, &why);
        }
        self.removed(id, now);
    }
}

/// A connection that is not known here can only be closed.
pub(super) fn unknown<S>(conn: S) -> Released<S> {
    Released::Close { conn, reason: "connection no longer in a pool".into() }
}

fn cut(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        for (text, bytes, want) in [("abc", 5, "abc"), ("abc", 2, "ab"), ("aé", 2, "a"), ("", 0, "")] {
            let mut text = text.to_owned();
            cut(&mut text, bytes);
            assert_eq!(text, want);
        }
    }
}
