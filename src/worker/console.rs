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
use crate::worker::client::{Client, Console, End, Phase};

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
        let Phase::Console(console) = &mut client.phase else { return Ok(()) };
        while !console.busy {
            let mut pos = 0;
            let next = Scanner::default().next(&console.received, &mut pos, i32::MAX as u32);
            let item = next.map_err(|bad| crate::relay::upstream::bad_header(&bad.hex()))?;
            let Some(Item::Whole { tag, end, .. }) = item else { return Ok(()) };
            let message: Vec<u8> = console.received.drain(..end).collect();
            let mut out = Vec::new();
            let step = console_message(console, tag, &message[5..], &mut out);
            client.stream.write_bytes(&out).map_err(|_| gone())?;
            let Some(query) = step? else { continue };
            if client.side.query_start.is_zero() {
                client.side.query_start = self.now;
                self.console_counts();
            }
            client.request_time = self.now;
            let command = ConsoleCommand { client: client.me, query, rights: console.rights };
            self.shared.ask(Request::Console(command));
        }
        Ok(())
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
        if bytes.is_empty() || client.stream.write_bytes(bytes).is_err() {
            return self.disconnect(client, gone());
        }
        self.clients.put_back(client);
        self.turn(who);
    }
}

/// A message to the console: a query to be run, or `None` if it is done with.
fn console_message(console: &mut Console, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Result<Option<Vec<u8>>, End> {
    let refuse = |out: &mut Vec<u8>, refusal: &Refusal| -> End {
        tracing::error!("{refusal}");
        let _ = reply::refuse(out, refusal);
        Disconnect::fatal("bad packet").into()
    };
    match tag {
        fe::QUERY => {
            let Some((0, query)) = body.split_last() else { return Err(Disconnect::fatal("incomplete query").into()) };
            console.busy = true;
            Ok(Some(query.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()))
        }
        fe::TERMINATE => Err(Disconnect::silent("close req").into()),
        fe::COPY_DATA | fe::COPY_DONE | fe::COPY_FAIL => Ok(None),
        fe::PARSE | fe::BIND | fe::EXECUTE => Err(refuse(out, &Refusal::ExtendedProtocol)),
        fe::DESCRIBE | fe::CLOSE | fe::FLUSH | fe::SYNC | fe::FUNCTION_CALL => {
            Err(refuse(out, &Refusal::UnsupportedMessage(tag)))
        }
        _ => Err(Disconnect::fatal("unknown pkt").into()),
    }
}

fn gone() -> End {
    Disconnect::silent("client unexpected eof").into()
}
