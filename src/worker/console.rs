//! A console connection: takes queries apart into commands for the supervisor, one at a time, and writes the answers.

use crate::admin::refusal::Refusal;
use crate::admin::reply;
use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::net::stream::ReadResult;
use crate::shared::{ConsoleCommand, Request};
use crate::wire::scan::{Item, Scanner};
use crate::wire::tag::frontend as fe;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase};

/// Longest command that is kept; nobody types more.
const MAX_RECEIVED: usize = 1 << 20;

impl Worker {
    /// The turn of a console connection.
    pub(super) fn console(&mut self, client: &mut Client) -> Result<(), End> {
        client.stream.flush().map_err(|_| gone())?;
        let Phase::Console(console) = &mut client.phase else { return Ok(()) };
        let mut gone_after = false;
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
            let message: Vec<u8> = console.received.drain(..end).collect();
            let query = match console_message(tag, &message[5..]) {
                Said::Query(query) => query,
                Said::Nothing => continue,
                Said::End(why) => return Err(why.into()),
                Said::Refused(refusal) => {
                    self.console_refuses(client, &refusal)?;
                    return Err(Disconnect::fatal("bad packet").into());
                }
                Said::Unknown => {
                    tracing::error!("{}unknown pkt from client: {tag}/0x{tag:x}", client.prefix());
                    return Err(Disconnect::fatal("unknown pkt").into());
                }
            };
            console.busy = true;
            let rights = console.rights;
            if client.side.query_start.is_zero() {
                client.side.query_start = self.now;
                self.console_counts();
            }
            client.request_time = self.now;
            let own = self.is_own_console(client);
            let command = ConsoleCommand { client: client.me, query, rights, own, prefix: client.prefix() };
            self.shared.ask(Request::Console(command));
        }
    }

    /// Answers a message of a kind that the console does not know.
    fn console_refuses(&self, client: &mut Client, refusal: &Refusal) -> Result<(), End> {
        log_refusal(refusal, &client.prefix(), self.live.config.settings.log_pooler_errors);
        let mut out = Vec::new();
        let _ = reply::refuse(&mut out, refusal);
        client.stream.write_bytes(&out).map_err(|_| gone())
    }

    /// The first command of a console connection counts as a query and a transaction.
    fn console_counts(&self) {
        let first = crate::stats::Counters { query_count: 1, xact_count: 1, ..Default::default() };
        *self.shared.console_counters.lock() += first;
    }

    /// The answer to a command; no bytes at all close the connection.
    pub(super) fn console_reply(&mut self, who: ClientRef, bytes: &[u8]) {
        let Some(mut client) = self.clients.take(who) else { return };
        let Phase::Console(console) = &mut client.phase else {
            self.clients.put_back(client);
            return;
        };
        console.busy = false;
        if bytes.is_empty() {
            return self.disconnect(client, Disconnect::silent("failure").into());
        }
        if client.stream.write_bytes(bytes).is_err() {
            return self.disconnect(client, gone());
        }
        self.clients.put_back(client);
        self.turn(who);
    }
}

/// What a message to the console comes to.
enum Said {
    /// To be run.
    Query(Vec<u8>),
    Nothing,
    /// Answered with an error, then the connection is closed.
    Refused(Refusal),
    /// No message of the protocol.
    Unknown,
    End(Disconnect),
}

fn console_message(tag: u8, body: &[u8]) -> Said {
    match tag {
        fe::QUERY => match body.split_last() {
            Some((0, query)) => Said::Query(query.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()),
            _ => Said::End(Disconnect::fatal("incomplete query")),
        },
        fe::TERMINATE => Said::End(Disconnect::silent("close req")),
        fe::COPY_DATA | fe::COPY_DONE | fe::COPY_FAIL => Said::Nothing,
        fe::PARSE | fe::BIND | fe::EXECUTE => Said::Refused(Refusal::ExtendedProtocol),
        fe::DESCRIBE | fe::CLOSE | fe::FLUSH | fe::SYNC | fe::FUNCTION_CALL => {
            Said::Refused(Refusal::UnsupportedMessage(tag))
        }
        _ => Said::Unknown,
    }
}

/// The two lines of an error on the console: its text alone, which scripts look for, and whose error it was.
pub(crate) fn log_refusal(refusal: &Refusal, prefix: &str, log_pooler_errors: bool) {
    tracing::error!("{refusal}");
    if log_pooler_errors {
        tracing::warn!("{prefix}pooler error: {refusal}");
    }
}

fn gone() -> End {
    Disconnect::silent("client unexpected eof").into()
}
