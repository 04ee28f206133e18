//! Rows of this worker's sockets, for SHOW.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use crate::admin::snapshot::{Buffers, Handover, Home, SocketRow, SocketState};
use crate::clock::Clock;
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

impl Worker {
    /// All clients and all servers in our hands. Parked servers are with the pools.
    pub(super) fn picture(&self) -> Vec<SocketRow> {
        let mut rows = Vec::new();
        let mut linked = Vec::new();
        for client in self.clients.iter() {
            rows.push(self.client_row(client));
            if let Some(server) = &client.server {
                let mut row = server_row(server, SocketState::SvActive, self.shared.listen_port);
                row.link = Some(client.ptr());
                row.wait = self.wait_of(client);
                linked.push((rows.len(), server.me));
                rows.push(row);
            }
        }
        self.note_close_needed(&mut rows, &linked);
        for place in self.places.iter() {
            match place {
                Place::Testing(server) => rows.push(server_row(server, SocketState::SvTested, self.shared.listen_port)),
                Place::Opening(opening) => rows.push(self.opening_row(opening)),
                Place::Linked(_) | Place::Elsewhere => {}
            }
        }
        rows
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

    fn client_row(&self, client: &Client) -> SocketRow {
        let home = match (&client.phase, &client.pool) {
            (Phase::Cancel(canceling), _) => canceling.pool.as_deref().map_or(Home::None, home_of),
            (Phase::Console(_), _) => Home::Pool { database: CONSOLE_DATABASE.into(), user: CONSOLE_DATABASE.into() },
            (Phase::Login(_), _) | (_, None) => Home::None,
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
        SocketRow {
            home,
            state,
            user: client.user.clone(),
            replication: client.replication(),
            addr: client.peer.show(),
            port: client.peer.port(),
            local_addr: local_addr(client.peer, client.stream.socket().local_addr()),
            local_port: client.stream.socket().local_addr().map_or(self.shared.listen_port, |addr| addr.port()),
            connect_time: Clock::unix_secs(client.connect_time),
            request_time: Clock::unix_secs(client.request_time),
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
                Phase::Console(console) if console.busy => Buffers::holding(console.received.len().max(1)),
                _ => Buffers::holding(held),
            },
            handover: handover(client.stream.socket(), client.cancel_key, &client.side.vars, client.pool.as_deref()),
        }
    }

    fn opening_row(&self, opening: &Opening) -> SocketRow {
        let pool = opening.pool();
        let local = opening.local_addr();
        let carrying = matches!(opening.stage, Stage::Carrying);
        SocketRow {
            home: home_of(pool),
            state: if carrying { SocketState::SvActiveCancel } else { SocketState::SvLogin },
            user: pool.peer_id.is_none().then(|| pool.user.clone()),
            replication: opening.replication(),
            addr: opening.addr().show(),
            port: opening.addr().port(),
            local_addr: local_addr(opening.addr(), local),
            local_port: local.map_or(self.shared.listen_port, |addr| addr.port()),
            connect_time: Clock::unix_secs(opening.started),
            request_time: Clock::unix_secs(opening.started),
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
            handover: Handover { fd: opening.fd(), ..Handover::default() },
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
pub(crate) fn server_row(server: &Server, state: SocketState, listen_port: u16) -> SocketRow {
    let local = server.stream.socket().local_addr();
    let user: Arc<str> = server.pool.user.clone();
    SocketRow {
        home: home_of(&server.pool),
        state,
        user: Some(user),
        replication: server.replication,
        addr: server.addr.show(),
        port: server.addr.port(),
        local_addr: local_addr(server.addr, local),
        local_port: local.map_or(listen_port, |addr| addr.port()),
        connect_time: Clock::unix_secs(server.connect_time),
        request_time: Clock::unix_secs(server.request_time),
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
        handover: handover(server.stream.socket(), server.cancel_key, &server.side.vars, Some(&server.pool)),
    }
}

fn handover(socket: &Socket, cancel_key: [u8; 8], vars: &Vars, pool: Option<&PoolShared>) -> Handover {
    let value = |index| vars.get(index).map(str::to_owned);
    let (keys, secret) = pool.map_or((None, None), |pool| {
        let logins = pool.logins.lock();
        let secret = logins.accepted.as_ref().or(logins.fetched.as_ref());
        (logins.client_keys.clone(), secret.map(|secret| secret.text().to_owned()))
    });
    Handover {
        fd: Some(socket.as_fd().as_raw_fd()),
        cancel: i64::from_be_bytes(cancel_key),
        client_encoding: value(CLIENT_ENCODING),
        std_strings: value(STD_STRINGS),
        datestyle: value(DATESTYLE),
        timezone: value(TIMEZONE),
        scram_keys: keys.map(|keys| (keys.client_key.to_vec(), keys.server_key.to_vec())),
        password: secret,
    }
}

fn local_addr(peer: PeerAddr, local: Option<std::net::SocketAddr>) -> String {
    match (peer, local) {
        (PeerAddr::Tcp(_), Some(local)) => local.ip().to_string(),
        (PeerAddr::Tcp(_), None) | (PeerAddr::Unix { .. }, _) => "unix".to_owned(),
    }
}
