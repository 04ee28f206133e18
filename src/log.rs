//! Log lines in PgBouncer's format: `YYYY-MM-DD HH:MM:SS.mmm TZ [pid] LEVEL message`.
//!
//! The rest of the program logs through `tracing`'s macros: `error!` is ERROR, `warn!` WARNING, `info!` LOG, `debug!`
//! DEBUG (verbose 1), `trace!` NOISE (verbose 2), [`fatal`] FATAL. A level that is off costs one load. Each line is one
//! write(2) to stderr and one to the logfile, nothing is held back; a line that cannot be written is lost, because a
//! full disk must not stop the traffic.
//!
//! No text from a peer can forge a line: control characters are shown as `\xNN`, and [`Bytes`] shows invalid UTF-8 the same
//! way. Newlines are followed by a tab, but in lines about clients, whose words are in many of them, they are shown like the
//! others. The logger's state is the one static the program has.
//!
//! Of the fields of an event, `conn` ([`Conn`]) is whose connection it is about: a prefix in text. `cause` is what is known
//! beyond PgBouncer's words, and stands in JSON alone. With `log_format=json` each event is one JSON object; with
//! `log_rate_limit` a burst of one kind of line ends with a line that counts what was left out (`limit.rs`). `line.rs` makes a
//! line of an event, `sink.rs` brings it to where lines go.

mod conn;
mod json;
mod limit;
mod line;
mod panics;
mod sink;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

pub use conn::{Conn, Side};
pub use line::{Bytes, set_format, write_repeats};
pub use panics::last_panic;
pub use sink::{open_logfile, reopen_logfile, set_syslog, silence_stderr};

/// Marks an event of [`fatal`].
const FATAL_TARGET: &str = "pgusher::fatal";
/// Marks events whose place in the program says nothing about their kind: they are never too many.
pub(crate) const EACH_TARGET: &str = "pgusher::each";

static VERBOSE: AtomicU8 = AtomicU8::new(0);

/// A reason to end the process: the text of the FATAL line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal(pub String);

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}

/// Installs the logger, writing to stderr unless `quiet`. A second call does nothing.
pub fn init(quiet: bool, verbose: u8) {
    VERBOSE.store(verbose, Ordering::Relaxed);
    sink::begin(!quiet);
    panics::remember();
    let subscriber = tracing_subscriber::registry().with(LineLayer);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Changes the verbosity of the running process.
pub fn set_verbose(verbose: u8) {
    if VERBOSE.swap(verbose, Ordering::Relaxed) != verbose {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Logs with level FATAL; the caller then ends the process with status 1.
pub fn fatal(text: impl fmt::Display) {
    tracing::error!(target: FATAL_TARGET, "{text}");
}

/// The layer that turns events of this program into lines; other crates' events are no concern of the log's readers.
struct LineLayer;

fn wanted(meta: &Metadata<'_>) -> bool {
    let ours = meta.target().starts_with("pgusher") || meta.target().starts_with("pgbouncer");
    ours && meta.is_event() && *meta.level() <= max_level()
}

fn max_level() -> Level {
    match VERBOSE.load(Ordering::Relaxed) {
        0 => Level::INFO,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn register_callsite(&self, meta: &'static Metadata<'static>) -> Interest {
        if wanted(meta) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, meta: &Metadata<'_>, _: Context<'_, S>) -> bool {
        wanted(meta)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(max_level()))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        line::log(level_word(event.metadata()), event);
    }
}

fn level_word(meta: &Metadata<'_>) -> &'static str {
    match *meta.level() {
        Level::ERROR if meta.target() == FATAL_TARGET => "FATAL",
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "LOG",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "NOISE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test for everything global: verbosity, file, reopening, a disk that is full.
    #[test]
    fn lines_reach_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        init(true, 0);
        open_logfile(&path("a.log")).unwrap();

        tracing::info!("log-test first {}\n", 1);
        tracing::debug!("log-test unseen");
        set_verbose(1);
        tracing::debug!("log-test seen");
        tracing::trace!("log-test unseen");
        set_verbose(2);
        tracing::trace!("log-test noise");
        set_verbose(0);
        tracing::debug!("log-test unseen again");
        tracing::info!(target: "mio::poll", "log-test unseen, not ours");
        fatal("log-test the end");
        tracing::warn!("log-test {}", "x".repeat(5000));

        reopen_logfile("/nonexistent/log-test");
        std::fs::rename(path("a.log"), path("old.log")).unwrap();
        reopen_logfile(&path("a.log"));
        tracing::info!("log-test in the new file");
        reopen_logfile("/dev/full");
        tracing::info!("log-test lost");
        reopen_logfile("");
        tracing::info!("log-test nowhere");

        let old = std::fs::read_to_string(path("old.log")).unwrap();
        // other tests of this process log too
        let lines: Vec<&str> = old.lines().filter(|l| l.contains("log-test")).collect();
        let tails: Vec<&str> = lines.iter().map(|l| l.split_once("] ").unwrap().1).collect();
        assert_eq!(
            tails[..4],
            ["LOG log-test first 1", "DEBUG log-test seen", "NOISE log-test noise", "FATAL log-test the end"]
        );
        assert_eq!(tails[4].len(), "WARNING ".len() + line::MAX_MESSAGE_BYTES);
        assert!(tails[5].starts_with("ERROR Cannot open logfile: '/nonexistent/log-test': No such file or directory"));
        assert!(!old.contains("log-test unseen"));
        let stamp = lines[0].as_bytes();
        assert_eq!([stamp[4], stamp[10], stamp[19], stamp[23]], *b"- . ");

        let new = std::fs::read_to_string(path("a.log")).unwrap();
        assert!(new.contains("LOG log-test in the new file\n") && !new.contains("log-test lost"));
    }
}
