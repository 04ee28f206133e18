//! Cancel requests, and servers that rest until they are through.

use super::*;

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
    assert!(bench.pools.cancel_left(client(7, 1), held.0, false, [3; 8], bench.now));
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
fn a_server_that_is_kept_rests_until_the_cancel_is_over() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    let ticket = bench.queue((client(1, 0), pool));
    assert!(bench.pools.cancel_left(client(7, 1), held.0, true, [3; 8], bench.now));
    let carrier = bench.launched().expect("twice pool_size for cancels");
    assert!(bench.pools.cancel_connected(carrier, bench.now).is_some());
    assert_eq!(bench.release(held, 0), Released::Kept);
    bench.pools.check();
    assert!(matches!(bench.pools.collect(ticket), Collected::Waiting), "the cancel may yet arrive");
    bench.pools.cancel_done(carrier, bench.now);
    assert!(matches!(bench.pools.collect(ticket), Collected::Granted(grant) if grant.conn == held.1));
    bench.pools.check();
}

#[test]
fn a_server_that_is_kept_needs_no_cancel_that_has_not_been_sent() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    assert!(bench.pools.cancel_left(client(7, 1), held.0, true, [3; 8], bench.now));
    let carrier = bench.launched().expect("a carrier");
    assert_eq!(bench.release(held, 0), Released::Kept);
    bench.pools.check();
    assert_eq!(bench.pools.cancel_connected(carrier, bench.now), None);
    bench.pools.check();
}

#[test]
fn a_server_that_is_kept_and_closed_after_all_leaves_its_cancel() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    assert!(bench.pools.cancel_left(client(7, 1), held.0, true, [3; 8], bench.now));
    let carrier = bench.launched().expect("a carrier");
    bench.pools.gone(held.0, bench.now);
    bench.pools.check();
    let job = CancelJob { request: client(7, 1), key: [3; 8] };
    assert_eq!(bench.pools.cancel_connected(carrier, bench.now), Some(job), "what runs there is cancelled");
    bench.pools.cancel_done(carrier, bench.now);
    bench.pools.check();
    assert_eq!(bench.pools.totals().servers, 0);
}

#[test]
fn a_server_that_is_kept_is_closed_if_its_cancel_is_given_up() {
    for sent in [false, true] {
        let mut bench = Bench::new(|_| {});
        let pool = bench.attach("db", "ann");
        let held = bench.linked(pool, 1)[0];
        assert!(bench.pools.cancel_left(client(7, 1), held.0, true, [3; 8], bench.now));
        let carrier = bench.launched().expect("a carrier");
        if sent {
            assert!(bench.pools.cancel_connected(carrier, bench.now).is_some());
        }
        bench.now = bench.now + Micros::from_secs(11);
        bench.pools.tick(bench.now);
        bench.pools.check();
        let expected = if sent { close(held.1, "cancel request given up on its way") } else { Released::Kept };
        assert_eq!(bench.release(held, 0), expected);
        bench.pools.check();
    }
}

#[test]
fn a_cancel_that_nobody_waits_for_is_given_up_in_time() {
    for sent in [false, true] {
        let mut bench = Bench::new(|_| {});
        let pool = bench.attach("db", "ann");
        let held = bench.linked(pool, 1)[0];
        assert!(bench.pools.cancel_left(client(7, 1), held.0, false, [3; 8], bench.now));
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
