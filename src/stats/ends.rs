//! Why connections were closed, and which errors clients were told: counts by text, with a bound on how many texts there are.
//!
//! Reasons may hold names that strangers chose. What is counted under is therefore a [`label`], which has neither what is
//! quoted nor what follows a colon, and of these a fixed number: the rest counts as [`OTHER`].

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Texts of one kind that are counted apart.
pub const MOST_TEXTS: usize = 100;

/// What the others count under.
pub const OTHER: &str = "other";

/// Counts by text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByText {
    counts: BTreeMap<Box<str>, u64>,
}

impl ByText {
    pub fn add(&mut self, text: &str) {
        let room = self.counts.len() < MOST_TEXTS;
        match self.counts.get_mut(text) {
            Some(count) => *count += 1,
            None if room => drop(self.counts.insert(text.into(), 1)),
            None => *self.counts.entry(OTHER.into()).or_default() += 1,
        }
    }

    /// By text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(text, &count)| (&**text, count))
    }

    #[must_use]
    pub fn get(&self, text: &str) -> u64 {
        self.counts.get(text).copied().unwrap_or(0)
    }
}

/// The SQLSTATE of an error as the wire has it.
pub type SqlState = [u8; 5];

/// Counts of the whole process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Closed client connections by reason.
    pub clients: ByText,
    /// Closed server connections by reason.
    pub servers: ByText,
    /// Errors of our own that clients were told, by text.
    pub told: ByText,
    /// The same by SQLSTATE.
    pub told_sqlstates: ByText,
    /// Errors of servers that went to clients, by SQLSTATE.
    pub server_sqlstates: ByText,
}

impl Ends {
    pub fn client_closed(&mut self, reason: &str) {
        self.clients.add(&label(reason));
    }

    pub fn server_closed(&mut self, reason: &str) {
        self.servers.add(&label(reason));
    }

    /// An error of our own goes to a client.
    pub fn error_told(&mut self, sqlstate: &str, text: &str) {
        self.told.add(&label(text));
        self.told_sqlstates.add(sqlstate);
    }

    /// An error of a server went to a client.
    pub fn server_error(&mut self, sqlstate: &SqlState) {
        let plain = sqlstate.iter().all(u8::is_ascii_alphanumeric);
        self.server_sqlstates.add(std::str::from_utf8(sqlstate).ok().filter(|_| plain).unwrap_or(OTHER));
    }
}

/// A reason without what differs from case to case.
#[must_use]
pub fn label(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'"' | b'\'' | b':')) {
        return Cow::Borrowed(text.trim());
    }
    let head = text.split_once(':').map_or(text, |(head, _)| head);
    if !head.contains(['"', '\'']) {
        return Cow::Borrowed(head.trim());
    }
    // every other piece was between quotes; one that is never closed goes to the end
    let pieces: Vec<&str> =
        head.split(['"', '\'']).step_by(2).map(str::trim).filter(|piece| !piece.is_empty()).collect();
    Cow::Owned(pieces.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_leave_out_what_strangers_choose() {
        for (text, want) in [
            ("client unexpected eof", "client unexpected eof"),
            ("no more connections allowed (max_client_conn)", "no more connections allowed (max_client_conn)"),
            ("no such database: x y", "no such database"),
            ("database \"x\" is disabled", "database is disabled"),
            ("\"trust\" authentication failed", "authentication failed"),
            ("bad packet header: '00'", "bad packet header"),
            ("role \"never closed", "role"),
            ("server conn crashed?", "server conn crashed?"),
        ] {
            assert_eq!(label(text), want, "{text}");
        }
    }

    #[test]
    fn there_are_only_so_many_texts() {
        let mut ends = Ends::default();
        for n in 0..MOST_TEXTS + 50 {
            ends.client_closed(&format!("reason {n}"));
        }
        ends.client_closed("reason 7");
        assert_eq!(ends.clients.iter().count(), MOST_TEXTS + 1);
        assert_eq!((ends.clients.get("reason 7"), ends.clients.get(OTHER)), (2, 50));
        assert_eq!(ends.clients.iter().map(|(_, count)| count).sum::<u64>(), MOST_TEXTS as u64 + 51);
    }

    #[test]
    fn errors_count_by_text_and_by_sqlstate() {
        let mut ends = Ends::default();
        ends.error_told("08P01", "no such database: a");
        ends.error_told("08P01", "no such database: b");
        ends.server_error(b"42601");
        ends.server_error(b"\"\n\0\xff ");
        assert_eq!((ends.told.get("no such database"), ends.told_sqlstates.get("08P01")), (2, 2));
        assert_eq!(ends.server_sqlstates.iter().collect::<Vec<_>>(), [("42601", 1), (OTHER, 1)]);
    }
}
