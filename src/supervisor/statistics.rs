//! Statistics: periods, SHOW STATS and its relatives, the line in the log.

use std::collections::HashMap;

use crate::admin::snapshot::{PoolStats, StatsRow, stats_rows, stats_total};
use crate::clock::Clock;
use crate::config::CONSOLE_DATABASE;
use crate::id::PoolId;
use crate::shared::PoolShared;
use crate::stats::histogram::Times;
use crate::stats::{Averages, Counters, History, Periods};
use crate::supervisor::Supervisor;
use crate::sys::service;
use crate::time::Micros;

/// What earlier periods ended with.
pub(crate) struct Statistics {
    periods: Periods,
    pools: HashMap<PoolId, History>,
    times: HashMap<PoolId, TimesHistory>,
    console: History,
}

impl Statistics {
    pub(crate) fn start(now: Micros) -> Self {
        Self { periods: Periods::start(now), pools: HashMap::new(), times: HashMap::new(), console: History::default() }
    }
}

/// The times of one pool at the last two period ends.
#[derive(Default)]
struct TimesHistory {
    older: Box<Times>,
    newer: Box<Times>,
}

/// A pool's name and counters, now and at the older snapshot.
struct Figures {
    database: String,
    now: Counters,
    older: Counters,
}

impl Supervisor {
    fn figures(&self) -> Vec<Figures> {
        let broker = self.shared.broker.lock();
        let rows = broker.pools.pool_rows();
        let mut shared: HashMap<PoolId, _> = broker.all_shared().map(|pool| (pool.id, pool.clone())).collect();
        drop(broker);
        let mut figures: Vec<Figures> = rows
            .into_iter()
            .map(|row| Figures {
                database: row.database,
                now: shared.remove(&row.pool).map(|pool| pool.counters()).unwrap_or_default(),
                older: self.statistics.pools.get(&row.pool).map(History::older).unwrap_or_default(),
            })
            .collect();
        figures.push(Figures {
            database: CONSOLE_DATABASE.to_owned(),
            now: *self.shared.console_counters.lock(),
            older: self.statistics.console.older(),
        });
        figures
    }

    pub(super) fn stats_rows(&self) -> Vec<StatsRow> {
        let figures = self.figures();
        stats_rows(figures.iter().map(Figures::as_stats), self.statistics.periods.span(Clock::now()))
    }

    pub(super) fn stats_total(&self) -> (Counters, Averages) {
        let figures = self.figures();
        stats_total(figures.iter().map(Figures::as_stats), self.statistics.periods.span(Clock::now()))
    }

    /// What a pool's clients and servers took since the older snapshot.
    pub(super) fn recent_times(&self, pool: &PoolShared) -> Times {
        let mut times = pool.times();
        if let Some(history) = self.statistics.times.get(&pool.id) {
            times -= &history.older;
        }
        times
    }

    /// The end of a period: new snapshots, and the line in the log.
    pub(super) fn period_ends(&mut self) {
        self.statistics.periods.turn(Clock::now());
        let shared: Vec<_> = self.shared.broker.lock().all_shared().cloned().collect();
        let pools: Vec<_> = shared.iter().map(|pool| (pool.id, pool.counters())).collect();
        let mut times = std::mem::take(&mut self.statistics.times);
        for pool in &shared {
            let mut history = times.remove(&pool.id).unwrap_or_default();
            history.older = std::mem::replace(&mut history.newer, Box::new(pool.times()));
            self.statistics.times.insert(pool.id, history);
        }
        let mut histories = std::mem::take(&mut self.statistics.pools);
        for (id, counters) in pools {
            let mut history = histories.remove(&id).unwrap_or_default();
            history.turn(counters);
            self.statistics.pools.insert(id, history);
        }
        self.statistics.console.turn(*self.shared.console_counters.lock());
        let (_, averages) = self.stats_total();
        let line = averages.log_line();
        service::notify(&format!("STATUS={}", line.replace(" us", " μs")));
        if self.live.config.settings.log_stats.is_on() {
            tracing::info!("{line}");
        }
    }
}

impl Figures {
    fn as_stats(&self) -> PoolStats<'_> {
        PoolStats { database: &self.database, now: self.now, older: self.older }
    }
}
