//! What the clients in line wait for: the reasons why a pool neither hands out a server nor opens one, as words.
//!
//! The order of the questions is that of [`Pools::launch`](super::Pools): whatever would keep it from opening a connection for
//! a client is the client's cause. The first clients in line have a server on its way to them; theirs is that.

use super::Pools;
use super::api::WaitFor;
use super::slot::ServerState;
use crate::id::{ClientRef, PoolId, Ticket};
use crate::time::Micros;

/// Why a client waits. These are all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaitCause {
    /// All servers that the pool may have are in use.
    PoolFull,
    /// The database has as many servers as it may, over all users.
    DatabaseLimit,
    /// The user has as many servers as it may, over all databases.
    UserLimit,
    /// A connection is being opened; a pool opens one at a time.
    ServerLogin,
    /// The last attempt to open one failed.
    LoginFailing,
    /// A server is being tested or cleaned before it is handed out.
    ServerCheck,
    /// PAUSE.
    Paused,
    /// PAUSE of this database.
    DatabasePaused,
    /// SUSPEND.
    Suspended,
}

impl WaitCause {
    pub const COUNT: usize = 9;
    pub const ALL: [Self; Self::COUNT] = [
        Self::PoolFull,
        Self::DatabaseLimit,
        Self::UserLimit,
        Self::ServerLogin,
        Self::LoginFailing,
        Self::ServerCheck,
        Self::Paused,
        Self::DatabasePaused,
        Self::Suspended,
    ];

    /// The word for it in SHOW and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PoolFull => "pool_full",
            Self::DatabaseLimit => "database_limit",
            Self::UserLimit => "user_limit",
            Self::ServerLogin => "server_login",
            Self::LoginFailing => "server_login_failing",
            Self::ServerCheck => "server_check",
            Self::Paused => "paused",
            Self::DatabasePaused => "database_paused",
            Self::Suspended => "suspended",
        }
    }

    /// A sentence's end, after "waited because".
    #[must_use]
    pub const fn explained(self) -> &'static str {
        match self {
            Self::PoolFull => "all servers of the pool were in use (pool_size)",
            Self::DatabaseLimit => "the database had all its servers (max_db_connections)",
            Self::UserLimit => "the user had all its servers (max_user_connections)",
            Self::ServerLogin => "a server connection was being opened",
            Self::LoginFailing => "server logins have been failing (server_login_retry)",
            Self::ServerCheck => "a server was being checked",
            Self::Paused => "everything was paused",
            Self::DatabasePaused => "the database was paused",
            Self::Suspended => "everything was suspended",
        }
    }
}

/// A client in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitRow {
    pub client: ClientRef,
    pub database: String,
    /// The pool user.
    pub user: String,
    pub kind: WaitFor,
    /// When its request began.
    pub since: Micros,
    pub cause: WaitCause,
    /// 1 is the next one of its line.
    pub position: u32,
}

/// A pool as somebody sees it who judges its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolWaits {
    pub pool: PoolId,
    /// Clients in line by cause, in the order of [`WaitCause::ALL`].
    pub causes: [u32; WaitCause::COUNT],
    /// 0 is unlimited.
    pub pool_size: u32,
}

/// What is on its way to a pool's clients, and what keeps the others waiting.
#[derive(Clone, Copy, Debug)]
struct Prospect {
    /// Nothing is handed out, whatever there is.
    held: bool,
    checks: u32,
    logins: u32,
    /// Of those for whom a login runs.
    login: WaitCause,
    /// Of the rest.
    rest: WaitCause,
}

impl Prospect {
    /// The cause of the client at this position of the line for servers, counted from 0.
    fn cause(&self, kind: WaitFor, position: u32) -> WaitCause {
        match position {
            _ if self.held => self.rest,
            // who needs the login reply only is served by any login, and by nothing else
            _ if kind == WaitFor::LoginReply => {
                if self.logins > 0 {
                    self.login
                } else {
                    self.rest
                }
            }
            n if n < self.checks => WaitCause::ServerCheck,
            n if n < self.checks.saturating_add(self.logins) => self.login,
            _ => self.rest,
        }
    }
}

impl<S, R: Clone> Pools<S, R> {
    /// Every client in line: pools in the order of SHOW POOLS, clients in that of their lines.
    #[must_use]
    pub fn wait_rows(&self, now: Micros) -> Vec<WaitRow> {
        let mut rows = Vec::new();
        for id in self.shown_pools().filter(|&id| self.pools[id].has_waiters()) {
            let pool = &self.pools[id];
            let prospect = self.prospect(id, now);
            for line in [&pool.waiting, &pool.waiting_login, &pool.replicating] {
                for (position, (_, waiter)) in (0..).zip(line.iter(&self.waiters)) {
                    rows.push(WaitRow {
                        client: waiter.want.client,
                        database: self.entries[pool.db].database.name.clone(),
                        user: self.users[pool.user.0 as usize].name.clone(),
                        kind: waiter.want.kind,
                        since: waiter.want.since,
                        cause: prospect.cause(waiter.want.kind, position),
                        position: position + 1,
                    });
                }
            }
        }
        rows
    }

    /// Why a client waits; `None` when it does not. Its place is looked for from the head of the line, where clients that
    /// have waited too long are.
    #[must_use]
    pub fn wait_cause(&self, ticket: Ticket, now: Micros) -> Option<WaitCause> {
        let want = self.waiters.get(ticket)?.want;
        let pool = self.pools.get(want.pool)?;
        let lines = [&pool.waiting, &pool.waiting_login, &pool.replicating];
        let position = lines.into_iter().find_map(|line| {
            let place = line.iter(&self.waiters).position(|(id, _)| id == ticket)?;
            u32::try_from(place).ok()
        })?;
        Some(self.prospect(want.pool, now).cause(want.kind, position))
    }

    /// The pools of SHOW POOLS, in its order. Nobody in line is looked at, so that it costs the same however long lines are.
    #[must_use]
    pub fn pool_waits(&self, now: Micros) -> Vec<PoolWaits> {
        self.shown_pools().map(|id| self.pool_waits_of(id, now)).collect()
    }

    fn pool_waits_of(&self, id: PoolId, now: Micros) -> PoolWaits {
        let pool = &self.pools[id];
        let mut causes = [0; WaitCause::COUNT];
        if pool.has_waiters() {
            let prospect = self.prospect(id, now);
            let Prospect { held, checks, logins, .. } = prospect;
            let mut count = |clients: u32, cause: WaitCause| causes[cause as usize] += clients;
            let line = pool.waiting.len();
            let checked = if held { 0 } else { checks.min(line) };
            let logging_in = if held { 0 } else { logins.min(line - checked) };
            count(checked, WaitCause::ServerCheck);
            count(logging_in, prospect.login);
            count(line - checked - logging_in, prospect.rest);
            count(pool.waiting_login.len(), prospect.cause(WaitFor::LoginReply, 0));
            for (position, (_, waiter)) in (0..).zip(pool.replicating.iter(&self.waiters)) {
                count(1, prospect.cause(waiter.want.kind, position));
            }
        }
        PoolWaits { pool: id, causes, pool_size: pool.sizes.pool_size }
    }

    fn prospect(&self, id: PoolId, now: Micros) -> Prospect {
        let pool = &self.pools[id];
        let login = if pool.connect_failed { WaitCause::LoginFailing } else { WaitCause::ServerLogin };
        Prospect {
            held: self.is_held(id),
            checks: pool.count(ServerState::Tested),
            logins: pool.count(ServerState::New),
            login,
            rest: self.obstacle(id, now),
        }
    }

    /// What keeps the pool from opening one more connection.
    fn obstacle(&self, id: PoolId, now: Micros) -> WaitCause {
        let pool = &self.pools[id];
        let entry = &self.entries[pool.db];
        let user = &self.users[pool.user.0 as usize];
        let reached = |max: u32, count: u32| max > 0 && count >= max;
        match () {
            () if self.frozen => WaitCause::Suspended,
            () if self.mode_waits() => WaitCause::Paused,
            () if entry.paused => WaitCause::DatabasePaused,
            () if pool.connect_failed && now.since(pool.last_launch) < self.config.settings.server_login_retry => {
                WaitCause::LoginFailing
            }
            () if pool.reply.is_some() && reached(pool.sizes.pool_size, pool.connections) => WaitCause::PoolFull,
            () if reached(entry.max_connections, entry.connections) => WaitCause::DatabaseLimit,
            () if reached(user.max_connections, user.connections) => WaitCause::UserLimit,
            () if pool.connect_failed => WaitCause::LoginFailing,
            () => WaitCause::ServerLogin,
        }
    }
}
