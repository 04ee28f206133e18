//! A throwaway PostgreSQL and the daemon, on free ports in a fresh directory; as root both run as user postgres.
//!
//! `PG_BIN` names PostgreSQL's directory of programs if `pg_config` does not, `PGBOUNCER_BIN` another daemon.

#![expect(clippy::disallowed_methods, reason = "deadlines of a test, not times of the core")]
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod audit;
pub(crate) mod batches;
pub(crate) mod dice;
pub(crate) mod memory;
pub(crate) mod raw;
pub(crate) mod slicer;

use std::error::Error;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

pub(crate) const PASSWORD: &str = "tokio-secret";

/// The uid and gid daemons run with when the tests run as root; `None` otherwise.
fn daemon_ids() -> Option<(u32, u32)> {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs is mounted");
    let uid_line = status.lines().find(|line| line.starts_with("Uid:"))?;
    if uid_line.split_whitespace().nth(2) != Some("0") {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").expect("readable by all");
    ["postgres:", "nobody:"].iter().find_map(|name| {
        let fields: Vec<&str> = passwd.lines().find(|line| line.starts_with(name))?.split(':').collect();
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    })
}

fn as_daemon(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = daemon_ids() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn postgres_programs() -> PathBuf {
    let from_config = Command::new("pg_config").arg("--bindir").output().ok();
    let from_config = from_config.map(|out| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    std::env::var_os("PG_BIN")
        .map(PathBuf::from)
        .into_iter()
        .chain(from_config)
        .chain(installed.map(|version| version.path().join("bin")))
        .find(|dir| dir.join("initdb").exists() && dir.join("postgres").exists())
        .expect("PostgreSQL's server programs; set PG_BIN")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn wait_for_port(port: u16, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{what} does not accept connections");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// PostgreSQL and the pooler; both end with it.
pub(crate) struct Stack {
    dir: tempfile::TempDir,
    postgres: Child,
    pooler: Child,
    port: u16,
    server_port: u16,
}

impl Stack {
    pub(crate) fn start(default_pool_size: u32) -> Self {
        Self::with(&format!("default_pool_size = {default_pool_size}\n"))
    }

    /// With more lines for the pooler's configuration.
    pub(crate) fn with(settings: &str) -> Self {
        Self::over(settings, |port| port)
    }

    /// With a way to PostgreSQL: `way` gets its port and returns the one that the pooler is to use.
    pub(crate) fn over(settings: &str, way: impl FnOnce(u16) -> u16) -> Self {
        let dir = tempfile::Builder::new().prefix("pgu-rs-").tempdir_in("/tmp").expect("a directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("ours");
        if let Some((uid, gid)) = daemon_ids() {
            chown(dir.path(), Some(uid), Some(gid)).expect("root may");
        }
        let (programs, data) = (postgres_programs(), dir.path().join("data"));
        let password = dir.path().join("password");
        std::fs::write(&password, PASSWORD).expect("writable");
        let initdb = as_daemon(&programs.join("initdb"))
            .args(["-U", "app", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync", "-D"])
            .arg(&data)
            .arg("--pwfile")
            .arg(&password)
            .status()
            .expect("initdb runs");
        assert!(initdb.success(), "initdb failed");
        let server_port = free_port();
        let postgres = as_daemon(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &server_port.to_string(), "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", dir.path().display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres starts");
        wait_for_port(server_port, "PostgreSQL");
        let port = free_port();
        let pooler = start_pooler(dir.path(), way(server_port), port, settings);
        Self { dir, postgres, pooler, port, server_port }
    }

    /// A logged-in client; its connection is driven by a task.
    pub(crate) async fn client(&self) -> Result<Client, tokio_postgres::Error> {
        connect(&self.address("app")).await
    }

    /// A logged-in client that speaks the protocol itself.
    pub(crate) async fn raw(&self) -> std::io::Result<raw::Raw> {
        raw::Raw::login(self.port, "app", PASSWORD).await
    }

    /// Sends a cancel request and waits until its connection is closed.
    pub(crate) async fn cancel(&self, key: &[u8]) -> std::io::Result<()> {
        raw::cancel(self.port, key).await
    }

    /// Resident memory of the pooler in kB.
    pub(crate) fn memory_kb(&self) -> u64 {
        memory::resident_kb(self.pooler.id())
    }

    /// What the pooler has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(log_file(self.dir.path())).expect("the pooler writes it")
    }

    /// The address of a database of the pooler.
    pub(crate) fn address(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=app password={PASSWORD} dbname={database}", self.port)
    }

    /// The address of PostgreSQL itself.
    pub(crate) fn direct(&self) -> String {
        format!("host=127.0.0.1 port={} user=app password={PASSWORD} dbname=postgres", self.server_port)
    }
}

/// Connects, and lets a task drive the connection.
pub(crate) async fn connect(text: &str) -> Result<Client, tokio_postgres::Error> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match tokio_postgres::connect(text, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return Ok(client);
            }
            // PostgreSQL accepts connections a moment before it serves them
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.pooler.kill();
        let _ = self.pooler.wait();
        let stop = as_daemon(&postgres_programs().join("pg_ctl"))
            .args(["stop", "-s", "-m", "immediate", "-D"])
            .arg(self.dir.path().join("data"))
            .status();
        if !stop.is_ok_and(|status| status.success()) {
            let _ = self.postgres.kill();
        }
        let _ = self.postgres.wait();
    }
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("pgbouncer.log")
}

fn start_pooler(dir: &Path, server_port: u16, port: u16, settings: &str) -> Child {
    let built = std::env::var_os("PGBOUNCER_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_pgbouncer").into());
    // the build directory may be out of reach for the daemon's user
    let binary = dir.join("pgbouncer");
    std::fs::copy(built, &binary).expect("the daemon is built");
    let userlist = dir.join("userlist.txt");
    std::fs::write(&userlist, format!("\"app\" \"{PASSWORD}\"\n")).expect("writable");
    let ini = dir.join("pgbouncer.ini");
    let text = format!(
        "[databases]\napp = host=127.0.0.1 port={server_port} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir = {}\nauth_type = scram-sha-256\nauth_file = {}\nadmin_users = app\n\
         pool_mode = transaction\nserver_login_retry = 1\nlogfile = {}\n{settings}",
        dir.display(),
        userlist.display(),
        log_file(dir).display()
    );
    std::fs::write(&ini, text).expect("writable");
    let child = as_daemon(&binary).arg("-q").arg(&ini).spawn().expect("the pooler starts");
    wait_for_port(port, "the pooler");
    child
}
