//! A connection that never blocks, plain or with TLS, and the output that it could not take yet.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mio::net::TcpStream;
use nix::errno::Errno;
use rustls::ClientConnection;

pub struct Socket {
    pub tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Bytes not written yet, in order; the first one from `at` on.
    waiting: Vec<u8>,
    at: usize,
    stream: Option<Repeated>,
}

/// A piece that is sent again and again: a long answer that is never in memory as a whole.
pub struct Repeated {
    pub piece: Rc<Vec<u8>>,
    pub times: u64,
    /// What follows the last one.
    pub end: Vec<u8>,
    at: usize,
}

impl Repeated {
    pub fn new(piece: Rc<Vec<u8>>, times: u64, end: Vec<u8>) -> Self {
        Self { piece, times, end, at: 0 }
    }
}

impl Socket {
    pub fn new(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        Ok(Self { tcp, tls: None, waiting: Vec::new(), at: 0, stream: None })
    }

    /// Begins to connect from a local address, so that each address has ports of its own.
    pub fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&from.into())?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
            _ => {}
        }
        Self::new(TcpStream::from_std(socket.into()))
    }

    /// From here on all is encrypted; the handshake begins with the next write.
    pub fn start_tls(&mut self, config: &Arc<rustls::ClientConfig>) -> io::Result<()> {
        let name = "localhost".try_into().expect("a host name");
        let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        self.tls = Some(Box::new(session));
        self.write_tls()
    }

    /// Reads once: `None` when nothing is there, `Some(0)` at the end. A result shorter than `into` has emptied a plain socket.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else { return unblocked(self.tcp.read(into)) };
        match unblocked(tls.reader().read(into))? {
            Some(count) => return Ok(Some(count)),
            None => match unblocked(tls.read_tls(&mut self.tcp))? {
                None => return Ok(None),
                Some(0) => return Ok(Some(0)),
                Some(_) => tls.process_new_packets().map_err(io::Error::other)?,
            },
        };
        self.write_tls()?;
        self.read(into)
    }

    /// Writes, and keeps what the connection does not take.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(bytes)?;
            return self.write_tls();
        }
        let taken = if self.blocked() { 0 } else { unblocked(self.tcp.write(bytes))?.unwrap_or(0) };
        self.waiting.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// Sends a long answer, as fast as it is taken.
    pub fn write_repeated(&mut self, what: Repeated) -> io::Result<u64> {
        assert!(self.tls.is_none(), "streams are sent without TLS");
        self.stream = Some(what);
        self.flush()
    }

    pub fn blocked(&self) -> bool {
        self.at < self.waiting.len() || self.stream.is_some()
    }

    /// Goes on with what waits; returns how many bytes of a stream went out.
    pub fn flush(&mut self) -> io::Result<u64> {
        if self.tls.is_some() {
            return self.write_tls().map(|()| 0);
        }
        while self.at < self.waiting.len() {
            match unblocked(self.tcp.write(&self.waiting[self.at..]))? {
                None => return Ok(0),
                Some(count) => self.at += count,
            }
        }
        self.waiting.clear();
        self.at = 0;
        let mut sent = 0;
        while let Some(stream) = &mut self.stream {
            if stream.times == 0 {
                let end = std::mem::take(&mut stream.end);
                self.stream = None;
                self.write(&end)?;
                break;
            }
            let Some(count) = unblocked(self.tcp.write(&stream.piece[stream.at..]))? else { break };
            sent += count as u64;
            stream.at += count;
            if stream.at == stream.piece.len() {
                stream.at = 0;
                stream.times -= 1;
            }
        }
        Ok(sent)
    }

    fn write_tls(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() && unblocked(tls.write_tls(&mut self.tcp))?.is_some() {}
        }
        Ok(())
    }
}

fn unblocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => Ok(None),
        Err(error) => Err(error),
    }
}
