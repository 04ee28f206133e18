//! Replication clients: each gets a connection of its own, made for it and closed with it (pooling.md 9).
//!
//! A new connection becomes a replication client's when its startup packet is due, if that client is first in line then.
//! Such a connection says nothing about the pool: the reply that other clients are sent at their login never comes from
//! it, and when it is refused nobody else hears of it.

use super::api::{Collected, LaunchKind, Released};
use super::slot::ServerState;
use super::{Origin, Pools};
use crate::disconnect::Disconnect;
use crate::id::{ClientRef, PoolId, ServerId, Ticket};
use crate::time::Micros;

impl<S, R: Clone> Pools<S, R> {
    /// The startup packet of a connection in state new is due: whom to replicate to, if it is a replication client's turn.
    pub fn tie(&mut self, id: ServerId) -> Option<ClientRef> {
        let server = self.servers.get(id)?;
        if server.state != ServerState::New || server.kind != LaunchKind::Login || server.doomed.is_some() {
            return None;
        }
        let ticket = self.first_in_line(server.pool)?;
        let waiter = &mut self.waiters[ticket];
        if !waiter.want.replication || waiter.tied.is_some() {
            return None;
        }
        waiter.tied = Some(id);
        let client = waiter.want.client;
        let server = &mut self.servers[id];
        server.replication = true;
        server.tied = Some(ticket);
        Some(client)
    }

    /// Undoes [`Pools::tie`], and returns whom the connection was for.
    pub(super) fn untie(&mut self, id: ServerId) -> Option<Ticket> {
        let ticket = self.servers[id].tied.take()?;
        self.waiters[ticket].tied = None;
        Some(ticket)
    }

    /// The client no longer waits: what is being opened for it is of no use to anybody.
    pub(super) fn give_up_opening(&mut self, ticket: Ticket) {
        if let Some(server) = self.waiters[ticket].tied {
            self.untie(server);
            self.doom(server, "replication client disconnected".into());
        }
    }

    /// Gives a connection that has just logged in to its client.
    pub(super) fn replication_ready(&mut self, id: ServerId, conn: S, now: Micros) -> Released<S> {
        let pool = self.servers[id].pool;
        let released = match self.servers[id].tied {
            Some(ticket) if self.servers[id].doomed.is_none() => {
                self.untie(id);
                self.hand_over(ticket, id, conn);
                Released::Kept
            }
            _ => self.settle_for(id, conn, Origin::Login, now),
        };
        self.serve(pool, now);
        released
    }

    /// The connection came to nothing, and so does its client's wish.
    pub(super) fn replication_failed(&mut self, id: ServerId, reason: String, now: Micros) {
        let pool = self.servers[id].pool;
        if let Some(ticket) = self.untie(id) {
            self.answer(ticket, Collected::Refused(Disconnect::fatal(reason)));
        }
        self.forget(id);
        self.removed(pool, now);
    }

    /// Closes what is idle in a full pool if a replication client is next in line. True: there is room now.
    pub(super) fn make_way(&mut self, id: PoolId) -> bool {
        let next = self.first_in_line(id).is_some_and(|ticket| self.waiters[ticket].want.replication);
        while next && self.pools[id].connections >= self.pools[id].sizes.pool_size {
            if self.entries[self.pools[id].db].evicting > 0 {
                return false;
            }
            let Some((_, server)) = self.least_recent(id) else { return false };
            self.note_room(id);
            self.close_unlinked(server, "evicted".into());
        }
        next
    }
}
