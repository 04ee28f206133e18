//! A worker as the daemon has them: it sleeps, takes its messages, gives its clients their turns, and obeys what the pools
//! order. Its clients log in, ask, get, give back, lose servers and leave.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgusher::broker::decide;
use pgusher::id::{ClientRef, ServerId, Ticket, WorkerId};
use pgusher::pool::{Action, Attached, Checkout, Collected, FailureKind, Grant, LoginFailure, Released, WaitFor, Want};
use pgusher::primitives::Primitives;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::thread;

use super::desk::{Conn, DATABASES, Desk, Order, USER};
use super::mail::Mail;
use super::scheduled::{Bell, Scheduled};

/// What a client asks before it leaves.
const REQUESTS: u32 = 3;

pub(crate) fn one_in(n: u32) -> bool {
    thread_rng().gen_ratio(1, n)
}

pub(crate) enum Message {
    Wake(ClientRef),
    Launch(ServerId),
    Evict(ServerId),
    /// A query of the pools runs on it.
    Test(ServerId, Conn),
    GoHome,
}

#[derive(Default)]
enum Life {
    #[default]
    Away,
    LoggingIn(Attached, Ticket),
    Idle(Attached),
    Waiting(Attached, Ticket),
    Linked(Attached, ServerId, Conn),
    Left,
}

struct Client {
    me: ClientRef,
    life: Life,
    requests: u32,
}

/// What the threads share, as in the daemon.
pub(crate) struct Shared<B> {
    pub(crate) desk: <Scheduled as Primitives>::Mutex<Desk>,
    pub(crate) inboxes: Vec<B>,
    pub(crate) bells: Vec<Bell>,
    /// Clients that have not left.
    pub(crate) present: AtomicUsize,
    pub(crate) connections: Arc<AtomicUsize>,
    /// Grants that a client collected, and those whose client had left.
    pub(crate) served: AtomicUsize,
    pub(crate) missed: AtomicUsize,
}

pub(crate) struct Worker<B> {
    id: WorkerId,
    shared: Arc<Shared<B>>,
    clients: Vec<Client>,
    orders: Vec<Order>,
    local: VecDeque<Message>,
    home: bool,
}

impl<B: Mail<Message>> Worker<B> {
    pub(crate) fn new(id: WorkerId, clients: u32, shared: Arc<Shared<B>>) -> Self {
        let client = |index| {
            let me = ClientRef { worker: id, index, generation: 0 };
            Client { me, life: Life::Away, requests: 0 }
        };
        let clients = (0..clients).map(client).collect();
        Self { id, shared, clients, orders: Vec::new(), local: VecDeque::new(), home: false }
    }

    /// The loop of a worker: it sleeps while none of its clients has anything to do.
    pub(crate) fn run(mut self) {
        let mut messages = Vec::new();
        while !self.home {
            if self.clients.iter().any(|client| client.wants_a_turn()) {
                thread::yield_now();
            } else {
                self.shared.bells[usize::from(self.id)].sleep();
            }
            self.shared.inboxes[usize::from(self.id)].take(&mut messages);
            for message in messages.drain(..) {
                self.obey(message);
                self.obey_local();
            }
            for index in 0..self.clients.len() {
                self.turn(index);
                self.obey_local();
            }
        }
    }

    // -- orders

    /// As `Worker::pools`.
    pub(crate) fn pools<T>(&mut self, call: impl FnOnce(&mut Desk) -> T) -> T {
        let done = decide::<Scheduled, _, _>(&self.shared.desk, &mut self.orders, call);
        self.obey_orders();
        done
    }

    /// As `Worker::pools_release`.
    fn pools_release(&mut self, server: ServerId, call: impl FnOnce(&mut Desk) -> Released<Conn>) {
        match decide::<Scheduled, _, _>(&self.shared.desk, &mut self.orders, call) {
            Released::Kept => {}
            Released::Close { conn, .. } => drop(conn),
            Released::Test { conn, .. } => self.local.push_back(Message::Test(server, conn)),
        }
        self.obey_orders();
    }

    fn obey_orders(&mut self) {
        for order in std::mem::take(&mut self.orders) {
            let (worker, message) = match order {
                Action::Launch { server, home, .. } => (home, Message::Launch(server)),
                Action::Wake(client) => (client.worker, Message::Wake(client)),
                Action::Evict { server, home, .. } => (home, Message::Evict(server)),
                Action::Check { server, conn, home, .. } => (home, Message::Test(server, conn)),
                Action::Close { conn, .. } => {
                    drop(conn);
                    continue;
                }
                Action::Drained | Action::Log(..) => continue,
                other => panic!("nobody asked for {other:?}"),
            };
            if worker == self.id {
                self.local.push_back(message);
            } else {
                self.shared.inboxes[usize::from(worker)].send(message);
            }
        }
    }

    pub(crate) fn obey_local(&mut self) {
        while let Some(message) = self.local.pop_front() {
            self.obey(message);
        }
    }

    pub(crate) fn obey(&mut self, message: Message) {
        match message {
            Message::Wake(client) => self.collect(client.index as usize),
            Message::Launch(server) => self.launch(server),
            Message::Evict(server) => self.evict(server),
            Message::Test(server, conn) => {
                let home = self.id;
                self.pools_release(server, |desk| {
                    let now = desk.moment();
                    desk.pools.tested(server, conn, home, now)
                });
            }
            Message::GoHome => self.home = true,
        }
    }

    fn launch(&mut self, server: ServerId) {
        if one_in(8) {
            let failure = LoginFailure { reason: "connect failed".to_owned(), kind: FailureKind::Connect };
            return self.pools(|desk| {
                let now = desk.moment();
                desk.pools.login_failed(server, failure, now);
            });
        }
        let (home, conn) = (self.id, Conn::open(&self.shared.connections));
        self.pools_release(server, |desk| {
            let now = desk.moment();
            desk.pools.logged_in(server, conn, 7, home, now)
        });
    }

    /// A worker that does not know the server ignores this.
    fn evict(&mut self, server: ServerId) {
        let held = |client: &Client| matches!(client.life, Life::Linked(_, other, _) if other == server);
        if let Some(index) = self.clients.iter().position(held) {
            self.crash(index);
        }
    }

    // -- clients

    fn turn(&mut self, index: usize) {
        match std::mem::take(&mut self.clients[index].life) {
            Life::Away => self.come(index),
            Life::Idle(at) if self.clients[index].requests == REQUESTS => self.leave(index, at, true),
            Life::Idle(at) => self.ask(index, at),
            Life::Linked(at, server, conn) => {
                self.clients[index].life = Life::Linked(at, server, conn);
                if one_in(12) { self.crash(index) } else { self.give_back(index) }
            }
            Life::Waiting(at, ticket) if one_in(12) => {
                let ready = !self.give_up(index, ticket);
                self.shared.missed.fetch_add(usize::from(ready), Ordering::Relaxed);
                self.leave(index, at, true);
            }
            Life::LoggingIn(at, ticket) if one_in(12) => {
                self.give_up(index, ticket);
                self.leave(index, at, false);
            }
            other => self.clients[index].life = other,
        }
    }

    fn want(&self, index: usize, at: Attached, kind: WaitFor) -> Want {
        let client = self.clients[index].me;
        Want { client, pool: at.pool, kind, since: pgusher::time::Micros::ZERO, home: self.id, replication: false }
    }

    fn checkout(&mut self, want: Want) -> Checkout<Conn, u32> {
        self.pools(|desk| {
            let now = desk.moment();
            let checkout = desk.pools.checkout(want, now);
            if matches!(checkout, Checkout::Queued(_)) {
                desk.joins((want.pool, want.kind == WaitFor::LoginReply), want.client);
            }
            checkout
        })
    }

    fn come(&mut self, index: usize) {
        let name = DATABASES[thread_rng().gen_range(0..DATABASES.len())];
        let at = self.pools(|desk| {
            let now = desk.moment();
            let db = desk.pools.find_database(name, now).expect("it is configured");
            desk.pools.attach(db, USER, false, now).expect("there is room")
        });
        match self.checkout(self.want(index, at, WaitFor::LoginReply)) {
            Checkout::LoginReady(_) => self.enter(index, at),
            Checkout::Queued(ticket) => self.clients[index].life = Life::LoggingIn(at, ticket),
            other => panic!("{other:?} for a login"),
        }
    }

    fn enter(&mut self, index: usize, at: Attached) {
        self.pools(|desk| {
            let now = desk.moment();
            desk.pools.client_ready(at.pool, now);
        });
        self.clients[index].life = Life::Idle(at);
    }

    fn ask(&mut self, index: usize, at: Attached) {
        self.clients[index].requests += 1;
        match self.checkout(self.want(index, at, WaitFor::Query)) {
            Checkout::Granted(grant) => self.link(index, at, grant),
            Checkout::Queued(ticket) => self.clients[index].life = Life::Waiting(at, ticket),
            // the last login failed, and the pool has no server
            Checkout::Refused(_) => self.clients[index].life = Life::Idle(at),
            Checkout::LoginReady(_) => panic!("a login reply for a query"),
        }
    }

    fn collect(&mut self, index: usize) {
        let (at, ticket) = match &self.clients[index].life {
            Life::LoggingIn(at, ticket) | Life::Waiting(at, ticket) => (*at, *ticket),
            // it left its line after it was woken
            _ => return,
        };
        match self.pools(|desk| desk.pools.collect(ticket)) {
            Collected::Granted(grant) => self.link(index, at, grant),
            Collected::LoginReady(_) => self.enter(index, at),
            Collected::Waiting => {}
            Collected::Refused(why) => panic!("nobody is refused in line: {why:?}"),
        }
    }

    fn link(&mut self, index: usize, at: Attached, grant: Grant<Conn>) {
        grant.conn.begin();
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        self.clients[index].life = Life::Linked(at, grant.server, grant.conn);
    }

    fn give_back(&mut self, index: usize) {
        let Life::Linked(at, server, conn) = std::mem::take(&mut self.clients[index].life) else { return };
        conn.end();
        self.clients[index].life = Life::Idle(at);
        let home = self.id;
        self.pools_release(server, |desk| {
            let now = desk.moment();
            desk.pools.release(server, conn, false, home, now)
        });
    }

    /// The server goes while a client uses it.
    fn crash(&mut self, index: usize) {
        let Life::Linked(at, server, conn) = std::mem::take(&mut self.clients[index].life) else { return };
        drop(conn);
        self.clients[index].life = Life::Idle(at);
        self.pools(|desk| {
            let now = desk.moment();
            desk.pools.gone(server, now);
        });
    }

    /// Whether it was still in line.
    fn give_up(&mut self, index: usize, ticket: Ticket) -> bool {
        let me = self.clients[index].me;
        self.pools(|desk| {
            let now = desk.moment();
            let stood = desk.leaves(me);
            desk.pools.abandon(ticket, now);
            stood
        })
    }

    fn leave(&mut self, index: usize, at: Attached, ready: bool) {
        self.clients[index].life = Life::Left;
        self.pools(|desk| {
            let now = desk.moment();
            desk.pools.detach(at.pool, at.user, ready, now);
        });
        if self.shared.present.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.inboxes.iter().for_each(|inbox| inbox.send(Message::GoHome));
        }
    }
}

impl Client {
    /// Whoever waits is woken by others.
    fn wants_a_turn(&self) -> bool {
        matches!(self.life, Life::Away | Life::Idle(_) | Life::Linked(..))
    }
}
