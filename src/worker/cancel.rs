//! Cancel requests: from the connection that brings one, to the client it is about, to that client's server.
//!
//! A request is matched by the whole key, travels to the worker of the client it names, and is handed to the pools only if
//! that client is linked at that moment. The pools see to it that the server rests until the request has been carried out,
//! so that it can hit nobody else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::relay::cancel::{CancelKey, Route};
use crate::shared::{Message, PoolShared, Request};
use crate::wire::startup::Replication;
use crate::worker::Worker;
use crate::worker::client::{Canceling, Client, End, Phase};
use crate::worker::login::Next;
use crate::worker::server::Server;

impl Worker {
    /// A connection presented a cancel key.
    pub(super) fn cancel_request(&mut self, client: &mut Client, key: [u8; 8]) -> Result<Next, End> {
        match CancelKey(key).route(self.peer_id()) {
            Route::Local(CancelKey(key)) => {
                let target = self.shared.cancel_keys.lock().get(&key).copied();
                let Some(target) = target else { return Err(failed().into()) };
                self.now_canceling(client, Canceling::default());
                self.local_or_remote(target.worker, Message::CancelTarget { target, request: client.me });
            }
            Route::Peer { id, key } => self.forward_to_peer(client, id, key)?,
            Route::Exhausted => {
                let why = "failed to forward cancel request because its TTL was exhausted";
                return Err(Disconnect::silent(why).into());
            }
        }
        Ok(Next::Wait)
    }

    /// Which of its peers this process is; 0 without peers. Only two bytes of a key are there for it.
    pub(super) fn peer_id(&self) -> u16 {
        let [low, high, ..] = self.live.config.settings.peer_id.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    fn now_canceling(&mut self, client: &mut Client, request: Canceling) {
        let post = self.shared.post(self.id);
        if request.to_peer {
            post.to_peers.fetch_add(1, Ordering::Relaxed);
        }
        post.logins.fetch_sub(1, Ordering::Relaxed);
        let left = client.stream.closing().then_some(self.now);
        client.phase = Phase::Cancel(Box::new(Canceling { left, ..request }));
        self.turning.begin(client);
    }

    fn forward_to_peer(&mut self, client: &mut Client, peer: u16, key: CancelKey) -> Result<(), End> {
        let (me, now) = (client.me, self.now);
        let queued = self.pools(|broker| {
            let queued = broker.pools.cancel_peer(me, peer, key.0, now);
            queued.then(|| broker.pools.pool_of_cancel(me).and_then(|pool| broker.shared(pool)))
        });
        let Some(pool) = queued else {
            return Err(Disconnect::silent("could not find peer to forward request to").into());
        };
        self.now_canceling(client, Canceling { pool, to_peer: true, ..Canceling::default() });
        Ok(())
    }

    /// Somebody wants to cancel what one of our clients is doing.
    pub(super) fn cancel_target(&mut self, target: ClientRef, request: ClientRef) {
        let now = self.now;
        let why = match self.clients.get_mut(target) {
            None => failed(),
            Some(client) => match (&client.phase, &client.server) {
                (Phase::Console(console), _) => {
                    if !console.busy && console.waits == 0 {
                        tracing::warn!(conn = %client.prefix(), "admin cancel request for non-waiting client?");
                    }
                    self.shared.ask(Request::CancelConsole);
                    Disconnect::silent("cancel request for console client")
                }
                (_, None) => Disconnect::silent("cancel request for idle client"),
                (_, Some(server)) if server.side.setting_vars => {
                    Disconnect::silent("ignoring cancel request for server that is setting vars")
                }
                (_, Some(server)) => {
                    let (id, key) = (server.me, server.cancel_key);
                    let pool = server.pool.clone();
                    if self.pools(|broker| broker.pools.cancel(request, id, key, now)) {
                        return self.local_or_remote(request.worker, Message::CancelQueued { request, pool });
                    }
                    failed()
                }
            },
        };
        self.local_or_remote(request.worker, Message::CancelFinished { request, why });
    }

    /// Cancels what runs on a server whose client goes, if `cancel_on_disconnect` asks for it: the server itself notices that
    /// nobody listens only when it has something to say. Unless it is `kept`, it must be closed now.
    pub(super) fn cancel_left(&mut self, client: &Client, server: &Server, kept: bool) {
        let runs = !server.side.ready || !server.side.outstanding.is_empty();
        let reachable = server.lost.is_none() && server.cancel_key != [0; 8] && server.replication == Replication::None;
        if runs && reachable && self.live.config.settings.cancel_on_disconnect.is_on() {
            let (me, id, key, now) = (client.me, server.me, server.cancel_key, self.now);
            self.pools(|broker| broker.pools.cancel_left(me, id, kept, key, now));
        }
    }

    /// One of our cancel requests waits for a connection.
    pub(super) fn cancel_queued(&mut self, request: ClientRef, pool: Arc<PoolShared>) {
        if let Some(Phase::Cancel(canceling)) = self.clients.get_mut(request).map(|client| &mut client.phase) {
            canceling.pool = Some(pool);
        }
    }

    /// One of our cancel requests got its connection.
    pub(super) fn cancel_sent(&mut self, request: ClientRef) {
        if let Some(Phase::Cancel(canceling)) = self.clients.get_mut(request).map(|client| &mut client.phase) {
            canceling.sent = true;
        }
    }

    pub(super) fn local_or_remote(&mut self, worker: crate::id::WorkerId, message: Message) {
        if worker == self.id {
            self.local.push_back(message);
        } else {
            self.shared.post(worker).send(message);
        }
    }

    /// A cancel connection is not read, but its client may close it: many drivers do so at once, and count on the request.
    pub(super) fn canceling(&self, client: &mut Client) {
        if let Phase::Cancel(canceling) = &mut client.phase
            && client.stream.closing()
        {
            canceling.left.get_or_insert(self.now);
        }
    }
}

fn failed() -> Disconnect {
    Disconnect::silent("failed cancel request")
}
