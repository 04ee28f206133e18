//! A client and a server while they are joined: what both directions share.
//!
//! [`align`] gives the server the client's parameters, [`crate::relay::upstream`] takes client bytes to the server,
//! [`crate::relay::downstream`] takes server bytes to the client, [`settled`] says when the server may go.

use std::sync::Arc;

use crate::config::LogLine;
use crate::disconnect::Disconnect;
use crate::relay::out::Out;
use crate::relay::outstanding::{Give, Request};
use crate::relay::prepared::Statement;
use crate::relay::side::{ClientSide, ServerSide, TxStatus};
use crate::relay::vars::{Interner, TrackedNames, Vars, canonicalise, difference};
use crate::stats::Counters;
use crate::stats::ends::SqlState;
use crate::time::Micros;
use crate::wire::encode;

/// What both directions need from outside.
pub struct Ctx<'a> {
    pub now: Micros,
    /// `max_prepared_statements` where tracking is active, else 0.
    pub tracking: usize,
    /// Session pooling: a server stays with its client until that leaves.
    pub session_mode: bool,
    /// Statement pooling: a transaction that stays open ends both sides.
    pub statement_mode: bool,
    /// `disable_pqexec`.
    pub disable_pqexec: bool,
    /// `max_packet_size`.
    pub max_packet: u32,
    pub names: &'a TrackedNames,
    pub interner: &'a mut Interner,
    /// Finds or makes the statement with this content.
    pub statements: &'a mut dyn FnMut(&[u8]) -> Arc<Statement>,
    /// What this turn adds to the pool's statistics.
    pub tally: &'a mut Counters,
    /// SQLSTATEs of errors that went to the client.
    pub errors: &'a mut Vec<SqlState>,
    pub log: &'a mut Vec<LogLine>,
    /// Lines of level DEBUG are wanted.
    pub verbose: bool,
}

impl Ctx<'_> {
    /// A request from the client: opens its query and its transaction if none is open.
    #[inline]
    pub fn request_begins(&mut self, client: &mut ClientSide) {
        if client.query_start.is_zero() {
            client.query_start = self.now;
            self.tally.query_count += 1;
        }
        if client.xact_start.is_zero() {
            client.xact_start = self.now;
            self.tally.xact_count += 1;
        }
    }

    /// ReadyForQuery with nothing outstanding: closes the query, and the transaction unless one is open on the server.
    #[inline]
    pub fn request_ends(&mut self, client: &mut ClientSide, tx: TxStatus) {
        if !client.query_start.is_zero() {
            self.tally.query_time += self.now.since(client.query_start).0;
            client.query_start = Micros::ZERO;
        }
        if tx == TxStatus::Idle && !client.xact_start.is_zero() {
            self.tally.xact_time += self.now.since(client.xact_start).0;
            client.xact_start = Micros::ZERO;
        }
    }
}

/// Brings the server's tracked parameters to the client's values. True if SET commands were queued: the client's input must
/// then wait until [`ServerSide::setting_vars`] is false again.
#[inline]
pub fn align(client: &mut ClientSide, server: &mut ServerSide, ctx: &mut Ctx<'_>, out: &mut Out) -> bool {
    if client.vars.ptr_eq(&server.vars) {
        return false;
    }
    let Some(sql) = difference(&client.vars, &server.vars, ctx.names) else {
        adopt(client, server, ctx);
        return false;
    };
    if ctx.verbose {
        ctx.log.push(LogLine::debug(format!("varcache_apply: {sql}")));
    }
    out.own(|own| encode::query(own, sql.as_bytes()));
    server.outstanding.push(Request::Query, Give::Skip);
    server.setting_vars = true;
    server.ready = false;
    true
}

/// The SETs ran, or none was needed: the client's values become the server's canonical spelling.
pub(crate) fn adopt(client: &mut ClientSide, server: &mut ServerSide, ctx: &mut Ctx<'_>) {
    if let Some(merged) = canonicalise(&client.vars, &server.vars) {
        if ctx.verbose {
            log_canonical(&client.vars, &merged, ctx);
        }
        client.vars = ctx.interner.intern(merged);
    }
    if client.vars == server.vars {
        server.vars = client.vars.clone();
    }
}

#[cold]
fn log_canonical(before: &Vars, after: &Vars, ctx: &mut Ctx<'_>) {
    for (name, new) in after.iter(ctx.names) {
        if let Some((_, old)) = before.iter(ctx.names).find(|&(known, old)| known == name && old != new) {
            let line = format!("varcache_set_canonical: setting {name} to its canonical version {old} -> {new}");
            ctx.log.push(LogLine::debug(line));
        }
    }
}

/// True when the server may leave a client outside session pooling.
#[inline]
#[must_use]
pub fn settled(client: &ClientSide, server: &ServerSide) -> bool {
    server.is_clean()
        && !client.copying
        && client.scan.at_boundary()
        && !client.extra.as_ref().is_some_and(|extra| extra.held)
}

/// True when the answers that a server owes to a client who leaves will come to an end, outside a transaction as far as can be
/// told: nothing was cut, and nothing waits for more from the client.
#[must_use]
pub fn can_drain(client: &ClientSide, server: &ServerSide) -> bool {
    server.tx == TxStatus::Idle
        && server.outstanding.ends_by_itself()
        && server.inherited.is_none()
        && !(server.setting_vars || server.copying || server.leaving || client.copying)
        && client.scan.at_boundary()
}

/// What has become of a server that still owed answers to a client who left.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Answers are still owed.
    NotYet,
    Clean,
    /// A transaction is open, or the server waits for what only the client could send.
    Stuck,
}

/// How far the draining of a server has come.
#[must_use]
pub fn drained(server: &ServerSide) -> Drained {
    if server.is_clean() {
        Drained::Clean
    } else if server.copying || server.leaving || (server.ready && server.scan.at_boundary()) {
        Drained::Stuck
    } else {
        Drained::NotYet
    }
}

/// True when a server that was taken over in the middle of something has come to the end of it as far as can be seen, and
/// has not been asked yet.
#[must_use]
pub fn question_is_due(client: &ClientSide, server: &ServerSide) -> bool {
    server.inherited.as_ref().is_some_and(|inherited| inherited.question.is_empty())
        && server.tx == TxStatus::Idle
        && server.outstanding.is_inherited_alone()
        && server.scan.at_boundary()
        && client.scan.at_boundary()
}

/// Asks such a server a question: whatever comes before the answer, which is known by `column`, belongs to what the
/// predecessor had asked for. `column` must be a name that nobody else asks for.
pub fn ask(server: &mut ServerSide, column: String, out: &mut Vec<u8>) {
    let Some(inherited) = &mut server.inherited else { return };
    encode::query(out, format!("SELECT 1 AS {column}").as_bytes());
    inherited.question = column.into_bytes();
    server.outstanding.push(Request::Query, Give::Skip);
}

/// Gives the client the invented answers that are due; never in the middle of a message of the server.
#[inline]
pub(crate) fn give_due(server: &mut ServerSide, back: &mut Out) {
    if !server.outstanding.is_due() || server.scan.in_body() {
        return;
    }
    while let Some(entry) = server.outstanding.due() {
        let tag = if entry.request == Request::Close { b'3' } else { b'1' };
        back.own(|own| own.extend_from_slice(&[tag, 0, 0, 0, 4]));
    }
}

/// The impossible happened between a client and its server: both end.
#[must_use]
pub(crate) fn no_owner() -> Disconnect {
    Disconnect::fatal("server sent an answer that nobody waits for")
}

/// Is this the end of a connection because of what cannot be?
#[must_use]
pub fn is_impossible(why: &Disconnect) -> bool {
    *why == no_owner()
}
