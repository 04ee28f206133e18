//! The other end of a socket, kept small because every idle client has one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::admin::snapshot::Address;
use crate::log::{Conn, Side};

/// Address of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddr {
    Tcp(SocketAddr),
    /// A Unix socket, with the peer's process and user where known. `port` is shown instead of a port of its own.
    Unix {
        pid: Option<i32>,
        uid: Option<u32>,
        port: u16,
    },
}

impl PeerAddr {
    /// A connection with this other end, for a log line.
    #[must_use]
    pub fn conn(
        self,
        side: Side,
        ptr: u64,
        peer_id: Option<u16>,
        database: Option<Arc<str>>,
        user: Option<Arc<str>>,
    ) -> Conn {
        Conn { side, ptr, peer_id, database, user, addr: self.show(), port: self.port(), shown: self.to_string() }
    }

    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Tcp(addr) => addr.port(),
            Self::Unix { port, .. } => port,
        }
    }

    /// The address as SHOW prints it: without brackets, `unix` for Unix sockets.
    #[must_use]
    pub fn show(self) -> String {
        self.address().to_string()
    }

    #[must_use]
    pub const fn address(self) -> Address {
        match self {
            Self::Tcp(addr) => Address::Tcp(addr.ip()),
            Self::Unix { .. } => Address::Unix,
        }
    }

    /// The process at the other end of a Unix socket; 0 when unknown.
    #[must_use]
    pub fn pid(self) -> i32 {
        match self {
            Self::Unix { pid: Some(pid), .. } => pid,
            Self::Tcp(_) | Self::Unix { .. } => 0,
        }
    }

    /// The address as application_name_add_host appends it.
    #[must_use]
    pub fn for_application_name(self, hostname: &str) -> String {
        match self {
            Self::Tcp(addr) => addr.to_string(),
            Self::Unix { pid: Some(pid), port, .. } => format!("unix({pid}@{hostname}):{port}"),
            Self::Unix { port, .. } => format!("unix:{port}"),
        }
    }
}

/// `host:port` as in log prefixes.
impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => match addr.ip() {
                IpAddr::V4(ip) => write!(f, "{ip}:{}", addr.port()),
                IpAddr::V6(ip) => write!(f, "[{ip}]:{}", addr.port()),
            },
            Self::Unix { pid: Some(pid), port, .. } => write!(f, "unix({pid}):{port}"),
            Self::Unix { port, .. } => write!(f, "unix:{port}"),
        }
    }
}
