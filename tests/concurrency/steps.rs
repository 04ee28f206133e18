//! Every step for the helpers is computed once, whoever of them is awake.

use std::sync::atomic::{AtomicU64, Ordering};

use pgusher::helpers::steps::{Patience, Steps};
use pgusher::time::Micros;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use super::in_many_orders;
use super::scheduled::Scheduled;

const STEPS: u64 = 4;

const PATIENCE: Patience = Patience { any: Micros(10), all: Micros(20) };

/// Steps come, `idle` threads take any, unless they rest, and `nice` ones those that are overdue. A step without a number sends
/// one thread home.
fn scene(idle: usize, nice: usize, rests: Micros) {
    let steps: Arc<Steps<Option<u64>, Scheduled>> = Arc::new(Steps::new(PATIENCE));
    let computed = Arc::new(Mutex::new(Vec::new()));
    let clock = Arc::new(AtomicU64::new(1));
    let threads: Vec<_> = (0..idle + nice)
        .map(|thread| {
            let (steps, computed, clock) = (steps.clone(), computed.clone(), clock.clone());
            let now = move || Micros(clock.fetch_add(thread_rng().gen_range(0..10), Ordering::Relaxed));
            thread::spawn(move || {
                while let Some(step) = if thread < idle { steps.next(&now) } else { steps.overdue(&now) } {
                    computed.lock().expect("nobody panics").push(step);
                }
            })
        })
        .collect();
    if !rests.is_zero() {
        steps.rest(rests);
    }
    let homeward = (0..threads.len()).map(|_| None);
    for step in (0..STEPS).map(Some).chain(homeward) {
        steps.push(step, Micros(clock.load(Ordering::Relaxed)));
    }
    threads.into_iter().for_each(|thread| thread.join().expect("it has gone home"));
    let mut computed = computed.lock().expect("nobody panics").clone();
    computed.sort_unstable();
    assert_eq!(computed, (0..STEPS).collect::<Vec<_>>());
}

#[test]
fn every_step_is_computed_once() {
    in_many_orders(200, || scene(1, 1, Micros::ZERO));
    in_many_orders(200, || scene(2, 2, Micros::ZERO));
}

/// As where no core is ever idle, and where those that wait for one have been told so.
#[test]
fn what_nobody_takes_in_time_is_taken_by_others() {
    in_many_orders(200, || scene(0, 2, Micros::ZERO));
    in_many_orders(200, || scene(1, 1, Micros(40)));
}

/// One thread takes an overdue step and is kept from its core with it. It has called for help.
#[test]
fn what_has_waited_far_too_long_is_taken_by_everybody() {
    in_many_orders(200, || {
        let steps: Arc<Steps<u64, Scheduled>> = Arc::new(Steps::new(PATIENCE));
        let now = || PATIENCE.all + Micros(1);
        let helping = steps.clone();
        let helper = thread::spawn(move || (1..STEPS).map(|_| helping.long_overdue(now)).collect::<Vec<_>>());
        (0..STEPS).for_each(|step| steps.push(step, Micros(1)));
        let mut taken = vec![steps.overdue(now)];
        taken.extend(helper.join().expect("it was called"));
        taken.sort_unstable();
        assert_eq!(taken, (0..STEPS).collect::<Vec<_>>());
    });
}

/// As before, but the threads that take overdue steps have each taken one before the others came.
#[test]
fn who_comes_calls_for_help_with_who_has_waited_far_too_long() {
    in_many_orders(200, || {
        let steps: Arc<Steps<u64, Scheduled>> = Arc::new(Steps::new(PATIENCE));
        let helping = steps.clone();
        let helper = thread::spawn(move || helping.long_overdue(|| PATIENCE.all + Micros(1)));
        steps.push(0, Micros(1));
        steps.push(1, PATIENCE.all + Micros(1));
        assert_eq!(helper.join().expect("it was called"), 0);
    });
}
