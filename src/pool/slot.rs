//! One server connection, its states, and the one function that moves it between them.
//!
//! ```text
//!           launch                login               checkout
//!  (none) ---------> New ----------------> Idle <----------------> Active
//!                     |                    |  ^     release        |    |
//!                     | a cancel waits     |  |                    |    | cancels in flight
//!                     v        check_delay |  | reset, check done  |    v
//!                ActiveCancel              v  |                    | BeingCanceled
//!                                        Used -> Tested <----------+----+
//! ```
//!
//! Idle, Used and BeingCanceled are parked: their connection is here. In the other states it is in the hands of a worker:
//! New and ActiveCancel (being opened, carrying a cancel), Tested (a query of ours runs), Active (linked to a client, or in
//! the slot of a waiting one), Inspected (a parked one on which something arrived). State is membership in a list, counts
//! are lengths of lists.

use std::borrow::Cow;

use super::Pools;
use super::api::{Address, LaunchKind};
use super::list::{End, Linked, Links};
use crate::id::{CancelId, PoolId, ServerId, Ticket, WorkerId};
use crate::time::Micros;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ServerState {
    New,
    Idle,
    Used,
    Tested,
    Active,
    BeingCanceled,
    ActiveCancel,
    Inspected,
}

impl ServerState {
    pub(super) const COUNT: usize = 8;
    /// In the order of SHOW SERVERS; `Inspected` counts as idle.
    pub(super) const SHOWN: [Self; Self::COUNT] = [
        Self::Active,
        Self::Idle,
        Self::Inspected,
        Self::Used,
        Self::Tested,
        Self::New,
        Self::ActiveCancel,
        Self::BeingCanceled,
    ];

    /// Is the connection kept here?
    #[must_use]
    pub fn is_parked(self) -> bool {
        matches!(self, Self::Idle | Self::Used | Self::BeingCanceled)
    }
}

#[derive(Debug)]
pub(super) struct Server<S> {
    pub(super) pool: PoolId,
    pub(super) state: ServerState,
    /// Where it is parked, or the worker that has it.
    pub(super) home: WorkerId,
    pub(super) conn: Option<S>,
    pub(super) kind: LaunchKind,
    /// Known once it was connected to.
    pub(super) address: Option<Address>,
    pub(super) launched: Micros,
    pub(super) last_used: Micros,
    pub(super) close_needed: bool,
    /// A cancel request for it was given up on its way: it may arrive at any time.
    pub(super) cancel_astray: bool,
    /// An Evict was ordered: whatever comes back is closed for this reason.
    pub(super) doomed: Option<Cow<'static, str>>,
    /// The waiter whose slot it is in.
    pub(super) slot: Option<Ticket>,
    /// It was opened for one replication client, and serves nobody else.
    pub(super) replication: bool,
    /// The waiting client that it is being opened for.
    pub(super) tied: Option<Ticket>,
    /// Cancels aimed at it, already on their way.
    pub(super) cancels_in_flight: u32,
    /// Cancels aimed at it that still wait for a connection.
    pub(super) cancels_unsent: u32,
    /// The request it carries.
    pub(super) carries: Option<CancelId>,
    /// The state that an inspection interrupted.
    pub(super) inspected_in: ServerState,
    /// Counts parkings, so that lists of several workers have one order.
    pub(super) stamp: u64,
    pub(super) links: Links<ServerId>,
}

impl<S> Linked<ServerId> for Server<S> {
    fn links(&self) -> &Links<ServerId> {
        &self.links
    }
    fn links_mut(&mut self) -> &mut Links<ServerId> {
        &mut self.links
    }
}

impl<S, R: Clone> Pools<S, R> {
    /// Counts a new connection everywhere.
    pub(super) fn enlist(&mut self, pool: PoolId, kind: LaunchKind, home: WorkerId, now: Micros) -> ServerId {
        let id = self.servers.insert(Server {
            pool,
            state: ServerState::New,
            home,
            conn: None,
            kind,
            address: None,
            launched: now,
            last_used: now,
            close_needed: false,
            cancel_astray: false,
            doomed: None,
            slot: None,
            replication: false,
            tied: None,
            cancels_in_flight: 0,
            cancels_unsent: 0,
            carries: None,
            inspected_in: ServerState::Idle,
            stamp: 0,
            links: Links::default(),
        });
        let (db, user) = {
            let pool = &mut self.pools[pool];
            pool.connections += 1;
            (pool.db, pool.user)
        };
        self.entries[db].connections += 1;
        self.users[user.0 as usize].connections += 1;
        if !self.entries[db].is_peer() {
            self.connections += 1;
        }
        self.pools[pool].list_mut(ServerState::New, home).push(&mut self.servers, id, End::Back);
        id
    }

    /// The one mover.
    pub(super) fn move_to(&mut self, id: ServerId, state: ServerState, home: WorkerId, end: End) {
        let server = &mut self.servers[id];
        let from = std::mem::replace(&mut server.state, state);
        let at = std::mem::replace(&mut server.home, home);
        if state == ServerState::Idle {
            self.stamp += 1;
            server.stamp = self.stamp;
        }
        let pool = &mut self.pools[server.pool];
        pool.list_mut(from, at).remove(&mut self.servers, id);
        pool.idle -= u32::from(from == ServerState::Idle);
        pool.list_mut(state, home).push(&mut self.servers, id, end);
        pool.idle += u32::from(state == ServerState::Idle);
    }

    /// Takes a connection out of every list and count. What follows from the room it leaves is the caller's to do.
    pub(super) fn forget(&mut self, id: ServerId) -> Option<Server<S>> {
        let (state, home, pool) = {
            let server = self.servers.get(id)?;
            (server.state, server.home, server.pool)
        };
        if self.servers[id].cancels_unsent > 0 {
            self.untarget_unsent_cancels(id);
        }
        self.untie(id);
        let owner = &mut self.pools[pool];
        owner.list_mut(state, home).remove(&mut self.servers, id);
        owner.idle -= u32::from(state == ServerState::Idle);
        owner.connections -= 1;
        let (db, user) = (owner.db, owner.user);
        let server = self.servers.remove(id)?;
        owner.close_needed -= u32::from(server.close_needed);
        let entry = &mut self.entries[db];
        entry.connections -= 1;
        entry.evicting -= u32::from(server.doomed.is_some());
        let user = &mut self.users[user.0 as usize];
        user.connections -= 1;
        user.evicting -= u32::from(server.doomed.is_some());
        self.connections -= usize::from(!entry.is_peer());
        let paused = entry.paused && entry.connections == 0;
        if server.close_needed || paused || (self.mode_waits() && self.connections == 0) {
            self.actions.push_back(super::Action::Drained);
        }
        Some(server)
    }

    pub(super) fn tag(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(id)
            && !server.close_needed
        {
            server.close_needed = true;
            self.pools[server.pool].close_needed += 1;
        }
    }
}
