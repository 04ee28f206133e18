//! A client that shows every message and sends whatever it is given, whole or in pieces.

use std::io::{Error, Result};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Type and body of a message.
pub(crate) type Message = (u8, Bytes);

pub(crate) struct Raw {
    stream: TcpStream,
    input: BytesMut,
    key: Bytes,
}

impl Raw {
    /// Logs in with SCRAM and waits until the session is ready.
    pub(crate) async fn login(port: u16, database: &str, password: &str) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut raw = Self { stream, input: BytesMut::new(), key: Bytes::new() };
        let mut out = BytesMut::new();
        frontend::startup_message([("user", "app"), ("database", database)], &mut out)?;
        raw.send(&out).await?;
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let (tag, mut body) = raw.next().await?;
            if tag == b'Z' {
                return Ok(raw);
            }
            if tag == b'K' {
                raw.key = body;
                continue;
            }
            if tag != b'R' {
                continue;
            }
            let mut out = BytesMut::new();
            match body.get_u32() {
                10 => frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out)?,
                11 => {
                    scram.update(&body)?;
                    frontend::sasl_response(scram.message(), &mut out)?;
                }
                12 => scram.finish(&body)?,
                _ => {}
            }
            raw.send(&out).await?;
        }
    }

    /// What a cancel request needs: the body of BackendKeyData.
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next message.
    ///
    /// # Errors
    /// The other side closed the connection, or refused to let us in.
    pub(crate) async fn next(&mut self) -> Result<Message> {
        loop {
            if let Some((head, _)) = self.input.split_first_chunk::<5>() {
                let [tag, len @ ..] = *head;
                let len = u32::from_be_bytes(len) as usize;
                assert!((4..1 << 20).contains(&len), "a message {:?} of {len} bytes", tag as char);
                if self.input.len() > len {
                    let mut message = self.input.split_to(len + 1).freeze();
                    message.advance(5);
                    return Ok((tag, message));
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(Error::other("closed"));
            }
        }
    }
}

/// Sends a cancel request and waits until its connection is closed.
pub(crate) async fn cancel(port: u16, key: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut packet = BytesMut::from(&[0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e][..]);
    packet.extend_from_slice(key);
    stream.write_all(&packet).await?;
    // a reset is an end, too
    let _ = stream.read_buf(&mut BytesMut::new()).await;
    Ok(())
}

/// The field of an ErrorResponse: `C` is its SQLSTATE.
pub(crate) fn field(body: &[u8], kind: u8) -> String {
    let found = body.split(|&byte| byte == 0).find(|field| field.first() == Some(&kind));
    found.map_or_else(String::new, |field| String::from_utf8_lossy(&field[1..]).into_owned())
}

/// The first column of a DataRow.
pub(crate) fn first_column(mut body: Bytes) -> String {
    body.advance(2);
    let len = body.get_u32() as usize;
    String::from_utf8_lossy(&body[..len]).into_owned()
}
