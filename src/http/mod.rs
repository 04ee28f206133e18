//! The HTTP side of `metrics_listen`: a few documents for monitoring systems, on the supervisor's runtime.
//!
//! It serves whoever asks, and nobody may hold anything up: there are [`MOST_CONNECTIONS`], each for one request and
//! [`CONNECTION_LIMIT`]; who comes on top waits in the kernel's queue. The address may belong to somebody else for a while,
//! as to the process that this one takes over from: it is asked for again and again, and nothing else waits for it.

mod answer;
mod page;
mod ready;

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::metrics_address::MetricsAddress;
use crate::shared::Shared;
use crate::sys;

pub use ready::readiness;

/// Connections at one time.
const MOST_CONNECTIONS: usize = 16;

/// The life of a connection.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// The time to send a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Most bytes of a request's head.
const MOST_HEAD_BYTES: usize = 16 * 1024;

/// When an address that could not be had is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// A pause after an accept that failed; usually for want of descriptors.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Serves until it is dropped. `mode` is that of a Unix socket's file.
pub async fn serve(address: MetricsAddress, mode: u32, shared: Arc<Shared>) {
    let listener = listen_at_last(&address, mode).await;
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let shared = shared.clone();
        let failed = match &listener {
            Listener::Tcp(tcp) => tcp.accept().await.map(|(stream, _)| spawn(stream, place, shared)).is_err(),
            Listener::Unix { socket, .. } => {
                socket.accept().await.map(|(stream, _)| spawn(stream, place, shared)).is_err()
            }
        };
        if failed {
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }
}

fn spawn<S>(stream: S, place: OwnedSemaphorePermit, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let answering = shared.clone();
        let service = service_fn(move |request| answer::answer(request, answering.clone()));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_LIMIT)
            .keep_alive(false)
            .max_buf_size(MOST_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        // what is wrong with a client's request is told by the answer, or is its own affair
        let _ = shared.guard.watch("an HTTP connection", tokio::time::timeout(CONNECTION_LIMIT, connection)).await;
        drop(place);
    });
}

enum Listener {
    Tcp(TcpListener),
    Unix { socket: UnixListener, _file: SocketFile },
}

async fn listen_at_last(address: &MetricsAddress, mode: u32) -> Listener {
    use crate::config::value::Value;
    let shown = address.print().unwrap_or_default();
    let mut complained = false;
    loop {
        match listen(address, mode).await {
            Ok(listener) => {
                tracing::info!("serving metrics on {shown}");
                return listener;
            }
            Err(error) if !complained => {
                complained = true;
                tracing::warn!("cannot serve metrics on {shown}: {}; trying again", sys::error_text(&error));
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn listen(address: &MetricsAddress, mode: u32) -> io::Result<Listener> {
    if let MetricsAddress::Unix(path) = address {
        let (socket, file) = listen_unix(path, mode)?;
        return Ok(Listener::Unix { socket, _file: file });
    }
    let mut failed = io::Error::other("no address");
    for address in address.tcp() {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(Listener::Tcp(listener)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// A socket file that nobody answers at is left over, and removed. Any other file stays.
fn listen_unix(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let left_over = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if left_over {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let found = std::fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), identity: (found.dev(), found.ino()) };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok((listener, file))
}

/// Removes its file when it goes, unless somebody has put another one there.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        if now.is_ok_and(|identity| identity == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
