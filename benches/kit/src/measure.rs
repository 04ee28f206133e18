//! Run times of processes, and how often which number was seen.

use std::fs;

/// Run time of all threads of the processes, microseconds.
pub fn cpu_us(pids: &[u32]) -> f64 {
    let tasks = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    // a thread that ends meanwhile has no file any more
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum::<u64>() as f64 / 1000.0
}

/// Numbers in buckets 1.6 % wide.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    pub largest: u64,
}

const STEPS: u64 = 64;

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; (STEPS * 64) as usize], total: 0, largest: 0 }
    }

    pub fn add(&mut self, number: u64) {
        self.counts[bucket(number)] += 1;
        self.total += 1;
        self.largest = self.largest.max(number);
    }

    /// What a share of all numbers does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += count;
            below >= wanted.max(1)
        });
        at.map_or(0.0, middle)
    }
}

fn bucket(number: u64) -> usize {
    if number < STEPS {
        return number as usize;
    }
    let shift = u64::from(number.ilog2()) - 6;
    (shift * STEPS + (number >> shift)) as usize
}

fn middle(bucket: usize) -> f64 {
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
        for number in [1, 63, 64, 65, 127, 128, 1000, 123_456, 9_876_543_210] {
            let mut histogram = Histogram::new();
            histogram.add(number);
            let found = histogram.quantile(0.5);
            assert!((found - number as f64).abs() <= number as f64 * 0.016, "{found} for {number}");
        }
    }
}
