//! Cancel requests: from the connection that brings one, to the client it is about, to that client's server.
//!
//! A request is matched by the whole key, travels to the worker of the client it names, and is handed to the pools only if
//! that client is linked at that moment. The pools see to it that the server rests until the request has been carried out,
//! so that it can hit nobody else.

use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::relay::cancel::{CancelKey, Route};
use crate::shared::{Message, Request};
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase};
use crate::worker::login::Next;

impl Worker {
    /// A connection presented a cancel key.
    pub(super) fn cancel_request(&mut self, client: &mut Client, key: [u8; 8]) -> Result<Next, End> {
        let Route::Local(CancelKey(key)) = CancelKey(key).route(0) else { return Err(failed().into()) };
        let target = self.shared.cancel_keys.lock().get(&key).copied();
        let Some(target) = target else { return Err(failed().into()) };
        client.phase = Phase::Cancel;
        self.shared.login_clients.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        let message = Message::CancelTarget { target, request: client.me };
        if target.worker == self.id {
            self.local.push_back(message);
        } else {
            self.shared.post(target.worker).send(message);
        }
        Ok(Next::Wait)
    }

    /// Somebody wants to cancel what one of our clients is doing.
    pub(super) fn cancel_target(&mut self, target: ClientRef, request: ClientRef) {
        let now = self.now;
        let why = match self.clients.get_mut(target) {
            None => failed(),
            Some(client) => match (&client.phase, &client.server) {
                (Phase::Console(console), _) => {
                    self.shared.ask(Request::CancelConsole { waiting: console.busy });
                    Disconnect::silent("cancel request for console client")
                }
                (_, None) => Disconnect::silent("cancel request for idle client"),
                (_, Some(server)) if server.side.setting_vars => {
                    Disconnect::silent("ignoring cancel request for server that is setting vars")
                }
                (_, Some(server)) => {
                    let (id, key) = (server.me, server.cancel_key);
                    if self.pools(|broker| broker.pools.cancel(request, id, key, now)) {
                        return;
                    }
                    failed()
                }
            },
        };
        self.local_or_remote(request.worker, Message::CancelFinished { request, why });
    }

    fn local_or_remote(&mut self, worker: crate::id::WorkerId, message: Message) {
        if worker == self.id {
            self.local.push_back(message);
        } else {
            self.shared.post(worker).send(message);
        }
    }

    /// A cancel connection is not read; if its client closes it, the request is given up.
    pub(super) fn cancel_still_wanted(client: &mut Client) -> Result<(), End> {
        if client.stream.closing() {
            return Err(Disconnect::silent("client unexpected eof").into());
        }
        Ok(())
    }
}

fn failed() -> Disconnect {
    Disconnect::silent("failed cancel request")
}
