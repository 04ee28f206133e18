//! Log lines in PgBouncer's format: `YYYY-MM-DD HH:MM:SS.mmm TZ [pid] LEVEL message`.
//!
//! The rest of the program logs through `tracing`'s macros: `error!` is ERROR, `warn!` WARNING, `info!` LOG, `debug!`
//! DEBUG (verbose 1), `trace!` NOISE (verbose 2), [`fatal`] FATAL. A level that is off costs one load. Each line is one
//! write(2) to stderr and one to the logfile, nothing is held back; a line that cannot be written is lost, because a
//! full disk must not stop the traffic.
//!
//! No text from a peer can forge a line: newlines are followed by a tab, every other control character is shown as
//! `\xNN`, and [`Bytes`] shows invalid UTF-8 the same way. The logger's state is the one static the program has.
//!
//! Of the fields of an event, `conn` ([`Conn`]) is whose connection it is about: a prefix in text. `cause` is what is known
//! beyond PgBouncer's words, and stands in JSON alone. With `log_format=json` each event is one JSON object; with
//! `log_rate_limit` a burst of one kind of line ends with a line that counts what was left out (`limit.rs`).

mod conn;
mod json;
mod limit;

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::{Mutex, RwLock};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

pub use conn::{Conn, Side};
use limit::{Limiter, Repeated};

use crate::clock::Clock;
use crate::config::LogFormat;
use crate::sys;
use crate::sys::syslog::{Journal, Severity, Syslog};

/// Longest message in bytes; PgBouncer formats into a buffer of 2048.
const MAX_MESSAGE_BYTES: usize = 2047;
/// How long one line may wait for a full stderr pipe; after a line was lost the next ones do not wait at all.
const STDERR_PATIENCE_MS: i32 = 50;
/// Marks an event of [`fatal`].
const FATAL_TARGET: &str = "pgusher::fatal";
/// Marks events whose place in the program says nothing about their kind: they are never too many.
pub(crate) const EACH_TARGET: &str = "pgusher::each";

static VERBOSE: AtomicU8 = AtomicU8::new(0);
static STDERR: AtomicBool = AtomicBool::new(true);
static STDERR_STUCK: AtomicBool = AtomicBool::new(false);
static LOGFILE: RwLock<Option<Arc<File>>> = RwLock::new(None);
static SYSLOG: RwLock<Option<Arc<Syslog>>> = RwLock::new(None);
static JSON: AtomicBool = AtomicBool::new(false);
/// Lines of one kind in a second; 0 is no limit.
static LIMIT: AtomicU32 = AtomicU32::new(0);
static LIMITER: LazyLock<Mutex<Limiter<Identifier>>> = LazyLock::new(|| Mutex::new(Limiter::new()));
static JOURNAL: OnceLock<Option<Journal>> = OnceLock::new();

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

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
    STDERR.store(!quiet, Ordering::Relaxed);
    JOURNAL.get_or_init(Journal::behind_stderr);
    remember_panics();
    let subscriber = tracing_subscriber::registry().with(LineLayer);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::callsite::rebuild_interest_cache();
    }
}

thread_local! {
    /// Where and why this thread panicked last.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Lets every panic be remembered by its thread, for whoever catches it. Nothing is logged here: the panic may have come
/// while a line was being written.
fn remember_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("no reason given");
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
        LAST_PANIC.with(|last| {
            if let Ok(mut last) = last.try_borrow_mut() {
                *last = format!("{text}{place}");
            }
        });
        default(info);
    }));
}

/// The panic that this thread has just caught.
#[must_use]
pub fn last_panic() -> String {
    LAST_PANIC.with(|last| last.try_borrow_mut().map(|mut last| std::mem::take(&mut *last)).unwrap_or_default())
}

/// Changes the verbosity of the running process.
pub fn set_verbose(verbose: u8) {
    if VERBOSE.swap(verbose, Ordering::Relaxed) != verbose {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Changes what lines look like, and how many of one kind may be written in a second (up to 0: any number).
pub fn set_format(format: LogFormat, rate_limit: i64) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    LIMIT.store(u32::try_from(rate_limit.max(0)).unwrap_or(u32::MAX), Ordering::Relaxed);
}

/// Writes what is to be said about lines that were too many. To be called about every second, and at the end with `all`.
pub fn write_repeats(all: bool) {
    if LIMIT.load(Ordering::Relaxed) == 0 && !all {
        return;
    }
    let second = if all { i64::MIN } else { Clock::wall_us().div_euclid(1_000_000) };
    let due = LIMITER.lock().due(second);
    for repeated in due {
        Scratch::new().repeated(&repeated);
    }
}

/// Stops writing to stderr, for `-d`.
pub fn silence_stderr() {
    STDERR.store(false, Ordering::Relaxed);
}

/// Opens the logfile at start; an empty name means none.
///
/// # Errors
/// The complete line for stderr; the caller prints it, even with `-q`, and exits with status 1.
pub fn open_logfile(path: &str) -> Result<(), String> {
    match open(path) {
        Ok(file) => {
            *LOGFILE.write() = file;
            Ok(())
        }
        Err(e) => {
            let mut scratch = Scratch::new();
            let text = format!("Cannot open logfile: '{path}': {}", sys::error_text(&e));
            if JSON.load(Ordering::Relaxed) {
                scratch.message.push_str(&text);
                scratch.json("FATAL");
                return Err(String::from_utf8_lossy(&scratch.line).into_owned());
            }
            scratch.stamp();
            let stamp = String::from_utf8_lossy(&scratch.line).into_owned();
            let pid = std::process::id();
            Err(format!("{stamp}{pid} FATAL {text}\n"))
        }
    }
}

/// Opens the logfile anew, for a reload or a rotation. When that fails the old file stays in use and an ERROR is
/// logged: a pooler must not die of its log.
pub fn reopen_logfile(path: &str) {
    match open(path) {
        Ok(file) => *LOGFILE.write() = file,
        Err(e) => {
            tracing::error!("Cannot open logfile: '{path}': {}, keeping the old one", sys::error_text(&e));
        }
    }
}

/// Logs to syslog as well, or not. Another facility or identity counts from the next time it is opened: after it was off,
/// or with `anew`.
pub fn set_syslog(on: bool, facility: &str, ident: &str, anew: bool) {
    let mut syslog = SYSLOG.write();
    if !on {
        *syslog = None;
    } else if anew || syslog.is_none() {
        *syslog = Some(Arc::new(Syslog::new(facility, ident)));
    }
}

fn open(path: &str) -> io::Result<Option<Arc<File>>> {
    if path.is_empty() {
        return Ok(None);
    }
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    Ok(Some(Arc::new(file)))
}

/// Logs with level FATAL; the caller then ends the process with status 1.
pub fn fatal(text: impl fmt::Display) {
    tracing::error!(target: FATAL_TARGET, "{text}");
}

/// Bytes of a peer in a message: valid UTF-8 as it is, anything else as `\xNN`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
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
        let word = level_word(event.metadata());
        // a Display that logs while it is being logged, or a thread that is ending, gets a scratch of its own
        let done = SCRATCH.try_with(|s| s.try_borrow_mut().map(|mut s| s.log(word, event)).is_ok());
        if done != Ok(true) {
            Scratch::new().log(word, event);
        }
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

/// A thread's buffers for making one line, and the second it formatted last.
struct Scratch {
    /// Of the event at hand: its message, what its connection adds, and what else JSON says.
    message: String,
    conn: String,
    extra: String,
    line: Vec<u8>,
    second: i64,
    local: sys::localtime::Local,
}

impl Scratch {
    const fn new() -> Self {
        let local = sys::localtime::Local { stamp: String::new(), zone: String::new() };
        Self {
            message: String::new(),
            conn: String::new(),
            extra: String::new(),
            line: Vec::new(),
            second: i64::MIN,
            local,
        }
    }

    fn log(&mut self, word: &'static str, event: &Event<'_>) {
        let json = JSON.load(Ordering::Relaxed);
        self.message.clear();
        self.conn.clear();
        self.extra.clear();
        let (message, conn, extra) = (Cut(&mut self.message), &mut self.conn, &mut self.extra);
        event.record(&mut Fields { message, conn, extra, json });
        if !json && !self.conn.is_empty() {
            // the prefix first; what does not fit then is cut at the end
            std::mem::swap(&mut self.conn, &mut self.message);
            // an error only says that the message is full
            let _ = Cut(&mut self.message).write_str(&self.conn);
        }
        let limit = LIMIT.load(Ordering::Relaxed);
        if limit > 0 && !matches!(event.metadata().target(), FATAL_TARGET | EACH_TARGET) {
            let (kind, second) = (event.metadata().callsite(), Clock::wall_us().div_euclid(1_000_000));
            let (written, before) = LIMITER.lock().admit(kind, second, limit, word, || self.message.clone());
            if let Some(repeated) = before {
                Self::new().repeated(&repeated);
            }
            if !written {
                return;
            }
        }
        self.write(word, json);
    }

    /// Writes the line about lines that were not written.
    fn repeated(&mut self, lines: &Repeated) {
        let (times, json) = (lines.times, JSON.load(Ordering::Relaxed));
        let _ = write!(Cut(&mut self.message), "repeated {times} times: {}", lines.text);
        if json {
            let _ = write!(self.extra, ",\"repeated\":{times}");
        }
        self.write(lines.word, json);
    }

    fn write(&mut self, word: &'static str, json: bool) {
        let text_at = if json {
            self.json(word);
            0
        } else {
            self.stamp();
            // writing to a Vec cannot fail
            let _ = write!(self.line, "[{}] {word} ", std::process::id());
            let text_at = self.line.len();
            push_safe(self.message.trim_end(), &mut self.line);
            self.line.push(b'\n');
            text_at
        };
        emit(&self.line, text_at, word, Clock::wall_us().div_euclid(1_000_000));
    }

    /// Makes the line a JSON object. The names and their order are what programs rely on.
    fn json(&mut self, word: &str) {
        let wall_us = Clock::wall_us();
        let stamp = sys::localtime::utc_stamp(wall_us.div_euclid(1_000_000));
        let millis = wall_us.rem_euclid(1_000_000) / 1_000;
        self.line.clear();
        let (pid, message) = (std::process::id(), json::Text(self.message.trim_end()));
        let _ = writeln!(
            self.line,
            "{{\"ts\":\"{stamp}.{millis:03}Z\",\"pid\":{pid},\"level\":\"{word}\"{},\"message\":{message}{}}}",
            self.conn, self.extra
        );
    }

    /// Starts the line with the time, zone and a blank.
    fn stamp(&mut self) {
        let wall_us = Clock::wall_us();
        let second = wall_us.div_euclid(1_000_000);
        if second != self.second {
            self.local = sys::localtime::local(second);
            self.second = second;
        }
        self.line.clear();
        let millis = wall_us.rem_euclid(1_000_000) / 1_000;
        // writing to a Vec cannot fail
        let _ = write!(self.line, "{}.{millis:03} {} ", self.local.stamp, self.local.zone);
    }
}

/// Collects what an event says.
struct Fields<'a> {
    message: Cut<'a>,
    conn: &'a mut String,
    extra: &'a mut String,
    json: bool,
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // an error only says that the message is full
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "conn" if self.json => write!(self.conn, "{value:#?}"),
            "conn" => write!(self.conn, "{value:?}"),
            "cause" if self.json => write!(self.extra, ",\"cause\":{}", json::Text(&format!("{value:?}"))),
            "cause" => Ok(()),
            name => write!(self.message, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// A text that is cut at the longest message.
struct Cut<'a>(&'a mut String);

impl fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_MESSAGE_BYTES.saturating_sub(self.0.len());
        let fitting = &text[..text.floor_char_boundary(room)];
        self.0.push_str(fitting);
        if fitting.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Appends `text` so that it stays one line and cannot steer a terminal.
fn push_safe(text: &str, line: &mut Vec<u8>) {
    if text.bytes().all(|b| (b' '..0x7f).contains(&b)) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    let end = line.len() + MAX_MESSAGE_BYTES;
    for c in text.chars() {
        let mut utf8 = [0; 4];
        let bytes = c.encode_utf8(&mut utf8).as_bytes();
        if c == '\n' {
            line.extend_from_slice(b"\n\t");
        } else if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            for byte in bytes {
                // writing to a Vec cannot fail
                let _ = write!(line, "\\x{byte:02x}");
            }
        } else {
            line.extend_from_slice(bytes);
        }
        if line.len() >= end {
            return;
        }
    }
}

/// How the daemons that collect lines number a level.
fn severity(word: &str) -> Severity {
    match word {
        "FATAL" => Severity::Critical,
        "ERROR" => Severity::Error,
        "WARNING" => Severity::Warning,
        "LOG" => Severity::Info,
        _ => Severity::Debug,
    }
}

/// Writes one line to where lines go; its text begins at `text_at`. Failures are nobody's business: there is no place left
/// to report them.
fn emit(line: &[u8], text_at: usize, word: &str, unix_secs: i64) {
    let text = line[text_at..].trim_ascii_end();
    let severity = severity(word);
    let syslog = SYSLOG.read().clone();
    if let Some(syslog) = syslog.filter(|_| severity != Severity::Debug) {
        syslog.send(severity, unix_secs, text);
    }
    let journal = JOURNAL.get().and_then(Option::as_ref);
    if let Some(journal) = journal.filter(|_| STDERR.load(Ordering::Relaxed)) {
        journal.send(severity, text);
    } else if STDERR.load(Ordering::Relaxed) {
        let stderr = io::stderr();
        let stuck = STDERR_STUCK.load(Ordering::Relaxed);
        let writable = sys::wait_writable(stderr.as_fd(), if stuck { 0 } else { STDERR_PATIENCE_MS });
        if stuck == writable {
            STDERR_STUCK.store(!writable, Ordering::Relaxed);
        }
        if writable {
            write_line(stderr.as_fd(), line);
        }
    }
    let logfile = LOGFILE.read().clone();
    if let Some(file) = logfile {
        write_line(file.as_fd(), line);
    }
}

/// One write(2); the rest of a line that did not fit (a disk just full) is tried once and then given up.
fn write_line(fd: impl AsFd, line: &[u8]) {
    let mut rest = line;
    for _ in 0..3 {
        match nix::unistd::write(&fd, rest) {
            Ok(n) if n < rest.len() => rest = &rest[n..],
            Err(nix::errno::Errno::EINTR) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safe(text: &str) -> String {
        let mut line = Vec::new();
        push_safe(text, &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn text_of_peers_stays_in_its_line() {
        let table = [
            ("plain text", "plain text"),
            ("two\nlines", "two\n\tlines"),
            ("\x1b[2Jx\r\t\0\x7f", "\\x1b[2Jx\\x0d\\x09\\x00\\x7f"),
            ("caf\u{e9}", "caf\u{e9}"),
            ("c1 \u{9b}31m", "c1 \\xc2\\x9b31m"),
            ("sep\u{2028}x", "sep\\xe2\\x80\\xa8x"),
        ];
        for (text, want) in table {
            assert_eq!(safe(text), want);
        }
        assert_eq!(Bytes(b"ok\xff\xfe!").to_string(), "ok\\xff\\xfe!");
        assert!(safe(&"\0".repeat(3000)).len() <= MAX_MESSAGE_BYTES + 4);
    }

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
        assert_eq!(tails[4].len(), "WARNING ".len() + MAX_MESSAGE_BYTES);
        assert!(tails[5].starts_with("ERROR Cannot open logfile: '/nonexistent/log-test': No such file or directory"));
        assert!(!old.contains("log-test unseen"));
        let stamp = lines[0].as_bytes();
        assert_eq!([stamp[4], stamp[10], stamp[19], stamp[23]], *b"- . ");

        let new = std::fs::read_to_string(path("a.log")).unwrap();
        assert!(new.contains("LOG log-test in the new file\n") && !new.contains("log-test lost"));
    }

    #[test]
    fn logfile_that_cannot_be_opened_at_start() {
        let line = open_logfile("/nonexistent/x.log").unwrap_err();
        let pid = std::process::id();
        let want = format!(" {pid} FATAL Cannot open logfile: '/nonexistent/x.log': No such file or directory\n");
        assert!(line.ends_with(&want), "{line}");
        assert!(line.starts_with("20"), "{line}");
    }
}
