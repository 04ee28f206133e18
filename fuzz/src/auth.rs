//! Login machines, both directions, what a server says about a user, certificates.

use std::sync::Arc;

use pgusher::auth::client::{ClientAuth, Login, Method, Random, Step as ClientStep};
use pgusher::auth::decoy::{Decoy, Kind, Shape};
use pgusher::auth::issuer::Issuer;
use pgusher::auth::server::{Credentials, ServerAuth, Step as ServerStep};
use pgusher::auth::{certificate as der, lookup, md5, scram::derive, secret::Secret};

use super::bytes::{Bytes, said, whole_messages};

const USER: &str = "ann";
const PASSWORD: &str = "correct-horse";
const MD5: &str = "md5cbc35bc2769ad88f325209538d794435";
/// Two iterations, for speed.
const SCRAM: &str = "SCRAM-SHA-256$2:MDEyMzQ1Njc4OWFiY2RlZg==$H64NAYTtU+Y2sVMgmj20m6yxEHHe+IglKtOFjSAqYz0=:\
                     iR28dIlH28roqz3WdIZ7Qbh2HqxRGg1C0stLnNr8gBk=";
const SALT: [u8; 4] = *b"salt";

fn machine(
    method: Method,
    secret: Option<Secret>,
    decoy: bool,
    bound: bool,
    out: &mut Vec<u8>,
) -> (ClientAuth, ClientStep) {
    let login = Login {
        method,
        user: USER,
        secret,
        verifier: None,
        iterations: 2,
        decoy: Decoy {
            kind: if decoy { Kind::Scram } else { Kind::Plain },
            clear_text: decoy.then_some(2),
            scram: Shape::derived(2),
            key: [9; 32],
        },
        binding: bound.then(|| Arc::from(&b"certificate"[..])),
        random: Random { md5_salt: SALT, nonce: [7; 18] },
    };
    ClientAuth::start(login, out)
}

/// What SCRAM makes of a password that may end with a NUL: characters that SASLprep leaves out make no difference.
fn prepared(password: &[u8]) -> [u8; 32] {
    let end = password.iter().position(|byte| *byte == 0).unwrap_or(password.len());
    derive(&password[..end], b"salt", 1).stored_key
}

/// A stranger's messages: he is let in for knowing the secret, or where nobody is asked for it.
pub(crate) fn login(data: &[u8]) {
    let mut from = Bytes(data);
    let flags = from.one();
    let which = usize::from(flags & 7) % 6;
    let method = [Method::Any, Method::Trust, Method::Plain, Method::Md5, Method::ScramSha256, Method::External][which];
    let secret = match from.one() % 5 {
        0 => None,
        1 => Some(Secret::None),
        2 => Some(Secret::classify(PASSWORD)),
        3 => Some(Secret::classify(MD5)),
        _ => Some(Secret::classify(SCRAM)),
    };
    let known = secret.as_ref().is_some_and(|secret| !secret.is_none());
    let expected = secret.as_ref().and_then(|secret| md5::answer(secret, USER, SALT));
    let (is_some, is_scram) = (secret.is_some(), matches!(secret, Some(Secret::Scram(_))));
    let mut out = Vec::new();
    let (mut machine, mut step) = machine(method, secret, flags & 64 != 0, flags & 128 != 0, &mut out);
    let mut body: &[u8] = b"";
    for _ in 0..8 {
        whole_messages(&out);
        step = match step {
            ClientStep::Derive(derivation) => {
                assert!(derivation.iterations == 2);
                machine.derived(&derivation.run(), &mut out)
            }
            ClientStep::Success(_) => {
                let said = |password: &str| {
                    body.strip_prefix(password.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
                };
                let proved = match which {
                    0 => true,
                    1 => is_some,
                    2 => known && (said(PASSWORD) || is_scram && prepared(body) == prepared(PASSWORD.as_bytes())),
                    3 => known && expected.as_deref().is_some_and(said),
                    // nobody can sign without the key, and this input does not know it
                    _ => false,
                };
                assert!(proved, "let in by method {which}");
                return;
            }
            ClientStep::Fail(_) => {
                let again = machine.receive(b'p', body, &mut out);
                assert!(matches!(again, ClientStep::Fail(_)), "a second chance");
                return;
            }
            ClientStep::External(password) => {
                assert!(which == 5);
                assert!(password.is_none_or(|password| body.starts_with(&password) && !password.is_empty()));
                return;
            }
            ClientStep::Wait if from.0.is_empty() => return,
            ClientStep::Wait => {
                let tag = if from.one() < 250 { b'p' } else { b'Q' };
                body = from.stretch();
                machine.receive(tag, body, &mut out)
            }
        };
    }
}

/// A change to a message on its way.
fn damaged(message: &[u8], from: &mut Bytes<'_>) -> Vec<u8> {
    let mut message = message.to_vec();
    for _ in 0..from.one() % 4 {
        let (kind, at, byte) = (from.one() % 4, usize::from(from.one()), from.one());
        let at = at.min(message.len());
        match kind {
            0 if at < message.len() => message[at] = byte,
            1 => message.insert(at, byte),
            2 if at < message.len() => drop(message.remove(at)),
            3 => message.truncate(at),
            _ => {}
        }
    }
    message
}

/// Did damage change what a message says? As at PostgreSQL, the unused bits of the last digit in base64 mean nothing, nor does a
/// comma behind a last message, which nobody signs.
fn changed(message: &[u8], got: &[u8]) -> bool {
    let is_last = message.starts_with(b"c=") || message.starts_with(&[0, 0, 0, 12]);
    let got = got.strip_suffix(b",").filter(|_| is_last).unwrap_or(got);
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |byte: &u8| DIGITS.iter().position(|digit| digit == byte);
    match (message, got) {
        ([same @ .., one, b'='], [alike @ .., other, b'=']) if same == alike => {
            digit(other).is_none() || digit(one).map(|n| n >> 2) != digit(other).map(|n| n >> 2)
        }
        _ => message != got,
    }
}

/// Both machines talk to each other, and somebody in the middle changes what one of them says.
fn exchange(data: &[u8], whose: u8) {
    let mut from = Bytes(data);
    let flags = from.one();
    let bound = flags & 1 != 0;
    let secret = if flags & 2 == 0 { SCRAM } else { PASSWORD };
    let mut to_client = Vec::new();
    let (mut server, _) = machine(Method::ScramSha256, Some(Secret::classify(secret)), false, bound, &mut to_client);
    let credentials = Credentials {
        user: USER.into(),
        secret: Secret::classify(PASSWORD),
        scram_keys: None,
        binding: bound.then(|| b"certificate".to_vec()),
    };
    let mut client = ServerAuth::new(credentials, [9; 18]);
    let (mut client_changed, mut server_changed, mut let_in, mut began) = (false, false, false, false);
    for _ in 0..4 {
        let mut to_server = Vec::new();
        for (_, body) in whole_messages(&std::mem::take(&mut to_client)) {
            let got = if whose == b'S' { damaged(body, &mut from) } else { body.to_vec() };
            // the list of methods may be longer or shorter, and nothing counts behind the last word
            server_changed |= !matches!(body, [0, 0, 0, 0 | 10, ..]) && changed(body, &got);
            let mut step = client.receive(&got, &mut to_server);
            began |= got.starts_with(&[0, 0, 0, 10]) && matches!(step, ServerStep::Wait);
            if let ServerStep::Derive(derivation) = step {
                if derivation.iterations > 64 {
                    return;
                }
                step = client.derived(&derivation.run(), &mut to_server);
            }
            match step {
                ServerStep::Done => {
                    // a server may ask for something else than SCRAM, or for nothing
                    assert!(!began || (!server_changed && let_in), "a server that has not proved itself is believed");
                    return;
                }
                ServerStep::Fail(_) => return,
                ServerStep::Wait | ServerStep::Derive(_) => {}
            }
        }
        for (tag, body) in whole_messages(&to_server) {
            let got = if whose == b'C' { damaged(body, &mut from) } else { body.to_vec() };
            client_changed |= changed(body, &got);
            let mut step = server.receive(tag, &got, &mut to_client);
            if let ClientStep::Derive(derivation) = step {
                step = server.derived(&derivation.run(), &mut to_client);
            }
            match step {
                ClientStep::Success(proof) => {
                    assert!(!client_changed, "a changed message is believed");
                    assert!(!server_changed, "an answer to a changed challenge is believed");
                    assert_eq!(proof.scram_keys.is_some(), secret == SCRAM);
                    let_in = true;
                    to_client.extend_from_slice(b"R\0\0\0\x08\0\0\0\0");
                }
                ClientStep::Fail(_) => {
                    let changed = client_changed || server_changed || whose == b'S';
                    assert!(changed, "an honest client is refused");
                    return;
                }
                _ => {}
            }
        }
    }
    assert!(client_changed || whose == b'S', "an honest exchange does not end");
}

pub(crate) fn scram_server(data: &[u8]) {
    exchange(data, b'C');
}

pub(crate) fn scram_client(data: &[u8]) {
    exchange(data, b'S');
    // a server that says whatever it likes
    let secret = [Secret::classify(PASSWORD), Secret::classify(SCRAM), Secret::classify(MD5), Secret::None];
    let (mut from, mut out) = (Bytes(data), Vec::new());
    let secret = secret[usize::from(from.one() & 3)].clone();
    let mut client =
        ServerAuth::new(Credentials { user: USER.into(), secret, scram_keys: None, binding: None }, [9; 18]);
    let mut began_sasl = None;
    while !from.0.is_empty() {
        let code = from.one();
        let body = [&[0, 0, 0, code][..], from.stretch()].concat();
        match client.receive(&body, &mut out) {
            ServerStep::Wait if code == 10 => began_sasl = began_sasl.or(Some(out.len())),
            ServerStep::Wait => {}
            ServerStep::Done => {
                assert!(began_sasl.is_none(), "believed in the middle of SCRAM");
                break;
            }
            ServerStep::Fail(_) | ServerStep::Derive(_) => break,
        }
    }
    let hears = whole_messages(&out);
    assert!(hears.iter().all(|(tag, _)| *tag == b'p'));
    let later = whole_messages(&out[began_sasl.unwrap_or(out.len())..]);
    let tells = later.iter().any(|(_, body)| body.starts_with(PASSWORD.as_bytes()));
    assert!(!tells, "the password in clear text in the middle of SCRAM");
}

/// The answer to an auth_query, as a server gives it.
pub(crate) fn auth_query(data: &[u8]) {
    let (messages, _) = said(data);
    let mut answer = lookup::Answer::default();
    let mut rows = 0;
    for (tag, body) in messages {
        rows += usize::from(tag == b'D');
        match answer.receive(tag, body) {
            Ok(lookup::Progress::More) => {}
            Ok(lookup::Progress::Found(row)) => {
                assert!(rows > 0 && tag == b'Z');
                assert!(row.user.len() <= 127 && row.secret.bytes().len() <= 65_530);
                return;
            }
            Ok(lookup::Progress::NoRow) => {
                assert!(tag == b'Z');
                return;
            }
            Err(defect) => {
                assert!(!defect.reason.is_empty());
                return;
            }
        }
    }
}

/// What a client shows as its certificate before anybody has judged it.
pub(crate) fn certificate(data: &[u8]) {
    if let Some(names) = der::names(data) {
        let _ = names.is_for("ann");
    }
    if let Some(hash) = der::end_point(data) {
        assert!(matches!(hash.len(), 32 | 48 | 64));
    }
    if let Some(key) = der::public_key(data) {
        assert!(key.len() <= data.len());
        if let Some((algorithm, bits)) = der::key_parts(&key) {
            assert!(algorithm.len() + bits.len() <= key.len());
        }
    }
    let _ = der::key_parts(data);
    let _ = der::check_validity(data, 1_700_000_000);
    let _ = der::plainly_issued(data);
    let host = der::common_host(data);
    for purpose in [der::Purpose::Server, der::Purpose::Client] {
        let _ = der::is_usable(data, purpose);
        if let Some(issuer) = Issuer::read(data) {
            let _ = (issuer.may_issue(), issuer.is_for(purpose), issuer.allows(1), issuer.is_plain());
            let _ = (issuer.check_validity(1_700_000_000), host.as_deref().map(|host| issuer.vouches_for(host)));
        }
    }
    let _ = der::issued(data);
    if let Some(subject) = der::subject(data) {
        assert!(subject.len() <= data.len());
    }
}
