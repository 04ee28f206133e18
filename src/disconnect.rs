//! Why a connection ends: the one value from which log line and wire error are made.

use std::borrow::Cow;

/// `protocol_violation`, the SQLSTATE of nearly every error a pooler makes itself.
pub const PROTOCOL_VIOLATION: &str = "08P01";

/// A reason to close a client or server connection.
///
/// `reason` is the text of the log line `closing because: <reason>`; when `tell` is set the same text goes to the client as
/// a FATAL error with `sqlstate` before the socket is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    pub reason: Cow<'static, str>,
    pub sqlstate: Cow<'static, str>,
    pub tell: bool,
    /// The text is a server's own, and told in full; ours are cut.
    pub verbatim: bool,
}

impl Disconnect {
    /// Closes and says nothing on the wire.
    #[must_use]
    pub fn silent(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), sqlstate: Cow::Borrowed(PROTOCOL_VIOLATION), tell: false, verbatim: false }
    }

    /// Closes after a FATAL error with SQLSTATE 08P01.
    #[must_use]
    pub fn fatal(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), sqlstate: Cow::Borrowed(PROTOCOL_VIOLATION), tell: true, verbatim: false }
    }

    /// Closes after a FATAL error with a SQLSTATE that a server chose.
    #[must_use]
    pub fn relayed(sqlstate: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), sqlstate: sqlstate.into(), tell: true, verbatim: true }
    }
}
