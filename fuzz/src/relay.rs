//! Both directions of the relay, in all pool modes, with and without prepared statements.
//!
//! The input is a little program: who speaks, and what, from a list of messages or byte by byte. It is run twice, once with
//! every stretch as it is and once cut into pieces, and both runs must come to the same.

use pgusher::config::LogLine;
use pgusher::disconnect::Disconnect;
use pgusher::relay::downstream::Downstream;
use pgusher::relay::link::{Ctx, align, settled};
use pgusher::relay::out::Out;
use pgusher::relay::prepared::Statements;
use pgusher::relay::side::{ClientSide, ServerSide, TxStatus};
use pgusher::relay::upstream::{Flow, Unlinked, Upstream, unlinked};
use pgusher::relay::vars::{Interner, TrackedNames, Vars};
use pgusher::stats::Counters;
use pgusher::time::Micros;

use super::bytes::{Bytes, messages, pieces, said};

/// What is fixed for a run.
#[derive(Clone, Copy)]
struct Setup {
    session: bool,
    statement: bool,
    tracking: usize,
    disable_pqexec: bool,
    max_packet: u32,
    /// The client's parameters are not the server's.
    differs: bool,
    /// The server is only lent when it is needed, and taken back when it can be.
    lends: bool,
}

impl Setup {
    fn read(from: &mut Bytes<'_>) -> Self {
        let flags = from.one();
        Self {
            session: flags & 3 == 0,
            statement: flags & 3 == 2,
            tracking: if flags & 4 == 0 { 0 } else { 1 + usize::from(flags >> 7) },
            disable_pqexec: flags & 8 != 0,
            max_packet: if flags & 16 == 0 { 0x7fff_ffff } else { 60 },
            differs: flags & 32 != 0,
            lends: flags & 64 != 0,
        }
    }
}

/// One stretch of bytes from one side.
struct Stretch {
    server: bool,
    bytes: Vec<u8>,
}

fn program(from: &mut Bytes<'_>) -> Vec<Stretch> {
    let mut program: Vec<Stretch> = Vec::new();
    let mut glued = false;
    while !from.0.is_empty() && program.len() < 64 {
        let op = from.one();
        let server = op & 0x80 != 0;
        let bytes = match op & 0x3f {
            n @ 0..40 if server => SERVER[usize::from(n) % SERVER.len()].message(),
            n @ 0..40 => CLIENT[usize::from(n) % CLIENT.len()].message(),
            _ => from.stretch().to_vec(),
        };
        match program.last_mut() {
            Some(last) if glued && last.server == server => last.bytes.extend_from_slice(&bytes),
            _ => program.push(Stretch { server, bytes }),
        }
        glued = op & 0x40 != 0;
    }
    program
}

/// A message to choose: its type, the beginning of its body, and the length to which it is filled up.
struct Sample(u8, &'static [u8], usize);

impl Sample {
    fn message(&self) -> Vec<u8> {
        let Self(tag, body, len) = *self;
        let mut message = vec![tag];
        message.extend_from_slice(&(body.len().max(len) as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        message.resize(5 + body.len().max(len), b'x');
        message
    }
}

const CLIENT: [Sample; 26] = [
    Sample(b'Q', b"SELECT 1\0", 0),
    Sample(b'S', b"", 0),
    Sample(b'P', b"a\0SELECT 1\0\0\0", 0),
    Sample(b'P', b"b\0SELECT 2\0\0\0", 0),
    Sample(b'P', b"\0SELECT 3\0\0\0", 0),
    Sample(b'B', b"\0a\0\0\0\0\0\0\0", 0),
    Sample(b'B', b"p\0b\0\0\0\0\0\0\0", 0),
    Sample(b'B', b"\0\0\0\0\0\0\0\0", 0),
    Sample(b'D', b"Sa\0", 0),
    Sample(b'D', b"P\0", 0),
    Sample(b'E', b"\0\0\0\0\0", 0),
    Sample(b'C', b"Sa\0", 0),
    Sample(b'C', b"Sb\0", 0),
    Sample(b'H', b"", 0),
    Sample(b'F', b"\0\0\0\x01", 0),
    Sample(b'd', b"row", 0),
    Sample(b'c', b"", 0),
    Sample(b'f', b"no\0", 0),
    Sample(b'Q', b"DISCARD ALL\0", 0),
    Sample(b'P', b"\0DEALLOCATE ALL\0\0\0", 0),
    Sample(b'P', b"\0SELECT ", 1500),
    Sample(b'B', b"\0a\0", 1500),
    Sample(b'P', b"a\0SELECT ", 1500),
    Sample(b'Q', b"SELECT ", 1500),
    Sample(b'X', b"", 0),
    Sample(b'p', b"secret\0", 0),
];

const SERVER: [Sample; 28] = [
    Sample(b'Z', b"I", 0),
    Sample(b'Z', b"T", 0),
    Sample(b'Z', b"E", 0),
    Sample(b'1', b"", 0),
    Sample(b'2', b"", 0),
    Sample(b'3', b"", 0),
    Sample(b'C', b"SELECT 1\0", 0),
    Sample(b'C', b"DISCARD ALL\0", 0),
    Sample(b'T', b"\0\0", 0),
    Sample(b'D', b"\0\0", 0),
    Sample(b'E', b"SERROR\0C42601\0Mno\0\0", 0),
    Sample(b'E', b"SFATAL\0C57P01\0Mgone\0\0", 0),
    Sample(b'n', b"", 0),
    Sample(b't', b"\0\0", 0),
    Sample(b'I', b"", 0),
    Sample(b's', b"", 0),
    Sample(b'G', b"\0\0\0", 0),
    Sample(b'H', b"\0\0\0", 0),
    Sample(b'W', b"\0\0\0", 0),
    Sample(b'd', b"row", 0),
    Sample(b'c', b"", 0),
    Sample(b'S', b"application_name\0other\0", 0),
    Sample(b'S', b"unknown\0x\0", 0),
    Sample(b'N', b"SNOTICE\0Mhm\0\0", 0),
    Sample(b'A', b"\0\0\0\x01c\0\0", 0),
    Sample(b'V', b"\0\0\0\0", 0),
    Sample(b'D', b"\0\x01", 1500),
    Sample(b'1', b"", 1500),
];

/// Everything that a run came to.
struct Run {
    setup: Setup,
    names: TrackedNames,
    interner: Interner,
    table: Statements,
    tally: Counters,
    log: Vec<LogLine>,
    client: ClientSide,
    server: ServerSide,
    linked: bool,
    to_client: Vec<u8>,
    to_server: Vec<u8>,
    /// Input that waits.
    kept: Vec<u8>,
    waits: bool,
    end: Option<Disconnect>,
}

impl Run {
    fn new(setup: Setup) -> Self {
        let names = TrackedNames::new(["IntervalStyle"]);
        let ours = Vars::from_values(&names, [(0, "UTF8")]);
        let theirs = if setup.differs { ours.with(0, "LATIN1") } else { ours.clone() };
        let mut run = Self {
            setup,
            names,
            interner: Interner::default(),
            table: Statements::default(),
            tally: Counters::default(),
            log: Vec::new(),
            client: ClientSide::new(ours),
            server: ServerSide::new(theirs),
            linked: false,
            to_client: Vec::new(),
            to_server: Vec::new(),
            kept: Vec::new(),
            waits: false,
            end: None,
        };
        if !setup.lends {
            run.link();
        }
        run
    }

    /// Calls `act` with everything a relay call needs, and takes what it wrote: to the client, to the server.
    fn with<T>(
        &mut self,
        input: &[u8],
        act: impl FnOnce(&mut ClientSide, &mut ServerSide, &mut Ctx<'_>, &mut Out, &mut Out) -> T,
    ) -> T {
        let table = &mut self.table;
        let mut ctx = Ctx {
            now: Micros(7),
            tracking: self.setup.tracking,
            session_mode: self.setup.session,
            statement_mode: self.setup.statement,
            disable_pqexec: self.setup.disable_pqexec,
            max_packet: self.setup.max_packet,
            names: &self.names,
            interner: &mut self.interner,
            statements: &mut |tail| table.intern(tail),
            tally: &mut self.tally,
            log: &mut self.log,
            errors: &mut Vec::new(),
            verbose: false,
        };
        let (mut back, mut out) = (Out::default(), Out::default());
        let done = act(&mut self.client, &mut self.server, &mut ctx, &mut back, &mut out);
        back.slices(input).for_each(|slice| self.to_client.extend_from_slice(slice));
        out.slices(input).for_each(|slice| self.to_server.extend_from_slice(slice));
        done
    }

    fn link(&mut self) {
        self.linked = true;
        self.waits |= self.with(&[], |client, server, ctx, _, out| align(client, server, ctx, out));
    }

    fn client_says(&mut self, piece: &[u8]) {
        self.kept.extend_from_slice(piece);
        if !self.waits {
            self.go_on();
        }
    }

    /// Takes what was kept as far as it goes.
    fn go_on(&mut self) {
        let input = std::mem::take(&mut self.kept);
        let mut at = 0;
        self.waits = false;
        if !self.linked {
            match self.with(&input, |client, _, ctx, back, _| unlinked(client, ctx, &input, back)) {
                Err(end) => return self.ends(end),
                Ok(Unlinked::Consumed) => return,
                Ok(Unlinked::NeedServer { at: from }) => at = from,
            }
            assert!(at <= input.len());
            self.link();
            if self.waits {
                self.kept = input[at..].to_vec();
                return;
            }
        }
        let ran = self
            .with(&input, |client, server, ctx, back, out| Upstream { client, server, ctx, out, back }.run(&input, at));
        match ran {
            Err(end) => self.ends(end),
            Ok(Flow::Consumed) => {}
            Ok(Flow::Settle { at }) => {
                assert!(!self.server.outstanding.is_empty(), "waits for nothing");
                self.kept = input[at..].to_vec();
                self.waits = true;
            }
        }
    }

    fn server_says(&mut self, piece: &[u8]) {
        let linked = self.linked;
        let ran = self.with(piece, |client, server, ctx, back, _| {
            Downstream { client: linked.then_some(client), server, ctx, out: back }.run(piece)
        });
        if let Err(end) = ran {
            self.ends(end);
        } else if self.server.leaving {
            self.ends(Disconnect::silent("leaving"));
        }
    }

    /// After what the server said: input that waited goes on, the server goes back.
    fn server_said(&mut self) {
        if self.waits && !self.server.setting_vars {
            self.go_on();
        }
        let free = self.end.is_none() && !self.waits && self.kept.is_empty() && settled(&self.client, &self.server);
        if free && self.linked && self.setup.lends && !self.setup.session {
            assert!(self.server.is_clean() && self.server.outstanding.is_empty(), "given back while it owes");
            self.client.settle();
            self.linked = false;
        }
    }

    fn ends(&mut self, end: Disconnect) {
        self.end = Some(end);
    }

    fn play(&mut self, program: &[Stretch], seed: Option<u64>, mut after: impl FnMut(&Self, usize)) {
        for (number, stretch) in program.iter().enumerate() {
            let cut = seed.map_or_else(|| vec![&stretch.bytes[..]], |seed| pieces(&stretch.bytes, seed));
            for piece in cut {
                if self.end.is_none() && stretch.server {
                    self.server_says(piece);
                } else if self.end.is_none() {
                    self.client_says(piece);
                }
            }
            if self.end.is_none() && stretch.server {
                self.server_said();
            }
            after(self, number);
        }
    }

    /// Why it ended. How many bytes of a bad header are shown depends on how many have come.
    fn why(&self) -> Option<&str> {
        let reason = &*self.end.as_ref()?.reason;
        Some(if reason.starts_with("bad packet header: '") { "bad packet header" } else { reason })
    }

    /// What can be seen from outside at the end.
    fn state(&self) -> (bool, bool, bool, TxStatus, usize, usize, usize, Counters) {
        let (client, server) = (&self.client, &self.server);
        let statements = server.statements.len();
        let (names, owed) = (client.prepared_statements(), server.outstanding.len());
        (self.linked, self.waits, settled(client, server), server.tx, owed, names, statements, self.tally)
    }
}

pub(crate) fn relay(data: &[u8]) {
    let mut from = Bytes(data);
    let setup = Setup::read(&mut from);
    let seed = u64::from(from.one());
    let program = program(&mut from);
    let mut whole = Run::new(setup);
    let mut owners = Owners::default();
    whole.play(&program, None, |run, number| owners.watch(&program[number], run));
    passes_on_unchanged(&whole, &program);
    // a Close that a client sends without a server is answered without one only if it comes in one piece
    if setup.lends && setup.tracking > 0 {
        return;
    }
    let mut cut = Run::new(setup);
    cut.play(&program, Some(seed), |_, _| ());
    // whether a server's end concerns its client depends on whether that had begun a message, be it by a single byte
    if !whole.server.leaving && !cut.server.leaving {
        assert_eq!(whole.why(), cut.why(), "another end");
    }
    if whole.end.is_none() && cut.end.is_none() {
        assert_eq!(whole.to_client, cut.to_client, "the client sees something else");
        assert_eq!(whole.to_server, cut.to_server, "the server sees something else");
        assert_eq!(whole.state(), cut.state());
        assert_eq!(whole.log, cut.log);
    } else {
        begins_alike(&whole.to_client, &cut.to_client);
        begins_alike(&whole.to_server, &cut.to_server);
    }
}

fn begins_alike(one: &[u8], other: &[u8]) {
    let len = one.len().min(other.len());
    assert_eq!(one[..len], other[..len]);
}

/// Without prepared statements and parameters to set, bytes pass as they are.
fn passes_on_unchanged(run: &Run, program: &[Stretch]) {
    if run.setup.tracking > 0 || run.setup.differs || run.setup.lends {
        return;
    }
    let all =
        |server: bool| program.iter().filter(move |stretch| stretch.server == server).flat_map(|s| s.bytes.clone());
    let (asked, answers): (Vec<u8>, Vec<u8>) = (all(false).collect(), all(true).collect());
    assert!(asked.starts_with(&run.to_server), "changed on the way to the server");
    // what a server says in the middle of an error, to a CopyDone that it must ignore, may be swallowed
    let (answers, _) = said(&answers);
    let mut rest = answers.iter();
    let mut got = messages(&run.to_client);
    if let Some((tag, body)) = got.pop() {
        let complete = |last: &&(u8, &[u8])| last.0 == tag && last.1.starts_with(body);
        assert!(got.iter().all(|message| rest.any(|one| one == message)), "changed on the way to the client");
        assert!(rest.any(|last| complete(&last)), "the last message is changed");
    }
}

/// Whose answers the client may get: what it has asked for and not seen the end of.
#[derive(Default)]
struct Owners {
    input: Vec<u8>,
    asked: Vec<u8>,
    seen_client: usize,
    seen_answers: usize,
}

impl Owners {
    fn watch(&mut self, stretch: &Stretch, run: &Run) {
        if !stretch.server {
            self.input.extend_from_slice(&stretch.bytes);
            let (said, _) = said(&self.input);
            let new = said[self.seen_client..].iter().map(|(tag, _)| *tag);
            self.asked.extend(new.filter(|tag| !matches!(tag, b'H' | b'd' | b'X')));
            self.seen_client = said.len();
        }
        for &(tag, _) in &messages(&run.to_server) {
            assert!(b"QFPBDECSHdcf".contains(&tag), "{} to a server", char::from(tag));
        }
        let answers = messages(&run.to_client);
        for &(tag, _) in &answers[self.seen_answers..] {
            self.answer(tag);
        }
        self.seen_answers = answers.len();
    }

    fn answer(&mut self, tag: u8) {
        if b"ENSA".contains(&tag) {
            return;
        }
        assert!(b"123TDCZIstnVGHWdc".contains(&tag), "{} to a client", char::from(tag));
        assert!(!self.asked.is_empty(), "{} without an owner", char::from(tag));
        if tag == b'Z' {
            let end = self.asked.iter().position(|tag| b"QSF".contains(tag));
            self.asked.drain(..=end.expect("an end of something without a beginning"));
        }
    }
}
