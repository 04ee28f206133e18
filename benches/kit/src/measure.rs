//! Run times of processes, and how often which duration was seen.

use std::fs;
use std::time::Duration;

/// Run time of all threads of the processes, microseconds.
pub fn cpu_us(pids: &[u32]) -> f64 {
    let tasks = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    // a thread that ends meanwhile has no file any more
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum::<u64>() as f64 / 1000.0
}

/// Durations in buckets 1.6 % wide.
pub struct Histogram {
    counts: Vec<u64>,
    pub total: u64,
    pub longest: Duration,
}

const STEPS: u64 = 64;

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; (STEPS * 64) as usize], total: 0, longest: Duration::ZERO }
    }

    pub fn add(&mut self, duration: Duration) {
        self.counts[bucket(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))] += 1;
        self.total += 1;
        self.longest = self.longest.max(duration);
    }

    /// Microseconds that a share of all durations does not exceed.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += count;
            below >= wanted.max(1)
        });
        at.map_or(0.0, |at| middle_ns(at) / 1000.0)
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let shift = u64::from(ns.ilog2()) - 6;
    (shift * STEPS + (ns >> shift)) as usize
}

fn middle_ns(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket as f64;
    }
    let shift = bucket / STEPS - 1;
    (((bucket - shift * STEPS) << shift) + (1 << shift) / 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_near_what_was_added() {
        for ns in [1, 63, 64, 65, 127, 128, 1000, 123_456, 9_876_543_210] {
            let mut histogram = Histogram::new();
            histogram.add(Duration::from_nanos(ns));
            let found = histogram.quantile_us(0.5) * 1000.0;
            assert!((found - ns as f64).abs() <= ns as f64 * 0.016, "{found} for {ns}");
        }
    }
}
