//! Accepting: new sockets go to the worker with the fewest clients.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry};

use crate::net::listener::{accept_error_is_transient, began_before, begin_no_more};
use crate::net::stream::{Socket, Stream};
use crate::relay::side::ClientSide;
use crate::shared::{Accepted, Hold, Message};
use crate::sys;
use crate::sys::handshakes;
use crate::time::Micros;
use crate::worker::Worker;
use crate::worker::client::{Client, Login, Phase};
use crate::worker::peer::PeerAddr;
use crate::worker::table::listener_token;

/// Connections taken before others have a turn: about a millisecond.
const AT_ONCE: usize = 64;

/// How long accepting rests after an error such as too many open files.
const REST: Micros = Micros::from_secs(5);

/// How long connections that are being made on a shared port have until we close it. With `tcp_defer_accept` that lasts until
/// the client's first bytes have come. Whoever tries meanwhile tries again after a second, and should not find us then.
const RETREAT: Micros = Micros::from_millis(700);

/// How long those have who were on their way when the retreat began and are still not through after [`RETREAT`].
const LONGEST_RETREAT: Micros = Micros::from_secs(5);

/// How often is looked whether they are through.
const LOOK_AGAIN: Micros = Micros::from_millis(100);

/// The last moments of listeners on a port that other processes share.
#[derive(Debug)]
pub(super) struct Retreat {
    pub(super) ends: Micros,
    gives_up: Micros,
    port: u16,
    /// Far ends of the handshakes that were under way when it began.
    under_way: BTreeSet<String>,
}

/// The listening sockets as the first worker polls them.
#[derive(Debug)]
pub struct Acceptor {
    pub tcp: Vec<TcpListener>,
    /// Their indices come first, for these are never closed before the end.
    pub unix: Vec<UnixListener>,
    /// The TCP listeners begin no more connections.
    pub retreats: bool,
}

impl Acceptor {
    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        for (index, listener) in self.unix.iter_mut().enumerate() {
            registry.register(listener, listener_token(index), Interest::READABLE)?;
        }
        let first_tcp = self.unix.len();
        for (index, listener) in self.tcp.iter_mut().enumerate() {
            registry.register(listener, listener_token(first_tcp + index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// Whether other processes are left whoever comes next on our TCP ports.
    fn retreat(&mut self) -> bool {
        for listener in &self.tcp {
            if let Err(error) = begin_no_more(listener.as_fd()) {
                tracing::warn!("cannot leave the port to others: {}", sys::error_text(&error));
                return false;
            }
            self.retreats = true;
        }
        self.retreats
    }

    fn accept(&self, index: usize, port: u16) -> io::Result<Option<Accepted>> {
        if let Some(tcp) = index.checked_sub(self.unix.len()) {
            let Some(listener) = self.tcp.get(tcp) else { return Ok(None) };
            let (socket, addr) = listener.accept()?;
            if self.retreats {
                began_before(socket.as_fd());
            }
            return Ok(Some(Accepted { socket: Socket::Tcp(socket), peer: PeerAddr::Tcp(addr) }));
        }
        let (socket, _) = self.unix[index].accept()?;
        let known = sys::socket::peer_credentials(socket.as_fd()).ok();
        let (pid, uid) = (known.as_ref().map(|peer| peer.pid), known.as_ref().map(|peer| peer.uid));
        Ok(Some(Accepted { socket: Socket::Unix(socket), peer: PeerAddr::Unix { pid, uid, port } }))
    }
}

impl Worker {
    pub(super) fn start_listening(&mut self) {
        let registry = &self.shared.post(self.id).registry;
        if let Some(acceptor) = &mut self.acceptor
            && let Err(error) = acceptor.register(registry)
        {
            tracing::error!("cannot wait for connections: {error}");
        }
    }

    /// Takes connections that wait at one listener. If there are many, everybody else has a turn before the rest are taken.
    pub(super) fn accept(&mut self, index: usize) {
        if self.accept_up_to(index, AT_ONCE) && !self.crowded.contains(&index) {
            self.crowded.push(index);
        }
    }

    /// True if more may wait.
    fn accept_up_to(&mut self, index: usize, most: usize) -> bool {
        if self.accept_rests_until.is_some() || self.hold != Hold::Off {
            return false;
        }
        for _ in 0..most {
            let Some(acceptor) = &self.acceptor else { return false };
            match acceptor.accept(index, self.shared.listen_port) {
                Ok(Some(accepted)) => self.distribute(accepted),
                Ok(None) => return false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if accept_error_is_transient(&error) => {}
                Err(error) => {
                    tracing::error!("accept() failed: {}", sys::error_text(&error));
                    self.accept_rests_until = Some(self.now + REST);
                    return false;
                }
            }
        }
        true
    }

    /// Goes on accepting after a rest.
    pub(super) fn accept_again(&mut self) {
        if self.accept_rests_until.is_some_and(|until| self.now >= until) {
            self.accept_rests_until = None;
            self.accept_all();
        }
    }

    /// Takes what waits at all listeners.
    pub(super) fn accept_all(&mut self) {
        let listeners = self.acceptor.as_ref().map_or(0, |acceptor| acceptor.unix.len() + acceptor.tcp.len());
        for index in 0..listeners {
            self.accept_up_to(index, usize::MAX);
        }
    }

    fn distribute(&mut self, accepted: Accepted) {
        self.shared.clients.fetch_add(1, Ordering::Relaxed);
        // where somebody can yield to him
        let worker = if self.is_full() { self.shared.most_strangers() } else { self.shared.least_loaded() };
        let post = self.shared.post(worker);
        post.clients.fetch_add(1, Ordering::Relaxed);
        post.logins.fetch_add(1, Ordering::Relaxed);
        if worker == self.id {
            self.adopt(accepted);
        } else {
            self.shared.post(worker).send(Message::Accepted(accepted));
        }
    }

    /// Takes in a socket that was accepted for this worker.
    pub(super) fn adopt(&mut self, accepted: Accepted) {
        let me = self.clients.reserve();
        let mut client = Box::new(Client {
            stream: Stream::new(accepted.socket),
            me,
            id: self.shared.next_socket(),
            peer: accepted.peer,
            phase: Phase::Login(Box::<Login>::default()),
            side: ClientSide::new(self.nothing_set.clone()),
            pool: None,
            user: None,
            user_id: None,
            mode: self.live.config.settings.pool_mode,
            server: None,
            replicating: None,
            input: None,
            cancel_key: [0; 8],
            connect_time: self.now,
            request_time: self.now,
            wait_start: Micros::ZERO,
            notified: false,
            counted_ready: false,
        });
        if let Err(error) = self.register(&mut client) {
            tracing::error!("cannot wait for a client's socket: {error}");
            self.disconnect(client, crate::disconnect::Disconnect::silent("out of resources").into());
            return;
        }
        self.clients.put_back(client);
        self.make_room(me);
    }

    /// Closes the TCP listeners for good; the Unix socket stays, for the console. Who waits at them has been connected by
    /// the kernel and is let in: closing the listener would reset him.
    /// A port that others listen on as well is left to them first, so that nobody who is on his way is refused.
    pub(super) fn stop_tcp(&mut self) {
        self.accept_rests_until = None;
        let shared_port =
            self.live.config.settings.so_reuseport.is_on() && self.acceptor.as_mut().is_some_and(Acceptor::retreat);
        if shared_port {
            let port = self.shared.listen_port;
            let under_way = handshakes::under_way(port);
            let (ends, gives_up) = (self.now + RETREAT, self.now + LONGEST_RETREAT);
            self.retreat = Some(Box::new(Retreat { ends, gives_up, port, under_way }));
            return self.accept_all();
        }
        self.close_tcp();
    }

    /// Ends a retreat that has lasted long enough.
    #[inline]
    pub(super) fn retreat_ends(&mut self) {
        let Some(retreat) = self.retreat.as_mut().filter(|retreat| self.now >= retreat.ends) else { return };
        let still = handshakes::under_way(retreat.port);
        retreat.under_way.retain(|far_end| still.contains(far_end));
        if retreat.under_way.is_empty() || self.now >= retreat.gives_up {
            return self.close_tcp();
        }
        retreat.ends = self.now + LOOK_AGAIN;
    }

    fn close_tcp(&mut self) {
        self.retreat = None;
        self.accept_all();
        let registry = &self.shared.post(self.id).registry;
        if let Some(acceptor) = &mut self.acceptor {
            for mut listener in acceptor.tcp.drain(..) {
                let _ = registry.deregister(&mut listener);
            }
        }
        self.shared.accepts_tcp.store(false, Ordering::Relaxed);
    }
}
