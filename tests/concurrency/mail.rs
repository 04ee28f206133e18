//! Messages are taken once and in order, and none lies in the box of a thread that sleeps.

use pgusher::primitives::Primitives;
use pgusher::shared::inbox::{Inbox, Wake};
use shuttle::sync::Arc;
use shuttle::thread;

use super::scheduled::{Bell, Scheduled};
use super::{failure_of, in_many_orders};

/// An inbox, real or wrong.
pub(crate) trait Mail<M>: Send + Sync + 'static {
    fn new(bell: Bell) -> Self;
    fn send(&self, message: M);
    fn take(&self, into: &mut Vec<M>);
}

/// The daemon's.
pub(crate) type Real<M> = Inbox<Bell, M, Scheduled>;

impl<M: Send + 'static> Mail<M> for Real<M> {
    fn new(bell: Bell) -> Self {
        Self::new(bell)
    }

    fn send(&self, message: M) {
        Self::send(self, message).expect("a bell rings");
    }

    fn take(&self, into: &mut Vec<M>) {
        Self::take(self, into);
    }
}

/// One that loses wake-ups: it looks whether the box is empty, and forgets that it may be emptied before the message is in.
pub(crate) struct Careless<M: Send + 'static> {
    messages: <Scheduled as Primitives>::Mutex<Vec<M>>,
    bell: Bell,
}

impl<M: Send + 'static> Mail<M> for Careless<M> {
    fn new(bell: Bell) -> Self {
        Self { messages: Scheduled::mutex(Vec::new()), bell }
    }

    fn send(&self, message: M) {
        let first = Scheduled::lock(&self.messages).is_empty();
        Scheduled::lock(&self.messages).push(message);
        if first {
            self.bell.wake().expect("a bell rings");
        }
    }

    fn take(&self, into: &mut Vec<M>) {
        std::mem::swap(&mut *Scheduled::lock(&self.messages), into);
    }
}

const SENDERS: u32 = 3;
const EACH: u32 = 3;

/// Several threads send, one sleeps and takes until everything is here.
fn scene<B: Mail<(u32, u32)>>() {
    let bell = Bell::default();
    let inbox = Arc::new(B::new(bell.clone()));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let inbox = inbox.clone();
            thread::spawn(move || (0..EACH).for_each(|number| inbox.send((sender, number))))
        })
        .collect();
    let mut expected = [0; SENDERS as usize];
    let mut messages = Vec::new();
    while expected.iter().sum::<u32>() < SENDERS * EACH {
        bell.sleep();
        inbox.take(&mut messages);
        for (sender, number) in messages.drain(..) {
            assert_eq!(number, expected[sender as usize], "out of order");
            expected[sender as usize] += 1;
        }
    }
    senders.into_iter().for_each(|sender| sender.join().expect("it has sent"));
    inbox.take(&mut messages);
    assert!(messages.is_empty(), "one message came twice");
}

#[test]
fn every_message_is_taken_once_and_in_order() {
    in_many_orders(500, scene::<Real<_>>);
}

/// The proof that the test above can fail.
#[test]
fn a_lost_wake_up_is_found() {
    let failure = failure_of(scene::<Careless<_>>);
    assert!(failure.contains("deadlock"), "{failure}");
}
