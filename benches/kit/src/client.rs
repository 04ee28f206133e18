//! One client of the pooler: logs in by whatever is asked of it, sends, and counts what comes back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mio::{Interest, Registry, Token};

use crate::password::{self, Salted};
use crate::socket::Socket;
use crate::wire::{self, Messages, TERMINATE, message, startup};

/// Whom to talk to, and what all clients share.
pub struct Target {
    pub port: u16,
    pub user: String,
    pub database: String,
    pub password: String,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub salted: Salted,
    /// Connections made so far: each has the next of many source addresses.
    pub made: u32,
}

/// What one turn brought.
#[derive(Default)]
pub struct Seen {
    /// ReadyForQuery, the one that ends the login included.
    pub ready: u32,
    pub bytes: u64,
    /// The server waits for the data of a copy.
    pub copy_in: bool,
}

enum Phase {
    /// The answer to SSLRequest is due.
    Asked,
    /// Logging in, or ready.
    Talking,
    /// Said goodbye: that the pooler closes the connection is no matter.
    Left,
}

pub struct Client {
    pub socket: Socket,
    messages: Messages,
    phase: Phase,
}

impl Client {
    /// Begins to connect and to log in; events are reported under `token`.
    pub fn start(target: &mut Target, registry: &Registry, token: Token) -> io::Result<Self> {
        target.made += 1;
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 0)) + target.made % 200);
        let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), target.port);
        let mut socket = Socket::connect(SocketAddr::new(IpAddr::V4(from), 0), to)?;
        registry.register(&mut socket.tcp, token, Interest::READABLE | Interest::WRITABLE)?;
        let mut client = Self { socket, messages: Messages::default(), phase: Phase::Talking };
        if target.tls.is_some() {
            client.phase = Phase::Asked;
            client.socket.write(&wire::SSL_REQUEST)?;
        } else {
            client.socket.write(&startup(&target.user, &target.database))?;
        }
        Ok(client)
    }

    /// Writes what waits and reads all that is there. An error of the pooler or its end is an error here: nothing that is
    /// measured has any.
    pub fn turn(&mut self, target: &mut Target, scratch: &mut [u8]) -> io::Result<Seen> {
        let mut seen = Seen::default();
        if matches!(self.phase, Phase::Left) {
            return Ok(seen);
        }
        if self.socket.blocked() {
            seen.bytes += self.socket.flush()?;
        }
        let encrypted = target.tls.is_some();
        loop {
            let room = if matches!(self.phase, Phase::Asked) { &mut scratch[..1] } else { &mut *scratch };
            let wanted = room.len();
            let Some(count) = self.socket.read(room)? else { return Ok(seen) };
            if count == 0 {
                return Err(io::Error::other("the pooler closed the connection"));
            }
            if let (Phase::Asked, Some(config)) = (&self.phase, &target.tls) {
                if scratch[0] != b'S' {
                    return Err(io::Error::other("the pooler has no TLS"));
                }
                self.phase = Phase::Talking;
                self.socket.start_tls(config)?;
                self.socket.write(&startup(&target.user, &target.database))?;
                continue;
            }
            seen.bytes += count as u64;
            self.understand(target, &scratch[..count], &mut seen)?;
            if !encrypted && count < wanted {
                return Ok(seen);
            }
        }
    }

    /// Says goodbye.
    pub fn leave(&mut self) -> io::Result<()> {
        self.phase = Phase::Left;
        self.socket.write(TERMINATE)
    }

    fn understand(&mut self, target: &mut Target, input: &[u8], seen: &mut Seen) -> io::Result<()> {
        let (mut answer, mut error) = (None, None);
        self.messages.feed(input, |kind, body| match kind {
            b'Z' => seen.ready += 1,
            b'G' => seen.copy_in = true,
            b'E' => error = Some(String::from_utf8_lossy(body).replace('\0', " ")),
            b'R' => match authentication(target, body) {
                Ok(bytes) => answer = bytes,
                Err(why) => error = Some(why),
            },
            _ => {}
        });
        match (error, answer) {
            (Some(why), _) => Err(io::Error::other(why)),
            (None, Some(bytes)) => self.socket.write(&bytes),
            (None, None) => Ok(()),
        }
    }
}

/// The answer to an authentication message, if it wants one.
fn authentication(target: &mut Target, body: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let (kind, rest) = body.split_at_checked(4).ok_or("a short authentication message")?;
    let response = match kind[3] {
        0 | 12 => return Ok(None),
        5 => [password::md5(&target.user, &target.password, rest).as_bytes(), b"\0"].concat(),
        10 => password::scram_first(),
        11 => password::scram_final(&target.password, rest, &mut target.salted).ok_or("a strange challenge")?,
        other => return Err(format!("authentication {other} is unknown here")),
    };
    Ok(Some(message(b'p', &response)))
}

/// Accepts every certificate, for a client that checks costs more than one that does not, and no pooler sees the difference.
#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS as most clients have it, each handshake a full one.
pub fn tls() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Trusting(Arc::clone(&provider)));
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}
