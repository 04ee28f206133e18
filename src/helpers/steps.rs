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
    line: P::Mutex<VecDeque<(Micros, S)>>,
    idle: P::Condvar,
    nice: P::Condvar,
    patience: Micros,
}

impl<S: Send + 'static, P: Primitives> Steps<S, P> {
    /// `patience`: how long a step waits for a thread that takes any, before those take it that take overdue ones only.
    #[must_use]
    pub fn new(patience: Micros) -> Self {
        let (idle, nice) = (P::Condvar::default(), P::Condvar::default());
        Self { line: P::mutex(VecDeque::new()), idle, nice, patience }
    }

    pub fn push(&self, step: S, now: Micros) {
        let first = {
            let mut line = P::lock(&self.line);
            line.push_back((now, step));
            line.len() == 1
        };
        P::notify_one(&self.idle);
        if first {
            P::notify_one(&self.nice);
        }
    }

    /// Waits for a step.
    pub fn next(&self) -> S {
        let mut line = P::lock(&self.line);
        loop {
            match line.pop_front() {
                Some((_, step)) => return step,
                None => P::wait(&self.idle, &mut line),
            }
        }
    }

    /// Waits for a step that has waited too long; `now` reads the clock.
    pub fn overdue(&self, now: impl Fn() -> Micros) -> S {
        let mut line = P::lock(&self.line);
        loop {
            let Some((since, _)) = line.front() else {
                P::wait(&self.nice, &mut line);
                continue;
            };
            let left = (*since + self.patience).since(now());
            if !left.is_zero() {
                P::wait_for(&self.nice, &mut line, Duration::from_micros(left.0));
            } else if let Some((_, step)) = line.pop_front() {
                if !line.is_empty() {
                    P::notify_one(&self.nice);
                }
                return step;
            }
        }
    }
}
