//! The queue of answers that a server connection still owes: the only place that knows who gets what.
//!
//! Every request that makes the server answer has one entry, and so has every answer that the pooler invents, in the order
//! in which the client is to see them. An entry says whether its answer goes to the client (`Forward`), is swallowed
//! (`Skip`) or is made up here (`Fake`). An invented answer is due when everything before it has been answered, so the head
//! of the queue is never a `Fake` for long.
//!
//! After an error inside an extended-query batch the server skips to the next Sync (protocol chapter "Extended Query"): the
//! entries up to that Sync are dropped at its ReadyForQuery, invented ones included, and what they had changed in advance
//! is handed back for undoing.

use std::collections::VecDeque;

use crate::relay::prepared::Undo;
use crate::relay::queue::Queue;

/// What was asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Query,
    FunctionCall,
    Parse,
    Bind,
    Describe,
    Execute,
    Close,
    Sync,
    /// CopyDone or CopyFail. It ends the copy-in before it; outside of one the server ignores it, and never answers it.
    CopyDone,
    /// Whatever a predecessor had asked for when it handed the connection over: nobody can tell what, or how much.
    Inherited,
}

impl Request {
    /// Is its answer complete with a ReadyForQuery?
    pub(super) const fn is_ended_by_ready(self) -> bool {
        matches!(self, Self::Query | Self::FunctionCall | Self::Sync)
    }
}

/// What becomes of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Give {
    Forward,
    Skip,
    Fake,
    /// To the client, unless it is the answer to the question that ends an [`Request::Inherited`].
    Inherited,
}

/// One expected answer.
#[derive(Debug)]
pub struct Expected {
    pub request: Request,
    pub give: Give,
    /// What to take back should the server skip or refuse this request.
    pub undo: Option<Box<Undo>>,
}

/// What a ReadyForQuery completed.
#[derive(Debug)]
pub struct Completed {
    /// What becomes of the ReadyForQuery itself.
    pub give: Give,
    /// What the entries that the server skipped had changed, for undoing, newest first.
    pub undos: Vec<Undo>,
}

/// The server said something that nobody is waiting for: the connection can no longer be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoOwner;

/// The queue. See the module text.
#[derive(Debug, Default)]
pub struct Outstanding {
    queue: Queue,
    /// An error was answered inside a batch: everything up to the next Sync is being skipped by the server.
    skipping: bool,
}

impl Outstanding {
    /// Adds an entry without anything to undo.
    #[inline]
    pub fn push(&mut self, request: Request, give: Give) {
        self.queue.push_back(Expected { request, give, undo: None });
    }

    /// Adds a CopyDone or CopyFail. Whether the server is in copy-in mode when it reads it is not known yet: a client may
    /// send it before the CopyInResponse has come.
    pub fn push_copy_done(&mut self) {
        self.push(Request::CopyDone, Give::Skip);
        self.drop_ignored();
    }

    /// When everything before a CopyDone has been answered, no copy-in was open: the server ignores it.
    #[inline]
    fn drop_ignored(&mut self) {
        while self.queue.front().is_some_and(|head| head.request == Request::CopyDone) {
            self.queue.pop_front();
        }
    }

    /// Adds an entry with what it changed in advance.
    pub fn push_with(&mut self, request: Request, give: Give, undo: Undo) {
        self.queue.push_back(Expected { request, give, undo: Some(Box::new(undo)) });
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// The answer the server is working on.
    #[must_use]
    pub fn head(&self) -> Option<&Expected> {
        self.queue.front()
    }

    /// Says what the newest entry may do.
    pub fn mark_last(&mut self, undo: Undo) {
        self.queue.mark_last(undo);
    }

    /// True if the state of the transaction may yet change before the server reads what is sent now.
    #[must_use]
    pub fn holds_end_of_batch(&self) -> bool {
        self.queue.has_end() && self.queue.iter().any(|entry| entry.request.is_ended_by_ready())
    }

    /// True if a CopyDone or CopyFail has been sent for what the server is working on.
    #[must_use]
    pub fn holds_copy_done(&self) -> bool {
        self.queue.iter().any(|entry| entry.request == Request::CopyDone)
    }

    /// True if the last answer owed ends with a ReadyForQuery that comes without anything more from the client, as far as can
    /// be told: in the middle of a COPY FROM the server would wait for data.
    #[must_use]
    pub fn ends_by_itself(&self) -> bool {
        !self.holds_copy_done() && self.queue.back().is_some_and(|last| last.request.is_ended_by_ready())
    }

    /// True if every answer owed goes to the client as it comes.
    #[must_use]
    pub fn all_forwarded(&self) -> bool {
        self.queue.iter().all(|entry| matches!(entry.give, Give::Forward | Give::Inherited))
    }

    /// The queue of a connection whose predecessor may have asked for anything.
    #[must_use]
    pub fn inherited() -> Self {
        let mut queue = Self::default();
        queue.push(Request::Inherited, Give::Inherited);
        queue
    }

    /// True while nobody can tell what of the predecessor's is still to be answered.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.queue.front().is_some_and(|head| head.request == Request::Inherited)
    }

    /// True if the server is not in the middle of a batch of which we know.
    #[must_use]
    pub fn is_inherited_alone(&self) -> bool {
        self.is_inherited() && self.queue.len() == 1
    }

    /// The answer to our own question has come: everything older has been answered.
    pub fn inherited_is_over(&mut self) {
        if self.is_inherited() {
            self.queue.pop_front();
        }
    }

    /// ReadyForQuery while the head is inherited: what we know of may have been answered or not, and is covered by the head
    /// in any case. A batch that is still open stays, so that nothing is put into its middle; and so do our own question, once
    /// asked, and what comes after it.
    fn ready_inherited(&mut self) {
        let closes = |entry: &Expected| matches!(entry.request, Request::Query | Request::FunctionCall | Request::Sync);
        let question = self.queue.iter().position(|entry| entry.give == Give::Skip).unwrap_or(self.queue.len());
        if let Some(last) = self.queue.range(..question).rposition(closes) {
            self.queue.drain(1..=last);
        }
    }

    /// Whether the server skips to a Sync, and the queue, for a successor.
    #[must_use]
    pub fn parts(&self) -> (bool, &VecDeque<Expected>) {
        (self.skipping, self.queue.entries())
    }

    /// The queue of a predecessor.
    #[must_use]
    pub fn from_parts(skipping: bool, queue: impl IntoIterator<Item = Expected>) -> Self {
        Self { skipping, queue: queue.into_iter().collect() }
    }

    /// Entries with something to undo, oldest first.
    pub fn undos(&self) -> impl Iterator<Item = &Undo> {
        self.queue.iter().filter_map(|entry| entry.undo.as_deref())
    }

    /// What may yet be taken back, or forgotten, of batches that are complete; oldest first. Their end will be answered
    /// without anything more from the client, so they can be waited for.
    pub fn undecided(&self) -> impl Iterator<Item = &Undo> {
        let is_sync = |entry: &Expected| entry.request == Request::Sync;
        let is_end = |entry: &Expected| is_sync(entry) || matches!(entry.undo.as_deref(), Some(Undo::Forgets));
        let dead = !self.queue.has_end() || (self.skipping && !self.queue.iter().any(is_sync));
        let end = if dead { None } else { self.queue.iter().rposition(is_end) };
        self.queue.iter().take(end.map_or(0, |end| end + 1)).filter_map(|entry| entry.undo.as_deref())
    }

    /// True while the server skips to a Sync.
    #[must_use]
    pub const fn skipping(&self) -> bool {
        self.skipping
    }

    /// Whether answers that belong to the head go to the client; `None` if nothing is owed.
    #[inline]
    #[must_use]
    pub fn give(&self) -> Option<Give> {
        self.queue.front().map(|entry| entry.give)
    }

    /// An answer arrived that completes a `request`. A RowDescription inside a simple query completes nothing.
    ///
    /// # Errors
    /// [`NoOwner`] if the head is something else or nothing is owed, or if a Parse succeeded that the server had to refuse:
    /// it does not have the statements that it was believed to have.
    #[inline]
    pub fn answered(&mut self, request: Request) -> Result<(), NoOwner> {
        match self.queue.front() {
            Some(head) if matches!(head.undo.as_deref(), Some(Undo::Duplicate { .. })) => Err(NoOwner),
            Some(head) if self.skipping || head.request != request => match head.request {
                Request::Inherited => Ok(()),
                Request::Query if request == Request::Describe => Ok(()),
                _ => Err(NoOwner),
            },
            Some(_) => {
                self.queue.pop_front();
                self.drop_ignored();
                Ok(())
            }
            None => Err(NoOwner),
        }
    }

    /// CommandComplete: completes an Execute, or a statement of a simple query; a finished copy-in takes its CopyDone along,
    /// and the Syncs that the server swallowed while it was copying.
    ///
    /// # Errors
    /// [`NoOwner`] if nobody asked.
    #[inline]
    pub fn command_complete(&mut self, copying: bool) -> Result<(), NoOwner> {
        let head = self.queue.front().map(|entry| entry.request);
        if head == Some(Request::Inherited) {
            return Ok(());
        }
        if self.skipping || !matches!(head, Some(Request::Execute | Request::Query)) {
            return Err(NoOwner);
        }
        if copying && let Some(done) = self.queue.iter().position(|entry| entry.request == Request::CopyDone) {
            self.queue.drain(1..=done);
        }
        if head == Some(Request::Execute) {
            self.queue.pop_front();
            self.drop_ignored();
        }
        Ok(())
    }

    /// ErrorResponse. Returns what a failed copy-in took along, for undoing.
    pub fn error(&mut self, copying: bool) -> Vec<Undo> {
        let Some(head) = self.queue.front().map(|entry| entry.request) else { return Vec::new() };
        if head == Request::Inherited {
            return Vec::new();
        }
        if matches!(head, Request::Query | Request::FunctionCall) {
            if copying && let Some(done) = self.queue.iter().position(|entry| entry.request == Request::CopyDone) {
                return undo_of(self.queue.drain(1..=done));
            }
            return Vec::new();
        }
        if !copying {
            self.skipping = true;
            return Vec::new();
        }
        self.skipping = true;
        match self.queue.iter().position(|entry| entry.request == Request::CopyDone) {
            Some(done) => undo_of(self.queue.drain(..=done)),
            None => undo_of(self.queue.drain(..)),
        }
    }

    /// ReadyForQuery: completes a Query, FunctionCall or Sync; after an error, everything up to the next Sync.
    ///
    /// # Errors
    /// [`NoOwner`] if nobody asked.
    #[inline]
    pub fn ready(&mut self) -> Result<Completed, NoOwner> {
        if !self.skipping {
            let head = self.queue.front().ok_or(NoOwner)?;
            if head.request == Request::Inherited {
                self.ready_inherited();
                return Ok(Completed { give: Give::Inherited, undos: Vec::new() });
            }
            if !head.request.is_ended_by_ready() {
                return Err(NoOwner);
            }
            let give = head.give;
            self.queue.pop_front();
            self.drop_ignored();
            return Ok(Completed { give, undos: Vec::new() });
        }
        let sync = self.queue.iter().position(|entry| entry.request == Request::Sync).ok_or(NoOwner)?;
        self.skipping = false;
        let give = self.queue[sync].give;
        let undos = undo_of(self.queue.drain(..=sync));
        self.drop_ignored();
        Ok(Completed { give, undos })
    }

    /// Is an invented answer due now?
    #[inline]
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.queue.front().is_some_and(|head| head.give == Give::Fake) && !self.skipping
    }

    /// The invented answer that is due now, if one is.
    pub fn due(&mut self) -> Option<Expected> {
        if self.is_due() {
            let due = self.queue.pop_front();
            self.drop_ignored();
            return due;
        }
        None
    }
}

fn undo_of(entries: Vec<Expected>) -> Vec<Undo> {
    entries.into_iter().rev().filter_map(|entry| entry.undo.map(|undo| *undo)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(requests: &[Request]) -> Outstanding {
        let mut queue = Outstanding::default();
        for &request in requests {
            queue.push(request, Give::Forward);
        }
        queue
    }

    #[test]
    fn a_batch_is_answered_in_order() {
        use Request::{Bind, Describe, Execute, Parse, Sync};
        let mut q = queue(&[Parse, Bind, Describe, Execute, Sync]);
        assert_eq!(q.answered(Bind), Err(NoOwner));
        assert_eq!(q.answered(Parse), Ok(()));
        assert_eq!(q.answered(Bind), Ok(()));
        assert_eq!(q.answered(Describe), Ok(()));
        assert_eq!(q.command_complete(false), Ok(()));
        assert!(q.ready().expect("sync").undos.is_empty());
        assert!(q.is_empty());
        assert_eq!(q.ready().err(), Some(NoOwner));
    }

    #[test]
    fn only_what_ends_with_ready_for_query_ends_by_itself() {
        use Request::{Bind, CopyDone, Execute, FunctionCall, Query, Sync};
        for ends in [&[Query][..], &[FunctionCall], &[Bind, Execute, Sync], &[Query, Query], &[Query, Bind, Sync]] {
            assert!(queue(ends).ends_by_itself(), "{ends:?}");
        }
        for waits in [&[][..], &[Bind, Execute], &[Query, Bind], &[Query, CopyDone], &[Query, CopyDone, Query]] {
            assert!(!queue(waits).ends_by_itself(), "{waits:?}");
        }
        assert!(!Outstanding::inherited().ends_by_itself());
    }

    #[test]
    fn an_error_drops_the_rest_of_its_batch_only() {
        use Request::{Bind, Execute, Parse, Sync};
        let mut q = queue(&[Parse, Bind, Execute, Sync, Bind, Execute, Sync]);
        assert!(q.error(false).is_empty());
        q.ready().expect("first sync");
        assert_eq!(q.len(), 3);
        assert_eq!(q.answered(Bind), Ok(()));
    }

    #[test]
    fn a_query_keeps_its_place_through_its_statements() {
        let mut q = queue(&[Request::Query]);
        assert_eq!(q.answered(Request::Describe), Ok(()));
        assert_eq!(q.command_complete(false), Ok(()));
        assert_eq!(q.command_complete(false), Ok(()));
        q.error(false);
        q.ready().expect("owned");
        assert!(q.is_empty());
    }

    #[test]
    fn syncs_swallowed_by_a_copy_disappear_with_it() {
        use Request::{CopyDone, Execute, Query, Sync};
        let mut q = queue(&[Execute, Sync, CopyDone, Sync]);
        assert_eq!(q.command_complete(true), Ok(()));
        q.ready().expect("the last sync");
        assert!(q.is_empty());
        let mut q = queue(&[Query, CopyDone]);
        assert_eq!(q.command_complete(true), Ok(()));
        q.ready().expect("the query");
        assert!(q.is_empty());
    }

    #[test]
    fn a_failed_copy_takes_what_was_sent_during_it() {
        use Request::{CopyDone, Execute, Sync};
        let mut q = queue(&[Execute, Sync, CopyDone, Sync]);
        q.error(true);
        q.ready().expect("the last sync");
        assert!(q.is_empty());
        let mut q = queue(&[Execute, Sync]);
        q.error(true);
        assert!(q.is_empty());
        q.push(Sync, Give::Forward);
        q.ready().expect("the sync after the late CopyDone");
    }

    #[test]
    fn a_pipelined_copy_that_fails_leaves_the_next_batch_alone() {
        use Request::{CopyDone, Execute, Parse, Sync};
        let mut q = queue(&[Execute, CopyDone, Sync, Parse, Sync]);
        q.error(true);
        q.ready().expect("the sync of the copy");
        assert_eq!(q.len(), 2);
        assert_eq!(q.answered(Parse), Ok(()));
        q.ready().expect("the next sync");
        assert!(q.is_empty());
    }

    #[test]
    fn a_late_copy_done_is_owed_no_answer() {
        let mut q = queue(&[Request::Query]);
        q.error(true);
        q.push_copy_done();
        q.ready().expect("the query");
        assert!(q.is_empty());
        q.push_copy_done();
        assert!(q.is_empty());
    }

    #[test]
    fn an_inherited_connection_may_say_anything_until_it_is_asked() {
        let mut q = Outstanding::inherited();
        assert_eq!(q.answered(Request::Bind), Ok(()));
        assert_eq!(q.command_complete(false), Ok(()));
        assert!(q.error(false).is_empty() && q.ready().expect("whose it is").undos.is_empty());
        assert_eq!(q.give(), Some(Give::Inherited));
        for request in [Request::Query, Request::Parse, Request::Sync, Request::Bind] {
            q.push(request, Give::Forward);
        }
        q.ready().expect("anybody's");
        assert!(!q.is_inherited_alone(), "a batch is open");
        q.push(Request::Sync, Give::Forward);
        q.ready().expect("anybody's");
        assert!(q.is_inherited_alone());
        q.push(Request::Query, Give::Skip);
        q.push(Request::Query, Give::Forward);
        q.ready().expect("of a pipelined query");
        q.inherited_is_over();
        assert_eq!(q.give(), Some(Give::Skip));
        q.ready().expect("our question");
        assert_eq!(q.give(), Some(Give::Forward));
    }

    #[test]
    fn invented_answers_wait_for_their_turn() {
        let mut q = queue(&[Request::Bind]);
        q.push(Request::Parse, Give::Fake);
        assert!(q.due().is_none());
        q.answered(Request::Bind).expect("owned");
        assert!(q.due().is_some());
        assert!(q.is_empty());
    }

    #[test]
    fn the_sync_decides_who_hears_that_a_failed_batch_is_over() {
        let mut q = Outstanding::default();
        q.push(Request::Parse, Give::Skip);
        q.push(Request::Bind, Give::Forward);
        q.push(Request::Sync, Give::Forward);
        q.error(false);
        assert_eq!(q.ready().expect("sync").give, Give::Forward);
    }

    #[test]
    fn what_complete_batches_may_change_is_undecided_until_their_end() {
        use Request::{Parse, Query, Sync};
        let name = || Undo::Injected { statement: crate::relay::prepared::Statements::default().intern(b"x\0\0\0") };
        let mut q = Outstanding::default();
        q.push_with(Parse, Give::Forward, name());
        assert_eq!(q.undecided().count(), 0, "the batch is still being sent");
        q.push(Sync, Give::Forward);
        q.push_with(Parse, Give::Forward, name());
        assert_eq!(q.undecided().count(), 1);
        q.push(Query, Give::Forward);
        assert_eq!(q.undecided().count(), 1, "a query that forgets nothing decides nothing");
        q.mark_last(Undo::Forgets);
        assert_eq!(q.undecided().count(), 3);
        q.error(false);
        q.ready().expect("the sync");
        assert_eq!(q.undecided().count(), 2);
        q.error(false);
        assert_eq!(q.undecided().count(), 0, "skipped up to a Sync that has not come: waiting would be for ever");
    }

    #[test]
    fn invented_answers_after_an_error_are_never_given() {
        let mut q = queue(&[Request::Bind]);
        q.push(Request::Close, Give::Fake);
        q.push(Request::Sync, Give::Forward);
        q.error(false);
        assert!(q.due().is_none());
        q.ready().expect("sync");
        assert!(q.is_empty());
    }
}
