//! The state of a client's session and of a server connection as bytes, for the process that takes their sockets over.
//!
//! Only what a descriptor and a row of SHOW FDS do not say: all tracked values, prepared statements, answers owed, input
//! that was read and not used. Both sides are between two messages. What comes from the other process is checked as if it
//! came from a stranger: `None` means that it makes no sense.

use std::collections::HashMap;
use std::sync::Arc;

use crate::relay::outstanding::{Expected, Give, Outstanding, Request};
use crate::relay::prepared::{Statement, Statements, Undo};
use crate::relay::side::{ClientSide, ServerSide, TxStatus};
use crate::relay::vars::{Interner, TrackedNames, Vars};
use crate::time::Micros;

/// Statements by number, as far as the successor has been told of them.
pub type Known = HashMap<u64, Arc<Statement>>;

/// What a handover knows of all connections: the names that are tracked, and the statements they speak of.
pub struct Context<'a> {
    pub names: &'a TrackedNames,
    pub interner: &'a mut Interner,
    pub known: &'a Known,
}

/// Appends numbers and strings.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    fn flag(&mut self, value: bool) {
        self.byte(u8::from(value));
    }

    fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn vars(&mut self, vars: &Vars, names: &TrackedNames) {
        let set: Vec<_> = vars.iter(names).collect();
        self.number(set.len() as u64);
        for (name, value) in set {
            self.bytes(name.as_bytes());
            self.bytes(value.as_bytes());
        }
    }
}

/// Takes them off again.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.byte()? != 0)
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// A name that is no longer tracked is passed over.
    fn vars(&mut self, names: &TrackedNames) -> Option<Vars> {
        let mut vars = Vars::unset(names);
        for _ in 0..self.number()? {
            let (name, value) = (self.text()?, self.text()?);
            if let Some(index) = names.index_of(name) {
                vars = vars.with(index, value);
            }
        }
        Some(vars)
    }

    fn statement(&mut self, known: &Known) -> Option<Arc<Statement>> {
        known.get(&self.number()?).cloned()
    }
}

/// What clients of a pool are told at their login.
#[derive(Debug)]
pub struct Reply {
    pub database: String,
    pub user: String,
    /// ParameterStatus messages of names that are not tracked.
    pub untracked: Vec<u8>,
    pub tracked: Vars,
}

/// The login reply of a pool.
#[must_use]
pub fn put_reply(database: &str, user: &str, untracked: &[u8], tracked: &Vars, names: &TrackedNames) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(database.as_bytes());
    out.bytes(user.as_bytes());
    out.bytes(untracked);
    out.vars(tracked, names);
    out.0
}

/// What [`put_reply`] wrote.
#[must_use]
pub fn take_reply(bytes: &[u8], names: &TrackedNames) -> Option<Reply> {
    let mut from = Reader(bytes);
    let (database, user) = (from.text()?.to_owned(), from.text()?.to_owned());
    Some(Reply { database, user, untracked: from.bytes()?.to_vec(), tracked: from.vars(names)? })
}

/// A client: its session, and input that was read and not passed on yet.
#[must_use]
pub fn put_client(side: &ClientSide, input: &[u8], names: &TrackedNames) -> Vec<u8> {
    let mut out = Writer::default();
    out.vars(&side.vars, names);
    out.flag(side.copying);
    out.flag(side.closed_locally);
    out.flag(side.extra.as_ref().is_some_and(|extra| extra.forgets));
    out.flag(!side.query_start.is_zero());
    out.flag(!side.xact_start.is_zero());
    out.bytes(&[side.scan.partial_header(), input].concat());
    let statements: Vec<_> = side.names().map(|names| names.iter().collect()).unwrap_or_default();
    out.number(statements.len() as u64);
    for (name, statement) in statements {
        out.bytes(name);
        out.number(statement.number);
    }
    out.0
}

/// What [`put_client`] wrote; open queries and transactions count from `now`.
#[must_use]
pub fn take_client(bytes: &[u8], ctx: &mut Context<'_>, now: Micros) -> Option<(ClientSide, Vec<u8>)> {
    let mut from = Reader(bytes);
    let mut side = ClientSide::new(ctx.interner.intern(from.vars(ctx.names)?));
    side.copying = from.flag()?;
    side.closed_locally = from.flag()?;
    if from.flag()? {
        side.extra().forgets = true;
    }
    let since = |open: bool| if open { now } else { Micros::ZERO };
    side.query_start = since(from.flag()?);
    side.xact_start = since(from.flag()?);
    let input = from.bytes()?.to_vec();
    for _ in 0..from.number()? {
        let name = from.bytes()?;
        let statement = from.statement(ctx.known)?;
        side.extra().names.bind(name, statement);
    }
    Some((side, input))
}

/// A server connection.
#[must_use]
pub fn put_server(side: &ServerSide, names: &TrackedNames) -> Vec<u8> {
    let mut out = Writer::default();
    out.vars(&side.vars, names);
    out.byte(match side.tx {
        TxStatus::Idle => b'I',
        TxStatus::InTransaction => b'T',
        TxStatus::Failed => b'E',
    });
    out.flag(side.ready);
    out.flag(side.copying);
    let statements: Vec<_> = side.statements.oldest_first().collect();
    out.number(statements.len() as u64);
    for statement in statements {
        out.number(statement.number);
    }
    let (skipping, queue) = side.outstanding.parts();
    out.flag(skipping);
    out.number(queue.len() as u64);
    for entry in queue {
        put_expected(&mut out, entry);
    }
    out.0
}

/// What [`put_server`] wrote.
#[must_use]
pub fn take_server(bytes: &[u8], ctx: &mut Context<'_>) -> Option<ServerSide> {
    let mut from = Reader(bytes);
    let mut side = ServerSide::new(ctx.interner.intern(from.vars(ctx.names)?));
    side.tx = TxStatus::from_byte(from.byte()?)?;
    side.ready = from.flag()?;
    side.copying = from.flag()?;
    for _ in 0..from.number()? {
        side.statements.insert(from.statement(ctx.known)?);
    }
    let skipping = from.flag()?;
    let mut queue = Vec::new();
    for _ in 0..from.number()? {
        queue.push(take_expected(&mut from, ctx.known)?);
    }
    side.outstanding = Outstanding::from_parts(skipping, queue);
    Some(side)
}

const REQUESTS: [Request; 10] = [
    Request::Query,
    Request::FunctionCall,
    Request::Parse,
    Request::Bind,
    Request::Describe,
    Request::Execute,
    Request::Close,
    Request::Sync,
    Request::CopyDone,
    Request::Inherited,
];

const GIVES: [Give; 4] = [Give::Forward, Give::Skip, Give::Fake, Give::Inherited];

fn position<T: PartialEq>(all: &[T], one: &T) -> u8 {
    let at = all.iter().position(|other| other == one);
    at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

fn put_expected(out: &mut Writer, entry: &Expected) {
    out.byte(position(&REQUESTS, &entry.request));
    out.byte(position(&GIVES, &entry.give));
    let Some(undo) = entry.undo.as_deref() else { return out.byte(0) };
    out.byte(match undo {
        Undo::Named { on_server: false, .. } => 1,
        Undo::Named { on_server: true, .. } => 2,
        Undo::Injected { .. } => 3,
        Undo::Closed { .. } => 4,
        Undo::Evicted { .. } => 5,
        Undo::Duplicate { .. } => 6,
        Undo::Forgets => 7,
    });
    let Some(statement) = undo.statement() else { return };
    out.number(statement.number);
    match undo {
        Undo::Named { name, .. } | Undo::Closed { name, .. } | Undo::Duplicate { name, .. } => out.bytes(name),
        Undo::Injected { .. } | Undo::Evicted { .. } | Undo::Forgets => out.bytes(b""),
    }
}

fn take_expected(from: &mut Reader<'_>, known: &Known) -> Option<Expected> {
    let request = *REQUESTS.get(usize::from(from.byte()?))?;
    let give = *GIVES.get(usize::from(from.byte()?))?;
    let kind = from.byte()?;
    if kind == 0 {
        return Some(Expected { request, give, undo: None });
    }
    if kind == 7 {
        return Some(Expected { request, give, undo: Some(Box::new(Undo::Forgets)) });
    }
    let statement = from.statement(known)?;
    let name: Box<[u8]> = from.bytes()?.into();
    let undo = match kind {
        1 | 2 => Undo::Named { name, statement, on_server: kind == 2 },
        3 => Undo::Injected { statement },
        4 => Undo::Closed { name, statement },
        5 => Undo::Evicted { statement },
        6 => Undo::Duplicate { name, statement },
        _ => return None,
    };
    Some(Expected { request, give, undo: Some(Box::new(undo)) })
}

/// Every statement that the clients or servers handed over speak of.
pub fn statements_of(client: Option<&ClientSide>, server: Option<&ServerSide>, into: &mut Known) {
    let mut note = |statement: &Arc<Statement>| {
        into.entry(statement.number).or_insert_with(|| statement.clone());
    };
    if let Some(names) = client.and_then(ClientSide::names) {
        names.iter().for_each(|(_, statement)| note(statement));
    }
    let Some(server) = server else { return };
    server.statements.oldest_first().for_each(&mut note);
    server.outstanding.undos().filter_map(Undo::shared).for_each(note);
}

/// Takes the statements of a predecessor over under their numbers, for servers know them by these. `None` if two of them
/// contradict each other.
#[must_use]
pub fn adopt_statements(table: &mut Statements, all: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Option<Known> {
    all.into_iter().map(|(number, tail)| Some((number, table.adopt(number, &tail)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> TrackedNames {
        TrackedNames::new(["IntervalStyle"])
    }

    /// A client and a server in the middle of a batch, with one statement prepared and another one on its way.
    fn busy(table: &mut Statements) -> (ClientSide, ServerSide) {
        let names = names();
        let vars = Vars::unset(&names).with(4, "app").with(5, "iso_8601");
        let mut client = ClientSide::new(vars.clone());
        let [a, b] = [&b"select 1\0\0\0"[..], b"select 2\0\0\0"].map(|tail| table.intern(tail));
        client.extra().names.bind(b"first", a.clone());
        client.extra().names.bind(b"second", b.clone());
        client.query_start = Micros(7);
        client.extra().forgets = true;
        let mut server = ServerSide::new(vars);
        server.ready = false;
        server.tx = TxStatus::InTransaction;
        server.statements.insert(b.clone());
        server.statements.insert(a.clone());
        server.outstanding.push_with(Request::Parse, Give::Skip, Undo::Injected { statement: a });
        let undo = Undo::Named { name: (*b"second").into(), statement: b, on_server: true };
        server.outstanding.push_with(Request::Parse, Give::Forward, undo);
        server.outstanding.push(Request::Sync, Give::Forward);
        (client, server)
    }

    #[test]
    fn what_was_put_is_taken() {
        let mut table = Statements::default();
        table.intern(b"not handed over\0\0\0");
        let (client, server) = busy(&mut table);
        let mut all = Known::new();
        statements_of(Some(&client), Some(&server), &mut all);
        let (put_client, put_server) = (put_client(&client, b"rest", &names()), put_server(&server, &names()));

        let mut next = Statements::default();
        let tails = all.values().map(|statement| (statement.number, statement.tail.to_vec()));
        let known = adopt_statements(&mut next, tails).expect("no contradiction");
        let names = names();
        let mut ctx = Context { names: &names, interner: &mut Interner::default(), known: &known };
        let (client, input) = take_client(&put_client, &mut ctx, Micros(99)).expect("makes sense");
        let server = take_server(&put_server, &mut ctx).expect("makes sense");
        assert_eq!(input, b"rest");
        assert_eq!((client.query_start, client.xact_start), (Micros(99), Micros::ZERO));
        assert!(client.extra.as_ref().is_some_and(|extra| extra.forgets));
        assert!(client.vars.ptr_eq(&server.vars));
        assert_eq!(client.vars.get(5), Some("iso_8601"));
        let second = client.names().and_then(|names| names.get(b"second")).expect("kept");
        assert_eq!((second.number, &*second.name), (3, &b"PGBOUNCER_3"[..]));
        assert_eq!((server.tx, server.ready), (TxStatus::InTransaction, false));
        assert_eq!(server.statements.oldest_first().map(|s| s.number).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(server.outstanding.len(), 3);
        assert_eq!(
            server
                .outstanding
                .undos()
                .filter_map(Undo::statement)
                .map(|statement| statement.number)
                .collect::<Vec<_>>(),
            [2, 3]
        );
        assert_eq!(next.intern(b"a new one\0\0\0").number, 4, "numbers go on");
        assert_eq!(super::put_server(&server, &names), put_server);
    }

    #[test]
    fn nonsense_is_refused_wherever_it_is_cut() {
        let mut table = Statements::default();
        let (client, server) = busy(&mut table);
        let mut known = Known::new();
        statements_of(Some(&client), Some(&server), &mut known);
        let names = names();
        let (client, server) = (put_client(&client, b"", &names), put_server(&server, &names));
        let mut ctx = Context { names: &names, interner: &mut Interner::default(), known: &known };
        for end in 0..client.len() {
            assert!(take_client(&client[..end], &mut ctx, Micros::ZERO).is_none(), "{end}");
        }
        for end in 0..server.len() {
            assert!(take_server(&server[..end], &mut ctx).is_none(), "{end}");
        }
        assert!(take_client(&[0xff; 64], &mut ctx, Micros::ZERO).is_none());
        let mut ctx = Context { names: &names, interner: &mut Interner::default(), known: &Known::new() };
        assert!(take_client(&client, &mut ctx, Micros::ZERO).is_none(), "statements nobody has heard of");
    }

    #[test]
    fn login_replies_too() {
        let names = names();
        let put = put_reply("p0", "app", b"S...", &Vars::unset(&names).with(0, "ISO"), &names);
        let reply = take_reply(&put, &names).expect("makes sense");
        assert_eq!((&*reply.database, &*reply.user, &*reply.untracked), ("p0", "app", &b"S..."[..]));
        assert_eq!(reply.tracked.get(0), Some("ISO"));
    }

    #[test]
    fn a_statement_keeps_its_number_or_nothing_is_kept() {
        let mut table = Statements::default();
        let tails = |list: &[(u64, &str)]| list.iter().map(|(n, t)| (*n, t.as_bytes().to_vec())).collect::<Vec<_>>();
        let known = adopt_statements(&mut table, tails(&[(5, "a"), (7, "b"), (5, "a")])).expect("no contradiction");
        assert_eq!(known.len(), 2);
        assert!(adopt_statements(&mut table, tails(&[(6, "a")])).is_none());
        assert_eq!(table.intern(b"c").number, 8);
    }
}
