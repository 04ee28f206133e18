//! One rule of pooling.md in each test; connections are numbers here, the login reply is a word.

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
    let mut bench = Bench::new(|c| c.settings.server_round_robin = true);
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
    assert!(matches!(&actions[0], Action::Log(_, text) if text == "taking connection from reserve_pool"));
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
fn s5_2_reasons_to_close_at_release() {
    let mut bench = Bench::new(|c| c.settings.server_lifetime = SECOND);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 2);
    bench.pools.mark_close_needed(held[1].0);
    assert_eq!(bench.release(held[1], 0), close(held[1].1, "close_needed"));
    bench.now = bench.now + SECOND;
    assert_eq!(bench.release(held[0], 0), close(held[0].1, "server lifetime over"));
}

#[test]
fn s5_2_a_session_ends_with_the_reset_query() {
    let mut bench = Bench::new(|c| c.settings.pool_mode = PoolMode::Session);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    let released = bench.pools.release(held.0, held.1, true, 0, bench.now);
    assert_eq!(released, Released::Test { conn: held.1, query: TestQuery::Reset });
    assert_eq!(bench.row().sv_tested, 1);
    assert_eq!(bench.pools.tested(held.0, held.1, 0, bench.now), Released::Kept);
    assert_eq!(bench.row().sv_idle, 1);
}

#[test]
fn s5_5_with_server_check_delay_0_every_server_is_checked_before_its_next_use() {
    let mut bench = Bench::new(|c| c.settings.server_check_delay = Micros::ZERO);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    assert_eq!(bench.release(held, 0), Released::Kept);
    assert_eq!(bench.row().sv_used, 1);
    let ticket = bench.queue((client(1, 0), pool));
    let check = Action::Check { server: held.0, conn: held.1, home: 0, query: TestQuery::Check };
    assert_eq!(bench.actions(), [check]);
    assert_eq!(bench.pools.tested(held.0, held.1, 0, bench.now), Released::Kept);
    assert!(matches!(bench.pools.collect(ticket), Collected::Granted(_)));
}

#[test]
fn s5_5_a_server_that_fails_its_check_is_replaced() {
    let mut bench = Bench::new(|c| c.settings.server_check_delay = Micros::ZERO);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    bench.release(held, 0);
    bench.queue((client(1, 0), pool));
    bench.actions();
    bench.pools.gone(held.0, bench.now);
    assert!(bench.launched().is_some());
}

#[test]
fn s5_4_unlinked_servers_end_by_the_first_reason_that_holds() {
    type Case = (fn(&mut Config), bool, u64, Option<&'static str>);
    let cases: [Case; 5] = [
        (|c| c.settings.server_idle_timeout = SECOND, true, 2, Some("database configuration changed")),
        (|c| c.settings.server_idle_timeout = SECOND, false, 2, Some("server idle timeout")),
        (|c| c.settings.server_idle_timeout = SECOND, false, 1, None),
        (|c| c.settings.server_lifetime = SECOND, false, 1, Some("server lifetime over")),
        (
            |c| {
                c.settings.server_idle_timeout = SECOND;
                c.settings.min_pool_size = 1;
            },
            false,
            2,
            None,
        ),
    ];
    for (at, (change, tagged, seconds, want)) in cases.into_iter().enumerate() {
        let mut bench = Bench::new(change);
        let pool = bench.attach("db", "ann");
        let held = bench.linked(pool, 1)[0];
        bench.release(held, 0);
        bench.actions();
        if tagged {
            bench.pools.mark_close_needed(held.0);
        }
        bench.tick_after(Micros::from_secs(seconds));
        let reasons: Vec<_> = bench
            .actions()
            .into_iter()
            .filter_map(
                |action| if let Action::Close { reason, .. } = action { Some(reason.into_owned()) } else { None },
            )
            .collect();
        assert_eq!(reasons, Vec::from_iter(want.map(str::to_owned)), "case {at}");
    }
}

#[test]
fn s5_4_an_idle_server_becomes_used_after_server_check_delay() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    bench.release(held, 0);
    bench.tick_after(Micros::from_secs(30));
    assert_eq!(bench.row().sv_idle, 1);
    bench.tick_after(Micros(1));
    assert_eq!(bench.row().sv_used, 1);
}

#[test]
fn s5_4_a_pool_keeps_min_pool_size_one_launch_in_a_round() {
    let mut bench = Bench::new(|c| {
        c.settings.min_pool_size = 2;
        c.databases.get_mut("db").expect("it is there").user = Some("forced".to_owned());
    });
    for want in [1, 2] {
        bench.tick_after(SECOND);
        let server = bench.launched().expect("below the minimum");
        bench.log_in(server, 0);
        assert_eq!(bench.row().sv_idle, want);
    }
    bench.tick_after(SECOND);
    assert_eq!(bench.launched(), None);
}

#[test]
fn s5_4_a_smaller_pool_size_closes_idle_servers() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    for held in bench.linked(pool, 2) {
        bench.release(held, 0);
    }
    bench.pools.configure(config(|c| c.settings.default_pool_size = 1), bench.now);
    bench.tick_after(SECOND);
    assert!(matches!(&bench.actions()[..], [Action::Close { reason, .. }] if reason == "too many servers in the pool"));
}

#[test]
fn s6_client_limits() {
    type Limit = (fn(&mut Config), &'static str);
    let limits: [Limit; 2] = [
        (|c| c.settings.max_db_client_connections = 1, "max_db_client_connections"),
        (|c| c.settings.max_user_client_connections = 1, "max_user_client_connections"),
    ];
    for (change, name) in limits {
        let mut bench = Bench::new(change);
        let db = bench.pools.find_database("db", bench.now).expect("it is configured");
        let first = bench.pools.attach(db, "ann", false, bench.now).expect("there is room");
        let why = Disconnect::fatal(format!("client connections exceeded ({name})"));
        assert_eq!(bench.pools.attach(db, "ann", false, bench.now), Err(why));
        bench.pools.detach(first.pool, first.user, false, bench.now);
        assert!(bench.pools.attach(db, "ann", false, bench.now).is_ok());
        assert!(bench.pools.attach(db, "ann", true, bench.now).is_ok(), "exempt");
    }
}

#[test]
fn s1_an_auto_entry_sleeps_and_goes_after_autodb_idle_timeout() {
    let mut bench = Bench::new(|c| c.wildcard = Some("host=h".to_owned()));
    assert!(bench.pools.find_database("new", bench.now).is_some());
    assert!(matches!(&bench.actions()[..], [Action::Log(_, text)] if text == "registered new auto-database: new"));
    bench.tick_after(SECOND);
    assert_eq!(bench.pools.database_rows().len(), 1, "it sleeps");
    bench.tick_after(Micros::from_secs(3600));
    assert_eq!(bench.pools.totals().databases, 2);
    bench.tick_after(SECOND);
    assert_eq!(bench.pools.totals().databases, 1);
}

#[test]
fn s1_a_pool_user_is_the_forced_user() {
    let mut bench = Bench::new(|c| c.databases.get_mut("db").expect("it is there").user = Some("forced".to_owned()));
    let (ann, bob) = (bench.attach("db", "ann"), bench.attach("db", "bob"));
    assert_eq!(ann, bob);
    let info = bench.pools.describe(ann).expect("it exists");
    assert_eq!((&*info.user, info.forced), ("forced", true));
}

#[test]
fn reload_s3_3_a_changed_address_replaces_servers_and_forgets_the_reply() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    let moved = |c: &mut Config| c.databases.get_mut("db").expect("it is there").port = 1;
    bench.pools.configure(config(moved), bench.now);
    assert!(bench.pools.close_needed(held.0));
    assert_eq!(bench.pools.login_reply(pool), None);
    let Checkout::Queued(_) = bench.ask((client(1, 0), pool), WaitFor::LoginReply) else { panic!("no reply") };
    assert!(bench.launched().is_some());
    assert_eq!(bench.release(held, 0), close(held.1, "close_needed"));
}

#[test]
fn reload_s3_3_a_dropped_entry_sends_everybody_away() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 2);
    let ticket = bench.queue((client(1, 0), pool));
    bench.release(held[0], 0);
    bench.pools.configure(config(|c| c.databases.clear()), bench.now);
    let why = Disconnect::fatal("database removed");
    assert_eq!(bench.pools.collect(ticket), Collected::Refused(why.clone()));
    let actions = bench.actions();
    assert!(actions.iter().any(|action| matches!(action, Action::Close { conn, .. } if *conn == held[0].1)));
    assert!(actions.iter().any(|action| matches!(action, Action::Evict { server, .. } if *server == held[1].0)));
    assert!(actions.contains(&Action::CloseClients { pool, why }));
    assert_eq!(bench.release(held[1], 0), close(held[1].1, "database removed"));
}

#[test]
fn console_s6_pause_closes_what_is_unlinked_and_waits_for_the_rest() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 2);
    bench.release(held[0], 0);
    bench.actions();
    assert_eq!(bench.pools.pause_all(bench.now), Ok(()));
    assert!(matches!(&bench.actions()[..], [Action::Close { reason, .. }] if reason == "pause mode"));
    let ticket = bench.queue((client(1, 0), pool));
    assert!(!bench.pools.is_drained());
    assert_eq!(bench.release(held[1], 0), close(held[1].1, "pause mode"));
    assert!(bench.pools.is_drained());
    assert_eq!(bench.pools.pause_all(bench.now), Err("already suspended/paused".to_owned()));
    assert_eq!(bench.pools.collect(ticket), Collected::Waiting);
    assert_eq!(bench.pools.resume_all(bench.now), Ok(()));
    assert!(bench.launched().is_some());
}

#[test]
fn console_s6_suspend_serves_who_waits_and_then_hands_out_nothing() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    let ticket = bench.queue((client(1, 0), pool));
    assert_eq!(bench.pools.suspend(bench.now), Ok(()));
    assert!(bench.pools.has_waiters(pool));
    assert_eq!(bench.release(held, 0), Released::Kept);
    assert!(!bench.pools.is_settled(), "the server is in a slot");
    let Collected::Granted(grant) = bench.pools.collect(ticket) else { panic!("the waiter is served") };
    bench.pools.freeze();
    assert!(bench.pools.is_settled());
    bench.release((grant.server, grant.conn), 0);
    let late = bench.queue((client(2, 0), pool));
    assert_eq!(bench.pools.collect(late), Collected::Waiting);
    bench.pools.tick(bench.now);
    assert_eq!(bench.pools.collect(late), Collected::Waiting);
    assert_eq!(bench.pools.resume_all(bench.now), Ok(()));
    assert!(matches!(bench.pools.collect(late), Collected::Granted(_)));
}

#[test]
fn console_s6_errors() {
    let mut bench = Bench::new(|_| {});
    let now = bench.now;
    let pools = &mut bench.pools;
    let errors = [
        (pools.resume_all(now), "pooler is not paused/suspended"),
        (pools.pause_db("pgbouncer", now).map(|_| ()), "cannot pause admin db: pgbouncer"),
        (pools.pause_db("no", now).map(|_| ()), "no such database: no"),
        (pools.resume_db("db", now), "database db is not paused"),
        (pools.resume_db("no", now), "no such database: no"),
        (pools.resume_db("pgbouncer", now), "database pgbouncer is not paused"),
        (pools.disable_db(None, now), "a database is required"),
        (pools.disable_db(Some("pgbouncer"), now), "cannot disable admin db: pgbouncer"),
        (pools.enable_db(Some("pgbouncer"), now), "cannot enable admin db: pgbouncer"),
        (pools.reconnect(Some("pgbouncer"), now), "cannot reconnect admin db: pgbouncer"),
        (pools.kill(Some("pgbouncer"), now), "cannot kill admin db: pgbouncer"),
        (pools.wait_close(Some("pgbouncer"), now).map(|_| ()), "cannot wait in admin db: pgbouncer"),
    ];
    for (got, want) in errors {
        assert_eq!(got, Err(want.to_owned()));
    }
    assert_eq!(pools.pause_db("db", now), Ok(true));
    assert_eq!(pools.suspend(now), Err("cannot suspend with paused databases".to_owned()));
}

#[test]
fn console_s6_kill_pauses_the_entry_and_drops_its_pools() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    assert_eq!(bench.pools.kill(Some("db"), bench.now), Ok(()));
    assert_eq!(bench.pools.pool_rows(), []);
    bench.pools.gone(held.0, bench.now);
    bench.actions();
    let again = bench.attach("db", "ann");
    bench.queue((client(1, 0), again));
    assert_eq!(bench.launched(), None);
    assert_eq!(bench.pools.resume_db("db", bench.now), Ok(()));
    assert!(bench.launched().is_some());
}

#[test]
fn console_s6_wait_close_waits_for_the_last_replaced_server() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    assert_eq!(bench.pools.wait_close(None, bench.now), Ok(None));
    let held = bench.linked(pool, 1)[0];
    bench.pools.reconnect(None, bench.now).expect("all entries");
    let scope = bench.pools.wait_close(Some("db"), bench.now).expect("it is known").expect("it has a server");
    assert!(bench.pools.close_pending(scope));
    bench.release(held, 0);
    assert!(!bench.pools.close_pending(scope));
}

#[test]
fn protocol_s7_a_canceled_server_rests_until_the_carrier_is_closed() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    assert!(bench.pools.cancel(client(7, 1), held.0, [3; 8], bench.now));
    let carrier = bench.launched().expect("twice pool_size for cancels");
    let job = CancelJob { request: client(7, 1), key: [3; 8] };
    assert_eq!(bench.pools.cancel_connected(carrier, bench.now), Some(job));
    assert_eq!(bench.release(held, 0), Released::Kept);
    assert_eq!((bench.row().sv_being_canceled, bench.row().sv_active_cancel), (1, 1));
    let ticket = bench.queue((client(1, 0), pool));
    bench.pools.cancel_done(carrier, bench.now);
    let done = Disconnect::silent("successfully sent cancel request");
    assert!(bench.actions().contains(&Action::CancelFinished(client(7, 1), done)));
    assert!(matches!(bench.pools.collect(ticket), Collected::Granted(grant) if grant.conn == held.1));
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

#[test]
fn a_server_serves_nobody_else_when_a_cancel_for_it_was_given_up_on_its_way() {
    for released_first in [false, true] {
        let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
        let pool = bench.attach("db", "ann");
        let held = bench.linked(pool, 1)[0];
        assert!(bench.pools.cancel(client(7, 1), held.0, [3; 8], bench.now));
        let carrier = bench.launched().expect("twice pool_size for cancels");
        assert!(bench.pools.cancel_connected(carrier, bench.now).is_some());
        if released_first {
            assert_eq!(bench.release(held, 0), Released::Kept);
        }
        bench.queue((client(1, 0), pool));
        bench.pools.cancel_abandoned(client(7, 1), bench.now);
        bench.pools.cancel_done(carrier, bench.now);
        if !released_first {
            assert_eq!(bench.release(held, 0), close(held.1, "cancel request given up on its way"));
        }
        bench.pools.check();
        assert!(bench.launched().is_some(), "the one who waits gets another server");
    }
}

#[test]
fn what_a_client_leaves_running_is_canceled_and_its_server_is_gone() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    let ticket = bench.queue((client(1, 0), pool));
    assert!(bench.pools.cancel_left(client(7, 1), held.0, [3; 8], bench.now));
    let carrier = bench.launched().expect("twice pool_size for cancels");
    bench.pools.gone(held.0, bench.now);
    bench.pools.check();
    let job = CancelJob { request: client(7, 1), key: [3; 8] };
    assert_eq!(bench.pools.cancel_connected(carrier, bench.now), Some(job));
    bench.actions();
    bench.pools.cancel_done(carrier, bench.now);
    let actions = bench.actions();
    assert!(!actions.iter().any(|action| matches!(action, Action::CancelFinished(..))), "nobody waits to be told");
    let [Action::Launch { server, .. }] = actions[..] else { panic!("the one who waits gets a server of his own") };
    assert_eq!(bench.pools.logged_in(server, 99, "reply", 0, bench.now), Released::Kept);
    assert!(matches!(bench.pools.collect(ticket), Collected::Granted(grant) if grant.conn == 99));
}

#[test]
fn a_cancel_that_nobody_waits_for_is_given_up_in_time() {
    for sent in [false, true] {
        let mut bench = Bench::new(|_| {});
        let pool = bench.attach("db", "ann");
        let held = bench.linked(pool, 1)[0];
        assert!(bench.pools.cancel_left(client(7, 1), held.0, [3; 8], bench.now));
        let carrier = bench.launched().expect("a carrier");
        bench.pools.gone(held.0, bench.now);
        if sent {
            assert!(bench.pools.cancel_connected(carrier, bench.now).is_some());
        }
        bench.now = bench.now + Micros::from_secs(11);
        bench.pools.tick(bench.now);
        let evicted =
            bench.actions().iter().any(|action| matches!(action, Action::Evict { server, .. } if *server == carrier));
        assert_eq!(evicted, sent, "a carrier that has nothing to carry ends when it is connected");
        bench.pools.check();
        if sent {
            bench.pools.cancel_done(carrier, bench.now);
        } else {
            assert_eq!(bench.pools.cancel_connected(carrier, bench.now), None);
        }
        assert_eq!(bench.pools.totals().servers, 0);
    }
}

#[test]
fn a_cancel_goes_to_the_address_of_its_server() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 2);
    let address = |n: u8| Address::Tcp(([10, 0, 0, n], 5432).into());
    for (server, n) in [(held[0].0, 1), (held[1].0, 2)] {
        bench.pools.located(server, address(n));
    }
    assert_eq!(bench.pools.carrier_address(pool), None);
    for (n, target) in [(1, held[0].0), (2, held[1].0)] {
        assert!(bench.pools.cancel(client(7, n), target, [3; 8], bench.now));
    }
    assert_eq!(bench.pools.carrier_address(pool), Some(address(1)));
    let carrier = bench.launched().expect("a carrier");
    bench.pools.located(carrier, address(2));
    let job = bench.pools.cancel_connected(carrier, bench.now).expect("the second request fits");
    assert_eq!(job.request, client(7, 2));
    let carrier = bench.launched().expect("another carrier");
    bench.pools.located(carrier, address(2));
    assert_eq!(bench.pools.cancel_connected(carrier, bench.now), None, "the first one must not go there");
    let carrier = bench.launched().expect("it is tried again");
    bench.pools.located(carrier, address(1));
    assert!(bench.pools.cancel_connected(carrier, bench.now).is_some());
    bench.pools.check();
}

#[test]
fn pooling_s4_4_servers_at_a_lost_address_are_replaced() {
    let host = |db: &mut Database, host: &str| db.host = Some(host.to_owned());
    let mut bench = Bench::new(|c| {
        host(c.databases.get_mut("db").expect("it is there"), "name");
        c.databases.insert("list".to_owned(), Database { host: Some("name,name".to_owned()), ..Database::new("list") });
    });
    let mut servers = Vec::new();
    for entry in ["db", "list"] {
        let pool = bench.attach(entry, "ann");
        servers.extend(bench.linked(pool, 2).into_iter().map(|held| held.0));
    }
    for (server, n) in servers.iter().zip([1, 2, 1, 2]) {
        bench.pools.located(*server, Address::Tcp(([10, 0, 0, n], 5432).into()));
    }
    bench.pools.addresses_gone("other", &[[10, 0, 0, 1].into()]);
    bench.pools.addresses_gone("name", &[[10, 0, 0, 1].into()]);
    let tagged: Vec<bool> = servers.iter().map(|&server| bench.pools.close_needed(server)).collect();
    assert_eq!(tagged, [true, false, false, false]);
}

#[test]
fn protocol_s7_a_peer_gets_a_pool_at_its_first_cancel() {
    let mut bench = Bench::new(|c| {
        c.peers.insert(2, Peer { id: 2, host: "p".to_owned(), port: 1, pool_size: None });
    });
    assert!(!bench.pools.cancel_peer(client(1, 0), 3, [0; 8], bench.now));
    assert!(bench.pools.cancel_peer(client(1, 0), 2, [0; 8], bench.now));
    assert_eq!(bench.pools.peer_rows().len(), 1);
    let carrier = bench.launched().expect("a carrier");
    assert!(bench.pools.cancel_connected(carrier, bench.now).is_some());
    bench.pools.cancel_abandoned(client(1, 0), bench.now);
    assert!(matches!(bench.actions()[..], [Action::Evict { server, .. }] if server == carrier));
    bench.pools.cancel_done(carrier, bench.now);
    bench.pools.check();
    assert!(bench.pools.is_drained());
}

#[test]
fn a_parked_server_that_speaks_is_closed_as_dirty() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    bench.release(held, 0);
    let parked = bench.pools.take_parked(held.0).expect("it is parked");
    assert_eq!(bench.pools.take_parked(held.0), None);
    let kept = bench.pools.put_back(held.0, parked.conn, false, bench.now);
    assert_eq!((kept, bench.row().sv_idle), (Released::Kept, 1));
    let parked = bench.pools.take_parked(held.0).expect("it is parked");
    let closed = bench.pools.put_back(held.0, parked.conn, true, bench.now);
    assert_eq!(closed, close(held.1, "SV_IDLE server got dirty"));
}

#[test]
fn shutdown_s5_waiting_for_servers_turns_clients_away() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    bench.linked(pool, 1);
    let ticket = bench.queue((client(1, 0), pool));
    bench.pools.set_shutdown(ShutdownMode::WaitForServers, bench.now);
    let why = Disconnect::fatal("server shutting down");
    assert_eq!(bench.pools.collect(ticket), Collected::Refused(why.clone()));
    assert_eq!(bench.ask((client(2, 0), pool), WaitFor::Query), Checkout::Refused(why));
    bench.pools.set_shutdown(ShutdownMode::WaitForClients, bench.now);
    assert!(matches!(bench.ask((client(3, 0), pool), WaitFor::Query), Checkout::Queued(_)));
}

#[test]
fn s9_a_replication_client_gets_a_connection_made_for_it_that_is_closed_with_it() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let ordinary = bench.link_one(pool, 1);
    bench.release(ordinary, 0);
    let who = client(2, 0);
    let ticket = bench.replicate((who, pool));
    let server = bench.launched().expect("an idle server is of no use to it");
    assert_eq!(bench.pools.tie(server), Some(who));
    bench.log_in(server, 0);
    let Collected::Granted(grant) = bench.pools.collect(ticket) else { panic!("it is there") };
    assert_eq!(grant.pool_mode, PoolMode::Session);
    assert_eq!(bench.release((server, grant.conn), 0), close(grant.conn, "replication client was closed"));
}

#[test]
fn s9_a_connection_is_tied_to_whoever_is_first_in_line() {
    let mut bench = Bench::new(|config| config.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let first = bench.link_one(pool, 1);
    let waiting = bench.queue((client(2, 0), pool));
    bench.replicate((client(3, 0), pool));
    assert_eq!(bench.launched(), None);
    bench.release(first, 0);
    assert!(matches!(bench.pools.collect(waiting), Collected::Granted(_)));
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    bench.queue((client(1, 0), pool));
    let server = bench.launched().expect("there is room");
    bench.replicate((client(2, 0), pool));
    assert_eq!(bench.pools.tie(server), None);
}

#[test]
fn s9_a_full_pool_evicts_an_idle_server_for_a_replication_client_and_else_lets_it_wait() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let [a, b] = [bench.link_one(pool, 1), bench.link_one(pool, 2)];
    bench.replicate((client(3, 0), pool));
    assert_eq!(bench.actions(), []);
    bench.release(a, 0);
    let actions = bench.actions();
    assert!(matches!(&actions[0], Action::Close { reason, .. } if reason == "evicted"), "{actions:?}");
    assert!(matches!(actions[1], Action::Launch { .. }), "{actions:?}");
    bench.release(b, 0);
    assert_eq!(bench.row().sv_idle, 1);
}

#[test]
fn s9_a_refused_replication_login_touches_nobody_else() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let mine = bench.replicate((client(1, 0), pool));
    let server = bench.launched().expect("there is room");
    bench.pools.tie(server);
    let other = bench.queue((client(2, 0), pool));
    bench.fail(server, FailureKind::Login { relay: Some(Disconnect::relayed("28000", "no")) });
    let why = Disconnect::fatal("connect failed");
    assert_eq!(bench.pools.collect(mine), Collected::Refused(why));
    assert_eq!(bench.pools.collect(other), Collected::Waiting);
    assert!(bench.launched().is_some(), "the next one is opened at once");
}

#[test]
fn s9_a_client_that_leaves_takes_the_connection_being_opened_for_it_along() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let ticket = bench.replicate((client(1, 0), pool));
    let server = bench.launched().expect("there is room");
    bench.pools.tie(server);
    bench.pools.abandon(ticket, bench.now);
    let reason = Cow::Borrowed("replication client disconnected");
    assert_eq!(bench.actions(), [Action::Evict { server, home: 0, reason: reason.clone() }]);
    assert_eq!(bench.log_in(server, 0), Released::Close { conn: 1, reason });
}

#[test]
fn s9_a_connection_that_is_lost_to_a_pause_is_opened_again() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let ticket = bench.replicate((client(1, 0), pool));
    let server = bench.launched().expect("there is room");
    bench.pools.tie(server);
    bench.pools.pause_db("db", bench.now).expect("the entry is known");
    bench.pools.gone(server, bench.now);
    bench.actions();
    assert_eq!(bench.pools.collect(ticket), Collected::Waiting);
    bench.pools.resume_db("db", bench.now).expect("it is paused");
    let again = bench.launched().expect("it still waits");
    assert_eq!(bench.pools.tie(again), Some(client(1, 0)));
}
