//! What a successor gets from this worker: descriptors with their rows, and the state of clients and linked servers.

use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use crate::admin::command::Rights;
use crate::admin::handover::{StateKind, StateRow};
use crate::config::CONSOLE_DATABASE;
use crate::id::ClientRef;
use crate::relay::handover::{put_client, put_server, statements_of};
use crate::shared::HandedOver;
use crate::sys;
use crate::worker::Worker;
use crate::worker::client::{Client, Phase};
use crate::worker::inherit::replication_state;
use crate::worker::login::gone;
use crate::worker::peer::PeerAddr;

/// How long the process that takes the descriptors may let us wait, in all.
const PATIENCE: Duration = Duration::from_secs(10);

impl Worker {
    /// May this console take descriptors?
    pub(super) fn is_own_console(&self, client: &Client) -> bool {
        let own_uid = matches!(client.peer, PeerAddr::Unix { uid: Some(uid), .. } if uid == self.shared.uid);
        let admin = matches!(&client.phase, Phase::Console(console) if console.rights == Rights::Admin);
        own_uid && admin && client.user.as_deref() == Some(CONSOLE_DATABASE)
    }

    /// Sends an answer piece by piece, each in a call of its own with its descriptor. Nobody else is served meanwhile: the
    /// order and the boundaries of the pieces matter, and a successor is in a hurry.
    pub(super) fn console_pieces(&mut self, who: ClientRef, pieces: &[(Vec<u8>, Option<RawFd>)]) {
        self.attend_and_turn(who, |_, client| {
            let Phase::Console(console) = &mut client.phase else { return Ok(()) };
            console.busy = false;
            send_pieces(client, pieces).map_err(|_| gone())
        });
    }

    /// The state of all clients that are logged in, and of their servers.
    pub(super) fn hand_over(&self) -> HandedOver {
        let mut all = HandedOver::default();
        for client in self.clients.iter() {
            if !matches!(client.phase, Phase::Active | Phase::Waiting(_)) {
                continue;
            }
            let names = &self.shared.names;
            let input = client.input.as_ref().map_or(&[][..], |input| input);
            all.rows.push(row(StateKind::Client, client.stream.fd(), put_client(&client.side, input, names)));
            statements_of(Some(&client.side), None, &mut all.statements);
            if let Some(wishes) = &client.replicating {
                all.rows.push(row(StateKind::Replication, client.stream.fd(), replication_state(wishes)));
            }
            if let Some(server) = &client.server {
                all.rows.push(row(StateKind::Server, server.stream.fd(), put_server(&server.side, names)));
                statements_of(None, Some(&server.side), &mut all.statements);
            }
        }
        all
    }
}

fn row(kind: StateKind, fd: RawFd, value: Vec<u8>) -> StateRow {
    StateRow { kind, number: i64::from(fd), value }
}

#[allow(clippy::disallowed_methods)]
fn send_pieces(client: &mut Client, pieces: &[(Vec<u8>, Option<RawFd>)]) -> std::io::Result<()> {
    let over = Instant::now() + PATIENCE;
    let too_slow = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    let wait = |client: &Client| {
        let left = over.saturating_duration_since(Instant::now()).as_millis();
        let left = i32::try_from(left).unwrap_or(i32::MAX);
        if sys::wait_writable(client.stream.socket().as_fd(), left) { Ok(()) } else { Err(too_slow()) }
    };
    while !client.stream.flush()? {
        wait(client)?;
    }
    for (bytes, descriptor) in pieces {
        let (mut rest, mut descriptor) = (&bytes[..], *descriptor);
        while !rest.is_empty() {
            let socket = client.stream.socket().as_fd();
            match sys::descriptors::send(socket, rest, descriptor) {
                Ok(sent) => (rest, descriptor) = (&rest[sent..], None),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => wait(client)?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // closed since the row was written; only while nothing is suspended
                Err(error) if error.raw_os_error() == Some(nix::libc::EBADF) && descriptor.is_some() => {
                    descriptor = None
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
