//! Taking in the sockets of a predecessor, before the workers run.
//!
//! Clients go round the workers, and a linked server goes with its client. What a predecessor of ours said about a socket
//! is used; of any other it is known only that its sockets are between two messages, so that a linked server counts as busy
//! with anything until it has shown otherwise (`Worker::find_out`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnix;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::admin::snapshot::{FdRow, FdTask};
use crate::auth::scram::ScramKeys;
use crate::auth::secret::Secret;
use crate::broker::ServerPools;
use crate::config::{AuthType, PoolMode, effective};
use crate::id::DbId;
use crate::net::stream::{Socket, Stream};
use crate::pool::Address;
use crate::relay::handover::{Context, Known, adopt_statements, take_client, take_reply, take_server};
use crate::relay::link::{ask, question_is_due};
use crate::relay::side::{ClientSide, ServerSide};
use crate::relay::vars::Vars;
use crate::shared::{LoginReply, PoolShared, Shared};
use crate::sys;
use crate::takeover::State;
use crate::time::Micros;
use crate::wire::startup::Replication;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase};
use crate::worker::peer::PeerAddr;
use crate::worker::picture::TRACKED;
use crate::worker::relay::crashed;
use crate::worker::replication::Replicating;
use crate::worker::server::Server;
use crate::worker::table::{Place, client_token, server_token};

type Row = (FdRow, OwnedFd);

/// Gives all sockets of a predecessor to the workers.
pub(crate) fn distribute(workers: &mut [Worker], shared: &Shared, rows: Vec<Row>, state: &State) {
    let known = adopt_statements(&mut shared.statements.lock(), state.statements.iter().cloned());
    // statements that contradict each other: nothing of it can be believed
    let nothing = State::default();
    let (state, known) = known.map_or((&nothing, Known::new()), |known| (state, known));
    let (clients, servers): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(row, _)| row.task == FdTask::Client);
    let mut servers: HashMap<i32, Row> = servers.into_iter().map(|server| (server.0.fd, server)).collect();
    let mut turn = 0;
    let mut next = |workers: &mut [Worker]| {
        turn = (turn + 1) % workers.len().max(1);
        turn
    };
    for client in clients {
        let server = if client.0.link == 0 { None } else { servers.remove(&client.0.link) };
        let at = next(workers);
        workers[at].inherit_client(client, server, state, &known);
    }
    for (_, server) in servers {
        // one whose client is not here is in the middle of something for nobody
        if server.0.link == 0 {
            let at = next(workers);
            workers[at].inherit_server(server, state, &known);
        }
    }
    for reply in &state.pools {
        inherit_reply(shared, reply);
    }
}

fn inherit_reply(shared: &Shared, bytes: &[u8]) {
    let Some(reply) = take_reply(bytes, &shared.names) else { return };
    let mut broker = shared.broker.lock();
    let now = Micros::ZERO;
    let pools = &mut broker.pools;
    if let Some(db) = entry(pools, &reply.database)
        && let Some(pool) = pools.pool_named(db, &reply.user, now)
    {
        let (untracked, tracked) = (reply.untracked, reply.tracked);
        pools.inherit_reply(pool, Arc::new(LoginReply { untracked, tracked }));
    }
}

impl Worker {
    /// A server taken over in the middle of something counts as a session's. After a ReadyForQuery outside of a transaction
    /// it is asked a question: whatever comes before the answer belongs to what the predecessor had asked for.
    #[cold]
    pub(super) fn find_out(&mut self, client: &mut Client) -> Result<(), End> {
        let Some(server) = &mut client.server else { return Ok(()) };
        if server.side.inherited.as_ref().is_some_and(|inherited| inherited.over) {
            server.side.inherited = None;
            let pool = server.pool.id;
            client.mode = self.pools(|broker| broker.pools.pool_mode(pool)).unwrap_or(PoolMode::Session);
            return self.let_go(client);
        }
        if server.stream.is_blocked() || !question_is_due(&client.side, &server.side) {
            return Ok(());
        }
        let random = self.random.take().map_err(|_| crashed())?;
        let column = format!("taken_over_{:016x}", u64::from_be_bytes(random));
        let mut out = Vec::new();
        ask(&mut server.side, column, &mut out);
        server.stream.write_bytes(&out).map_err(|_| crashed())
    }

    fn inherit_client(&mut self, (row, fd): Row, server: Option<Row>, state: &State, known: &Known) {
        let Some((mut client, input)) = self.inherited_client(&row, fd, state, known) else {
            // its database or user is gone: so is the client
            return;
        };
        if let Some((row, fd)) = server
            && let Some(pool) = client.pool.clone()
            && let Some(server) = self.inherited_server(&row, fd, pool, true, state, known)
        {
            if server.side.inherited.is_some() {
                client.mode = PoolMode::Session;
            }
            let mut server = server;
            if let Some(wishes) = &client.replicating {
                client.mode = PoolMode::Session;
                server.replication = wishes.kind;
                self.pools(|broker| broker.pools.inherit_replication(server.me));
            }
            self.places.set(server.me, Place::Linked(client.me));
            self.pools(|broker| broker.pools.link_inherited(server.me));
            client.server = Some(server);
        } else if row.link != 0 {
            // without its server the client would wait for ever
            return self.disconnect(client, crate::disconnect::Disconnect::fatal("server conn crashed?").into());
        }
        if !input.is_empty() {
            client.input = Some(Box::new(input));
        }
        self.goes_on(client.me);
        self.clients.put_back(client);
    }

    fn inherited_client(
        &mut self,
        row: &FdRow,
        fd: OwnedFd,
        state: &State,
        known: &Known,
    ) -> Option<(Box<Client>, Vec<u8>)> {
        let (database, user) = (row.database.as_deref()?, row.user.as_deref()?);
        let (socket, peer) = socket(row, fd)?;
        let now = self.now;
        let (attached, entry, shared) = self.pools(|broker| {
            let db = entry(&mut broker.pools, database)?;
            let entry = broker.pools.database(db)?;
            let (attached, shared) = broker.attach(db, user, true, now).ok()?;
            broker.pools.client_ready(attached.pool, now);
            Some((attached, entry, shared))
        })?;
        let (side, input) = self.client_side(row, state, known);
        let cancel_key = row.cancel.to_be_bytes();
        let mut client = Box::new(Client {
            stream: Stream::new(socket),
            me: self.clients.reserve(),
            id: self.shared.next_socket(),
            peer,
            phase: Phase::Active,
            side,
            mode: effective::pool_mode(&self.live.config, &entry, effective::pool_user(&entry, user)),
            pool: Some(shared),
            user: Some(user.into()),
            user_id: Some(attached.user),
            server: None,
            input: None,
            cancel_key,
            connect_time: now,
            request_time: now,
            wait_start: Micros::ZERO,
            notified: false,
            counted_ready: true,
            replicating: state.replicating.get(&row.fd).and_then(|bytes| replicating(bytes)),
        });
        self.shared.clients.fetch_add(1, Ordering::Relaxed);
        self.shared.post(self.id).clients.fetch_add(1, Ordering::Relaxed);
        self.shared.cancel_keys.lock().insert(cancel_key, client.me);
        inherit_keys(row, client.pool.as_deref(), self.live.config.settings.auth_type);
        if self.live.config.settings.log_connections.is_on() {
            tracing::info!(conn = %client.prefix(), "login attempt: db={database} user={user} tls=no replication=no");
        }
        let token = client_token(client.me);
        if let Err(error) = client.stream.register(&self.shared.post(self.id).registry, token) {
            tracing::error!("cannot wait for a client's socket: {error}");
        }
        Some((client, input))
    }

    fn client_side(&mut self, row: &FdRow, state: &State, known: &Known) -> (ClientSide, Vec<u8>) {
        let now = self.now;
        let mut ctx = Context { names: &self.shared.names, interner: &mut self.interner, known };
        let told = state.clients.get(&row.fd).and_then(|bytes| take_client(bytes, &mut ctx, now));
        told.unwrap_or_else(|| (ClientSide::new(self.values_of(row)), Vec::new()))
    }

    /// The four values that every predecessor tells.
    fn values_of(&mut self, row: &FdRow) -> Vars {
        let values = [&row.datestyle, &row.client_encoding, &row.timezone, &row.std_strings];
        let set = TRACKED.into_iter().zip(values).filter_map(|(at, value)| Some((at, value.as_deref()?)));
        self.interner.intern(Vars::from_values(&self.shared.names, set))
    }

    fn inherit_server(&mut self, (row, fd): Row, state: &State, known: &Known) {
        let now = self.now;
        let (Some(database), Some(user)) = (row.database.as_deref(), row.user.as_deref()) else { return };
        let pool = self.pools(|broker| {
            let db = entry(&mut broker.pools, database)?;
            let pool = broker.pools.pool_named(db, user, now)?;
            broker.shared(pool)
        });
        let Some(pool) = pool else { return };
        let Some(server) = self.inherited_server(&row, fd, pool, false, state, known) else { return };
        self.pools(|broker| broker.pools.park_inherited(server.me, server, now));
    }

    fn inherited_server(
        &mut self,
        row: &FdRow,
        fd: OwnedFd,
        pool: Arc<PoolShared>,
        linked: bool,
        state: &State,
        known: &Known,
    ) -> Option<Box<Server>> {
        let (socket, addr) = socket(row, fd)?;
        let mut ctx = Context { names: &self.shared.names, interner: &mut self.interner, known };
        let told = state.servers.get(&row.fd).and_then(|bytes| take_server(bytes, &mut ctx));
        let side = match told {
            Some(side) => side,
            None if linked => ServerSide::inherited(self.values_of(row)),
            // PgBouncer hands over what is still logging in as if it were idle
            None if row.cancel == 0 || sys::socket::has_input(socket.as_fd()) => return None,
            None => ServerSide::new(self.values_of(row)),
        };
        inherit_keys(row, Some(&pool), self.live.config.settings.auth_type);
        let address = match addr {
            PeerAddr::Tcp(addr) => Some(Address::Tcp(addr)),
            PeerAddr::Unix { .. } => None,
        };
        let (home, now) = (self.id, self.now);
        let me = self.pools(|broker| broker.pools.inherit(pool.id, home, address, now));
        let mut server = Box::new(Server {
            local: socket.local_addr(),
            stream: Stream::new(socket),
            me,
            id: self.shared.next_socket(),
            side,
            pool,
            cancel_key: row.cancel.to_be_bytes(),
            addr,
            home,
            connect_time: now,
            request_time: now,
            testing: None,
            replication: Replication::None,
            lost: None,
            login_reply: None,
        });
        if let Err(error) = server.stream.register(&self.shared.post(home).registry, server_token(me)) {
            tracing::error!("cannot wait for a server's socket: {error}");
        }
        Some(server)
    }
}

/// What a replication client asked for: the first letter of its kind, and its options after another byte if it had any.
fn replicating(bytes: &[u8]) -> Option<Arc<Replicating>> {
    let (&kind, rest) = bytes.split_first()?;
    let kind = if kind == b'l' { Replication::Logical } else { Replication::Physical };
    let options = rest.split_first().map(|(_, options)| String::from_utf8_lossy(options).into_owned());
    Some(Arc::new(Replicating { kind, options }))
}

/// The same as bytes.
pub(super) fn replication_state(wishes: &Replicating) -> Vec<u8> {
    let kind = if wishes.kind == Replication::Logical { b'l' } else { b'p' };
    let options = wishes.options.as_deref().map(|options| [b" ", options.as_bytes()].concat());
    [&[kind][..], &options.unwrap_or_default()].concat()
}

/// What logs servers of a pool in: the keys of a client's own SCRAM login, the secret of a user who is in no file.
fn inherit_keys(row: &FdRow, pool: Option<&PoolShared>, auth_type: AuthType) {
    if let (Some(password), Some(pool)) = (&row.password, pool) {
        let mut logins = pool.logins.lock();
        let secret = Some(Secret::classify(password));
        let judged = matches!(auth_type, AuthType::Pam | AuthType::Ldap);
        if judged { logins.accepted = secret } else { logins.fetched = secret }
    }
    let (Some(client), Some(server), Some(pool)) = (&row.scram_client_key, &row.scram_server_key, pool) else { return };
    if let (Ok(client_key), Ok(server_key), false) = (client[..].try_into(), server[..].try_into(), pool.forced) {
        pool.logins.lock().client_keys = Some(ScramKeys { client_key, server_key });
    }
}

/// The entry of that name, made from `*` if need be. The predecessor has logged that there is one.
fn entry(pools: &mut ServerPools, name: &str) -> Option<DbId> {
    let db = pools.find_database(name, Micros::ZERO);
    let _ = pools.take_registered();
    db
}

/// The socket of a row, and the address it is known by.
fn socket(row: &FdRow, fd: OwnedFd) -> Option<(Socket, PeerAddr)> {
    if row.addr == "unix" {
        let socket = StdUnix::from(fd);
        socket.set_nonblocking(true).ok()?;
        let known = sys::socket::peer_credentials(&socket).ok();
        let (pid, uid) = (known.map(|peer| peer.pid), known.map(|peer| peer.uid));
        let socket = mio::net::UnixStream::from_std(socket);
        return Some((Socket::Unix(socket), PeerAddr::Unix { pid, uid, port: row.port }));
    }
    let addr: IpAddr = row.addr.parse().ok()?;
    let socket = std::net::TcpStream::from(fd);
    socket.set_nonblocking(true).ok()?;
    let socket = mio::net::TcpStream::from_std(socket);
    Some((Socket::Tcp(socket), PeerAddr::Tcp(SocketAddr::new(addr, row.port))))
}
