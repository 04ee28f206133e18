//! What is counted and timed for a pool: one cell for each worker, written by that worker alone and read by anybody.
//!
//! One writer needs no locked instruction: it loads, adds and stores, and readers see whole numbers. The histograms of a
//! cell, five kilobytes, are made when the worker first times something for the pool, and never again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::WorkerId;
use crate::stats::Counters;
use crate::stats::histogram::{BUCKETS, Span, Times, bucket};
use crate::time::Micros;

/// The cells of a pool.
#[derive(Debug)]
pub(super) struct Cells(Box<[Cell]>);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell {
    counters: [AtomicU64; Counters::COUNT],
    times: OnceLock<Box<[Timed; Span::COUNT]>>,
}

/// The atomic twin of a [`crate::stats::histogram::Histogram`].
#[derive(Debug)]
struct Timed {
    sum_us: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Timed {
    fn new() -> Self {
        Self { sum_us: AtomicU64::new(0), buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Cells {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Cell::default()).collect())
    }

    #[inline]
    pub(super) fn add(&self, worker: WorkerId, tally: &Counters) {
        let Some(cell) = self.0.get(usize::from(worker)) else { return };
        for (counter, &more) in cell.counters.iter().zip(&tally.in_order()) {
            if more > 0 {
                grow(counter, more);
            }
        }
    }

    #[inline]
    pub(super) fn record(&self, worker: WorkerId, span: Span, took: Micros) {
        let Some(cell) = self.0.get(usize::from(worker)) else { return };
        let timed = &cell.times.get_or_init(|| Box::new(std::array::from_fn(|_| Timed::new())))[span as usize];
        grow(&timed.buckets[bucket(took)], 1);
        grow(&timed.sum_us, took.0);
    }

    pub(super) fn counters(&self) -> Counters {
        let mut sum = [0_u64; Counters::COUNT];
        for cell in &self.0 {
            for (total, counter) in sum.iter_mut().zip(&cell.counters) {
                *total = total.wrapping_add(counter.load(Ordering::Relaxed));
            }
        }
        Counters::from_order(sum)
    }

    pub(super) fn times(&self) -> Times {
        let mut sum = Times::default();
        for times in self.0.iter().filter_map(|cell| cell.times.get()) {
            for (span, timed) in Span::ALL.into_iter().zip(times.iter()) {
                let total = sum.of_mut(span);
                total.sum_us = total.sum_us.wrapping_add(timed.sum_us.load(Ordering::Relaxed));
                for (count, counter) in total.buckets.iter_mut().zip(&timed.buckets) {
                    *count = count.wrapping_add(counter.load(Ordering::Relaxed));
                }
            }
        }
        sum
    }
}

#[inline]
fn grow(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// What a worker has done, written by itself alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Load {
    /// Turns of clients.
    pub turns: AtomicU64,
    /// Time between a wake-up and the next sleep, microseconds.
    pub busy_us: AtomicU64,
}

impl Load {
    #[inline]
    pub fn worked(&self, turns: u64, busy: Micros) {
        grow(&self.turns, turns);
        grow(&self.busy_us, busy.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_added_up() {
        let cells = Cells::new(2);
        cells.add(0, &Counters { query_count: 2, ..Counters::default() });
        cells.add(1, &Counters { query_count: 3, ..Counters::default() });
        assert_eq!(cells.counters().query_count, 5);
        assert_eq!(cells.times(), Times::default());
        cells.record(0, Span::Query, Micros(100));
        cells.record(1, Span::Query, Micros(100));
        cells.record(1, Span::Wait, Micros::ZERO);
        // no such worker
        cells.record(2, Span::Wait, Micros::ZERO);
        let times = cells.times();
        assert_eq!((times.of(Span::Query).count(), times.of(Span::Query).sum_us), (2, 200));
        assert_eq!(times.of(Span::Query).percentile(50), times.of(Span::Query).percentile(100));
        assert_eq!(times.of(Span::Wait).count(), 1);
    }
}
