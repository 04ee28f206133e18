//! From an event to a line, in text or as a JSON object, with limits on its length and on how many of its kind there are.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use tracing::Event;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};

use super::limit::{Limiter, Repeated};
use super::{EACH_TARGET, FATAL_TARGET, json, sink};
use crate::clock::Clock;
use crate::config::LogFormat;
use crate::sys;

/// Longest message in bytes; PgBouncer formats into a buffer of 2048.
pub(super) const MAX_MESSAGE_BYTES: usize = 2047;

/// How the prefix of a line about a client begins.
const CLIENT_PREFIX: &str = "C-";

static JSON: AtomicBool = AtomicBool::new(false);
/// Lines of one kind in a second; 0 is no limit.
static LIMIT: AtomicU32 = AtomicU32::new(0);
static LIMITER: LazyLock<Mutex<Limiter<Identifier>>> = LazyLock::new(|| Mutex::new(Limiter::new()));

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
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

/// Makes the line of an event and writes it.
pub(super) fn log(word: &'static str, event: &Event<'_>) {
    // a Display that logs while it is being logged, or a thread that is ending, gets a scratch of its own
    let done = SCRATCH.try_with(|s| s.try_borrow_mut().map(|mut s| s.log(word, event)).is_ok());
    if done != Ok(true) {
        Scratch::new().log(word, event);
    }
}

/// The line of a FATAL message that is not logged: in text as PgBouncer prints it, without brackets around the pid.
pub(super) fn unlogged_fatal(text: &str) -> String {
    let mut scratch = Scratch::new();
    if JSON.load(Ordering::Relaxed) {
        scratch.message.push_str(text);
        scratch.json("FATAL");
        return String::from_utf8_lossy(&scratch.line).into_owned();
    }
    scratch.stamp();
    let stamp = String::from_utf8_lossy(&scratch.line);
    format!("{stamp}{} FATAL {text}\n", std::process::id())
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
            on_one_line(&mut self.conn);
            if self.conn.starts_with(CLIENT_PREFIX) {
                self.message.truncate(self.message.trim_end().len());
                on_one_line(&mut self.message);
            }
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
        sink::emit(&self.line, text_at, word, Clock::wall_us().div_euclid(1_000_000));
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

/// Shows newlines as other control characters: names have none, and what is said to or of a client may be made of its words.
fn on_one_line(text: &mut String) {
    if text.contains('\n') {
        *text = text.replace('\n', "\\x0a");
    }
}

/// Does this character change how the text around it is shown?
fn steers(c: char) -> bool {
    let line_ends = matches!(c, '\u{2028}' | '\u{2029}');
    let directions =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    line_ends || directions || c.is_control()
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
        } else if steers(c) {
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
            ("turned \u{202e}x", "turned \\xe2\\x80\\xaex"),
        ];
        for (text, want) in table {
            assert_eq!(safe(text), want);
        }
        assert_eq!(Bytes(b"ok\xff\xfe!").to_string(), "ok\\xff\\xfe!");
        assert!(safe(&"\0".repeat(3000)).len() <= MAX_MESSAGE_BYTES + 4);
    }
}
