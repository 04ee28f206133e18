//! One rule of pooling.md in each test; connections are numbers here, the login reply is a word.

mod cancel;
mod console;
mod entries;
mod release;
mod replication;
mod waits;

use std::borrow::Cow;
use std::sync::Arc;

use super::*;
use crate::config::{Database, Peer, PoolMode};
use crate::disconnect::Disconnect;

const SECOND: Micros = Micros::from_secs(1);

struct Bench {
    pools: Pools<u32, &'static str>,
    now: Micros,
    next: u32,
}

type Want3 = (ClientRef, PoolId);

fn config(change: impl FnOnce(&mut Config)) -> Arc<Config> {
    let mut config = Config::default();
    config.databases.insert("db".to_owned(), Database::new("db"));
    config.settings.pool_mode = PoolMode::Transaction;
    config.settings.default_pool_size = 2;
    change(&mut config);
    Arc::new(config)
}

fn client(index: u32, worker: WorkerId) -> ClientRef {
    ClientRef { worker, index, generation: 0 }
}

impl Bench {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        Self { pools: Pools::new(config(change), Micros::ZERO), now: Micros::from_secs(100), next: 0 }
    }

    fn attach(&mut self, db: &str, user: &str) -> PoolId {
        let db = self.pools.find_database(db, self.now).expect("the entry is known");
        self.pools.attach(db, user, false, self.now).expect("no limit is reached").pool
    }

    fn ask(&mut self, who: Want3, kind: WaitFor) -> Checkout<u32, &'static str> {
        let (client, pool) = who;
        if kind == WaitFor::Query {
            self.pools.client_ready(pool, self.now);
        }
        let want = Want { client, pool, kind, since: self.now, home: client.worker, replication: false };
        let answer = self.pools.checkout(want, self.now);
        self.pools.check();
        answer
    }

    /// A replication client that needs its server.
    fn replicate(&mut self, (client, pool): Want3) -> Ticket {
        self.pools.client_ready(pool, self.now);
        let (kind, since, home) = (WaitFor::Query, self.now, client.worker);
        let Checkout::Queued(ticket) =
            self.pools.checkout(Want { client, pool, kind, since, home, replication: true }, self.now)
        else {
            panic!("it always waits")
        };
        self.pools.check();
        ticket
    }

    fn queue(&mut self, who: Want3) -> Ticket {
        match self.ask(who, WaitFor::Query) {
            Checkout::Queued(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn take(&mut self, who: Want3) -> (ServerId, u32) {
        match self.ask(who, WaitFor::Query) {
            Checkout::Granted(grant) => (grant.server, grant.conn),
            other => panic!("{other:?}"),
        }
    }

    fn actions(&mut self) -> Vec<Action<u32>> {
        self.pools.check();
        std::iter::from_fn(|| self.pools.next_action()).filter(|action| *action != Action::Drained).collect()
    }

    fn launched(&mut self) -> Option<ServerId> {
        self.actions().into_iter().find_map(|action| match action {
            Action::Launch { server, .. } => Some(server),
            _ => None,
        })
    }

    fn log_in(&mut self, server: ServerId, home: WorkerId) -> Released<u32> {
        self.next += 1;
        let released = self.pools.logged_in(server, self.next, "welcome", home, self.now);
        self.pools.check();
        released
    }

    fn release(&mut self, held: (ServerId, u32), home: WorkerId) -> Released<u32> {
        let released = self.pools.release(held.0, held.1, false, home, self.now);
        self.pools.check();
        released
    }

    /// A pool with `n` linked servers.
    fn linked(&mut self, pool: PoolId, n: u32) -> Vec<(ServerId, u32)> {
        (0..n).map(|i| self.link_one(pool, 900 + i)).collect()
    }

    fn link_one(&mut self, pool: PoolId, index: u32) -> (ServerId, u32) {
        let ticket = self.queue((client(index, 0), pool));
        let server = self.launched().expect("there is room for a server");
        self.log_in(server, 0);
        match self.pools.collect(ticket) {
            Collected::Granted(grant) => {
                self.actions();
                (grant.server, grant.conn)
            }
            other => panic!("{other:?}"),
        }
    }

    fn fail(&mut self, server: ServerId, kind: FailureKind) {
        let failure = LoginFailure { reason: "connect failed".to_owned(), kind };
        self.pools.login_failed(server, failure, self.now);
        self.pools.check();
    }

    fn tick_after(&mut self, span: Micros) {
        self.now = self.now + span;
        self.pools.tick(self.now);
        self.pools.check();
    }

    fn row(&self) -> PoolRow {
        self.pools.pool_rows().remove(0)
    }
}

fn close(conn: u32, reason: &'static str) -> Released<u32> {
    Released::Close { conn, reason: Cow::Borrowed(reason) }
}

#[test]
fn s3_2_a_login_waits_for_the_reply_and_later_ones_do_not() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let Checkout::Queued(ticket) = bench.ask((client(1, 0), pool), WaitFor::LoginReply) else { panic!("no reply yet") };
    let server = bench.launched().expect("it asks for a server");
    assert_eq!(bench.log_in(server, 0), Released::Kept);
    assert_eq!(bench.actions(), [Action::Wake(client(1, 0))]);
    assert_eq!(bench.pools.collect(ticket), Collected::LoginReady("welcome"));
    assert_eq!(bench.ask((client(2, 0), pool), WaitFor::LoginReply), Checkout::LoginReady("welcome"));
    assert_eq!(bench.row().sv_idle, 1);
}

#[test]
fn s2_the_server_released_last_is_taken_first_and_one_at_home_before_it() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 3);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 3);
    for (held, home) in held.iter().zip([0, 1, 1]) {
        assert_eq!(bench.release(*held, home), Released::Kept);
    }
    assert_eq!(bench.take((client(1, 0), pool)), held[0], "at home");
    assert_eq!(bench.take((client(2, 0), pool)), held[2], "the last one released");
    assert_eq!(bench.pools.totals().moves, 1);
}

#[test]
fn s2_round_robin_takes_the_one_released_first() {
    let mut bench = Bench::new(|c| c.settings.server_round_robin = true.into());
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 2);
    bench.release(held[0], 0);
    bench.release(held[1], 0);
    assert_eq!(bench.take((client(1, 0), pool)), held[0]);
}

#[test]
fn s2_waiters_are_served_in_order_over_all_workers() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1);
    let first = bench.queue((client(1, 1), pool));
    let second = bench.queue((client(2, 0), pool));
    bench.release(held[0], 0);
    assert_eq!(bench.actions(), [Action::Wake(client(1, 1))]);
    let Collected::Granted(grant) = bench.pools.collect(first) else { panic!("it was woken") };
    assert!(grant.moved);
    assert!(matches!(bench.pools.collect(second), Collected::Waiting));
}

#[test]
fn s4_1_an_idle_server_to_be_replaced_is_closed_at_its_next_use() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1);
    bench.release(held[0], 0);
    bench.pools.mark_close_needed(held[0].0);
    bench.queue((client(1, 0), pool));
    let actions = bench.actions();
    assert!(
        matches!(&actions[0], Action::Close { conn, reason, .. } if *conn == held[0].1 && reason == "obsolete connection")
    );
    assert!(matches!(actions[1], Action::Launch { .. }));
}

#[test]
fn s4_2_a_client_that_leaves_with_a_server_in_its_slot_passes_it_on() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1);
    let first = bench.queue((client(1, 0), pool));
    let second = bench.queue((client(2, 0), pool));
    bench.release(held[0], 0);
    bench.pools.abandon(first, bench.now);
    assert_eq!(bench.actions(), [Action::Wake(client(1, 0)), Action::Wake(client(2, 0))]);
    assert!(matches!(bench.pools.collect(second), Collected::Granted(grant) if grant.conn == held[0].1));
}

#[test]
fn s4_3_one_connection_is_opened_at_a_time_and_no_more_than_pool_size() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    for index in 0..4 {
        bench.queue((client(index, 0), pool));
    }
    for opened in 1..=2 {
        let actions = bench.actions();
        let launches = actions.iter().filter(|action| matches!(action, Action::Launch { .. })).count();
        assert_eq!(launches, 1, "launch {opened}");
        let Some(Action::Launch { server, .. }) =
            actions.into_iter().find(|action| matches!(action, Action::Launch { .. }))
        else {
            panic!("counted before")
        };
        bench.log_in(server, 0);
    }
    assert_eq!(bench.launched(), None, "the pool is full");
    assert_eq!((bench.row().sv_active, bench.row().cl_waiting), (2, 2));
}

#[test]
fn s4_3_a_server_that_goes_right_after_its_login_holds_nobody_up() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    bench.queue((client(1, 0), pool));
    let server = bench.launched().expect("it asks for a server");
    bench.pools.lost_after_login(server, bench.now);
    let next = bench.launched().expect("the next one at once");
    assert_ne!(next, server);
    bench.queue((client(2, 0), pool));
}

#[test]
fn s4_3_after_a_failure_the_next_attempt_waits_for_server_login_retry() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    bench.queue((client(1, 0), pool));
    let server = bench.launched().expect("first attempt");
    bench.fail(server, FailureKind::Connect);
    bench.tick_after(SECOND);
    assert_eq!(bench.launched(), None);
    bench.tick_after(Micros::from_secs(15));
    assert!(bench.launched().is_some());
}

#[test]
fn s4_3_a_refused_login_is_told_to_all_who_wait_unless_the_server_is_only_starting() {
    for (relay, told) in [(Some(Disconnect::relayed("28P01", "no such role")), true), (None, false)] {
        let mut bench = Bench::new(|_| {});
        let pool = bench.attach("db", "ann");
        let ticket = bench.queue((client(1, 0), pool));
        let Checkout::Queued(login) = bench.ask((client(2, 0), pool), WaitFor::LoginReply) else { panic!("no reply") };
        let server = bench.launched().expect("first attempt");
        bench.fail(server, FailureKind::Login { relay: relay.clone() });
        for ticket in [ticket, login] {
            let got = bench.pools.collect(ticket);
            match (&relay, told) {
                (Some(why), true) => assert_eq!(got, Collected::Refused(why.clone())),
                _ => assert_eq!(got, Collected::Waiting),
            }
        }
    }
}

#[test]
fn s4_3_a_logged_in_client_fails_fast_while_logins_fail() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let waiting = bench.queue((client(1, 0), pool));
    let server = bench.launched().expect("first attempt");
    bench.fail(server, FailureKind::Connect);
    assert_eq!(bench.pools.collect(waiting), Collected::Waiting, "who waits already goes on waiting");
    let text = "server login has been failing, cached error: connect failed (server_login_retry)";
    assert_eq!(bench.ask((client(2, 0), pool), WaitFor::Query), Checkout::Refused(Disconnect::fatal(text)));
    assert!(matches!(bench.ask((client(3, 0), pool), WaitFor::LoginReply), Checkout::Queued(_)));
}

#[test]
fn s4_3_the_reserve_is_used_when_the_first_client_waited_reserve_pool_timeout() {
    let mut bench = Bench::new(|c| {
        c.settings.default_pool_size = 1;
        c.settings.reserve_pool_size = 1;
    });
    let pool = bench.attach("db", "ann");
    bench.linked(pool, 1);
    bench.queue((client(1, 0), pool));
    bench.tick_after(Micros(4_999_999));
    assert_eq!(bench.launched(), None);
    bench.tick_after(Micros(1));
    let actions = bench.actions();
    assert!(matches!(&actions[0], Action::TakesReserve(_)));
    assert!(matches!(actions[1], Action::Launch { .. }));
}

#[test]
fn s4_3_an_idle_server_of_another_pool_is_evicted_for_max_db_connections() {
    let mut bench = Bench::new(|c| c.settings.max_db_connections = 1);
    let (ann, bob) = (bench.attach("db", "ann"), bench.attach("db", "bob"));
    let held = bench.linked(ann, 1);
    bench.queue((client(1, 0), bob));
    assert_eq!(bench.launched(), None, "all are in use");
    bench.release(held[0], 0);
    let actions = bench.actions();
    assert!(matches!(&actions[0], Action::Close { conn, reason, .. } if *conn == held[0].1 && reason == "evicted"));
    assert!(matches!(actions[1], Action::Launch { pool, .. } if pool == bob));
}

#[test]
fn s4_3_max_user_connections_counts_over_all_entries() {
    let mut bench = Bench::new(|c| {
        c.settings.max_user_connections = 1;
        c.databases.insert("other".to_owned(), Database::new("other"));
    });
    let (here, there) = (bench.attach("db", "ann"), bench.attach("other", "ann"));
    let held = bench.linked(here, 1);
    bench.queue((client(1, 0), there));
    assert_eq!(bench.launched(), None);
    bench.pools.gone(held[0].0, bench.now);
    assert!(bench.launched().is_some(), "the room is given out at once");
}

#[test]
fn protocol_s7_a_request_not_sent_is_dropped_when_its_server_is_released() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    assert!(bench.pools.cancel(client(7, 0), held.0, [3; 8], bench.now));
    let carrier = bench.launched().expect("a carrier");
    assert_eq!(bench.release(held, 0), Released::Kept);
    let why = Disconnect::silent("not sending cancel request for client that is now idle");
    assert_eq!(bench.actions(), [Action::CancelFinished(client(7, 0), why)]);
    assert_eq!(bench.pools.cancel_connected(carrier, bench.now), None);
    assert_eq!(bench.pools.totals().servers, 1, "the carrier is forgotten");
}
