//! What the threads share: the broker, the inboxes of the workers, the configuration in force.
//!
//! Messages to a worker are the only way to reach its clients. A message that carries a server connection is put into the
//! inbox, which outlives the worker's turn, so that nothing in it can be lost while the process runs.

mod cells;
pub mod inbox;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use mio::{Registry, Waker};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::admin::command::Command;
use crate::admin::handover::StateRow;
use crate::auth::choice::Outside;
use crate::auth::decoy::Decoy;
use crate::auth::scram::{Derivation, SaltedKeys, ScramKeys, Verifier};
use crate::auth::secret::Secret;
use crate::broker::Broker;
use crate::config::Config;
use crate::config::hba::Rules;
use crate::disconnect::Disconnect;
use crate::guard::Guard;
use crate::helpers::Helpers;
use crate::id::{ClientRef, PoolId, ServerId, WorkerId};
use crate::log::Conn;
use crate::metrics::Format;
use crate::metrics::picture::Clients;
use crate::net::stream::Socket;
use crate::net::tls::Contexts;
use crate::net::tls::session::Work;
use crate::pool::{LaunchKind, PoolInfo, TestQuery};
use crate::relay::handover::Known;
use crate::relay::prepared::Statements;
use crate::relay::vars::{TrackedNames, Vars};
use crate::stats::Counters;
use crate::stats::ends::Ends;
use crate::stats::histogram::{Span, Times};
use crate::time::Micros;
use crate::worker::peer::PeerAddr;
use crate::worker::picture;
use crate::worker::server::Server;
use crate::worker::steps::Whose;

use cells::Cells;
pub use cells::Load;
use inbox::Inbox;

/// What clients of a pool are told at login: filled by the pool's first server.
#[derive(Debug)]
pub struct LoginReply {
    /// ParameterStatus messages of names that are not tracked, as the server sent them.
    pub untracked: Vec<u8>,
    pub tracked: Vars,
}

/// A pool as clients and servers know it: its names and its counters. Lives as long as anybody holds it.
#[derive(Debug)]
pub struct PoolShared {
    pub id: PoolId,
    pub database: Arc<str>,
    pub user: Arc<str>,
    /// The entry forces the user.
    pub forced: bool,
    /// Set for the pool of a peer, which only carries cancel requests; the names mean nothing then.
    pub peer_id: Option<u16>,
    cells: Cells,
    /// Which item of the host list the next connection takes.
    pub next_host: AtomicU32,
    /// The last connect attempt failed; a host list without load balancing then moves on.
    pub connect_failed: AtomicBool,
    pub logins: Mutex<LoginCache>,
}

/// What makes the next login of a pool's server cheap.
#[derive(Default)]
pub struct LoginCache {
    /// Keys of a client's own SCRAM login, for servers with the same SCRAM secret.
    pub client_keys: Option<ScramKeys>,
    /// The password of the pool's user that PAM or LDAP last accepted.
    pub accepted: Option<Secret>,
    /// The secret of the pool's user as auth_query last gave it, for a user that auth_file does not have.
    pub fetched: Option<Secret>,
    /// The last derivation for a server that wanted SCRAM, and its result.
    pub derived: Option<(Derivation, SaltedKeys)>,
}

/// What the login of a client has shown that opens servers.
pub enum Learned {
    Nothing,
    ScramKeys(ScramKeys),
    /// That PAM or LDAP have accepted.
    Password(Zeroizing<Vec<u8>>),
}

impl LoginCache {
    /// Keeps it, and the secret that auth_query has given for its user.
    pub fn learn(&mut self, fetched: Option<&UserSecret>, learned: Learned) {
        if let Some(user) = fetched {
            self.fetched = Some(user.secret.clone());
        }
        match learned {
            Learned::Nothing => {}
            Learned::ScramKeys(keys) => self.client_keys = Some(keys),
            Learned::Password(password) => self.accepted = Some(Secret::Plain(password.to_vec())),
        }
    }
}

impl std::fmt::Debug for LoginCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginCache(..)")
    }
}

impl PoolShared {
    #[must_use]
    pub fn new(id: PoolId, info: &PoolInfo, workers: usize) -> Self {
        Self {
            id,
            database: info.database.name.as_str().into(),
            user: info.user.as_str().into(),
            forced: info.forced,
            peer_id: info.peer.as_ref().map(|peer| peer.id),
            cells: Cells::new(workers),
            next_host: AtomicU32::new(0),
            connect_failed: AtomicBool::new(false),
            logins: Mutex::default(),
        }
    }

    /// Adds what a turn of `worker` counted. Only that worker may call this.
    #[inline]
    pub fn add(&self, worker: WorkerId, tally: &Counters) {
        self.cells.add(worker, tally);
    }

    /// Notes how long something took that ended at `worker`. Only that worker may call this.
    #[inline]
    pub fn record(&self, worker: WorkerId, span: Span, took: Micros) {
        self.cells.record(worker, span, took);
    }

    /// The counters of all workers together.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.cells.counters()
    }

    /// The times of all workers together.
    #[must_use]
    pub fn times(&self) -> Times {
        self.cells.times()
    }
}

/// A user's secret, and what was derived from it.
#[derive(Debug, Default)]
pub struct UserSecret {
    pub secret: Secret,
    pub verifier: Mutex<Option<Arc<Verifier>>>,
}

/// The configuration in force, with what was read along with it. Replaced as a whole.
#[derive(Debug)]
pub struct Live {
    pub config: Arc<Config>,
    pub users: Arc<HashMap<String, Arc<UserSecret>>>,
    /// What strangers are taken for.
    pub decoy: Decoy,
    /// The access rules; none when they were never read.
    pub hba: Option<Arc<Rules>>,
    /// TLS as it was built last: after a failure not what the settings say.
    pub tls: Arc<Contexts>,
}

/// A client socket on its way to its worker.
#[derive(Debug)]
pub struct Accepted {
    pub socket: Socket,
    pub peer: PeerAddr,
}

/// What SUSPEND makes of a worker's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    #[default]
    Off,
    /// Nothing is accepted, and sockets are read no further than to the end of a message.
    Draining(Patience),
    /// Nothing is read.
    Frozen(Patience),
}

/// Whom a SUSPEND has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Everybody who is at the end of a message can be handed over.
    Plain,
    /// The successor understands the rest as well: who waits for a server, and answers that are not passed on.
    Short,
}

/// What a worker is told.
pub enum Message {
    Accepted(Accepted),
    /// The ticket of one of its clients has something to collect.
    Wake(ClientRef),
    /// A connection of the reserve is opened for one of its clients.
    TakesReserve(ClientRef),
    Launch {
        server: ServerId,
        pool: PoolId,
        kind: LaunchKind,
    },
    Check {
        server: ServerId,
        conn: Box<Server>,
        query: TestQuery,
    },
    Evict {
        server: ServerId,
        reason: std::borrow::Cow<'static, str>,
    },
    CloseClients {
        pool: PoolId,
        why: Disconnect,
    },
    CloseClient {
        client: ClientRef,
        why: Disconnect,
    },
    /// Somebody presented this client's cancel key.
    CancelTarget {
        target: ClientRef,
        request: ClientRef,
    },
    /// A cancel request waits in this pool.
    CancelQueued {
        request: ClientRef,
        pool: Arc<PoolShared>,
    },
    /// A cancel request is on the wire.
    CancelSent {
        request: ClientRef,
    },
    /// What a cancel request came to.
    CancelFinished {
        request: ClientRef,
        why: Disconnect,
    },
    /// The result of a derivation, for a client's login.
    ClientDerived {
        client: ClientRef,
        keys: Box<SaltedKeys>,
    },
    /// Somebody else has judged a client's password.
    Judged {
        client: ClientRef,
        accepted: bool,
    },
    /// What the operating system calls the user at the other end of a client's Unix socket.
    SystemUser {
        client: ClientRef,
        name: Option<String>,
    },
    /// The result of a derivation, for the login to a server.
    ServerDerived {
        server: ServerId,
        derivation: Box<Derivation>,
        keys: Box<SaltedKeys>,
    },
    /// A helper has computed a step of a TLS handshake.
    Helped {
        whose: Whose,
        work: Box<Work>,
    },
    Resolved {
        server: ServerId,
        addresses: Result<Vec<IpAddr>, String>,
    },
    Live(Arc<Live>),
    /// Pools may have another mode; it holds for those who are linked as well.
    PoolModes,
    /// Rows of all sockets of this worker.
    Picture(picture::Order),
    /// Those of its clients that stand in a line.
    Waiting(oneshot::Sender<Vec<Waiting>>),
    /// Its clients counted by who they are.
    Census(oneshot::Sender<Clients>),
    /// The answer to a console command: bytes for the client; then it may send the next one.
    ConsoleReply {
        client: ClientRef,
        bytes: Vec<u8>,
        /// The command was one that waits.
        waited: bool,
    },
    /// A console's command will be answered later; it may send the next one meanwhile.
    ConsoleWaits {
        client: ClientRef,
    },
    /// The answer to SHOW FDS for a successor: each piece with its descriptor, if it has one.
    ConsolePieces {
        client: ClientRef,
        pieces: Vec<(Vec<u8>, Option<RawFd>)>,
    },
    /// What a successor has to know of this worker's sockets.
    HandOver(oneshot::Sender<HandedOver>),
    /// KILL_CLIENT: answers whether the client was here.
    Kill {
        id: u64,
        done: oneshot::Sender<bool>,
    },
    /// Close the TCP listeners.
    StopTcp,
    /// SUSPEND: read and accept no more, or again.
    Hold(Hold),
    /// How many of its clients are not at rest; those whom a turn may bring there get one.
    Restless(oneshot::Sender<usize>),
    /// SUSPEND has taken too long: whoever is not at rest is closed.
    SuspendTimeout,
}

/// A client in a line, as its worker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub client: ClientRef,
    pub id: u64,
    pub addr: String,
    pub port: u16,
    pub application_name: String,
}

/// The state of sockets for a successor, and the statements it speaks of.
#[derive(Debug, Default)]
pub struct HandedOver {
    pub rows: Vec<StateRow>,
    pub statements: Known,
}

/// A console command on its way to the supervisor.
#[derive(Debug)]
pub struct ConsoleCommand {
    pub client: ClientRef,
    pub command: Command,
    /// Opened over the Unix socket by a process of our own user, under the console's own name, and asked by simple query:
    /// it may take descriptors.
    pub own: bool,
    /// What log lines about this connection begin with.
    pub prefix: Conn,
}

/// What the supervisor is asked for.
#[derive(Debug)]
pub enum Request {
    Console(ConsoleCommand),
    Resolve {
        host: String,
        server: ServerId,
        worker: WorkerId,
    },
    /// A lookup of the resolver is done.
    Looked {
        host: String,
        result: Result<Vec<IpAddr>, String>,
    },
    /// The serial number of a zone, as its server gave it.
    ZoneSerial {
        zone: String,
        serial: u32,
    },
    /// A wait of the console may be over.
    Drained,
    /// A console has left.
    ConsoleLeft,
    /// Metrics are wanted.
    Scrape {
        format: Format,
        reply: oneshot::Sender<String>,
    },
    /// Somebody cancelled a console command.
    CancelConsole,
}

/// Slow login work, off the event loops.
pub enum Job {
    /// `wanted` as long as the client is there.
    Client {
        client: ClientRef,
        derivation: Derivation,
        wanted: Weak<()>,
    },
    SystemUser {
        client: ClientRef,
        uid: u32,
    },
    Password {
        client: ClientRef,
        outside: Outside,
        user: String,
        password: Zeroizing<Vec<u8>>,
        from: String,
    },
    Server {
        server: ServerId,
        worker: WorkerId,
        derivation: Derivation,
    },
}

/// One worker as the others see it.
#[derive(Debug)]
pub struct Post {
    inbox: Inbox<Waker, Message>,
    /// For moving a server's socket between pollers.
    pub registry: Registry,
    /// Clients that live there.
    pub clients: AtomicUsize,
    /// Those of them that log in and have not shown who they are yet.
    pub logins: AtomicUsize,
    /// Those of them that are cancel requests for a peer: nobody here can tell whether their keys are made up.
    pub to_peers: AtomicUsize,
    pub load: Load,
}

impl Message {
    /// The server that a message is about, where it is not one that a client holds.
    #[must_use]
    pub const fn server(&self) -> Option<ServerId> {
        match self {
            Self::Launch { server, .. }
            | Self::Evict { server, .. }
            | Self::ServerDerived { server, .. }
            | Self::Resolved { server, .. } => Some(*server),
            Self::Check { conn, .. } => Some(conn.me),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

impl Post {
    #[must_use]
    pub fn new(waker: Waker, registry: Registry) -> Self {
        Self {
            inbox: Inbox::new(waker),
            registry,
            clients: AtomicUsize::new(0),
            logins: AtomicUsize::new(0),
            to_peers: AtomicUsize::new(0),
            load: Load::default(),
        }
    }

    fn strangers(&self) -> usize {
        self.logins.load(Ordering::Relaxed) + self.to_peers.load(Ordering::Relaxed)
    }

    /// Leaves a message; wakes the worker if it has not been woken for an earlier one.
    pub fn send(&self, message: Message) {
        if let Err(error) = self.inbox.send(message) {
            tracing::error!("cannot wake a worker: {error}");
        }
    }

    /// All messages so far, exchanged for an empty vector.
    pub fn take(&self, into: &mut Vec<Message>) {
        self.inbox.take(into);
    }
}

/// Everything the threads share.
pub struct Shared {
    pub broker: Mutex<Broker>,
    pub posts: Vec<Post>,
    pub names: Arc<TrackedNames>,
    pub statements: Mutex<Statements>,
    /// Cancel keys of logged-in clients.
    pub cancel_keys: Mutex<HashMap<[u8; 8], ClientRef>>,
    /// Client sockets of all kinds.
    pub clients: AtomicUsize,
    /// The TCP listeners are not closed yet.
    pub accepts_tcp: AtomicBool,
    /// Console connections.
    pub console_clients: AtomicUsize,
    /// Configurations for which verifiers were made ahead of logins; the last one counts.
    pub derivations: AtomicU64,
    next_socket: AtomicU64,
    pub requests: mpsc::UnboundedSender<Request>,
    pub jobs: mpsc::UnboundedSender<Job>,
    /// The threads for the steps of TLS handshakes.
    pub helpers: Arc<Helpers>,
    /// Where servers without a host are, and the port of our own Unix socket.
    pub unix_socket_dir: PathBuf,
    pub listen_port: u16,
    /// The near end of every TCP client, where there is just one.
    pub tcp_address: Option<SocketAddr>,
    pub uid: u32,
    pub guard: Guard,
    /// Statistics of the console's own pool.
    pub console_counters: Mutex<Counters>,
    /// Why connections were closed, and errors.
    pub ends: Mutex<Ends>,
}

impl Shared {
    #[allow(clippy::too_many_arguments)]
    #[must_use]
    pub fn new(
        broker: Broker,
        posts: Vec<Post>,
        names: Arc<TrackedNames>,
        requests: mpsc::UnboundedSender<Request>,
        jobs: mpsc::UnboundedSender<Job>,
        helpers: Arc<Helpers>,
        unix_socket_dir: PathBuf,
        listen_port: u16,
        tcp_address: Option<SocketAddr>,
        uid: u32,
    ) -> Self {
        Self {
            broker: Mutex::new(broker),
            posts,
            names,
            statements: Mutex::default(),
            cancel_keys: Mutex::default(),
            clients: AtomicUsize::new(0),
            accepts_tcp: AtomicBool::new(true),
            console_clients: AtomicUsize::new(0),
            derivations: AtomicU64::new(0),
            next_socket: AtomicU64::new(0),
            requests,
            jobs,
            helpers,
            unix_socket_dir,
            listen_port,
            tcp_address,
            uid,
            guard: Guard::default(),
            console_counters: Mutex::default(),
            ends: Mutex::default(),
        }
    }

    /// The next number of a client or server socket; they count from 1 and are never used again.
    pub fn next_socket(&self) -> u64 {
        self.next_socket.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn post(&self, worker: WorkerId) -> &Post {
        &self.posts[usize::from(worker)]
    }

    /// Clients that are logging in, at all workers.
    #[must_use]
    pub fn login_clients(&self) -> usize {
        self.posts.iter().map(|post| post.logins.load(Ordering::Relaxed)).sum()
    }

    /// Clients that have not shown yet that they know anything, at all workers.
    #[must_use]
    pub fn strangers(&self) -> usize {
        self.posts.iter().map(Post::strangers).sum()
    }

    /// The worker with the fewest clients.
    #[must_use]
    pub fn least_loaded(&self) -> WorkerId {
        self.least(|post| post.clients.load(Ordering::Relaxed))
    }

    /// The worker with most strangers.
    #[must_use]
    pub fn most_strangers(&self) -> WorkerId {
        self.least(|post| usize::MAX - post.strangers())
    }

    fn least(&self, key: impl Fn(&Post) -> usize) -> WorkerId {
        let least = self.posts.iter().enumerate().min_by_key(|(_, post)| key(post));
        least.map_or(0, |(index, _)| WorkerId::try_from(index).unwrap_or(0))
    }

    /// Asks the supervisor. It is there as long as the process is.
    pub fn ask(&self, request: Request) {
        let _ = self.requests.send(request);
    }
}
