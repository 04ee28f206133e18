//! A server connection that has logged in.

use std::sync::Arc;

use crate::id::{ServerId, WorkerId};
use crate::net::stream::Stream;
use crate::pool::TestQuery;
use crate::relay::side::ServerSide;
use crate::shared::{LoginReply, PoolShared};
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
    /// The worker whose poller knows the socket.
    pub home: WorkerId,
    pub connect_time: Micros,
    /// The last message from or to the server.
    pub request_time: Micros,
    pub testing: Option<TestQuery>,
    /// Anything but `None`: opened for one replication client.
    pub replication: Replication,
    /// What that client is told should it still wait for its login reply.
    pub login_reply: Option<Arc<LoginReply>>,
}

impl Server {
    /// The number by which logs and SHOW speak of this socket.
    #[must_use]
    pub const fn ptr(&self) -> u64 {
        socket_ptr(self.id)
    }

    /// The prefix of log lines about this server.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("S-{:#x}: {}/{}@{} ", self.ptr(), self.pool.database, self.pool.user, self.addr)
    }

    /// The process id that the server gave in BackendKeyData.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        i32::from_be_bytes([self.cancel_key[0], self.cancel_key[1], self.cancel_key[2], self.cancel_key[3]])
    }
}
