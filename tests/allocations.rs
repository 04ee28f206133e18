//! What a worker allocates for a transaction once it is warm: nothing.
//!
//! The daemon runs in this process, in front of a backend that answers at once, and the allocator counts what its worker
//! threads ask for. `ALLOCATIONS_TRACE=1` shows where the first ones come from.

#![expect(unsafe_code, reason = "an allocator is unsafe by its interface")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::BytesMut;
use pgusher::boot;
use pgusher::cli::{self, Cli};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

const WARM_UP: usize = 300;
const TRANSACTIONS: usize = 2_000;
const CLIENTS: usize = 6;

/// Counts what threads named `worker N` allocate while `COUNTING`.
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Unknown,
    Worker,
    Other,
}

thread_local! {
    static KIND: Cell<Kind> = const { Cell::new(Kind::Unknown) };
}

fn on_worker() -> bool {
    KIND.try_with(|kind| {
        if kind.get() == Kind::Unknown {
            // asking may allocate
            kind.set(Kind::Other);
            let worker =
                std::fs::read_to_string("/proc/thread-self/comm").is_ok_and(|name| name.starts_with("worker "));
            kind.set(if worker { Kind::Worker } else { Kind::Other });
        }
        kind.get() == Kind::Worker
    })
    .unwrap_or(false)
}

fn count() {
    if !COUNTING.load(Relaxed) || !on_worker() {
        return;
    }
    if ALLOCATIONS.fetch_add(1, Relaxed) < 3 {
        // what shows them allocates too
        KIND.set(Kind::Other);
        if std::env::var_os("ALLOCATIONS_TRACE").is_some() {
            eprintln!("{}", Backtrace::force_capture());
        }
        KIND.set(Kind::Worker);
    }
}

// SAFETY: everything is the system allocator's work; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &len[..], body].concat()
}

/// The next message; its tag and body.
fn next(stream: &mut impl Read) -> std::io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [tag, len @ ..] = head;
    let mut body = vec![0; u32::from_be_bytes(len) as usize - 4];
    stream.read_exact(&mut body)?;
    Ok((tag, body))
}

/// A server that lets everybody in and has one answer of each kind.
fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut input = std::io::BufReader::new(stream);
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    input.read_exact(&mut vec![0; u32::from_be_bytes(len) as usize - 4])?;
    let welcome = [
        message(b'R', &[0; 4]),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'S', b"server_version\x0015.0\0"),
        message(b'S', b"standard_conforming_strings\0on\0"),
        message(b'K', &[1; 8]),
        message(b'Z', b"I"),
    ];
    out.write_all(&welcome.concat())?;
    let row = message(b'D', b"\0\x01\0\0\0\x011");
    let described = message(b'T', b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
    let complete = message(b'C', b"SELECT 1\0");
    let mut answers = Vec::new();
    let mut state = b'I';
    loop {
        let (tag, body) = next(&mut input)?;
        match tag {
            b'Q' if body.starts_with(b"BEGIN") => {
                state = b'T';
                answers.extend(message(b'C', b"BEGIN\0"));
            }
            b'Q' if body.starts_with(b"COMMIT") => {
                state = b'I';
                answers.extend(message(b'C', b"COMMIT\0"));
            }
            b'Q' => answers.extend([&described[..], &row, &complete].concat()),
            b'P' => answers.extend(message(b'1', b"")),
            b'B' => answers.extend(message(b'2', b"")),
            b'D' => answers.extend_from_slice(&described),
            b'E' => answers.extend([&row[..], &complete].concat()),
            b'X' => return Ok(()),
            _ => {}
        }
        if tag == b'Q' || tag == b'S' {
            answers.extend(message(b'Z', &[state]));
            out.write_all(&answers)?;
            answers.clear();
        }
    }
}

fn null_backend() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Starts the daemon in this process; it ends with the process.
fn start_pooler(dir: &Path, workers: usize) -> u16 {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let root = std::fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap() == 0;
    let (ini, users) = (dir.join("pgbouncer.ini"), dir.join("userlist.txt"));
    std::fs::write(&users, "\"app\" \"secret\"\n").unwrap();
    let text = format!(
        "[databases]\napp = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nserver_tls_sslmode = disable\nauth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 2\n\
         max_prepared_statements = 50\nworker_threads = {workers}\n{}",
        null_backend(),
        users.display(),
        if root { "user = nobody\n" } else { "" },
    );
    std::fs::write(&ini, text).unwrap();
    let Cli::Run(options) = cli::parse(["pgbouncer".into(), "-q".into(), ini.into_os_string()]) else {
        panic!("options")
    };
    std::thread::spawn(move || boot::run(&options));
    port
}

fn login(port: u16) -> TcpStream {
    let deadline = 500;
    let mut stream = (0..deadline)
        .find_map(|_| {
            TcpStream::connect(("127.0.0.1", port))
                .map_err(|_| std::thread::sleep(std::time::Duration::from_millis(10)))
                .ok()
        })
        .expect("the pooler listens");
    stream.set_nodelay(true).unwrap();
    let mut out = BytesMut::new();
    frontend::startup_message([("user", "app"), ("database", "app")], &mut out).unwrap();
    ask(&mut stream, &out);
    stream
}

fn send(stream: &mut TcpStream, request: &[u8]) {
    stream.write_all(request).unwrap();
}

/// Reads up to ReadyForQuery.
fn answer(stream: &mut TcpStream) {
    loop {
        let (tag, body) = next(stream).unwrap();
        assert_ne!(tag, b'E', "{}", String::from_utf8_lossy(&body));
        if tag == b'Z' {
            return;
        }
    }
}

fn ask(stream: &mut TcpStream, request: &[u8]) {
    send(stream, request);
    answer(stream);
}

fn simple(text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::query(text, &mut out).unwrap();
    out.to_vec()
}

fn parse(name: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::parse(name, "SELECT 1", [], &mut out).unwrap();
    out.to_vec()
}

fn execute(name: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::bind("", name, [], [(); 0], |(), _| Ok(IsNull::Yes), [], &mut out).map_err(|_| "bind").unwrap();
    frontend::describe(b'P', "", &mut out).unwrap();
    frontend::execute("", 0, &mut out).unwrap();
    frontend::sync(&mut out);
    out.to_vec()
}

/// All clients ask before the first is answered, so that most of them queue; every request of `steps` ends in ReadyForQuery.
fn run(clients: &mut [TcpStream], steps: &[Vec<u8>], transactions: usize) {
    for _ in 0..transactions / clients.len() {
        if let [only] = steps {
            clients.iter_mut().for_each(|client| send(client, only));
            clients.iter_mut().for_each(answer);
        } else {
            clients.iter_mut().for_each(|client| steps.iter().for_each(|step| ask(client, step)));
        }
    }
}

fn allocations(clients: &mut [TcpStream], steps: &[Vec<u8>]) -> u64 {
    run(clients, steps, WARM_UP);
    ALLOCATIONS.store(0, Relaxed);
    COUNTING.store(true, Relaxed);
    run(clients, steps, TRANSACTIONS);
    COUNTING.store(false, Relaxed);
    ALLOCATIONS.load(Relaxed)
}

/// The pooler has one worker unless the environment says otherwise.
const WORKERS: &str = "ALLOCATIONS_WORKERS";

/// Threads that wait for each other for the first time allocate what they need for it, once; the supervisor is one of them.
const FIRST_MEETINGS: u64 = 20;

#[test]
fn a_warm_worker_allocates_nothing_for_a_transaction() {
    let dir = tempfile::Builder::new().prefix("pgu-rs-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let workers = std::env::var(WORKERS).map_or(1, |n| n.parse().unwrap());
    let port = start_pooler(dir.path(), workers);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| login(port)).collect();
    for client in &mut clients {
        ask(client, &[parse("named"), execute("named")].concat());
    }
    let workloads = [
        ("simple", vec![simple("SELECT 1")]),
        ("extended", vec![[parse(""), execute("")].concat()]),
        ("prepared", vec![execute("named")]),
        ("transactions", vec![simple("BEGIN"), simple("SELECT 1"), simple("COMMIT")]),
    ];
    let found = workloads.map(|(name, steps)| (name, allocations(&mut clients, &steps)));
    assert!(
        found.iter().all(|(_, count)| *count < FIRST_MEETINGS),
        "allocations in {TRANSACTIONS} transactions: {found:?}"
    );
}

/// Servers move between workers all the time here; the daemon runs in a process of its own, for it takes over the one it is in.
#[test]
fn several_warm_workers_allocate_nothing_for_a_transaction() {
    let other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_warm_worker_allocates_nothing_for_a_transaction"])
        .env(WORKERS, "3")
        .output()
        .unwrap();
    assert!(
        other.status.success(),
        "{}{}",
        String::from_utf8_lossy(&other.stdout),
        String::from_utf8_lossy(&other.stderr)
    );
}
