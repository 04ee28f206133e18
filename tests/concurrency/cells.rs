//! The counters of a pool have one writer each and no lock: readers see them grow, and in the end they add up. On real
//! threads, for what could go wrong is not the order of calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pgusher::config::Database;
use pgusher::id::{PoolId, WorkerId};
use pgusher::pool::PoolInfo;
use pgusher::shared::PoolShared;
use pgusher::stats::Counters;
use pgusher::stats::histogram::Span;
use pgusher::time::Micros;

const WORKERS: WorkerId = 4;
const TURNS: u64 = 20_000;

#[test]
fn counters_grow_and_add_up() {
    let info = PoolInfo { database: Arc::new(Database::new("db")), user: "ann".to_owned(), forced: false, peer: None };
    let pool = PoolShared::new(PoolId { index: 0, generation: 0 }, &info, usize::from(WORKERS));
    let at_work = AtomicUsize::new(usize::from(WORKERS));
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (pool, at_work) = (&pool, &at_work);
            scope.spawn(move || {
                for _ in 0..TURNS {
                    pool.add(worker, &Counters { query_count: 1, server_bytes: 3, ..Counters::default() });
                    pool.record(worker, Span::Query, Micros(7));
                }
                at_work.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let mut last = (0, 0);
        while at_work.load(Ordering::Relaxed) > 0 {
            let seen = (pool.counters().query_count, pool.times().of(Span::Query).count());
            assert!(seen.0 >= last.0 && seen.1 >= last.1, "{seen:?} after {last:?}");
            last = seen;
        }
    });
    let (counters, all) = (pool.counters(), u64::from(WORKERS) * TURNS);
    assert_eq!((counters.query_count, counters.server_bytes), (all, 3 * all));
    let times = pool.times();
    assert_eq!((times.of(Span::Query).count(), times.of(Span::Query).sum_us), (all, 7 * all));
}
