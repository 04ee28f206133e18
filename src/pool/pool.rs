//! One database entry and one pool user: servers by state, clients in line.

use super::list::{End, Linked, Links, List};
use super::slot::{Server, ServerState};
use super::{Action, Collected, Pools};
use crate::config::PoolMode;
use crate::disconnect::Disconnect;
use crate::id::{CancelId, DbId, PoolId, ServerId, Ticket, UserId, WorkerId};
use crate::pool::api::{Grant, WaitFor, Want};
use crate::time::Micros;

/// Effective values, looked up once per configuration.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// 0 is unlimited.
    pub(super) pool_size: u32,
    pub(super) reserve: u32,
    pub(super) min: u32,
    pub(super) lifetime: Micros,
    pub(super) mode: PoolMode,
}

#[derive(Debug)]
pub(super) struct Pool<R> {
    pub(super) db: DbId,
    pub(super) user: UserId,
    pub(super) sizes: Sizes,
    /// Servers by state; idle ones are in `idle_at`.
    lists: [List<ServerId>; ServerState::COUNT],
    /// Idle servers by home.
    idle_at: Vec<List<ServerId>>,
    pub(super) idle: u32,
    /// In every state.
    pub(super) connections: u32,
    pub(super) close_needed: u32,
    /// Clients that need a server.
    pub(super) waiting: List<Ticket>,
    /// Those in `waiting` that are logged in here.
    pub(super) waiting_ready: u32,
    /// Clients that need the login reply.
    pub(super) waiting_login: List<Ticket>,
    /// Replication clients that need a server, or the login reply.
    pub(super) replicating: List<Ticket>,
    pub(super) cancels_waiting: List<CancelId>,
    pub(super) cancels_sent: u32,
    /// Clients that hold the id of this pool.
    pub(super) attached: u32,
    /// Those that were sent their login reply.
    pub(super) ready: u32,
    pub(super) reply: Option<R>,
    /// The last attempt failed: wait for server_login_retry.
    pub(super) connect_failed: bool,
    /// The last login failed, for this reason.
    pub(super) login_failed: Option<String>,
    pub(super) last_launch: Micros,
    pub(super) last_used: Micros,
    pub(super) last_lifetime_close: Option<Micros>,
    /// Taken out of its entry; it exists until nobody refers to it.
    pub(super) dying: bool,
}

impl<R> Pool<R> {
    pub(super) fn new(db: DbId, user: UserId, sizes: Sizes, now: Micros) -> Self {
        Self {
            db,
            user,
            sizes,
            lists: [List::default(); ServerState::COUNT],
            idle_at: Vec::new(),
            idle: 0,
            connections: 0,
            close_needed: 0,
            waiting: List::default(),
            waiting_ready: 0,
            waiting_login: List::default(),
            replicating: List::default(),
            cancels_waiting: List::default(),
            cancels_sent: 0,
            attached: 0,
            ready: 0,
            reply: None,
            connect_failed: false,
            login_failed: None,
            last_launch: Micros::ZERO,
            last_used: now,
            last_lifetime_close: None,
            dying: false,
        }
    }

    pub(super) fn list_mut(&mut self, state: ServerState, home: WorkerId) -> &mut List<ServerId> {
        if state != ServerState::Idle {
            return &mut self.lists[state as usize];
        }
        let home = usize::from(home);
        if self.idle_at.len() <= home {
            self.idle_at.resize_with(home + 1, List::default);
        }
        &mut self.idle_at[home]
    }

    /// The list of a state other than idle.
    pub(super) fn list(&self, state: ServerState) -> &List<ServerId> {
        &self.lists[state as usize]
    }

    pub(super) fn idle_lists(&self) -> &[List<ServerId>] {
        &self.idle_at
    }

    pub(super) fn count(&self, state: ServerState) -> u32 {
        if state == ServerState::Idle { self.idle } else { self.lists[state as usize].len() }
    }

    /// Logged-in connections.
    pub(super) fn connected(&self) -> u32 {
        self.connections - self.count(ServerState::New) - self.count(ServerState::ActiveCancel)
    }

    pub(super) fn has_waiters(&self) -> bool {
        !self.waiting.is_empty() || !self.waiting_login.is_empty() || !self.replicating.is_empty()
    }

    /// The list in which a client waits for what it wants.
    fn line(&mut self, want: &Want) -> &mut List<Ticket> {
        match want.kind {
            _ if want.replication => &mut self.replicating,
            WaitFor::LoginReply => &mut self.waiting_login,
            WaitFor::Query | WaitFor::AuthQuery => &mut self.waiting,
        }
    }

    /// server_lifetime has passed, and enough time since the last connection of the pool was closed for that.
    pub(super) fn finds_too_old<S>(&self, server: &Server<S>, now: Micros) -> bool {
        let lifetime = self.sizes.lifetime;
        let gap = || Micros(lifetime.0.checked_div(u64::from(self.sizes.pool_size)).unwrap_or(0));
        now.since(server.launched) >= lifetime && self.last_lifetime_close.is_none_or(|last| now.since(last) >= gap())
    }

    /// Does anything refer to the pool?
    pub(super) fn is_referred_to(&self) -> bool {
        self.attached > 0 || self.connections > 0 || self.has_waiters() || !self.cancels_waiting.is_empty()
    }
}

/// A client in line, or on its way out of it with something in its slot.
#[derive(Debug)]
pub(super) struct Waiter<S, R> {
    pub(super) want: Want,
    /// `Waiting`: in a list of the pool.
    pub(super) slot: Collected<S, R>,
    /// The connection that is being opened for it, if it replicates.
    pub(super) tied: Option<ServerId>,
    /// Counts queueings, over all pools.
    pub(super) seq: u64,
    pub(super) links: Links<Ticket>,
}

impl<S, R> Linked<Ticket> for Waiter<S, R> {
    fn links(&self) -> &Links<Ticket> {
        &self.links
    }
    fn links_mut(&mut self) -> &mut Links<Ticket> {
        &mut self.links
    }
}

impl<S, R: Clone> Pools<S, R> {
    pub(super) fn enqueue(&mut self, want: Want) -> Ticket {
        self.stamp += 1;
        let ticket = self.waiters.insert(Waiter {
            want,
            slot: Collected::Waiting,
            tied: None,
            seq: self.stamp,
            links: Links::default(),
        });
        let pool = &mut self.pools[want.pool];
        pool.line(&want).push(&mut self.waiters, ticket, End::Back);
        pool.waiting_ready += u32::from(want.kind == WaitFor::Query);
        ticket
    }

    /// Takes a client that still waits out of its list.
    pub(super) fn dequeue(&mut self, ticket: Ticket) {
        let want = self.waiters[ticket].want;
        let pool = &mut self.pools[want.pool];
        pool.line(&want).remove(&mut self.waiters, ticket);
        pool.waiting_ready -= u32::from(want.kind == WaitFor::Query);
    }

    /// Whoever has been in line for longest.
    pub(super) fn first_in_line(&self, pool: PoolId) -> Option<Ticket> {
        let pool = &self.pools[pool];
        let firsts = [pool.waiting.first(), pool.waiting_login.first(), pool.replicating.first()];
        firsts.into_iter().flatten().min_by_key(|&ticket| self.waiters[ticket].seq)
    }

    /// Fills the slot of a client that still waits and wakes it.
    pub(super) fn answer(&mut self, ticket: Ticket, answer: Collected<S, R>) {
        self.dequeue(ticket);
        self.give_up_opening(ticket);
        let waiter = &mut self.waiters[ticket];
        waiter.slot = answer;
        self.actions.push_back(Action::Wake(waiter.want.client));
    }

    /// Links a server to a client at `home`. It must not be among the idle ones with a connection of its own any more.
    pub(super) fn grant(&mut self, server: ServerId, conn: S, home: WorkerId) -> Grant<S> {
        let granted = &self.servers[server];
        let moved = granted.home != home;
        let pool_mode = if granted.replication { PoolMode::Session } else { self.pools[granted.pool].sizes.mode };
        self.move_to(server, ServerState::Active, home, End::Back);
        self.grants += 1;
        self.moves += u64::from(moved);
        Grant { server, conn, pool_mode, moved }
    }

    /// Puts a server into the slot of a waiting client.
    pub(super) fn hand_over(&mut self, ticket: Ticket, server: ServerId, conn: S) {
        let home = self.waiters[ticket].want.home;
        let grant = self.grant(server, conn, home);
        self.servers[server].slot = Some(ticket);
        self.answer(ticket, Collected::Granted(grant));
    }

    /// Turns away every client in line.
    pub(super) fn refuse_waiters(&mut self, pool: PoolId, why: &Disconnect) {
        while let Some(ticket) = self.first_in_line(pool) {
            self.answer(ticket, Collected::Refused(why.clone()));
        }
    }

    /// Sends the login reply to those who wait for it.
    pub(super) fn answer_logins(&mut self, pool: PoolId) {
        let Some(reply) = self.pools[pool].reply.clone() else { return };
        while let Some(ticket) = self.pools[pool].waiting_login.first() {
            self.answer(ticket, Collected::LoginReady(reply.clone()));
        }
        let replicating = self.pools[pool].replicating.iter(&self.waiters);
        // for one that is tied its own server is on the way
        let log_in = replicating.filter(|(_, w)| w.want.kind == WaitFor::LoginReply && w.tied.is_none());
        for ticket in log_in.map(|(ticket, _)| ticket).collect::<Vec<_>>() {
            self.answer(ticket, Collected::LoginReady(reply.clone()));
        }
    }

    /// The next idle server, at `home` if there is one. One whose connection is to be replaced is closed on the way.
    pub(super) fn take_idle(&mut self, pool: PoolId, home: WorkerId) -> Option<(ServerId, S)> {
        while self.pools[pool].idle > 0 {
            let id = self.next_idle(pool, home)?;
            let server = &mut self.servers[id];
            let conn = server.conn.take().expect("an idle server has its connection here");
            if !server.close_needed {
                return Some((id, conn));
            }
            self.note_room(pool);
            self.forget(id);
            let reason = "obsolete connection".into();
            self.actions.push_back(Action::Close { server: id, pool, conn, reason });
        }
        None
    }

    fn next_idle(&self, pool: PoolId, home: WorkerId) -> Option<ServerId> {
        let lists = self.pools[pool].idle_lists();
        let firsts = lists.iter().filter_map(List::first);
        let stamp = |id: &ServerId| self.servers[*id].stamp;
        if self.config.settings.server_round_robin.is_on() {
            // Whoever asks for turns wants them over all servers, wherever they are.
            return firsts.min_by_key(stamp);
        }
        lists.get(usize::from(home)).and_then(List::first).or_else(|| firsts.max_by_key(stamp))
    }

    /// Hands out nothing: paused, frozen, or on its way out.
    pub(super) fn is_held(&self, pool: PoolId) -> bool {
        let pool = &self.pools[pool];
        self.pause == super::PauseMode::Paused || self.frozen || self.entries[pool.db].paused || pool.dying
    }
}
