//! Closed-loop clients: each sends its next query when the answer to the last one has come. One thread.
//!
//! A transaction is all steps of `--sql`, or with `--relogin 1` a whole connection: login, one query, goodbye; `--rate` is
//! how many of these begin in a second at most. What is counted began to count after `--warmup`, and the processor time of
//! `--watch` is read at the same two moments.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::client::{self, Client, Seen, Target};
use crate::measure::{Histogram, cpu_us};
use crate::options::{Options, fail};
use crate::socket::Repeated;
use crate::wire::{SYNC, message};
use crate::{say, wait_for_line};

/// Logins under way at a time, when a crowd comes.
const AT_ONCE: usize = 32;

/// Somewhere to log in to, as the options say.
pub fn target(options: &Options) -> Target {
    let tls = (options.number("tls", 0) == 1).then(|| client::tls().unwrap_or_else(|error| fail(&error.to_string())));
    Target {
        port: options.number("port", 6432),
        user: options.text("user", "bench"),
        database: options.text("database", "bench"),
        password: options.text("password", "bench-secret"),
        tls,
        salted: Default::default(),
        made: 0,
    }
}

/// The bytes of one step.
fn request(mode: &str, sql: &str) -> Vec<u8> {
    let query = [sql.as_bytes(), b"\0"].concat();
    let bind = |name: &[u8]| message(b'B', &[b"\0", name, b"\0\0\0\0\0\0\0"].concat());
    let execute = [message(b'D', b"P\0"), message(b'E', &[0; 5]), SYNC.to_vec()].concat();
    match mode {
        "simple" => message(b'Q', &query),
        "extended" => [parse(b"", &query), bind(b""), execute].concat(),
        "prepared" => [bind(b"P_0"), execute].concat(),
        _ => fail("--mode is simple, extended or prepared"),
    }
}

fn parse(name: &[u8], query: &[u8]) -> Vec<u8> {
    message(b'P', &[name, b"\0", query, b"\0\0"].concat())
}

/// A crowd of logged-in clients.
pub struct Crowd {
    pub poll: Poll,
    events: Events,
    pub target: Target,
    pub clients: Vec<Client>,
    scratch: Vec<u8>,
}

impl Crowd {
    pub fn new(target: Target) -> io::Result<Self> {
        let (poll, events) = (Poll::new()?, Events::with_capacity(512));
        Ok(Self { poll, events, target, clients: Vec::new(), scratch: vec![0; 256 * 1024] })
    }

    /// Logs in up to `count` clients; each then sends `first`, if it is not empty, and waits for the answer.
    pub fn gather(&mut self, count: usize, first: &[u8]) -> io::Result<()> {
        let mut left: Vec<u8> = vec![0; self.clients.len()];
        let (mut under_way, mut moved) = (0, Instant::now());
        while self.clients.len() < count || under_way > 0 {
            while under_way < AT_ONCE && self.clients.len() < count {
                let token = Token(self.clients.len());
                self.clients.push(Client::start(&mut self.target, self.poll.registry(), token)?);
                left.push(if first.is_empty() { 1 } else { 2 });
                under_way += 1;
            }
            for (at, seen) in self.wait(Duration::from_millis(100))? {
                for _ in 0..seen.ready {
                    left[at] -= 1;
                    moved = Instant::now();
                    match left[at] {
                        0 => under_way -= 1,
                        _ => self.clients[at].socket.write(first)?,
                    }
                }
            }
            if moved.elapsed() > Duration::from_secs(20) {
                return Err(io::Error::other(format!("logins stand still, {under_way} are under way")));
            }
        }
        Ok(())
    }

    /// Waits for events, and gives every client that has one its turn.
    pub fn wait(&mut self, longest: Duration) -> io::Result<Vec<(usize, Seen)>> {
        self.poll.poll(&mut self.events, Some(longest))?;
        let mut seen = Vec::new();
        for event in &self.events {
            let at = event.token().0;
            let turn = self.clients[at].turn(&mut self.target, &mut self.scratch)?;
            if turn.ready > 0 || turn.copy_in || turn.bytes > 0 {
                seen.push((at, turn));
            }
        }
        Ok(seen)
    }
}

struct Load {
    crowd: Crowd,
    requests: Vec<Vec<u8>>,
    relogin: bool,
    /// What a copy into the server consists of.
    copied: (Rc<Vec<u8>>, u64),
    running: Vec<Running>,
    /// Transactions of all clients, the warm-up's too.
    finished: u64,
    window: Option<Window>,
    pace: Option<Pace>,
}

/// When connections begin, if not at once.
struct Pace {
    every: Duration,
    next: Instant,
    /// Clients without a connection.
    resting: Vec<usize>,
}

/// An active client.
struct Running {
    /// When its transaction began, and how many transactions of all clients were finished then.
    began: (Instant, u64),
    steps: usize,
    counted: u64,
}

/// What is counted between two moments.
struct Window {
    since: Instant,
    cpu_us: f64,
    /// Of this process and the backend together.
    kit_us: f64,
    transactions: u64,
    bytes: u64,
    /// Nanoseconds.
    times: Histogram,
    /// How many transactions were finished while one waited, itself included: waits as the line counts them, whatever else the
    /// machine does meanwhile.
    turns: Histogram,
}

pub fn run(options: &Options) -> io::Result<()> {
    let (mode, active) = (options.text("mode", "simple"), options.number("clients", 16));
    let requests: Vec<Vec<u8>> = options.text("sql", "SELECT 1").split('|').map(|sql| request(&mode, sql)).collect();
    let first = if mode == "prepared" { [&parse(b"P_0", b"SELECT 1\0"), SYNC].concat() } else { Vec::new() };
    let mut crowd = Crowd::new(target(options))?;
    let relogin = options.number("relogin", 0) == 1;
    if !relogin {
        // those that stay idle stand behind the active ones
        crowd.gather(active, &first)?;
        crowd.gather(active + options.number("idle", 0), b"")?;
    }
    let row = message(b'd', &vec![b'x'; options.number("row-bytes", 100)]);
    let copies = (64 * 1024 / row.len()).max(1);
    let copied = (Rc::new(row.repeat(copies)), options.number("rows", 1_000_000_u64).div_ceil(copies as u64));
    if options.number("gate", 0) == 1 {
        say("ready")?;
        wait_for_line()?;
    }
    let pace = match options.number("rate", 0_u32) {
        0 => None,
        rate => Some(Pace { every: Duration::from_secs(1) / rate, next: Instant::now(), resting: Vec::new() }),
    };
    let mut load = Load { crowd, requests, relogin, copied, running: Vec::new(), finished: 0, window: None, pace };
    for at in 0..active {
        load.running.push(Running { began: (Instant::now(), 0), steps: 0, counted: 0 });
        if relogin {
            load.crowd.clients.push(Client::start(&mut load.crowd.target, load.crowd.poll.registry(), Token(at))?);
        } else {
            load.crowd.clients[at].socket.write(&load.requests[0])?;
        }
    }
    load.measure(options)
}

impl Load {
    fn measure(mut self, options: &Options) -> io::Result<()> {
        let watched = options.list("watch");
        let kit = [options.list("backend"), vec![std::process::id()]].concat();
        let seconds = |name, default| Duration::from_secs_f64(options.number(name, default));
        let begun = Instant::now();
        let (start, length) = (begun + seconds("warmup", 0.3), seconds("seconds", 1.0));
        loop {
            let now = Instant::now();
            match &self.window {
                None if now >= start => self.window = Some(Window::open(&watched, &kit)),
                Some(window) if now >= window.since + length => break,
                _ => {}
            }
            for (at, seen) in self.crowd.wait(self.patience(now))? {
                self.advance(at, &seen)?;
            }
            self.begin_those_due()?;
        }
        let window = self.window.take().expect("the loop ends with an open window");
        say(&window.report(&watched, &kit, &self.running, self.finished))
    }

    fn advance(&mut self, at: usize, seen: &Seen) -> io::Result<()> {
        if let Some(window) = &mut self.window {
            window.bytes += seen.bytes;
        }
        let client = &mut self.crowd.clients[at];
        if seen.copy_in {
            let end = message(b'c', b"");
            client.socket.write_repeated(Repeated::new(Rc::clone(&self.copied.0), self.copied.1, end))?;
        }
        if seen.ready == 0 {
            return Ok(());
        }
        let running = &mut self.running[at];
        running.steps += seen.ready as usize;
        // a connection of its own answers the login before the first step
        let answers = self.requests.len() + usize::from(self.relogin);
        if running.steps < answers {
            return client.socket.write(&self.requests[running.steps - usize::from(self.relogin)]);
        }
        self.finished += 1;
        let now = (Instant::now(), self.finished);
        if let Some(window) = &mut self.window {
            window.finished(running.began, now);
            running.counted += 1;
        }
        (running.began, running.steps) = (now, 0);
        if self.relogin {
            client.leave()?;
            let Some(pace) = &mut self.pace else { return self.begin(at) };
            pace.resting.push(at);
            return Ok(());
        }
        client.socket.write(&self.requests[0])
    }

    /// A new connection for a client.
    fn begin(&mut self, at: usize) -> io::Result<()> {
        self.crowd.clients[at] = Client::start(&mut self.crowd.target, self.crowd.poll.registry(), Token(at))?;
        self.running[at].began = (Instant::now(), self.finished);
        Ok(())
    }

    fn patience(&self, now: Instant) -> Duration {
        let due = self.pace.as_ref().map_or(now + Duration::from_millis(20), |pace| pace.next);
        due.saturating_duration_since(now).min(Duration::from_millis(20))
    }

    fn begin_those_due(&mut self) -> io::Result<()> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        if Instant::now() < pace.next {
            return Ok(());
        }
        // nobody left means that this one is late, and the next ones come no faster for it
        pace.next += pace.every;
        match pace.resting.pop() {
            Some(at) => self.begin(at),
            None => Ok(()),
        }
    }
}

impl Window {
    fn open(watched: &[u32], kit: &[u32]) -> Self {
        let kit_us = cpu_us(kit);
        Self {
            cpu_us: cpu_us(watched),
            kit_us,
            since: Instant::now(),
            transactions: 0,
            bytes: 0,
            times: Histogram::new(),
            turns: Histogram::new(),
        }
    }

    fn finished(&mut self, began: (Instant, u64), now: (Instant, u64)) {
        self.transactions += 1;
        // how long took what began before cannot be said fairly: the warm-up is in it
        if began.0 >= self.since {
            self.times.add((now.0 - began.0).as_nanos() as u64);
            self.turns.add(now.1 - began.1);
        }
    }

    /// One line of JSON.
    fn report(self, watched: &[u32], kit: &[u32], running: &[Running], finished: u64) -> String {
        let (cpu, kit_us, seconds) = (cpu_us(watched) - self.cpu_us, cpu_us(kit) - self.kit_us, self.since.elapsed());
        // who still waits counts with the time so far
        let waiting = running.iter().map(|client| client.began.0.elapsed().as_nanos() as u64).max().unwrap_or(0);
        let turns = running.iter().map(|client| finished - client.began.1).max().unwrap_or(0);
        let counts = || running.iter().map(|client| client.counted);
        format!(
            "{{\"transactions\": {}, \"seconds\": {:.6}, \"cpu_us\": {cpu:.1}, \"kit_us\": {kit_us:.1}, \"bytes\": {}, \"p50_us\": {:.1}, \
             \"p99_us\": {:.1}, \"longest_us\": {:.1}, \"p50_turns\": {:.0}, \"most_turns\": {}, \"least\": {}, \"most\": {}}}",
            self.transactions,
            seconds.as_secs_f64(),
            self.bytes,
            self.times.quantile(0.5) / 1e3,
            self.times.quantile(0.99) / 1e3,
            self.times.largest.max(waiting) as f64 / 1e3,
            self.turns.quantile(0.5),
            self.turns.largest.max(turns),
            counts().min().unwrap_or(0),
            counts().max().unwrap_or(0),
        )
    }
}

/// One client asks `--sql` `--times` times, `--every-ms` apart, and prints the median of how long that took.
pub fn ask(options: &Options) -> io::Result<()> {
    let mut crowd = Crowd::new(target(options))?;
    crowd.gather(1, b"")?;
    let (query, every) =
        (request("simple", &options.text("sql", "SELECT 1")), Duration::from_millis(options.number("every-ms", 100)));
    let mut took = Vec::new();
    for _ in 0..options.number("times", 10) {
        let began = Instant::now();
        crowd.clients[0].socket.write(&query)?;
        while !crowd.wait(Duration::from_secs(1))?.iter().any(|(_, seen)| seen.ready > 0) {}
        took.push(began.elapsed());
        std::thread::sleep(every.saturating_sub(began.elapsed()));
    }
    took.sort();
    say(&format!("{{\"asked\": {}, \"p50_us\": {:.1}}}", took.len(), took[took.len() / 2].as_secs_f64() * 1e6))
}
