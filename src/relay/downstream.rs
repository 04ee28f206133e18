//! Server bytes on their way to the client.
//!
//! Every message is matched with the head of the queue of outstanding answers, which says whether it is forwarded or
//! swallowed. An answer that nobody waits for ends the connection; it never reaches a client. Invented answers are only
//! given between two messages, however the server's bytes are cut.

use crate::config::LogLine;
use crate::disconnect::Disconnect;
use crate::relay::link::{Ctx, adopt, give_due, no_owner, settled};
use crate::relay::out::Out;
use crate::relay::outstanding::{Give, Request};
use crate::relay::prepared::Undo;
use crate::relay::side::{Body, ClientSide, ServerSide, TxStatus};
use crate::stats::ends::SqlState;
use crate::wire::encode;
use crate::wire::fields::{ErrorFields, split_cstr};
use crate::wire::scan::{HEADER_LEN, Item, Scanner};
use crate::wire::tag::backend as be;

/// Bodies up to this size are looked at as a whole even when they were cut.
const SMALL_BODY: u32 = 1024;

/// Longest body that is kept for reading. What must be read and is longer, no PostgreSQL sends: names of commands,
/// settings, refusals of settings.
const MAX_COLLECTED: u32 = 64 * 1024;

/// Stands for the SQLSTATE of an error too long to be looked at when it was cut.
const UNKNOWN_SQLSTATE: SqlState = *b"XXXXX";

/// One turn of server output. Without a client (reset, check and connect queries, what a client left) everything is swallowed:
/// `out` is not for anybody.
pub struct Downstream<'a, 'c> {
    pub client: Option<&'a mut ClientSide>,
    pub server: &'a mut ServerSide,
    pub ctx: &'a mut Ctx<'c>,
    /// To the client.
    pub out: &'a mut Out,
}

impl Downstream<'_, '_> {
    /// Takes all of `input` to the client.
    ///
    /// # Errors
    /// Server and client must both go.
    #[inline]
    pub fn run(&mut self, input: &[u8]) -> Result<(), Disconnect> {
        self.ctx.tally.server_bytes += input.len() as u64;
        let mut pos = 0;
        loop {
            // its last words have been heard
            if self.server.leaving {
                return Ok(());
            }
            let before = pos;
            let next = self.server.scan.next(input, &mut pos, self.ctx.max_packet);
            let item = next.map_err(|_| bad_header())?;
            match item {
                None => return Ok(()),
                // a row and the like moves nothing on
                Some(Item::Whole { tag: be::DATA_ROW | be::COPY_DATA, start, end }) if self.forwards() => {
                    self.out.forward(start, end);
                }
                Some(Item::Whole { tag, start, end }) => {
                    let forward = self.message(tag, &input[start..end])?;
                    if forward {
                        self.out.forward(start, end);
                    }
                    self.message_ends(tag)?;
                }
                Some(Item::Begin { tag, body_len }) => self.begin(tag, body_len, before, pos)?,
                Some(Item::Body { start, end, last }) => self.body(input, start, end, last)?,
            }
        }
    }

    /// Does the client get the answer that is being given?
    #[inline]
    fn forwards(&self) -> bool {
        self.client.is_some() && self.server.outstanding.give() == Some(Give::Forward)
    }

    /// The header of a cut message; `before..pos` is its part in the input.
    fn begin(&mut self, tag: u8, body_len: u32, before: usize, pos: usize) -> Result<(), Disconnect> {
        let header = self.server.scan.header();
        if body_len > self.longest_body(tag) {
            // none of it went to the client, which can be told
            self.server.scan = Scanner::default();
            return Err(bad_header());
        }
        if self.collects(tag, body_len) {
            self.server.collect.clear();
            self.server.collect.extend_from_slice(&header);
            self.server.body = Body::Collect;
            return Ok(());
        }
        if self.message(tag, &header)? {
            self.server.body = Body::Forward;
            if pos - before == HEADER_LEN {
                self.out.forward(before, pos);
            } else {
                self.out.own(|own| own.extend_from_slice(&header));
            }
        } else {
            self.server.body = Body::Discard;
        }
        Ok(())
    }

    fn body(&mut self, input: &[u8], start: usize, end: usize, last: bool) -> Result<(), Disconnect> {
        match self.server.body {
            Body::Discard => {}
            Body::Forward => self.out.forward(start, end),
            Body::Collect => {
                self.server.collect.extend_from_slice(&input[start..end]);
                if last {
                    let bytes = std::mem::take(&mut self.server.collect);
                    if self.message(bytes[0], &bytes)? {
                        self.out.own(|own| own.extend_from_slice(&bytes));
                    }
                }
            }
        }
        if last {
            let tag = self.server.scan.header()[0];
            self.server.body = Body::Forward;
            self.message_ends(tag)?;
        }
        Ok(())
    }

    /// The longest body that a message of this type may have, as far as it is known here before the body has come.
    fn longest_body(&self, tag: u8) -> u32 {
        match tag {
            _ if has_no_body(tag) => 0,
            be::READY_FOR_QUERY => 1,
            be::PARAMETER_STATUS | be::COMMAND_COMPLETE => MAX_COLLECTED,
            be::ERROR_RESPONSE if self.server.setting_vars => MAX_COLLECTED,
            _ => u32::MAX,
        }
    }

    /// Is a cut message kept until all of it is there?
    fn collects(&self, tag: u8, body_len: u32) -> bool {
        match tag {
            be::PARAMETER_STATUS | be::COMMAND_COMPLETE | be::READY_FOR_QUERY => true,
            // a longer one quotes what the client sent: it gets it as it comes
            be::ERROR_RESPONSE if self.error_is_ours() => body_len <= MAX_COLLECTED,
            _ => body_len <= SMALL_BODY,
        }
    }

    /// An error that the pooler must read: about its own commands, or about a name that the client does not know.
    fn error_is_ours(&self) -> bool {
        self.server.setting_vars
            || self.server.outstanding.head().is_some_and(|head| {
                head.give == Give::Skip || matches!(head.undo.as_deref(), Some(Undo::Duplicate { .. }))
            })
    }

    /// Whether a message goes to the client. `bytes` is the message; of a streamed one only the header.
    ///
    /// Nothing is taken from the queue here: that happens when the message has ended.
    #[inline]
    fn message(&mut self, tag: u8, bytes: &[u8]) -> Result<bool, Disconnect> {
        let give = self.server.outstanding.give();
        let linked = self.client.is_some();
        match tag {
            be::DATA_ROW
            | be::COPY_DATA
            | be::COPY_DONE
            | be::COPY_IN_RESPONSE
            | be::COPY_OUT_RESPONSE
            | be::COPY_BOTH_RESPONSE
            | be::ROW_DESCRIPTION
            | be::PARAMETER_DESCRIPTION
            | be::FUNCTION_CALL_RESPONSE => {
                let give = give.ok_or_else(no_owner)?;
                Ok(linked && self.goes_on(give, tag, bytes))
            }
            be::NO_DATA
            | be::PARSE_COMPLETE
            | be::BIND_COMPLETE
            | be::CLOSE_COMPLETE
            | be::EMPTY_QUERY_RESPONSE
            | be::PORTAL_SUSPENDED => {
                if bytes.len() != HEADER_LEN {
                    return Err(bad_header());
                }
                let give = give.ok_or_else(no_owner)?;
                Ok(linked && self.goes_on(give, tag, bytes))
            }
            be::COMMAND_COMPLETE => {
                readable(bytes)?;
                let give = give.ok_or_else(no_owner)?;
                self.command_complete(&bytes[HEADER_LEN..]);
                Ok(linked && self.goes_on(give, tag, bytes))
            }
            be::READY_FOR_QUERY => self.ready_for_query(bytes),
            be::ERROR_RESPONSE => self.error(bytes),
            be::PARAMETER_STATUS => {
                readable(bytes)?;
                let swallow = give == Some(Give::Skip) || !linked;
                self.parameter_status(&bytes[HEADER_LEN..], !swallow);
                Ok(!swallow)
            }
            be::NOTICE_RESPONSE => Ok(linked && give != Some(Give::Skip)),
            be::NOTIFICATION_RESPONSE => Ok(linked),
            _ => Err(Disconnect::fatal("unknown pkt")),
        }
    }

    #[inline]
    fn goes_on(&mut self, give: Give, tag: u8, bytes: &[u8]) -> bool {
        match give {
            Give::Forward => true,
            Give::Skip | Give::Fake => false,
            Give::Inherited => self.inherited_goes_on(tag, bytes),
        }
    }

    /// Everything goes to the client until the answer to our own question comes.
    #[cold]
    fn inherited_goes_on(&mut self, tag: u8, bytes: &[u8]) -> bool {
        const COLUMN_AT: usize = HEADER_LEN + 2;
        let Some(inherited) = &mut self.server.inherited else { return true };
        let question = &inherited.question;
        let column = bytes.get(COLUMN_AT..).and_then(split_cstr).map(|(name, _)| name);
        if tag != be::ROW_DESCRIPTION || question.is_empty() || column != Some(question) {
            return true;
        }
        inherited.over = true;
        self.server.outstanding.inherited_is_over();
        false
    }

    /// The end of a message: the queue moves on, and invented answers that are due now are given.
    #[inline]
    fn message_ends(&mut self, tag: u8) -> Result<(), Disconnect> {
        let server = &mut *self.server;
        let moved = match tag {
            be::PARSE_COMPLETE => server.outstanding.answered(Request::Parse),
            be::BIND_COMPLETE => server.outstanding.answered(Request::Bind),
            be::CLOSE_COMPLETE => server.outstanding.answered(Request::Close),
            be::ROW_DESCRIPTION | be::NO_DATA => server.outstanding.answered(Request::Describe),
            be::EMPTY_QUERY_RESPONSE | be::PORTAL_SUSPENDED => server.outstanding.command_complete(false),
            be::COMMAND_COMPLETE => {
                let copying = std::mem::take(&mut server.copying);
                server.outstanding.command_complete(copying)
            }
            be::COPY_IN_RESPONSE | be::COPY_BOTH_RESPONSE => {
                server.copying = true;
                if let Some(client) = &mut self.client {
                    // A client that pipelines may have ended the copy before it began.
                    client.copying = !server.outstanding.holds_copy_done();
                }
                return Ok(());
            }
            be::DATA_ROW | be::COPY_DATA => return Ok(()),
            _ => Ok(()),
        };
        moved.map_err(|_| no_owner())?;
        give_due(self.server, self.out);
        Ok(())
    }

    fn command_complete(&mut self, body: &[u8]) {
        if body.starts_with(b"D") && (says(body, b"DEALLOCATE ALL") || says(body, b"DISCARD ALL")) {
            self.server.statements.clear();
            if let Some(names) = self.client.as_mut().and_then(|client| client.names_mut()) {
                names.clear();
            }
        }
    }

    fn ready_for_query(&mut self, bytes: &[u8]) -> Result<bool, Disconnect> {
        let [.., status] = *bytes else { return Err(bad_header()) };
        if bytes.len() != HEADER_LEN + 1 {
            return Err(bad_header());
        }
        let tx = TxStatus::from_byte(status).ok_or_else(bad_header)?;
        let completed = self.server.outstanding.ready().map_err(|_| no_owner())?;
        let forward = self.client.is_some() && matches!(completed.give, Give::Forward | Give::Inherited);
        for undo in completed.undos {
            undo.apply(&mut self.server.statements, self.client.as_mut().and_then(|client| client.names_mut()));
        }
        self.server.tx = tx;
        self.server.copying = false;
        if self.server.setting_vars {
            self.server.setting_vars = false;
            if let Some(client) = &mut self.client {
                adopt(client, self.server, self.ctx);
            }
        }
        self.server.ready = self.server.outstanding.is_empty();
        if forward
            && self.server.ready
            && let Some(client) = &mut self.client
        {
            self.ctx.request_ends(client, tx);
        }
        if self.ctx.statement_mode && forward && tx != TxStatus::Idle {
            return Err(Disconnect::fatal("transaction blocks not allowed in statement pooling mode"));
        }
        Ok(forward)
    }

    fn error(&mut self, bytes: &[u8]) -> Result<bool, Disconnect> {
        let fields = ErrorFields::parse(&bytes[HEADER_LEN..]);
        if self.server.setting_vars {
            readable(bytes)?;
            self.ctx.log.push(LogLine::error(format!("varcache_apply failed: {}", fields.text(": "))).bare());
            return Err(Disconnect::fatal("invalid server parameter"));
        }
        // The client has all its answers and is about to give the server back: its end is not the client's affair.
        if !self.ctx.session_mode && self.client.as_deref().is_some_and(|client| settled(client, self.server)) {
            self.server.leaving = true;
            return Ok(false);
        }
        let give = self.server.outstanding.give();
        let head = self.server.outstanding.head();
        let injected = head.is_some_and(|head| head.request == Request::Parse);
        let mut forward = self.client.is_some() && (give != Some(Give::Skip) || injected);
        if forward {
            let sqlstate = fields.sqlstate.and_then(|code| code.try_into().ok());
            self.ctx.errors.push(sqlstate.unwrap_or(UNKNOWN_SQLSTATE));
        }
        if let Some(Undo::Duplicate { name, statement }) = head.and_then(|head| head.undo.as_deref())
            && forward
            && bytes.len() > HEADER_LEN
            && is_readable(bytes)
        {
            let renamed = rename(&bytes[HEADER_LEN..], &statement.name, name);
            self.out.own(|own| encode::message(own, be::ERROR_RESPONSE, |body| body.extend_from_slice(&renamed)));
            forward = false;
        }
        let copying = std::mem::take(&mut self.server.copying);
        for undo in self.server.outstanding.error(copying) {
            undo.apply(&mut self.server.statements, self.client.as_mut().and_then(|client| client.names_mut()));
        }
        Ok(forward)
    }

    fn parameter_status(&mut self, body: &[u8], to_client: bool) {
        let Some((name, rest)) = split_cstr(body) else { return };
        let Some((value, _)) = split_cstr(rest) else { return };
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else { return };
        let Some(index) = self.ctx.names.index_of(name) else { return };
        self.server.vars = self.ctx.interner.intern(self.server.vars.with(index, value));
        if to_client && let Some(client) = &mut self.client {
            client.vars = self.ctx.interner.intern(client.vars.with(index, value));
        }
    }
}

#[cold]
fn bad_header() -> Disconnect {
    Disconnect::fatal("bad pkt header")
}

/// Is this the tag of a command? It ends with a NUL byte, or where the message does.
fn says(body: &[u8], tag: &[u8]) -> bool {
    body.strip_prefix(tag).is_some_and(|rest| matches!(rest, [] | [0, ..]))
}

/// Is it a message that would have been collected had it been cut? What a message comes to must not depend on that.
const fn is_readable(message: &[u8]) -> bool {
    message.len() <= HEADER_LEN + MAX_COLLECTED as usize
}

/// Refuses a message that must be read and is too long for it.
fn readable(message: &[u8]) -> Result<(), Disconnect> {
    if is_readable(message) { Ok(()) } else { Err(bad_header()) }
}

/// Messages that are a header and nothing else.
const fn has_no_body(tag: u8) -> bool {
    matches!(
        tag,
        be::NO_DATA
            | be::PARSE_COMPLETE
            | be::BIND_COMPLETE
            | be::CLOSE_COMPLETE
            | be::EMPTY_QUERY_RESPONSE
            | be::PORTAL_SUSPENDED
    )
}

/// The fields of an error with one quoted name replaced by another.
fn rename(body: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let quoted = |name: &[u8]| [b"\"", name, b"\""].concat();
    let (from, to) = (quoted(from), quoted(to));
    let Some(at) = body.windows(from.len()).position(|window| window == from) else { return body.to_vec() };
    [&body[..at], &to, &body[at + from.len()..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::prepared::Statements;
    use crate::relay::vars::{Interner, TrackedNames, Vars};
    use crate::stats::Counters;
    use crate::time::Micros;

    /// A linked client and server, and what the client has been given.
    struct Joined {
        client: ClientSide,
        server: ServerSide,
        given: Vec<u8>,
    }

    impl Joined {
        fn new() -> Self {
            let vars = Vars::unset(&TrackedNames::new([]));
            Self { client: ClientSide::new(vars.clone()), server: ServerSide::new(vars), given: Vec::new() }
        }

        /// One that waits for an answer.
        fn owed(request: Request, give: Give) -> Self {
            let mut joined = Self::new();
            joined.server.outstanding.push(request, give);
            joined
        }

        fn hears(&mut self, input: &[u8]) -> Result<(), String> {
            let (names, mut interner, mut table) = (TrackedNames::new([]), Interner::default(), Statements::default());
            let mut ctx = Ctx {
                now: Micros(7),
                tracking: 10,
                session_mode: false,
                statement_mode: false,
                disable_pqexec: false,
                max_packet: 0x7fff_ffff,
                names: &names,
                interner: &mut interner,
                statements: &mut |tail| table.intern(tail),
                tally: &mut Counters::default(),
                errors: &mut Vec::new(),
                log: &mut Vec::new(),
                verbose: false,
            };
            let mut out = Out::default();
            let client = Some(&mut self.client);
            let ran = Downstream { client, server: &mut self.server, ctx: &mut ctx, out: &mut out }.run(input);
            out.slices(input).for_each(|slice| self.given.extend_from_slice(slice));
            ran.map_err(|why| why.reason.to_string())
        }

        /// Whole, or cut behind the header and then every 10,000 bytes.
        fn hears_cut(&mut self, input: &[u8], cut: bool) -> Result<(), String> {
            if !cut {
                return self.hears(input);
            }
            let (header, body) = input.split_at(HEADER_LEN);
            self.hears(header)?;
            body.chunks(10_000).try_for_each(|piece| self.hears(piece))
        }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        encode::message(&mut message, tag, |out| out.extend_from_slice(body));
        message
    }

    fn error(text: &[u8]) -> Vec<u8> {
        message(be::ERROR_RESPONSE, &[b"SERROR\0C26000\0M", text, b"\0\0"].concat())
    }

    #[test]
    fn no_header_makes_the_pooler_collect_without_end() {
        for (tag, len) in [
            (be::READY_FOR_QUERY, 6_u32),
            (be::READY_FOR_QUERY, 4),
            (be::READY_FOR_QUERY, 0x7fff_ff00),
            (be::PARAMETER_STATUS, MAX_COLLECTED + 5),
            (be::COMMAND_COMPLETE, MAX_COLLECTED + 5),
        ] {
            let header = [&[tag][..], &len.to_be_bytes()].concat();
            let mut joined = Joined::owed(Request::Query, Give::Forward);
            let ran = joined.hears(&header).and_then(|()| joined.hears(b""));
            assert_eq!(ran, Err("bad pkt header".to_owned()), "{}, {len}", tag.escape_ascii());
            assert!(!joined.server.scan.in_body(), "the client can be told");
        }
    }

    #[test]
    fn what_must_be_read_may_have_64_kib() {
        for cut in [false, true] {
            for tag in [be::PARAMETER_STATUS, be::COMMAND_COMPLETE] {
                let longest = message(tag, &[b'x'; MAX_COLLECTED as usize]);
                let mut joined = Joined::owed(Request::Query, Give::Forward);
                assert_eq!(joined.hears_cut(&longest, cut), Ok(()));
                assert!(joined.given == longest && joined.server.collect.capacity() == 0, "{}", tag.escape_ascii());
                let longer = message(tag, &[b'x'; MAX_COLLECTED as usize + 1]);
                let mut joined = Joined::owed(Request::Query, Give::Forward);
                assert_eq!(joined.hears_cut(&longer, cut), Err("bad pkt header".to_owned()));
                assert!(joined.given.is_empty(), "{}", tag.escape_ascii());
            }
        }
    }

    #[test]
    fn a_refused_setting_is_read_and_therefore_bounded() {
        for cut in [false, true] {
            for (len, why) in [(60_000, "invalid server parameter"), (70_000, "bad pkt header")] {
                let mut joined = Joined::owed(Request::Query, Give::Skip);
                joined.server.setting_vars = true;
                assert_eq!(joined.hears_cut(&error(&vec![b'x'; len]), cut), Err(why.to_owned()));
            }
        }
    }

    #[test]
    fn errors_of_any_size_reach_the_client() {
        let error = error(&[b'x'; 1 << 20]);
        for (request, give) in
            [(Request::Query, Give::Forward), (Request::Parse, Give::Forward), (Request::Parse, Give::Skip)]
        {
            for cut in [false, true] {
                let mut joined = Joined::owed(request, give);
                assert_eq!(joined.hears_cut(&error, cut), Ok(()));
                assert!(joined.given == error && joined.server.collect.capacity() == 0, "{request:?}, {give:?}");
            }
        }
    }

    #[test]
    fn an_error_about_our_own_query_is_dropped_at_any_size() {
        for cut in [false, true] {
            let mut joined = Joined::owed(Request::Query, Give::Skip);
            assert_eq!(joined.hears_cut(&error(&[b'x'; 1 << 20]), cut), Ok(()));
            assert!(joined.given.is_empty() && joined.server.collect.capacity() == 0);
        }
    }

    #[test]
    fn an_error_is_renamed_if_it_can_be_about_the_name() {
        for cut in [false, true] {
            for (len, renames) in [(10, true), (60_000, true), (70_000, false)] {
                let mut joined = Joined::new();
                let statement = Statements::default().intern(b"SELECT 1\0\0\0");
                let theirs = [b"\"", &*statement.name, b"\" ", &vec![b'x'; len]].concat();
                let undo = Undo::Duplicate { name: (*b"mine").into(), statement };
                joined.server.outstanding.push_with(Request::Parse, Give::Forward, undo);
                assert_eq!(joined.hears_cut(&error(&theirs), cut), Ok(()));
                let expected = if renames { [b"\"mine\" ", &*vec![b'x'; len]].concat() } else { theirs };
                assert!(joined.given == error(&expected), "{len}");
            }
        }
    }
}
