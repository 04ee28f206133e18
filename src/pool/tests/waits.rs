//! What clients in line are said to wait for.

use super::*;

impl Bench {
    /// The causes of all clients in line, in the order of the lines.
    fn causes(&self) -> Vec<WaitCause> {
        self.pools.check();
        self.pools.wait_rows(self.now).into_iter().map(|row| row.cause).collect()
    }
}

#[test]
fn the_first_in_line_waits_for_the_login_and_the_rest_for_what_is_behind_it() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "u");
    bench.queue((client(1, 0), pool));
    bench.queue((client(2, 0), pool));
    assert_eq!(bench.causes(), [WaitCause::ServerLogin, WaitCause::ServerLogin]);
    let server = bench.launched().expect("one is opened");
    bench.log_in(server, 0);
    // the second of two is opened now
    assert_eq!(bench.causes(), [WaitCause::ServerLogin]);
    bench.queue((client(3, 0), pool));
    assert_eq!(bench.causes(), [WaitCause::ServerLogin, WaitCause::PoolFull]);
    let rows = bench.pools.wait_rows(bench.now);
    let shown: Vec<_> = rows.iter().map(|row| (row.client.index, &*row.database, &*row.user, row.position)).collect();
    assert_eq!(shown, [(2, "db", "u", 1), (3, "db", "u", 2)]);
}

#[test]
fn limits_have_their_own_names() {
    let mut bench = Bench::new(|config| config.settings.max_db_connections = 1);
    let pool = bench.attach("db", "u");
    bench.linked(pool, 1);
    let ticket = bench.queue((client(1, 0), pool));
    assert_eq!(bench.pools.wait_cause(ticket, bench.now), Some(WaitCause::DatabaseLimit));

    let mut bench = Bench::new(|config| config.settings.max_user_connections = 1);
    let pool = bench.attach("db", "u");
    bench.linked(pool, 1);
    bench.queue((client(1, 0), pool));
    assert_eq!(bench.causes(), [WaitCause::UserLimit]);
}

#[test]
fn pauses_come_before_everything_else() {
    let mut bench = Bench::new(|config| config.settings.default_pool_size = 1);
    let pool = bench.attach("db", "u");
    bench.linked(pool, 1);
    bench.queue((client(1, 0), pool));
    assert_eq!(bench.causes(), [WaitCause::PoolFull]);
    assert_eq!(bench.pools.pause_db("db", bench.now), Ok(false));
    assert_eq!(bench.causes(), [WaitCause::DatabasePaused]);
    bench.pools.pause_all(bench.now).expect("not paused yet");
    assert_eq!(bench.causes(), [WaitCause::Paused]);
    assert_eq!(bench.pools.pool_waits(bench.now)[0].causes[WaitCause::Paused as usize], 1);
}

#[test]
fn a_failing_login_is_told_from_a_slow_one() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "u");
    let ticket = bench.queue((client(1, 0), pool));
    let server = bench.launched().expect("one is opened");
    assert_eq!(bench.causes(), [WaitCause::ServerLogin]);
    bench.fail(server, FailureKind::Connect);
    assert_eq!(bench.causes(), [WaitCause::LoginFailing]);
    // the next attempt has begun, and nothing says yet that it will do better
    bench.tick_after(bench.pools.config.settings.server_login_retry + SECOND);
    assert!(bench.launched().is_some());
    assert_eq!(bench.causes(), [WaitCause::LoginFailing]);
    bench.pools.abandon(ticket, bench.now);
    assert_eq!(bench.pools.wait_cause(ticket, bench.now), None);
}

#[test]
fn a_login_waits_for_any_server_of_its_pool() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "u");
    for index in 1..4 {
        bench.ask((client(index, 0), pool), WaitFor::LoginReply);
    }
    assert_eq!(bench.causes(), [WaitCause::ServerLogin; 3]);
}
