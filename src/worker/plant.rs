//! Bugs on demand, so that tests see what becomes of everybody else. Not a part of release builds.
//!
//! `PGUSHER_PLANTED_BUG=client` panics in the turn of a client that says the words [`WORDS`]; any other word panics once, at
//! the place that asks for it: `opening` in the middle of the login to a server, `attached` and `at the console` in that of a
//! client, `job` in a derivation for it, `console` in a command of the console, `scrape` in a request for metrics.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

const WORDS: &[u8] = b"/* planted bug */";

static PLANTED: LazyLock<String> = LazyLock::new(|| std::env::var("PGUSHER_PLANTED_BUG").unwrap_or_default());

static STRUCK: AtomicBool = AtomicBool::new(false);

/// In a client's turn, with what it has just said.
pub(super) fn client(input: &[u8]) {
    if *PLANTED == "client" && input.windows(WORDS.len()).any(|window| window == WORDS) {
        panic!("a planted bug");
    }
}

/// At a place of this name.
pub(crate) fn once(place: &str) {
    if *PLANTED == place && !STRUCK.swap(true, Ordering::Relaxed) {
        panic!("a planted bug");
    }
}
