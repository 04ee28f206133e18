//! The login exchange of a client: what it is asked, and whether its answers fit the stored secret.
//!
//! ```text
//! any, trust:     start --> Success | Fail
//! plain, md5:     start --> Password [--> Derive] --> Success | Fail
//! scram-sha-256:  start --> SaslFirst [--> Derive] --> SaslFinal --> Success | Fail
//! md5 with a SCRAM secret: as scram-sha-256
//! ```
//! Somebody unknown gets the same exchange as everybody else, and the same failure at its end. AuthenticationOk is not
//! sent here: it belongs to the login reply.

use std::borrow::Cow;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::decoy::{self, Decoy, Kind};
use super::scram::{
    Derivation, MAX_ITERATIONS, MECHANISM, MECHANISM_PLUS, NONCE_BYTES, SALT_BYTES, SaltedKeys, ScramKeys, Verifier,
    same_key,
};
use super::scram_server::{ClientFirst, Exchange, Offer, WRONG_PASSWORD};
use super::secret::Secret;
use super::{MAX_PASSWORD_BYTES, md5, message, same_secret};
use crate::disconnect::Disconnect;

/// How a client proves who it is. What needs a certificate, peer credentials or another daemon is decided elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Any,
    Trust,
    Plain,
    Md5,
    ScramSha256,
    /// Ask for the password in clear text and hand it to the caller (PAM, LDAP).
    External,
}

/// Random bytes for one login.
#[derive(Clone, Copy)]
pub struct Random {
    pub md5_salt: [u8; 4],
    pub nonce: [u8; NONCE_BYTES],
}

/// Everything that decides a login, looked up before it starts.
pub struct Login<'a> {
    pub method: Method,
    /// The name whose secret it is: it is part of MD5 hashes.
    pub user: &'a str,
    /// None for somebody unknown.
    pub secret: Option<Secret>,
    /// What was derived from the same plain secret before, perhaps with other iterations.
    pub verifier: Option<Arc<Verifier>>,
    /// scram_iterations.
    pub iterations: u32,
    /// What strangers are taken for.
    pub decoy: Decoy,
    /// What SCRAM can be bound to, if there is anything.
    pub binding: Option<Arc<[u8]>>,
    pub random: Random,
}

/// What is to be done next. Bytes for the client have been appended to `out`, and are sent in every case.
pub enum Step {
    /// The client's next message is due.
    Wait,
    /// Run this and give the result to [`ClientAuth::derived`]; read nothing from the client meanwhile.
    Derive(Derivation),
    /// The client's password, for somebody else to judge; the exchange is over. `None`: nobody can have it.
    External(Option<Zeroizing<Vec<u8>>>),
    Success(Proof),
    Fail(Failure),
}

/// A login that succeeded.
#[derive(Default)]
pub struct Proof {
    /// Keys that open servers with the same SCRAM secret.
    pub scram_keys: Option<ScramKeys>,
}

/// A login that failed, and what the log says about it (as errors) beyond the closing reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub disconnect: Disconnect,
    pub log: Vec<Cow<'static, str>>,
}

impl Failure {
    fn fatal(text: &'static str) -> Step {
        Step::Fail(Self { disconnect: Disconnect::fatal(text), log: Vec::new() })
    }

    fn bad_packet() -> Step {
        Step::Fail(Self { disconnect: Disconnect::silent("bad packet"), log: Vec::new() })
    }

    fn sasl(log: impl Into<Cow<'static, str>>) -> Step {
        Step::Fail(Self { disconnect: Disconnect::fatal(SASL_FAILED), log: vec![log.into()] })
    }
}

const SASL_FAILED: &str = "SASL authentication failed";

enum State {
    Password(Challenge),
    /// A clear-text password meets a SCRAM secret.
    PasswordDerived,
    /// A clear-text password is wrong already, and is as slow to fail as others.
    PasswordWrong,
    SaslFirst,
    SaslDerived {
        first: ClientFirst,
        salt: Vec<u8>,
        iterations: u32,
    },
    SaslFinal(Exchange),
    /// Over, or waiting for a result.
    Done,
}

#[derive(Clone, Copy)]
enum Challenge {
    Clear,
    External,
    Md5([u8; 4]),
}

/// One client's exchange. Keep it in a box: it is wanted only while the client logs in.
pub struct ClientAuth {
    user: Box<str>,
    secret: Option<Secret>,
    verifier: Option<Arc<Verifier>>,
    /// A verifier that was made in this exchange.
    made: Option<Arc<Verifier>>,
    iterations: u32,
    decoy: Decoy,
    binding: Option<Arc<[u8]>>,
    random: Random,
    state: State,
}

impl ClientAuth {
    /// Begins the exchange.
    pub fn start(login: Login<'_>, out: &mut Vec<u8>) -> (Self, Step) {
        let Login { method, user, secret, verifier, iterations, decoy, binding, random } = login;
        let iterations = iterations.clamp(1, MAX_ITERATIONS);
        let (user, made, state) = (user.into(), None, State::Done);
        let mut machine = Self { user, secret, verifier, made, iterations, decoy, binding, random, state };
        let step = match method {
            Method::Any => Step::Success(Proof::default()),
            Method::Trust if machine.secret.is_some() => Step::Success(Proof::default()),
            Method::Trust => Failure::fatal("\"trust\" authentication failed"),
            Method::Plain => machine.ask(Challenge::Clear, out),
            Method::External => machine.ask(Challenge::External, out),
            Method::Md5 if machine.kind() != Kind::Scram => machine.ask(Challenge::Md5(random.md5_salt), out),
            Method::Md5 | Method::ScramSha256 => machine.offer_scram(out),
        };
        (machine, step)
    }

    /// The kind of the user's secret; who has none is taken for one of the many.
    fn kind(&self) -> Kind {
        match &self.secret {
            Some(Secret::Plain(_)) => Kind::Plain,
            Some(Secret::Md5(_)) => Kind::Md5,
            Some(Secret::Scram(_)) => Kind::Scram,
            Some(Secret::None) | None => self.decoy.kind,
        }
    }

    fn ask(&mut self, challenge: Challenge, out: &mut Vec<u8>) -> Step {
        match challenge {
            Challenge::Clear | Challenge::External => request(out, 3, b""),
            Challenge::Md5(salt) => request(out, 5, &salt),
        }
        self.state = State::Password(challenge);
        Step::Wait
    }

    /// What the client's proof is checked against. `None`: it has to be derived first.
    fn verifier(&mut self) -> Option<Arc<Verifier>> {
        match &self.secret {
            Some(Secret::Scram(secret)) => Some(Arc::new(secret.into())),
            Some(Secret::Plain(_)) => {
                self.verifier.take().filter(|made| made.is_current(&self.user, self.iterations, &self.decoy.key))
            }
            Some(Secret::Md5(_) | Secret::None) | None => Some(Arc::new(Verifier::mock(&self.user, &self.decoy))),
        }
    }

    fn offer_scram(&mut self, out: &mut Vec<u8>) -> Step {
        let plus = if self.binding.is_some() { format!("{MECHANISM_PLUS}\0") } else { String::new() };
        request(out, 10, format!("{plus}{MECHANISM}\0\0").as_bytes());
        self.state = State::SaslFirst;
        Step::Wait
    }

    /// Is the first message of the client still to come? What counts is what is in force then: [`Self::renew`]. Who is in the
    /// middle of SCRAM goes on with what was, unless that is worth nothing any more: [`Self::forget_secret`].
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        matches!(self.state, State::Password(Challenge::Clear | Challenge::Md5(_)) | State::SaslFirst)
    }

    /// The user's secret has changed in the middle of SCRAM: who knows the one before is not let in.
    pub fn forget_secret(&mut self) {
        self.secret = Some(Secret::None);
    }

    /// The configuration may have changed since the login began, for users and for strangers. `secret` is none where it has not
    /// or is not from there; a `verifier` may have been made meanwhile.
    pub fn renew(&mut self, secret: Option<&Secret>, verifier: Option<Arc<Verifier>>, iterations: u32, decoy: Decoy) {
        if let Some(secret) = secret {
            (self.secret, self.verifier) = (Some(secret.clone()), verifier);
        } else if verifier.is_some() {
            self.verifier = verifier;
        }
        (self.iterations, self.decoy) = (iterations.clamp(1, MAX_ITERATIONS), decoy);
    }

    /// Takes a message of the client: its type and its body without the length.
    pub fn receive(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Step {
        if tag != b'p' {
            self.state = State::Done;
            return Failure::bad_packet();
        }
        match std::mem::replace(&mut self.state, State::Done) {
            State::Password(challenge) => self.password(challenge, body),
            State::SaslFirst => self.sasl_first(body, out),
            State::SaslFinal(exchange) => self.sasl_final(&exchange, body, out),
            State::PasswordDerived | State::PasswordWrong | State::SaslDerived { .. } | State::Done => {
                Failure::bad_packet()
            }
        }
    }

    /// A message of the client is longer than any that makes sense.
    pub fn too_long(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Password(challenge) => Self::impossible(challenge),
            State::SaslFirst | State::SaslFinal(_) => Failure::sasl("malformed SCRAM message (too long)"),
            State::PasswordDerived | State::PasswordWrong | State::SaslDerived { .. } | State::Done => {
                Failure::bad_packet()
            }
        }
    }

    /// Goes on with the keys that were asked for.
    pub fn derived(&mut self, keys: &SaltedKeys, out: &mut Vec<u8>) -> Step {
        match std::mem::replace(&mut self.state, State::Done) {
            State::PasswordDerived => {
                let Some(Secret::Scram(secret)) = &self.secret else { return Failure::fatal(WRONG_PASSWORD) };
                verdict(same_key(&secret.stored_key, &keys.stored_key) & same_key(&secret.server_key, &keys.server_key))
            }
            State::PasswordWrong => Failure::fatal(WRONG_PASSWORD),
            State::SaslDerived { first, salt, iterations } => {
                let verifier = Arc::new(Verifier::derived(keys, salt, iterations));
                self.made = Some(verifier.clone());
                self.challenge(first, verifier, out)
            }
            _ => Failure::bad_packet(),
        }
    }

    /// What this exchange has derived from the user's plain secret, worth keeping for the user's next login even if this one
    /// fails.
    pub fn take_made(&mut self) -> Option<Arc<Verifier>> {
        self.made.take()
    }

    fn password(&mut self, challenge: Challenge, body: &[u8]) -> Step {
        let password = body.iter().position(|&b| b == 0).map(|end| &body[..end]);
        if password.is_some_and(<[u8]>::is_empty) {
            return Failure::fatal("empty password returned by client");
        }
        let possible = password.filter(|password| password.len() <= MAX_PASSWORD_BYTES);
        let Some(password) = possible else { return Self::impossible(challenge) };
        match challenge {
            Challenge::External => Step::External(Some(Zeroizing::new(password.to_vec()))),
            Challenge::Clear => self.clear_text(password),
            Challenge::Md5(salt) => {
                // strangers cost the same work as everybody else
                let expected = md5::answer(self.secret.as_ref().unwrap_or(&Secret::None), &self.user, salt);
                let same = same_secret(expected.unwrap_or_default().as_bytes(), password);
                verdict(same && self.secret.as_ref().is_some_and(|secret| !secret.is_none()))
            }
        }
    }

    /// What is no password, or longer than any.
    fn impossible(challenge: Challenge) -> Step {
        match challenge {
            Challenge::External => Step::External(None),
            Challenge::Clear | Challenge::Md5(_) => Failure::fatal(WRONG_PASSWORD),
        }
    }

    fn clear_text(&mut self, password: &[u8]) -> Step {
        let fits = match &self.secret {
            None | Some(Secret::None) => {
                if self.decoy.kind == Kind::Md5 {
                    // as much work as others have
                    std::hint::black_box(md5::stored(password, &self.user));
                }
                false
            }
            Some(Secret::Plain(stored)) => same_secret(stored, password),
            Some(Secret::Md5(stored)) => same_secret(stored.as_bytes(), md5::stored(password, &self.user).as_bytes()),
            Some(Secret::Scram(secret)) if secret.iterations > MAX_ITERATIONS => false,
            Some(Secret::Scram(secret)) => {
                let (salt, iterations) = (secret.salt.clone(), secret.iterations);
                self.state = State::PasswordDerived;
                return Step::Derive(Derivation { password: Zeroizing::new(password.to_vec()), salt, iterations });
            }
        };
        match self.decoy.clear_text {
            Some(iterations) if !fits => {
                let password = Zeroizing::new(password.to_vec());
                self.state = State::PasswordWrong;
                Step::Derive(Derivation { password, salt: vec![0; SALT_BYTES], iterations })
            }
            _ => verdict(fits),
        }
    }

    fn sasl_first(&mut self, body: &[u8], out: &mut Vec<u8>) -> Step {
        let first = match (initial_response(body, self.binding.is_some()), &self.binding) {
            (Ok((true, data)), Some(binding)) => ClientFirst::parse(data, Offer::Chosen(binding)),
            (Ok((_, data)), Some(_)) => ClientFirst::parse(data, Offer::Declined),
            (Ok((_, data)), None) => ClientFirst::parse(data, Offer::Nothing),
            (Err(step), _) => return step,
        };
        let first = match first {
            Ok(first) => first,
            Err(defect) => return Failure::sasl(defect),
        };
        match (self.verifier(), &self.secret) {
            (Some(verifier), _) => self.challenge(first, verifier, out),
            (None, Some(Secret::Plain(password))) => {
                let password = Zeroizing::new(password.clone());
                let salt = decoy::salt(&self.user, &self.decoy.key, SALT_BYTES);
                let iterations = self.iterations;
                self.state = State::SaslDerived { first, salt: salt.clone(), iterations };
                Step::Derive(Derivation { password, salt, iterations })
            }
            (None, _) => Failure::sasl(WRONG_PASSWORD),
        }
    }

    fn challenge(&mut self, first: ClientFirst, verifier: Arc<Verifier>, out: &mut Vec<u8>) -> Step {
        let exchange = Exchange::begin(first, verifier, &self.random.nonce);
        request(out, 11, exchange.challenge());
        self.state = State::SaslFinal(exchange);
        Step::Wait
    }

    fn sasl_final(&self, exchange: &Exchange, body: &[u8], out: &mut Vec<u8>) -> Step {
        match (exchange.finish(body), &self.secret) {
            (Err(defect), None | Some(Secret::None | Secret::Plain(_) | Secret::Scram(_))) => Failure::sasl(defect),
            (_, Some(Secret::Md5(_))) => Failure::sasl("SCRAM authentication failed: user has MD5 secret"),
            // a stranger's verifier fits no proof, but no login may depend on that alone
            (Ok(_), None | Some(Secret::None)) => Failure::sasl(WRONG_PASSWORD),
            (Ok(proven), Some(Secret::Plain(_) | Secret::Scram(_))) => {
                request(out, 12, proven.server_final.as_bytes());
                Step::Success(Proof { scram_keys: (!exchange.is_derived()).then_some(proven.keys) })
            }
        }
    }
}

fn verdict(fits: bool) -> Step {
    if fits { Step::Success(Proof::default()) } else { Failure::fatal(WRONG_PASSWORD) }
}

/// Appends an AuthenticationRequest message.
fn request(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    message(out, b'R', |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// The client-first message inside a SASLInitialResponse, and whether the mechanism with channel binding was chosen.
fn initial_response(body: &[u8], offered: bool) -> Result<(bool, &[u8]), Step> {
    let incomplete = || Failure::sasl("malformed SCRAM message (incomplete SASLInitialResponse)");
    let end = body.iter().position(|&b| b == 0).ok_or_else(incomplete)?;
    let plus = offered && &body[..end] == MECHANISM_PLUS.as_bytes();
    if !plus && &body[..end] != MECHANISM.as_bytes() {
        return Err(Failure::fatal("client selected an invalid SASL authentication mechanism"));
    }
    let (len, data) = body[end + 1..].split_first_chunk::<4>().ok_or_else(incomplete)?;
    if usize::try_from(u32::from_be_bytes(*len)).is_ok_and(|len| len == data.len()) {
        Ok((plus, data))
    } else {
        Err(Failure::sasl("malformed SCRAM message (length mismatch)"))
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientAuth, Decoy, Kind, Login, Method, Random, Step};
    use crate::auth::decoy::Shape;
    use crate::auth::md5;
    use crate::auth::secret::Secret;

    const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                         wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    const FAILED: &str = "FATAL password authentication failed";
    const NOBODYS: Decoy = Decoy { kind: Kind::Plain, clear_text: None, scram: Shape::derived(100), key: [7; 32] };

    fn login(method: Method, secret: Option<&str>) -> Login<'static> {
        let random = Random { md5_salt: [1, 2, 3, 4], nonce: [0; 18] };
        let secret = secret.map(Secret::classify);
        Login { method, user: "alice", secret, verifier: None, iterations: 100, decoy: NOBODYS, binding: None, random }
    }

    /// Follows a login to its end with one password message; derivations are done on the spot.
    fn end(machine: &mut ClientAuth, step: Step) -> String {
        match step {
            Step::Wait => "wait".into(),
            Step::Derive(work) => {
                let step = machine.derived(&work.run(), &mut Vec::new());
                end(machine, step)
            }
            Step::External(password) => String::from_utf8_lossy(&password.unwrap_or_default()).into_owned(),
            Step::Success(_) => "success".into(),
            Step::Fail(failure) => {
                let kind = if failure.disconnect.tell { "FATAL" } else { "silent" };
                [&[format!("{kind} {}", failure.disconnect.reason).into()], &failure.log[..]].concat().join("|")
            }
        }
    }

    fn run(method: Method, secret: Option<&str>, tag: u8, body: &[u8]) -> String {
        let mut out = Vec::new();
        let (mut machine, step) = ClientAuth::start(login(method, secret), &mut out);
        match step {
            Step::Wait => {
                let step = machine.receive(tag, body, &mut out);
                end(&mut machine, step)
            }
            step => end(&mut machine, step),
        }
    }

    #[test]
    fn every_wrong_password_in_clear_text_costs_the_same_work() {
        for (secret, password, works) in [
            (Some(SCRAM), b"wrong\0".as_slice(), true),
            (Some("plain"), b"wrong\0", true),
            (Some("md5d41d8cd98f00b204e9800998ecf8427e"), b"wrong\0", true),
            (Some(""), b"wrong\0", true),
            (None, b"wrong\0", true),
            (Some("plain"), b"plain\0", false),
        ] {
            let mut out = Vec::new();
            let decoy = Decoy { clear_text: Some(4096), ..NOBODYS };
            let attempt = Login { decoy, ..login(Method::Plain, secret) };
            let (mut machine, _) = ClientAuth::start(attempt, &mut out);
            let step = machine.receive(b'p', password, &mut out);
            let work = matches!(&step, Step::Derive(work) if work.iterations == 4096);
            assert_eq!(work, works, "{secret:?}");
            assert_eq!(end(&mut machine, step), if works { FAILED } else { "success" });
        }
    }

    #[test]
    fn logins_without_an_exchange() {
        for (method, secret, expected) in [
            (Method::Any, None, "success"),
            (Method::Trust, Some("x"), "success"),
            (Method::Trust, Some(""), "success"),
            (Method::Trust, None, "FATAL \"trust\" authentication failed"),
        ] {
            assert_eq!(run(method, secret, b'p', b""), expected, "{method:?} {secret:?}");
        }
    }

    #[test]
    fn challenges() {
        let long_ago = "R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
        for (method, secret, expected) in [
            (Method::Plain, Some("x"), "R\0\0\0\x08\0\0\0\x03"),
            (Method::External, None, "R\0\0\0\x08\0\0\0\x03"),
            (Method::Plain, None, "R\0\0\0\x08\0\0\0\x03"),
            (Method::Md5, Some("x"), "R\0\0\0\x0c\0\0\0\x05\x01\x02\x03\x04"),
            (Method::Md5, None, "R\0\0\0\x0c\0\0\0\x05\x01\x02\x03\x04"),
            (Method::Md5, Some(SCRAM), long_ago),
            (Method::ScramSha256, Some("x"), long_ago),
            (Method::ScramSha256, None, long_ago),
        ] {
            let mut out = Vec::new();
            let (_, step) = ClientAuth::start(login(method, secret), &mut out);
            assert!(matches!(step, Step::Wait));
            assert_eq!(out, expected.as_bytes(), "{method:?} {secret:?}");
        }
    }

    #[test]
    fn strangers_are_asked_what_most_users_are_asked() {
        let usual = Shape { iterations: 9000, salt_bytes: 4 };
        let most_have_scram = Decoy { kind: Kind::Scram, clear_text: Some(9000), scram: usual, key: [7; 32] };
        let first = b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=x";
        let challenge = |method, secret, decoy| {
            let mut out = Vec::new();
            let (mut machine, _) = ClientAuth::start(Login { decoy, ..login(method, secret) }, &mut out);
            if out[8] == 5 {
                return "md5".to_owned();
            }
            out.clear();
            let step = machine.receive(b'p', first, &mut out);
            assert!(matches!(step, Step::Wait));
            let said = String::from_utf8(out[9..].to_vec()).expect("it is text");
            let final_message = format!("c=biws,{},p={}=", said.split(',').next().unwrap_or_default(), "A".repeat(43));
            let step = machine.receive(b'p', final_message.as_bytes(), &mut Vec::new());
            assert!(end(&mut machine, step).starts_with("FATAL SASL authentication failed"), "{secret:?}");
            let salt = said.split(",s=").nth(1).and_then(|rest| rest.split(',').next()).map_or(0, str::len);
            format!("salt of {salt}{}", &said[said.rfind(",i=").expect("iterations")..])
        };
        let (usual, derived) = ("salt of 8,i=9000", "salt of 24,i=100");
        let hashed = "md5d41d8cd98f00b204e9800998ecf8427e";
        for (secret, md5, scram) in [(None, usual, usual), (Some(""), usual, usual), (Some(hashed), "md5", usual)] {
            assert_eq!(challenge(Method::Md5, secret, most_have_scram), md5, "{secret:?}");
            assert_eq!(challenge(Method::ScramSha256, secret, most_have_scram), scram, "{secret:?}");
            assert_eq!(challenge(Method::Md5, secret, NOBODYS), "md5", "{secret:?}");
            assert_eq!(challenge(Method::ScramSha256, secret, NOBODYS), derived, "{secret:?}");
        }
    }

    #[test]
    fn a_derived_verifier_has_the_salt_that_strangers_of_that_name_have() {
        let salt = |secret| {
            let (mut out, attempt) = (Vec::new(), login(Method::ScramSha256, secret));
            let (mut machine, _) = ClientAuth::start(attempt, &mut out);
            out.clear();
            if let Step::Derive(work) = machine.receive(b'p', b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=x", &mut out) {
                machine.derived(&work.run(), &mut out);
            }
            String::from_utf8(out[9..].to_vec()).expect("it is text")
        };
        assert_eq!(salt(Some("pencil")), salt(None));
    }

    #[test]
    fn clear_text_passwords() {
        let hash = md5::stored(b"pencil", "alice");
        for (secret, body, expected) in [
            (Some("pencil"), b"pencil\0".as_slice(), "success"),
            (Some(hash.as_str()), b"pencil\0", "success"),
            (Some(SCRAM), b"pencil\0", "success"),
            (Some("pencil"), b"pencil\0rest", "success"),
            (Some("pencil"), b"Pencil\0", FAILED),
            (Some(&hash), b"pen\0", FAILED),
            (Some(&hash), hash.as_bytes(), FAILED),
            (Some(SCRAM), b"pen\0", FAILED),
            (Some(""), b"x\0", FAILED),
            (None, b"x\0", FAILED),
            (Some("pencil"), b"pencil", FAILED),
            (Some("pencil"), b"", FAILED),
            (Some("pencil"), b"\0", "FATAL empty password returned by client"),
            (None, b"\0", "FATAL empty password returned by client"),
        ] {
            assert_eq!(run(Method::Plain, secret, b'p', body), expected, "{secret:?} {body:?}");
        }
        assert_eq!(run(Method::External, None, b'p', b"word\0"), "word");
        assert_eq!(run(Method::Plain, Some("x"), b'Q', b"x\0"), "silent bad packet");
    }

    #[test]
    fn passwords_up_to_the_limit() {
        for (len, expected) in [(65_530, "success"), (65_531, FAILED)] {
            let word = "x".repeat(len);
            let body = format!("{word}\0");
            assert_eq!(run(Method::Plain, Some(&word), b'p', body.as_bytes()), expected, "{len}");
        }
    }

    #[test]
    fn md5_passwords() {
        let hash = md5::stored(b"pencil", "alice");
        let mut good = md5::answer(&Secret::classify("pencil"), "alice", [1, 2, 3, 4]).unwrap();
        good.push('\0');
        let mut nothing = md5::answer(&Secret::None, "alice", [1, 2, 3, 4]).unwrap();
        nothing.push('\0');
        for (secret, body, expected) in [
            (Some("pencil"), good.as_bytes(), "success"),
            (Some(hash.as_str()), good.as_bytes(), "success"),
            (Some("Pencil"), good.as_bytes(), FAILED),
            (Some("pencil"), b"pencil\0", FAILED),
            (Some(&hash), hash.as_bytes(), FAILED),
            (Some(""), nothing.as_bytes(), FAILED),
            (None, nothing.as_bytes(), FAILED),
            (Some("pencil"), b"\0", "FATAL empty password returned by client"),
        ] {
            assert_eq!(run(Method::Md5, secret, b'p', body), expected, "{secret:?}");
        }
    }

    #[test]
    fn malformed_first_messages() {
        let first = |mechanism: &str, len: u32, data: &str| {
            [mechanism.as_bytes(), b"\0", &len.to_be_bytes(), data.as_bytes()].concat()
        };
        for (body, expected) in [
            (first("SCRAM-SHA-256-PLUS", 0, ""), "FATAL client selected an invalid SASL authentication mechanism"),
            (
                first("SCRAM-SHA-256", 12, "n,,n=,r=abc"),
                "FATAL SASL authentication failed|malformed SCRAM message (length mismatch)",
            ),
            (
                first("SCRAM-SHA-256", u32::MAX, ""),
                "FATAL SASL authentication failed|malformed SCRAM message (length mismatch)",
            ),
            (first("SCRAM-SHA-256", 0, ""), "FATAL SASL authentication failed|malformed SCRAM message (empty message)"),
            (
                b"SCRAM-SHA-256\0\0".to_vec(),
                "FATAL SASL authentication failed|malformed SCRAM message (incomplete SASLInitialResponse)",
            ),
            (
                b"SCRAM-SHA-256".to_vec(),
                "FATAL SASL authentication failed|malformed SCRAM message (incomplete SASLInitialResponse)",
            ),
            (
                first("SCRAM-SHA-256", 11, "p,,n=,r=abc"),
                "FATAL SASL authentication failed|client requires SCRAM channel binding, but it is not supported",
            ),
            (first("SCRAM-SHA-256", 11, "n,,n=,r=abc"), "wait"),
        ] {
            assert_eq!(run(Method::ScramSha256, None, b'p', &body), expected);
        }
    }

    #[test]
    fn the_machine_is_small() {
        assert!(size_of::<ClientAuth>() <= 352, "{}", size_of::<ClientAuth>());
    }
}
