//! Programs for measuring a pooler. Each side is one thread, and costs about half as much as the pooler between them.
//!
//! * `backend --port N [--delay-us N]`: a PostgreSQL that answers every query at once (see `backend.rs`)
//! * `load --port N ...`: closed-loop clients; prints one line of JSON (see `load.rs`)
//! * `ask --port N --sql TEXT --times N --every-ms N`: one client; prints how long the answer takes
//! * `hold --port N --clients N`: logs clients in, prints `ready`, and holds them until standard input ends

mod backend;
mod client;
mod load;
mod measure;
mod options;
mod password;
mod socket;
mod wire;

use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::options::{Options, fail};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let options = Options::new(arguments);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is such a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the soft limit may be as high as the hard one");
    let done = match what.as_str() {
        "backend" => {
            let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), options.number("port", 0));
            backend::Backend::new(address, Duration::from_micros(options.number("delay-us", 1000)))
                .and_then(backend::Backend::run)
        }
        "load" => load::run(&options),
        "ask" => load::ask(&options),
        "hold" => hold(&options),
        _ => fail("usage: pgusher-bench-kit backend|load|ask|hold --NAME VALUE ..."),
    };
    if let Err(error) = done {
        eprintln!("{what}: {error}");
        std::process::exit(1);
    }
}

fn hold(options: &Options) -> io::Result<()> {
    let mut crowd = load::Crowd::new(load::target(options))?;
    crowd.gather(options.number("clients", 100), b"")?;
    say("ready")?;
    wait_for_line()
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

fn wait_for_line() -> io::Result<()> {
    io::stdin().lock().read_line(&mut String::new()).map(drop)
}
