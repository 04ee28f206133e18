//! Random life on pools and relay together: clients with scripts, servers that answer them, bytes cut anywhere, deaths at any
//! byte. Every client must see what a PostgreSQL of its own would have said; the pools are verified as they go.
//!
//! A seed that fails is kept in `target/failed-seeds`. `SIM_SEED` repeats one run, `SIM_SEEDS` sets how many runs with fresh
//! seeds are made, `SIM_STEPS` how long each is:
//!
//! `SIM_SEEDS=1000 SIM_STEPS=1000000 cargo test --release --test sim_sessions -- --nocapture` goes on for hours.

#![expect(clippy::disallowed_methods, reason = "a fresh seed for each run")]

#[path = "sim_sessions/postgres.rs"]
mod postgres;
#[path = "sim_sessions/script.rs"]
mod script;
#[path = "support/seed.rs"]
mod seed;
#[path = "sim_sessions/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use seed::Seed;
use world::{Plant, World};

/// Seeds that have failed once.
const KEPT: [u64; 0] = [];

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, steps: u64) -> World {
    let _kept = Seed::new("sim_sessions", seed, steps);
    let mut world = World::new(seed, None);
    for step in 0..steps {
        world.step();
        if step % 16 == 0 {
            world.check();
        }
    }
    world.finish();
    world
}

#[test]
fn everybody_sees_what_a_server_of_his_own_would_say() {
    let steps = from_env("SIM_STEPS").unwrap_or(100_000);
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |age| age.subsec_nanos());
    let seeds: Vec<u64> = match (from_env("SIM_SEED"), from_env("SIM_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).map(|n| u64::from(fresh) + n).collect(),
        (None, None) => KEPT.into_iter().chain(1..=10).chain([u64::from(fresh)]).collect(),
    };
    let (mut transactions, mut faults, mut drained) = (0, 0, 0);
    for seed in seeds {
        let world = run(seed, steps);
        transactions += world.transactions;
        faults += world.faults;
        drained += world.drained;
        eprintln!("SIM_SEED={seed} SIM_STEPS={steps}: {transactions} answered requests, {faults} faults so far");
    }
    assert!(transactions > steps / 1000 && faults > 0, "the world stood still: {transactions} {faults}");
    eprintln!("{drained} servers were used again whose clients had left in the middle of a query");
    assert!(drained > 0 || from_env("SIM_SEED").is_some(), "nobody was heard out");
}

/// A simulation that finds nothing is worth nothing: every mistake in the glue is noticed, in nearly every run.
#[test]
fn planted_mistakes_are_found() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let mut missed = Vec::new();
    for plant in [Plant::Desync, Plant::EarlyRelease, Plant::LostServer, Plant::BrokenFifo, Plant::Leak] {
        let (mut made, mut found) = (0, 0);
        for seed in 1..=16 {
            let mut world = World::new(seed, Some(plant));
            let lived = catch_unwind(AssertUnwindSafe(|| {
                for step in 0..20_000 {
                    world.step();
                    if step % 16 == 0 {
                        world.check();
                    }
                }
                world.finish();
            }));
            // not always is there an occasion: a session keeps its server, and a large pool has no line
            made += u32::from(world.made > 0);
            match lived {
                Err(_) if world.made > 0 => found += 1,
                Err(_) => missed.push(format!("{plant:?}, seed {seed}: a failure without a mistake")),
                Ok(()) => {}
            }
        }
        eprintln!("{plant:?}: made in {made} runs, found in {found}");
        // who was overtaken may leave, and a server that was given back too early may be closed, before anybody suffers
        if made < 4 || found * 4 < made * 3 {
            missed.push(format!("{plant:?}: found in {found} of {made} runs"));
        }
    }
    std::panic::set_hook(quiet);
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
