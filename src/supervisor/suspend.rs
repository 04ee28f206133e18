//! SUSPEND: from the command, over the rest of all workers, to its answer.
//!
//! The workers are asked again and again whether their sockets are at rest. When all are, everything is frozen, and looked
//! over twice more: what somebody had done for a neighbour a moment before he was frozen is then known.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::log;
use crate::pool::PauseMode;
use crate::shared::{Hold, Message, Patience};
use crate::supervisor::{Exit, Supervisor};
use crate::time::Micros;

/// How long to wait between two looks at the workers.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks that must find everything frozen and at rest.
const CERTAIN: u32 = 2;

/// A SUSPEND under way.
#[derive(Debug)]
pub(crate) struct Suspending {
    patience: Patience,
    /// When those not at rest are closed.
    deadline: Option<Micros>,
    /// Everything is frozen, and this many looks have found it at rest.
    frozen: Option<u32>,
}

impl Supervisor {
    /// The command.
    ///
    /// # Errors
    /// The text of the console's error.
    pub(super) fn suspend(&mut self, patience: Patience) -> Result<(), String> {
        let now = Clock::now();
        self.pools(|broker| broker.pools.suspend(now))?;
        let timeout = self.live.config.settings.suspend_timeout;
        let deadline = (!timeout.is_zero()).then_some(now + timeout);
        self.suspending = Some(Suspending { patience, deadline, frozen: None });
        self.hold(Hold::Draining(patience));
        Ok(())
    }

    fn hold(&self, hold: Hold) {
        for post in &self.shared.posts {
            post.send(Message::Hold(hold));
        }
    }

    /// One look at the workers.
    pub(super) async fn suspend_step(&mut self) {
        let restless = self.restless().await;
        let now = Clock::now();
        let Some(suspending) = &mut self.suspending else { return };
        let patience = suspending.patience;
        if restless > 0 {
            if suspending.frozen.take().is_some() {
                self.pools(|broker| broker.pools.thaw(now));
                self.hold(Hold::Draining(patience));
            } else if suspending.deadline.is_some_and(|deadline| now > deadline) {
                for post in &self.shared.posts {
                    post.send(Message::SuspendTimeout);
                }
            }
            return;
        }
        match &mut suspending.frozen {
            None => {
                suspending.frozen = Some(0);
                self.pools(|broker| broker.pools.freeze());
                self.hold(Hold::Frozen(patience));
            }
            Some(looks) if *looks < CERTAIN => *looks += 1,
            Some(_) if self.shared.broker.lock().pools.is_settled() => {
                self.suspending = None;
                self.answer_all("SUSPEND");
            }
            Some(_) => {}
        }
    }

    async fn restless(&self) -> usize {
        let mut all = 0;
        for post in &self.shared.posts {
            let (reply, answer) = oneshot::channel();
            post.send(Message::Restless(reply));
            all += answer.await.unwrap_or(0);
        }
        all
    }

    /// RESUME, from wherever it comes.
    ///
    /// # Errors
    /// The text of the console's error.
    pub(super) fn resume(&mut self) -> Result<(), String> {
        let suspended = self.is_suspended();
        let now = Clock::now();
        self.pools(|broker| broker.pools.resume_all(now))?;
        if suspended {
            self.release_hold();
        }
        Ok(())
    }

    /// Everybody is read again.
    pub(super) fn release_hold(&mut self) {
        self.suspending = None;
        self.hold(Hold::Off);
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.shared.broker.lock().pools.pause_mode() == PauseMode::Suspended
    }

    /// A console has left: without any, nobody could end the suspension.
    pub(super) fn console_left(&mut self) {
        let consoles = self.shared.console_clients.load(std::sync::atomic::Ordering::Relaxed);
        if consoles == 0 && self.is_suspended() && self.exit.is_none() {
            tracing::info!("admin disappeared when suspended, doing RESUME");
            let now = Clock::now();
            self.pools(|broker| broker.pools.unsuspend(now));
            self.release_hold();
        }
    }

    /// A signal that ends the process in an orderly way cannot do so while everything stands still.
    pub(super) fn dies_suspended(&mut self) -> bool {
        if self.is_suspended() {
            log::fatal("suspend was in progress, going down immediately");
            self.exit = Some(Exit::Failed);
        }
        self.exit.is_some()
    }
}
