//! What a worker finds by token: its clients, and the server connections in its hands.

use mio::Token;

use crate::broker::Broker;
use crate::id::{ClientRef, PoolId, ServerId, Ticket, UserId, WorkerId};
use crate::time::Micros;
use crate::worker::client::{Client, Phase};
use crate::worker::open::Opening;
use crate::worker::server::Server;

const KIND_SHIFT: u32 = 62;
const GENERATION_MASK: u32 = (1 << 30) - 1;

/// Whom an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Waker,
    Listener(usize),
    Client(ClientRef),
    Server(ServerId),
}

/// The token of the worker's waker.
pub(crate) const WAKER: Token = Token(0);

pub(crate) fn listener_token(index: usize) -> Token {
    Token((3 << KIND_SHIFT) | index)
}

pub(crate) fn client_token(client: ClientRef) -> Token {
    token(1, client.index, client.generation)
}

pub(crate) fn server_token(server: ServerId) -> Token {
    token(2, server.index, server.generation)
}

fn token(kind: usize, index: u32, generation: u32) -> Token {
    Token((kind << KIND_SHIFT) | (((generation & GENERATION_MASK) as usize) << 32) | index as usize)
}

/// Whom a token stands for; the worker of a client is not in it.
pub(crate) fn subject(token: Token) -> Subject {
    let index = (token.0 & 0xffff_ffff) as u32;
    let generation = ((token.0 >> 32) as u32) & GENERATION_MASK;
    match token.0 >> KIND_SHIFT {
        1 => Subject::Client(ClientRef { worker: 0, index, generation }),
        2 => Subject::Server(ServerId { index, generation }),
        3 => Subject::Listener(index as usize),
        _ => Subject::Waker,
    }
}

/// A worker's clients. During its turn a client is out of the table, so that the turn may use the whole worker.
#[derive(Debug)]
pub(crate) struct Clients {
    worker: WorkerId,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    client: Option<Box<Client>>,
}

impl Clients {
    pub(crate) fn new(worker: WorkerId) -> Self {
        Self { worker, slots: Vec::new(), free: Vec::new() }
    }

    /// Reserves a slot; the client is put into it with [`Clients::put_back`].
    pub(crate) fn reserve(&mut self) -> ClientRef {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 clients fit into memory")
        });
        ClientRef { worker: self.worker, index, generation: self.slots[index as usize].generation }
    }

    pub(crate) fn get(&self, client: ClientRef) -> Option<&Client> {
        let slot = self.slots.get(client.index as usize)?;
        if slot.generation == client.generation { slot.client.as_deref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, client: ClientRef) -> Option<&mut Client> {
        let slot = self.slots.get_mut(client.index as usize)?;
        if slot.generation != client.generation { None } else { slot.client.as_deref_mut() }
    }

    pub(crate) fn take(&mut self, client: ClientRef) -> Option<Box<Client>> {
        let slot = self.slots.get_mut(client.index as usize)?;
        if slot.generation != client.generation { None } else { slot.client.take() }
    }

    pub(crate) fn put_back(&mut self, client: Box<Client>) {
        let slot = &mut self.slots[client.me.index as usize];
        debug_assert_eq!(slot.generation, client.me.generation);
        slot.client = Some(client);
    }

    /// Frees the slot of a client that is gone.
    pub(crate) fn forget(&mut self, client: ClientRef) {
        let slot = &mut self.slots[client.index as usize];
        if slot.generation == client.generation {
            slot.generation = (slot.generation + 1) & GENERATION_MASK;
            slot.client = None;
            self.free.push(client.index);
        }
    }

    pub(crate) fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn at(&self, index: u32) -> Option<&Client> {
        self.slots.get(index as usize)?.client.as_deref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Client> {
        self.slots.iter().filter_map(|slot| slot.client.as_deref())
    }

    pub(crate) fn refs_where(&self, mut which: impl FnMut(&Client) -> bool) -> Vec<ClientRef> {
        self.iter().filter(|client| which(client)).map(|client| client.me).collect()
    }
}

/// Where a server connection known to this worker is.
#[derive(Debug, Default)]
pub(crate) enum Place {
    /// With the pools, with another worker, or gone.
    #[default]
    Elsewhere,
    Linked(ClientRef),
    /// Running its reset or check query.
    Testing(Box<Server>),
    /// Its client has left in the middle of a query: it is heard out.
    Draining {
        server: Box<Server>,
        session_end: bool,
    },
    /// Not linked, it said an error: the pools have it no more, and its end is about to come.
    Leaving(Box<Server>),
    Opening(Box<Opening>),
}

/// Server connections by id. Ids are dense, so this is an array.
#[derive(Debug, Default)]
pub(crate) struct Places {
    places: Vec<(u32, Place)>,
}

impl Places {
    pub(crate) fn get_mut(&mut self, server: ServerId) -> Option<&mut Place> {
        let (generation, place) = self.places.get_mut(server.index as usize)?;
        (*generation == server.generation).then_some(place)
    }

    pub(crate) fn set(&mut self, server: ServerId, place: Place) {
        let index = server.index as usize;
        if index >= self.places.len() {
            self.places.resize_with(index + 1, Default::default);
        }
        self.places[index] = (server.generation, place);
    }

    pub(crate) fn take(&mut self, server: ServerId) -> Place {
        self.get_mut(server).map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn clear(&mut self, server: ServerId) {
        self.take(server);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().map(|(_, place)| place)
    }

    /// The clients that servers are linked to.
    pub(crate) fn linked(&self) -> impl Iterator<Item = ClientRef> {
        self.iter().filter_map(|place| if let Place::Linked(client) = place { Some(*client) } else { None })
    }
}

/// What a turn holds: enough to give everything back should the turn panic.
#[derive(Debug, Default)]
pub(crate) struct Turning {
    held: Option<Held>,
    /// A server that the turn is about, without a client of its own.
    attended: Option<ServerId>,
}

#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) client: ClientRef,
    pub(crate) server: Option<ServerId>,
    pub(crate) pool: Option<PoolId>,
    pub(crate) user: Option<UserId>,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) counted_ready: bool,
    pub(crate) login: bool,
    pub(crate) logged_in: bool,
    pub(crate) console: bool,
    pub(crate) replicates: bool,
    pub(crate) cancels: bool,
    pub(crate) goes_to_peer: bool,
    pub(crate) cancel_key: [u8; 8],
}

impl Held {
    #[inline]
    pub(crate) fn of(client: &Client) -> Self {
        Self {
            client: client.me,
            server: client.server.as_ref().map(|server| server.me),
            pool: client.pool.as_ref().map(|pool| pool.id),
            user: client.user_id,
            ticket: client.ticket(),
            counted_ready: client.counted_ready,
            login: client.logging_in(),
            logged_in: client.logged_in(),
            console: matches!(client.phase, Phase::Console(_)),
            replicates: client.replicating.is_some(),
            cancels: matches!(client.phase, Phase::Cancel(_)),
            goes_to_peer: client.goes_to_peer(),
            cancel_key: client.cancel_key,
        }
    }

    /// Gives back what the pools know of.
    pub(crate) fn give_back(&self, broker: &mut Broker, now: Micros) {
        if self.replicates {
            broker.replicating.remove(&self.client);
        }
        let pools = &mut broker.pools;
        if let Some(ticket) = self.ticket {
            pools.abandon(ticket, now);
        }
        if self.cancels {
            pools.cancel_abandoned(self.client, now);
        }
        if let Some(server) = self.server {
            pools.gone(server, now);
        }
        match (self.pool, self.user) {
            (Some(pool), Some(user)) => pools.detach(pool, user, self.counted_ready, now),
            (None, Some(user)) => pools.detach_console(user),
            // a lookup holds its ticket alone
            (_, None) => {}
        }
    }
}

impl Turning {
    /// A turn of this client begins, or in the middle of one it has got hold of something.
    #[inline]
    pub(crate) fn begin(&mut self, client: &Client) {
        self.held = Some(Held::of(client));
    }

    /// The client was linked to a server, or let it go, in mid-turn.
    #[inline]
    pub(crate) fn holds(&mut self, server: Option<ServerId>) {
        if let Some(held) = &mut self.held {
            held.server = server;
        }
    }

    #[inline]
    pub(crate) fn done(&mut self) {
        self.held = None;
    }

    /// A client is ended, perhaps in the middle of another one's turn; what was held before.
    pub(crate) fn replace(&mut self, held: Option<Held>) -> Option<Held> {
        std::mem::replace(&mut self.held, held)
    }

    /// The turn is about a server that is being opened or tested, or that is parked.
    #[inline]
    pub(crate) fn attends(&mut self, server: Option<ServerId>) {
        self.attended = server;
    }

    /// After a panic: what a client's turn held, or the server that the turn was about.
    pub(crate) fn take(&mut self) -> (Option<Held>, Option<ServerId>) {
        (self.held.take(), self.attended.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_kind_index_and_generation() {
        let client = ClientRef { worker: 0, index: u32::MAX, generation: GENERATION_MASK };
        assert_eq!(subject(client_token(client)), Subject::Client(client));
        let server = ServerId { index: 7, generation: 3 };
        assert_eq!(subject(server_token(server)), Subject::Server(server));
        assert_eq!(subject(listener_token(5)), Subject::Listener(5));
        assert_eq!(subject(WAKER), Subject::Waker);
    }
}
