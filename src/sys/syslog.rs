//! The two daemons that collect log lines on a machine: syslog, and systemd's journal.
//!
//! Both are written to directly, without the C library: its syslog(3) waits for a daemon that is busy, and a pooler must not
//! stand still because of its log. A line that cannot be delivered at once is lost.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::libc;
use parking_lot::Mutex;

use super::localtime;

/// Where the C library looks for syslog.
const DEV_LOG: &str = "/dev/log";
/// Where the journal takes records.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Severities as both daemons number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Critical = 2,
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

/// Is there a facility of this name?
#[must_use]
pub fn is_facility(name: &str) -> bool {
    facility(name) != DAEMON || name.eq_ignore_ascii_case("daemon")
}

/// What counts in the place of an unknown facility.
const DAEMON: u8 = 3;

/// The number of a facility by its name; what is unknown is `daemon`.
fn facility(name: &str) -> u8 {
    match name.to_ascii_lowercase().as_str() {
        "user" => 1,
        "auth" => 4,
        "authpriv" => 10,
        "local0" => 16,
        "local1" => 17,
        "local2" => 18,
        "local3" => 19,
        "local4" => 20,
        "local5" => 21,
        "local6" => 22,
        "local7" => 23,
        _ => DAEMON,
    }
}

/// An identity at syslog. The connection is made with the first line, and made again when the daemon was restarted.
#[derive(Debug)]
pub struct Syslog {
    facility: u8,
    ident: String,
    line: Mutex<Option<Line>>,
}

#[derive(Debug)]
enum Line {
    Datagram(UnixDatagram),
    Stream(UnixStream),
}

impl Line {
    fn open() -> io::Result<Self> {
        let datagram = UnixDatagram::unbound()?;
        match datagram.connect(DEV_LOG) {
            Ok(()) => {
                datagram.set_nonblocking(true)?;
                Ok(Self::Datagram(datagram))
            }
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                let stream = UnixStream::connect(DEV_LOG)?;
                stream.set_nonblocking(true)?;
                Ok(Self::Stream(stream))
            }
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self {
            Self::Datagram(socket) => socket.send(packet).map(|_| ()),
            // lines end with a zero byte there
            Self::Stream(socket) => socket.write_all(&[packet, b"\0"].concat()),
        }
    }
}

impl Syslog {
    #[must_use]
    pub fn new(facility_name: &str, ident: &str) -> Self {
        Self { facility: facility(facility_name), ident: ident.to_owned(), line: Mutex::new(None) }
    }

    /// Sends one message, at `unix_secs`.
    pub fn send(&self, severity: Severity, unix_secs: i64, text: &[u8]) {
        let priority = u16::from(self.facility) * 8 + severity as u16;
        let (stamp, pid) = (localtime::syslog_stamp(unix_secs), std::process::id());
        let mut packet = format!("<{priority}>{stamp} {}[{pid}]: ", self.ident).into_bytes();
        packet.extend_from_slice(text);
        let mut line = self.line.lock();
        for _ in 0..2 {
            if line.is_none() {
                *line = Line::open().ok();
            }
            match line.as_mut().map(|line| line.send(&packet)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return,
                // the daemon was restarted
                Some(Err(_)) => *line = None,
                Some(Ok(())) | None => return,
            }
        }
    }
}

/// The journal, for a process whose stderr it is.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// The journal if it is what stderr leads to.
    #[must_use]
    pub fn behind_stderr() -> Option<Self> {
        let told = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
        let meta = stderr.metadata().ok()?;
        if told != format!("{}:{}", meta.dev(), meta.ino()) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(JOURNAL).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self(socket))
    }

    /// Sends one message.
    pub fn send(&self, severity: Severity, text: &[u8]) {
        let _ = self.0.send(&record(severity, text));
    }
}

/// A record: a field a line, and a field of several lines with its length before it.
fn record(severity: Severity, text: &[u8]) -> Vec<u8> {
    let mut out = format!("PRIORITY={}\nSYSLOG_IDENTIFIER=pgbouncer\n", severity as u8).into_bytes();
    if text.contains(&b'\n') {
        out.extend_from_slice(b"MESSAGE\n");
        out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    } else {
        out.extend_from_slice(b"MESSAGE=");
    }
    out.extend_from_slice(text);
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facilities() {
        for (name, number) in [("daemon", 3), ("auth", 4), ("AUTHPRIV", 10), ("user", 1), ("local7", 23), ("x", 3)] {
            assert_eq!(facility(name), number, "{name}");
        }
    }

    #[test]
    fn records() {
        assert_eq!(record(Severity::Info, b"a=b"), b"PRIORITY=6\nSYSLOG_IDENTIFIER=pgbouncer\nMESSAGE=a=b\n");
        let two = record(Severity::Critical, b"a\n\tb");
        assert_eq!(two, b"PRIORITY=2\nSYSLOG_IDENTIFIER=pgbouncer\nMESSAGE\n\x04\0\0\0\0\0\0\0a\n\tb\n");
    }

    #[test]
    fn a_daemon_that_is_not_there_is_no_trouble() {
        Syslog::new("daemon", "x").send(Severity::Info, 0, b"text");
        assert!(Journal::behind_stderr().is_none());
    }
}
