//! The seed of a run: should the run fail, it is said, and kept in `target/failed-seeds`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// Held as long as the run lasts. `repeat` is what repeats it.
pub(crate) struct Seed {
    repeat: String,
}

impl Seed {
    pub(crate) fn new(test: &str, seed: u64, steps: u64) -> Self {
        Self { repeat: format!("SIM_SEED={seed} SIM_STEPS={steps} cargo test --release --test {test} -- --nocapture") }
    }

    fn keep(&self) -> std::io::Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/failed-seeds");
        writeln!(OpenOptions::new().create(true).append(true).open(path)?, "{}", self.repeat)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this run is repeated by: {}", self.repeat);
            if let Err(error) = self.keep() {
                eprintln!("and could not be kept in target/failed-seeds: {error}");
            }
        }
    }
}
