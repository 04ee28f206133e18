//! Servers whose clients left in the middle of a query, and which may be used again: `server_drain_timeout`.
//!
//! Such a server stays in state active, without a client, until all answers that it owes have come; nobody gets them. If it
//! is clean then, it is given back like any other, and rests until the cancel that was sent after its query is over.
//! Whatever else happens, it is closed.

use crate::config::PoolMode;
use crate::relay::link::{Drained, can_drain, drained};
use crate::shared::Hold;
use crate::wire::startup::Replication;
use crate::worker::Worker;
use crate::worker::client::Client;
use crate::worker::server::Server;
use crate::worker::table::Place;

const NOT_READY: &str = "client disconnect while server was not ready";

impl Worker {
    /// Is what `client` leaves worth waiting for?
    pub(super) fn may_drain(&self, client: &Client, server: &Server) -> bool {
        let wanted = !self.live.config.settings.server_drain_timeout.is_zero() && self.hold == Hold::Off;
        let whole = server.lost.is_none() && !server.stream.is_blocked() && server.replication == Replication::None;
        wanted && whole && can_drain(&client.side, &server.side)
    }

    /// Takes over a server that [`Worker::may_drain`] from a client that leaves.
    pub(super) fn drain(&mut self, client: &Client, mut server: Box<Server>) {
        self.cancel_left(client, &server, true);
        server.request_time = self.now;
        // what it has said already makes no event any more
        self.talks_on(server.me);
        self.keep_draining(server, client.mode == PoolMode::Session);
    }

    pub(super) fn drain_turn(&mut self, mut server: Box<Server>, session_end: bool) {
        if let Err(why) = self.hear_out(&mut server) {
            return self.drop_server(*server, &why.reason);
        }
        match drained(&server.side) {
            Drained::Clean | Drained::NotYet if server.stream.readable() => self.keep_draining(server, session_end),
            Drained::NotYet => self.keep_draining(server, session_end),
            Drained::Stuck => self.drop_server(*server, NOT_READY),
            Drained::Clean => self.release(server, session_end),
        }
    }

    fn keep_draining(&mut self, server: Box<Server>, session_end: bool) {
        self.turning.holds(None);
        self.places.set(server.me, Place::Draining { server, session_end });
    }

    /// Closes those that take too long.
    pub(super) fn sweep_draining(&mut self) {
        let limit = self.live.config.settings.server_drain_timeout;
        let now = self.now;
        self.close_draining(|server| now.since(server.request_time) > limit);
    }

    /// Closes all: a process that is to stand still has no time for them.
    pub(super) fn end_draining(&mut self) {
        self.close_draining(|_| true);
    }

    fn close_draining(&mut self, which: impl Fn(&Server) -> bool) {
        let found = self.places.iter().filter_map(|place| match place {
            Place::Draining { server, .. } if which(server) => Some(server.me),
            _ => None,
        });
        for server in found.collect::<Vec<_>>() {
            if let Place::Draining { server, .. } = self.places.take(server) {
                self.drop_server(*server, NOT_READY);
            }
        }
    }
}
