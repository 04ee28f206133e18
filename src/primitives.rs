//! What threads lock and wait on, behind a name, so that the code that hands things from thread to thread can be run by a
//! scheduler that tries many orders (`tests/concurrency.rs`). In the daemon it is [`Os`], and the name costs nothing.

use std::ops::DerefMut;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// A set of locks and condition variables that belong together.
pub trait Primitives: 'static {
    type Mutex<T: Send + 'static>: Send + Sync;
    type Guard<'a, T: Send + 'static>: DerefMut<Target = T>;
    type Condvar: Default + Send + Sync;

    fn mutex<T: Send + 'static>(value: T) -> Self::Mutex<T>;

    fn lock<T: Send + 'static>(mutex: &Self::Mutex<T>) -> Self::Guard<'_, T>;

    /// Unlocks, waits until notified, and locks again. May return without that.
    fn wait<T: Send + 'static>(condvar: &Self::Condvar, guard: &mut Self::Guard<'_, T>);

    /// As `wait`, for so long at most.
    fn wait_for<T: Send + 'static>(condvar: &Self::Condvar, guard: &mut Self::Guard<'_, T>, most: Duration);

    fn notify_one(condvar: &Self::Condvar);
}

/// Those of the daemon: the operating system's threads.
#[derive(Debug)]
pub struct Os;

impl Primitives for Os {
    type Mutex<T: Send + 'static> = Mutex<T>;
    type Guard<'a, T: Send + 'static> = MutexGuard<'a, T>;
    type Condvar = Condvar;

    #[inline]
    fn mutex<T: Send + 'static>(value: T) -> Mutex<T> {
        Mutex::new(value)
    }

    #[inline]
    fn lock<T: Send + 'static>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock()
    }

    #[inline]
    fn wait<T: Send + 'static>(condvar: &Condvar, guard: &mut Self::Guard<'_, T>) {
        condvar.wait(guard);
    }

    #[inline]
    fn wait_for<T: Send + 'static>(condvar: &Condvar, guard: &mut Self::Guard<'_, T>, most: Duration) {
        condvar.wait_for(guard, most);
    }

    #[inline]
    fn notify_one(condvar: &Condvar) {
        condvar.notify_one();
    }
}
