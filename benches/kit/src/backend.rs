//! A PostgreSQL that lets everybody in and answers every query at once with one row. One thread, no tables.
//!
//! Beyond that it knows what poolers depend on: transactions, names of prepared statements, parameters that it reports when
//! they are set. These texts have answers of their own:
//!
//! * `rows COUNT LENGTH`: so many rows of one column; `copy out COUNT LENGTH`: the same as a copy
//! * `copy in`: takes whatever comes
//! * `delay`: one row, but `--delay-us` later

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};

use crate::socket::{Repeated, Socket};
use crate::wire::{self, Messages, message, text};

/// What PostgreSQL 15 reports at login; poolers keep and compare it.
const PARAMETERS: [(&str, &str); 13] = [
    ("server_version", "15.0"),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("application_name", ""),
    ("is_superuser", "off"),
    ("session_authorization", "bench"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
];
const LISTENER: Token = Token(usize::MAX);
/// Streams are made of pieces of about so many bytes.
const PIECE_BYTES: usize = 256 * 1024;

pub struct Backend {
    listener: TcpListener,
    poll: Poll,
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    /// When delayed answers are due.
    due: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    delay: Duration,
    born: u64,
}

impl Backend {
    pub fn new(address: SocketAddr, delay: Duration) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { listener, poll, sessions: Vec::new(), free: Vec::new(), due: BinaryHeap::new(), delay, born: 0 })
    }

    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(512);
        let mut scratch = vec![0; 256 * 1024];
        loop {
            let next = self.due.peek().map(|Reverse((when, ..))| when.saturating_duration_since(Instant::now()));
            self.poll.poll(&mut events, next)?;
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(at) => self.turn(at, &mut scratch),
                }
            }
            self.answer_delayed();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Ok((tcp, _)) = self.listener.accept() {
            let at = self.free.pop().unwrap_or(self.sessions.len());
            if at == self.sessions.len() {
                self.sessions.push(None);
            }
            self.born += 1;
            let mut session = Session::new(Socket::new(tcp)?, self.born);
            self.poll.registry().register(
                &mut session.socket.tcp,
                Token(at),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            self.sessions[at] = Some(session);
        }
        Ok(())
    }

    fn turn(&mut self, at: usize, scratch: &mut [u8]) {
        let Some(session) = &mut self.sessions[at] else { return };
        match session.turn(scratch) {
            Ok(true) => {}
            Ok(false) => self.due.push(Reverse((Instant::now() + self.delay, at, session.born))),
            // a pooler that hangs up ends this connection, not the backend
            Err(_) => {
                self.sessions[at] = None;
                self.free.push(at);
            }
        }
    }

    fn answer_delayed(&mut self) {
        while let Some(&Reverse((when, at, born))) = self.due.peek() {
            if when > Instant::now() {
                return;
            }
            self.due.pop();
            if let Some(session) = self.sessions[at].as_mut().filter(|session| session.born == born) {
                let mut out = Vec::new();
                session.one_row(&mut out);
                // an error shows at the next event
                let _ = session.socket.write(&out);
            }
        }
    }
}

struct Session {
    socket: Socket,
    /// Tells one connection from a later one in the same place.
    born: u64,
    messages: Messages,
    started: bool,
    state: u8,
    names: HashSet<Vec<u8>>,
    /// After an error everything up to the Sync is passed over.
    failed: bool,
}

impl Session {
    fn new(socket: Socket, born: u64) -> Self {
        let (messages, names) = (Messages::default(), HashSet::new());
        Self { socket, born, messages, started: false, state: b'I', names, failed: false }
    }

    /// Reads all that is there and answers; `false` when the answer is due later.
    fn turn(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        let mut at_once = true;
        self.socket.flush()?;
        while let Some(count) = self.socket.read(scratch)? {
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut out = Vec::new();
            let mut input = &scratch[..count];
            if !self.started {
                input = self.start(input, &mut out)?;
            }
            at_once &= self.answer(input, &mut out)?;
            if !out.is_empty() {
                self.socket.write(&out)?;
            }
            if count < scratch.len() {
                break;
            }
        }
        Ok(at_once)
    }

    /// Startup packets come whole: they are short, and nothing precedes them.
    fn start<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> io::Result<&'a [u8]> {
        if input == wire::SSL_REQUEST {
            out.push(b'N');
            return Ok(&[]);
        }
        let length = input.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes) as usize);
        let (packet, rest) = input.split_at_checked(length.max(8)).ok_or(io::ErrorKind::InvalidData)?;
        let asked: Vec<&[u8]> = packet[8..].split(|byte| *byte == 0).collect();
        out.extend(message(b'R', &[0; 4]));
        for (name, value) in PARAMETERS {
            let pair = asked.chunks_exact(2).find(|pair| pair[0].eq_ignore_ascii_case(name.as_bytes()));
            parameter(name, pair.map_or(value.as_bytes(), |pair| pair[1]), out);
        }
        out.extend(message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
        self.ready(out);
        self.started = true;
        Ok(rest)
    }

    fn ready(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[b'Z', 0, 0, 0, 5, self.state]);
    }

    fn answer(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        let mut messages = std::mem::take(&mut self.messages);
        let mut result = Ok(true);
        messages.feed(input, |kind, body| match self.message(kind, body, out) {
            Ok(at_once) => {
                if let Ok(all) = &mut result {
                    *all &= at_once;
                }
            }
            Err(error) => result = Err(error),
        });
        self.messages = messages;
        result
    }

    fn message(&mut self, kind: u8, body: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        match kind {
            b'd' => {}
            b'Q' => return self.query(text(body).0, out),
            b'X' => return Err(io::ErrorKind::ConnectionAborted.into()),
            b'S' => {
                self.failed = false;
                self.ready(out);
            }
            _ if self.failed => {}
            b'P' => {
                let (name, _) = text(body);
                if !name.is_empty() && !self.names.insert(name.to_vec()) {
                    self.fail(b"42P05", out);
                } else {
                    out.extend_from_slice(b"1\0\0\0\x04");
                }
            }
            b'B' => {
                let (_, rest) = text(body);
                let (name, _) = text(rest);
                if name.is_empty() || self.names.contains(name) {
                    out.extend_from_slice(b"2\0\0\0\x04");
                } else {
                    self.fail(b"26000", out);
                }
            }
            b'D' => out.extend_from_slice(ROW_DESCRIPTION),
            b'E' => out.extend_from_slice(ONE_ROW),
            b'C' => {
                self.names.remove(text(&body[1..]).0);
                out.extend_from_slice(b"3\0\0\0\x04");
            }
            b'c' => {
                out.extend(message(b'C', b"COPY 1\0"));
                self.ready(out);
            }
            _ => {}
        }
        Ok(true)
    }

    fn fail(&mut self, code: &[u8], out: &mut Vec<u8>) {
        self.failed = true;
        out.extend(message(b'E', &[b"SERROR\0VERROR\0C", code, b"\0Mno\0\0"].concat()));
    }

    fn one_row(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(ROW_DESCRIPTION);
        out.extend_from_slice(ONE_ROW);
        self.ready(out);
    }

    fn query(&mut self, sql: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        let text = String::from_utf8_lossy(sql);
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(1);
        match words.as_slice() {
            ["BEGIN", ..] => self.command(b"BEGIN\0", b'T', out),
            ["COMMIT" | "ROLLBACK", ..] => self.command(b"COMMIT\0", b'I', out),
            ["SET", ..] => {
                text.split(';').for_each(|one| set(one, out));
                self.ready(out);
            }
            ["rows", ..] => {
                out.extend_from_slice(ROW_DESCRIPTION);
                let length = u32::try_from(number(2)).map_err(io::Error::other)?;
                let row = [b"\0\x01".as_slice(), &length.to_be_bytes(), &vec![b'x'; length as usize]].concat();
                self.stream(&message(b'D', &row), number(1), message(b'C', b"SELECT 1\0"), out)?;
            }
            ["copy", "out", ..] => {
                out.extend(message(b'H', b"\0\0\x01\0\0"));
                let row = vec![b'x'; usize::try_from(number(3)).map_err(io::Error::other)?];
                self.stream(
                    &message(b'd', &row),
                    number(2),
                    [message(b'c', b""), message(b'C', b"COPY 1\0")].concat(),
                    out,
                )?;
            }
            ["copy", "in"] => out.extend(message(b'G', b"\0\0\x01\0\0")),
            ["delay"] => return Ok(false),
            _ => self.one_row(out),
        }
        Ok(true)
    }

    fn command(&mut self, tag: &[u8], state: u8, out: &mut Vec<u8>) {
        self.state = state;
        out.extend(message(b'C', tag));
        self.ready(out);
    }

    /// At least `count` copies of a message, rounded up to whole pieces.
    fn stream(&mut self, one: &[u8], count: u64, mut end: Vec<u8>, out: &mut Vec<u8>) -> io::Result<()> {
        self.ready(&mut end);
        self.socket.write(&std::mem::take(out))?;
        let copies = (PIECE_BYTES / one.len()).max(1);
        let piece = Rc::new(one.repeat(copies));
        self.socket.write_repeated(Repeated::new(piece, count.div_ceil(copies as u64), end)).map(drop)
    }
}

const ROW_DESCRIPTION: &[u8] = b"T\0\0\0\x1a\0\x01n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";
const ONE_ROW: &[u8] = b"D\0\0\0\x0b\0\x01\0\0\0\x011C\0\0\0\x0dSELECT 1\0";

fn parameter(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend(message(b'S', &[name.as_bytes(), b"\0", value, b"\0"].concat()));
}

/// One `SET name = 'value'` or `SET name TO 'value'`: what was set is reported.
fn set(statement: &str, out: &mut Vec<u8>) {
    let mut words = statement.split(|c: char| c.is_whitespace() || c == '=').filter(|word| !word.is_empty());
    let (Some(_), Some(name)) = (words.next(), words.next()) else { return };
    let value = statement.split('\'').nth(1).unwrap_or_default();
    if let Some((known, _)) = PARAMETERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        parameter(known, value.as_bytes(), out);
    }
    out.extend(message(b'C', b"SET\0"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_messages_have_the_lengths_they_say() {
        let mut kinds = Vec::new();
        Messages::default().feed(&[ROW_DESCRIPTION, ONE_ROW].concat(), |kind, _| kinds.push(kind));
        assert_eq!(kinds, [b'T', b'D', b'C']);
    }

    #[test]
    fn what_is_set_is_reported() {
        let mut out = Vec::new();
        set("SET datestyle='German'", &mut out);
        let mut found = Vec::new();
        Messages::default().feed(&out, |kind, body| found.push((kind, body.to_vec())));
        assert_eq!(found, [(b'S', b"DateStyle\0German\0".to_vec()), (b'C', b"SET\0".to_vec())]);
    }
}
