//! What becomes of a server that is given back or idle: reset, checks, lifetimes, the least number.

use super::*;

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
