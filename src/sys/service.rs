//! The service manager: what it is told (sd_notify), and what it may pass to us.
//!
//! Units of type `notify`, as distributions ship them, wait for READY=1 and kill the process that does not send it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::time::{ClockId, clock_gettime};

/// Start-up or a reload is done.
pub const READY: &str = "READY=1";
/// The process is on its way out.
pub const STOPPING: &str = "STOPPING=1";

/// Tells the service manager, if there is one. It may be gone or busy: nobody waits for it.
pub fn notify(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        let _ = send(&socket, state);
    }
}

/// A reload begins; the time lets the manager tell this reload from the one before.
pub fn notify_reloading() {
    let micros =
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000);
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

/// How many listening sockets the service manager has passed to this very process.
#[must_use]
pub fn passed_sockets() -> usize {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    match number("LISTEN_PID") {
        Some(pid) if u32::try_from(pid) == Ok(std::process::id()) => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("pgusher-notify-{}", std::process::id());
        let file = UnixDatagram::bind(&path).unwrap();
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (receiver, socket) in [(file, path.into_os_string()), (hidden, format!("@{name}").into())] {
            send(&socket, READY).unwrap();
            let mut text = [0; 32];
            let length = receiver.recv(&mut text).unwrap();
            assert_eq!(&text[..length], READY.as_bytes());
        }
        assert!(send(OsStr::new("/nonexistent/notify"), READY).is_err());
    }
}
