//! Named prepared statements that outlive a link: which client calls what by which name, and which server has it.
//!
//! Equal statements (text and declared parameter types, byte for byte) share one number and one server-side name. A client
//! binds its own names to them; each server connection remembers the statements it has, least recently used first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// A statement known under a server-side name.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// Counts from 1; never reused.
    pub number: u64,
    /// `PGBOUNCER_<number>`.
    pub name: Box<[u8]>,
    /// The body of its Parse message after the name: text, NUL, parameter types.
    pub tail: Box<[u8]>,
}

impl Statement {
    /// A statement that no client has, under the one name that is never given away.
    #[must_use]
    pub fn spare(tail: &[u8]) -> Self {
        Self { number: 0, name: b"PGBOUNCER_0".as_slice().into(), tail: tail.into() }
    }

    /// Appends the Parse message that creates the statement under its server-side name.
    pub fn parse_message(&self, out: &mut Vec<u8>) {
        parse_message(out, &self.name, &self.tail);
    }
}

/// Appends a Parse message made of a name and the rest of its body.
pub fn parse_message(out: &mut Vec<u8>, name: &[u8], tail: &[u8]) {
    crate::wire::encode::message(out, b'P', |body| {
        crate::wire::encode::cstr(body, name);
        body.extend_from_slice(tail);
    });
}

/// All statements in use, by content. One for the whole process; the shell guards it with a lock.
#[derive(Debug, Default)]
pub struct Statements {
    by_content: HashMap<Box<[u8]>, Weak<Statement>>,
    last_number: u64,
    sweep_at: usize,
}

impl Statements {
    /// The statement with this content; a new one gets the next number.
    pub fn intern(&mut self, tail: &[u8]) -> Arc<Statement> {
        if let Some(known) = self.by_content.get(tail).and_then(Weak::upgrade) {
            return known;
        }
        self.sweep();
        self.last_number += 1;
        let statement = Arc::new(Statement {
            number: self.last_number,
            name: format!("PGBOUNCER_{}", self.last_number).into_bytes().into(),
            tail: tail.into(),
        });
        self.by_content.insert(tail.into(), Arc::downgrade(&statement));
        statement
    }

    /// Makes a statement with the number it has at servers already. `None` if the same content is known by another one.
    pub fn adopt(&mut self, number: u64, tail: &[u8]) -> Option<Arc<Statement>> {
        if let Some(known) = self.by_content.get(tail).and_then(Weak::upgrade) {
            return (known.number == number).then_some(known);
        }
        let last = std::mem::replace(&mut self.last_number, number.checked_sub(1)?);
        let statement = self.intern(tail);
        self.last_number = self.last_number.max(last);
        Some(statement)
    }

    /// Drops what nobody uses any more, each time the table has doubled.
    fn sweep(&mut self) {
        if self.by_content.len() >= self.sweep_at.max(64) {
            self.by_content.retain(|_, statement| statement.strong_count() > 0);
            self.sweep_at = self.by_content.len() * 2;
        }
    }
}

/// A client's names.
#[derive(Debug, Default)]
pub struct ClientNames {
    names: HashMap<Box<[u8]>, Arc<Statement>>,
}

impl ClientNames {
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.names.get(name)
    }

    pub fn bind(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.names.insert(name.into(), statement);
    }

    pub fn unbind(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.names.remove(name)
    }

    pub fn clear(&mut self) {
        self.names.clear();
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Arc<Statement>)> {
        self.names.iter().map(|(name, statement)| (&**name, statement))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The statements that a server connection has. Least recently used is dropped first; a made-up ParseComplete does not
/// count as use, a Bind or Describe does.
#[derive(Debug, Default)]
pub struct ServerStatements {
    by_number: HashMap<u64, (u64, Arc<Statement>)>,
    /// (number, stamp) in the order of use; outdated stamps are passed over.
    order: VecDeque<(u64, u64)>,
    stamp: u64,
}

impl ServerStatements {
    #[must_use]
    pub fn contains(&self, statement: &Statement) -> bool {
        self.by_number.contains_key(&statement.number)
    }

    /// Marks a use; false if the server does not have the statement.
    pub fn touch(&mut self, statement: &Statement) -> bool {
        if self.order.back().is_some_and(|&(number, _)| number == statement.number) {
            return self.by_number.contains_key(&statement.number);
        }
        let Some((stamp, _)) = self.by_number.get_mut(&statement.number) else { return false };
        self.stamp += 1;
        *stamp = self.stamp;
        self.order.push_back((statement.number, self.stamp));
        self.compact();
        true
    }

    pub fn insert(&mut self, statement: Arc<Statement>) {
        self.stamp += 1;
        let number = statement.number;
        self.by_number.insert(number, (self.stamp, statement));
        self.order.push_back((number, self.stamp));
    }

    pub fn remove(&mut self, statement: &Statement) {
        self.by_number.remove(&statement.number);
    }

    /// Takes the least recently used statement if there are more than `limit`.
    pub fn evict_over(&mut self, limit: usize) -> Option<Arc<Statement>> {
        while self.by_number.len() > limit {
            let (number, stamp) = self.order.pop_front()?;
            if self.by_number.get(&number).is_some_and(|&(current, _)| current == stamp) {
                return self.by_number.remove(&number).map(|(_, statement)| statement);
            }
        }
        None
    }

    pub fn clear(&mut self) {
        self.by_number.clear();
        self.order.clear();
    }

    /// All statements, the least recently used one first.
    pub fn oldest_first(&self) -> impl Iterator<Item = &Arc<Statement>> {
        let current = |(number, stamp): &(u64, u64)| {
            self.by_number.get(number).filter(|(last, _)| last == stamp).map(|(_, statement)| statement)
        };
        self.order.iter().filter_map(current)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    fn compact(&mut self) {
        if self.order.len() > 4 * self.by_number.len() + 16 {
            let by_number = &self.by_number;
            self.order.retain(|(number, stamp)| by_number.get(number).is_some_and(|(current, _)| current == stamp));
        }
    }
}

/// What a request changed before its answer came; taken back when the server refuses or skips the request.
#[derive(Debug)]
pub enum Undo {
    /// A client's Parse bound a name.
    Named { name: Box<[u8]>, statement: Arc<Statement>, on_server: bool },
    /// A Parse was sent for a statement that a client had bound before.
    Injected { statement: Arc<Statement> },
    /// A client's Close freed a name.
    Closed { name: Box<[u8]>, statement: Arc<Statement> },
    /// A statement was dropped from the server.
    Evicted { statement: Arc<Statement> },
    /// A Parse for a name the client uses already was sent under the server-side name, for the server to refuse; the
    /// refusal must speak of the client's name.
    Duplicate { name: Box<[u8]>, statement: Arc<Statement> },
    /// Nothing to take back, but the answer may be that all statements are gone: what the client's names mean is not known
    /// before it is there.
    Forgets,
}

/// Whether a command can be DISCARD ALL or DEALLOCATE ALL. Rather once too often: a wrong yes costs a client that pipelines a
/// round trip.
#[inline]
#[must_use]
pub fn may_forget(sql: &[u8]) -> bool {
    let text = sql.trim_ascii_start();
    let starts = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    let ends = || {
        let end = sql.iter().rposition(|byte| !matches!(byte, 0 | b';' | b' ' | b'\t' | b'\r' | b'\n'));
        end.and_then(|end| sql[..=end].last_chunk::<3>()).is_some_and(|end| end.eq_ignore_ascii_case(b"ALL"))
    };
    let first = text.first().map(u8::to_ascii_uppercase);
    (first == Some(b'D') && (starts(b"DISCARD") || starts(b"DEALLOCATE"))) || ends()
}

impl Undo {
    /// The client's name that this is about.
    #[must_use]
    pub fn client_name(&self) -> Option<&[u8]> {
        match self {
            Self::Named { name, .. } | Self::Closed { name, .. } => Some(name),
            Self::Injected { .. } | Self::Evicted { .. } | Self::Duplicate { .. } | Self::Forgets => None,
        }
    }

    /// The statement that this is about.
    #[must_use]
    pub fn statement(&self) -> Option<&Statement> {
        self.shared().map(|statement| &**statement)
    }

    /// The same, to be held.
    #[must_use]
    pub fn shared(&self) -> Option<&Arc<Statement>> {
        match self {
            Self::Named { statement, .. }
            | Self::Injected { statement }
            | Self::Closed { statement, .. }
            | Self::Evicted { statement }
            | Self::Duplicate { statement, .. } => Some(statement),
            Self::Forgets => None,
        }
    }

    /// Takes the change back.
    pub fn apply(self, server: &mut ServerStatements, client: Option<&mut ClientNames>) {
        match self {
            Self::Named { name, statement, on_server } => {
                if on_server {
                    server.remove(&statement);
                }
                if let Some(names) = client {
                    names.unbind(&name);
                }
            }
            Self::Injected { statement } => server.remove(&statement),
            Self::Closed { name, statement } => {
                if let Some(names) = client {
                    names.bind(&name, statement);
                }
            }
            Self::Evicted { statement } => server.insert(statement),
            Self::Duplicate { .. } | Self::Forgets => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_share_a_number_and_numbers_are_not_reused() {
        let mut table = Statements::default();
        let a = table.intern(b"select 1\0\0\0");
        assert_eq!(table.intern(b"select 1\0\0\0").number, a.number);
        assert_eq!(&*a.name, b"PGBOUNCER_1");
        drop(a);
        assert_eq!(table.intern(b"select 1\0\0\0").number, 2);
    }

    #[test]
    fn unused_statements_are_dropped() {
        let mut table = Statements::default();
        for n in 0..10_000_u32 {
            table.intern(&n.to_be_bytes());
        }
        assert!(table.by_content.len() < 200, "{}", table.by_content.len());
    }

    #[test]
    fn commands_that_may_forget_statements_are_found() {
        for yes in [
            "DISCARD ALL",
            " deallocate all;\0",
            "Deallocate a",
            "/* x */ discard all ;\n\0",
            "SELECT 1; DISCARD ALL\0",
        ] {
            assert!(may_forget(yes.as_bytes()), "{yes}");
        }
        for no in ["", "\0", "d", "SELECT 1\0", "BEGIN;\0", "SELECT 1 UNION ALL SELECT 2\0", "DISCAR"] {
            assert!(!may_forget(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn least_recently_used_goes_first() {
        let mut table = Statements::default();
        let [a, b, c] = [&b"a"[..], b"b", b"c"].map(|text| table.intern(text));
        let mut server = ServerStatements::default();
        for statement in [&a, &b, &c] {
            server.insert(statement.clone());
        }
        assert!(server.touch(&a));
        assert_eq!(server.evict_over(2).map(|s| s.number), Some(b.number));
        assert_eq!(server.evict_over(2), None);
        assert_eq!(server.evict_over(1).map(|s| s.number), Some(c.number));
        assert!(server.contains(&a));
        assert!(!server.touch(&b));
    }

    #[test]
    fn use_does_not_grow_the_order_without_bound() {
        let mut table = Statements::default();
        let all: Vec<_> = (0..10_u8).map(|n| table.intern(&[n])).collect();
        let mut server = ServerStatements::default();
        for statement in &all {
            server.insert(statement.clone());
        }
        for n in 0..10_000 {
            assert!(server.touch(&all[n % 10]));
        }
        assert!(server.order.len() < 100);
    }
}
