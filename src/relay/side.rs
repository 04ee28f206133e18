//! What is remembered of the two protocol sides: a client's session after its login, a server connection's state.
//!
//! Nothing here knows pools or sockets. An idle client holds little: its scanner, its tracked values and three stamps.

use crate::relay::outstanding::Outstanding;
use crate::relay::prepared::{ClientNames, ServerStatements};
use crate::relay::vars::Vars;
use crate::time::Micros;
use crate::wire::scan::Scanner;

/// What happens to the body of a message that was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// Passed on as it comes.
    #[default]
    Forward,
    /// Dropped as it comes.
    Discard,
    /// Kept until the message is complete or enough of it is here to decide.
    Collect,
}

/// Transaction status as the last ReadyForQuery gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxStatus {
    #[default]
    Idle,
    InTransaction,
    Failed,
}

impl TxStatus {
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// What only some clients need, and no idle one without prepared statements.
#[derive(Debug, Default)]
pub struct ClientExtra {
    /// A message being collected, header included.
    pub collect: Vec<u8>,
    /// `collect` holds a complete message that could not be handled yet.
    pub held: bool,
    /// The batch that is being sent may forget all statements.
    pub forgets: bool,
    pub names: ClientNames,
}

/// A client's session.
#[derive(Debug)]
pub struct ClientSide {
    pub scan: Scanner,
    pub body: Body,
    /// The client was told that the server awaits copy data, and has not said that it is done.
    pub copying: bool,
    /// A Close was answered without a server and its Sync has not come yet.
    pub closed_locally: bool,
    pub vars: Vars,
    /// When the open query began; zero when none is open.
    pub query_start: Micros,
    /// When the open transaction began; zero when none is open.
    pub xact_start: Micros,
    pub extra: Option<Box<ClientExtra>>,
}

impl ClientSide {
    #[must_use]
    pub fn new(vars: Vars) -> Self {
        Self {
            scan: Scanner::default(),
            body: Body::default(),
            copying: false,
            closed_locally: false,
            vars,
            query_start: Micros::ZERO,
            xact_start: Micros::ZERO,
            extra: None,
        }
    }

    pub(crate) fn extra(&mut self) -> &mut ClientExtra {
        self.extra.get_or_insert_with(Box::default)
    }

    /// The client's statement names, if it ever had any.
    pub(crate) fn names(&self) -> Option<&ClientNames> {
        self.extra.as_ref().map(|extra| &extra.names)
    }

    pub(crate) fn names_mut(&mut self) -> Option<&mut ClientNames> {
        self.extra.as_mut().map(|extra| &mut extra.names)
    }

    /// Number of named statements.
    #[must_use]
    pub fn prepared_statements(&self) -> usize {
        self.names().map_or(0, ClientNames::len)
    }

    /// Frees what an idle client does not need.
    pub fn settle(&mut self) {
        if self.extra.as_ref().is_some_and(|extra| extra.names.is_empty() && extra.collect.is_empty()) {
            self.extra = None;
        }
    }
}

/// A server connection's protocol state, from its login on.
#[derive(Debug)]
pub struct ServerSide {
    pub scan: Scanner,
    pub body: Body,
    pub collect: Vec<u8>,
    pub outstanding: Outstanding,
    pub tx: TxStatus,
    /// The last thing the server said that decides is a ReadyForQuery with nothing owed after it, and nothing was sent since.
    pub ready: bool,
    /// Copy-in or copy-both mode.
    pub copying: bool,
    /// SET commands for the linked client run; its message waits.
    pub setting_vars: bool,
    /// It ended itself between two requests of a client that needs it no more.
    pub leaving: bool,
    pub vars: Vars,
    pub statements: ServerStatements,
    /// Set while a predecessor's requests may be unanswered: the column by which the answer to our question is known, once
    /// it was asked.
    pub inherited: Option<Box<Inherited>>,
}

/// A server connection taken over in the middle of something.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The name of the only column in the answer to our question; empty before it was asked.
    pub question: Vec<u8>,
    /// It was answered: from here on every answer has its owner.
    pub over: bool,
}

impl ServerSide {
    /// A server that has just said its first ReadyForQuery.
    #[must_use]
    pub fn new(vars: Vars) -> Self {
        Self {
            scan: Scanner::default(),
            body: Body::default(),
            collect: Vec::new(),
            outstanding: Outstanding::default(),
            tx: TxStatus::Idle,
            ready: true,
            copying: false,
            setting_vars: false,
            leaving: false,
            vars,
            statements: ServerStatements::default(),
            inherited: None,
        }
    }

    /// A server that a predecessor handed over linked: what it is doing is not known.
    #[must_use]
    pub fn inherited(vars: Vars) -> Self {
        Self {
            outstanding: Outstanding::inherited(),
            tx: TxStatus::InTransaction,
            ready: false,
            inherited: Some(Box::default()),
            ..Self::new(vars)
        }
    }

    /// Nothing owed, nothing half-read, outside a transaction: the only state in which it may serve somebody else.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.ready
            && self.tx == TxStatus::Idle
            && self.outstanding.is_empty()
            && self.scan.at_boundary()
            && !self.setting_vars
            && !self.copying
    }
}
