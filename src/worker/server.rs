//! A server connection that has logged in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::id::{ServerId, WorkerId};
use crate::log::{Conn, Side};
use crate::net::stream::{ReadResult, Stream};
use crate::pool::TestQuery;
use crate::relay::side::ServerSide;
use crate::shared::{LoginReply, PoolShared};
use crate::sys;
use crate::time::Micros;
use crate::wire::startup::Replication;
use crate::worker::client::socket_ptr;
use crate::worker::peer::PeerAddr;

/// A server connection. It is owned by the client it is linked to, by its worker while it is tested, or by the pools.
#[derive(Debug)]
pub struct Server {
    pub stream: Stream,
    pub me: ServerId,
    pub id: u64,
    pub side: ServerSide,
    pub pool: Arc<PoolShared>,
    /// The server's own cancel key: process id and secret.
    pub cancel_key: [u8; 8],
    pub addr: PeerAddr,
    /// Our end of it, asked for once: SHOW lists servers under the lock. `None` for a Unix socket.
    pub local: Option<SocketAddr>,
    /// The worker whose poller knows the socket.
    pub home: WorkerId,
    pub connect_time: Micros,
    /// The last message from or to the server.
    pub request_time: Micros,
    pub testing: Option<TestQuery>,
    /// Anything but `None`: opened for one replication client.
    pub replication: Replication,
    /// What the operating system said when the socket failed; `None` while it has not.
    pub lost: Option<Box<str>>,
    /// What that client is told should it still wait for its login reply.
    pub login_reply: Option<Arc<LoginReply>>,
}

/// A connection to a server, for a log line.
pub(crate) fn server_conn(pool: &PoolShared, ptr: u64, addr: PeerAddr) -> Conn {
    let peer_id = pool.peer_id;
    let named = |name: &Arc<str>| peer_id.is_none().then(|| name.clone());
    let (database, user) = (named(&pool.database), named(&pool.user));
    addr.conn(Side::Server, ptr, peer_id, database, user)
}

impl Server {
    /// The number by which logs and SHOW speak of this socket.
    #[must_use]
    pub const fn ptr(&self) -> u64 {
        socket_ptr(self.id)
    }

    /// The prefix of log lines about this server.
    #[must_use]
    pub fn prefix(&self) -> Conn {
        server_conn(&self.pool, self.ptr(), self.addr)
    }

    /// Notes why the socket cannot be used any more, for the log.
    pub(crate) fn lose(&mut self, error: &io::Error) {
        self.lost = Some(sys::error_text(error).into());
    }

    /// The same, when reading has shown it.
    pub(crate) fn lost_while_reading(&mut self, read: &ReadResult) {
        match read {
            ReadResult::Eof => self.lost = Some("the server closed the connection".into()),
            ReadResult::Failed(error) => self.lose(error),
            ReadResult::Data(_) | ReadResult::Nothing => {}
        }
    }

    /// The process id that the server gave in BackendKeyData.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        i32::from_be_bytes([self.cancel_key[0], self.cancel_key[1], self.cancel_key[2], self.cancel_key[3]])
    }
}
