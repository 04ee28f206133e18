//! Where lines go: stderr or the journal behind it, the logfile, syslog.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use super::line::unlogged_fatal;
use crate::sys;
use crate::sys::syslog::{Journal, Severity, Syslog};

/// How long one line may wait for a full stderr pipe; after a line was lost the next ones do not wait at all.
const STDERR_PATIENCE_MS: i32 = 50;

static STDERR: AtomicBool = AtomicBool::new(true);
static STDERR_STUCK: AtomicBool = AtomicBool::new(false);
static LOGFILE: RwLock<Option<Arc<File>>> = RwLock::new(None);
static SYSLOG: RwLock<Option<Arc<Syslog>>> = RwLock::new(None);
static JOURNAL: OnceLock<Option<Journal>> = OnceLock::new();

/// Looks at what stderr is, and writes there or not.
pub(super) fn begin(stderr: bool) {
    STDERR.store(stderr, Ordering::Relaxed);
    JOURNAL.get_or_init(Journal::behind_stderr);
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
        Err(e) => Err(unlogged_fatal(&format!("Cannot open logfile: '{path}': {}", sys::error_text(&e)))),
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
pub(super) fn emit(line: &[u8], text_at: usize, word: &str, unix_secs: i64) {
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

    #[test]
    fn logfile_that_cannot_be_opened_at_start() {
        let line = open_logfile("/nonexistent/x.log").unwrap_err();
        let pid = std::process::id();
        let want = format!(" {pid} FATAL Cannot open logfile: '/nonexistent/x.log': No such file or directory\n");
        assert!(line.ends_with(&want), "{line}");
        assert!(line.starts_with("20"), "{line}");
    }
}
