//! TLS of a worker's clients.

use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::log::Conn;
use crate::net::stream::{Handshake, Stream};
use crate::net::tls::session::Work;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase};
use crate::worker::peer::PeerAddr;
use crate::worker::steps::Whose;

/// The first byte of a client that begins with TLS instead of asking for it.
const DIRECT: u8 = 0x16;

impl Worker {
    /// Begins a client's TLS. `received` is what it has said of it.
    pub(super) fn start_client_tls(&self, client: &mut Client, received: Vec<u8>) -> Result<(), End> {
        let Some(context) = &self.live.tls.clients else { return Ok(()) };
        match context.accept(received) {
            Ok(session) => client.stream.start_tls(session),
            Err(why) => return Err(handshake_failed(&client.prefix(), &why).into()),
        }
        Ok(())
    }

    /// Is this client offered TLS?
    pub(super) fn offers_tls(&self, client: &Client) -> bool {
        matches!(client.peer, PeerAddr::Tcp(_)) && self.live.tls.clients.is_some()
    }

    /// Must this client use TLS, and does not?
    pub(super) fn lacks_tls(&self, client: &Client) -> bool {
        let required = self.live.tls.clients.as_ref().is_some_and(|context| context.is_required());
        required && matches!(client.peer, PeerAddr::Tcp(_)) && client.stream.tls().is_none()
    }

    /// A client that says hello in TLS without having asked.
    pub(super) fn begins_with_tls(&self, client: &Client) -> bool {
        let Phase::Login(login) = &client.phase else { return false };
        login.received.first() == Some(&DIRECT) && client.stream.tls().is_none() && self.offers_tls(client)
    }

    /// Goes on with a client's handshake. True when it is over.
    pub(super) fn client_handshake(&mut self, client: &mut Client) -> Result<bool, End> {
        let next = client.stream.handshake();
        self.after_client_step(client, next)
    }

    fn after_client_step(&mut self, client: &mut Client, next: Handshake) -> Result<bool, End> {
        match next {
            Handshake::Done => Ok(true),
            Handshake::Wait => Ok(false),
            Handshake::Work(work) => {
                self.push_step(Whose::Client(client.me), work);
                Ok(false)
            }
            Handshake::Gone => Err(gone().into()),
            Handshake::Failed(why) => Err(handshake_failed(&client.prefix(), &why).into()),
        }
    }

    /// A step of one of our clients was computed.
    pub(super) fn client_shook(&mut self, who: ClientRef, work: Work) {
        self.attend_and_turn(who, |worker, client| {
            let next = client.stream.worked(work);
            worker.after_client_step(client, next).map(drop)
        });
    }
}

/// How a connection's TLS is shown; none without TLS.
pub(super) fn info(stream: &Stream) -> Option<String> {
    stream.tls().and_then(|session| session.info())
}

/// Logs why a handshake failed; a client is told nothing more than the alert that it got.
fn handshake_failed(conn: &Conn, why: &str) -> Disconnect {
    tracing::warn!(conn = %conn, "{}", failure(why));
    gone()
}

/// The text of a failure.
pub(super) fn failure(why: &str) -> String {
    format!("TLS handshake error: handshake failed: {why}")
}

fn gone() -> Disconnect {
    Disconnect::silent("client unexpected eof")
}
