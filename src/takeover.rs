//! The new process's part of an online restart (`-R`): from the console of the running process to its end.
//!
//! Runs before there are threads, and blocks: nothing else is to be done meanwhile. The protocol is PgBouncer's own (console
//! login, SUSPEND, SHOW FDS with a descriptor on each row, SHUTDOWN), so that either can replace the other. Ours answers
//! HANDOVER as well, with what rows of SHOW FDS have no columns for. Whatever goes wrong before SHUTDOWN ends this process,
//! and the old one goes on as soon as its console is closed.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::admin::handover::{StateKind, StateRow, VERSION, parse_fd, parse_state};
use crate::admin::snapshot::{FdRow, FdTask};
use crate::config::CONSOLE_DATABASE;
use crate::log::Fatal;
use crate::net::listener::{self, Listeners};
use crate::supervisor::log_stop;
use crate::sys;
use crate::sys::pidfile;
use crate::sys::stopping::StopSignals;
use crate::wire::encode;
use crate::wire::fields::{ErrorFields, split_cstr};
use crate::wire::scan::{HEADER_LEN, Item, Scanner};
use crate::wire::tag::backend as be;
use crate::worker::client::socket_ptr;
use crate::worker::peer::PeerAddr;

/// How often the old pidfile is looked for.
const PIDFILE_EVERY: Duration = Duration::from_millis(10);

/// Largest message of an old process that is believed, bytes.
const MAX_MESSAGE: u32 = 64 << 20;

/// A running process that has handed over everything and stands still, until it is told to go.
pub struct Takeover {
    console: Console,
    /// Clients and servers, with the rows that describe them.
    pub sockets: Vec<(FdRow, OwnedFd)>,
    pub listeners: Listeners,
    pub state: State,
}

/// What an old process of ours says beyond SHOW FDS.
#[derive(Debug, Default)]
pub struct State {
    pub clients: HashMap<i32, Vec<u8>>,
    pub replicating: HashMap<i32, Vec<u8>>,
    pub servers: HashMap<i32, Vec<u8>>,
    pub statements: Vec<(u64, Vec<u8>)>,
    pub pools: Vec<Vec<u8>>,
}

/// Takes over from the process behind the Unix socket. `None`: there is none.
///
/// # Errors
/// FATAL texts.
pub fn begin(dir: &str, port: u16) -> Result<Option<Takeover>, Fatal> {
    if dir.is_empty() || listener::refuse_used_unix_socket(dir, port).is_ok() {
        tracing::info!("old process not found, try to continue normally");
        return Ok(None);
    }
    if dir.starts_with('@') {
        return Err(Fatal("cannot reboot with abstract Unix socket".to_owned()));
    }
    let signals = StopSignals::hold().map_err(|e| broken(&e))?;
    tracing::info!("takeover_init: launching connection");
    let path = listener::unix_socket_path(dir, port);
    let mut console = Console::connect(&path, port, signals).map_err(|e| broken(&e))?;
    console.login()?;
    let ours = console.is_ours()?;
    tracing::info!("{}login OK, sending SUSPEND", console.prefix);
    console.run("SUSPEND;", "SUSPEND")?;
    tracing::info!("SUSPEND finished, sending SHOW FDS");
    let rows = console.run("SHOW FDS;", "SHOW")?;
    let mut takeover =
        Takeover { console, sockets: Vec::new(), listeners: Listeners::default(), state: State::default() };
    for row in rows {
        takeover.row(&row, dir, port)?;
    }
    if ours {
        for row in takeover.console.run("HANDOVER;", "HANDOVER")? {
            takeover.state.add(parse_state(&row).ok_or_else(nonsense)?);
        }
    }
    tracing::info!("SHOW FDS finished");
    tracing::info!("disko over, going background");
    Ok(Some(takeover))
}

impl Takeover {
    fn row(&mut self, row: &[u8], dir: &str, port: u16) -> Result<(), Fatal> {
        let Some(descriptor) = self.console.descriptors.pop_front() else {
            return Err(Fatal("got row without fd info".to_owned()));
        };
        let row = parse_fd(row).ok_or_else(nonsense)?;
        if row.task != FdTask::Pooler {
            self.sockets.push((row, descriptor));
            return Ok(());
        }
        let shown = if row.addr == "unix" { format!("unix:{port}") } else { format!("{}:{}", row.addr, row.port) };
        self.listeners
            .adopt(descriptor, &listener::unix_socket_path(dir, port))
            .map_err(|e| Fatal(format!("socket takeover failed: {}", sys::error_text(&e))))?;
        tracing::info!("got pooler socket: {shown}");
        Ok(())
    }

    /// The databases that clients and servers are of; a name may come again.
    pub fn databases(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().filter_map(|(row, _)| row.database.as_deref())
    }

    /// Ends the old process, and waits until it and its pidfile are gone.
    ///
    /// # Errors
    /// FATAL texts.
    pub fn finish(mut self, file: &str) -> Result<(), Fatal> {
        tracing::info!("sending SHUTDOWN;");
        self.console.send("SHUTDOWN;")?;
        self.console.until_end()?;
        if !file.is_empty() {
            tracing::info!("waiting for old pidfile to go away");
            while Path::new(file).exists() {
                // it was killed, or the file was not its own: nobody else would ever take it away
                pidfile::remove_left_behind(file)?;
                self.console.signals.wait_for(PIDFILE_EVERY).map_err(|e| broken(&e))?;
            }
        }
        tracing::info!("old process killed, resuming work");
        Ok(())
    }
}

impl State {
    fn add(&mut self, row: StateRow) {
        let fd = i32::try_from(row.number).unwrap_or(-1);
        match row.kind {
            StateKind::Version => {}
            StateKind::Statement => self.statements.push((u64::try_from(row.number).unwrap_or(0), row.value)),
            StateKind::Client => drop(self.clients.insert(fd, row.value)),
            StateKind::Replication => drop(self.replicating.insert(fd, row.value)),
            StateKind::Server => drop(self.servers.insert(fd, row.value)),
            StateKind::Pool => self.pools.push(row.value),
        }
    }
}

/// A connection to the old process's console.
struct Console {
    socket: UnixStream,
    prefix: String,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    signals: StopSignals,
}

impl Console {
    fn connect(path: &Path, port: u16, signals: StopSignals) -> std::io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        let known = sys::socket::peer_credentials(&socket).ok();
        let addr = PeerAddr::Unix { pid: known.map(|peer| peer.pid), uid: known.map(|peer| peer.uid), port };
        let prefix = format!("S-{:#x}: {CONSOLE_DATABASE}/{CONSOLE_DATABASE}@{addr} ", socket_ptr(0));
        Ok(Self { socket, prefix, received: Vec::new(), descriptors: VecDeque::new(), signals })
    }

    fn login(&mut self) -> Result<(), Fatal> {
        let mut out = Vec::new();
        encode::startup(&mut out, &[("user", CONSOLE_DATABASE), ("database", CONSOLE_DATABASE)]);
        self.socket.write_all(&out).map_err(|e| broken(&e))?;
        loop {
            let (tag, body) = self.message()?;
            match tag {
                be::AUTHENTICATION if body != [0; 4] => {
                    return Err(Fatal("old process wants a password: it belongs to another user".to_owned()));
                }
                be::READY_FOR_QUERY => return Ok(()),
                be::ERROR_RESPONSE => return Err(refused(&body)),
                _ => {}
            }
        }
    }

    /// Asks whether the old process is one that can say more than SHOW FDS, and tells it that it will be asked.
    fn is_ours(&mut self) -> Result<bool, Fatal> {
        self.send("HANDOVER;")?;
        let mut ours = false;
        loop {
            let (tag, body) = self.message()?;
            match tag {
                be::DATA_ROW => {
                    let row = parse_state(&body).ok_or_else(nonsense)?;
                    ours = row.kind == StateKind::Version && row.number == VERSION;
                }
                be::READY_FOR_QUERY => return Ok(ours),
                _ => {}
            }
        }
    }

    /// Runs a command and returns the bodies of its rows.
    fn run(&mut self, command: &str, want: &str) -> Result<Vec<Vec<u8>>, Fatal> {
        self.send(command)?;
        let mut rows = Vec::new();
        loop {
            let (tag, body) = self.message()?;
            match tag {
                be::ROW_DESCRIPTION | be::NOTICE_RESPONSE => {}
                be::DATA_ROW => rows.push(body),
                be::COMMAND_COMPLETE => {
                    let tag = split_cstr(&body).map_or(&[][..], |(tag, _)| tag);
                    if tag != want.as_bytes() {
                        let tag = String::from_utf8_lossy(tag);
                        return Err(Fatal(format!("got bad CMD from old bouncer: {tag}")));
                    }
                }
                be::READY_FOR_QUERY => return Ok(rows),
                be::ERROR_RESPONSE => return Err(refused(&body)),
                other => {
                    let other = char::from(other);
                    return Err(Fatal(format!("takeover_parse_data: unexpected pkt: '{other}'")));
                }
            }
        }
    }

    fn send(&mut self, command: &str) -> Result<(), Fatal> {
        let mut out = Vec::new();
        encode::query(&mut out, command.as_bytes());
        self.socket.write_all(&out).map_err(|e| broken(&e))
    }

    /// The next message.
    fn message(&mut self) -> Result<(u8, Vec<u8>), Fatal> {
        loop {
            let mut pos = 0;
            match Scanner::default().next(&self.received, &mut pos, MAX_MESSAGE) {
                Ok(Some(Item::Whole { tag, end, .. })) => {
                    let message: Vec<u8> = self.received.drain(..end).collect();
                    return Ok((tag, message[HEADER_LEN..].to_vec()));
                }
                Ok(_) => {}
                Err(_) => return Err(Fatal("cannot parse packet".to_owned())),
            }
            if self.receive()? == 0 {
                return Err(Fatal("unexpected EOF".to_owned()));
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Fatal> {
        let mut buffer = [0; 32 * 1024];
        let mut fds = Vec::new();
        loop {
            self.signals.wait_readable(self.socket.as_fd()).map_err(|e| broken(&e))?;
            match sys::descriptors::receive(self.socket.as_fd(), &mut buffer, &mut fds) {
                Ok(n) => {
                    self.descriptors.extend(fds);
                    self.received.extend_from_slice(&buffer[..n]);
                    return Ok(n);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
        }
    }

    fn until_end(&mut self) -> Result<(), Fatal> {
        while self.receive()? > 0 {
            self.received.clear();
        }
        Ok(())
    }
}

fn refused(body: &[u8]) -> Fatal {
    let fields = ErrorFields::parse(body);
    tracing::error!("old bouncer sent: {}", fields.text(": "));
    Fatal("something failed".to_owned())
}

fn nonsense() -> Fatal {
    Fatal("NULL data from old process".to_owned())
}

fn broken(error: &std::io::Error) -> Fatal {
    if error.kind() == std::io::ErrorKind::Interrupted {
        log_stop(&error.to_string());
        return Fatal("takeover was in progress, going down immediately".to_owned());
    }
    Fatal(format!("connection to old process: {}", sys::error_text(error)))
}
