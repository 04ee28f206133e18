//! SIGTERM and SIGINT for a thread that waits for something else, while there is no event loop that takes signals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Holds the two signals back as long as it lives; one that came meanwhile and was not asked for strikes when it is dropped.
pub struct StopSignals {
    pending: SignalFd,
    before: SigSet,
}

impl StopSignals {
    /// # Errors
    /// No descriptor to be had.
    pub fn hold() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        let pending = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { pending, before })
    }

    /// Waits until `socket` has something to read or has ended.
    ///
    /// # Errors
    /// `Interrupted`, with the name of the signal that has come. Or what poll says.
    pub fn wait_readable(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.wait(
            &mut [PollFd::new(self.pending.as_fd(), PollFlags::POLLIN), PollFd::new(socket, PollFlags::POLLIN)],
            None,
        )
    }

    /// Waits for a time.
    ///
    /// # Errors
    /// As `wait_readable`.
    pub fn wait_for(&self, time: Duration) -> io::Result<()> {
        self.wait(&mut [PollFd::new(self.pending.as_fd(), PollFlags::POLLIN)], Some(time))
    }

    fn wait(&self, fds: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<()> {
        let timeout = time.map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
        loop {
            match poll(fds, timeout) {
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) if fds[0].any().unwrap_or(true) => {
                    // taken, or it would strike when it is let through
                    let taken = self.pending.read_signal()?;
                    let interrupt = taken.is_some_and(|info| info.ssi_signo == Signal::SIGINT as u32);
                    let name = if interrupt { "SIGINT" } else { "SIGTERM" };
                    return Err(io::Error::new(io::ErrorKind::Interrupted, name));
                }
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::pthread::{pthread_kill, pthread_self};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_signal_ends_the_wait_and_a_byte_does_not() {
        let held = StopSignals::hold().expect("a descriptor");
        let (mut far, near) = UnixStream::pair().expect("a pair");
        far.write_all(b"x").expect("a write");
        held.wait_readable(near.as_fd()).expect("readable");
        held.wait_for(Duration::from_millis(1)).expect("the time is over");
        pthread_kill(pthread_self(), Signal::SIGTERM).expect("a signal to this thread");
        let told = held.wait_readable(near.as_fd()).map_err(|e| (e.kind(), e.to_string()));
        assert_eq!(told, Err((io::ErrorKind::Interrupted, "SIGTERM".to_owned())));
        held.wait_readable(near.as_fd()).expect("one signal ends one wait, and not the process");
    }
}
