//! The entries of [`Outstanding`](super::outstanding::Outstanding) in their order. How many of them end a batch, or make the
//! server forget, is asked for with every message of a client, so it is kept: a long pipeline must not be looked through
//! again and again.

use std::collections::VecDeque;
use std::ops::{Deref, RangeBounds};

use crate::relay::outstanding::Expected;
use crate::relay::prepared::Undo;

#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Expected>,
    /// How many entries [`is_end`] holds for.
    ends: usize,
}

/// True if what stands before the entry may be decided by its answer.
fn is_end(entry: &Expected) -> bool {
    entry.request.is_ended_by_ready() || matches!(entry.undo.as_deref(), Some(Undo::Forgets))
}

impl Queue {
    #[inline]
    pub(super) fn push_back(&mut self, entry: Expected) {
        self.ends += usize::from(is_end(&entry));
        self.entries.push_back(entry);
    }

    #[inline]
    pub(super) fn pop_front(&mut self) -> Option<Expected> {
        let entry = self.entries.pop_front()?;
        self.ends -= usize::from(is_end(&entry));
        Some(entry)
    }

    pub(super) fn drain(&mut self, range: impl RangeBounds<usize>) -> Vec<Expected> {
        let gone: Vec<Expected> = self.entries.drain(range).collect();
        self.ends -= gone.iter().filter(|entry| is_end(entry)).count();
        gone
    }

    /// Says what the newest entry may do.
    pub(super) fn mark_last(&mut self, undo: Undo) {
        let Some(last) = self.entries.back_mut() else { return };
        self.ends -= usize::from(is_end(last));
        last.undo = Some(Box::new(undo));
        self.ends += usize::from(is_end(last));
    }

    /// True if an entry ends a batch, or makes the server forget.
    #[inline]
    pub(super) const fn has_end(&self) -> bool {
        self.ends > 0
    }

    pub(super) const fn entries(&self) -> &VecDeque<Expected> {
        &self.entries
    }
}

impl Deref for Queue {
    type Target = VecDeque<Expected>;

    #[inline]
    fn deref(&self) -> &VecDeque<Expected> {
        &self.entries
    }
}

impl FromIterator<Expected> for Queue {
    fn from_iter<I: IntoIterator<Item = Expected>>(entries: I) -> Self {
        let mut queue = Self::default();
        entries.into_iter().for_each(|entry| queue.push_back(entry));
        queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::outstanding::{Give, Request};

    #[test]
    fn ends_are_counted_however_entries_come_and_go() {
        let entry = |request, undo: Option<Undo>| Expected { request, give: Give::Forward, undo: undo.map(Box::new) };
        let mut queue = Queue::default();
        for request in [Request::Parse, Request::Sync, Request::Query, Request::Bind] {
            queue.push_back(entry(request, None));
        }
        assert_eq!(queue.ends, 2);
        queue.mark_last(Undo::Forgets);
        assert_eq!(queue.ends, 3);
        queue.mark_last(Undo::Forgets);
        assert_eq!(queue.ends, 3, "it was one already");
        assert_eq!(queue.drain(1..=1).len(), 1);
        assert_eq!(queue.ends, 2);
        queue.pop_front();
        assert!(queue.has_end());
        queue.drain(..);
        assert_eq!((queue.ends, queue.len(), queue.has_end()), (0, 0, false));
        let again: Queue = [entry(Request::Sync, None)].into_iter().collect();
        assert!(again.has_end());
    }
}
