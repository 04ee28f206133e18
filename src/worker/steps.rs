//! Where the steps of TLS handshakes that compute much are computed.
//!
//! Helpers compute them, so that nobody waits for them who is in the middle of a query. Where there are no more cores than
//! workers, helpers only take turns with the workers: every message that arrives meanwhile interrupts a step, which costs a
//! seventh more for an RSA handshake. So there a worker computes a step itself when it has nothing else to do and none of
//! its clients is in the middle of anything; whoever speaks then waits for one step at most.

use std::collections::VecDeque;

use crate::clock::Clock;
use crate::id::{ClientRef, ServerId};
use crate::net::tls;
use crate::net::tls::session::Work;
use crate::shared::Message;
use crate::time::Micros;
use crate::worker::Worker;
use crate::worker::table::Place;

/// Steps that take longer on average, or one that takes twice as long, are left to the helpers: no turn of a worker should
/// take longer.
const LONGEST: Micros = Micros(500);

/// For how long they are then, before the worker tries one again: there may be another key.
const LEFT_TO_HELPERS: Micros = Micros::from_millis(60_000);

/// A step waits no longer for its worker to have nothing else to do.
const PATIENCE: Micros = Micros::from_millis(20);

/// Whose handshake it is.
#[derive(Clone, Copy, Debug)]
pub enum Whose {
    Client(ClientRef),
    Server(ServerId),
}

/// What is to be done about the first step that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Here,
    Helpers,
}

/// How things stand at a worker.
#[derive(Clone, Copy, Debug)]
struct Scene {
    now: Micros,
    /// Are there cores besides those of the workers?
    spare_cores: bool,
    /// The last look for events found none.
    idle: bool,
    /// A client is in the middle of something.
    linked: bool,
}

/// The steps of a worker's handshakes; `S` is what a step is.
#[derive(Debug)]
pub(super) struct Steps<S = (Whose, Box<Work>)> {
    waiting: VecDeque<(Micros, S)>,
    /// Steps that helpers have.
    away: usize,
    /// Of the steps computed here, the later ones counting for more.
    cost: Micros,
    left_until: Micros,
}

impl<S> Default for Steps<S> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), away: 0, cost: Micros::ZERO, left_until: Micros::ZERO }
    }
}

impl<S> Steps<S> {
    fn push(&mut self, step: S, now: Micros) {
        self.waiting.push_back((now, step));
    }

    /// How long the worker may sleep. A step that is away ends its sleep; should a helper be kept from its core the worker
    /// looks whether a step has waited too long.
    pub(super) fn sleep(&self) -> Option<Micros> {
        let sleep = if self.away == 0 { Micros::ZERO } else { PATIENCE };
        (!self.waiting.is_empty()).then_some(sleep)
    }

    /// A helper gave a step back.
    pub(super) fn returned(&mut self) {
        self.away = self.away.saturating_sub(1);
    }

    fn took(&mut self, spent: Micros, now: Micros) {
        self.cost = Micros((3 * self.cost.0 + spent.0) / 4);
        if self.cost > LONGEST || spent.0 > 2 * LONGEST.0 {
            (self.cost, self.left_until) = (Micros::ZERO, now + LEFT_TO_HELPERS);
        }
    }

    fn verdict(&self, scene: Scene) -> Verdict {
        let Some((since, _)) = self.waiting.front() else { return Verdict::Wait };
        let late = scene.now.since(*since) >= PATIENCE;
        if scene.spare_cores || late || scene.now < self.left_until {
            Verdict::Helpers
        } else if !scene.idle || self.away > 0 {
            // what a helper has begun would not get on while the worker computes
            Verdict::Wait
        } else if scene.linked {
            Verdict::Helpers
        } else {
            Verdict::Here
        }
    }
}

impl Worker {
    pub(super) fn push_step(&mut self, whose: Whose, work: Box<Work>) {
        self.steps.push((whose, work), self.now);
    }

    /// Has steps computed. `idle`: the last look for events found none.
    pub(super) fn handshake_steps(&mut self, idle: bool) {
        if self.steps.waiting.is_empty() {
            return;
        }
        let linked = self.places.linked().next().is_some() || !tls::is_prepared();
        let scene = Scene { now: self.now, spare_cores: self.shared.helpers.have_cores(), idle, linked };
        loop {
            let verdict = self.steps.verdict(scene);
            if verdict == Verdict::Wait {
                return;
            }
            let Some((since, step)) = self.steps.waiting.pop_front() else { return };
            if verdict == Verdict::Here {
                return self.compute_step(step);
            }
            self.give_to_helpers(step, since);
        }
    }

    fn compute_step(&mut self, (whose, mut work): (Whose, Box<Work>)) {
        if !self.is_there(whose) {
            return;
        }
        let had = Clock::of_thread();
        self.shared.guard.run("a step of a TLS handshake", || work.run());
        let spent = Clock::of_thread().since(had);
        self.steps.took(spent, self.now);
        self.stepped(whose, *work);
    }

    fn is_there(&mut self, whose: Whose) -> bool {
        match whose {
            Whose::Client(client) => self.clients.get(client).is_some(),
            Whose::Server(server) => matches!(self.places.get_mut(server), Some(Place::Opening(_))),
        }
    }

    /// A helper has computed a step.
    pub(super) fn helped(&mut self, whose: Whose, work: Work) {
        self.steps.returned();
        self.stepped(whose, work);
    }

    fn stepped(&mut self, whose: Whose, work: Work) {
        match whose {
            Whose::Client(client) => self.client_shook(client, work),
            Whose::Server(server) => {
                self.turning.attends(Some(server));
                self.server_shook(server, work);
                self.turning.attends(None);
            }
        }
    }

    fn give_to_helpers(&mut self, (whose, mut work): (Whose, Box<Work>), since: Micros) {
        self.steps.away += 1;
        let (shared, worker) = (self.shared.clone(), self.id);
        self.shared.helpers.compute(since, move || {
            shared.guard.run("a step of a TLS handshake", || work.run());
            shared.post(worker).send(Message::Helped { whose, work });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Scene = Scene { now: Micros(1_000), spare_cores: false, idle: true, linked: false };

    fn waiting(count: usize) -> Steps<usize> {
        let mut steps = Steps::default();
        (0..count).for_each(|step| steps.push(step, QUIET.now));
        steps
    }

    #[test]
    fn spare_cores_get_every_step_at_once() {
        let steps = Steps { away: 3, ..waiting(2) };
        let busy = Scene { spare_cores: true, idle: false, linked: true, ..QUIET };
        assert_eq!(steps.verdict(busy), Verdict::Helpers);
        assert_eq!(steps.verdict(Scene { linked: false, idle: true, ..busy }), Verdict::Helpers);
    }

    #[test]
    fn a_worker_computes_when_that_holds_up_nobody() {
        let mut steps = waiting(2);
        assert_eq!(steps.verdict(QUIET), Verdict::Here);
        assert_eq!(steps.verdict(Scene { idle: false, ..QUIET }), Verdict::Wait, "there are events first");
        assert_eq!(steps.sleep(), Some(Micros::ZERO), "and then it goes on");
        assert_eq!(steps.verdict(Scene { linked: true, ..QUIET }), Verdict::Helpers, "a query is being answered");
        steps.away = 1;
        assert_eq!(steps.verdict(QUIET), Verdict::Wait, "the helper has the core");
        assert_eq!(steps.sleep(), Some(PATIENCE));
        steps.returned();
        assert_eq!(steps.verdict(QUIET), Verdict::Here);
    }

    #[test]
    fn no_step_waits_for_ever() {
        let steps = Steps { away: 1, ..waiting(1) };
        let busy = Scene { idle: false, ..QUIET };
        assert_eq!(steps.verdict(busy), Verdict::Wait);
        assert_eq!(steps.verdict(Scene { now: busy.now + PATIENCE, ..busy }), Verdict::Helpers);
    }

    #[test]
    fn long_steps_are_for_helpers() {
        let mut steps = waiting(1);
        // a signature now and then takes twice as long as the others
        for spent in [300, 300, 300, 600, 300, 300, 600] {
            steps.took(Micros(spent), QUIET.now);
            assert_eq!(steps.verdict(QUIET), Verdict::Here);
        }
        let mut slow = waiting(1);
        for _ in 0..4 {
            slow.took(Micros(800), QUIET.now);
        }
        steps.took(Micros(1_600), QUIET.now);
        for dear in [&steps, &slow] {
            assert_eq!(dear.verdict(Scene { idle: false, ..QUIET }), Verdict::Helpers, "at once");
        }
        let mut steps = Steps { left_until: steps.left_until, ..Steps::default() };
        let later = QUIET.now + LEFT_TO_HELPERS;
        steps.push(1, later);
        assert_eq!(steps.verdict(Scene { now: later, ..QUIET }), Verdict::Here, "it may be another key now");
    }

    #[test]
    fn sleeps_as_ever_when_no_step_waits() {
        assert_eq!(Steps { away: 1, ..waiting(0) }.sleep(), None);
    }
}
