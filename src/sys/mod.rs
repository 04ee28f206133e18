//! What the process asks of the operating system beyond std: the only place with `unsafe`.
//!
//! Each file wraps one subject in safe functions with texts as PgBouncer prints them; none of them decides anything.
#![allow(unsafe_code)]

pub mod daemon;
pub mod descriptors;
pub mod handshakes;
pub mod limits;
pub mod localtime;
pub mod pam;
pub mod pidfile;
pub mod priority;
pub mod process;
pub mod random;
pub mod resolve;
pub mod service;
pub mod socket;
pub mod stopping;
pub mod syslog;
pub mod user;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// The text of an error as C's strerror gives it, without the number std appends.
#[must_use]
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(at)) => text[..at].to_owned(),
        _ => text,
    }
}

/// The machine's name, empty when it has none.
#[must_use]
pub fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether a write to `fd` would be taken now or within `patience_ms`. Errors count as writable: the write reports them.
#[must_use]
pub fn wait_writable(fd: BorrowedFd<'_>, patience_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd, alive for the whole call.
    unsafe { libc::poll(&raw mut poll, 1, patience_ms) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn errors_read_as_in_c() {
        let missing = std::fs::File::open("/nonexistent").unwrap_err();
        assert_eq!(error_text(&missing), "No such file or directory");
        assert_eq!(error_text(&io::Error::other("made up (os error 2)")), "made up (os error 2)");
        assert!(!hostname().is_empty());
    }

    #[test]
    fn a_full_pipe_is_not_writable() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert!(wait_writable(writer.as_fd(), 0));
        nix::unistd::write(&writer, &vec![0; 65536]).unwrap();
        assert!(!wait_writable(writer.as_fd(), 1));
        drop(reader);
        assert!(wait_writable(writer.as_fd(), 0));
    }
}
