//! What the console and a shutdown do to the pools.

use super::*;

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
fn a_suspension_that_nobody_can_end_ends_in_a_shutdown_too() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    bench.pools.set_shutdown(ShutdownMode::WaitForClients, bench.now);
    assert_eq!(bench.pools.suspend(bench.now), Ok(()));
    bench.pools.freeze();
    bench.release(held, 0);
    let ticket = bench.queue((client(1, 0), pool));
    assert_eq!(bench.pools.resume_all(bench.now), Err("pooler is shutting down".to_owned()));
    assert_eq!(bench.pools.collect(ticket), Collected::Waiting);
    bench.pools.unsuspend(bench.now);
    assert_eq!(bench.pools.pause_mode(), PauseMode::None);
    assert!(matches!(bench.pools.collect(ticket), Collected::Granted(_)));
    // a pause is another matter
    bench.pools.set_shutdown(ShutdownMode::WaitForServers, bench.now);
    bench.pools.unsuspend(bench.now);
    assert_eq!(bench.pools.pause_mode(), PauseMode::Paused);
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
fn a_used_server_that_was_looked_at_is_still_used() {
    let mut bench = Bench::new(|c| c.settings.server_check_delay = Micros::ZERO);
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    bench.release(held, 0);
    assert_eq!(bench.row().sv_used, 1);
    let parked = bench.pools.take_parked(held.0).expect("it is parked");
    let kept = bench.pools.put_back(held.0, parked.conn, false, bench.now);
    assert_eq!((kept, bench.row().sv_used), (Released::Kept, 1), "a look makes it no surer");
    let parked = bench.pools.take_parked(held.0).expect("it is parked");
    let closed = bench.pools.put_back(held.0, parked.conn, true, bench.now);
    assert_eq!(closed, close(held.1, "SV_USED server got dirty"));
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
fn shutdown_s5_waiting_for_clients_ends_a_suspension() {
    let mut bench = Bench::new(|c| c.settings.default_pool_size = 1);
    let pool = bench.attach("db", "ann");
    bench.pools.suspend(bench.now).expect("nothing is paused");
    bench.pools.freeze();
    bench.pools.set_shutdown(ShutdownMode::WaitForClients, bench.now);
    assert_eq!(bench.pools.pause_mode(), PauseMode::None);
    bench.queue((client(1, 0), pool));
    assert!(bench.actions().iter().any(|action| matches!(action, Action::Launch { .. })), "a server is opened for it");
}
