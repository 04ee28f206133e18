//! Connections made for one replication client.

use super::*;

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
