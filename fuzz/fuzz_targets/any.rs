//! Runs the target that `FUZZ_TARGET` names: one program for all of them, for linking takes longer than fuzzing starts.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pgusher_fuzz::{Target, named};

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    named(&name).unwrap_or_else(|| panic!("FUZZ_TARGET must name a target, not {name:?}"))
});

fuzz_target!(|data: &[u8]| (CHOSEN.body)(data));
