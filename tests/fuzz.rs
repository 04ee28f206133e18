//! The fuzz targets without a fuzzer: the corpus is replayed, and changed at random for some seconds.
//!
//! `FUZZ_SECONDS` is how long each target is tried with changed inputs (two unless it is set),
//! `FUZZ_SEED` repeats a run, `FUZZ_TARGET` chooses one. An input that fails is printed, and kept in `fuzz/artifacts`.

#![expect(clippy::disallowed_methods, reason = "how long a test takes is no time of the core")]

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "a crate of its own elsewhere")]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use targets::{TARGETS, Target};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = here().join("corpus").join(target.name);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("readable"))).collect()
}

/// Runs one input; a failing one is kept.
fn run(target: Target, input: &[u8], from: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.body)(input))) {
        let dir = here().join("artifacts").join(target.name);
        let kept = dir.join("failed");
        let saved = fs::create_dir_all(&dir).and_then(|()| fs::write(&kept, input));
        eprintln!("target {} fails, {from}; {} ({saved:?}): {input:?}", target.name, kept.display());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn every_input_of_the_corpus_keeps_the_promises() {
    let mut bytes = 0;
    for target in TARGETS {
        let files = corpus(target);
        assert!(!files.is_empty(), "{} has no corpus", target.name);
        for (path, input) in files {
            bytes += input.len();
            run(target, &input, &path.display().to_string());
        }
    }
    assert!(bytes < 1_000_000, "the corpus is to be small, not {bytes} bytes");
}

/// xorshift64*
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let roll = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D);
        usize::try_from((roll >> 33) % n.max(1) as u64).expect("it is below a usize")
    }
}

/// One of the inputs, changed.
fn changed(inputs: &[(PathBuf, Vec<u8>)], dice: &mut Dice) -> Vec<u8> {
    let mut input = inputs[dice.below(inputs.len())].1.clone();
    for _ in 0..=dice.below(4) {
        let at = dice.below(input.len() + 1);
        let end = at + dice.below(input.len() + 1 - at);
        match dice.below(6) {
            0 if at < input.len() => input[at] ^= 1 << dice.below(8),
            1 => input.insert(at, u8::try_from(dice.below(256)).expect("a byte")),
            2 => drop(input.drain(at..end)),
            3 => {
                let stretch = input[at..end].to_vec();
                let to = dice.below(input.len() + 1);
                input.splice(to..to, stretch);
            }
            4 => {
                let other = &inputs[dice.below(inputs.len())].1;
                input.truncate(at);
                input.extend_from_slice(&other[dice.below(other.len() + 1)..]);
            }
            _ if at < input.len() => input[at] = b"\0\xff\x7f\x01 '\"\\\n"[dice.below(9)],
            _ => {}
        }
    }
    input.truncate(8192);
    input
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn changed_inputs_keep_the_promises() {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |age| age.subsec_nanos());
    let seed = from_env("FUZZ_SEED").unwrap_or_else(|| u64::from(fresh));
    let each = Duration::from_secs(from_env("FUZZ_SECONDS").unwrap_or(2));
    eprintln!("FUZZ_SEED={seed}");
    let only = std::env::var("FUZZ_TARGET").ok();
    let wanted = |target: &Target| only.as_deref().is_none_or(|name| name == target.name);
    let targets = Mutex::new(TARGETS.into_iter().filter(wanted).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let next = || targets.lock().expect("nobody panics with it").pop();
                while let Some(target) = next() {
                    change(target, seed, each);
                }
            });
        }
    });
}

fn change(target: Target, seed: u64, each: Duration) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let inputs = corpus(target);
    let (start, mut runs) = (Instant::now(), 0_u32);
    while start.elapsed() < each || runs < 100 {
        run(target, &changed(&inputs, &mut dice), &format!("FUZZ_SEED={seed}, run {runs}"));
        runs += 1;
    }
    eprintln!("{}: {runs} inputs", target.name);
}
