//! Our client and server machines against each other, whole and with damaged messages.

use std::sync::Arc;

use super::client::{ClientAuth, Login, Method, Random, Step as ClientStep};
use super::decoy::Decoy;
use super::scram::{ScramKeys, Verifier, derive, encode};
use super::secret::Secret;
use super::server::{Credentials, ServerAuth, Step as ServerStep};

/// Few, so that hundreds of thousands of exchanges take seconds; what the count does is tested with the RFC's vectors.
const ITERATIONS: u32 = 2;

fn scram_text(password: &str) -> String {
    let keys = derive(password.as_bytes(), b"some salt", ITERATIONS);
    let (stored, server) = (encode(&keys.stored_key), encode(&keys.server_key));
    format!("SCRAM-SHA-256${ITERATIONS}:{}${stored}:{server}", encode(b"some salt"))
}

fn login(method: Method, secret: Option<&str>) -> Login<'static> {
    let random = Random { md5_salt: [1, 2, 3, 4], nonce: [7; 18] };
    let secret = secret.map(Secret::classify);
    Login {
        method,
        user: "alice",
        secret,
        verifier: None,
        iterations: ITERATIONS,
        decoy: Decoy::of(std::iter::empty(), 4096, [7; 32]),
        binding: None,
        random,
    }
}

/// How an exchange ended: what the pooler thinks of the client, and whether the client trusts the pooler.
#[derive(Debug, Default)]
struct End {
    failure: Option<String>,
    log: Vec<String>,
    keys: Option<ScramKeysText>,
    succeeded: bool,
    trusted: bool,
    derivations: u32,
    verifier: Option<Arc<Verifier>>,
}

#[derive(Debug, PartialEq, Eq)]
struct ScramKeysText(String);

fn text(keys: &ScramKeys) -> ScramKeysText {
    ScramKeysText(format!("{:?} {:?}", keys.client_key, keys.server_key))
}

/// Runs the machine for servers (as a client) against the machine for clients, with a hand on the line.
fn meet(login: Login<'_>, who: Credentials, mut tamper: impl FnMut(&mut Vec<u8>)) -> End {
    let mut end = End::default();
    let mut asker = ServerAuth::new(who, [3; 18]);
    let mut to_client = Vec::new();
    let (mut keeper, mut step) = ClientAuth::start(login, &mut to_client);
    for _ in 0..16 {
        match step {
            ClientStep::Wait => {}
            ClientStep::Derive(work) => {
                end.derivations += 1;
                step = keeper.derived(&work.run(), &mut to_client);
                continue;
            }
            ClientStep::External(_) => break,
            ClientStep::Success(ref proof) => {
                end.succeeded = true;
                end.keys = proof.scram_keys.as_ref().map(text);
            }
            ClientStep::Fail(ref failure) => {
                end.failure = Some(failure.disconnect.reason.to_string());
                end.log = failure.log.iter().map(ToString::to_string).collect();
                break;
            }
        }
        if end.succeeded {
            to_client.extend_from_slice(b"R\0\0\0\x08\0\0\0\0");
        }
        let mut to_server = Vec::new();
        for body in messages(&mut to_client, b'R', &mut tamper) {
            match asker.receive(&body, &mut to_server) {
                ServerStep::Wait => {}
                ServerStep::Derive(work) => {
                    let keys = if work.iterations < 1000 { work.run() } else { derive(b"", b"", 1) };
                    if !matches!(asker.derived(&keys, &mut to_server), ServerStep::Wait) {
                        return end;
                    }
                }
                ServerStep::Done => end.trusted = true,
                ServerStep::Fail(_) => return end,
            }
        }
        if end.succeeded {
            break;
        }
        let Some(body) = messages(&mut to_server, b'p', &mut tamper).pop() else { break };
        step = keeper.receive(b'p', &body, &mut to_client);
    }
    end.verifier = keeper.take_made();
    end
}

fn messages(bytes: &mut Vec<u8>, tag: u8, tamper: &mut impl FnMut(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    let mut rest = bytes.as_slice();
    while let [found, a, b, c, d, after @ ..] = rest {
        assert_eq!(*found, tag);
        let (body, after) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4);
        let mut body = body.to_vec();
        tamper(&mut body);
        bodies.push(body);
        rest = after;
    }
    assert!(rest.is_empty());
    bytes.clear();
    bodies
}

fn knows(secret: &str) -> Credentials {
    Credentials { user: "alice".into(), secret: Secret::classify(secret), scram_keys: None, binding: None }
}

#[test]
fn every_secret_with_every_method() {
    let md5 = super::md5::stored(b"pencil", "alice");
    let scram = scram_text("pencil");
    for (method, stored, given, ok) in [
        (Method::Plain, "pencil", "pencil", true),
        (Method::Plain, &md5, "pencil", true),
        (Method::Plain, &scram, "pencil", true),
        (Method::Plain, &scram, "penci", false),
        (Method::Md5, "pencil", "pencil", true),
        (Method::Md5, &md5, "pencil", true),
        (Method::Md5, &md5, &md5, true),
        (Method::Md5, &scram, "pencil", true),
        (Method::Md5, &scram, &md5, false),
        (Method::ScramSha256, "pencil", "pencil", true),
        (Method::ScramSha256, "p\u{2168}", "pIX", true),
        (Method::ScramSha256, &md5, "pencil", false),
        (Method::ScramSha256, &scram, "pencil", true),
        (Method::ScramSha256, &scram, "Pencil", false),
        (Method::ScramSha256, "", "x", false),
        (Method::ScramSha256, "", "", false),
    ] {
        let end = meet(login(method, Some(stored)), knows(given), |_| {});
        assert_eq!((end.succeeded, end.trusted), (ok, ok), "{method:?} {stored} {given} {end:?}");
    }
}

#[test]
fn what_failures_say() {
    let md5 = super::md5::stored(b"pencil", "alice");
    for (stored, log) in [
        (None, "password authentication failed"),
        (Some(""), "password authentication failed"),
        (Some("other"), "password authentication failed"),
        (Some(&*md5), "SCRAM authentication failed: user has MD5 secret"),
    ] {
        let end = meet(login(Method::ScramSha256, stored), knows("pencil"), |_| {});
        assert_eq!(end.failure.as_deref(), Some("SASL authentication failed"));
        assert_eq!(end.log, [log]);
    }
}

#[test]
fn keys_of_a_real_secret_open_servers_with_the_same_one() {
    let scram = scram_text("pencil");
    let end = meet(login(Method::ScramSha256, Some(&scram)), knows("pencil"), |_| {});
    let keys = ScramKeys::from(&derive(b"pencil", b"some salt", ITERATIONS));
    assert_eq!(end.keys, Some(text(&keys)));
    let passed_on = Credentials {
        user: "alice".into(),
        secret: Secret::classify(&scram),
        scram_keys: Some(keys.clone()),
        binding: None,
    };
    assert!(meet(login(Method::ScramSha256, Some(&scram)), passed_on, |_| {}).trusted);
    let other_secret =
        Credentials { user: "alice".into(), secret: Secret::classify(&scram), scram_keys: Some(keys), binding: None };
    assert!(!meet(login(Method::ScramSha256, Some("pencil")), other_secret, |_| {}).succeeded);
}

#[test]
fn a_derived_verifier_is_kept_and_its_keys_are_not() {
    let end = meet(login(Method::ScramSha256, Some("pencil")), knows("pencil"), |_| {});
    assert_eq!((end.derivations, end.keys), (1, None));
    let again = Login { verifier: end.verifier.clone(), ..login(Method::ScramSha256, Some("pencil")) };
    let again = meet(again, knows("pencil"), |_| {});
    assert_eq!((again.derivations, again.succeeded, again.keys), (0, true, None));
    let failed = meet(login(Method::ScramSha256, Some("pencil")), knows("wrong"), |_| {});
    assert!(!failed.succeeded && failed.verifier.is_some());
}

/// Numbers that look random and are the same in every run.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }

    fn damage(&mut self, body: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(body.len() + 1);
            match self.below(6) {
                0 => body.truncate(at),
                1 => body.insert(at, b",=\0rpicsvn09A\xff"[self.below(13)]),
                2 if at < body.len() => body[at] = self.below(256) as u8,
                3 if at < body.len() => drop(body.remove(at)),
                4 => {
                    let tail = body[at..].to_vec();
                    body.extend_from_slice(&tail);
                }
                _ => body.extend(std::iter::repeat_n(b'9', self.below(40))),
            }
        }
    }
}

#[test]
fn damaged_messages_never_panic_and_never_let_a_stranger_in() {
    let mut lcg = Lcg(20_240_229);
    let (md5, scram) = (super::md5::stored(b"pencil", "alice"), scram_text("pencil"));
    let secrets = [None, Some(""), Some("pencil"), Some(&*md5), Some(&*scram)];
    for case in 0..100_000 {
        let stored = secrets[lcg.below(secrets.len())];
        let method = [Method::Plain, Method::Md5, Method::ScramSha256, Method::ScramSha256][lcg.below(4)];
        let damaged = lcg.below(4);
        let mut count = 0;
        let end = meet(login(method, stored), knows("pen"), |body| {
            if count == damaged || lcg.below(20) == 0 {
                lcg.damage(body);
            }
            count += 1;
        });
        assert!(!end.succeeded, "case {case}: {end:?}");
    }
}

#[test]
fn bound_to_the_same_certificate_or_not_at_all() {
    let with = |binding: Option<&[u8]>| Login {
        binding: binding.map(Arc::from),
        ..login(Method::ScramSha256, Some("pencil"))
    };
    let bound = |binding: Option<&[u8]>| Credentials { binding: binding.map(<[u8]>::to_vec), ..knows("pencil") };
    let failed = "SASL authentication failed";
    for (ours, theirs, failure) in [
        (Some(b"hash".as_slice()), Some(b"hash".as_slice()), None),
        (None, Some(b"hash"), None),
        (Some(b"hash"), None, None),
        (None, None, None),
        (Some(b"hash"), Some(b"another"), Some(failed)),
    ] {
        let end = meet(with(ours), bound(theirs), |_| {});
        assert_eq!(end.failure.as_deref(), failure, "{ours:?} {theirs:?}");
        assert_eq!(end.succeeded && end.trusted, failure.is_none(), "{ours:?} {theirs:?}");
    }
}

#[test]
fn an_offer_cannot_be_taken_away_unseen() {
    let login = Login { binding: Some(Arc::from(b"hash".as_slice())), ..login(Method::ScramSha256, Some("pencil")) };
    let who = Credentials { binding: Some(b"hash".to_vec()), ..knows("pencil") };
    let end = meet(login, who, |body| {
        if body.starts_with(b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0") {
            body.drain(4..4 + "SCRAM-SHA-256-PLUS".len() + 1);
        }
    });
    assert!(!end.succeeded);
    assert!(end.log.iter().any(|line| line.starts_with("SCRAM channel binding negotiation error")), "{:?}", end.log);
}
