//! One connection's TLS: its handshake, and its records.
//!
//! Records are decrypted and encrypted in buffers of the thread, so that an idle session owns none. The library keeps
//! nothing between calls but its keys: bytes of an unfinished record wait in [`Session::received`], and are all that may.
//! A step of a handshake that computes much is handed out as [`Work`], to be run wherever it holds up nobody; meanwhile
//! the session reads and writes nothing.

use std::cell::RefCell;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedConnectionCommon,
    UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, CommonState, Error, ProtocolVersion, ServerConfig};

use super::{suite_name, text};
use crate::auth::certificate;
use crate::net::stream::{ReadResult, Socket};

/// Ciphertext read at once: two full records and what was left of a third.
const INCOMING_BYTES: usize = 64 * 1024;

/// Most bytes of a handshake that wait for the rest of a message.
const MAX_HANDSHAKE_BYTES: usize = 24 * 1024;

/// How often the socket is read in vain while it has more. Tickets and the like of an honest peer fit into one read; whoever
/// sends them without end would have the thread for himself.
const MAX_READS_WITHOUT_DATA: usize = 16;

/// Header of a record.
const HEADER_BYTES: usize = 5;

/// Records of one flight, and more.
const MAX_FLIGHT: usize = 16;

/// Most plaintext in a record, and most bytes that encryption adds to it.
const RECORD_BYTES: usize = 16 * 1024;
const RECORD_OVERHEAD_BYTES: usize = 64;

/// A thread's buffer for ciphertext is given back beyond this.
const KEPT_BYTES: usize = 256 * 1024;

/// First byte of a record in clear text of the handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// What a handshake step in clear text may weigh and still be small: the Finished message of a client.
const SMALL_STEP_BYTES: usize = 512;

#[derive(Default)]
struct Scratch {
    incoming: Box<[u8]>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

enum Conn {
    Accepting(UnbufferedServerConnection),
    Connecting(UnbufferedClientConnection),
}

impl Conn {
    fn state(&self) -> &CommonState {
        match self {
            Self::Accepting(conn) => conn,
            Self::Connecting(conn) => conn,
        }
    }

    fn open(&mut self, incoming: &mut [u8], plain: &mut Plain<'_>, out: &mut Vec<u8>) -> Result<Opened, Error> {
        match self {
            Self::Accepting(conn) => open(&mut **conn, incoming, plain, out),
            Self::Connecting(conn) => open(&mut **conn, incoming, plain, out),
        }
    }

    fn seal(
        &mut self,
        what: &Outgoing<'_>,
        received: &mut [u8],
        plain: &mut Plain<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Opened, Error> {
        match self {
            Self::Accepting(conn) => seal(&mut **conn, what, received, plain, out),
            Self::Connecting(conn) => seal(&mut **conn, what, received, plain, out),
        }
    }
}

/// The TLS of one connection.
pub struct Session {
    /// None while a step is computed elsewhere.
    conn: Option<Box<Conn>>,
    /// Ciphertext that is not decrypted yet: an unfinished record.
    received: Vec<u8>,
    /// Plaintext that nobody has read yet: what came along with the end of the handshake.
    unread: Vec<u8>,
    /// `received` may hold whole records.
    whole: bool,
    established: bool,
    /// The peer said that it will say no more.
    ended: bool,
    /// Channel binding data of our own certificate.
    end_point: Option<Arc<[u8]>>,
    /// Length of `received` when a step last came to nothing.
    tried: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({})", if self.established { "established" } else { "handshake" })
    }
}

/// What the handshake needs next.
#[derive(Debug)]
pub enum Next {
    /// It is over.
    Established,
    /// More bytes of the peer.
    Read,
    /// Work that is to be run and given back to [`Session::worked`].
    Work(Box<Work>),
    /// A step elsewhere.
    Away,
    Failed(String),
}

/// A step of a handshake that computes much.
pub struct Work {
    conn: Box<Conn>,
    received: Vec<u8>,
    unread: Vec<u8>,
    out: Vec<u8>,
    result: Result<(), String>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work(..)")
    }
}

impl Work {
    /// Runs it: up to a millisecond.
    pub fn run(&mut self) {
        // for the caller to find, should the library panic
        self.result = Err("internal error".to_owned());
        self.result = step(&mut self.conn, &mut self.received, &mut self.unread, &mut self.out);
        super::PREPARED.store(true, Ordering::Relaxed);
    }
}

fn step(conn: &mut Conn, received: &mut Vec<u8>, unread: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), String> {
    let mut plain = Plain { into: &mut [], len: 0, over: unread };
    let opened = conn.open(received, &mut plain, out).map_err(|error| text::of(&error))?;
    received.drain(..opened.used);
    Ok(())
}

/// What reading came to, and whether reading again may find more.
pub(crate) struct Seen {
    pub(crate) result: ReadResult,
    pub(crate) more: bool,
    /// For the peer.
    pub(crate) out: Vec<u8>,
}

impl Session {
    pub(super) fn accept(
        config: Arc<ServerConfig>,
        end_point: Option<Arc<[u8]>>,
        received: Vec<u8>,
    ) -> Result<Box<Self>, Error> {
        UnbufferedServerConnection::new(config).map(|conn| {
            let session = Self::new(Conn::Accepting(conn), received);
            Box::new(Self { end_point, ..session })
        })
    }

    pub(super) fn connect(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Box<Self>, Error> {
        UnbufferedClientConnection::new(config, name)
            .map(|conn| Box::new(Self::new(Conn::Connecting(conn), Vec::new())))
    }

    fn new(conn: Conn, received: Vec<u8>) -> Self {
        Self {
            conn: Some(Box::new(conn)),
            received,
            unread: Vec::new(),
            whole: false,
            established: false,
            ended: false,
            end_point: None,
            tried: 0,
        }
    }

    pub(crate) const fn is_established(&self) -> bool {
        self.established
    }

    /// May reading find something without anything new from the socket?
    pub(crate) const fn holds_input(&self) -> bool {
        self.established && (self.whole || self.ended || !self.unread.is_empty())
    }

    /// Version and suite as SHOW prints them; none before the handshake is over.
    #[must_use]
    pub fn info(&self) -> Option<String> {
        let state = self.conn.as_ref().filter(|_| self.established)?.state();
        let version = match state.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let mut info = format!("{version}/{}", suite_name(state.negotiated_cipher_suite()?));
        if version == "TLSv1.2"
            && let Some(group) = state.negotiated_key_exchange_group()
        {
            let curve = match group.name() {
                rustls::NamedGroup::secp256r1 => "prime256v1".to_owned(),
                other => format!("{other:?}"),
            };
            info.push_str("/ECDH=");
            info.push_str(&curve);
        }
        Some(info)
    }

    /// The peer's certificate in DER.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        let certificates = self.conn.as_ref()?.state().peer_certificates()?;
        certificates.first().map(AsRef::as_ref)
    }

    /// What SCRAM can be bound to: the hash of the server's certificate, whichever side that is (`tls-server-end-point`).
    #[must_use]
    pub fn channel_binding(&self) -> Option<Arc<[u8]>> {
        match **self.conn.as_ref().filter(|_| self.established)? {
            Conn::Accepting(_) => self.end_point.clone(),
            Conn::Connecting(_) => self.peer_certificate().and_then(certificate::end_point).map(Arc::from),
        }
    }

    /// Goes on with the handshake; what is to be sent is appended to `out`.
    pub fn advance(&mut self, out: &mut Vec<u8>) -> Next {
        let Some(conn) = &mut self.conn else { return Next::Away };
        if self.established {
            return Next::Established;
        }
        let begins = matches!(**conn, Conn::Connecting(_)) && self.tried == 0 && self.received.is_empty();
        if !begins && (self.received.len() <= self.tried || !starts_with_record(&self.received)) {
            return Next::Read;
        }
        if !begins && is_dear(&self.received) {
            return match self.conn.take() {
                Some(conn) => {
                    let (received, unread) = (std::mem::take(&mut self.received), std::mem::take(&mut self.unread));
                    Next::Work(Box::new(Work { conn, received, unread, out: Vec::new(), result: Ok(()) }))
                }
                None => Next::Away,
            };
        }
        match step(conn, &mut self.received, &mut self.unread, out) {
            Ok(()) => self.stepped(),
            Err(why) => Next::Failed(why),
        }
    }

    /// Takes back work that was done; what is to be sent is appended to `out`.
    pub fn worked(&mut self, work: Work, out: &mut Vec<u8>) -> Next {
        let Work { conn, received, unread, out: said, result } = work;
        (self.conn, self.received, self.unread) = (Some(conn), received, unread);
        out.extend_from_slice(&said);
        match result {
            Ok(()) => self.stepped(),
            Err(why) => Next::Failed(why),
        }
    }

    fn stepped(&mut self) -> Next {
        self.established = self.conn.as_ref().is_some_and(|conn| !conn.state().is_handshaking());
        // 1: the first step of a client has been made
        self.tried = self.received.len().max(usize::from(self.received.is_empty()));
        if self.established {
            self.whole = !self.received.is_empty();
            self.received.shrink_to_fit();
            return Next::Established;
        }
        Next::Read
    }

    /// Bytes of the handshake.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.received.is_empty() {
            self.tried = 0;
        }
        if self.received.len() + bytes.len() > MAX_HANDSHAKE_BYTES {
            return Err("handshake message is too long".to_owned());
        }
        self.received.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads the socket once, or more often if that brings no plaintext. `closing`: the peer has closed its side, so an end
    /// of file is still to be read.
    pub(crate) fn read(&mut self, socket: &mut Socket, closing: bool, buffer: &mut [u8]) -> Seen {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.incoming.is_empty() {
                scratch.incoming = vec![0; INCOMING_BYTES].into_boxed_slice();
            }
            let mut out = Vec::new();
            for _ in 0..MAX_READS_WITHOUT_DATA {
                let (result, more) = self.read_once(socket, closing, buffer, &mut scratch.incoming, &mut out);
                match result {
                    Some(result) => return Seen { result, more, out },
                    None if !more => return Seen { result: ReadResult::Nothing, more, out },
                    None => {}
                }
            }
            let endless = io::Error::other("the peer sends TLS records without data");
            Seen { result: ReadResult::Failed(endless), more: true, out }
        })
    }

    /// `None`: no plaintext came of it.
    fn read_once(
        &mut self,
        socket: &mut Socket,
        closing: bool,
        buffer: &mut [u8],
        incoming: &mut [u8],
        out: &mut Vec<u8>,
    ) -> (Option<ReadResult>, bool) {
        if !self.unread.is_empty() {
            return (Some(ReadResult::Data(self.take_unread(buffer))), true);
        }
        if self.ended {
            return (Some(ReadResult::Eof), true);
        }
        let Some(conn) = &mut self.conn else { return (None, false) };
        let held = self.received.len();
        incoming[..held].copy_from_slice(&self.received);
        let (mut len, mut more) = (held, true);
        if !std::mem::take(&mut self.whole) {
            // plaintext is shorter than ciphertext: all of it will fit
            let until = incoming.len().min(buffer.len().max(held + RECORD_BYTES));
            match socket.read(&mut incoming[held..until]) {
                Ok(0) => return (Some(ReadResult::Eof), true),
                Ok(n) => {
                    len += n;
                    more = closing || len == until;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (None, false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return (None, true),
                Err(error) => return (Some(ReadResult::Failed(error)), true),
            }
        }
        let mut plain = Plain { into: buffer, len: 0, over: &mut self.unread };
        let opened = match conn.open(&mut incoming[..len], &mut plain, out) {
            Ok(opened) => opened,
            Err(error) => {
                // the reason why it is closed will only be that it has ended
                let why = text::of(&error);
                tracing::warn!("tls_sbufio_recv: read failed: {why}");
                return (Some(ReadResult::Failed(io::Error::other(why))), true);
            }
        };
        let read = plain.len;
        self.ended = opened.ended;
        self.keep(&incoming[opened.used..len]);
        more |= self.ended || !self.unread.is_empty();
        ((read > 0).then_some(ReadResult::Data(read)), more)
    }

    /// Keeps an unfinished record; a session without one owns no buffer.
    fn keep(&mut self, rest: &[u8]) {
        self.received.clear();
        if rest.is_empty() {
            self.received = Vec::new();
        } else {
            self.received.extend_from_slice(rest);
        }
    }

    fn take_unread(&mut self, buffer: &mut [u8]) -> usize {
        let n = buffer.len().min(self.unread.len());
        buffer[..n].copy_from_slice(&self.unread[..n]);
        self.unread.drain(..n);
        if self.unread.is_empty() {
            self.unread = Vec::new();
        }
        n
    }

    /// Encrypts the pieces as one stretch and hands the records to `write`. Before the handshake is over there is nothing
    /// that could be said without being overheard: it is dropped.
    ///
    /// # Errors
    /// The session is at its end, or `write` failed.
    pub(crate) fn write<'a>(
        &mut self,
        mut pieces: impl Iterator<Item = &'a [u8]>,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(first) = pieces.next() else { return Ok(()) };
        SCRATCH.with_borrow_mut(|Scratch { plain, sealed, .. }| {
            sealed.clear();
            let stretch = match pieces.next() {
                None => first,
                Some(second) => {
                    plain.clear();
                    plain.extend_from_slice(first);
                    plain.extend_from_slice(second);
                    pieces.for_each(|piece| plain.extend_from_slice(piece));
                    &plain[..]
                }
            };
            self.seal(&Outgoing::Data(stretch), sealed)?;
            let written = if sealed.is_empty() { Ok(()) } else { write(sealed) };
            for buffer in [plain, sealed] {
                if buffer.capacity() > KEPT_BYTES {
                    *buffer = Vec::new();
                }
            }
            written
        })
    }

    /// Tells the peer that nothing more will come; the record is appended to `out`.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        let _ = self.seal(&Outgoing::CloseNotify, out);
    }

    fn seal(&mut self, what: &Outgoing<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let (Some(conn), true) = (&mut self.conn, self.established) else { return Ok(()) };
        let mut plain = Plain { into: &mut [], len: 0, over: &mut self.unread };
        let sealed = conn.seal(what, &mut self.received, &mut plain, out);
        let opened = sealed.map_err(|error| io::Error::other(text::of(&error)))?;
        self.received.drain(..opened.used);
        self.ended |= opened.ended;
        Ok(())
    }
}

/// Is there a whole record at the beginning, or something that cannot become one?
fn starts_with_record(received: &[u8]) -> bool {
    match received {
        [kind, major, _, _, _, ..] if !(0x14..=0x17).contains(kind) || *major != 3 => true,
        [_, _, _, high, low, rest @ ..] => rest.len() >= usize::from(u16::from_be_bytes([*high, *low])),
        _ => false,
    }
}

/// Does a step with these bytes compute much? All do but the last one of a TLS 1.3 client, without a certificate.
fn is_dear(received: &[u8]) -> bool {
    received.first() == Some(&HANDSHAKE_RECORD) || received.len() > SMALL_STEP_BYTES
}

/// Where plaintext goes: to the caller, and what does not fit there is kept.
struct Plain<'a> {
    into: &'a mut [u8],
    len: usize,
    over: &'a mut Vec<u8>,
}

impl Plain<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let fits = if self.over.is_empty() { bytes.len().min(self.into.len() - self.len) } else { 0 };
        let (now, later) = bytes.split_at(fits);
        self.into[self.len..self.len + fits].copy_from_slice(now);
        self.len += fits;
        self.over.extend_from_slice(later);
    }
}

struct Opened {
    /// Bytes of ciphertext that are done with.
    used: usize,
    ended: bool,
}

enum Outgoing<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

/// The two roles, for the functions below.
trait Records {
    type Side;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;
}

impl Records for UnbufferedConnectionCommon<ServerConnectionData> {
    type Side = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedConnectionCommon<ClientConnectionData> {
    type Side = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(incoming)
    }
}

/// Takes in whole records. What is to be sent in turn, alerts of a failure included, is appended to `out`.
fn open<C: Records>(
    conn: &mut C,
    incoming: &mut [u8],
    plain: &mut Plain<'_>,
    out: &mut Vec<u8>,
) -> Result<Opened, Error> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state } = conn.process(&mut incoming[used..]);
        match state {
            Err(error) => {
                alert(conn, &mut incoming[used + discard..], out);
                return Err(error);
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    plain.put(record?.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out),
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                return Ok(Opened { used: used + discard, ended: true });
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                return Ok(Opened { used: used + discard, ended: false });
            }
            Ok(_) => return Err(Error::General("early data was never offered".to_owned())),
        }
        used += discard;
    }
}

/// What the library wants to say of a failure: perhaps a flight, and then the alert. It stands before anything that is
/// still to be taken in, which must not happen any more.
fn alert<C: Records>(conn: &mut C, rest: &mut [u8], out: &mut Vec<u8>) {
    for _ in 0..MAX_FLIGHT {
        let ConnectionState::EncodeTlsData(data) = (match conn.process(rest).state {
            Ok(state) => state,
            Err(_) => return,
        }) else {
            return;
        };
        let at = out.len();
        encode(data, out);
        if is_alert(&out[at..]) {
            return;
        }
    }
}

/// In clear text, or by its length with TLS 1.3: level, description, type and tag.
fn is_alert(record: &[u8]) -> bool {
    record.first() == Some(&0x15) || (record.first() == Some(&0x17) && record.len() == HEADER_BYTES + 2 + 1 + 16)
}

fn encode<S>(mut data: EncodeTlsData<'_, S>, out: &mut Vec<u8>) {
    append(out, HEADER_BYTES, |room| match data.encode(room) {
        Ok(n) => Fit::Written(n),
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => Fit::Needs(required_size),
        Err(EncodeError::AlreadyEncoded) => Fit::Written(0),
    });
}

/// Encrypts; the records are appended to `out`. What was received and is not done with has to be given along: a message of
/// the library's own may have begun in it.
fn seal<C: Records>(
    conn: &mut C,
    what: &Outgoing<'_>,
    received: &mut [u8],
    plain: &mut Plain<'_>,
    out: &mut Vec<u8>,
) -> Result<Opened, Error> {
    let (mut used, mut ended) = (0, false);
    loop {
        let UnbufferedStatus { discard, state } = conn.process(&mut received[used..]);
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    plain.put(record?.payload);
                }
            }
            ConnectionState::EncodeTlsData(data) => encode(data, out),
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => ended = true,
            ConnectionState::WriteTraffic(mut traffic) => {
                let exhausted = encrypt(&mut traffic, what, out);
                return if exhausted { Err(Error::EncryptError) } else { Ok(Opened { used: used + discard, ended }) };
            }
            _ => return Err(Error::HandshakeNotComplete),
        }
        used += discard;
    }
}

/// True when the keys have been used too often.
fn encrypt<S>(traffic: &mut WriteTraffic<'_, S>, what: &Outgoing<'_>, out: &mut Vec<u8>) -> bool {
    let mut exhausted = false;
    let mut fit = |result| match result {
        Ok(n) => Fit::Written(n),
        Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => Fit::Needs(required_size),
        Err(EncryptError::EncryptExhausted) => {
            exhausted = true;
            Fit::Written(0)
        }
    };
    match what {
        Outgoing::Data(bytes) => {
            let room = bytes.len() + (bytes.len() / RECORD_BYTES + 1) * RECORD_OVERHEAD_BYTES;
            append(out, room, |room| fit(traffic.encrypt(bytes, room)));
        }
        Outgoing::CloseNotify => append(out, RECORD_OVERHEAD_BYTES, |room| fit(traffic.queue_close_notify(room))),
    }
    exhausted
}

enum Fit {
    Written(usize),
    Needs(usize),
}

/// Appends what `write` puts into the room that it is given, more of it if it asks for more.
fn append(out: &mut Vec<u8>, room: usize, mut write: impl FnMut(&mut [u8]) -> Fit) {
    let at = out.len();
    out.resize(at + room, 0);
    loop {
        match write(&mut out[at..]) {
            Fit::Written(n) => return out.truncate(at + n),
            Fit::Needs(size) => out.resize(at + size.max(out.len() - at + 1), 0),
        }
    }
}
