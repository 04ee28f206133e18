//! Workers with a few clients each, who log in, ask, get, give back, lose servers and leave; and a supervisor that pauses,
//! resumes and renews meanwhile. In the end everybody was served, and no connection was lost.

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
use super::mail::{Careless, Mail, Real};
use super::scheduled::{Bell, Scheduled};
use super::{failure_of, in_many_orders};

const WORKERS: WorkerId = 3;
const CLIENTS: u32 = 2;
/// What a client asks before it leaves.
const REQUESTS: u32 = 3;

fn one_in(n: u32) -> bool {
    thread_rng().gen_ratio(1, n)
}

enum Message {
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
struct Shared<B> {
    desk: <Scheduled as Primitives>::Mutex<Desk>,
    inboxes: Vec<B>,
    bells: Vec<Bell>,
    /// Clients that have not left.
    present: AtomicUsize,
    connections: Arc<AtomicUsize>,
    /// Grants that a client collected, and those whose client had left.
    served: AtomicUsize,
    missed: AtomicUsize,
}

struct Worker<B> {
    id: WorkerId,
    shared: Arc<Shared<B>>,
    clients: Vec<Client>,
    orders: Vec<Order>,
    local: VecDeque<Message>,
    home: bool,
}

impl<B: Mail<Message>> Worker<B> {
    fn new(id: WorkerId, shared: Arc<Shared<B>>) -> Self {
        let client = |index| {
            let me = ClientRef { worker: id, index, generation: 0 };
            Client { me, life: Life::Away, requests: 0 }
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { id, shared, clients, orders: Vec::new(), local: VecDeque::new(), home: false }
    }

    /// The loop of a worker: it sleeps while none of its clients has anything to do.
    fn run(mut self) {
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
    fn pools<T>(&mut self, call: impl FnOnce(&mut Desk) -> T) -> T {
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

    fn obey_local(&mut self) {
        while let Some(message) = self.local.pop_front() {
            self.obey(message);
        }
    }

    fn obey(&mut self, message: Message) {
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

/// What the console and the clock do meanwhile; in the end everything goes on.
fn supervise<B: Mail<Message>>(shared: Arc<Shared<B>>) {
    // its orders are those of any worker; none of the clients is its
    let mut hands = Worker { clients: Vec::new(), ..Worker::new(WORKERS, shared) };
    for _ in 0..4 {
        let what = thread_rng().gen_range(0..4);
        hands.pools(|desk| {
            let now = desk.moment();
            // what is refused is as good as what is done
            let _ = match what {
                0 => desk.pools.pause_all(now),
                1 => desk.pools.resume_all(now),
                2 => desk.pools.reconnect(None, now),
                _ => {
                    desk.pools.tick(now);
                    Ok(())
                }
            };
        });
        thread::yield_now();
    }
    hands.pools(|desk| {
        let now = desk.moment();
        let _ = desk.pools.resume_all(now);
    });
}

fn scene<B: Mail<Message>>() {
    let bells: Vec<Bell> = (0..WORKERS).map(|_| Bell::default()).collect();
    let shared = Arc::new(Shared {
        desk: Scheduled::mutex(Desk::new(one_in(2))),
        inboxes: bells.iter().map(|bell| B::new(bell.clone())).collect(),
        bells,
        present: AtomicUsize::new(usize::from(WORKERS) * CLIENTS as usize),
        connections: Arc::default(),
        served: AtomicUsize::new(0),
        missed: AtomicUsize::new(0),
    });
    let mut threads: Vec<_> = (0..WORKERS)
        .map(|id| {
            let worker = Worker::new(id, shared.clone());
            thread::spawn(move || worker.run())
        })
        .collect();
    let hands = shared.clone();
    threads.push(thread::spawn(move || supervise(hands)));
    threads.into_iter().for_each(|thread| thread.join().expect("it is done"));
    finish(&shared);
    let desk = Scheduled::lock(&shared.desk);
    assert_eq!(desk.in_line(), 0, "somebody was forgotten");
    let totals = desk.pools.totals();
    assert_eq!(totals.servers, shared.connections.load(Ordering::Relaxed), "connections known and open");
    let ended = shared.served.load(Ordering::Relaxed) + shared.missed.load(Ordering::Relaxed);
    assert_eq!(totals.grants, ended as u64, "grants, and what became of them");
}

/// What was still on its way when the workers went home: servers that nobody waits for any more.
fn finish<B: Mail<Message>>(shared: &Arc<Shared<B>>) {
    let mut messages = Vec::new();
    let mut rest = true;
    while std::mem::take(&mut rest) {
        for id in 0..WORKERS {
            let mut worker = Worker { clients: Vec::new(), ..Worker::new(id, shared.clone()) };
            shared.inboxes[usize::from(id)].take(&mut messages);
            for message in messages.drain(..) {
                worker.obey(message);
                worker.obey_local();
                rest = true;
            }
        }
    }
}

#[test]
fn everybody_is_served_in_turn_and_no_server_is_lost() {
    in_many_orders(60, scene::<Real<_>>);
}

/// The proof that a wake-up lost between workers is seen in their work.
#[test]
fn workers_that_lose_wake_ups_are_found_asleep() {
    let failure = failure_of(scene::<Careless<_>>);
    assert!(failure.contains("deadlock"), "{failure}");
}
