//! What a stranger sends before there is a secret between us: records of a handshake.

use std::path::Path;
use std::sync::LazyLock;

use pgusher::config::Settings;
use pgusher::net::tls::Contexts;
use pgusher::net::tls::session::{Next, Session};

use super::bytes::{Bytes, pieces};

static CONTEXTS: LazyLock<Contexts> = LazyLock::new(|| {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here =
        [here.join("tls"), here.join("fuzz/tls")].into_iter().find(|dir| dir.exists()).expect("it is in the corpus");
    let file = |name: &str| here.join(name).to_string_lossy().into_owned();
    let mut settings = Settings::default();
    for (key, value) in [
        ("client_tls_sslmode", "require".to_owned()),
        ("client_tls_cert_file", file("cert.pem")),
        ("client_tls_key_file", file("key.pem")),
        ("client_tls_ca_file", file("cert.pem")),
    ] {
        settings.set(key, &value).expect("it exists");
    }
    Contexts::build(&settings).expect("certificate and key are there")
});

/// Fails or waits for more, however the records are cut; nobody is let in.
fn handshake(first: &[u8], rest: &[&[u8]]) {
    let contexts = CONTEXTS.clients.as_ref().expect("TLS is on");
    let mut session = contexts.accept(first.to_vec()).expect("a session");
    for piece in std::iter::once(&&b""[..]).chain(rest) {
        if session.receive(piece).is_err() || fails(&mut session) {
            assert!(session.info().is_none() && session.peer_certificate().is_none());
            return;
        }
    }
}

fn fails(session: &mut Session) -> bool {
    let mut out = Vec::new();
    let mut next = session.advance(&mut out);
    for _ in 0..100_000 {
        next = match next {
            Next::Read => match session.advance(&mut out) {
                Next::Read => break,
                more => more,
            },
            Next::Work(mut work) => {
                assert!(matches!(session.advance(&mut out), Next::Away));
                work.run();
                session.worked(*work, &mut out)
            }
            Next::Failed(why) => {
                assert!(!why.is_empty() && why != "internal error");
                return true;
            }
            Next::Established => panic!("a handshake without a key of the peer"),
            Next::Away => panic!("the work was given back"),
        };
    }
    assert!(out.len() < 64 * 1024, "much ado about nothing");
    false
}

pub(crate) fn tls(data: &[u8]) {
    let mut from = Bytes(data);
    let seed = u64::from(from.one());
    let first = from.stretch();
    // whether the beginning of a record is refused before its end has come depends on what came with it
    handshake(&[first, from.0].concat(), &[]);
    handshake(first, &pieces(from.0, seed));
}
