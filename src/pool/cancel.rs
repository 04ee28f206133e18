//! Cancel requests on their way to a server (protocol.md 7).
//!
//! A request waits for a fresh connection, the carrier. Until the carrier is closed the server it aims at is given to
//! nobody else, so that a late cancel hits no stranger's query. Requests not sent yet are dropped when their server is
//! released.

use std::sync::Arc;

use super::api::{Action, Address, CancelJob, LaunchKind};
use super::limits::{Entry, EntryKind};
use super::list::{End, Linked, Links};
use super::slot::ServerState;
use super::{Origin, Pools};
use crate::config::{Database, Peer};
use crate::disconnect::Disconnect;
use crate::id::{CancelId, ClientRef, PoolId, ServerId};
use crate::time::Micros;

#[derive(Debug)]
pub(super) struct Cancel {
    pub(super) client: ClientRef,
    pub(super) pool: PoolId,
    /// `None` for the server of a peer.
    pub(super) target: Option<ServerId>,
    pub(super) key: [u8; 8],
    /// Where the target is; `None` if any connection of the pool will do.
    address: Option<Address>,
    /// Set when it was sent.
    pub(super) carrier: Option<ServerId>,
    /// The client has left meanwhile, or this is what it left to be done.
    pub(super) abandoned: bool,
    since: Micros,
    links: Links<CancelId>,
}

impl Linked<CancelId> for Cancel {
    fn links(&self) -> &Links<CancelId> {
        &self.links
    }
    fn links_mut(&mut self) -> &mut Links<CancelId> {
        &mut self.links
    }
}

impl<S, R: Clone> Pools<S, R> {
    /// Queues a cancel for a linked server; `key` is the server's own. False: there is nothing to cancel.
    pub fn cancel(&mut self, request: ClientRef, target: ServerId, key: [u8; 8], now: Micros) -> bool {
        let Some(server) = self.servers.get_mut(target) else { return false };
        if server.state != ServerState::Active || server.slot.is_some() || self.cancel_ids.contains_key(&request) {
            return false;
        }
        server.cancels_unsent += 1;
        let pool = server.pool;
        self.queue_cancel(request, pool, Some(target), key, now);
        true
    }

    /// Queues a cancel for what runs on a linked server whose `client` leaves; nobody waits for this request. A server that is
    /// `kept` rests when it is released until the request has been carried out; one that is not must be closed now, for the
    /// request may arrive at any time. False: the pool goes as well.
    pub fn cancel_left(&mut self, client: ClientRef, target: ServerId, kept: bool, key: [u8; 8], now: Micros) -> bool {
        let Some(server) = self.servers.get_mut(target) else { return false };
        let (pool, address) = (server.pool, server.address.clone());
        if self.pools[pool].dying {
            return false;
        }
        server.cancels_unsent += u32::from(kept);
        let (target, links) = (kept.then_some(target), Links::default());
        let cancel = Cancel { client, pool, target, key, address, carrier: None, abandoned: true, since: now, links };
        let id = self.cancels.insert(cancel);
        self.pools[pool].cancels_waiting.push(&mut self.cancels, id, End::Back);
        self.launch(pool, true, now);
        true
    }

    /// Gives up the requests that nobody waits for and that have taken too long.
    pub(super) fn give_up_left(&mut self, now: Micros) {
        let limit = self.config.settings.cancel_wait_timeout;
        let late = |cancel: &Cancel| cancel.abandoned && !limit.is_zero() && now.since(cancel.since) > limit;
        let ids: Vec<CancelId> = self.cancels.iter().filter(|(_, cancel)| late(cancel)).map(|(id, _)| id).collect();
        for id in ids {
            self.give_up(id, "cancel_wait_timeout");
        }
    }

    /// Gives up a request. One that is on its way may still arrive, so the server it aims at serves nobody else.
    fn give_up(&mut self, id: CancelId, reason: &'static str) {
        let Cancel { carrier, target, .. } = self.cancels[id];
        let target = target.and_then(|target| self.servers.get_mut(target));
        match (carrier, target) {
            (Some(_), Some(target)) => target.cancel_astray = true,
            (None, Some(target)) => target.cancels_unsent -= 1,
            (_, None) => {}
        }
        match carrier {
            Some(carrier) => self.doom(carrier, reason.into()),
            None => self.drop_cancel(id, reason),
        }
    }

    /// Queues a cancel for a peer; `key` is the key to send. False: no such peer.
    pub fn cancel_peer(&mut self, request: ClientRef, peer: u16, key: [u8; 8], now: Micros) -> bool {
        if self.cancel_ids.contains_key(&request) {
            return false;
        }
        let Some(pool) = self.peer_pool(peer, now) else { return false };
        self.queue_cancel(request, pool, None, key, now);
        true
    }

    /// The pool in which a cancel request waits, or from which it was sent.
    #[must_use]
    pub fn pool_of_cancel(&self, request: ClientRef) -> Option<PoolId> {
        self.cancel_ids.get(&request).map(|&id| self.cancels[id].pool)
    }

    fn queue_cancel(&mut self, client: ClientRef, pool: PoolId, target: Option<ServerId>, key: [u8; 8], now: Micros) {
        let links = Links::default();
        let address = target.and_then(|target| self.servers[target].address.clone());
        let cancel = Cancel { client, pool, target, key, address, carrier: None, abandoned: false, since: now, links };
        let id = self.cancels.insert(cancel);
        self.cancel_ids.insert(client, id);
        self.pools[pool].cancels_waiting.push(&mut self.cancels, id, End::Back);
        self.launch(pool, true, now);
    }

    fn peer_pool(&mut self, peer: u16, now: Micros) -> Option<PoolId> {
        if let Some(&db) = self.peers.get(&peer) {
            return self.entries[db].pools.first().copied();
        }
        let known: Arc<Peer> = Arc::new(self.config.peers.get(&peer)?.clone());
        let database = Arc::new(Database::new(&format!("peer {peer}")));
        let db = self.entries.insert(Entry::new(database, EntryKind::Peer(known)));
        self.peers.insert(peer, db);
        let user = self.peer_user;
        Some(self.add_pool(db, user, now))
    }

    /// Where the next carrier of a pool has to go; `None` if that is the pool's choice.
    #[must_use]
    pub fn carrier_address(&self, pool: PoolId) -> Option<Address> {
        let first = self.pools.get(pool)?.cancels_waiting.first()?;
        self.cancels[first].address.clone()
    }

    /// A connection in state new is connected (before TLS and startup): it takes the oldest request that waits for one with
    /// its address, if there is one. `None`: one launched to log in goes on, one launched for a cancel is to be closed and is forgotten here.
    pub fn cancel_connected(&mut self, carrier: ServerId, now: Micros) -> Option<CancelJob> {
        let server = self.servers.get(carrier)?;
        if server.state != ServerState::New {
            return None;
        }
        let (pool, home, kind) = (server.pool, server.home, server.kind);
        let Some(id) = self.waiting_for(carrier).filter(|_| server.doomed.is_none()) else {
            if kind == LaunchKind::Cancel {
                self.pools[pool].connect_failed = false;
                self.forget(carrier);
                self.removed(pool, now);
            }
            return None;
        };
        self.pools[pool].connect_failed = false;
        self.pools[pool].cancels_waiting.remove(&mut self.cancels, id);
        self.pools[pool].cancels_sent += 1;
        let cancel = &mut self.cancels[id];
        cancel.carrier = Some(carrier);
        let job = CancelJob { request: cancel.client, key: cancel.key };
        if let Some(target) = cancel.target.and_then(|target| self.servers.get_mut(target)) {
            target.cancels_unsent -= 1;
            target.cancels_in_flight += 1;
        }
        self.servers[carrier].carries = Some(id);
        self.move_to(carrier, ServerState::ActiveCancel, home, End::Back);
        self.serve(pool, now);
        Some(job)
    }

    fn waiting_for(&self, carrier: ServerId) -> Option<CancelId> {
        let server = &self.servers[carrier];
        let fits =
            |cancel: &Cancel| cancel.address.is_none() || server.address.is_none() || cancel.address == server.address;
        let mut waiting = self.pools[server.pool].cancels_waiting.iter(&self.cancels);
        waiting.find(|(_, cancel)| fits(cancel)).map(|(id, _)| id)
    }

    /// The carrier was closed, by the server or by a failure.
    pub fn cancel_done(&mut self, carrier: ServerId, now: Micros) {
        self.gone(carrier, now);
    }

    /// What a carrier that ends leaves behind.
    pub(super) fn finish_cancel(&mut self, id: CancelId, now: Micros) {
        let Some(cancel) = self.cancels.remove(id) else { return };
        self.pools[cancel.pool].cancels_sent -= 1;
        if !cancel.abandoned {
            self.cancel_ids.remove(&cancel.client);
            let why = Disconnect::silent("successfully sent cancel request");
            self.actions.push_back(Action::CancelFinished(cancel.client, why));
        }
        let Some(target) = cancel.target else { return };
        let Some(server) = self.servers.get_mut(target) else { return };
        server.cancels_in_flight -= 1;
        if server.cancels_in_flight > 0 || server.state != ServerState::BeingCanceled {
            return;
        }
        let conn = server.conn.take().expect("a server that rests has its connection here");
        let pool = server.pool;
        let released = self.settle(target, conn, Origin::Rest, now);
        self.obey(target, pool, released, now);
    }

    /// The client of a request has left or waited too long.
    pub fn cancel_abandoned(&mut self, request: ClientRef, _now: Micros) {
        let Some(id) = self.cancel_ids.remove(&request) else { return };
        let pool = self.cancels[id].pool;
        self.cancels[id].abandoned = true;
        self.give_up(id, "client gave up on cancel request, so we also give up forwarding to server");
        self.reap(pool);
    }

    /// What a client left runs on at a server that is closed after all: its cancel goes its way. Other requests are dropped.
    pub(super) fn untarget_unsent_cancels(&mut self, target: ServerId) {
        let pool = self.servers[target].pool;
        let left = |cancel: &Cancel| cancel.abandoned && cancel.target == Some(target) && !self.pools[pool].dying;
        let waiting = self.pools[pool].cancels_waiting.iter(&self.cancels);
        let ids: Vec<CancelId> = waiting.filter(|(_, cancel)| left(cancel)).map(|(id, _)| id).collect();
        for id in ids {
            self.cancels[id].target = None;
            self.servers[target].cancels_unsent -= 1;
        }
        self.drop_unsent_cancels(target);
    }

    /// Drops the requests that aim at a server about to be released or closed.
    pub(super) fn drop_unsent_cancels(&mut self, target: ServerId) {
        let pool = self.servers[target].pool;
        while self.servers[target].cancels_unsent > 0 {
            let aims = |cancel: &Cancel| cancel.target == Some(target);
            let mut waiting = self.pools[pool].cancels_waiting.iter(&self.cancels);
            let (id, _) =
                waiting.find(|(_, cancel)| aims(cancel)).expect("unsent cancels are in the list of their pool");
            drop(waiting);
            self.servers[target].cancels_unsent -= 1;
            self.drop_cancel(id, "not sending cancel request for client that is now idle");
        }
    }

    pub(super) fn drop_all_cancels(&mut self, pool: PoolId, reason: &'static str) {
        while let Some(id) = self.pools[pool].cancels_waiting.first() {
            if let Some(target) = self.cancels[id].target.and_then(|target| self.servers.get_mut(target)) {
                target.cancels_unsent -= 1;
            }
            self.drop_cancel(id, reason);
        }
    }

    fn drop_cancel(&mut self, id: CancelId, reason: &'static str) {
        let pool = self.cancels[id].pool;
        self.pools[pool].cancels_waiting.remove(&mut self.cancels, id);
        let Some(cancel) = self.cancels.remove(id).filter(|cancel| !cancel.abandoned) else { return };
        self.cancel_ids.remove(&cancel.client);
        self.actions.push_back(Action::CancelFinished(cancel.client, Disconnect::silent(reason)));
    }
}
