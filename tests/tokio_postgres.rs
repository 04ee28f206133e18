//! Typical work of a Rust application, with tokio-postgres through transaction pooling.
//!
//! Starts a throwaway PostgreSQL and the daemon on free ports in a fresh directory. As root both run as user postgres.
//! `PG_BIN` names PostgreSQL's directory of programs if `pg_config` does not, `PGBOUNCER_BIN` another daemon.

#![expect(clippy::disallowed_methods, reason = "deadlines of a test, not times of the core")]

use std::error::Error;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

type Outcome = Result<(), Box<dyn Error>>;

const PASSWORD: &str = "tokio-secret";

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
struct Stack {
    dir: tempfile::TempDir,
    postgres: Child,
    pooler: Child,
    port: u16,
}

impl Stack {
    fn start(default_pool_size: u32) -> Self {
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
        let pooler = start_pooler(dir.path(), server_port, port, default_pool_size);
        Self { dir, postgres, pooler, port }
    }

    /// A logged-in client; its connection is driven by a task.
    async fn client(&self) -> Result<Client, tokio_postgres::Error> {
        let text = format!("host=127.0.0.1 port={} user=app password={PASSWORD} dbname=app", self.port);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match tokio_postgres::connect(&text, NoTls).await {
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

fn start_pooler(dir: &Path, server_port: u16, port: u16, default_pool_size: u32) -> Child {
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
         pool_mode = transaction\ndefault_pool_size = {default_pool_size}\nserver_login_retry = 1\n",
        dir.display(),
        userlist.display()
    );
    std::fs::write(&ini, text).expect("writable");
    let child = as_daemon(&binary).arg("-q").arg(&ini).spawn().expect("the pooler starts");
    wait_for_port(port, "the pooler");
    child
}

#[tokio::test]
async fn an_application_works_through_transaction_pooling() -> Outcome {
    let stack = Stack::start(2);
    simple_and_extended(&stack).await?;
    transactions_commit_and_roll_back(&stack).await?;
    prepared_statements_of_many_clients(&stack).await?;
    copy_in_and_out(&stack).await?;
    cancel_hits_its_own_query(&stack).await?;
    pipelined_queries(&stack).await
}

async fn simple_and_extended(stack: &Stack) -> Outcome {
    let client = stack.client().await?;
    let row = client.query_one("SELECT $1::int + 1, $2::text", &[&41, &"hello"]).await?;
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "hello"));
    let messages = client.simple_query("SELECT 1; SELECT 2").await?;
    let rows = messages.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count();
    assert_eq!(rows, 2);
    let error = client.query("SELECT * FROM no_such_table", &[]).await.expect_err("there is no such table");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("42P01"));
    assert_eq!(client.query_one("SELECT 7", &[]).await?.get::<_, i32>(0), 7);
    Ok(())
}

async fn transactions_commit_and_roll_back(stack: &Stack) -> Outcome {
    let mut client = stack.client().await?;
    client.batch_execute("CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL)").await?;
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO accounts VALUES ($1, $2)", &[&1, &100_i64]).await?;
    transaction.commit().await?;
    let transaction = client.transaction().await?;
    transaction.execute("UPDATE accounts SET balance = 0", &[]).await?;
    transaction.rollback().await?;
    {
        // a transaction that is dropped is rolled back
        let transaction = client.transaction().await?;
        transaction.execute("DELETE FROM accounts", &[]).await?;
    }
    let row = client.query_one("SELECT count(*), sum(balance)::bigint FROM accounts", &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 100));
    Ok(())
}

/// Every client names its statements s0, s1, ...: over two servers the names collide unless they are kept apart.
async fn prepared_statements_of_many_clients(stack: &Stack) -> Outcome {
    let mut clients = Vec::new();
    for number in 0..8_i32 {
        let client = stack.client().await?;
        let statement = client.prepare(&format!("SELECT {number} * 1000 + $1::int")).await?;
        clients.push((number, client, statement));
    }
    for turn in 0..20_i32 {
        for (number, client, statement) in &clients {
            let value: i32 = client.query_one(statement, &[&turn]).await?.get(0);
            assert_eq!(value, number * 1000 + turn);
        }
    }
    Ok(())
}

async fn copy_in_and_out(stack: &Stack) -> Outcome {
    let client = stack.client().await?;
    client.batch_execute("CREATE TABLE copied (n int, t text)").await?;
    let sink = client.copy_in::<_, Bytes>("COPY copied FROM STDIN").await?;
    let mut sink = pin!(sink);
    for n in 0..1000 {
        sink.send(Bytes::from(format!("{n}\trow {n}\n"))).await?;
    }
    assert_eq!(sink.finish().await?, 1000);
    let stream = client.copy_out("COPY copied TO STDOUT").await?;
    let chunks: Vec<Bytes> = pin!(stream).try_collect().await?;
    assert!(chunks.concat().ends_with(b"999\trow 999\n"));
    let row = client.query_one("SELECT count(*), sum(n) FROM copied", &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1000, 499_500));
    Ok(())
}

async fn cancel_hits_its_own_query(stack: &Stack) -> Outcome {
    let (victim, bystander) = (stack.client().await?, stack.client().await?);
    let token = victim.cancel_token();
    let sleeping = async { victim.query("SELECT pg_sleep(20), 'victim'", &[]).await };
    let cancelling = async {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%''victim''%' \
                       AND pid <> pg_backend_pid()";
        let deadline = Instant::now() + Duration::from_secs(10);
        while bystander.query_one(running, &[]).await?.get::<_, i64>(0) == 0 {
            assert!(Instant::now() < deadline, "the query to cancel never ran");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        token.cancel_query(NoTls).await
    };
    let (slept, cancelled) = tokio::join!(sleeping, cancelling);
    cancelled?;
    let error = slept.expect_err("the query is cancelled");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("57014"));
    assert_eq!(victim.query_one("SELECT 1", &[]).await?.get::<_, i32>(0), 1);
    assert_eq!(bystander.query_one("SELECT 2", &[]).await?.get::<_, i32>(0), 2);
    Ok(())
}

async fn pipelined_queries(stack: &Stack) -> Outcome {
    let client = stack.client().await?;
    let statement = client.prepare("SELECT $1::int").await?;
    let (a, b, c) = tokio::join!(
        client.query_one(&statement, &[&1]),
        client.query_one(&statement, &[&2]),
        client.query_one(&statement, &[&3])
    );
    assert_eq!((a?.get::<_, i32>(0), b?.get::<_, i32>(0), c?.get::<_, i32>(0)), (1, 2, 3));
    Ok(())
}
