//! Listening sockets, and the options of every TCP socket.
//!
//! Owns how sockets are opened and what is logged about it; who accepts from them is not its concern. Options that Linux
//! copies from a listener to accepted sockets (TCP_NODELAY, keepalive, user timeout, buffers) are set on the listener,
//! so that an accept costs no further calls. Source: PgBouncer `src/pooler.c`, `src/util.c` (`tune_socket`).

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::log::Fatal;
use crate::sys::descriptors::came_with_the_process;
use crate::sys::error_text;
use crate::sys::resolve;
use crate::sys::socket::{set_least_hops, set_tcp_defer_accept};
use crate::sys::user::find_group;

/// The number of the first descriptor that a service manager passes.
const FIRST_PASSED: i32 = 3;

/// The settings `tcp_*` that concern each connection; zero leaves the system's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    pub keepalive: bool,
    pub keepcnt: u32,
    pub keepidle_secs: u32,
    pub keepintvl_secs: u32,
    pub user_timeout_ms: u32,
    pub socket_buffer_bytes: usize,
}

/// The settings that decide where and how to listen, under their own names.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Comma list; `*` is every address.
    pub listen_addr: String,
    pub listen_port: u16,
    pub listen_backlog: i32,
    /// Directory, `@name` for the abstract name space, empty for none.
    pub unix_socket_dir: String,
    pub unix_socket_mode: u32,
    /// Name or number; empty leaves the process's group.
    pub unix_socket_group: String,
    pub tcp_defer_accept: bool,
    pub so_reuseport: bool,
    pub tcp: TcpOptions,
}

/// What we listen on.
#[derive(Debug, Default)]
pub struct Listeners {
    pub tcp: Vec<TcpSocket>,
    /// One, or as many as the service manager has passed.
    pub unix: Vec<UnixSocket>,
    /// Where all TCP clients come in, if that is known.
    pub only_tcp_address: Option<SocketAddr>,
}

/// A listening TCP socket, non-blocking.
#[derive(Debug)]
pub struct TcpSocket {
    pub socket: TcpListener,
    pub addr: SocketAddr,
}

/// A listening Unix socket, non-blocking.
#[derive(Debug)]
pub struct UnixSocket {
    pub socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file; None in the abstract name space.
    identity: Option<(u64, u64)>,
}

impl UnixSocket {
    /// Removes the socket file at exit, unless another process has put its own there.
    pub fn unlink(self) {
        let current = fs::symlink_metadata(&self.path).map(|m| (m.dev(), m.ino())).ok();
        if self.identity.is_some() && current == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// File name, or `@name` in the abstract name space.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The Unix socket of a port in a directory; the rule holds for our own socket and for servers without a host.
#[must_use]
pub fn unix_socket_path(dir: &str, port: u16) -> PathBuf {
    PathBuf::from(format!("{dir}/.s.PGSQL.{port}"))
}

/// The socket address of such a path: a leading `@` is the abstract name space.
///
/// # Errors
/// A path longer than the kernel takes.
pub fn unix_address(path: &Path) -> io::Result<SockAddr> {
    match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => {
            let name = [b"\0", name].concat();
            SockAddr::unix(std::ffi::OsStr::from_bytes(&name))
        }
        _ => SockAddr::unix(path),
    }
}

/// Refuses to start while someone answers on our Unix socket.
///
/// # Errors
/// The FATAL text.
pub fn refuse_used_unix_socket(dir: &str, port: u16) -> Result<(), Fatal> {
    if !dir.is_empty() && someone_answers(&unix_socket_path(dir, port)) {
        return Err(Fatal("unix socket is in use, cannot continue".to_owned()));
    }
    Ok(())
}

/// Never waits: a listener with a full queue answers too, only later.
fn someone_answers(path: &Path) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&unix_address(path)?)
    };
    match connect() {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Takes the sockets that the service manager has passed, as many as `count`. They replace all that the settings ask for.
///
/// # Errors
/// FATAL texts.
pub fn passed(count: usize, options: &ListenOptions, default_unix_socket_dir: &str) -> Result<Listeners, Fatal> {
    if !options.listen_addr.is_empty() {
        tracing::warn!("sockets passed from service manager, cf_listen_addr ignored");
    }
    if options.unix_socket_dir != default_unix_socket_dir {
        tracing::warn!("sockets passed from service manager, cf_unix_socket_dir ignored");
    }
    let mut listeners = Listeners::default();
    for fd in (FIRST_PASSED..).take(count) {
        let failed = || Fatal(format!("failed to set up socket passed from service manager (fd {fd})"));
        let socket = came_with_the_process(fd).ok_or_else(failed)?;
        listeners.adopt(socket, Path::new("")).map_err(|e| {
            tracing::error!("socket passed from service manager (fd {fd}): {}", error_text(&e));
            failed()
        })?;
        tracing::info!("socket passed from service manager (fd {fd})");
    }
    listeners.retune(&options.tcp, options.tcp_defer_accept);
    Ok(listeners)
}

/// Opens everything the settings ask for.
///
/// # Errors
/// FATAL texts; the sockets opened so far are closed and the socket file is removed.
pub fn open(options: &ListenOptions) -> Result<Listeners, Fatal> {
    let tcp = open_tcp(options)?;
    let unix = open_unix(options)?;
    if tcp.is_empty() && unix.is_none() {
        return Err(Fatal("nowhere to listen on".to_owned()));
    }
    // a socket of ours takes what was sent to its own address and nothing else
    let only_tcp_address = match &tcp[..] {
        [only] if !only.addr.ip().is_unspecified() => Some(only.addr),
        _ => None,
    };
    Ok(Listeners { tcp, unix: unix.into_iter().collect(), only_tcp_address })
}

fn open_tcp(options: &ListenOptions) -> Result<Vec<TcpSocket>, Fatal> {
    let mut opened = Vec::new();
    let port = options.listen_port;
    for item in options.listen_addr.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let host = (item != "*").then_some(item);
        let addrs = resolve::lookup(host, port)
            .map_err(|e| Fatal(format!("getaddrinfo('{item}', '{port}') = {} [{}]", e.text, e.code)))?;
        for addr in addrs {
            match listen_tcp(addr, options) {
                Ok(socket) => {
                    tracing::info!("listening on {addr}");
                    opened.push(TcpSocket { socket, addr });
                }
                Err((step, e)) => tracing::warn!("cannot listen on {addr}: {step}(): {}", error_text(&e)),
            }
        }
    }
    if opened.is_empty() && !options.listen_addr.trim().is_empty() {
        let list = &options.listen_addr;
        return Err(Fatal(format!("failed to listen on any address in listen_addr list: {list}")));
    }
    Ok(opened)
}

/// The error names the call that failed.
type Step = (&'static str, io::Error);

fn listen_tcp(addr: SocketAddr, options: &ListenOptions) -> Result<TcpListener, Step> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).map_err(|e| ("socket", e))?;
    let prepare = || {
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if options.so_reuseport {
            socket.set_reuse_port(true)?;
        }
        apply_client_options(socket.as_fd(), &options.tcp)
    };
    prepare().map_err(|e| ("setsockopt", e))?;
    socket.bind(&addr.into()).map_err(|e| ("bind", e))?;
    if options.tcp_defer_accept {
        set_tcp_defer_accept(&socket, true).map_err(|e| ("setsockopt", e))?;
    }
    socket.listen(options.listen_backlog).map_err(|e| ("listen", e))?;
    Ok(socket.into())
}

fn open_unix(options: &ListenOptions) -> Result<Option<UnixSocket>, Fatal> {
    if options.unix_socket_dir.is_empty() {
        return Ok(None);
    }
    let path = unix_socket_path(&options.unix_socket_dir, options.listen_port);
    let is_file = !options.unix_socket_dir.starts_with('@');
    if is_file {
        let lock = format!("{}.lock", path.display());
        if fs::symlink_metadata(lock).is_ok() {
            return Err(Fatal(format!("unix port {} is in use", options.listen_port)));
        }
        remove_stale(&path);
    }
    let failed = |(step, e): Step| {
        tracing::warn!("cannot listen on unix:{}: {step}(): {}", path.display(), error_text(&e));
        Fatal("failed to create unix socket".to_owned())
    };
    let socket = bind_unix(&path).map_err(failed)?;
    let meta = if is_file { fs::symlink_metadata(&path).ok() } else { None };
    let identity = meta.map(|m| (m.dev(), m.ino()));
    // rights first: nobody can connect before listen()
    let rights = if is_file { grant_rights(&path, options) } else { Ok(()) };
    let ready = rights.and_then(|()| socket.listen(options.listen_backlog).map_err(|e| failed(("listen", e))));
    let opened = UnixSocket { socket: socket.into(), path: path.clone(), identity };
    if let Err(fatal) = ready {
        opened.unlink();
        return Err(fatal);
    }
    tracing::info!("listening on unix:{}", path.display());
    Ok(Some(opened))
}

/// Only a socket is removed: anything else in its place is somebody's file, and bind() will say so.
fn remove_stale(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

fn bind_unix(path: &Path) -> Result<Socket, Step> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(|e| ("socket", e))?;
    socket.set_nonblocking(true).map_err(|e| ("fcntl", e))?;
    let addr = unix_address(path).map_err(|e| ("bind", e))?;
    socket.bind(&addr).map_err(|e| ("bind", e))?;
    Ok(socket)
}

fn grant_rights(path: &Path, options: &ListenOptions) -> Result<(), Fatal> {
    let name = path.display();
    let mode = options.unix_socket_mode;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| Fatal(format!("chmod({name}, {mode:04o}) failed: {}", error_text(&e))))?;
    let group = &options.unix_socket_group;
    if group.is_empty() {
        return Ok(());
    }
    let gid = find_group(group).ok_or_else(|| Fatal(format!("could not find group '{group}': no such group")))?;
    // the user stays as it is, which chown() is told by the largest number
    nix::unistd::chown(path, None, Some(gid))
        .map_err(|e| Fatal(format!("chown({name}, {}, {gid}) failed: {}", u32::MAX, error_text(&e.into()))))
}

impl Listeners {
    /// Takes in a listening socket of another process. `unix_path` is where that process has its Unix socket.
    ///
    /// # Errors
    /// It is no listening socket of a kind we know.
    pub fn adopt(&mut self, fd: OwnedFd, unix_path: &Path) -> io::Result<()> {
        let socket = Socket::from(fd);
        if !socket.is_listener()? {
            return Err(io::Error::from_raw_os_error(nix::libc::EINVAL));
        }
        socket.set_nonblocking(true)?;
        if let Some(addr) = socket.local_addr()?.as_socket() {
            self.tcp.push(TcpSocket { socket: socket.into(), addr });
        } else {
            let identity = fs::symlink_metadata(unix_path).map(|m| (m.dev(), m.ino())).ok();
            self.unix.push(UnixSocket { socket: socket.into(), path: unix_path.to_owned(), identity });
        }
        Ok(())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.unix.is_empty()
    }

    /// Applies changed `tcp_*` settings to what is accepted from now on.
    pub fn retune(&self, tcp: &TcpOptions, defer_accept: bool) {
        for listener in &self.tcp {
            let tuned = apply_client_options(listener.socket.as_fd(), tcp)
                .and_then(|()| set_tcp_defer_accept(&listener.socket, defer_accept));
            if let Err(e) = tuned {
                tracing::warn!("cannot set options of {}: {}", listener.addr, error_text(&e));
            }
        }
    }
}

/// Lets a TCP listener that shares its port complete the connections that are being made, and begin no others: those who try
/// next are left to another process. What it accepts from now on is to be given to [`began_before`].
///
/// # Errors
/// Those of setsockopt.
pub fn begin_no_more(listener: BorrowedFd<'_>) -> io::Result<()> {
    let ipv6 = SockRef::from(&listener).local_addr()?.is_ipv6();
    set_least_hops(listener, u8::MAX, ipv6)?;
    // nobody is to be kept from us until he has said something
    set_tcp_defer_accept(listener, false)
}

/// A connection accepted from a listener that begins no more has inherited its deafness.
pub fn began_before(accepted: BorrowedFd<'_>) {
    let ipv6 = SockRef::from(&accepted).local_addr().is_ok_and(|addr| addr.is_ipv6());
    let _ = set_least_hops(accepted, 0, ipv6);
}

/// Whether accepting can go on after this error; otherwise it pauses, 5 seconds in PgBouncer.
#[must_use]
pub fn accept_error_is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

/// Options of a TCP listener or of a socket accepted from it.
///
/// # Errors
/// Those of setsockopt.
pub fn apply_client_options(fd: BorrowedFd<'_>, tcp: &TcpOptions) -> io::Result<()> {
    apply(fd, tcp)
}

/// Options of a TCP socket that connects to a server; to be set before connect(), so that buffers decide the window.
///
/// # Errors
/// Those of setsockopt.
pub fn apply_server_options(fd: BorrowedFd<'_>, tcp: &TcpOptions) -> io::Result<()> {
    apply(fd, tcp)
}

fn apply(fd: BorrowedFd<'_>, tcp: &TcpOptions) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_tcp_nodelay(true)?;
    if tcp.keepalive {
        let secs = |n: u32| Duration::from_secs(n.into());
        let mut keepalive = TcpKeepalive::new();
        if tcp.keepidle_secs > 0 {
            keepalive = keepalive.with_time(secs(tcp.keepidle_secs));
        }
        if tcp.keepintvl_secs > 0 {
            keepalive = keepalive.with_interval(secs(tcp.keepintvl_secs));
        }
        if tcp.keepcnt > 0 {
            keepalive = keepalive.with_retries(tcp.keepcnt);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    } else {
        socket.set_keepalive(false)?;
    }
    let timeout = (tcp.user_timeout_ms > 0).then(|| Duration::from_millis(tcp.user_timeout_ms.into()));
    socket.set_tcp_user_timeout(timeout)?;
    if tcp.socket_buffer_bytes > 0 {
        socket.set_send_buffer_size(tcp.socket_buffer_bytes)?;
        socket.set_recv_buffer_size(tcp.socket_buffer_bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    fn options(dir: &str) -> ListenOptions {
        ListenOptions {
            listen_addr: String::new(),
            listen_port: 24_571,
            listen_backlog: 16,
            unix_socket_dir: dir.to_owned(),
            unix_socket_mode: 0o700,
            unix_socket_group: String::new(),
            tcp_defer_accept: false,
            so_reuseport: false,
            tcp: TcpOptions {
                keepalive: true,
                keepcnt: 3,
                keepidle_secs: 41,
                keepintvl_secs: 7,
                user_timeout_ms: 12_000,
                socket_buffer_bytes: 65_536,
            },
        }
    }

    fn fatal(options: &ListenOptions) -> String {
        open(options).map(|_| ()).unwrap_err().0
    }

    fn accept(listener: &TcpListener) -> TcpStream {
        for _ in 0..200 {
            if let Ok((socket, _)) = listener.accept() {
                return socket;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nothing to accept");
    }

    #[test]
    fn accepted_sockets_inherit_the_options() {
        for listen_addr in ["127.0.0.1", "::1"] {
            let options = ListenOptions { listen_addr: listen_addr.to_owned(), listen_port: 24_572, ..options("") };
            let listeners = open(&options).unwrap();
            let _peer = TcpStream::connect(listeners.tcp[0].addr).unwrap();
            let accepted = accept(&listeners.tcp[0].socket);
            let accepted = SockRef::from(&accepted);
            assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(41));
            assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
            assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 3);
            assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_secs(12)));
            // the kernel doubles what is asked for
            assert_eq!(accepted.send_buffer_size().unwrap(), 131_072);
            assert_eq!(accepted.recv_buffer_size().unwrap(), 131_072);

            listeners.retune(&TcpOptions { keepalive: false, user_timeout_ms: 0, ..options.tcp.clone() }, true);
            let mut peer = TcpStream::connect(listeners.tcp[0].addr).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            assert!(listeners.tcp[0].socket.accept().is_err(), "deferred until data comes");
            peer.write_all(b"x").unwrap();
            let accepted = accept(&listeners.tcp[0].socket);
            let accepted = SockRef::from(&accepted);
            assert!(!accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_user_timeout().unwrap(), None);
        }
    }

    #[test]
    fn addresses_in_use() {
        let first = ListenOptions { listen_addr: "127.0.0.1, ::1".to_owned(), listen_port: 24_573, ..options("") };
        let _held = open(&first).unwrap();
        let text = "failed to listen on any address in listen_addr list: 127.0.0.1, ::1";
        assert_eq!(fatal(&first), text);
        // one address that works is enough
        let both = ListenOptions { listen_addr: "127.0.0.1,127.0.0.2".to_owned(), ..first.clone() };
        assert_eq!(open(&both).unwrap().tcp.len(), 1);
        let shared = ListenOptions { so_reuseport: true, listen_port: 24_574, ..first };
        let _one = open(&shared).unwrap();
        assert_eq!(open(&shared).unwrap().tcp.len(), 2);
    }

    #[test]
    fn refusals() {
        assert_eq!(fatal(&options("")), "nowhere to listen on");
        assert_eq!(fatal(&options("/nonexistent")), "failed to create unix socket");
        assert_eq!(fatal(&options(&format!("/tmp/{}", "x".repeat(120)))), "failed to create unix socket");
        let bad = ListenOptions { listen_addr: "nosuch.invalid".to_owned(), ..options("") };
        assert!(fatal(&bad).starts_with("getaddrinfo('nosuch.invalid', '24571') = "));
        let dir = tempfile::tempdir().unwrap();
        let dir_name = dir.path().to_str().unwrap();
        let group = ListenOptions { unix_socket_group: "nosuchgroup".to_owned(), ..options(dir_name) };
        assert_eq!(fatal(&group), "could not find group 'nosuchgroup': no such group");
        assert_eq!(fs::read_dir(dir_name).unwrap().count(), 0, "no socket file is left");
        fs::write(dir.path().join(".s.PGSQL.24571.lock"), "").unwrap();
        assert_eq!(fatal(&options(dir_name)), "unix port 24571 is in use");
    }

    #[test]
    fn unix_socket_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir_name = dir.path().to_str().unwrap();
        let in_use = Err(Fatal("unix socket is in use, cannot continue".to_owned()));
        assert_eq!(refuse_used_unix_socket(dir_name, 24_571), Ok(()));
        let unix = open(&options(dir_name)).unwrap().unix.remove(0);
        assert_eq!(fs::metadata(unix.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(refuse_used_unix_socket(dir_name, 24_571), in_use);
        let path = unix.path().to_owned();
        // a process that died leaves its file
        drop(unix);
        assert!(path.exists());
        assert_eq!(refuse_used_unix_socket(dir_name, 24_571), Ok(()));
        let old = open(&options(dir_name)).unwrap().unix.remove(0);
        let new = open(&options(dir_name)).unwrap().unix.remove(0);
        old.unlink();
        assert!(path.exists(), "not ours any more");
        UnixStream::connect(&path).unwrap();
        new.unlink();
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert_eq!(fatal(&options(dir_name)), "failed to create unix socket");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn full_queue_counts_as_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let dir_name = dir.path().to_str().unwrap();
        let tight = ListenOptions { listen_backlog: 0, ..options(dir_name) };
        let unix = open(&tight).unwrap().unix.remove(0);
        let _first = UnixStream::connect(unix.path()).unwrap();
        assert!(refuse_used_unix_socket(dir_name, 24_571).is_err());
    }

    #[test]
    fn abstract_unix_socket() {
        let dir_name = format!("@pgusher-test-{}", std::process::id());
        let unix = open(&options(&dir_name)).unwrap().unix.remove(0);
        assert!(refuse_used_unix_socket(&dir_name, 24_571).is_err());
        let listed = fs::read_to_string("/proc/net/unix").unwrap();
        assert!(listed.lines().any(|l| l.ends_with(&format!(" {dir_name}/.s.PGSQL.24571"))));
        unix.unlink();
        assert_eq!(refuse_used_unix_socket(&dir_name, 24_571), Ok(()));
    }

    /// The early one has not even said anything yet, for which the listener waits.
    #[test]
    fn a_listener_that_begins_no_more_keeps_what_it_has() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            set_tcp_defer_accept(&listener, true).unwrap();
            let addr = listener.local_addr().unwrap();
            let mut early = TcpStream::connect(addr).unwrap();
            begin_no_more(listener.as_fd()).unwrap();
            let late = TcpStream::connect_timeout(&addr, Duration::from_millis(200)).unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
            early.write_all(b"x").unwrap();
            let (mut accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer, early.local_addr().unwrap());
            began_before(accepted.as_fd());
            early.write_all(b"y").unwrap();
            let mut said = [0; 2];
            accepted.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"xy");
        }
    }

    #[test]
    fn accept_errors() {
        let table = [(nix::libc::EAGAIN, true), (nix::libc::ECONNABORTED, true), (nix::libc::EMFILE, false)];
        for (code, transient) in table {
            assert_eq!(accept_error_is_transient(&io::Error::from_raw_os_error(code)), transient);
        }
    }
}
