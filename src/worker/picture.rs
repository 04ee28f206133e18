//! Rows of this worker's sockets, for SHOW.
//!
//! Servers and the clients they are linked to are listed in one go, for they change hands all the time; all other clients,
//! of whom there may be thousands, a slice at a time between the turns of those who work.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::admin::snapshot::{Address, Buffers, Handover, Home, SocketRow, SocketState};
use crate::clock::{Clock, Wall};
use crate::config::CONSOLE_DATABASE;
use crate::id::ServerId;
use crate::net::stream::Socket;
use crate::relay::vars::Vars;
use crate::shared::PoolShared;
use crate::time::Micros;
use crate::worker::Worker;
use crate::worker::client::{Client, Phase};
use crate::worker::open::{Opening, Stage};
use crate::worker::peer::PeerAddr;
use crate::worker::server::Server;
use crate::worker::table::Place;
use crate::worker::tls;

// Positions among the tracked parameters.
const DATESTYLE: usize = 0;
const CLIENT_ENCODING: usize = 1;
const TIMEZONE: usize = 2;
const STD_STRINGS: usize = 3;
pub(super) const APPLICATION_NAME: usize = 4;

/// The positions of those that PgBouncer hands to a successor: date style, encoding, time zone, standard strings.
pub(crate) const TRACKED: [usize; 4] = [DATESTYLE, CLIENT_ENCODING, TIMEZONE, STD_STRINGS];

/// Most clients listed before traffic gets its turn: some twenty microseconds.
const SLICE: u32 = 64;

/// What is to be listed.
#[derive(Debug)]
pub struct Order {
    /// Whether what SHOW FDS tells a successor belongs in the rows.
    pub handover: bool,
    /// Gets servers and linked clients at once.
    pub busy: oneshot::Sender<Vec<SocketRow>>,
    /// Gets all other clients, if anybody asks for them.
    pub rest: Option<oneshot::Sender<Vec<SocketRow>>>,
}

/// A list of clients that is under way.
pub(super) struct Listing {
    handover: bool,
    /// The ids of those that are listed already.
    listed: HashSet<u64>,
    rows: Vec<SocketRow>,
    /// The slot where it goes on.
    next: u32,
    rest: oneshot::Sender<Vec<SocketRow>>,
}

impl Worker {
    /// Lists servers and linked clients now, and the others from now on. Parked servers are with the pools.
    pub(super) fn picture(&mut self, order: Order) {
        let (rows, listed) = self.busy_rows(order.handover);
        let _ = order.busy.send(rows);
        if let Some(rest) = order.rest {
            let rows = Vec::with_capacity(self.clients.slots() as usize);
            self.listings.push(Listing { handover: order.handover, listed, rows, next: 0, rest });
        }
    }

    /// Lists some more clients if somebody waits for them.
    pub(super) fn picture_slice(&mut self) {
        let Some(mut listing) = self.listings.pop() else { return };
        let to = listing.next.saturating_add(SLICE).min(self.clients.slots());
        let clients = (listing.next..to).filter_map(|index| self.clients.at(index));
        let others = clients.filter(|client| !listing.listed.contains(&client.id));
        let wall = Clock::wall();
        listing.rows.extend(others.map(|client| self.client_row(client, wall, listing.handover)));
        listing.next = to;
        if to < self.clients.slots() {
            self.listings.push(listing);
        } else {
            let _ = listing.rest.send(listing.rows);
        }
    }

    /// Servers in our hands with their clients, and the ids of these.
    fn busy_rows(&self, handover: bool) -> (Vec<SocketRow>, HashSet<u64>) {
        let (mut rows, mut linked, mut listed) = (Vec::new(), Vec::new(), HashSet::new());
        let wall = Clock::wall();
        let server_row = |server, state| server_row(server, state, wall, self.shared.listen_port, handover);
        // by the servers, of whom there are few
        for client in self.places.linked().filter_map(|client| self.clients.get(client)) {
            let Some(server) = &client.server else { continue };
            listed.insert(client.id);
            rows.push(self.client_row(client, wall, handover));
            let mut row = server_row(server, SocketState::SvActive);
            row.link = Some(client.ptr());
            linked.push((rows.len(), server.me));
            rows.push(row);
        }
        self.note_close_needed(&mut rows, &linked);
        for place in self.places.iter() {
            match place {
                Place::Testing(server) => rows.push(server_row(server, SocketState::SvTested)),
                Place::Draining { server, .. } => rows.push(server_row(server, SocketState::SvDraining)),
                Place::Leaving(server) => rows.push(server_row(server, SocketState::SvIdle)),
                Place::Opening(opening) => rows.push(self.opening_row(opening, wall)),
                Place::Linked(_) | Place::Elsewhere => {}
            }
        }
        (rows, listed)
    }

    /// Asks the pools about the linked servers only, so that the lock is not held while thousands of clients are listed.
    fn note_close_needed(&self, rows: &mut [SocketRow], linked: &[(usize, ServerId)]) {
        let broker = self.shared.broker.lock();
        for &(row, server) in linked {
            rows[row].close_needed = broker.pools.close_needed(server);
        }
    }

    fn wait_of(&self, client: &Client) -> Micros {
        let start = if client.side.query_start.is_zero() { client.wait_start } else { client.side.query_start };
        if start.is_zero() { Micros::ZERO } else { self.now.since(start) }
    }

    fn client_row(&self, client: &Client, wall: Wall, with_handover: bool) -> SocketRow {
        let home = match (&client.phase, &client.pool) {
            (Phase::Cancel(canceling), _) => canceling.pool.as_deref().map_or(Home::None, home_of),
            (Phase::Console(_), _) => Home::Pool { database: CONSOLE_DATABASE.into(), user: CONSOLE_DATABASE.into() },
            (Phase::Login(login), _) => login
                .database
                .clone()
                .map_or(Home::None, |database| Home::Pool { database, user: client.user.clone().unwrap_or_default() }),
            (_, None) => Home::None,
            (_, Some(pool)) => home_of(pool),
        };
        let state = match &client.phase {
            Phase::Lookup(lookup) if lookup.ticket.is_some() => SocketState::ClWaiting,
            Phase::Login(_) | Phase::Lookup(_) => SocketState::ClLogin,
            Phase::Waiting(_) | Phase::WaitingLogin(_) => SocketState::ClWaiting,
            Phase::Active | Phase::Console(_) => SocketState::ClActive,
            Phase::Cancel(canceling) if canceling.sent => SocketState::ClActiveCancel,
            Phase::Cancel(_) => SocketState::ClWaitingCancel,
        };
        let held = client.input.as_ref().map_or(0, |input| input.len());
        let local = self.near_end(client);
        let handover =
            || handover(client.stream.socket(), client.cancel_key, &client.side.vars, client.pool.as_deref());
        SocketRow {
            home,
            state,
            user: client.user.clone(),
            replication: client.replication(),
            addr: client.peer.address(),
            port: client.peer.port(),
            local_addr: local_addr(client.peer, local),
            local_port: local.map_or(self.shared.listen_port, |addr| addr.port()),
            connect_time: wall.unix_secs(client.connect_time),
            request_time: wall.unix_secs(client.request_time),
            wait: self.wait_of(client),
            close_needed: false,
            ptr: client.ptr(),
            link: client.server.as_ref().map(|server| server.ptr()),
            remote_pid: client.peer.pid(),
            tls: tls::info(&client.stream).unwrap_or_default(),
            application_name: client.side.vars.get(APPLICATION_NAME).unwrap_or_default().to_owned(),
            prepared_statements: client.side.prepared_statements() as u64,
            id: client.id,
            buffers: match &client.phase {
                Phase::Console(console) => console.buffers(),
                Phase::Login(login) => Buffers::holding(login.received.len()),
                _ => Buffers::holding(held),
            },
            handover: with_handover.then(handover),
        }
    }

    /// Where a TCP client has come in. The system is asked only if that may be anywhere.
    fn near_end(&self, client: &Client) -> Option<SocketAddr> {
        match client.peer {
            PeerAddr::Tcp(_) => self.shared.tcp_address.or_else(|| client.stream.socket().local_addr()),
            PeerAddr::Unix { .. } => None,
        }
    }

    fn opening_row(&self, opening: &Opening, wall: Wall) -> SocketRow {
        let pool = opening.pool();
        let local = opening.local_addr();
        let carrying = matches!(opening.stage, Stage::Carrying);
        SocketRow {
            home: home_of(pool),
            state: if carrying { SocketState::SvActiveCancel } else { SocketState::SvLogin },
            user: pool.peer_id.is_none().then(|| pool.user.clone()),
            replication: opening.replication(),
            addr: opening.addr().address(),
            port: opening.addr().port(),
            local_addr: local_addr(opening.addr(), local),
            local_port: local.map_or(self.shared.listen_port, |addr| addr.port()),
            connect_time: wall.unix_secs(opening.started),
            request_time: wall.unix_secs(opening.started),
            wait: Micros::ZERO,
            close_needed: false,
            ptr: opening.ptr(),
            link: None,
            remote_pid: 0,
            tls: opening.tls_info().unwrap_or_default(),
            application_name: String::new(),
            prepared_statements: 0,
            id: opening.id(),
            buffers: Buffers::holding(0),
            handover: Some(Box::new(Handover { fd: opening.fd(), ..Handover::default() })),
        }
    }
}

/// Under which pool a socket is shown.
fn home_of(pool: &PoolShared) -> Home {
    match pool.peer_id {
        Some(peer_id) => Home::PeerPool { peer_id },
        None => Home::Pool { database: pool.database.clone(), user: pool.user.clone() },
    }
}

/// The row of a logged-in server.
pub(crate) fn server_row(
    server: &Server,
    state: SocketState,
    wall: Wall,
    listen_port: u16,
    with_handover: bool,
) -> SocketRow {
    let local = server.local;
    let user: Arc<str> = server.pool.user.clone();
    let handover = || handover(server.stream.socket(), server.cancel_key, &server.side.vars, Some(&server.pool));
    SocketRow {
        home: home_of(&server.pool),
        state,
        user: Some(user),
        replication: server.replication,
        addr: server.addr.address(),
        port: server.addr.port(),
        local_addr: local_addr(server.addr, local),
        local_port: local.map_or(listen_port, |addr| addr.port()),
        connect_time: wall.unix_secs(server.connect_time),
        request_time: wall.unix_secs(server.request_time),
        wait: Micros::ZERO,
        close_needed: false,
        ptr: server.ptr(),
        link: None,
        remote_pid: match server.addr.pid() {
            0 => server.backend_pid(),
            pid => pid,
        },
        tls: tls::info(&server.stream).unwrap_or_default(),
        application_name: server.side.vars.get(APPLICATION_NAME).unwrap_or_default().to_owned(),
        prepared_statements: server.side.statements.len() as u64,
        id: server.id,
        buffers: Buffers::holding(server.stream.pending_bytes()),
        handover: with_handover.then(handover),
    }
}

fn handover(socket: &Socket, cancel_key: [u8; 8], vars: &Vars, pool: Option<&PoolShared>) -> Box<Handover> {
    let value = |index| vars.get(index).map(str::to_owned);
    let (keys, secret) = pool.map_or((None, None), |pool| {
        let logins = pool.logins.lock();
        let secret = logins.accepted.as_ref().or(logins.fetched.as_ref());
        (logins.client_keys.clone(), secret.map(|secret| secret.bytes().to_vec()))
    });
    Box::new(Handover {
        fd: Some(socket.as_fd().as_raw_fd()),
        cancel: i64::from_be_bytes(cancel_key),
        client_encoding: value(CLIENT_ENCODING),
        std_strings: value(STD_STRINGS),
        datestyle: value(DATESTYLE),
        timezone: value(TIMEZONE),
        scram_keys: keys.map(|keys| (keys.client_key.to_vec(), keys.server_key.to_vec())),
        password: secret,
    })
}

fn local_addr(peer: PeerAddr, local: Option<SocketAddr>) -> Address {
    match (peer, local) {
        (PeerAddr::Tcp(_), Some(local)) => Address::Tcp(local.ip()),
        (PeerAddr::Tcp(_), None) | (PeerAddr::Unix { .. }, _) => Address::Unix,
    }
}
