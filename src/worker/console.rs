//! A console connection: takes messages apart into commands for the supervisor, one at a time, and writes the answers.

use crate::admin::command::Command;
use crate::admin::extended::Step;
use crate::admin::probe::Probe;
use crate::admin::refusal::Refusal;
use crate::admin::reply;
use crate::admin::snapshot::Buffers;
use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::log::Conn;
use crate::net::stream::ReadResult;
use crate::shared::{ConsoleCommand, Request};
use crate::wire::scan::{Item, Scanner};
use crate::wire::tag::frontend as fe;
use crate::worker::Worker;
use crate::worker::client::{Client, Console, End, Phase};

/// Longest command that is kept; nobody types more.
const MAX_RECEIVED: usize = 1 << 20;

impl Worker {
    /// The turn of a console connection.
    pub(super) fn console(&mut self, client: &mut Client) -> Result<(), End> {
        client.stream.flush().map_err(|_| gone())?;
        self.console_answers(client)?;
        let Phase::Console(console) = &mut client.phase else { return Ok(()) };
        let mut gone_after = false;
        console.begin_round();
        while client.stream.readable() && !gone_after {
            match client.stream.read(&mut self.scratch.input) {
                ReadResult::Data(n) if console.received.len() + n <= MAX_RECEIVED => {
                    console.received.extend_from_slice(&self.scratch.input[..n]);
                }
                ReadResult::Data(_) => return Err(Disconnect::fatal("incomplete pkt").into()),
                ReadResult::Nothing => break,
                ReadResult::Eof | ReadResult::Failed(_) => gone_after = true,
            }
        }
        self.console_messages(client)?;
        if gone_after { Err(gone()) } else { Ok(()) }
    }

    fn console_messages(&mut self, client: &mut Client) -> Result<(), End> {
        let own = self.is_own_console(client);
        let probes = self.live.config.settings.console_probes.is_on();
        let max_packet = u32::try_from(self.live.config.settings.max_packet_size).unwrap_or(u32::MAX);
        loop {
            let Phase::Console(console) = &mut client.phase else { return Ok(()) };
            if console.busy {
                return Ok(());
            }
            let mut pos = 0;
            let next = Scanner::default().next(&console.received, &mut pos, max_packet);
            let item = next.map_err(|bad| crate::relay::upstream::bad_header(&bad.hex()))?;
            let Some(Item::Whole { tag, end, .. }) = item else { return Ok(()) };
            let message = console.take_message(end);
            let mut out = Vec::new();
            let said = console_message(console, own, probes, tag, &message[5..], &mut out);
            if !out.is_empty() {
                client.stream.write_bytes(&out).map_err(|_| gone())?;
            }
            match said {
                Said::Command(command) => self.console_runs(client, command, own && tag == fe::QUERY),
                Said::Nothing => {}
                Said::Probes => self.count_command(client),
                Said::Failed(refusal) => {
                    log_refusal(&refusal, &client.prefix(), self.live.config.settings.log_pooler_errors.is_on());
                }
                Said::Refused(refusal) => {
                    self.count_command(client);
                    self.console_refuses(client, &refusal)?;
                }
                Said::Forbidden(refusal) => {
                    self.console_refuses(client, &refusal)?;
                    return Err(Disconnect::fatal("bad packet").into());
                }
                Said::Unknown => {
                    tracing::error!(conn = %client.prefix(), "unknown pkt from client: {tag}/0x{tag:x}");
                    return Err(Disconnect::fatal("unknown pkt").into());
                }
                Said::End(why) => return Err(why.into()),
            }
        }
    }

    /// Hands a command to the supervisor; nothing more is read until it is answered.
    fn console_runs(&self, client: &mut Client, command: Command, own: bool) {
        if let Phase::Console(console) = &mut client.phase {
            console.busy = true;
        }
        self.count_command(client);
        let command = ConsoleCommand { client: client.me, command, own, prefix: client.prefix() };
        self.shared.ask(Request::Console(command));
    }

    /// The first command of a console connection counts as a query and a transaction.
    fn count_command(&self, client: &mut Client) {
        if client.side.query_start.is_zero() {
            client.side.query_start = self.now;
            let first = crate::stats::Counters { query_count: 1, xact_count: 1, ..Default::default() };
            *self.shared.console_counters.lock() += first;
        }
        client.request_time = self.now;
    }

    /// Answers with an error and ReadyForQuery.
    fn console_refuses(&self, client: &mut Client, refusal: &Refusal) -> Result<(), End> {
        log_refusal(refusal, &client.prefix(), self.live.config.settings.log_pooler_errors.is_on());
        let mut out = Vec::new();
        reply::refuse(&mut out, refusal).map_err(|_| Disconnect::fatal("failure"))?;
        client.stream.write_bytes(&out).map_err(|_| gone())
    }

    /// The answer to a command; no bytes at all close the connection.
    pub(super) fn console_reply(&mut self, who: ClientRef, bytes: Vec<u8>, waited: bool) {
        if bytes.is_empty() {
            return self.end(who, Disconnect::fatal("failure").into());
        }
        let Some(Phase::Console(console)) = self.clients.get_mut(who).map(|client| &mut client.phase) else { return };
        let waited = waited && console.waits > 0;
        console.waits -= usize::from(waited);
        console.answers.push(bytes, waited);
        self.turn(who);
    }

    /// Sends some more of what a console is answered.
    fn console_answers(&mut self, client: &mut Client) -> Result<(), End> {
        let Phase::Console(console) = &mut client.phase else { return Ok(()) };
        if console.answers.is_empty() || client.stream.is_blocked() {
            return Ok(());
        }
        let mut out = Vec::new();
        let Console { session, busy, answers, .. } = &mut **console;
        answers.next(|part| {
            if part.waited {
                out.extend_from_slice(part.bytes);
            } else {
                session.answer(part.bytes, part.last, &mut out);
                *busy &= !part.last;
            }
        });
        client.stream.write_bytes(&out).map_err(|_| gone())?;
        if !console.answers.is_empty() && !client.stream.is_blocked() {
            self.goes_on(client.me);
        }
        Ok(())
    }

    /// A command will be answered later. Its console is read on, unless the extended protocol has to keep the order.
    pub(super) fn console_waits(&mut self, who: ClientRef) {
        if let Some(Phase::Console(console)) = self.clients.get_mut(who).map(|client| &mut client.phase)
            && !console.session.runs()
        {
            console.waits += 1;
            console.busy = false;
            self.turn(who);
        }
    }
}

impl Console {
    /// Takes a message of `len` bytes out of what was received.
    fn take_message(&mut self, len: usize) -> Vec<u8> {
        self.through += self.taken;
        self.taken = len;
        self.received.drain(..len).collect()
    }

    /// What came is a new round, unless something of the last one is left.
    fn begin_round(&mut self) {
        if !self.busy && self.received.is_empty() {
            (self.through, self.taken) = (0, 0);
        }
    }

    /// How far the input has come, as PgBouncer has it: the query that is being answered is still in the buffer, behind those
    /// that came with it and are answered.
    pub(super) const fn buffers(&self) -> Buffers {
        if !self.busy {
            return Buffers::holding(self.received.len());
        }
        let (through, held) = (self.through, self.taken + self.received.len());
        Buffers { recv_pos: through + held, pkt_pos: through, pkt_remain: 0, send_pos: through }
    }
}

/// What a message to the console comes to.
enum Said {
    /// To be run.
    Command(Command),
    /// Nothing, or what is to be answered was.
    Nothing,
    /// A query that `console_probes` had answered.
    Probes,
    /// Answered with an error of the extended protocol.
    Failed(Refusal),
    /// To be answered with an error.
    Refused(Refusal),
    /// To be answered with an error, then the connection is closed.
    Forbidden(Refusal),
    /// No message of the protocol.
    Unknown,
    End(Disconnect),
}

fn console_message(console: &mut Console, own: bool, probes: bool, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Said {
    match tag {
        fe::TERMINATE => Said::End(Disconnect::silent("close req")),
        fe::PARSE | fe::BIND | fe::DESCRIBE | fe::EXECUTE | fe::CLOSE | fe::SYNC | fe::FLUSH => {
            match console.session.receive(tag, body, console.rights, out) {
                Step::Done => Said::Nothing,
                Step::Run(command) => Said::Command(command),
                Step::Refused(refusal) => Said::Failed(refusal),
            }
        }
        fe::QUERY | fe::FUNCTION_CALL if console.session.skips() => Said::Nothing,
        fe::QUERY => {
            let Some((0, query)) = body.split_last() else {
                return Said::End(Disconnect::fatal("incomplete query"));
            };
            console.session.forget_unnamed();
            if let Some(probes) = probes.then(|| Probe::find_all(query)).flatten() {
                console.session.simple(&probes, out);
                return Said::Probes;
            }
            match Command::parse(query, console.rights) {
                // there is no such command for anybody else
                Ok(Command::Handover) if !own => Said::Refused(Refusal::InvalidCommand(query.to_vec())),
                Ok(command) => Said::Command(command),
                Err(refusal) => Said::Refused(refusal),
            }
        }
        fe::COPY_DATA | fe::COPY_DONE | fe::COPY_FAIL => Said::Nothing,
        fe::FUNCTION_CALL => Said::Forbidden(Refusal::UnsupportedMessage(tag)),
        _ => Said::Unknown,
    }
}

/// The two lines of an error on the console: its text alone, which scripts look for, and whose error it was.
pub(crate) fn log_refusal(refusal: &Refusal, conn: &Conn, log_pooler_errors: bool) {
    tracing::error!("{refusal}");
    if log_pooler_errors {
        tracing::warn!(conn = %conn, "pooler error: {refusal}");
    }
}

fn gone() -> End {
    Disconnect::silent("client unexpected eof").into()
}
