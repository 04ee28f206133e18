//! The net under everything: a panic is caught where it costs only what it is about, counted, and logged once with that.
//!
//! Workers catch the panics of their turns themselves, for they know what a turn held (`worker::Worker::guarded`); what runs
//! anywhere else runs in [`Guard::run`] or [`Guard::watch`].

use std::fmt::Display;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

/// Counts what cannot be, and is: panics, and answers without an owner.
#[derive(Debug, Default)]
pub struct Guard(AtomicU64);

impl Guard {
    /// Counts one, which the caller logs; how many there have been.
    pub fn trip(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many there have been.
    #[must_use]
    pub fn trips(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The result of `call`; `None` if it panicked. `what` is what that ended, for the log.
    pub fn run<T>(&self, what: impl Display, call: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(call)).map_err(|_| self.caught(&what)).ok()
    }

    /// As [`Guard::run`], for a future. One that has panicked is not polled again.
    pub async fn watch<T>(&self, what: impl Display, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| {
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
            polled.map_or_else(
                |_| {
                    self.caught(&what);
                    Poll::Ready(None)
                },
                |ready| ready.map(Some),
            )
        })
        .await
    }

    #[cold]
    fn caught(&self, what: &dyn Display) {
        let trips = self.trip();
        tracing::error!("a bug ended {what}: {} ({trips} so far)", crate::log::last_panic());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_is_counted_and_ends_alone() {
        let guard = Guard::default();
        assert_eq!(guard.run("nothing", || 1), Some(1));
        assert_eq!(guard.run("a call", || -> u8 { panic!("as it should") }), None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let late = async {
            tokio::task::yield_now().await;
            panic!("as it should")
        };
        assert_eq!(runtime.block_on(guard.watch("nothing", async { 2 })), Some(2));
        assert_eq!(runtime.block_on(guard.watch("a future", late)), None::<u8>);
        assert_eq!(guard.trips(), 2);
    }
}
