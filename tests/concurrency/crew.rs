//! Three workers, and a supervisor that pauses, resumes and renews meanwhile. In the end everybody was served, and no
//! connection was lost.

use std::sync::atomic::{AtomicUsize, Ordering};

use pgusher::id::WorkerId;
use pgusher::primitives::Primitives;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::thread;

use super::desk::Desk;
use super::mail::{Careless, Mail, Real};
use super::scheduled::{Bell, Scheduled};
use super::worker::{Message, Shared, Worker, one_in};
use super::{failure_of, in_many_orders};

const WORKERS: WorkerId = 3;
/// Of each worker.
const CLIENTS: u32 = 2;

/// What the console and the clock do meanwhile; in the end everything goes on.
fn supervise<B: Mail<Message>>(shared: Arc<Shared<B>>) {
    // its orders are those of any worker; none of the clients is its
    let mut hands = Worker::new(WORKERS, 0, shared);
    for _ in 0..4 {
        let what = thread_rng().gen_range(0..4);
        hands.pools(|desk| {
            let now = desk.moment();
            // what is refused is as good as what is done
            let _ = match what {
                0 => desk.pools.pause_all(now),
                1 => desk.pools.resume_all(now),
                2 => desk.pools.reconnect(None, now),
                _ => {
                    desk.pools.tick(now);
                    Ok(())
                }
            };
        });
        thread::yield_now();
    }
    hands.pools(|desk| {
        let now = desk.moment();
        let _ = desk.pools.resume_all(now);
    });
}

fn scene<B: Mail<Message>>() {
    let bells: Vec<Bell> = (0..WORKERS).map(|_| Bell::default()).collect();
    let shared = Arc::new(Shared {
        desk: Scheduled::mutex(Desk::new(one_in(2))),
        inboxes: bells.iter().map(|bell| B::new(bell.clone())).collect(),
        bells,
        present: AtomicUsize::new(usize::from(WORKERS) * CLIENTS as usize),
        connections: Arc::default(),
        served: AtomicUsize::new(0),
        missed: AtomicUsize::new(0),
    });
    let mut threads: Vec<_> = (0..WORKERS)
        .map(|id| {
            let worker = Worker::new(id, CLIENTS, shared.clone());
            thread::spawn(move || worker.run())
        })
        .collect();
    let hands = shared.clone();
    threads.push(thread::spawn(move || supervise(hands)));
    threads.into_iter().for_each(|thread| thread.join().expect("it is done"));
    finish(&shared);
    let desk = Scheduled::lock(&shared.desk);
    assert_eq!(desk.in_line(), 0, "somebody was forgotten");
    let totals = desk.pools.totals();
    assert_eq!(totals.servers, shared.connections.load(Ordering::Relaxed), "connections known and open");
    let ended = shared.served.load(Ordering::Relaxed) + shared.missed.load(Ordering::Relaxed);
    assert_eq!(totals.grants, ended as u64, "grants, and what became of them");
}

/// What was still on its way when the workers went home: servers that nobody waits for any more.
fn finish<B: Mail<Message>>(shared: &Arc<Shared<B>>) {
    let mut messages = Vec::new();
    let mut rest = true;
    while std::mem::take(&mut rest) {
        for id in 0..WORKERS {
            let mut worker = Worker::new(id, 0, shared.clone());
            shared.inboxes[usize::from(id)].take(&mut messages);
            for message in messages.drain(..) {
                worker.obey(message);
                worker.obey_local();
                rest = true;
            }
        }
    }
}

#[test]
fn everybody_is_served_in_turn_and_no_server_is_lost() {
    in_many_orders(60, scene::<Real<_>>);
}

/// The proof that a wake-up lost between workers is seen in their work.
#[test]
fn workers_that_lose_wake_ups_are_found_asleep() {
    let failure = failure_of(scene::<Careless<_>>);
    assert!(failure.contains("deadlock"), "{failure}");
}
