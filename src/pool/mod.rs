//! Who may use which server connection, and when: every pool and every limit, over all workers.
//!
//! Pure: connections (`S`) and login replies (`R`) are moved in and out and never looked at, time is an argument, and what
//! the shell has to do comes out of [`Pools::next_action`], to be drained after every call. The shell keeps all of it under
//! one lock, so nothing here blocks, walks over clients, or allocates while servers go round.
//!
//! Rules: PgBouncer's, as its manual and behaviour have them. Differences: a waiting client is served by its place in line
//! whatever worker it is on; room that falls free is given out at once, not at the next turn of a loop; cancel requests pass
//! while everything is paused.
//!
//! `slot.rs` one connection and its states, `pool.rs` one entry and user, `limits.rs` entries and users, `entries.rs` how
//! they come and go, `auth_users.rs` under whom users are looked up, `release.rs` what becomes of a connection, `launch.rs`
//! when a new one is opened, `upkeep.rs` what a tick decides, `admin.rs` the console's commands, `cancel.rs` cancel requests,
//! `replication.rs` replication clients, `picture.rs` what SHOW shows, `waits.rs` why clients wait.

mod admin;
mod api;
mod audit;
mod auth_users;
mod cancel;
mod entries;
mod launch;
mod limits;
mod list;
mod picture;
#[allow(clippy::module_inception)]
mod pool;
mod release;
mod replication;
mod slot;
#[cfg(test)]
mod tests;
mod upkeep;
mod waits;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::config::{CONSOLE_DATABASE, Config, Level};
use crate::disconnect::Disconnect;
use crate::id::{CancelId, ClientRef, DbId, PoolId, ServerId, Slab, Ticket, UserId, WorkerId};
use crate::time::Micros;

pub use api::{
    Action, Address, Attached, CancelJob, Checkout, CloseScope, Collected, FailureKind, Grant, LaunchKind,
    LoginFailure, Parked, PauseMode, PoolInfo, Released, ShutdownMode, TestQuery, WaitFor, Want,
};
pub use picture::{DatabaseRow, PeerRow, PoolRow, ServerRow, Totals, UserRow};
pub use slot::ServerState;
pub use waits::{PoolWaits, WaitCause, WaitRow};

use cancel::Cancel;
use limits::{Entry, User};
use pool::{Pool, Waiter};
use release::Origin;
use slot::Server;

/// All pools. See the module's head.
#[derive(Debug)]
pub struct Pools<S, R> {
    config: Arc<Config>,
    entries: Slab<DbId, Entry>,
    names: BTreeMap<String, DbId>,
    peers: BTreeMap<u16, DbId>,
    pools: Slab<PoolId, Pool<R>>,
    users: Vec<User>,
    user_names: BTreeMap<String, UserId>,
    /// Stands for the user in pools of peers; it has no name.
    peer_user: UserId,
    servers: Slab<ServerId, Server<S>>,
    waiters: Slab<Ticket, Waiter<S, R>>,
    cancels: Slab<CancelId, Cancel>,
    cancel_ids: BTreeMap<ClientRef, CancelId>,
    actions: VecDeque<Action<S>>,
    /// What is to be logged of an entry that was just made.
    registered: Option<String>,
    pause: PauseMode,
    /// SUSPEND has got so far that nothing is handed out or opened any more.
    frozen: bool,
    shutdown: ShutdownMode,
    /// Connections of all pools but those of peers.
    connections: usize,
    console_clients: u32,
    /// Under whom users of the console were first looked up.
    console_auth_user: Option<Arc<str>>,
    /// The worker that had a server last; it opens those that nobody in particular asked for.
    last_home: WorkerId,
    /// Counts parkings and queueings.
    stamp: u64,
    grants: u64,
    moves: u64,
    /// Where connections were closed while somebody lacked room.
    freed: Vec<(DbId, UserId)>,
    /// Lent to walks that change what they walk over.
    server_scratch: Vec<ServerId>,
    pool_scratch: Vec<PoolId>,
}

impl<S, R: Clone> Pools<S, R> {
    #[must_use]
    pub fn new(config: Arc<Config>, _now: Micros) -> Self {
        let mut pools = Self {
            config: Arc::clone(&config),
            entries: Slab::new(),
            names: BTreeMap::new(),
            peers: BTreeMap::new(),
            pools: Slab::new(),
            users: vec![User::default()],
            user_names: BTreeMap::new(),
            peer_user: UserId(0),
            servers: Slab::new(),
            waiters: Slab::new(),
            cancels: Slab::new(),
            cancel_ids: BTreeMap::new(),
            actions: VecDeque::new(),
            registered: None,
            pause: PauseMode::None,
            frozen: false,
            shutdown: ShutdownMode::None,
            connections: 0,
            console_clients: 0,
            console_auth_user: None,
            last_home: 0,
            stamp: 0,
            grants: 0,
            moves: 0,
            freed: Vec::new(),
            server_scratch: Vec::new(),
            pool_scratch: Vec::new(),
        };
        pools.user(CONSOLE_DATABASE);
        pools.adopt(&config);
        pools
    }

    /// The next order to the shell, in order. Drain these after every call, and before the next one.
    pub fn next_action(&mut self) -> Option<Action<S>> {
        let unclaimed = self.registered.take().map(|line| Action::Log(Level::Log, line));
        unclaimed.or_else(|| self.actions.pop_front())
    }

    /// Gives the client a server, or its login reply, or a place in line (pooling.md 4.1).
    pub fn checkout(&mut self, want: Want, now: Micros) -> Checkout<S, R> {
        let Some(pool) = self.pools.get(want.pool).filter(|pool| !pool.dying) else {
            return Checkout::Refused(Disconnect::fatal("database removed"));
        };
        if want.kind == WaitFor::LoginReply {
            if let Some(reply) = &pool.reply {
                return Checkout::LoginReady(reply.clone());
            }
        } else if pool.waiting.is_empty()
            && !want.replication
            && !self.is_held(want.pool)
            && let Some((server, conn)) = self.take_idle(want.pool, want.home)
        {
            return Checkout::Granted(self.grant(server, conn, want.home));
        }
        self.queue(want, now)
    }

    fn queue(&mut self, want: Want, now: Micros) -> Checkout<S, R> {
        if self.shutdown == ShutdownMode::WaitForServers {
            return Checkout::Refused(Disconnect::fatal("server shutting down"));
        }
        if want.kind != WaitFor::LoginReply
            && !self.is_held(want.pool)
            && let Some(refusal) = self.fast_fail(want.pool)
        {
            self.launch(want.pool, true, now);
            return Checkout::Refused(refusal);
        }
        let ticket = self.enqueue(want);
        self.serve(want.pool, now);
        Checkout::Queued(ticket)
    }

    /// What has become of a ticket. Call it after `Action::Wake`; anything but `Waiting` ends the ticket.
    pub fn collect(&mut self, ticket: Ticket) -> Collected<S, R> {
        let Some(waiter) = self.waiters.get(ticket) else {
            return Collected::Refused(Disconnect::silent("no longer in line"));
        };
        if matches!(waiter.slot, Collected::Waiting) {
            return Collected::Waiting;
        }
        let waiter = self.waiters.remove(ticket).expect("it was just seen");
        if let Collected::Granted(grant) = &waiter.slot {
            self.servers[grant.server].slot = None;
        }
        waiter.slot
    }

    /// The waiting client has left. What is in its slot already goes to the next one.
    pub fn abandon(&mut self, ticket: Ticket, now: Micros) {
        let Some(waiter) = self.waiters.get(ticket) else { return };
        let pool = waiter.want.pool;
        if matches!(waiter.slot, Collected::Waiting) {
            self.dequeue(ticket);
            self.give_up_opening(ticket);
        }
        let Some(waiter) = self.waiters.remove(ticket) else { return };
        if let Collected::Granted(Grant { server, conn, .. }) = waiter.slot {
            self.servers[server].slot = None;
            let released = self.settle(server, conn, Origin::Slot, now);
            self.obey(server, pool, released, now);
        } else {
            self.reap(pool);
        }
    }

    /// Serves whoever waits in a pool: hands over, tests, launches (pooling.md 4.2).
    fn serve(&mut self, id: PoolId, now: Micros) {
        if !self.pools.contains(id) {
            return;
        }
        if !self.pools[id].cancels_waiting.is_empty() {
            self.launch(id, true, now);
        }
        if self.is_held(id) {
            return;
        }
        while let Some(ticket) = self.pools[id].waiting.first() {
            if let Some((server, conn)) = self.take_idle(id, self.waiters[ticket].want.home) {
                self.hand_over(ticket, server, conn);
                continue;
            }
            let pool = &self.pools[id];
            if pool.waiting.len() <= pool.count(ServerState::Tested) {
                break;
            }
            let Some(used) = pool.list(ServerState::Used).first() else { break };
            self.start_check(used, now);
        }
        if self.lacks_server(id) {
            self.launch(id, true, now);
        }
    }

    fn mode_waits(&self) -> bool {
        self.pause == PauseMode::Paused
    }
}
