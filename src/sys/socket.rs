//! Socket options and credentials std and socket2 do not offer.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};

/// Who sits at the other end of a Unix socket, as the kernel saw it at connect().
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    pub uid: u32,
    /// Zero when unknown, for instance in another pid namespace.
    pub pid: i32,
}

/// Asks for the peer of a Unix socket.
///
/// # Errors
/// Those of getsockopt.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let found = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(PeerCredentials { uid: found.uid(), pid: found.pid() })
}

/// Has the peer sent something that nobody has read, or gone away?
#[must_use]
pub fn has_input(socket: impl AsFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_fd().as_raw_fd(), &mut [0], flags) != Err(Errno::EAGAIN)
}

/// Lets a listener hand out a connection only when its first bytes have come.
///
/// # Errors
/// Those of setsockopt.
pub fn set_tcp_defer_accept(socket: impl AsFd, on: bool) -> io::Result<()> {
    set_int(&socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, libc::c_int::from(on))
}

/// Lets a socket ignore packets that may pass fewer routers than this; 0 takes all. No sender in use begins with the
/// largest, 255. A handshake that has begun is not the listener's any more and goes on (ip(7), `IP_MINTTL`).
///
/// # Errors
/// Those of setsockopt.
pub fn set_least_hops(socket: impl AsFd, hops: u8, ipv6: bool) -> io::Result<()> {
    let (level, name) =
        if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT) } else { (libc::IPPROTO_IP, libc::IP_MINTTL) };
    set_int(&socket, level, name, libc::c_int::from(hops))
}

fn set_int(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("an int's size is small");
    // SAFETY: pointer and length describe `value`, which lives through the call.
    let code = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn unread_input_is_seen_and_stays() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(!has_input(&ours));
        theirs.write_all(b"x").unwrap();
        assert!(has_input(&ours) && has_input(&ours));
        drop(theirs);
        assert!(has_input(&ours));
    }

    #[test]
    fn own_credentials() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = peer_credentials(&a).unwrap();
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
    }
}
