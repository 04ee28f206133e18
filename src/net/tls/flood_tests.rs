//! Records without data: nothing that a peer may send without end.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use mio::net::UnixStream;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, ServerConfig,
    ServerConnection, SupportedCipherSuite,
};

use super::session::{Next, Session};
use super::trust::Anchors;
use super::verify::ServerVerifier;
use super::{Contexts, certified_key};
use crate::config::{Settings, SslMode};
use crate::net::stream::{ReadResult, Socket};

fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/tls").join(name).to_string_lossy().into_owned()
}

/// What we accept clients with and connect to servers with.
fn contexts() -> Contexts {
    let mut settings = Settings::default();
    for (key, value) in [
        ("client_tls_cert_file", file("cert.pem")),
        ("client_tls_key_file", file("key.pem")),
        ("client_tls_sslmode", "require".to_owned()),
        ("server_tls_sslmode", "require".to_owned()),
    ] {
        settings.set(key, &value).expect("it exists");
    }
    Contexts::build(&settings).expect("certificate and key are there")
}

fn client() -> Connection {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = ServerVerifier::new(Anchors::system(), &provider, SslMode::Require);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has it")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    let name = ServerName::try_from("localhost").expect("a name");
    Connection::Client(ClientConnection::new(Arc::new(config), name).expect("a client"))
}

fn server() -> Connection {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = certified_key(&provider, &file("cert.pem"), &file("key.pem"), &Anchors::system())
        .expect("certificate and key are there");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has it")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    Connection::Server(ServerConnection::new(Arc::new(config)).expect("a server"))
}

/// Our side, when the handshake with `peer` is over.
fn joined(peer: &mut Connection) -> Box<Session> {
    let contexts = contexts();
    let mut said = Vec::new();
    let mut session = match peer {
        Connection::Client(_) => {
            peer.write_tls(&mut said).expect("memory");
            contexts.clients.expect("TLS is on").accept(std::mem::take(&mut said)).expect("a session")
        }
        Connection::Server(_) => contexts.servers.expect("TLS is on").connect("localhost").expect("a session"),
    };
    let mut out = Vec::new();
    let mut next = session.advance(&mut out);
    while !matches!(next, Next::Established) {
        next = match next {
            Next::Work(mut work) => {
                work.run();
                session.worked(*work, &mut out)
            }
            Next::Read => {
                hear(peer, &mut out);
                peer.write_tls(&mut said).expect("memory");
                session.receive(&std::mem::take(&mut said)).expect("short");
                session.advance(&mut out)
            }
            other => panic!("{other:?}"),
        };
    }
    hear(peer, &mut out);
    session
}

fn hear(peer: &mut Connection, out: &mut Vec<u8>) {
    peer.read_tls(&mut &out[..]).expect("memory");
    peer.process_new_packets().expect("we are honest");
    out.clear();
}

/// What the peer encrypts with, and the number of its next record.
fn sealing(peer: Connection) -> (Box<dyn MessageEncrypter>, u64) {
    let Some(SupportedCipherSuite::Tls13(suite)) = peer.negotiated_cipher_suite() else { panic!("not TLS 1.3") };
    let (next, secrets) = peer.dangerous_extract_secrets().expect("it is allowed").tx;
    let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
    else {
        panic!("another cipher")
    };
    (suite.aead_alg.encrypter(key, iv), next)
}

/// What comes of reading records of this content until something comes of it, or they are at their end.
fn read_flood(mut peer: Connection, typ: ContentType, content: &[u8]) -> ReadResult {
    let mut session = joined(&mut peer);
    let (mut seal, first) = sealing(peer);
    let mut flood = Vec::new();
    for number in first.. {
        let payload = OutboundChunks::Single(content);
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        flood.extend_from_slice(&seal.encrypt(message, number).expect("it can").encode());
        if flood.len() > 8 << 20 {
            break;
        }
    }
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("a socket");
    let mut socket = Socket::Unix(UnixStream::from_std(ours));
    let sender = std::thread::spawn(move || drop(theirs.write_all(&flood)));
    let mut buffer = vec![0; 16 << 10];
    let seen = loop {
        let seen = session.read(&mut socket, false, &mut buffer).result;
        if !matches!(seen, ReadResult::Nothing) {
            break seen;
        }
    };
    drop(socket);
    sender.join().expect("it ends");
    seen
}

#[test]
fn a_client_that_sends_empty_records_without_end_is_at_its_end() {
    let seen = read_flood(client(), ContentType::ApplicationData, b"");
    assert!(matches!(seen, ReadResult::Failed(_)), "{seen:?}");
}

#[test]
fn a_server_that_sends_tickets_without_end_is_at_its_end() {
    // NewSessionTicket: lifetime, age, nonce, ticket, no extensions
    let body = [&[0, 0, 0, 60][..], &[1, 2, 3, 4], &[1, 7], &[0, 4, 1, 2, 3, 4], &[0, 0]].concat();
    let ticket = [&[4, 0, 0, u8::try_from(body.len()).expect("short")][..], &body].concat();
    let seen = read_flood(server(), ContentType::Handshake, &ticket.repeat(100));
    assert!(matches!(seen, ReadResult::Failed(_)), "{seen:?}");
}
