//! Descriptors passed between processes over a Unix socket (SCM_RIGHTS), and those that came with the process.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors taken from one call; a sender attaches one to each row.
const MOST: usize = 16;

/// Sends `bytes` in one call, with a descriptor attached if there is one. Returns how much was taken; the descriptor has
/// gone along if that is anything at all.
///
/// # Errors
/// Those of sendmsg; EBADF if the descriptor is not open any more.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<RawFd>) -> io::Result<usize> {
    let fds: Vec<RawFd> = descriptor.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives what is there, at least a byte, or 0 at the end of the stream; descriptors that came along are appended.
///
/// # Errors
/// Those of recvmsg.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(buffer)];
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(got.bytes)
}

/// Takes a descriptor that came with the process. To be called once for each, before anything else is opened under its
/// number. `None` if it is not open.
#[must_use]
pub fn came_with_the_process(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: only asks about the number.
    if unsafe { nix::libc::fcntl(fd, nix::libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and the caller is the only one who takes it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let cloexec = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    nix::fcntl::fcntl(&owned, cloexec).ok().map(|_| owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_goes_with_its_row() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let (kept, mut given) = UnixStream::pair().unwrap();
        send(sender.as_fd(), b"head", None).unwrap();
        send(sender.as_fd(), b"row 1", Some(kept.as_raw_fd())).unwrap();
        send(sender.as_fd(), b"row 2", Some(kept.as_raw_fd())).unwrap();
        drop(kept);
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        while bytes.len() < 14 {
            let mut buffer = [0; 64];
            let n = receive(receiver.as_fd(), &mut buffer, &mut fds).unwrap();
            bytes.extend_from_slice(&buffer[..n]);
        }
        assert_eq!((&bytes[..], fds.len()), (&b"headrow 1row 2"[..], 2));
        let mut taken = UnixStream::from(fds.remove(1));
        taken.write_all(b"x").unwrap();
        let mut one = [0];
        given.read_exact(&mut one).unwrap();
        drop(sender);
        assert_eq!(receive(receiver.as_fd(), &mut [0; 8], &mut fds).unwrap(), 0);
    }

    #[test]
    fn what_is_closed_is_not_sent() {
        let (sender, _receiver) = UnixStream::pair().unwrap();
        let error = send(sender.as_fd(), b"x", Some(1_000_000)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF));
        assert!(came_with_the_process(1_000_000).is_none());
    }
}
