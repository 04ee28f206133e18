//! A client socket and everything its worker knows about it.
//!
//! An idle client is this struct and nothing else: no buffer, no task. What only a login, a wait or a console needs hangs
//! on [`Phase`] and is gone afterwards.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::admin::command::Rights;
use crate::admin::extended::Session;
use crate::auth::certificate;
use crate::auth::choice::Outside;
use crate::auth::client::ClientAuth;
use crate::auth::facts::{Facts, Tls};
use crate::auth::lookup::Answer;
use crate::config::ident::Map;
use crate::config::{CONSOLE_DATABASE, PoolMode};
use crate::disconnect::Disconnect;
use crate::id::{ClientRef, Ticket, UserId};
use crate::log::{Conn, Side};
use crate::net::stream::Stream;
use crate::relay::side::ClientSide;
use crate::shared::{PoolShared, UserSecret};
use crate::time::Micros;
use crate::wire::startup::{Replication, StartupParams};
use crate::worker::answers::Answers;
use crate::worker::peer::PeerAddr;
use crate::worker::replication::{Dedicated, Replicating};
use crate::worker::server::Server;

/// Where a client is between its connect and its end.
///
/// ```text
/// Login -> Active <-> Waiting          Login -> WaitingLogin -> Active
/// Login -> Console                     Login -> Cancel
/// Login -> Lookup -> Login
/// ```
#[derive(Debug)]
pub enum Phase {
    /// Not logged in.
    Login(Box<Login>),
    /// Not logged in; auth_query waits for a server, or runs on the one in `server`.
    Lookup(Box<Lookup>),
    /// Authenticated; its pool has no login reply yet.
    WaitingLogin(Ticket),
    /// Logged in; linked if `server` is set.
    Active,
    /// Logged in, queued for a server.
    Waiting(Ticket),
    /// A console connection.
    Console(Box<Console>),
    /// A cancel request that was passed on.
    Cancel(Box<Canceling>),
}

/// A login in progress.
#[derive(Default)]
pub struct Login {
    pub received: Vec<u8>,
    pub encryption_requests: EncryptionRequests,
    /// Set once the startup message is here.
    pub params: Option<StartupParams>,
    pub auth: Option<ClientAuth>,
    /// Somebody else works for this login; nothing is read meanwhile.
    pub busy: bool,
    /// Who works for it looks whether this is still there.
    pub wanted: Option<Arc<()>>,
    /// The map for the operating system's name of the client's user, which has been asked for.
    pub peer_map: Option<Arc<Map>>,
    pub user: Option<Arc<UserSecret>>,
    pub source: Source,
    /// The database that it has named, if there is one and the user is known or being looked up.
    pub database: Option<Arc<str>>,
    /// Who judges the password, if we do not, and the password that is being judged.
    pub outside: Option<Outside>,
    pub password: Zeroizing<Vec<u8>>,
    pub console: Option<Access>,
}

/// Where the secret of a login's user is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// There is none, or none is needed.
    #[default]
    Nowhere,
    AuthFile,
    AuthQuery,
}

/// What a login to the console is to come to.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub rights: Rights,
    /// Limits of clients are not for those in admin_users.
    pub limits_exempt: bool,
}

/// A login that goes on when its user's secret has been fetched. Meanwhile the client's pool is the one of the lookup.
pub struct Lookup {
    pub login: Login,
    /// Set while it waits for a server.
    pub ticket: Option<Ticket>,
    /// The messages that run the query.
    pub request: Vec<u8>,
    pub answer: Answer,
    /// Of the answer, as far as it is not taken apart yet. May hold a password.
    pub received: Zeroizing<Vec<u8>>,
}

/// Encryption is asked for at most once each.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncryptionRequests {
    pub ssl: bool,
    pub gss: bool,
}

/// A cancel request on its way.
#[derive(Debug, Default)]
pub struct Canceling {
    /// The pool that forwards it, once it is known.
    pub pool: Option<Arc<PoolShared>>,
    /// It goes to a peer, which alone knows whether its key is anybody's.
    pub to_peer: bool,
    /// It is on the wire; before that it waits for a connection.
    pub sent: bool,
    /// When its client closed the connection, if it has.
    pub left: Option<Micros>,
}

/// A console connection.
#[derive(Debug)]
pub struct Console {
    pub rights: Rights,
    pub received: Vec<u8>,
    /// Bytes of messages that came before the last one and are through, since all that was received had been dealt with.
    pub through: usize,
    /// Length of the last message that was taken out of `received`.
    pub taken: usize,
    /// A command is with the supervisor, or its answer is not sent yet.
    pub busy: bool,
    /// Commands by simple query that wait: their answers come some time, the console goes on.
    pub waits: usize,
    pub session: Session,
    pub answers: Answers,
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookup(..)")
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(..)")
    }
}

/// A client.
#[derive(Debug)]
pub struct Client {
    pub stream: Stream,
    pub me: ClientRef,
    pub id: u64,
    pub peer: PeerAddr,
    pub phase: Phase,
    pub side: ClientSide,
    /// That of its entry and user once it has proved who it is; while its user is looked up, the one for that.
    pub pool: Option<Arc<PoolShared>>,
    /// The login user.
    pub user: Option<Arc<str>>,
    /// Set while it is attached to `pool`, and when it is counted at the console.
    pub user_id: Option<UserId>,
    pub mode: PoolMode,
    pub server: Option<Box<Server>>,
    /// Set for a replication client.
    pub replicating: Option<Arc<Replicating>>,
    /// Input that waits for a server, or for the server to settle.
    pub input: Option<Box<Vec<u8>>>,
    pub cancel_key: [u8; 8],
    pub connect_time: Micros,
    /// The last message.
    pub request_time: Micros,
    /// Since when it is queued; zero when it is not.
    pub wait_start: Micros,
    /// The client was told that it waits.
    pub notified: bool,
    /// Counted as a client that finished its login.
    pub counted_ready: bool,
}

/// Why a turn ends its client.
#[derive(Debug)]
pub struct End {
    pub why: Disconnect,
    pub server: ServerFate,
}

/// What becomes of the server of a client that is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFate {
    /// Back to its pool if it is clean.
    Parted,
    /// It is to blame: closed with the same reason.
    Shared,
    /// The pools want it gone as well: closed, with the same reason if it is clean.
    Goes,
}

impl From<Disconnect> for End {
    fn from(why: Disconnect) -> Self {
        Self { why, server: ServerFate::Parted }
    }
}

impl End {
    /// Ends client and server.
    pub(crate) fn both(why: Disconnect) -> Self {
        Self { why, server: ServerFate::Shared }
    }
}

impl Client {
    /// The number by which logs and SHOW speak of this socket.
    #[must_use]
    pub fn ptr(&self) -> u64 {
        socket_ptr(self.id)
    }

    /// The prefix of log lines about this client.
    #[must_use]
    pub fn prefix(&self) -> Conn {
        let pool = match &self.phase {
            Phase::Cancel(canceling) => canceling.pool.as_ref(),
            _ => self.pool.as_ref(),
        };
        let named = match &self.phase {
            Phase::Login(login) => login.database.clone(),
            _ => None,
        };
        if let Some(peer_id) = pool.and_then(|pool| pool.peer_id) {
            return self.peer.conn(Side::Client, self.ptr(), Some(peer_id), None, None);
        }
        let database = pool.map(|pool| pool.database.clone()).or(named);
        let database = if self.at_console() { Some(CONSOLE_DATABASE.into()) } else { database };
        let user = self.user.as_deref().map(Into::into);
        self.peer.conn(Side::Client, self.ptr(), None, database, user)
    }

    /// The kind of replication it asked for.
    #[must_use]
    pub fn replication(&self) -> Replication {
        self.replicating.as_ref().map_or(Replication::None, |replicating| replicating.kind)
    }

    /// What a server made for this client is to be told, if it replicates.
    #[must_use]
    pub fn dedicated(&self) -> Option<Dedicated> {
        let wishes = self.replicating.clone()?;
        Some(Dedicated { wishes, vars: self.side.vars.clone() })
    }

    /// Logged in at the console or, by a user who is known, on the way there.
    #[must_use]
    pub const fn at_console(&self) -> bool {
        match &self.phase {
            Phase::Console(_) => true,
            Phase::Login(login) => login.console.is_some(),
            _ => false,
        }
    }

    /// What is known of the connection beyond what the client says.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let tls = self.stream.tls().and_then(|session| {
            let certificate = session.peer_certificate().and_then(certificate::names);
            Some(Tls { info: session.info()?, certificate })
        });
        match self.peer {
            PeerAddr::Tcp(addr) => Facts { address: Some(addr.ip()), uid: None, tls },
            PeerAddr::Unix { uid, .. } => Facts { address: None, uid, tls },
        }
    }

    /// The client's place in a line, if it stands in one.
    #[must_use]
    pub fn ticket(&self) -> Option<Ticket> {
        match &self.phase {
            Phase::Waiting(ticket) | Phase::WaitingLogin(ticket) => Some(*ticket),
            Phase::Lookup(lookup) => lookup.ticket,
            Phase::Login(_) | Phase::Active | Phase::Console(_) | Phase::Cancel(_) => None,
        }
    }

    /// Has not shown who it is yet, and is not on the way of a cancel request.
    #[must_use]
    pub const fn logging_in(&self) -> bool {
        matches!(self.phase, Phase::Login(_) | Phase::Lookup(_)) && self.user_id.is_none()
    }

    /// Has not shown yet that it knows anything. One whose secret is being fetched may have made up its name, and how long that
    /// takes is up to a server.
    #[must_use]
    pub const fn is_stranger(&self) -> bool {
        matches!(self.phase, Phase::Login(_) | Phase::Lookup(_)) || self.goes_to_peer()
    }

    /// A cancel request for a peer.
    #[must_use]
    pub const fn goes_to_peer(&self) -> bool {
        matches!(&self.phase, Phase::Cancel(canceling) if canceling.to_peer)
    }

    /// True from AuthenticationOk on.
    #[must_use]
    pub const fn logged_in(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Waiting(_) | Phase::Console(_))
    }
}

/// An address-like number that no other socket has.
#[must_use]
pub(crate) const fn socket_ptr(id: u64) -> u64 {
    0x5500_0000_0000 + id * 0x40
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle client is this struct: what is added here is paid for by every one of them.
    #[test]
    fn an_idle_client_stays_small() {
        assert!(size_of::<Client>() <= 288, "{} bytes", size_of::<Client>());
    }
}
