//! Counters of a pool, what they were a while ago, and the averages between the two.
//!
//! Counters are plain integers: every worker has its own for each pool, and they are added up when somebody asks. The time
//! between snapshots is the same for all pools ([`Periods`]), so sums of snapshots can be averaged like single ones.

pub mod ends;
pub mod histogram;

use std::fmt;
use std::ops::{AddAssign, SubAssign};

use crate::time::Micros;

/// What happened in a pool since it exists. Times are microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How many times a server was linked to a client.
    pub server_assignment_count: u64,
    pub xact_count: u64,
    pub query_count: u64,
    /// Bytes received from clients and forwarded.
    pub client_bytes: u64,
    /// Bytes of messages received from servers.
    pub server_bytes: u64,
    pub xact_time: u64,
    pub query_time: u64,
    /// Spent by clients in the queue, added when they leave it with a server.
    pub wait_time: u64,
    pub client_parse_count: u64,
    pub server_parse_count: u64,
    pub bind_count: u64,
}

impl Counters {
    /// How many counters there are.
    pub const COUNT: usize = 11;

    fn combine(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            server_assignment_count: with(self.server_assignment_count, other.server_assignment_count),
            xact_count: with(self.xact_count, other.xact_count),
            query_count: with(self.query_count, other.query_count),
            client_bytes: with(self.client_bytes, other.client_bytes),
            server_bytes: with(self.server_bytes, other.server_bytes),
            xact_time: with(self.xact_time, other.xact_time),
            query_time: with(self.query_time, other.query_time),
            wait_time: with(self.wait_time, other.wait_time),
            client_parse_count: with(self.client_parse_count, other.client_parse_count),
            server_parse_count: with(self.server_parse_count, other.server_parse_count),
            bind_count: with(self.bind_count, other.bind_count),
        }
    }

    /// In the order of the columns of SHOW STATS.
    #[inline]
    #[must_use]
    pub const fn in_order(&self) -> [u64; Self::COUNT] {
        [
            self.server_assignment_count,
            self.xact_count,
            self.query_count,
            self.client_bytes,
            self.server_bytes,
            self.xact_time,
            self.query_time,
            self.wait_time,
            self.client_parse_count,
            self.server_parse_count,
            self.bind_count,
        ]
    }

    /// The counters from their values in the order of [`Counters::in_order`].
    #[must_use]
    pub const fn from_order(values: [u64; Self::COUNT]) -> Self {
        let [
            server_assignment_count,
            xact_count,
            query_count,
            client_bytes,
            server_bytes,
            xact_time,
            query_time,
            wait_time,
            client_parse_count,
            server_parse_count,
            bind_count,
        ] = values;
        Self {
            server_assignment_count,
            xact_count,
            query_count,
            client_bytes,
            server_bytes,
            xact_time,
            query_time,
            wait_time,
            client_parse_count,
            server_parse_count,
            bind_count,
        }
    }
}

/// Stops at the largest number: a counter never panics and never runs backwards.
impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        *self = self.combine(other, u64::saturating_add);
    }
}

/// Stops at zero.
impl SubAssign for Counters {
    fn sub_assign(&mut self, other: Self) {
        *self = self.combine(other, u64::saturating_sub);
    }
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// What happened per second of a span; the three times are means per transaction, query and assignment, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Averages(Counters);

impl Averages {
    /// From `older` to `now`, which are `span` apart. Divisions round down; a mean of nothing is 0.
    #[must_use]
    pub fn between(older: Counters, now: Counters, span: Micros) -> Self {
        let mut grown = now;
        grown -= older;
        let per_second = grown.combine(Counters::default(), |count, _| {
            let rate = u128::from(count) * 1_000_000 / u128::from(span.0.max(1));
            u64::try_from(rate).unwrap_or(u64::MAX)
        });
        Self(Counters {
            xact_time: mean(grown.xact_time, grown.xact_count),
            query_time: mean(grown.query_time, grown.query_count),
            wait_time: mean(grown.wait_time, grown.server_assignment_count),
            ..per_second
        })
    }

    /// The figures, under the names of the counters they come from.
    #[must_use]
    pub const fn figures(&self) -> &Counters {
        &self.0
    }

    /// The text of the log line that every `stats_period` brings.
    #[must_use]
    pub fn log_line(&self) -> String {
        Summary { averages: &self.0, unit: "us" }.to_string()
    }

    /// The same for the service manager, as a notification.
    #[must_use]
    pub fn status_notification(&self) -> String {
        format!("STATUS={}", Summary { averages: &self.0, unit: "\u{3bc}s" })
    }
}

const fn mean(total: u64, count: u64) -> u64 {
    match total.checked_div(count) {
        Some(mean) => mean,
        None => 0,
    }
}

struct Summary<'a> {
    averages: &'a Counters,
    unit: &'static str,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { averages: a, unit } = self;
        write!(f, "stats: {} xacts/s, {} queries/s, ", a.xact_count, a.query_count)?;
        write!(f, "{} client parses/s, {} server parses/s, ", a.client_parse_count, a.server_parse_count)?;
        write!(f, "{} binds/s, in {} B/s, out {} B/s, ", a.bind_count, a.client_bytes, a.server_bytes)?;
        write!(f, "xact {} {unit}, query {} {unit}, wait {} {unit}", a.xact_time, a.query_time, a.wait_time)
    }
}

/// The counters of one pool at the last two period ends; zero for a pool that did not exist then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    older: Counters,
    newer: Counters,
}

impl History {
    /// To be called for every pool when a period ends; `Periods::turn` must be called once with it.
    pub const fn turn(&mut self, now: Counters) {
        self.older = self.newer;
        self.newer = now;
    }

    /// What the averages shown are measured from.
    #[must_use]
    pub const fn older(&self) -> Counters {
        self.older
    }
}

/// When the two snapshots were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    newer: Micros,
    /// From the older snapshot to the newer. Before the first period ends the older counts as taken one second before the
    /// start, a time that `Micros` cannot say.
    apart: Micros,
}

impl Periods {
    #[must_use]
    pub const fn start(now: Micros) -> Self {
        Self { newer: now, apart: Micros::from_secs(1) }
    }

    /// A period ends.
    pub const fn turn(&mut self, now: Micros) {
        self.apart = now.since(self.newer);
        self.newer = now;
    }

    /// The time since the older snapshot.
    #[must_use]
    pub fn span(&self, now: Micros) -> Micros {
        now.since(self.newer) + self.apart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(base: u64) -> Counters {
        Counters {
            server_assignment_count: base,
            xact_count: base * 2,
            query_count: base * 3,
            client_bytes: base * 4,
            server_bytes: base * 5,
            xact_time: base * 600,
            query_time: base * 700,
            wait_time: base * 800,
            client_parse_count: base * 9,
            server_parse_count: base * 10,
            bind_count: base * 11,
        }
    }

    #[test]
    fn sums_and_differences() {
        let mut sum: Counters = [counters(1), counters(2)].into_iter().sum();
        assert_eq!(sum, counters(3));
        sum -= counters(1);
        assert_eq!(sum, counters(2));
        sum -= counters(5);
        assert_eq!(sum, Counters::default());
        sum.bind_count = u64::MAX;
        sum += counters(1);
        assert_eq!(sum.bind_count, u64::MAX);
    }

    #[test]
    fn rates_per_second_and_means_per_event() {
        let averages = Averages::between(counters(1), counters(101), Micros::from_secs(60));
        let expected = Counters {
            server_assignment_count: 1,
            xact_count: 3,
            query_count: 5,
            client_bytes: 6,
            server_bytes: 8,
            xact_time: 300,
            query_time: 233,
            wait_time: 800,
            client_parse_count: 15,
            server_parse_count: 16,
            bind_count: 18,
        };
        assert_eq!(*averages.figures(), expected);
    }

    #[test]
    fn nothing_divided_by_nothing_is_nothing() {
        let idle = Averages::between(counters(7), counters(7), Micros::ZERO);
        assert_eq!(idle, Averages::default());
        let only_time = Counters { xact_time: 5, query_time: 5, wait_time: 5, ..Counters::default() };
        assert_eq!(Averages::between(Counters::default(), only_time, Micros::from_secs(1)), Averages::default());
        let huge = Counters { client_bytes: u64::MAX, ..Counters::default() };
        let averages = Averages::between(Counters::default(), huge, Micros(1));
        assert_eq!(averages.figures().client_bytes, u64::MAX);
    }

    #[test]
    fn the_base_is_the_snapshot_before_the_last() {
        let second = Micros::from_secs;
        let mut periods = Periods::start(second(2));
        let mut history = History::default();
        assert_eq!(periods.span(second(2)), second(1));
        assert_eq!(periods.span(second(5)), second(4));

        periods.turn(second(62));
        history.turn(counters(1));
        assert_eq!((history.older(), periods.span(second(62))), (Counters::default(), second(60)));

        periods.turn(second(122));
        history.turn(counters(2));
        assert_eq!((history.older(), periods.span(second(132))), (counters(1), second(70)));
    }

    #[test]
    fn log_lines() {
        let averages = Averages::between(Counters::default(), counters(1), Micros::from_secs(1));
        let text = "stats: 2 xacts/s, 3 queries/s, 9 client parses/s, 10 server parses/s, 11 binds/s, \
                    in 4 B/s, out 5 B/s, xact 300 us, query 233 us, wait 800 us";
        assert_eq!(averages.log_line(), text);
        assert_eq!(averages.status_notification(), format!("STATUS={}", text.replace(" us", " \u{3bc}s")));
    }
}
