//! Threads for the steps of TLS handshakes that compute much, such as signing with an RSA key.
//!
//! Who is in the middle of a query has precedence. A niceness does not give it: the kernel lets a thread that runs finish its
//! slice of some milliseconds, however nice, before one that wakes up gets the core. Only threads of the idle class give way
//! at once; but where all cores are busy they hardly ever run. So steps are first for threads of that class, and what they
//! have left waiting for [`PATIENCE`] is taken by threads that are merely nice.
//!
//! Where that does not do either, logins themselves are late: what has waited for [`LONG_PATIENCE`] is taken by threads that
//! yield to nobody as well.
//!
//! What a thread of the idle class has taken it keeps. One that was kept from its core for long learns that the machine has
//! none to spare: those threads rest then for [`REST`], lest a login take seconds, or a lock be held that long.

pub mod steps;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::sys::priority;
use crate::time::Micros;
use steps::{Patience, Steps};

/// How long a step may wait for an idle core.
const PATIENCE: Micros = Micros::from_millis(20);

/// How long a step may wait because others have precedence.
const LONG_PATIENCE: Micros = Micros::from_millis(100);

/// A step that took so much longer than its processor time did not get the core.
const KEPT_WAITING: Micros = Micros::from_millis(50);

/// How long nothing is left to idle cores when there are none.
const REST: Micros = Micros::from_millis(10_000);

type Step = Box<dyn FnOnce() + Send>;

/// The steps that wait, and the threads, which begin with the first step.
pub struct Helpers {
    steps: Steps<Step>,
    started: Mutex<bool>,
    /// Of each kind.
    threads: usize,
    have_cores: bool,
}

impl Helpers {
    #[must_use]
    pub fn new(threads: usize, have_cores: bool) -> Arc<Self> {
        let patience = Patience { any: PATIENCE, all: LONG_PATIENCE };
        Arc::new(Self { steps: Steps::new(patience), started: Mutex::new(false), threads, have_cores })
    }

    /// Are there more cores than workers?
    #[must_use]
    pub const fn have_cores(&self) -> bool {
        self.have_cores
    }

    /// Has a step that waits since then computed as soon as there is a core for it.
    pub fn compute(self: &Arc<Self>, since: Micros, step: impl FnOnce() + Send + 'static) {
        self.steps.push(Box::new(step), since);
        let mut started = self.started.lock();
        if !*started {
            *started = self.start();
        }
    }

    /// Whether at least one thread runs.
    fn start(self: &Arc<Self>) -> bool {
        let spawn = |run: fn(&Self)| {
            let helpers = self.clone();
            let started = std::thread::Builder::new().name("handshakes".to_owned()).spawn(move || run(&helpers));
            started.map_err(|error| tracing::error!("cannot start a thread for TLS handshakes: {error}")).is_ok()
        };
        (0..self.threads)
            .fold(false, |any, _| spawn(Self::run_idle) | spawn(Self::run_nice) | spawn(Self::run_plain) | any)
    }

    fn run_idle(&self) {
        if !priority::only_when_idle() {
            priority::stand_back();
        }
        loop {
            let step = self.steps.next(Clock::now);
            let (began, had) = (Clock::now(), Clock::of_thread());
            step();
            let (now, spent) = (Clock::now(), Clock::of_thread().since(had));
            if now.since(began) > spent + KEPT_WAITING {
                self.steps.rest(now + REST);
            }
        }
    }

    fn run_nice(&self) {
        priority::stand_back();
        loop {
            let step = self.steps.overdue(Clock::now);
            step();
        }
    }

    fn run_plain(&self) {
        loop {
            let step = self.steps.long_overdue(Clock::now);
            step();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn every_step_is_computed_once() {
        let helpers = Helpers::new(2, true);
        let (done, results) = channel();
        for number in 0..1000 {
            let done = done.clone();
            helpers.compute(Clock::now(), move || done.send(number).expect("the test waits"));
        }
        let mut all: Vec<_> = (0..1000).map(|_| results.recv_timeout(LONG).expect("a result")).collect();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn what_gets_no_idle_core_is_taken_by_others() {
        let helpers = Helpers::new(1, true);
        let (begun, begins) = channel();
        let (release, released) = channel::<()>();
        helpers.compute(Clock::now(), move || {
            begun.send(()).expect("the test waits");
            let _ = released.recv_timeout(LONG);
        });
        begins.recv_timeout(LONG).expect("one thread has it, and will not come back");
        let (done, result) = channel();
        for number in 0..10 {
            let done = done.clone();
            helpers.compute(Clock::now(), move || done.send(number).expect("the test waits"));
        }
        let order: Vec<_> = (0..10).map(|_| result.recv_timeout(LONG).expect("taken by the other thread")).collect();
        assert_eq!(order, (0..10).collect::<Vec<_>>());
        drop(release);
    }
}
