//! What passes from thread to thread, run by a scheduler that tries many orders: the real inbox, the real line of steps for
//! the helpers, and the real pools behind their lock, in the hands of workers that do what workers do.
//!
//! A wake-up that is lost leaves every thread waiting, which the scheduler reports. `CONCURRENCY_ROUNDS` sets how many
//! orders each test tries; `SHUTTLE_RANDOM_SEED` repeats the order that a failure has named.

#[path = "concurrency/cells.rs"]
mod cells;
#[path = "concurrency/crew.rs"]
mod crew;
#[path = "concurrency/desk.rs"]
mod desk;
#[path = "concurrency/mail.rs"]
mod mail;
#[path = "concurrency/scheduled.rs"]
mod scheduled;
#[path = "concurrency/steps.rs"]
mod steps;
#[path = "concurrency/worker.rs"]
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

/// Most places where one order may differ from running every thread to its end.
const DEPTH: usize = 4;

fn rounds(usually: usize) -> usize {
    std::env::var("CONCURRENCY_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usually)
}

fn config() -> Config {
    let mut config = Config::new();
    // pools in a build with assertions want more than the default
    config.stack_size = 1 << 20;
    config.failure_persistence = FailurePersistence::None;
    config
}

/// Runs `scene` in `usually` orders of either kind: wholly random ones, and ones with few changes of thread.
fn in_many_orders(usually: usize, scene: impl Fn() + Copy + Send + Sync + 'static) {
    Runner::new(RandomScheduler::new(rounds(usually)), config()).run(scene);
    Runner::new(PctScheduler::new(DEPTH, rounds(usually)), config()).run(scene);
}

/// What the scheduler says of a scene that must fail.
fn failure_of(scene: impl Fn() + Send + Sync + 'static) -> String {
    let run = || Runner::new(RandomScheduler::new(5000), config()).run(scene);
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { return "nothing was found".to_owned() };
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or_else(|| "no text".to_owned(), |text| (*text).to_owned()),
    }
}
