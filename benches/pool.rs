//! How long the pools take to lend a server and to take it back, without and with clients in line. What the shell adds,
//! the lock above all, is not in it.

use std::collections::VecDeque;
use std::sync::Arc;

use divan::{Bencher, black_box};
use pgusher::config::{Config, Database, PoolMode};
use pgusher::id::{ClientRef, PoolId, ServerId, Ticket, WorkerId};
use pgusher::pool::{Action, Checkout, Collected, Grant, Pools, Released, WaitFor, Want};
use pgusher::time::Micros;

fn main() {
    divan::main();
}

const SERVERS: u32 = 20;
const NOW: Micros = Micros::from_secs(100);

/// One pool, its servers parked and spread over the workers.
struct Yard {
    pools: Pools<u32, u32>,
    pool: PoolId,
    workers: WorkerId,
    next: u32,
}

impl Yard {
    fn new(workers: WorkerId) -> Self {
        let mut config = Config::default();
        config.databases.insert("db".to_owned(), Database::new("db"));
        config.settings.pool_mode = PoolMode::Transaction;
        config.settings.default_pool_size = i64::from(SERVERS);
        let mut pools = Pools::new(Arc::new(config), Micros::ZERO);
        let db = pools.find_database("db", NOW).expect("the entry is known");
        let pool = pools.attach(db, "ann", false, NOW).expect("no limit is reached").pool;
        let mut yard = Self { pools, pool, workers, next: 0 };
        yard.open_all();
        yard
    }

    /// Clients ask until every server is there, and then give all of them back.
    fn open_all(&mut self) {
        let mut tickets = Vec::new();
        for _ in 0..SERVERS {
            self.pools.client_ready(self.pool, NOW);
            let Checkout::Queued(ticket) = self.ask() else { panic!("there is no server yet") };
            tickets.push(ticket);
            // one connection is opened at a time
            while let Some(action) = self.pools.next_action() {
                let Action::Launch { server, .. } = action else { continue };
                let home = self.worker(server.index);
                self.pools.logged_in(server, server.index, 0, home, NOW);
            }
        }
        let held: Vec<Grant<u32>> = tickets.into_iter().map(|ticket| self.collect(ticket)).collect();
        held.into_iter().for_each(|grant| self.release(grant.server, grant.conn));
        let parked: u32 = self.pools.pool_rows().iter().map(|row| row.sv_idle).sum();
        assert_eq!(parked, SERVERS, "all servers are parked");
    }

    fn worker(&self, index: u32) -> WorkerId {
        WorkerId::try_from(index % u32::from(self.workers)).expect("there are few workers")
    }

    /// The next client asks, each on the worker after the last one's.
    fn ask(&mut self) -> Checkout<u32, u32> {
        self.next += 1;
        let home = self.worker(self.next);
        let client = ClientRef { worker: home, index: self.next, generation: 0 };
        let want = Want { client, pool: self.pool, kind: WaitFor::Query, since: NOW, home, replication: false };
        self.pools.checkout(want, NOW)
    }

    fn collect(&mut self, ticket: Ticket) -> Grant<u32> {
        match self.pools.collect(ticket) {
            Collected::Granted(grant) => grant,
            other => panic!("a server is due, not {other:?}"),
        }
    }

    fn release(&mut self, server: ServerId, conn: u32) {
        let home = self.worker(conn);
        let released = self.pools.release(server, conn, false, home, NOW);
        assert!(matches!(released, Released::Kept));
        while let Some(action) = self.pools.next_action() {
            black_box(action);
        }
    }
}

/// A server is free: it is lent and parked again.
#[divan::bench(args = [1, 4])]
fn lend_and_park(bencher: Bencher<'_, '_>, workers: WorkerId) {
    let mut yard = Yard::new(workers);
    bencher.bench_local(|| {
        let Checkout::Granted(grant) = yard.ask() else { panic!("servers are free") };
        yard.release(grant.server, grant.conn);
    });
}

/// No server is free and others are in line: one that comes back goes to the oldest, who collects it, and a client queues up.
#[divan::bench(args = [(1, 20), (4, 20), (4, 2000)])]
fn hand_over_in_line(bencher: Bencher<'_, '_>, (workers, waiting): (WorkerId, usize)) {
    let mut yard = Yard::new(workers);
    let mut held = VecDeque::new();
    for _ in 0..SERVERS {
        let Checkout::Granted(grant) = yard.ask() else { panic!("servers are free") };
        held.push_back(grant);
    }
    let mut line = VecDeque::new();
    let queue_up = |yard: &mut Yard, line: &mut VecDeque<Ticket>| {
        let Checkout::Queued(ticket) = yard.ask() else { panic!("no server is free") };
        line.push_back(ticket);
    };
    for _ in 0..waiting {
        queue_up(&mut yard, &mut line);
    }
    bencher.bench_local(|| {
        let back = held.pop_front().expect("servers are held");
        yard.release(back.server, back.conn);
        let oldest = line.pop_front().expect("somebody is in line");
        held.push_back(yard.collect(oldest));
        queue_up(&mut yard, &mut line);
    });
}
