//! SUSPEND: bringing all sockets of this worker to the end of a message with nothing in any buffer, and keeping them there.
//!
//! A socket is read for exactly what its message lacks, so that it comes to rest behind it. A client that waits for a server
//! is served first, and whoever holds a server that others wait for goes on until he has given it back: were he stopped in
//! the middle of a transaction, those behind him would wait for nothing.

use crate::disconnect::Disconnect;
use crate::shared::{Hold, Patience};
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase};

impl Worker {
    pub(super) fn is_frozen(&self, client: &Client) -> bool {
        matches!(self.hold, Hold::Frozen(_)) && !matches!(client.phase, Phase::Console(_))
    }

    /// Changes how sockets are treated; afterwards everybody who was not read is looked at again.
    pub(super) fn set_hold(&mut self, hold: Hold) {
        let was = std::mem::replace(&mut self.hold, hold);
        if hold != Hold::Off {
            self.end_draining();
        }
        if matches!(was, Hold::Frozen(_)) && !matches!(hold, Hold::Frozen(_)) {
            for server in std::mem::take(&mut self.missed) {
                self.inspect(server, |stream| stream.look_again());
            }
        }
        if hold == Hold::Off {
            self.accept_all();
            self.again.extend(self.clients.iter().map(|client| client.me));
        }
    }

    /// How many bytes may be read of a client.
    #[cold]
    pub(super) fn client_allowance(&self, client: &Client) -> usize {
        match self.hold {
            Hold::Off => usize::MAX,
            Hold::Frozen(_) => 0,
            Hold::Draining(patience) if client.server.is_some() && self.must_go_on(client, patience) => usize::MAX,
            Hold::Draining(_) => client.side.scan.missing(),
        }
    }

    /// How many bytes may be read of a client's server.
    #[cold]
    pub(super) fn server_allowance(&self, client: &Client) -> usize {
        let Some(server) = &client.server else { return 0 };
        match self.hold {
            Hold::Off => usize::MAX,
            Hold::Frozen(_) => 0,
            Hold::Draining(patience) => {
                let owes_us = server.side.setting_vars || client.input.is_some() || !understood(client, patience);
                if owes_us || self.must_go_on(client, patience) { usize::MAX } else { server.side.scan.missing() }
            }
        }
    }

    /// Others wait for the server of this client.
    fn must_go_on(&self, client: &Client, patience: Patience) -> bool {
        patience == Patience::Plain
            && client.pool.as_ref().is_some_and(|pool| self.shared.broker.lock().pools.has_waiters(pool.id))
    }

    fn at_rest(&self, client: &Client) -> bool {
        let patience = match self.hold {
            Hold::Draining(patience) | Hold::Frozen(patience) => patience,
            Hold::Off => Patience::Plain,
        };
        let held = client.side.extra.as_ref().is_some_and(|extra| extra.held);
        match client.phase {
            Phase::Console(_) => true,
            Phase::Login(_) | Phase::Lookup(_) | Phase::WaitingLogin(_) | Phase::Cancel(_) => false,
            Phase::Waiting(_) => patience == Patience::Short && !held && !client.stream.is_blocked(),
            Phase::Active => {
                let server_rests = client.server.as_ref().is_none_or(|server| {
                    server.side.scan.at_boundary() && !server.side.setting_vars && !server.stream.is_blocked()
                });
                server_rests
                    && client.side.scan.at_boundary()
                    && client.input.is_none()
                    && !held
                    && !client.stream.is_blocked()
                    && understood(client, patience)
            }
        }
    }

    /// Counts the clients that are not at rest. While draining, those to whom it may help get a turn.
    pub(super) fn restless(&mut self) -> usize {
        if let Hold::Draining(patience) = self.hold {
            let linked = self.clients.refs_where(|client| {
                matches!(client.phase, Phase::Active) && (!self.at_rest(client) || self.must_go_on(client, patience))
            });
            for client in linked {
                self.turn(client);
            }
            if patience == Patience::Short {
                // our own successor is waiting, and with it everybody who is logged in
                for slow in self.clients.refs_where(|client| self.is_long_logging_in(client)) {
                    self.end(slow, Disconnect::fatal("suspend_timeout").into());
                }
            }
        }
        self.clients.refs_where(|client| !self.at_rest(client)).len()
    }

    pub(super) fn suspend_timeout(&mut self) {
        for who in self.clients.refs_where(|client| !self.at_rest(client)) {
            let why = Disconnect::fatal("suspend_timeout");
            let in_answer = self.clients.get_mut(who).and_then(|client| client.server.as_ref());
            let with_server = in_answer.is_some_and(|server| !server.side.is_clean());
            self.end(who, if with_server { End::both(why) } else { End::from(why) });
        }
    }
}

/// Will a successor be able to tell whose the answers are?
fn understood(client: &Client, patience: Patience) -> bool {
    let forwarded = || client.server.as_ref().is_none_or(|server| server.side.outstanding.all_forwarded());
    patience == Patience::Short || forwarded()
}
