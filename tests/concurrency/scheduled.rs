//! The primitives under shuttle's scheduler, which runs one thread at a time and chooses anew at every lock, wait and
//! notification.
//!
//! What is noted in `std` locks and atomics here is no event for the scheduler: between two of its choices nobody else runs.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as Unscheduled, PoisonError};
use std::time::Duration;

use pgusher::primitives::Primitives;
use pgusher::shared::inbox::Wake;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Arc, Mutex, MutexGuard};
use shuttle::thread::{self, Thread};

pub(crate) struct Scheduled;

/// A lock that can be given up and taken again.
pub(crate) struct Guard<'a, T> {
    mutex: &'a Mutex<T>,
    held: Option<MutexGuard<'a, T>>,
}

/// Somebody who waits for a notification.
#[derive(Clone)]
struct Waiter {
    thread: Thread,
    notified: Arc<AtomicBool>,
}

/// Which of those who wait is notified is for the dice.
#[derive(Default)]
pub(crate) struct Condvar(Unscheduled<VecDeque<Waiter>>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.held.as_ref().expect("it is given up for a moment only")
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("it is given up for a moment only")
    }
}

impl<'a, T> Guard<'a, T> {
    fn over(mutex: &'a Mutex<T>) -> Self {
        let held = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        Self { mutex, held: Some(held) }
    }

    /// Gives the lock up until `wait` returns.
    fn without(&mut self, wait: impl FnOnce()) {
        self.held = None;
        wait();
        *self = Self::over(self.mutex);
    }
}

impl Condvar {
    fn waiters(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Waiter {
        let waiter = Waiter { thread: thread::current(), notified: Arc::default() };
        self.waiters().push_back(waiter.clone());
        waiter
    }

    fn leave(&self, waiter: &Waiter) {
        self.waiters().retain(|other| !Arc::ptr_eq(&other.notified, &waiter.notified));
    }
}

impl Primitives for Scheduled {
    type Mutex<T: Send + 'static> = Mutex<T>;
    type Guard<'a, T: Send + 'static> = Guard<'a, T>;
    type Condvar = Condvar;

    fn mutex<T: Send + 'static>(value: T) -> Mutex<T> {
        Mutex::new(value)
    }

    fn lock<T: Send + 'static>(mutex: &Mutex<T>) -> Guard<'_, T> {
        Guard::over(mutex)
    }

    fn wait<T: Send + 'static>(condvar: &Condvar, guard: &mut Self::Guard<'_, T>) {
        let waiter = condvar.enter();
        guard.without(|| {
            while !waiter.notified.load(Ordering::Relaxed) {
                thread::park();
            }
        });
    }

    /// The time may be over at any moment.
    fn wait_for<T: Send + 'static>(condvar: &Condvar, guard: &mut Self::Guard<'_, T>, _: Duration) {
        let waiter = condvar.enter();
        guard.without(|| {
            while !waiter.notified.load(Ordering::Relaxed) {
                if thread_rng().gen_bool(0.3) {
                    return condvar.leave(&waiter);
                }
                thread::yield_now();
            }
        });
    }

    fn notify_one(condvar: &Condvar) {
        let chosen = {
            let mut waiters = condvar.waiters();
            let count = waiters.len();
            if count == 0 { None } else { waiters.remove(thread_rng().gen_range(0..count)) }
        };
        if let Some(waiter) = chosen {
            waiter.notified.store(true, Ordering::Relaxed);
            waiter.thread.unpark();
        }
    }
}

/// What the waker of a poller is to its thread: a mark that ends the sleep in progress, or the next one.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<Chime>);

#[derive(Default)]
struct Chime {
    rung: Mutex<bool>,
    rings: shuttle::sync::Condvar,
}

impl Bell {
    pub(crate) fn sleep(&self) {
        let rung = self.0.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = self.0.rings.wait_while(rung, |rung| !*rung);
        *woken.unwrap_or_else(PoisonError::into_inner) = false;
    }
}

impl Wake for Bell {
    fn wake(&self) -> std::io::Result<()> {
        *self.0.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.rings.notify_one();
        Ok(())
    }
}
