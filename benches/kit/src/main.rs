//! Two programs for measuring a pooler, std only:
//!
//! `backend PORT` is a PostgreSQL that lets everybody in and answers every query at once with one row.
//! `load PORT CLIENTS SECONDS MODE` runs closed-loop clients (`simple` or `extended`) and prints how many transactions
//! they finished; it waits for a line on standard input between logging in and starting.
//! `idle PORT CLIENTS` logs clients in, prints `ready`, and holds them until standard input ends.

use std::io::{self, BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What PostgreSQL 15 reports at login; poolers cache and compare it.
const PARAMETERS: [(&str, &str); 8] = [
    ("server_version", "15.0"),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("standard_conforming_strings", "on"),
    ("application_name", ""),
];
const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
const GSSENC_REQUEST: [u8; 4] = 80_877_104_u32.to_be_bytes();
const READY: &[u8] = b"Z\0\0\0\x05I";

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u32>().ok()).unwrap_or_else(usage);
    match arguments.first().map(String::as_str) {
        Some("backend") => backend(number(1)),
        Some("load") => {
            let extended = arguments.get(4).is_some_and(|mode| mode == "extended");
            load(number(1), number(2), Duration::from_secs(u64::from(number(3))), extended)
        }
        Some("idle") => idle(number(1), number(2)),
        _ => usage(),
    }
}

fn usage<T>() -> T {
    eprintln!("usage: pgusher-bench-kit backend PORT | load PORT CLIENTS SECONDS simple|extended | idle PORT CLIENTS");
    std::process::exit(2)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("the messages made here are small");
    [&[kind], length.to_be_bytes().as_slice(), body].concat()
}

fn backend(port: u32) -> io::Result<()> {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // a pooler that hangs up ends this connection, not the backend
            let _ = serve(stream);
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        if header[4..] == SSL_REQUEST || header[4..] == GSSENC_REQUEST {
            stream.write_all(b"N")?;
            continue;
        }
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        stream.read_exact(&mut vec![0; length.saturating_sub(8)])?;
        break;
    }
    let mut reply = message(b'R', &[0; 4]);
    for (name, value) in PARAMETERS {
        reply.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    reply.extend(message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
    reply.extend(READY);
    stream.write_all(&reply)?;
    let row_description = message(b'T', b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
    let row = [message(b'D', b"\0\x01\0\0\0\x011"), message(b'C', b"SELECT 1\0")].concat();
    let (mut buffer, mut out) = (Buffer::default(), Vec::new());
    while buffer.fill(&mut stream)? {
        while let Some((kind, _)) = buffer.next() {
            match kind {
                b'Q' => [&row_description, &row, READY].iter().for_each(|part| out.extend_from_slice(part)),
                b'P' => out.extend(message(b'1', b"")),
                b'B' => out.extend(message(b'2', b"")),
                b'D' => out.extend_from_slice(&row_description),
                b'E' => out.extend_from_slice(&row),
                b'C' => out.extend(message(b'3', b"")),
                b'S' => out.extend_from_slice(READY),
                b'X' => return Ok(()),
                _ => {}
            }
        }
        stream.write_all(&out)?;
        out.clear();
    }
    Ok(())
}

/// Bytes read and not yet understood.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Reads once; `false` at the end of the stream.
    fn fill(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let mut chunk = [0; 8192];
        let count = stream.read(&mut chunk)?;
        self.bytes.extend_from_slice(&chunk[..count]);
        Ok(count > 0)
    }

    /// The next whole message: its type and its last byte.
    fn next(&mut self) -> Option<(u8, u8)> {
        let rest = &self.bytes[self.start..];
        let length = u32::from_be_bytes(rest.get(1..5)?.try_into().ok()?) as usize + 1;
        let (kind, last) = (*rest.first()?, *rest.get(length - 1)?);
        self.start += length;
        Some((kind, last))
    }
}

struct Client {
    stream: TcpStream,
    buffer: Buffer,
}

impl Client {
    fn login(port: u32) -> io::Result<Self> {
        let stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, buffer: Buffer::default() };
        let body = b"\0\x03\0\0user\0bench\0database\0bench\0\0";
        let length = u32::try_from(body.len() + 4).expect("a short packet");
        client.stream.write_all(&[length.to_be_bytes().as_slice(), body].concat())?;
        client.wait_ready()?;
        Ok(client)
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        loop {
            while let Some((kind, _)) = self.buffer.next() {
                match kind {
                    b'Z' => return Ok(()),
                    b'E' => return Err(io::Error::other("the pooler answered with an error")),
                    _ => {}
                }
            }
            if !self.buffer.fill(&mut self.stream)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn login_all(port: u32, clients: u32) -> io::Result<Vec<Client>> {
    (0..clients).map(|_| Client::login(port)).collect()
}

fn wait_for_line() -> io::Result<()> {
    io::stdin().lock().read_line(&mut String::new()).map(drop)
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

fn load(port: u32, clients: u32, duration: Duration, extended: bool) -> io::Result<()> {
    let request = if extended {
        let parts = [
            message(b'P', b"\0SELECT 1\0\0\0"),
            message(b'B', &[0; 8]),
            message(b'D', b"P\0"),
            message(b'E', &[0; 5]),
            message(b'S', b""),
        ];
        parts.concat()
    } else {
        message(b'Q', b"SELECT 1\0")
    };
    let (stop, done, request) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(request));
    let clients = login_all(port, clients)?;
    say("ready")?;
    wait_for_line()?;
    let started = Instant::now();
    let threads: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let (stop, done, request) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&request));
            std::thread::Builder::new().stack_size(64 * 1024).spawn(move || -> io::Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    client.stream.write_all(&request)?;
                    client.wait_ready()?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect::<io::Result<_>>()?;
    std::thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a client thread panicked"))??;
    }
    say(&format!("{} {seconds:.3}", done.load(Ordering::Relaxed)))
}

fn idle(port: u32, clients: u32) -> io::Result<()> {
    let clients = login_all(port, clients)?;
    say("ready")?;
    wait_for_line()?;
    drop(clients);
    Ok(())
}
