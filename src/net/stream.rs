//! The one narrow type through which the workers touch client and server sockets.
//!
//! Sockets are registered once, edge-triggered, for both directions; the stream remembers what it was told and forgets it
//! when a call finds nothing left. A read that does not fill its buffer has emptied the socket, so no second read is made
//! just to be told so, unless the peer has closed its side. What cannot be written at once waits in a buffer of the
//! stream, and whoever feeds it must not be read until that is gone.
//!
//! With TLS the same calls carry plaintext, and what waits to be written is ciphertext. The socket being empty and
//! nothing being left to read are two things then: [`Stream::readable`] speaks of the second.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use mio::event::{Event, Source};
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::{RecvFlags, SendFlags};

use crate::net::tls::session::{Next, Session, Work};
use crate::relay::out::Out;

/// Pieces that are no more bytes together are copied: a vectored write costs more than that.
const JOINED_BYTES: usize = 1024;

/// Most pieces given to one vectored write.
const MAX_SLICES: usize = 16;

/// A connected socket, or one that is connecting.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(socket) => socket,
            Self::Unix(socket) => socket,
        }
    }

    /// The error a failed connect left behind, if there is one.
    fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Self::Tcp(socket) => socket.take_error(),
            Self::Unix(socket) => socket.take_error(),
        }
    }

    /// The local address of a TCP socket.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Read for Socket {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self, buffer, RecvFlags::empty())?.0)
    }
}

impl Write for Socket {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self, bytes, SendFlags::NOSIGNAL)?)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write_vectored(slices),
            Self::Unix(socket) => socket.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a read came to.
#[derive(Debug)]
pub enum ReadResult {
    Data(usize),
    Nothing,
    Eof,
    Failed(io::Error),
}

/// What a handshake came to.
#[derive(Debug)]
pub enum Handshake {
    /// The session stands.
    Done,
    /// Nothing more can be done now.
    Wait,
    /// This is to be run, off the event loop, and given back to [`Stream::worked`].
    Work(Box<Work>),
    /// The peer is gone.
    Gone,
    Failed(String),
}

/// A socket with its readiness and what waits to be written.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    readable: bool,
    /// The peer has closed its side, or the socket failed: an end of file will be read.
    closing: bool,
    pending: Option<Box<Pending>>,
    tls: Option<Box<Session>>,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
}

impl Stream {
    #[must_use]
    pub const fn new(socket: Socket) -> Self {
        Self { socket, readable: false, closing: false, pending: None, tls: None }
    }

    #[must_use]
    pub const fn socket(&self) -> &Socket {
        &self.socket
    }

    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }

    /// Registers the socket with a worker's poller. Data that is already there is reported anew.
    ///
    /// # Errors
    /// The poller refused, for want of memory.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.readable = self.tls.as_ref().is_some_and(|session| session.holds_input());
        registry.register(self.socket.source(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Changes the token under which events are reported.
    ///
    /// # Errors
    /// The poller refused.
    pub fn retoken(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.reregister(self.socket.source(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Moves the socket from one worker's poller to another's: the only way a socket changes its home.
    ///
    /// # Errors
    /// A poller refused.
    pub fn rehome(&mut self, from: &Registry, to: &Registry, token: Token) -> io::Result<()> {
        from.deregister(self.socket.source())?;
        self.register(to, token)
    }

    /// Notes what the poller reported.
    #[inline]
    pub fn note(&mut self, event: &Event) {
        if event.is_readable() {
            self.readable = true;
        }
        if event.is_read_closed() || event.is_error() || event.is_write_closed() {
            self.readable = true;
            self.closing = true;
        }
    }

    /// True if a read may find something.
    #[inline]
    #[must_use]
    pub const fn readable(&self) -> bool {
        self.readable
    }

    /// The peer has closed its side.
    #[must_use]
    pub const fn closing(&self) -> bool {
        self.closing
    }

    /// A write failed: what the peer said before is still to be read, and then its end.
    pub const fn note_closed(&mut self) {
        self.readable = true;
        self.closing = true;
    }

    /// Something may have come that nobody was told of.
    pub const fn look_again(&mut self) {
        self.readable = true;
    }

    /// Says goodbye where TLS wants it, before the socket is closed. The kernel takes it out of the poller then; should another
    /// process have it as well, events may come yet, and find nobody under their token.
    pub fn retire(&mut self) {
        if let (Some(session), None) = (&mut self.tls, &self.pending) {
            let mut goodbye = Vec::new();
            session.close(&mut goodbye);
            let _ = self.socket.write(&goodbye);
        }
    }

    /// Reads once.
    #[inline]
    pub fn read(&mut self, buffer: &mut [u8]) -> ReadResult {
        if self.tls.is_some() {
            return self.read_tls(buffer);
        }
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return ReadResult::Eof,
                Ok(n) => {
                    if n < buffer.len() && !self.closing {
                        self.readable = false;
                    }
                    return ReadResult::Data(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return ReadResult::Nothing;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return ReadResult::Failed(error),
            }
        }
    }

    /// Is anything waiting to be written?
    #[inline]
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.pending.is_some()
    }

    /// Bytes waiting to be written.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes.len() - pending.written)
    }

    /// Writes what was gathered for this side; the rest waits.
    ///
    /// # Errors
    /// The peer is gone.
    #[inline]
    pub fn write_out(&mut self, out: &Out, input: &[u8]) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        if self.tls.is_some() {
            return self.write_tls(out.slices(input));
        }
        if self.pending.is_some() {
            self.keep(out.slices(input), 0);
            return Ok(());
        }
        match out.single(input) {
            Some(bytes) => self.write_raw(bytes),
            None => self.write_pieces(out, input),
        }
    }

    #[inline(never)]
    fn write_pieces(&mut self, out: &Out, input: &[u8]) -> io::Result<()> {
        if out.bytes() <= JOINED_BYTES {
            return self.write_joined(out, input);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for slice in out.slices(input).take(MAX_SLICES) {
            slices[count] = IoSlice::new(slice);
            count += 1;
        }
        let written = unless_blocked(retry(|| self.socket.write_vectored(&slices[..count])))?;
        if written < out.bytes() {
            self.keep(out.slices(input), written);
        }
        Ok(())
    }

    fn write_joined(&mut self, out: &Out, input: &[u8]) -> io::Result<()> {
        let mut joined = [0; JOINED_BYTES];
        let mut len = 0;
        for slice in out.slices(input) {
            joined[len..len + slice.len()].copy_from_slice(slice);
            len += slice.len();
        }
        self.write_raw(&joined[..len])
    }

    /// Writes `bytes`; the rest waits.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.tls.is_some() {
            return self.write_tls(std::iter::once(bytes));
        }
        self.write_raw(bytes)
    }

    /// Writes `bytes` as they are; the rest waits.
    #[inline]
    fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = if self.pending.is_some() { 0 } else { unless_blocked(self.write_once(bytes))? };
        if written < bytes.len() {
            self.keep(std::iter::once(bytes), written);
        }
        Ok(())
    }

    #[inline]
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| self.socket.write(bytes))
    }

    #[cold]
    fn keep<'a>(&mut self, slices: impl Iterator<Item = &'a [u8]>, mut skip: usize) {
        let pending = self.pending.get_or_insert_with(Box::default);
        for slice in slices {
            let from = skip.min(slice.len());
            skip -= from;
            pending.bytes.extend_from_slice(&slice[from..]);
        }
    }

    /// Writes what waits. True when nothing is left.
    ///
    /// # Errors
    /// The peer is gone.
    #[inline]
    pub fn flush(&mut self) -> io::Result<bool> {
        while let Some(pending) = &mut self.pending {
            let socket = &mut self.socket;
            let written = unless_blocked(retry(|| socket.write(&pending.bytes[pending.written..])))?;
            if written == 0 {
                return Ok(false);
            }
            pending.written += written;
            if pending.written == pending.bytes.len() {
                self.pending = None;
            }
        }
        Ok(true)
    }

    /// Everything that is read and written from now on belongs to this session, beginning with its handshake.
    pub fn start_tls(&mut self, session: Box<Session>) {
        self.tls = Some(session);
    }

    /// The connection's TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Session> {
        self.tls.as_deref()
    }

    /// Is a TLS handshake under way?
    #[must_use]
    pub fn shakes_hands(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| !session.is_established())
    }

    /// Goes on with the handshake as far as the peer's bytes allow.
    pub fn handshake(&mut self) -> Handshake {
        let Some(session) = &mut self.tls else { return Handshake::Done };
        let mut out = Vec::new();
        let next = session.advance(&mut out);
        self.after_step(next, &out)
    }

    /// Takes back what was to be run for the handshake.
    pub fn worked(&mut self, work: Work) -> Handshake {
        let Some(session) = &mut self.tls else { return Handshake::Done };
        let mut out = Vec::new();
        let next = session.worked(work, &mut out);
        self.after_step(next, &out)
    }

    fn after_step(&mut self, mut next: Next, out: &[u8]) -> Handshake {
        if !out.is_empty() && self.write_raw(out).is_err() && !matches!(next, Next::Failed(_)) {
            return Handshake::Gone;
        }
        loop {
            match next {
                Next::Established => {
                    self.readable |= self.tls.as_ref().is_some_and(|session| session.holds_input());
                    return Handshake::Done;
                }
                Next::Work(work) => return Handshake::Work(work),
                Next::Away => return Handshake::Wait,
                Next::Failed(why) => return Handshake::Failed(why),
                Next::Read if !self.readable => return Handshake::Wait,
                Next::Read => {}
            }
            next = match self.read_handshake() {
                Ok(next) => next,
                Err(result) => return result,
            };
        }
    }

    fn read_handshake(&mut self) -> Result<Next, Handshake> {
        let mut bytes = [0; 4096];
        let Some(session) = &mut self.tls else { return Err(Handshake::Done) };
        match retry(|| self.socket.read(&mut bytes)) {
            Ok(0) => return Err(Handshake::Gone),
            Ok(n) => {
                if n < bytes.len() && !self.closing {
                    self.readable = false;
                }
                session.receive(&bytes[..n]).map_err(Handshake::Failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Err(Handshake::Wait);
            }
            Err(_) => return Err(Handshake::Gone),
        }
        let mut out = Vec::new();
        let next = session.advance(&mut out);
        if !out.is_empty() && self.write_raw(&out).is_err() && !matches!(next, Next::Failed(_)) {
            return Err(Handshake::Gone);
        }
        Ok(next)
    }

    #[inline(never)]
    fn read_tls(&mut self, buffer: &mut [u8]) -> ReadResult {
        let Some(session) = &mut self.tls else { return ReadResult::Nothing };
        let seen = session.read(&mut self.socket, self.closing, buffer);
        self.readable = seen.more;
        if !seen.out.is_empty() {
            // if the peer is gone, that is for the next read to find out
            let _ = self.write_raw(&seen.out);
        }
        seen.result
    }

    #[inline(never)]
    fn write_tls<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let Some(mut session) = self.tls.take() else { return Ok(()) };
        let written = session.write(pieces, |sealed| self.write_raw(sealed));
        self.readable |= session.holds_input();
        self.tls = Some(session);
        written
    }

    /// True when a connecting socket has arrived.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &self.socket {
            Socket::Tcp(socket) => socket.peer_addr().is_ok(),
            Socket::Unix(_) => true,
        }
    }

    /// For a socket that was connecting and has become writable or failed.
    ///
    /// # Errors
    /// Why the connect failed.
    pub fn connected(&self) -> io::Result<()> {
        match self.socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as Std;

    fn pair() -> (Stream, Std) {
        let (ours, theirs) = Std::pair().expect("socket pair");
        ours.set_nonblocking(true).expect("nonblocking");
        (Stream::new(Socket::Unix(UnixStream::from_std(ours))), theirs)
    }

    #[test]
    fn what_does_not_fit_waits_in_order() {
        let (mut stream, mut peer) = pair();
        let big = vec![b'x'; 4 << 20];
        let mut out = Out::default();
        out.forward(0, big.len());
        stream.write_out(&out, &big).expect("alive");
        assert!(stream.is_blocked());
        stream.write_bytes(b"end").expect("alive");
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; (4 << 20) + 3];
            peer.read_exact(&mut all).expect("everything arrives");
            all
        });
        while !stream.flush().expect("alive") {
            std::thread::yield_now();
        }
        let all = reader.join().expect("reader");
        assert_eq!(&all[all.len() - 4..], b"xend");
    }

    #[test]
    fn a_short_read_empties_the_socket() {
        let (mut stream, mut peer) = pair();
        stream.readable = true;
        peer.write_all(b"abc").expect("alive");
        let mut buffer = [0; 16];
        assert!(matches!(stream.read(&mut buffer), ReadResult::Data(3)));
        assert!(!stream.readable());
        stream.readable = true;
        assert!(matches!(stream.read(&mut buffer), ReadResult::Nothing));
        drop(peer);
        assert!(matches!(stream.read(&mut buffer), ReadResult::Eof));
    }
}
