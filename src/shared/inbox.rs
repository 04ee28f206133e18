//! The inbox of a thread that sleeps in its poller: whoever leaves the first message wakes it.
//!
//! The owner sleeps, takes everything, and works; it takes nothing before it has slept or asked the poller. So a message is
//! either the first in the box, and its sender wakes the owner, or it lies beside one whose sender does.

use std::io;

use crate::primitives::{Os, Primitives};

/// What gets the owner out of its sleep; a wake-up before the sleep ends the sleep that follows.
pub trait Wake {
    /// # Errors
    /// What the operating system says.
    fn wake(&self) -> io::Result<()>;
}

impl Wake for mio::Waker {
    fn wake(&self) -> io::Result<()> {
        self.wake()
    }
}

/// Messages `M` for one thread, which `W` wakes.
#[derive(Debug)]
pub struct Inbox<W, M, P = Os>
where
    M: Send + 'static,
    P: Primitives,
{
    messages: P::Mutex<Vec<M>>,
    waker: W,
}

impl<W: Wake, M: Send + 'static, P: Primitives> Inbox<W, M, P> {
    #[must_use]
    pub fn new(waker: W) -> Self {
        Self { messages: P::mutex(Vec::new()), waker }
    }

    /// Leaves a message; wakes the owner if it has not been woken for an earlier one.
    ///
    /// # Errors
    /// The owner could not be woken; the message is there.
    pub fn send(&self, message: M) -> io::Result<()> {
        let first = {
            let mut messages = P::lock(&self.messages);
            messages.push(message);
            messages.len() == 1
        };
        if first { self.waker.wake() } else { Ok(()) }
    }

    /// All messages so far, exchanged for an empty vector.
    pub fn take(&self, into: &mut Vec<M>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *P::lock(&self.messages), into);
    }
}
