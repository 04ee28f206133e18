//! How long the relay takes for what passes through it, from bytes to the pieces that are to be written.

use divan::{Bencher, black_box};
use pgusher::relay::downstream::Downstream;
use pgusher::relay::link::{Ctx, align};
use pgusher::relay::out::Out;
use pgusher::relay::outstanding::{Give, Request};
use pgusher::relay::prepared::Statements;
use pgusher::relay::side::{ClientSide, ServerSide};
use pgusher::relay::upstream::{Upstream, unlinked};
use pgusher::relay::vars::{Interner, TrackedNames, Vars};
use pgusher::stats::Counters;
use pgusher::time::Micros;
use pgusher::wire::encode;

fn main() {
    divan::main();
}

/// A client and a server that are linked, and all that the relay wants from outside.
struct Pair {
    client: ClientSide,
    server: ServerSide,
    names: TrackedNames,
    interner: Interner,
    statements: Statements,
    to_server: Out,
    to_client: Out,
}

impl Pair {
    fn new() -> Self {
        let names = TrackedNames::new([]);
        let vars = values(&names, &[]);
        let (client, server) = (ClientSide::new(vars.clone()), ServerSide::new(vars));
        let (interner, statements) = (Interner::default(), Statements::default());
        Self { client, server, names, interner, statements, to_server: Out::default(), to_client: Out::default() }
    }

    /// Calls `turn` with both sides, as a worker does for one event.
    fn turn<R>(
        &mut self,
        turn: impl FnOnce(&mut ClientSide, &mut ServerSide, &mut Ctx<'_>, &mut Out, &mut Out) -> R,
    ) -> R {
        let (mut tally, mut errors, mut log) = (Counters::default(), Vec::new(), Vec::new());
        let statements = &mut self.statements;
        let mut ctx = Ctx {
            now: Micros::from_secs(100),
            tracking: 200,
            session_mode: false,
            statement_mode: false,
            disable_pqexec: false,
            max_packet: i32::MAX as u32,
            names: &self.names,
            interner: &mut self.interner,
            statements: &mut |tail| statements.intern(tail),
            tally: &mut tally,
            errors: &mut errors,
            log: &mut log,
            verbose: false,
        };
        self.to_server.clear();
        self.to_client.clear();
        turn(&mut self.client, &mut self.server, &mut ctx, &mut self.to_server, &mut self.to_client)
    }

    fn up(&mut self, input: &[u8]) {
        self.turn(|client, server, ctx, out, back| {
            unlinked(client, ctx, input, back).expect("it is well-formed");
            Upstream { client, server, ctx, out, back }.run(input, 0).expect("it is well-formed");
        });
    }

    fn down(&mut self, input: &[u8]) {
        self.turn(|client, server, ctx, _, out| {
            Downstream { client: Some(client), server, ctx, out }.run(input).expect("every answer has an owner");
        });
        assert!(self.server.outstanding.is_empty(), "all has been answered");
    }
}

/// Values as PostgreSQL reports them, some of them changed.
fn values(names: &TrackedNames, changed: &[(&str, &str)]) -> Vars {
    let usual = [
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("standard_conforming_strings", "on"),
        ("application_name", "app"),
    ];
    let all = usual.iter().chain(changed);
    Vars::from_values(names, all.filter_map(|(name, value)| Some((names.index_of(name)?, *value))))
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::message(&mut out, tag, |out| out.extend_from_slice(body));
    out
}

/// RowDescription of one column, a row, CommandComplete, ReadyForQuery.
fn one_row() -> Vec<u8> {
    let columns = message(b'T', b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
    [columns, message(b'D', b"\0\x01\0\0\0\x011"), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
}

fn batch(parts: &[(u8, &[u8])]) -> Vec<u8> {
    let ends: [(u8, &[u8]); 3] = [(b'D', b"P\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")];
    parts.iter().chain(&ends).flat_map(|(tag, body)| message(*tag, body)).collect()
}

/// A query to the server and its answer to the client.
#[divan::bench]
fn simple_query_and_answer(bencher: Bencher<'_, '_>) {
    let (mut pair, query, answer) = (Pair::new(), message(b'Q', b"SELECT 1\0"), one_row());
    bencher.bench_local(|| {
        pair.up(black_box(&query));
        pair.down(black_box(&answer));
    });
}

/// The answer alone: a row, its description and two ends.
#[divan::bench]
fn simple_answer(bencher: Bencher<'_, '_>) {
    let (mut pair, answer) = (Pair::new(), one_row());
    bencher.bench_local(|| {
        pair.server.outstanding.push(Request::Query, Give::Forward);
        pair.down(black_box(&answer));
    });
}

/// An unnamed statement, parsed, bound and executed: nothing is rewritten.
#[divan::bench]
fn extended_query_and_answer(bencher: Bencher<'_, '_>) {
    let request = batch(&[(b'P', b"\0SELECT 1\0\0\0"), (b'B', b"\0\0\0\0\0\0\0\0")]);
    let answer = [message(b'1', b""), message(b'2', b""), one_row()].concat();
    let mut pair = Pair::new();
    bencher.bench_local(|| {
        pair.up(black_box(&request));
        pair.down(black_box(&answer));
    });
}

/// A named statement that client and server know: the name in Bind becomes the server's.
#[divan::bench]
fn bind_of_a_known_name(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new();
    pair.up(&batch(&[(b'P', b"name\0SELECT 1\0\0\0"), (b'B', b"\0name\0\0\0\0\0\0\0")]));
    pair.down(&[message(b'1', b""), message(b'2', b""), one_row()].concat());
    let request = batch(&[(b'B', b"\0name\0\0\0\0\0\0\0")]);
    let answer = [message(b'2', b""), one_row()].concat();
    bencher.bench_local(|| {
        pair.up(black_box(&request));
        pair.down(black_box(&answer));
    });
}

/// A named statement that the client knows and its new server does not: a Parse goes ahead, and its answer is swallowed.
#[divan::bench]
fn bind_of_a_name_that_the_server_lacks(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new();
    let known = [message(b'1', b""), message(b'2', b""), one_row()].concat();
    pair.up(&batch(&[(b'P', b"name\0SELECT 1\0\0\0"), (b'B', b"\0name\0\0\0\0\0\0\0")]));
    pair.down(&known);
    let request = batch(&[(b'B', b"\0name\0\0\0\0\0\0\0")]);
    bencher.bench_local(|| {
        pair.server.statements.clear();
        pair.up(black_box(&request));
        pair.down(black_box(&known));
    });
}

/// What a parameter comparison meets: the same set, sets of equal values, and one value that differs.
#[derive(Debug)]
enum Sets {
    Shared,
    Equal,
    Different,
}

/// The parameters of a client and of the server that it was lent.
#[divan::bench(args = [Sets::Shared, Sets::Equal, Sets::Different])]
fn align_parameters(bencher: Bencher<'_, '_>, sets: &Sets) {
    let mut pair = Pair::new();
    let wanted = match sets {
        Sets::Shared => pair.server.vars.clone(),
        Sets::Equal => values(&pair.names, &[]),
        Sets::Different => values(&pair.names, &[("application_name", "another")]),
    };
    let has = pair.server.vars.clone();
    bencher.bench_local(|| {
        pair.client.vars = wanted.clone();
        pair.server.vars = has.clone();
        let asked = pair.turn(|client, server, ctx, out, _| align(client, server, ctx, out));
        assert_eq!(asked, matches!(sets, Sets::Different));
        if asked {
            pair.down(&[message(b'C', b"SET\0"), message(b'Z', b"I")].concat());
        }
    });
}
