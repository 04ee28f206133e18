//! How long things took, in log-linear buckets: every power of two of microseconds is cut into four.
//!
//! A bucket is at most a quarter as wide as the times in it, so that a percentile is known to within 25 %; times beyond
//! [`LONGEST`] count in the last one. Recording is an index from the number of leading zeros and two additions; the shell
//! has the atomic twin of [`Histogram`] (`shared/cells.rs`), written by one worker alone.

use std::ops::{AddAssign, SubAssign};

use crate::time::Micros;

/// Buckets of a histogram.
pub const BUCKETS: usize = 124;

/// The last bucket begins below this; about 71 minutes.
pub const LONGEST: Micros = Micros(1 << 32);

/// Each power of two is cut into `1 << CUTS` buckets.
const CUTS: u32 = 2;

/// What is timed, for each pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// From asking for a server to having one; zero for whoever found one idle.
    Wait,
    /// From a request to ReadyForQuery.
    Query,
    /// The same, to the end of the transaction.
    Transaction,
    /// From the launch of a server connection to its first use.
    ServerLogin,
    /// From a client's connect to the end of its login.
    ClientLogin,
}

impl Span {
    pub const COUNT: usize = 5;
    pub const ALL: [Self; Self::COUNT] =
        [Self::Wait, Self::Query, Self::Transaction, Self::ServerLogin, Self::ClientLogin];
}

/// The bucket that a time counts in.
#[inline]
#[must_use]
pub const fn bucket(time: Micros) -> usize {
    let us = time.0;
    if us < 1 << CUTS {
        return us as usize;
    }
    let power = us.ilog2();
    let index = (((power - CUTS + 1) << CUTS) as usize) + ((us >> (power - CUTS)) as usize & ((1 << CUTS) - 1));
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The first time above those of a bucket.
#[must_use]
const fn end_of(bucket: usize) -> Micros {
    let cut = bucket as u64 & ((1 << CUTS) - 1);
    match (bucket >> CUTS) as u32 {
        0 => Micros(cut + 1),
        power => Micros(((1 << CUTS) + cut + 1) << (power - 1)),
    }
}

/// Times that were taken, by bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    pub buckets: [u64; BUCKETS],
    /// All times together, microseconds.
    pub sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_us: 0 }
    }
}

impl Histogram {
    /// How many times were taken.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many were shorter than `1 << power` microseconds.
    #[must_use]
    pub fn below_power(&self, power: u32) -> u64 {
        self.buckets[..bucket(Micros(1 << power))].iter().sum()
    }

    /// The time that `percent` of all did not exceed, or nearly so: the end of its bucket. `None` when there are none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Option<Micros> {
        let count = self.count();
        let rank = u128::from(count) * u128::from(percent.min(100));
        let rank = u64::try_from(rank.div_ceil(100)).unwrap_or(count).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|&more| {
            seen += more;
            seen >= rank
        })?;
        Some(end_of(found) - Micros(1))
    }
}

impl AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

/// What has come since `other` was taken.
impl SubAssign<&Self> for Histogram {
    fn sub_assign(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_sub(*theirs);
        }
        self.sum_us = self.sum_us.saturating_sub(other.sum_us);
    }
}

/// One histogram for each [`Span`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times([Histogram; Span::COUNT]);

impl Times {
    #[must_use]
    pub const fn of(&self, span: Span) -> &Histogram {
        &self.0[span as usize]
    }

    pub const fn of_mut(&mut self, span: Span) -> &mut Histogram {
        &mut self.0[span as usize]
    }
}

impl AddAssign<&Self> for Times {
    fn add_assign(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}

impl SubAssign<&Self> for Times {
    fn sub_assign(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine -= theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for &us in times {
            histogram.buckets[bucket(Micros(us))] += 1;
            histogram.sum_us += us;
        }
        histogram
    }

    #[test]
    fn buckets_follow_each_other_and_are_a_quarter_wide() {
        for at in 0..BUCKETS - 1 {
            let end = end_of(at);
            assert_eq!(bucket(end - Micros(1)), at, "last of {at}");
            assert_eq!(bucket(end), at + 1, "first of {}", at + 1);
            let width = end_of(at + 1) - end;
            assert!(width.0 == 1 || width.0 * 4 <= end.0, "{at}: {width:?}");
        }
        assert_eq!(end_of(BUCKETS - 1), LONGEST);
        for far in [LONGEST.0, u64::MAX] {
            assert_eq!(bucket(Micros(far)), BUCKETS - 1);
        }
    }

    #[test]
    fn powers_of_two_are_ends_of_buckets() {
        let histogram = of(&[0, 63, 64, 65, 127, 128, 5_000_000]);
        for (power, below) in [(6, 2), (7, 5), (8, 6), (22, 6), (23, 7)] {
            assert_eq!(histogram.below_power(power), below, "{power}");
        }
        assert_eq!((histogram.count(), histogram.sum_us), (7, 5_000_447));
    }

    #[test]
    fn percentiles_are_within_a_quarter() {
        assert_eq!(Histogram::default().percentile(50), None);
        assert_eq!(of(&[0]).percentile(99), Some(Micros(0)));
        let histogram = of(&(1..=1000).collect::<Vec<_>>());
        for (percent, exact) in [(50, 500), (95, 950), (99, 990), (100, 1000)] {
            let found = histogram.percentile(percent).expect("there are times").0;
            assert!((exact..=exact * 5 / 4).contains(&found), "p{percent}: {found}");
        }
        assert_eq!(histogram.percentile(0), Some(Micros(1)));
    }

    #[test]
    fn sums_and_differences() {
        let mut times = Times::default();
        *times.of_mut(Span::Query) += &of(&[1, 2]);
        let older = times.clone();
        *times.of_mut(Span::Query) += &of(&[3]);
        times -= &older;
        assert_eq!(times.of(Span::Query), &of(&[3]));
        assert_eq!(times.of(Span::Wait), &Histogram::default());
        times += &older;
        assert_eq!(times.of(Span::Query), &of(&[1, 2, 3]));
    }
}
