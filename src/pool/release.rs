//! What becomes of a connection that a worker gives back (pooling.md 5).

use std::borrow::Cow;

use super::api::{Action, Parked, Released, TestQuery};
use super::launch::unknown;
use super::list::End;
use super::slot::ServerState;
use super::{PauseMode, Pools};
use crate::config::PoolMode;
use crate::id::{PoolId, ServerId, WorkerId};
use crate::time::Micros;

/// Where a connection comes from.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It has just logged in.
    Login,
    /// A client; `session_end` if it was a session.
    Link { session_end: bool },
    /// The slot of a client that did not collect it.
    Slot,
    /// A rest until cancels were over.
    Rest,
    /// A reset or check query.
    Test,
    /// A look at what had arrived.
    Inspection,
}

impl<S, R: Clone> Pools<S, R> {
    /// A client gives its server back, clean: no answers outstanding, nothing buffered, no transaction. `session_end`: a
    /// client of a session pool has left.
    pub fn release(
        &mut self,
        server: ServerId,
        conn: S,
        session_end: bool,
        home: WorkerId,
        now: Micros,
    ) -> Released<S> {
        let Some(state) = self.servers.get_mut(server) else { return unknown(conn) };
        state.home = home;
        state.last_used = now;
        self.last_home = home;
        self.settle_for(server, conn, Origin::Link { session_end }, now)
    }

    /// The reset or check query is done.
    pub fn tested(&mut self, server: ServerId, conn: S, home: WorkerId, now: Micros) -> Released<S> {
        let Some(state) = self.servers.get_mut(server) else { return unknown(conn) };
        state.home = home;
        self.settle_for(server, conn, Origin::Test, now)
    }

    /// A worker closed a connection that was in its hands.
    pub fn gone(&mut self, server: ServerId, now: Micros) {
        let Some(state) = self.servers.get_mut(server) else { return };
        let pool = state.pool;
        if let Some(conn) = state.conn.take() {
            let reason = "server conn crashed?".into();
            self.actions.push_back(Action::Close { server, pool, conn, reason });
        }
        if let Some(cancel) = self.servers[server].carries.take() {
            self.finish_cancel(cancel, now);
        }
        self.forget(server);
        self.removed(pool, now);
    }

    /// Lends out a parked connection on which something arrived. `None`: it is not parked any more.
    pub fn take_parked(&mut self, server: ServerId) -> Option<Parked<S>> {
        let state = self.servers.get_mut(server).filter(|server| server.state.is_parked())?;
        let conn = state.conn.take()?;
        let (from, home) = (state.state, state.home);
        state.inspected_in = from;
        self.move_to(server, ServerState::Inspected, home, End::Back);
        Some(Parked { conn, state: from })
    }

    /// Ends a look at a parked connection. `dirty`: it said something that is no answer to anything.
    pub fn put_back(&mut self, server: ServerId, conn: S, dirty: bool, now: Micros) -> Released<S> {
        let Some(state) = self.servers.get(server) else { return unknown(conn) };
        if dirty && state.doomed.is_none() {
            let reason = match state.inspected_in {
                ServerState::Used => "SV_USED server got dirty",
                _ => "SV_IDLE server got dirty",
            };
            let pool = state.pool;
            self.forget(server);
            self.removed(pool, now);
            return Released::Close { conn, reason: reason.into() };
        }
        self.settle_for(server, conn, Origin::Inspection, now)
    }

    /// Decides where a connection goes; one to be closed is forgotten, and the caller sees to `removed`.
    pub(super) fn settle(&mut self, id: ServerId, conn: S, from: Origin, now: Micros) -> Released<S> {
        if let Some(reason) = self.reason_to_close(id, from, now) {
            self.forget(id);
            return Released::Close { conn, reason };
        }
        let server = &self.servers[id];
        let (home, replication, pool) = (server.home, server.replication, server.pool);
        let linked = matches!(from, Origin::Link { .. });
        let inspected = (from == Origin::Inspection).then_some(server.inspected_in);
        if server.cancels_in_flight > 0 && (linked || inspected == Some(ServerState::BeingCanceled)) {
            return self.park(id, conn, ServerState::BeingCanceled);
        }
        if replication {
            self.forget(id);
            return Released::Close { conn, reason: "replication client was closed".into() };
        }
        let rested = from == Origin::Rest || inspected == Some(ServerState::BeingCanceled);
        if (linked || rested) && self.needs_reset(id, from) {
            self.move_to(id, ServerState::Tested, home, End::Back);
            return Released::Test { conn, query: TestQuery::Reset };
        }
        let settings = &self.config.settings;
        let unsure = settings.server_check_delay.is_zero() && settings.check_query().is_some();
        if ((linked || rested) && unsure) || inspected == Some(ServerState::Used) {
            let released = self.park(id, conn, ServerState::Used);
            self.parked(pool, now);
            return released;
        }
        self.make_idle(id, conn, now)
    }

    fn reason_to_close(&mut self, id: ServerId, from: Origin, now: Micros) -> Option<Cow<'static, str>> {
        let server = &self.servers[id];
        if let Some(reason) = &server.doomed {
            return Some(reason.clone());
        }
        let id_of_pool = server.pool;
        let pool = &self.pools[id_of_pool];
        let paused = self.pause == PauseMode::Paused || self.entries[pool.db].paused;
        if matches!(from, Origin::Link { .. } | Origin::Rest | Origin::Test) && pool.finds_too_old(server, now) {
            self.pools[id_of_pool].last_lifetime_close = Some(now);
            return Some("server lifetime over".into());
        }
        if server.cancels_unsent > 0 {
            self.drop_unsent_cancels(id);
        }
        let server = &self.servers[id];
        if server.close_needed {
            return Some("close_needed".into());
        }
        if server.cancel_astray {
            return Some("cancel request given up on its way".into());
        }
        (paused && server.cancels_in_flight == 0).then(|| "pause mode".into())
    }

    fn needs_reset(&self, id: ServerId, from: Origin) -> bool {
        let settings = &self.config.settings;
        let session = match from {
            Origin::Link { session_end } => session_end,
            _ => self.pools[self.servers[id].pool].sizes.mode == PoolMode::Session,
        };
        (session || settings.server_reset_query_always.is_on()) && !settings.server_reset_query.is_empty()
    }

    fn park(&mut self, id: ServerId, conn: S, state: ServerState) -> Released<S> {
        let home = self.servers[id].home;
        self.move_to(id, state, home, End::Front);
        self.servers[id].conn = Some(conn);
        Released::Kept
    }

    /// Gives a connection to the first waiting client, or parks it as idle.
    pub(super) fn make_idle(&mut self, id: ServerId, conn: S, now: Micros) -> Released<S> {
        let (pool, home) = (self.servers[id].pool, self.servers[id].home);
        if let Some(ticket) = self.pools[pool].waiting.first()
            && !self.is_held(pool)
        {
            self.hand_over(ticket, id, conn);
            return Released::Kept;
        }
        let end = if self.config.settings.server_round_robin.is_on() { End::Back } else { End::Front };
        self.move_to(id, ServerState::Idle, home, end);
        self.servers[id].conn = Some(conn);
        self.parked(pool, now);
        Released::Kept
    }

    /// A connection of the pool came to rest: the pool may use it, others may have it evicted.
    fn parked(&mut self, id: PoolId, now: Micros) {
        let pool = &self.pools[id];
        let (db, user) = (pool.db, pool.user);
        if pool.has_waiters() {
            self.serve(id, now);
        }
        self.relieve(db, user, now);
    }

    /// Checks a used server before somebody gets it; one released a moment ago needs no check.
    pub(super) fn start_check(&mut self, id: ServerId, now: Micros) {
        let server = &mut self.servers[id];
        let (home, last_used) = (server.home, server.last_used);
        let conn = server.conn.take().expect("a used server has its connection here");
        let settings = &self.config.settings;
        if settings.check_query().is_none() || now.since(last_used) < settings.server_check_delay {
            // stays in line: whoever it is for is the first one waiting
            self.make_idle(id, conn, now);
            return;
        }
        self.move_to(id, ServerState::Tested, home, End::Back);
        self.actions.push_back(Action::Check { server: id, conn, home, query: TestQuery::Check });
    }

    /// Does what `settle` decided when no worker waits for the answer.
    pub(super) fn obey(&mut self, server: ServerId, pool: PoolId, released: Released<S>, now: Micros) {
        match released {
            Released::Kept => {}
            Released::Close { conn, reason } => {
                self.actions.push_back(Action::Close { server, pool, conn, reason });
                self.removed(pool, now);
            }
            Released::Test { conn, query } => {
                let home = self.servers[server].home;
                self.actions.push_back(Action::Check { server, conn, home, query });
            }
        }
    }

    /// `settle` for a worker that waits for the answer.
    pub(super) fn settle_for(&mut self, id: ServerId, conn: S, from: Origin, now: Micros) -> Released<S> {
        let pool = self.servers[id].pool;
        let released = self.settle(id, conn, from, now);
        if matches!(released, Released::Close { .. }) {
            self.removed(pool, now);
        }
        released
    }

    /// What follows from a removal: the pool may go, or launch; others may use the room.
    pub(super) fn removed(&mut self, pool: PoolId, now: Micros) {
        let (db, user) = (self.pools[pool].db, self.pools[pool].user);
        if !self.reap(pool) {
            self.serve(pool, now);
        }
        self.relieve(db, user, now);
    }
}
