//! Rows of the SHOW topics that PgBouncer does not have: who waits for what, how long things take, and what to change.

use crate::pool::{WaitCause, WaitFor};
use crate::stats::histogram::{Histogram, Span, Times};
use crate::time::Micros;

/// One row of SHOW WAITS: a client in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitLine {
    pub database: String,
    /// The pool's, as in SHOW POOLS.
    pub user: String,
    pub cause: WaitCause,
    pub kind: WaitFor,
    /// 1 is the next one of its line.
    pub position: u32,
    pub waited: Micros,
    /// Peer address, or `unix`.
    pub addr: String,
    pub port: u16,
    pub application_name: String,
    /// As SHOW CLIENTS has it.
    pub id: u64,
}

/// One row of SHOW LATENCY: a pool's times since the older of two snapshots, as the averages of SHOW STATS are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyRow {
    pub database: String,
    pub user: String,
    pub wait: Percentiles,
    pub query: Percentiles,
    pub transaction: Percentiles,
}

/// A distribution in four numbers; the times are `None` when there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    pub count: u64,
    /// 50, 95 and 99 percent.
    pub times: [Option<Micros>; 3],
}

impl Percentiles {
    #[must_use]
    pub fn of(histogram: &Histogram) -> Self {
        Self { count: histogram.count(), times: [50, 95, 99].map(|percent| histogram.percentile(percent)) }
    }
}

impl LatencyRow {
    #[must_use]
    pub fn new(database: String, user: String, times: &Times) -> Self {
        let of = |span| Percentiles::of(times.of(span));
        Self { database, user, wait: of(Span::Wait), query: of(Span::Query), transaction: of(Span::Transaction) }
    }
}

/// One row of SHOW ADVICE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Somebody suffers from it now, or did lately.
    pub urgent: bool,
    pub database: Option<String>,
    pub user: Option<String>,
    /// What to change.
    pub setting: &'static str,
    pub text: String,
}
