//! The line of steps, and who takes one when.

use std::collections::VecDeque;
use std::time::Duration;

use crate::primitives::{Os, Primitives};
use crate::time::Micros;

/// Steps `S` in order, each with the time of its arrival.
pub struct Steps<S, P = Os>
where
    S: Send + 'static,
    P: Primitives,
{
    line: P::Mutex<Line<S>>,
    idle: P::Condvar,
    nice: P::Condvar,
    plain: P::Condvar,
    patience: Patience,
}

/// How long a step waits for which threads.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For those that take any, before those take it that take overdue ones only.
    pub any: Micros,
    /// For all of these, before threads with no less precedence than others help them.
    pub all: Micros,
}

struct Line<S> {
    waiting: VecDeque<(Micros, S)>,
    /// Until then no thread may take what is not overdue, and everything is.
    rests_until: Micros,
}

impl<S: Send + 'static, P: Primitives> Steps<S, P> {
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        let [idle, nice, plain] = std::array::from_fn(|_| P::Condvar::default());
        let line = Line { waiting: VecDeque::new(), rests_until: Micros::ZERO };
        Self { line: P::mutex(line), idle, nice, plain, patience }
    }

    /// `since`: it has waited elsewhere from then on.
    pub fn push(&self, step: S, since: Micros) {
        let (first, late) = {
            let mut line = P::lock(&self.line);
            let place = line.waiting.iter().rposition(|(other, _)| *other <= since).map_or(0, |before| before + 1);
            line.waiting.insert(place, (since, step));
            (place == 0, since.since(line.waiting[0].0) >= self.patience.all)
        };
        P::notify_one(&self.idle);
        if late {
            P::notify_one(&self.plain);
        }
        if first {
            P::notify_one(&self.nice);
        }
    }

    /// Leaves all steps to the threads that take overdue ones, for some time.
    pub fn rest(&self, until: Micros) {
        P::lock(&self.line).rests_until = until;
        P::notify_one(&self.nice);
    }

    /// Waits for a step; `now` reads the clock.
    pub fn next(&self, now: impl Fn() -> Micros) -> S {
        let mut line = P::lock(&self.line);
        loop {
            let rests = line.rests_until.since(now());
            if !rests.is_zero() {
                P::wait_for(&self.idle, &mut line, Duration::from_micros(rests.0));
                continue;
            }
            match line.waiting.pop_front() {
                Some((_, step)) => return step,
                None => P::wait(&self.idle, &mut line),
            }
        }
    }

    /// Waits for a step that has waited too long, and calls for help if the next one has waited far too long; `now` reads the
    /// clock.
    pub fn overdue(&self, now: impl Fn() -> Micros) -> S {
        let mut line = P::lock(&self.line);
        loop {
            let Some(&(since, _)) = line.waiting.front() else {
                P::wait(&self.nice, &mut line);
                continue;
            };
            let now = now();
            let resting = line.rests_until > now;
            let left = if resting { Micros::ZERO } else { (since + self.patience.any).since(now) };
            if !left.is_zero() {
                P::wait_for(&self.nice, &mut line, Duration::from_micros(left.0));
            } else if let Some((_, step)) = line.waiting.pop_front() {
                if let Some((since, _)) = line.waiting.front() {
                    P::notify_one(&self.nice);
                    if now.since(*since) >= self.patience.all {
                        P::notify_one(&self.plain);
                    }
                }
                return step;
            }
        }
    }

    /// Waits to be called for help with a step; `now` reads the clock.
    pub fn long_overdue(&self, now: impl Fn() -> Micros) -> S {
        let mut line = P::lock(&self.line);
        loop {
            let late = line.waiting.front().is_some_and(|(since, _)| now().since(*since) >= self.patience.all);
            match late.then(|| line.waiting.pop_front()).flatten() {
                Some((_, step)) => return step,
                None => P::wait(&self.plain, &mut line),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const PATIENCE: Patience = Patience { any: Micros(1000), all: Micros(5000) };

    #[test]
    fn who_has_waited_longest_is_first() {
        let steps: Steps<u32> = Steps::new(PATIENCE);
        for (step, since) in [(1, 10), (2, 30), (3, 20), (4, 5), (5, 30)] {
            steps.push(step, Micros(since));
        }
        let now = || Micros(1_010);
        assert_eq!((steps.overdue(now), steps.overdue(now)), (4, 1));
        assert_eq!(std::array::from_fn(|_| steps.next(now)), [3, 2, 5]);
    }

    #[test]
    fn what_waits_during_a_rest_is_overdue_at_once() {
        let steps: Steps<u32> = Steps::new(PATIENCE);
        let time = Cell::new(Micros(1));
        let now = || time.get();
        steps.push(1, now());
        assert_eq!(steps.next(now), 1);
        steps.rest(Micros(500));
        steps.push(2, now());
        assert_eq!(steps.overdue(now), 2, "long before its time");
        steps.push(3, now());
        // a clock that goes on when it is looked at: the step is left until the rest is over
        let looks = Cell::new(0);
        let later = || {
            looks.set(looks.get() + 1);
            Micros(200 * looks.get())
        };
        assert_eq!((steps.next(later), looks.get()), (3, 3));
    }

    #[test]
    fn what_has_waited_far_too_long_is_for_everybody() {
        let steps: Steps<u32> = Steps::new(PATIENCE);
        for (step, since) in [(1, 10), (2, 20), (3, 30)] {
            steps.push(step, Micros(since));
        }
        assert_eq!(steps.long_overdue(|| Micros(5_010)), 1);
        // a clock that goes on when it is looked at: it is too early, and nobody calls
        let time = Cell::new(Micros(5_019));
        let now = || time.replace(Micros(5_020));
        assert_eq!(steps.overdue(now), 2, "by those who take what is overdue");
        assert_eq!(steps.long_overdue(|| Micros(5_030)), 3);
    }
}
