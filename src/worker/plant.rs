//! Bugs on demand, so that tests see what becomes of everybody else. Not a part of release builds.
//!
//! `PGUSHER_PLANTED_BUG=client` panics in the turn of a client that says the words [`WORDS`]; `opening` panics once, in the
//! middle of the login to a server.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

const WORDS: &[u8] = b"/* planted bug */";

static PLANTED: LazyLock<String> = LazyLock::new(|| std::env::var("PGUSHER_PLANTED_BUG").unwrap_or_default());

static OPENED: AtomicBool = AtomicBool::new(false);

/// In a client's turn, with what it has just said.
pub(super) fn client(input: &[u8]) {
    if *PLANTED == "client" && input.windows(WORDS.len()).any(|window| window == WORDS) {
        panic!("a planted bug");
    }
}

/// In the turn of a server that is being opened.
pub(super) fn opening() {
    if *PLANTED == "opening" && !OPENED.swap(true, Ordering::Relaxed) {
        panic!("a planted bug");
    }
}
