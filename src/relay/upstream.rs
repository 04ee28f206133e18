//! Client bytes on their way to the server.
//!
//! Headers are read, bodies are passed on as ranges of the input. Only messages that name a prepared statement are looked
//! into, and collected if they were cut. Every request that the server will answer gets its entry in the queue of
//! outstanding answers here and nowhere else. Source: protocol chapters "Message Flow" and "Extended Query".

use std::borrow::Cow;
use std::sync::Arc;

use crate::config::LogLine;
use crate::disconnect::Disconnect;
use crate::relay::link::{Ctx, give_due};
use crate::relay::out::Out;
use crate::relay::outstanding::{Give, Request};
use crate::relay::prepared::{Statement, Undo, may_forget, parse_message};
use crate::relay::side::{Body, ClientSide, ServerSide, TxStatus};
use crate::wire::encode;
use crate::wire::fields::{bind_names, split_cstr};
use crate::wire::scan::{HEADER_LEN, Item};
use crate::wire::tag::frontend as fe;

/// Queries and unnamed statements up to this size are looked at as a whole even when they were cut.
const SHORT_QUERY: u32 = 1024;

/// How far a piece of client input got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// All of it was handled or is remembered.
    Consumed,
    /// The input from here on must wait until the server has answered what it owes.
    Settle { at: usize },
}

/// What an unlinked client's input comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlinked {
    /// All of it was handled or is remembered.
    Consumed,
    /// The message at this offset needs a server.
    NeedServer { at: usize },
}

/// One turn of client input towards a linked server.
pub struct Upstream<'a, 'c> {
    pub client: &'a mut ClientSide,
    pub server: &'a mut ServerSide,
    pub ctx: &'a mut Ctx<'c>,
    /// To the server.
    pub out: &'a mut Out,
    /// To the client.
    pub back: &'a mut Out,
}

/// A message that is all here: its bytes, and where in the input they are unless they were collected.
#[derive(Clone, Copy)]
struct Message<'m> {
    bytes: &'m [u8],
    at: Option<usize>,
}

impl Message<'_> {
    fn body(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// Forwards the message from byte `from` on.
    fn forward(&self, from: usize, out: &mut Out) {
        match self.at {
            Some(at) => out.forward(at + from, at + self.bytes.len()),
            None => out.own(|own| own.extend_from_slice(&self.bytes[from..])),
        }
    }
}

enum Handled {
    Done,
    Settle,
}

impl Upstream<'_, '_> {
    /// Takes `input` from `at` on to the server.
    ///
    /// # Errors
    /// The client must go; the server with it unless it is clean.
    #[inline]
    pub fn run(&mut self, input: &[u8], at: usize) -> Result<Flow, Disconnect> {
        if self.client.extra.as_ref().is_some_and(|extra| extra.held) && !self.held()? {
            return Ok(Flow::Settle { at });
        }
        let mut pos = at;
        loop {
            let start = pos;
            let item =
                self.client.scan.next(input, &mut pos, self.ctx.max_packet).map_err(|bad| bad_header(&bad.hex()))?;
            match item {
                None => return Ok(Flow::Consumed),
                Some(Item::Whole { tag, start, end }) => {
                    let message = Message { bytes: &input[start..end], at: Some(start) };
                    if let Handled::Settle = self.message(tag, message)? {
                        return Ok(Flow::Settle { at: start });
                    }
                }
                Some(Item::Begin { tag, .. }) => self.begin(tag, start, pos)?,
                Some(Item::Body { start, end, last }) => {
                    if !self.body(&input[start..end], start, last)? {
                        return Ok(Flow::Settle { at: pos });
                    }
                }
            }
        }
    }

    /// A collected message waited for the server to settle; false if it still must.
    fn held(&mut self) -> Result<bool, Disconnect> {
        let extra = self.client.extra();
        let bytes = std::mem::take(&mut extra.collect);
        extra.held = false;
        self.collected(bytes)
    }

    fn collected(&mut self, bytes: Vec<u8>) -> Result<bool, Disconnect> {
        let handled = self.message(bytes[0], Message { bytes: &bytes, at: None })?;
        if let Handled::Settle = handled {
            let extra = self.client.extra();
            extra.collect = bytes;
            extra.held = true;
            return Ok(false);
        }
        Ok(true)
    }

    /// The header of a cut message; `start..pos` is its part in the input.
    fn begin(&mut self, tag: u8, start: usize, pos: usize) -> Result<(), Disconnect> {
        let header = self.client.scan.header();
        let short_query = tag == fe::QUERY && self.client.scan.left() <= SHORT_QUERY;
        if self.ctx.tracking > 0 && (short_query || matches!(tag, fe::PARSE | fe::BIND | fe::DESCRIBE | fe::CLOSE)) {
            let extra = self.client.extra();
            extra.collect.clear();
            extra.collect.extend_from_slice(&header);
            self.client.body = Body::Collect;
            return Ok(());
        }
        self.note(tag)?;
        self.count(HEADER_LEN);
        self.client.body = Body::Forward;
        if pos - start == HEADER_LEN {
            self.out.forward(start, pos);
        } else {
            self.out.own(|own| own.extend_from_slice(&header));
        }
        Ok(())
    }

    /// A piece of the body of a cut message; false if the message must wait for the server to settle.
    fn body(&mut self, piece: &[u8], at: usize, last: bool) -> Result<bool, Disconnect> {
        match self.client.body {
            Body::Discard => {}
            Body::Forward => {
                self.count(piece.len());
                self.out.forward(at, at + piece.len());
            }
            Body::Collect => {
                let extra = self.client.extra();
                extra.collect.extend_from_slice(piece);
                if last {
                    let bytes = std::mem::take(&mut extra.collect);
                    self.client.body = Body::Forward;
                    return self.collected(bytes);
                }
                self.decide_early()?;
            }
        }
        Ok(true)
    }

    /// Streams the rest of a message of which enough is known: an unnamed Parse, a Bind whose names are here.
    fn decide_early(&mut self) -> Result<(), Disconnect> {
        let extra = self.client.extra();
        let body = &extra.collect[HEADER_LEN..];
        let unnamed = match extra.collect[0] {
            // a short one is waited for: it may be told to forget
            fe::PARSE => body.first() == Some(&0) && body.len() > SHORT_QUERY as usize,
            fe::BIND => matches!(bind_names(body), Some((_, statement, _)) if statement.is_empty()),
            _ => false,
        };
        let named_bind = extra.collect[0] == fe::BIND && !unnamed && bind_names(body).is_some();
        if !unnamed && !named_bind {
            return Ok(());
        }
        let bytes = std::mem::take(&mut extra.collect);
        if named_bind {
            let total = bytes.len() + self.client.scan.left() as usize;
            if let Handled::Settle = self.bind(Message { bytes: &bytes, at: None }, total)? {
                // The rest is still to come: keep collecting, the whole message waits.
                self.client.extra().collect = bytes;
                return Ok(());
            }
        } else {
            self.note(bytes[0])?;
            self.count(bytes.len());
            self.out.own(|own| own.extend_from_slice(&bytes));
        }
        self.client.body = Body::Forward;
        Ok(())
    }

    fn count(&mut self, bytes: usize) {
        self.ctx.tally.client_bytes += bytes as u64;
    }

    /// A message that is all here.
    #[inline]
    fn message(&mut self, tag: u8, message: Message<'_>) -> Result<Handled, Disconnect> {
        if self.ctx.tracking > 0 {
            match tag {
                fe::PARSE => return self.parse(message),
                fe::BIND => return self.bind(message, message.bytes.len()),
                fe::DESCRIBE => return self.describe(message),
                fe::CLOSE => return self.close(message),
                fe::QUERY if may_forget(message.body()) => return self.forget(message),
                _ => {}
            }
        }
        self.note(tag)?;
        self.count(message.bytes.len());
        message.forward(0, self.out);
        Ok(Handled::Done)
    }

    /// A Query that may be DISCARD ALL or DEALLOCATE ALL.
    fn forget(&mut self, message: Message<'_>) -> Result<Handled, Disconnect> {
        self.note(fe::QUERY)?;
        self.server.outstanding.mark_last(Undo::Forgets);
        self.count(message.bytes.len());
        message.forward(0, self.out);
        Ok(Handled::Done)
    }

    /// Enters the expected answer of a message that is forwarded as it is.
    #[inline]
    fn note(&mut self, tag: u8) -> Result<(), Disconnect> {
        let request = match tag {
            fe::QUERY => {
                if self.ctx.disable_pqexec {
                    self.ctx.log.push(LogLine::error("client used \"Query\" packet type"));
                    return Err(Disconnect::fatal("PQexec disallowed"));
                }
                Request::Query
            }
            fe::FUNCTION_CALL => Request::FunctionCall,
            fe::PARSE => Request::Parse,
            fe::BIND => Request::Bind,
            fe::DESCRIBE => Request::Describe,
            fe::EXECUTE => Request::Execute,
            fe::CLOSE => Request::Close,
            fe::SYNC => Request::Sync,
            fe::COPY_DONE | fe::COPY_FAIL => {
                self.client.copying = false;
                self.server.outstanding.push_copy_done();
                self.server.ready = false;
                return Ok(());
            }
            fe::COPY_DATA => return Ok(()),
            fe::FLUSH => {
                self.opens();
                return Ok(());
            }
            fe::TERMINATE => return Err(Disconnect::silent("client close request")),
            other => return Err(unknown(other, self.ctx.log)),
        };
        self.opens();
        self.server.outstanding.push(request, Give::Forward);
        if request == Request::Sync
            && let Some(extra) = &mut self.client.extra
            && std::mem::take(&mut extra.forgets)
        {
            self.server.outstanding.mark_last(Undo::Forgets);
        }
        Ok(())
    }

    #[inline]
    fn opens(&mut self) {
        self.ctx.request_begins(self.client);
        self.server.ready = false;
    }

    /// True if an earlier batch that is still open may yet change what `name` means, or which statements the server has:
    /// should it fail, what it did in advance is taken back; should it forget all statements, nothing is left.
    ///
    /// A statement that the server lacks drops another one when the server has its fill. Which one must not be chosen
    /// while an earlier batch may take its own choices back.
    fn undecided(&self, name: &[u8], statement: Option<&Statement>) -> bool {
        let has = &self.server.statements;
        let evicts = |statement: &Statement| has.len() >= self.ctx.tracking && !has.contains(statement);
        self.server.outstanding.undecided().any(|undo| {
            matches!(undo, Undo::Forgets)
                || undo.client_name() == Some(name)
                || statement.is_some_and(|ours| {
                    undo.statement().is_some_and(|theirs| theirs.number == ours.number) || evicts(ours)
                })
        })
    }

    fn parse(&mut self, message: Message<'_>) -> Result<Handled, Disconnect> {
        let (name, tail) = split_cstr(message.body()).ok_or_else(|| self.unreadable('P'))?;
        if name.is_empty() {
            if may_forget(split_cstr(tail).map_or(tail, |(sql, _)| sql)) {
                self.client.extra().forgets = true;
            }
            self.note(fe::PARSE)?;
            self.count(message.bytes.len());
            message.forward(0, self.out);
            return Ok(Handled::Done);
        }
        if split_cstr(tail).is_none() {
            return Err(Disconnect::fatal("broken Parse packet"));
        }
        let known = self.client.names().and_then(|names| names.get(name)).cloned();
        let statement = known.clone().unwrap_or_else(|| (self.ctx.statements)(tail));
        if self.undecided(name, Some(&statement)) {
            return Ok(Handled::Settle);
        }
        self.opens();
        self.count(message.bytes.len());
        self.ctx.tally.client_parse_count += 1;
        if let Some(known) = known {
            self.duplicate(name, tail, known);
            return Ok(Handled::Done);
        }
        self.client.extra().names.bind(name, statement.clone());
        let mut on_server = self.server.statements.contains(&statement);
        if on_server && self.in_failed_transaction() {
            self.drop_from_server(&statement);
            on_server = false;
        }
        let undo = Undo::Named { name: name.into(), statement: statement.clone(), on_server: !on_server };
        if on_server {
            self.server.outstanding.push_with(Request::Parse, Give::Fake, undo);
            give_due(self.server, self.back);
        } else {
            self.out.own(|own| statement.parse_message(own));
            self.server.outstanding.push_with(Request::Parse, Give::Forward, undo);
            self.sent_parse(statement);
        }
        Ok(Handled::Done)
    }

    /// The client uses the name already. The server must say so itself, for its refusal ends the batch: it gets the Parse
    /// under the server-side name that it has.
    fn duplicate(&mut self, name: &[u8], tail: &[u8], known: Arc<Statement>) {
        let line = format!("prepared statement '{}' was already prepared", String::from_utf8_lossy(name));
        self.ctx.log.push(LogLine::error(line));
        let refused = if self.server.statements.contains(&known) || !self.in_failed_transaction() {
            self.ensure(&known);
            known
        } else {
            self.send_spare(tail)
        };
        self.out.own(|own| parse_message(own, &refused.name, tail));
        let undo = Undo::Duplicate { name: name.into(), statement: refused };
        self.server.outstanding.push_with(Request::Parse, Give::Forward, undo);
    }

    /// Prepares a statement under a name kept for this, so that the same Parse once more is refused for its name and
    /// nothing else: what the client's name stands for cannot be prepared in a transaction that has failed.
    fn send_spare(&mut self, tail: &[u8]) -> Arc<Statement> {
        let spare = Arc::new(Statement::spare(tail));
        self.out.own(|own| {
            close_statement(own, &spare.name);
            spare.parse_message(own);
        });
        self.server.outstanding.push(Request::Close, Give::Skip);
        self.server.outstanding.push(Request::Parse, Give::Skip);
        spare
    }

    /// Notes in the log that the client never prepared what it names; the server is to tell the client.
    fn found(&mut self, name: &[u8], known: Option<Arc<Statement>>) -> Option<Arc<Statement>> {
        if known.is_none() {
            let line = format!("prepared statement '{}' not found", String::from_utf8_lossy(name));
            self.ctx.log.push(LogLine::error(line));
        }
        known
    }

    /// Makes sure that the server has the statement, by a Parse of our own before what needs it.
    fn ensure(&mut self, statement: &Arc<Statement>) {
        if self.server.statements.touch(statement) {
            return;
        }
        self.out.own(|own| statement.parse_message(own));
        self.server.outstanding.push_with(Request::Parse, Give::Skip, Undo::Injected { statement: statement.clone() });
        self.sent_parse(statement.clone());
    }

    /// A Parse went to the server: it has the statement from now on, and drops others if they are too many.
    fn sent_parse(&mut self, statement: Arc<Statement>) {
        self.ctx.tally.server_parse_count += 1;
        self.server.statements.insert(statement);
        while let Some(old) = self.server.statements.evict_over(self.ctx.tracking) {
            self.drop_from_server(&old);
        }
    }

    /// Sends a Close of our own.
    fn drop_from_server(&mut self, statement: &Arc<Statement>) {
        self.out.own(|own| close_statement(own, &statement.name));
        self.server.statements.remove(statement);
        self.server.outstanding.push_with(Request::Close, Give::Skip, Undo::Evicted { statement: statement.clone() });
    }

    /// The transaction has failed, or may have when the server reads what is sent now: it refuses most statements then, and
    /// a Parse must not be answered in its place.
    fn in_failed_transaction(&self) -> bool {
        self.server.tx == TxStatus::Failed || self.server.outstanding.holds_end_of_batch()
    }

    /// A Bind, or the first part of one that will be `total` bytes long, with its names complete.
    fn bind(&mut self, message: Message<'_>, total: usize) -> Result<Handled, Disconnect> {
        let (portal, name, names_len) = bind_names(message.body()).ok_or_else(|| self.unreadable('B'))?;
        if name.is_empty() {
            self.note(fe::BIND)?;
            self.count(message.bytes.len());
            message.forward(0, self.out);
            return Ok(Handled::Done);
        }
        let known = self.client.names().and_then(|names| names.get(name)).cloned();
        if self.undecided(name, known.as_deref()) {
            return Ok(Handled::Settle);
        }
        self.opens();
        self.count(message.bytes.len());
        self.ctx.tally.bind_count += 1;
        let Some(statement) = self.found(name, known) else {
            message.forward(0, self.out);
            self.server.outstanding.push(Request::Bind, Give::Forward);
            return Ok(Handled::Done);
        };
        self.ensure(&statement);
        let len = total - 1 - name.len() + statement.name.len();
        let len = u32::try_from(len).map_err(|_| Disconnect::fatal("broken Bind packet"))?;
        self.out.own(|own| {
            own.push(fe::BIND);
            own.extend_from_slice(&len.to_be_bytes());
            own.extend_from_slice(portal);
            own.push(0);
            own.extend_from_slice(&statement.name);
            own.push(0);
        });
        message.forward(HEADER_LEN + names_len, self.out);
        self.server.outstanding.push(Request::Bind, Give::Forward);
        Ok(Handled::Done)
    }

    fn describe(&mut self, message: Message<'_>) -> Result<Handled, Disconnect> {
        let name = named_target(message.body()).map_err(|()| self.unreadable('D'))?;
        let Some(name) = name else {
            self.note(fe::DESCRIBE)?;
            self.count(message.bytes.len());
            message.forward(0, self.out);
            return Ok(Handled::Done);
        };
        let known = self.client.names().and_then(|names| names.get(name)).cloned();
        if self.undecided(name, known.as_deref()) {
            return Ok(Handled::Settle);
        }
        self.opens();
        self.count(message.bytes.len());
        if let Some(statement) = self.found(name, known) {
            self.ensure(&statement);
            self.out.own(|own| {
                encode::message(own, fe::DESCRIBE, |body| {
                    body.push(b'S');
                    encode::cstr(body, &statement.name);
                });
            });
        } else {
            message.forward(0, self.out);
        }
        self.server.outstanding.push(Request::Describe, Give::Forward);
        Ok(Handled::Done)
    }

    fn close(&mut self, message: Message<'_>) -> Result<Handled, Disconnect> {
        let name = named_target(message.body()).map_err(|()| self.unreadable('C'))?;
        let Some(name) = name else {
            self.note(fe::CLOSE)?;
            self.count(message.bytes.len());
            message.forward(0, self.out);
            return Ok(Handled::Done);
        };
        if self.undecided(name, None) {
            return Ok(Handled::Settle);
        }
        self.ctx.request_begins(self.client);
        self.count(message.bytes.len());
        match self.client.names_mut().and_then(|names| names.unbind(name)) {
            Some(statement) => {
                let undo = Undo::Closed { name: name.into(), statement };
                self.server.outstanding.push_with(Request::Close, Give::Fake, undo);
            }
            None => self.server.outstanding.push(Request::Close, Give::Fake),
        }
        give_due(self.server, self.back);
        Ok(Handled::Done)
    }

    fn unreadable(&mut self, tag: char) -> Disconnect {
        unreadable(tag, self.ctx.log)
    }
}

/// Appends a Close of a statement.
fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    encode::message(out, fe::CLOSE, |body| {
        body.push(b'S');
        encode::cstr(body, name);
    });
}

/// The name in a Describe or Close of a named statement; `None` for portals and the unnamed statement.
fn named_target(body: &[u8]) -> Result<Option<&[u8]>, ()> {
    let (&kind, rest) = body.split_first().ok_or(())?;
    let (name, _) = split_cstr(rest).ok_or(())?;
    Ok((kind == b'S' && !name.is_empty()).then_some(name))
}

fn unreadable(tag: char, log: &mut Vec<LogLine>) -> Disconnect {
    log.push(LogLine::error(format!("failed to parse prepared statement packet type '{tag}'")));
    Disconnect::fatal("failed to parse packet")
}

fn unknown(tag: u8, log: &mut Vec<LogLine>) -> Disconnect {
    log.push(LogLine::error(format!("unknown pkt from client: {tag}/0x{tag:x}")));
    Disconnect::fatal("unknown pkt")
}

/// The error for an impossible header.
#[must_use]
pub fn bad_header(hex: &str) -> Disconnect {
    Disconnect::fatal(Cow::Owned(format!("bad packet header: '{hex}'")))
}

/// Handles what a client without a server sends, as far as no server is needed: copy messages that come too late, Close of
/// named statements and its Sync, Terminate.
///
/// # Errors
/// The client must go.
#[inline]
pub fn unlinked(
    client: &mut ClientSide,
    ctx: &mut Ctx<'_>,
    input: &[u8],
    back: &mut Out,
) -> Result<Unlinked, Disconnect> {
    let mut pos = 0;
    loop {
        if client.scan.in_body() {
            match client.scan.next(input, &mut pos, ctx.max_packet) {
                Ok(Some(_)) => continue,
                Ok(None) => return Ok(Unlinked::Consumed),
                Err(bad) => return Err(bad_header(&bad.hex())),
            }
        }
        let header = client.scan.peek(input, &mut pos, ctx.max_packet).map_err(|bad| bad_header(&bad.hex()))?;
        let Some((tag, _)) = header else { return Ok(Unlinked::Consumed) };
        match tag {
            fe::TERMINATE => return Err(Disconnect::silent("client close request")),
            fe::COPY_DATA | fe::COPY_DONE | fe::COPY_FAIL => {
                if ctx.verbose && tag == fe::COPY_DATA {
                    ctx.log.push(LogLine::debug("discarding late CopyData, server not linked"));
                }
                client.body = Body::Discard;
                let _ = client.scan.next(input, &mut pos, ctx.max_packet);
            }
            fe::CLOSE if ctx.tracking > 0 => {
                let at = pos;
                let Some(name) = whole_close(client, ctx, input, &mut pos)? else {
                    return Ok(Unlinked::NeedServer { at });
                };
                if let Some(names) = client.names_mut() {
                    names.unbind(name);
                }
                client.closed_locally = true;
                back.own(|own| own.extend_from_slice(&[b'3', 0, 0, 0, 4]));
            }
            fe::SYNC if client.closed_locally => {
                client.closed_locally = false;
                let _ = client.scan.next(input, &mut pos, ctx.max_packet);
                back.own(|own| encode::ready_for_query(own, b'I'));
            }
            fe::QUERY
            | fe::FUNCTION_CALL
            | fe::PARSE
            | fe::BIND
            | fe::DESCRIBE
            | fe::EXECUTE
            | fe::CLOSE
            | fe::SYNC
            | fe::FLUSH => {
                client.closed_locally = false;
                ctx.request_begins(client);
                return Ok(Unlinked::NeedServer { at: pos });
            }
            other => return Err(unknown(other, ctx.log)),
        }
    }
}

/// The name in a Close of a named statement that is all in the input; the scanner has then passed it.
fn whole_close<'i>(
    client: &mut ClientSide,
    ctx: &mut Ctx<'_>,
    input: &'i [u8],
    pos: &mut usize,
) -> Result<Option<&'i [u8]>, Disconnect> {
    let mut ahead = client.scan.clone();
    let mut end = *pos;
    let Ok(Some(Item::Whole { start, end: after, .. })) = ahead.next(input, &mut end, ctx.max_packet) else {
        ctx.request_begins(client);
        return Ok(None);
    };
    match named_target(&input[start + HEADER_LEN..after]) {
        Ok(Some(name)) => {
            client.scan = ahead;
            *pos = after;
            ctx.tally.client_bytes += (after - start) as u64;
            Ok(Some(name))
        }
        Ok(None) => {
            ctx.request_begins(client);
            Ok(None)
        }
        Err(()) => Err(unreadable('C', ctx.log)),
    }
}
