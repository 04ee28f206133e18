//! What goes in and out of [`Pools`](super::Pools): wishes, answers, orders to the shell.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::slot::ServerState;
use crate::config::{Database, Level, Peer, PoolMode};
use crate::disconnect::Disconnect;
use crate::id::{ClientRef, DbId, PoolId, ServerId, Ticket, UserId, WorkerId};
use crate::time::Micros;

/// A client was counted on its entry and its login user.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub pool: PoolId,
    /// The login user; the pool user is in [`PoolInfo`].
    pub user: UserId,
}

/// What the shell needs to know to open a server of a pool.
#[derive(Clone, Debug)]
pub struct PoolInfo {
    pub database: Arc<Database>,
    /// The pool user.
    pub user: String,
    /// The entry names the user; else it is the login user of the clients.
    pub forced: bool,
    /// Set for the pool of a peer, which only carries cancel requests; `database` and `user` mean nothing then.
    pub peer: Option<Arc<Peer>>,
}

/// What a client waits for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// A server for a logged-in client.
    Query,
    /// A server for the auth_query of a client that logs in somewhere else.
    AuthQuery,
    /// The parameters of the server, for the login reply; no server is granted.
    LoginReply,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Want {
    pub client: ClientRef,
    pub pool: PoolId,
    pub kind: WaitFor,
    /// When the query started, or the client connected.
    pub since: Micros,
    /// The worker of the client.
    pub home: WorkerId,
    /// A replication client: it gets a connection made for it, or none.
    pub replication: bool,
}

/// A server connection for the client, which owns it until `release` or `gone`.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant<S> {
    pub server: ServerId,
    pub conn: S,
    pub pool_mode: PoolMode,
    /// The connection was at another worker and has to be registered anew.
    pub moved: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Checkout<S, R> {
    Granted(Grant<S>),
    LoginReady(R),
    Queued(Ticket),
    Refused(Disconnect),
}

/// What a ticket has become. After all but `Waiting` the ticket is used up.
#[derive(Debug, PartialEq, Eq)]
pub enum Collected<S, R> {
    Granted(Grant<S>),
    LoginReady(R),
    Refused(Disconnect),
    Waiting,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TestQuery {
    /// server_reset_query
    Reset,
    /// server_check_query
    Check,
}

/// What becomes of a server connection that its owner gave back.
#[derive(Debug, PartialEq, Eq)]
pub enum Released<S> {
    /// Parked, or handed to a waiting client.
    Kept,
    /// No longer known here: close it, before obeying the actions, which may open another one in its place.
    Close { conn: S, reason: Cow<'static, str> },
    /// Run the query on it and call `tested`.
    Test { conn: S, query: TestQuery },
}

/// A parked connection handed out for a look, because bytes or an end of file arrived on it.
#[derive(Debug, PartialEq, Eq)]
pub struct Parked<S> {
    pub conn: S,
    /// `SV_IDLE` and the like, for the log.
    pub state: ServerState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginFailure {
    /// Closing reason of the server; the text that fast-fail repeats.
    pub reason: String,
    pub kind: FailureKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection, no TLS, a timeout.
    Connect,
    /// The server refused the login; `relay` is what the waiting clients are told when the pool has no usable server. `None`
    /// for SQLSTATE 57P03: the server will soon be ready.
    Login { relay: Option<Disconnect> },
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LaunchKind {
    /// Connect, log in, run connect_query: `logged_in`.
    Login,
    /// Connect, then `cancel_connected` says what to send.
    Cancel,
}

/// Where a server is. A cancel request must go to the very address its target is connected to: the host of an entry may
/// stand for several servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A cancel request to be sent on a connection just made.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CancelJob {
    pub request: ClientRef,
    pub key: [u8; 8],
}

/// Orders to the shell, in the order in which they must be obeyed.
#[derive(Debug, PartialEq)]
pub enum Action<S> {
    /// Open a connection on worker `home`, which owns it from now on.
    Launch {
        server: ServerId,
        pool: PoolId,
        kind: LaunchKind,
        home: WorkerId,
    },
    /// The ticket of this client has something to collect.
    Wake(ClientRef),
    /// A parked server, already forgotten here: close it and log.
    Close {
        server: ServerId,
        pool: PoolId,
        conn: S,
        reason: Cow<'static, str>,
    },
    /// A server in a worker's hands (opening, testing, linked, under inspection): it closes it, and its client if linked,
    /// and calls `gone`, `login_failed` or `cancel_done`. A worker that does not know the server ignores this.
    Evict {
        server: ServerId,
        home: WorkerId,
        reason: Cow<'static, str>,
    },
    /// Run the query on worker `home`, then call `tested`.
    Check {
        server: ServerId,
        conn: S,
        home: WorkerId,
        query: TestQuery,
    },
    /// Every client that holds this pool must be disconnected and detached; those in its queue have been woken already.
    CloseClients {
        pool: PoolId,
        why: Disconnect,
    },
    /// The cancel connection of this client is to be closed.
    CancelFinished(ClientRef, Disconnect),
    /// Somebody may have been waiting for this: see `is_drained`, `paused_entries_drained`, `close_pending`.
    Drained,
    /// The connection that this client waits for is one of the reserve.
    TakesReserve(ClientRef),
    Log(Level, String),
}

/// How the process is going down.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum ShutdownMode {
    #[default]
    None,
    WaitForServers,
    WaitForClients,
}

/// The global state that PAUSE, SUSPEND and RESUME change.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum PauseMode {
    #[default]
    None,
    Paused,
    Suspended,
}

/// What a WAIT_CLOSE waits for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CloseScope {
    All,
    Entry(DbId),
}

impl CloseScope {
    pub(super) fn covers(self, db: DbId) -> bool {
        match self {
            Self::All => true,
            Self::Entry(entry) => entry == db,
        }
    }
}
