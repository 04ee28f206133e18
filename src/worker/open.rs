//! Opening a server connection: address, connect, login, connect_query. Also the connections that carry cancel requests.
//!
//! ```text
//! Resolving -> Connecting [-> SslAnswer [-> Handshake]] -> Login [-> Deriving -> Login] -> [ConnectQuery ->] to the pools
//!                        \-> Carrying                                  (cancel requests)
//! ```

mod login;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::event::Event;
use mio::net::{TcpStream, UnixStream};

use crate::auth::server::{REFUSAL, ServerAuth};
use crate::config::LoadBalanceHosts;
use crate::id::{PoolId, ServerId};
use crate::log::Conn;
use crate::net::listener::{TcpOptions, apply_server_options, unix_address, unix_socket_path};
use crate::net::stream::{ReadResult, Socket, Stream};
use crate::pool::{Address, FailureKind, LaunchKind, LoginFailure, PoolInfo};
use crate::relay::side::ServerSide;
use crate::relay::vars::Vars;
use crate::shared::{LoginReply, Message, PoolShared, Request};
use crate::stats::histogram::Span;
use crate::sys;
use crate::time::Micros;
use crate::wire::encode;
use crate::wire::startup::Replication;
use crate::wire::tag::backend as be;
use crate::worker::Worker;
use crate::worker::peer::PeerAddr;
use crate::worker::replication::Dedicated;
use crate::worker::server::Server;
use crate::worker::server::server_conn;
use crate::worker::table::{Place, server_token};
use crate::worker::tls;

/// Most bytes of login messages that are kept; a server that says more is not one.
const MAX_RECEIVED: usize = 1 << 20;

/// The closing reason of a connection whose cancel request is no longer wanted.
const GIVEN_UP: &str = "client gave up on cancel request, so we also give up forwarding to server";

#[derive(Debug)]
pub(crate) enum Stage {
    Resolving,
    Connecting,
    /// The server was asked for TLS.
    SslAnswer,
    Handshake,
    Login,
    /// A slow derivation runs.
    Deriving,
    ConnectQuery,
    /// A cancel request was sent; the server closes the connection when it has acted on it.
    Carrying,
}

/// A connection that is not yet, or never will be, a server of its pool.
pub(crate) struct Opening {
    me: ServerId,
    id: u64,
    kind: LaunchKind,
    pool: Arc<PoolShared>,
    info: PoolInfo,
    /// The item of the host list that this connection goes to.
    host: String,
    pub(crate) stage: Stage,
    stream: Option<Stream>,
    addr: PeerAddr,
    pub(crate) started: Micros,
    received: Vec<u8>,
    auth: Option<ServerAuth>,
    vars: Vars,
    untracked: Vec<u8>,
    cancel_key: [u8; 8],
    /// Set when it turned out to be for a replication client.
    dedicated: Option<Dedicated>,
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opening({:?}, {:?})", self.me, self.stage)
    }
}

/// Why an opening comes to nothing.
struct Failed {
    reason: String,
    kind: FailureKind,
}

impl Failed {
    fn connect(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), kind: FailureKind::Connect }
    }
}

enum Progress {
    Wait,
    /// Logged in and ready.
    Ready,
}

impl Opening {
    pub(crate) fn prefix(&self) -> Conn {
        let mut conn = server_conn(&self.pool, self.ptr(), self.addr);
        if matches!((&self.stage, self.addr), (Stage::Resolving, PeerAddr::Unix { .. })) {
            // a name that has no address yet is shown as PgBouncer does
            (conn.addr, conn.port, conn.shown) = ("(bad-af)".to_owned(), 0, "(bad-af):0".to_owned());
        }
        conn
    }

    pub(crate) const fn ptr(&self) -> u64 {
        crate::worker::client::socket_ptr(self.id)
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    pub(crate) const fn me(&self) -> ServerId {
        self.me
    }

    pub(crate) const fn pool(&self) -> &Arc<PoolShared> {
        &self.pool
    }

    pub(crate) const fn addr(&self) -> PeerAddr {
        self.addr
    }

    pub(crate) const fn is_cancel(&self) -> bool {
        matches!(self.kind, LaunchKind::Cancel)
    }

    pub(crate) fn fd(&self) -> Option<i32> {
        self.stream.as_ref().map(|stream| stream.socket().as_fd().as_raw_fd())
    }

    pub(crate) fn replication(&self) -> Replication {
        self.dedicated.as_ref().map_or(Replication::None, |dedicated| dedicated.wishes.kind)
    }

    fn channel_binding(&self) -> Option<Vec<u8>> {
        let session = self.stream.as_ref().and_then(Stream::tls)?;
        session.channel_binding().map(|data| data.to_vec())
    }

    pub(crate) fn tls_info(&self) -> Option<String> {
        self.stream.as_ref().and_then(tls::info)
    }

    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.as_ref().and_then(|stream| stream.socket().local_addr())
    }
}

impl Worker {
    /// Opens a connection for a pool, as the pools ordered.
    pub(super) fn launch(&mut self, server: ServerId, pool: PoolId, kind: LaunchKind) {
        let found = self.pools(|broker| Some((broker.pools.describe(pool)?, broker.shared(pool)?)));
        let Some((info, shared)) = found else {
            let now = self.now;
            self.pools(|broker| broker.pools.gone(server, now));
            return;
        };
        let port = port_of(&info);
        let opening = Box::new(Opening {
            me: server,
            id: self.shared.next_socket(),
            kind,
            pool: shared,
            info,
            host: String::new(),
            stage: Stage::Resolving,
            stream: None,
            addr: PeerAddr::Unix { pid: None, uid: None, port },
            started: self.now,
            received: Vec::new(),
            auth: None,
            vars: Vars::unset(&self.shared.names),
            untracked: Vec::new(),
            cancel_key: [0; 8],
            dedicated: None,
        });
        self.locate(opening);
    }

    /// Finds the address to connect to: that of the server to be canceled, or that of the host whose turn it is.
    fn locate(&mut self, mut opening: Box<Opening>) {
        if opening.is_cancel() {
            let address = self.shared.broker.lock().pools.carrier_address(opening.pool.id);
            match address {
                Some(Address::Tcp(addr)) => return self.connect_tcp(opening, addr),
                Some(Address::Unix(path)) => return self.connect_unix(opening, path),
                None => {}
            }
        }
        let host = self.next_host(&opening);
        opening.host.clone_from(&host);
        let port = port_of(&opening.info);
        if host.is_empty() || host.starts_with('/') || host.starts_with('@') {
            return self.locate_unix(opening, &host, port);
        }
        if let Some(addr) = sys::resolve::literal(&host, port) {
            return self.connect_tcp(opening, addr);
        }
        opening.stage = Stage::Resolving;
        let server = opening.me;
        self.places.set(server, Place::Opening(opening));
        self.shared.ask(Request::Resolve { host, server, worker: self.id });
    }

    /// The host whose turn it is: the next one of the list, or without load balancing the same one until it fails.
    fn next_host(&self, opening: &Opening) -> String {
        if let Some(peer) = &opening.info.peer {
            return peer.host.clone();
        }
        let (database, pool) = (&opening.info.database, &opening.pool);
        let hosts: Vec<&str> = database.host.as_deref().unwrap_or_default().split(',').map(str::trim).collect();
        let failed = pool.connect_failed.swap(false, Ordering::Relaxed);
        let turn = match database.load_balance_hosts {
            LoadBalanceHosts::RoundRobin => pool.next_host.fetch_add(1, Ordering::Relaxed),
            LoadBalanceHosts::Disable if failed => pool.next_host.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            LoadBalanceHosts::Disable => pool.next_host.load(Ordering::Relaxed),
        };
        hosts[turn as usize % hosts.len()].to_owned()
    }

    /// The addresses of a host name, or why there are none.
    pub(super) fn resolved(&mut self, server: ServerId, addresses: Result<Vec<IpAddr>, String>) {
        let Place::Opening(opening) = self.places.take(server) else { return };
        match addresses {
            Ok(addresses) if !addresses.is_empty() => {
                let port = port_of(&opening.info);
                self.connect_tcp(opening, SocketAddr::new(addresses[0], port));
            }
            Ok(_) | Err(_) => self.opening_failed(*opening, Failed::connect("server DNS lookup failed")),
        }
    }

    fn locate_unix(&mut self, opening: Box<Opening>, host: &str, port: u16) {
        let dir =
            if host.is_empty() { self.shared.unix_socket_dir.to_string_lossy().into_owned() } else { host.to_owned() };
        if dir.is_empty() {
            tracing::error!("unix socket dir not configured: {}", opening.info.database.name);
            return self.opening_failed(*opening, Failed::connect("cannot connect"));
        }
        self.connect_unix(opening, unix_socket_path(&dir, port));
    }

    fn connect_unix(&mut self, mut opening: Box<Opening>, path: PathBuf) {
        opening.addr = PeerAddr::Unix { pid: None, uid: None, port: port_of(&opening.info) };
        let socket = connect_unix(&path);
        let to = format!("unix:{}", path.display());
        self.connecting(opening, socket.map(Socket::Unix), Address::Unix(path), &to);
    }

    fn connect_tcp(&mut self, mut opening: Box<Opening>, addr: SocketAddr) {
        opening.addr = PeerAddr::Tcp(addr);
        let socket = TcpStream::connect(addr);
        if let Ok(socket) = &socket
            && let Err(error) = apply_server_options(socket.as_fd(), &tcp_options(&self.live.config.settings))
        {
            tracing::warn!(conn = %opening.prefix(), "cannot set socket options: {}", sys::error_text(&error));
        }
        self.connecting(opening, socket.map(Socket::Tcp), Address::Tcp(addr), &addr.to_string());
    }

    fn connecting(&mut self, mut opening: Box<Opening>, socket: std::io::Result<Socket>, address: Address, to: &str) {
        let server = opening.me;
        opening.stage = Stage::Connecting;
        self.shared.broker.lock().pools.located(server, address);
        let token = server_token(opening.me);
        let registered = socket.and_then(|socket| {
            let mut stream = Stream::new(socket);
            stream.register(&self.shared.post(self.id).registry, token)?;
            Ok(stream)
        });
        match registered {
            Ok(stream) => {
                opening.stream = Some(stream);
                self.places.set(opening.me, Place::Opening(opening));
            }
            Err(error) => {
                tracing::warn!("sbuf_connect failed to connect to {to}: {}", sys::error_text(&error));
                self.opening_failed(*opening, Failed::connect("connect failed"));
            }
        }
    }

    /// An event on a connection being opened.
    pub(super) fn opening_event(&mut self, server: ServerId, event: &Event) {
        let Place::Opening(mut opening) = self.places.take(server) else { return };
        #[cfg(debug_assertions)]
        crate::worker::plant::once("opening");
        if let Some(stream) = &mut opening.stream {
            stream.note(event);
        }
        self.advance(opening);
    }

    fn advance(&mut self, mut opening: Box<Opening>) {
        match self.opening_step(&mut opening) {
            Ok(Progress::Wait) => self.places.set(opening.me, Place::Opening(opening)),
            Ok(Progress::Ready) => self.opened(opening),
            Err(failed) => self.opening_failed(*opening, failed),
        }
    }

    fn opening_step(&mut self, opening: &mut Opening) -> Result<Progress, Failed> {
        let Some(stream) = &mut opening.stream else { return Ok(Progress::Wait) };
        if matches!(opening.stage, Stage::Connecting) {
            if let Err(error) = stream.connected() {
                let text = sys::error_text(&error);
                tracing::warn!(conn = %opening.prefix(), "connect failed: {text}");
                return Err(Failed::connect("connect failed"));
            }
            if !stream.is_connected() {
                return Ok(Progress::Wait);
            }
            self.connected(opening)?;
        }
        let Some(stream) = &mut opening.stream else { return Ok(Progress::Wait) };
        if stream.is_blocked() {
            stream.flush().map_err(|_| crashed())?;
        }
        if matches!(opening.stage, Stage::SslAnswer) && !self.ssl_answer(opening)? {
            return Ok(Progress::Wait);
        }
        if matches!(opening.stage, Stage::Handshake) {
            let Some(stream) = &mut opening.stream else { return Ok(Progress::Wait) };
            let next = stream.handshake();
            if !self.after_server_step(opening, next)? {
                return Ok(Progress::Wait);
            }
        }
        let Some(stream) = &mut opening.stream else { return Ok(Progress::Wait) };
        loop {
            let read = match stream.readable() {
                true => stream.read(&mut self.scratch.input),
                false => ReadResult::Nothing,
            };
            match read {
                ReadResult::Nothing => break,
                ReadResult::Data(n) if opening.received.len() + n <= MAX_RECEIVED => {
                    opening.received.extend_from_slice(&self.scratch.input[..n]);
                }
                ReadResult::Data(_) => return Err(crashed()),
                ReadResult::Eof | ReadResult::Failed(_) if matches!(opening.stage, Stage::Carrying) => {
                    return Err(Failed::connect("successfully sent cancel request"));
                }
                ReadResult::Eof | ReadResult::Failed(_) => {
                    // What it said before it went may tell why.
                    return Err(self.login_messages(opening).err().unwrap_or_else(crashed));
                }
            }
        }
        self.login_messages(opening)
    }

    /// The connect finished: send what comes first.
    fn connected(&mut self, opening: &mut Opening) -> Result<(), Failed> {
        if self.live.config.settings.log_connections.is_on() {
            match opening.local_addr() {
                Some(from) => tracing::info!(conn = %opening.prefix(), "new connection to server (from {from})"),
                None => tracing::info!(conn = %opening.prefix(), "new connection to server"),
            }
        }
        if self.carry(opening)? {
            return Ok(());
        }
        if self.live.tls.servers.is_none() || matches!(opening.addr, PeerAddr::Unix { .. }) {
            return self.send_startup(opening);
        }
        let mut out = Vec::new();
        encode::ssl_request(&mut out);
        opening.stage = Stage::SslAnswer;
        write(opening, &out)
    }

    /// A fresh connection first serves a cancel request that waits, if there is one.
    fn carry(&mut self, opening: &mut Opening) -> Result<bool, Failed> {
        let (carrier, now) = (opening.me, self.now);
        match self.pools(|broker| broker.pools.cancel_connected(carrier, now)) {
            Some(job) => {
                let mut out = Vec::new();
                encode::cancel_request(&mut out, job.key);
                opening.kind = LaunchKind::Cancel;
                opening.stage = Stage::Carrying;
                let request = job.request;
                self.local_or_remote(request.worker, Message::CancelSent { request });
                write(opening, &out)?;
                Ok(true)
            }
            None if opening.is_cancel() => {
                // it did connect: that it ends here says nothing against the server
                opening.stage = Stage::Carrying;
                Err(Failed::connect(GIVEN_UP))
            }
            None => Ok(false),
        }
    }

    /// The server is ready: the pools take it.
    fn opened(&mut self, opening: Box<Opening>) {
        if let Some(&tag) = opening.received.first() {
            return self.opened_and_lost(*opening, tag);
        }
        let opening = *opening;
        let replication = opening.replication();
        let Some(stream) = opening.stream else { return };
        opening.pool.record(self.id, Span::ServerLogin, self.now.since(opening.started));
        let vars = self.interner.intern(opening.vars);
        let reply = Arc::new(LoginReply { untracked: opening.untracked, tracked: vars.clone() });
        let server = Box::new(Server {
            local: stream.socket().local_addr(),
            stream,
            me: opening.me,
            id: opening.id,
            side: ServerSide::new(vars),
            pool: opening.pool,
            cancel_key: opening.cancel_key,
            addr: opening.addr,
            home: self.id,
            connect_time: opening.started,
            request_time: self.now,
            testing: None,
            replication,
            lost: None,
            login_reply: (replication != Replication::None).then(|| reply.clone()),
        });
        let (id, home, now) = (server.me, self.id, self.now);
        self.pools_release(|broker| broker.pools.logged_in(id, server, reply, home, now));
    }

    /// The server goes on talking without being asked: nobody is given such a connection. If it ends itself, as one that an
    /// administrator terminates does, or has news, that says nothing against the next login.
    fn opened_and_lost(&mut self, opening: Opening, tag: u8) {
        let reason = match tag {
            be::ERROR_RESPONSE => "server conn crashed?",
            be::NOTICE_RESPONSE | be::PARAMETER_STATUS | be::NOTIFICATION_RESPONSE => "idle server got dirty",
            _ => return self.opening_failed(opening, Failed::connect("unknown pkt from server")),
        };
        if opening.replication() != Replication::None {
            return self.opening_failed(opening, Failed::connect(reason));
        }
        let (server, now) = (opening.me, self.now);
        self.close_opening(opening, reason);
        self.pools(|broker| broker.pools.lost_after_login(server, now));
    }

    pub(super) fn opening_timed_out(&mut self, server: ServerId) {
        let Place::Opening(opening) = self.places.take(server) else { return };
        let reason = match opening.stage {
            _ if opening.pool.peer_id.is_some() => "cancel_wait_timeout",
            Stage::Resolving | Stage::Connecting => "connect failed",
            _ => "connect timeout",
        };
        self.opening_failed(*opening, Failed::connect(reason));
    }

    /// Gives up a connection being opened because the pools want it so.
    pub(super) fn opening_evicted(&mut self, opening: Opening, reason: &str) {
        let (server, now, cancel) = (opening.me, self.now, opening.is_cancel());
        self.close_opening(opening, reason);
        self.pools(
            |broker| if cancel { broker.pools.cancel_done(server, now) } else { broker.pools.gone(server, now) },
        );
    }

    fn opening_failed(&mut self, opening: Opening, failed: Failed) {
        let (server, now) = (opening.me, self.now);
        let carried = matches!(opening.stage, Stage::Carrying);
        if !carried {
            opening.pool.connect_failed.store(true, Ordering::Relaxed);
        }
        let logged = match &failed.kind {
            FailureKind::Login { relay: Some(relay) } if relay.reason.starts_with("server login failed:") => REFUSAL,
            _ => &failed.reason,
        };
        self.close_opening(opening, logged);
        let failure = LoginFailure { reason: failed.reason, kind: failed.kind };
        self.pools(|broker| {
            if carried {
                broker.pools.cancel_done(server, now);
            } else {
                broker.pools.login_failed(server, failure, now);
            }
        });
    }

    fn close_opening(&mut self, mut opening: Opening, reason: &str) {
        self.shared.ends.lock().server_closed(reason);
        if self.live.config.settings.log_disconnections.is_on() {
            let age = self.now.since(opening.started).secs();
            tracing::info!(conn = %opening.prefix(), "closing because: {reason} (age={age}s)");
        }
        if let Some(stream) = &mut opening.stream {
            stream.retire();
        }
    }
}

/// The port of a server, or of a peer.
fn port_of(info: &PoolInfo) -> u16 {
    info.peer.as_ref().map_or(info.database.port, |peer| peer.port)
}

fn crashed() -> Failed {
    Failed::connect("server conn crashed?")
}

fn write(opening: &mut Opening, bytes: &[u8]) -> Result<(), Failed> {
    match &mut opening.stream {
        Some(stream) => stream.write_bytes(bytes).map_err(|_| crashed()),
        None => Ok(()),
    }
}

fn connect_unix(path: &std::path::Path) -> std::io::Result<UnixStream> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM.nonblocking().cloexec(), None)?;
    socket.connect(&unix_address(path)?)?;
    Ok(UnixStream::from_std(socket.into()))
}

/// The `tcp_*` settings for sockets that we connect.
pub(crate) fn tcp_options(settings: &crate::config::Settings) -> TcpOptions {
    let number = |value: i64| u32::try_from(value).unwrap_or(0);
    TcpOptions {
        keepalive: settings.tcp_keepalive.is_on(),
        keepcnt: number(settings.tcp_keepcnt),
        keepidle_secs: number(settings.tcp_keepidle),
        keepintvl_secs: number(settings.tcp_keepintvl),
        user_timeout_ms: number(settings.tcp_user_timeout),
        socket_buffer_bytes: usize::try_from(settings.tcp_socket_buffer).unwrap_or(0),
    }
}
