//! A way to PostgreSQL that cuts what the server says into small pieces, and lets logins and cancel requests take their time.

use std::io::Result;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::dice::Dice;

const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 4, 210, 22, 46];

/// Serves on a thread of its own as long as the process lives; returns the port.
pub(crate) fn start(target: u16, seed: u64) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(serve(listener, target, Dice::new(seed | 1)));
    });
    port
}

async fn serve(listener: std::net::TcpListener, target: u16, mut dice: Dice) {
    let listener = TcpListener::from_std(listener).expect("within the runtime");
    while let Ok((near, _)) = listener.accept().await {
        let dice = Dice::new(dice.roll(u64::MAX) | 1);
        tokio::spawn(pass(near, target, dice));
    }
}

async fn pass(mut near: TcpStream, target: u16, mut dice: Dice) -> Result<()> {
    near.set_nodelay(true)?;
    let mut first = [0; 8];
    near.read_exact(&mut first).await?;
    let slow = if first == CANCEL_REQUEST { 12 } else { 4 };
    tokio::time::sleep(Duration::from_millis(dice.roll(slow))).await;
    let mut far = TcpStream::connect(("127.0.0.1", target)).await?;
    far.set_nodelay(true)?;
    far.write_all(&first).await?;
    let (mut from_near, mut to_near) = near.split();
    let (mut from_far, mut to_far) = far.split();
    let requests = async {
        tokio::io::copy(&mut from_near, &mut to_far).await?;
        to_far.shutdown().await
    };
    let answers = async {
        let mut buffer = vec![0; 16384];
        loop {
            let size = from_far.read(&mut buffer).await?;
            if size == 0 {
                return to_near.shutdown().await;
            }
            let mut rest = &buffer[..size];
            while !rest.is_empty() {
                let (piece, then) = rest.split_at(cut(rest.len(), &mut dice));
                to_near.write_all(piece).await?;
                rest = then;
                if !rest.is_empty() && dice.roll(4) == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                tokio::task::yield_now().await;
            }
        }
    };
    // whichever side ends first ends the other
    tokio::select! { done = requests => done, done = answers => done }
}

/// The length of the next piece: mostly all there is, sometimes all but the end, sometimes little.
fn cut(size: usize, dice: &mut Dice) -> usize {
    let little = |limit: usize, dice: &mut Dice| 1 + dice.roll(limit.min(size) as u64) as usize;
    match dice.roll(20) {
        0 if size > 6 => size - 6,
        1 => size - little(8, dice).min(size - 1),
        2 | 3 => little(50, dice),
        _ => size,
    }
}
