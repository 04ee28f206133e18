//! The end of a client and of a server: what is logged and told, and what goes back to the pools.

use std::sync::atomic::Ordering::Relaxed;

use crate::config::PoolMode;
use crate::relay::side::TxStatus;
use crate::shared::Request as Ask;
use crate::wire::encode;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase, ServerFate};
use crate::worker::server::Server;
use crate::worker::table::Held;

/// What an error counts as whose text is the server's.
const SERVER_REFUSED: &str = "server login failed";

impl Worker {
    /// Ends a client: logs, gives back or closes its server, tells it, and gives back everything else it held. Log watchers
    /// know the lines in this order.
    pub(super) fn disconnect(&mut self, mut client: Box<Client>, end: End) {
        let outer = self.turning.replace(Some(Held::of(&client)));
        let mid_message = client.server.as_ref().is_some_and(|server| server.side.scan.in_body());
        self.shared.ends.lock().client_closed(&end.why.reason);
        let settings = &self.live.config.settings;
        if settings.log_disconnections.is_on() && self.worth_a_line(&client, &end) {
            let age = self.now.since(client.connect_time).secs();
            let (conn, reason) = (client.prefix(), cut(&end.why.reason));
            match client.server.as_ref().and_then(|server| server.lost.as_deref()) {
                Some(cause) => tracing::info!(conn = %conn, cause, "closing because: {reason} (age={age}s)"),
                None => tracing::info!(conn = %conn, "closing because: {reason} (age={age}s)"),
            }
        }
        if let Some(server) = client.server.take() {
            self.part(&client, server, &end);
        }
        self.tell(&mut client, &end, mid_message);
        self.turning.replace(outer);
        self.depart(&client);
        client.stream.retire();
    }

    /// A client that went before it was logged in, without a word from us, gets no closing line.
    fn worth_a_line(&self, client: &Client, end: &End) -> bool {
        match client.phase {
            Phase::Login(_) | Phase::Lookup(_) => end.why.reason != "client unexpected eof",
            _ => true,
        }
    }

    /// Sends the FATAL error, unless that would fall into the middle of a message.
    fn tell(&mut self, client: &mut Client, end: &End, mid_message: bool) {
        if !end.why.tell {
            return;
        }
        let text = if end.why.verbatim { &*end.why.reason } else { cut(&end.why.reason) };
        self.shared.ends.lock().error_told(&end.why.sqlstate, if end.why.verbatim { SERVER_REFUSED } else { text });
        if self.live.config.settings.log_pooler_errors.is_on() {
            tracing::warn!(conn = %client.prefix(), "pooler error: {text}");
        }
        if mid_message || client.stream.is_blocked() {
            return;
        }
        let mut out = Vec::new();
        encode::error_response(&mut out, "FATAL", &end.why.sqlstate, text);
        if out.len() <= 512 {
            let _ = client.stream.write_bytes(&out);
        }
    }

    /// A client leaves its server: back to the pool if it is clean, closed otherwise.
    fn part(&mut self, client: &Client, server: Box<Server>, end: &End) {
        if let Some(pool) = &client.pool {
            pool.add(self.id, &std::mem::take(&mut self.tally));
        }
        let session_end = client.mode == PoolMode::Session;
        let reason = match (end.server, unsettled(client, &server)) {
            (ServerFate::Parted, None) => return self.release(server, session_end),
            (ServerFate::Parted, Some(_)) if self.may_drain(client, &server) => return self.drain(client, server),
            (ServerFate::Shared, _) | (ServerFate::Goes, None) => &*end.why.reason,
            (ServerFate::Parted | ServerFate::Goes, Some(reason)) => reason,
        };
        self.cancel_left(client, &server, false);
        self.drop_server(*server, reason);
    }

    /// Gives back what a client counted for.
    fn depart(&mut self, client: &Client) {
        let (held, now) = (Held::of(client), self.now);
        self.uncount(&held);
        self.pools(|broker| held.give_back(broker, now));
        self.clients.forget(client.me);
    }

    /// Gives back what everybody but the pools knows of a client.
    pub(super) fn uncount(&self, held: &Held) {
        let post = self.shared.post(self.id);
        post.clients.fetch_sub(1, Relaxed);
        self.shared.clients.fetch_sub(1, Relaxed);
        if held.login {
            post.logins.fetch_sub(1, Relaxed);
        }
        if held.goes_to_peer {
            post.to_peers.fetch_sub(1, Relaxed);
        }
        if held.console {
            self.shared.console_clients.fetch_sub(1, Relaxed);
            self.shared.ask(Ask::ConsoleLeft);
        }
        if held.logged_in {
            self.shared.cancel_keys.lock().remove(&held.cancel_key);
        }
    }

    /// Closes a server that is in our hands and tells the pools.
    pub(super) fn drop_server(&mut self, server: Server, reason: &str) {
        let (id, now) = (server.me, self.now);
        self.turning.holds(None);
        self.places.clear(id);
        self.close_server(server, reason);
        self.pools(|broker| broker.pools.gone(id, now));
    }

    /// Closes a server that the pools have forgotten already.
    pub(super) fn close_server(&mut self, mut server: Server, reason: &str) {
        self.shared.ends.lock().server_closed(reason);
        if self.live.config.settings.log_disconnections.is_on() {
            let age = self.now.since(server.connect_time).secs();
            let (conn, reason) = (server.prefix(), cut(reason));
            match server.lost.as_deref() {
                Some(cause) => tracing::info!(conn = %conn, cause, "closing because: {reason} (age={age}s)"),
                None => tracing::info!(conn = %conn, "closing because: {reason} (age={age}s)"),
            }
        }
        if server.side.ready && !server.stream.is_blocked() {
            let _ = server.stream.write_bytes(&[b'X', 0, 0, 0, 4]);
        }
        server.stream.retire();
    }
}

/// Why the server of a client that leaves cannot serve another one.
fn unsettled(client: &Client, server: &Server) -> Option<&'static str> {
    let side = &server.side;
    if side.tx != TxStatus::Idle || !side.ready || side.setting_vars || side.copying {
        Some("client disconnect while server was not ready")
    } else if !side.outstanding.is_empty() {
        Some("client disconnected with query in progress")
    } else if server.stream.is_blocked() || client.side.scan.in_body() {
        Some("client disconnect before everything was sent to the server")
    } else if !side.is_clean() || server.stream.readable() || client.side.copying {
        Some("client disconnect while server was not ready")
    } else {
        None
    }
}

/// Closing reasons are cut at 127 bytes.
fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(127);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
