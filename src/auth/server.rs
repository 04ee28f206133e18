//! The login exchange with a server: answers to its AuthenticationRequest messages.
//!
//! ```text
//! Begin --AuthenticationOk--> Done
//! Begin --clear text, MD5--> Answered --AuthenticationOk--> Done      (clear text again: Answered)
//! Begin --SASL--> Sasl --SASLContinue--> [Derive -->] Proving --SASLFinal--> Verified --AuthenticationOk--> Done
//! ```
//! After a refusal nothing is answered any more. A server that says AuthenticationOk, or that it is ready, in the middle of SCRAM has not
//! shown that it knows the secret, and is refused. So is one that asks without end.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::scram::{Derivation, MECHANISM, MECHANISM_PLUS, NONCE_BYTES, SaltedKeys, ScramKeys};
use super::scram_client::{Binding, Challenge, Exchange};
use super::secret::Secret;
use super::{md5, message};

/// The closing reason of a server whose request was not answered.
pub const REFUSAL: &str = "failed to answer authreq";

/// Who we are to the server.
pub struct Credentials {
    pub user: Box<str>,
    pub secret: Secret,
    /// Keys from a client's own login, for a SCRAM secret.
    pub scram_keys: Option<ScramKeys>,
    /// What SCRAM can be bound to: the server's certificate, if it has shown one that has a hash.
    pub binding: Option<Vec<u8>>,
}

/// What is to be done next; bytes for the server have been appended to `out`.
pub enum Step {
    /// The server's next message is due.
    Wait,
    /// Run this and give the result to [`ServerAuth::derived`].
    Derive(Derivation),
    /// The server let us in.
    Done,
    Fail(Failure),
}

/// Why a server's request is not answered. The connection is closed with [`REFUSAL`].
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// For the log, as an error.
    pub log: Cow<'static, str>,
    /// For clients that wait for a server of this pool.
    pub told: Option<&'static str>,
}

impl Failure {
    fn step(log: impl Into<Cow<'static, str>>, told: Option<&'static str>) -> Step {
        Step::Fail(Self { log: log.into(), told })
    }
}

const WRONG_TYPE: &str = "server login failed: wrong password type";

/// How often the password is given in clear text. PostgreSQL asks again for each module of a PAM stack that wants to know.
const MAX_CLEAR_TEXT: u8 = 8;

/// A salt is told once.
const MAX_MD5: u8 = 1;

enum State {
    Begin,
    /// The password was given so often.
    Answered(u8),
    Sasl(Exchange),
    Deriving(Exchange),
    Proving(Exchange),
    Verified,
    Accepted,
    /// Something was not answered: nothing is, any more.
    Refused,
}

/// One server's exchange.
pub struct ServerAuth {
    credentials: Credentials,
    nonce: [u8; NONCE_BYTES],
    state: State,
}

impl ServerAuth {
    #[must_use]
    pub fn new(credentials: Credentials, nonce: [u8; NONCE_BYTES]) -> Self {
        Self { credentials, nonce, state: State::Begin }
    }

    /// Takes an AuthenticationRequest: the body of an `R` message, from the request code on.
    pub fn receive(&mut self, body: &[u8], out: &mut Vec<u8>) -> Step {
        let Some((code, data)) = body.split_first_chunk::<4>() else {
            return Failure::step("malformed authentication request", None);
        };
        match (u32::from_be_bytes(*code), data) {
            (0, _) => self.accepted(),
            (3, _) => self.clear_text(out),
            (5, data) => self.md5(data, out),
            (10, mechanisms) => self.sasl(mechanisms, out),
            (11, data) => self.sasl_continue(data, out),
            (12, data) => self.sasl_final(data),
            (code, _) => Failure::step(format!("unknown/unsupported auth method: {code}"), None),
        }
    }

    /// Goes on with the keys that were asked for.
    pub fn derived(&mut self, keys: &SaltedKeys, out: &mut Vec<u8>) -> Step {
        match std::mem::replace(&mut self.state, State::Refused) {
            State::Deriving(exchange) => self.prove(exchange, &keys.into(), out),
            _ => Failure::step("protocol error: no SCRAM keys were asked for", None),
        }
    }

    /// The server says that it is ready: has it said before that we may come in?
    #[must_use]
    pub fn ready(&self) -> Step {
        match self.state {
            State::Accepted => Step::Done,
            State::Begin | State::Answered(_) | State::Verified => {
                Failure::step("protocol error: ReadyForQuery before AuthenticationOk", None)
            }
            State::Sasl(_) | State::Deriving(_) | State::Proving(_) | State::Refused => Failure::step(
                "protocol error: ReadyForQuery before AuthenticationSASLFinal",
                Some("server login failed: failed to verify server signature"),
            ),
        }
    }

    fn accepted(&mut self) -> Step {
        match self.state {
            State::Begin | State::Answered(_) | State::Verified | State::Accepted => {
                self.state = State::Accepted;
                Step::Done
            }
            State::Sasl(_) | State::Deriving(_) | State::Proving(_) | State::Refused => Failure::step(
                "protocol error: AuthenticationOk before AuthenticationSASLFinal",
                Some("server login failed: failed to verify server signature"),
            ),
        }
    }

    /// Counts an answer, and says why there is none if there were `most`.
    fn count_answer(&mut self, most: u8) -> Result<(), &'static str> {
        let before = match self.state {
            State::Begin => 0,
            State::Answered(times) => times,
            State::Accepted => return Err("protocol error: password requested after AuthenticationOk"),
            _ => return Err("protocol error: password requested in the middle of SCRAM"),
        };
        if before >= most {
            return Err("protocol error: password requested too often");
        }
        self.state = State::Answered(before + 1);
        Ok(())
    }

    fn clear_text(&mut self, out: &mut Vec<u8>) -> Step {
        match self.count_answer(MAX_CLEAR_TEXT) {
            Ok(()) => answer(out, self.credentials.secret.bytes()),
            Err(why) => Failure::step(why, None),
        }
    }

    fn md5(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step {
        if let Err(why) = self.count_answer(MAX_MD5) {
            return Failure::step(why, None);
        }
        let Ok(salt) = data.try_into() else { return Failure::step("malformed authentication request", None) };
        match md5::answer(&self.credentials.secret, &self.credentials.user, salt) {
            Some(text) => answer(out, text.as_bytes()),
            None => Failure::step("cannot do MD5 authentication: wrong password type", Some(WRONG_TYPE)),
        }
    }

    fn sasl(&mut self, mechanisms: &[u8], out: &mut Vec<u8>) -> Step {
        match self.state {
            State::Begin => {}
            State::Answered(_) => return Failure::step("protocol error: SCRAM requested after a password", None),
            State::Accepted => return Failure::step("protocol error: SCRAM requested after AuthenticationOk", None),
            _ => return Failure::step("protocol error: duplicate AuthenticationSASL request", None),
        }
        let offers = |mechanism: &str| {
            let mut names = mechanisms.split(|&b| b == 0).take_while(|name| !name.is_empty());
            names.any(|name| name == mechanism.as_bytes())
        };
        let bound = self.credentials.binding.as_deref().filter(|_| offers(MECHANISM_PLUS));
        if bound.is_none() && !offers(MECHANISM) {
            return Failure::step(
                "none of the server's SASL authentication mechanisms are supported",
                Some("server login failed: none of the server's SASL authentication mechanisms are supported"),
            );
        }
        match (&self.credentials.secret, &self.credentials.scram_keys) {
            (Secret::Md5(_), _) => {
                return Failure::step("cannot do SCRAM authentication: wrong password type", Some(WRONG_TYPE));
            }
            (Secret::Scram(_), None) => {
                return Failure::step(
                    "cannot do SCRAM authentication: password is SCRAM secret but client authentication did not \
                     provide SCRAM keys",
                    Some(WRONG_TYPE),
                );
            }
            (Secret::None | Secret::Plain(_), _) | (Secret::Scram(_), Some(_)) => {}
        }
        let (mechanism, binding) = match (bound, &self.credentials.binding) {
            (Some(data), _) => (MECHANISM_PLUS, Binding::Bound(data)),
            // if the server did offer it, it learns here that somebody took that away
            (None, Some(_)) if !offers(MECHANISM_PLUS) => (MECHANISM, Binding::NotOffered),
            (None, _) => (MECHANISM, Binding::Impossible),
        };
        let exchange = Exchange::new(&self.nonce, binding);
        let first = exchange.first();
        message(out, b'p', |out| {
            out.extend_from_slice(mechanism.as_bytes());
            out.push(0);
            let len = u32::try_from(first.len()).expect("the message holds one nonce of fixed length");
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(first.as_bytes());
        });
        self.state = State::Sasl(exchange);
        Step::Wait
    }

    fn sasl_continue(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let State::Sasl(mut exchange) = std::mem::replace(&mut self.state, State::Refused) else {
            return Failure::step("protocol error: AuthenticationSASLContinue without prior AuthenticationSASL", None);
        };
        let Challenge { salt, iterations } = match exchange.challenged(data) {
            Ok(challenge) => challenge,
            Err(defect) => return Failure::step(defect, None),
        };
        match (&self.credentials.secret, &self.credentials.scram_keys) {
            // keys stay good for the pool whatever becomes of the record in auth_file
            (Secret::Scram(_) | Secret::None, Some(keys)) => {
                let keys = keys.clone();
                self.prove(exchange, &keys, out)
            }
            (secret, _) => {
                let password = Zeroizing::new(secret.bytes().to_vec());
                self.state = State::Deriving(exchange);
                Step::Derive(Derivation { password, salt, iterations })
            }
        }
    }

    fn prove(&mut self, mut exchange: Exchange, keys: &ScramKeys, out: &mut Vec<u8>) -> Step {
        let proof = exchange.prove(keys);
        message(out, b'p', |out| out.extend_from_slice(&proof));
        self.state = State::Proving(exchange);
        Step::Wait
    }

    fn sasl_final(&mut self, data: &[u8]) -> Step {
        let State::Proving(exchange) = &self.state else {
            return Failure::step(
                "protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue",
                None,
            );
        };
        match exchange.verify(data) {
            Ok(true) => {
                self.state = State::Verified;
                Step::Wait
            }
            Ok(false) => {
                Failure::step("invalid server signature", Some("server login failed: invalid server signature"))
            }
            Err(defect) => Failure::step(defect, Some("server login failed: failed to verify server signature")),
        }
    }
}

/// Appends a PasswordMessage.
fn answer(out: &mut Vec<u8>, password: &[u8]) -> Step {
    message(out, b'p', |out| {
        out.extend_from_slice(password);
        out.push(0);
    });
    Step::Wait
}

#[cfg(test)]
mod tests {
    use super::{Credentials, Failure, ServerAuth, Step};
    use crate::auth::scram::ScramKeys;
    use crate::auth::secret::Secret;

    const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                         wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    /// `secret` of `alice`.
    const MD5: &str = "md54a0a68b43b6cd5cf266fa02f196e2371";

    fn machine(secret: &str) -> ServerAuth {
        let credentials =
            Credentials { user: "alice".into(), secret: Secret::classify(secret), scram_keys: None, binding: None };
        ServerAuth::new(credentials, [0; 18])
    }

    fn answer(secret: &str, request: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut out = Vec::new();
        match machine(secret).receive(request, &mut out) {
            Step::Wait | Step::Done => Ok(out),
            Step::Derive(_) => panic!("nothing to derive yet"),
            Step::Fail(failure) => Err(failure),
        }
    }

    fn sasl(mechanisms: &[u8]) -> Vec<u8> {
        [b"\0\0\0\x0a", mechanisms].concat()
    }

    #[test]
    fn passwords_in_clear_text() {
        assert_eq!(answer("secret", b"\0\0\0\x03").unwrap(), b"p\0\0\0\x0bsecret\0");
        assert_eq!(answer("", b"\0\0\0\x03").unwrap(), b"p\0\0\0\x05\0");
        assert!(answer(SCRAM, b"\0\0\0\x03").unwrap().ends_with(b"l2dU=\0"));
        let long = "x".repeat(65_530);
        assert_eq!(answer(&long, b"\0\0\0\x03").unwrap().len(), 65_536);
    }

    /// What the last of several requests comes to.
    fn last_of(requests: &[&[u8]]) -> Result<Vec<u8>, Failure> {
        let (mut auth, mut out) = (machine("secret"), Vec::new());
        let (last, before) = requests.split_last().expect("some");
        for request in before {
            assert!(matches!(auth.receive(request, &mut out), Step::Wait), "{request:?}");
        }
        out.clear();
        match auth.receive(last, &mut out) {
            Step::Wait | Step::Done => Ok(out),
            Step::Derive(_) => panic!("nothing to derive yet"),
            Step::Fail(failure) => Err(failure),
        }
    }

    #[test]
    fn a_password_is_not_given_without_end() {
        const CLEAR: &[u8] = b"\0\0\0\x03";
        const MD5: &[u8] = b"\0\0\0\x05abcd";
        const OK: &[u8] = &[0; 4];
        let scram = sasl(b"SCRAM-SHA-256\0\0");
        for requests in [&[OK][..], &[CLEAR, OK], &[MD5, OK], &[CLEAR, CLEAR, OK]] {
            assert_eq!(last_of(requests).unwrap(), b"", "{requests:?}");
        }
        assert_eq!(last_of(&[CLEAR; 8]).unwrap(), b"p\0\0\0\x0bsecret\0");
        for requests in [&[CLEAR; 9][..], &[MD5, MD5], &[CLEAR, MD5]] {
            let failure = last_of(requests).unwrap_err();
            assert_eq!(failure.log, "protocol error: password requested too often", "{requests:?}");
        }
        let failure = last_of(&[&scram, &scram]).unwrap_err();
        assert_eq!(failure.log, "protocol error: duplicate AuthenticationSASL request");
        for first in [CLEAR, MD5] {
            let failure = last_of(&[first, &scram]).unwrap_err();
            assert_eq!(failure.log, "protocol error: SCRAM requested after a password");
        }
    }

    #[test]
    fn a_hash_is_as_good_as_the_password_for_md5() {
        let salted = answer("secret", b"\0\0\0\x05\x01\x02\x03\x04").unwrap();
        assert!(salted.starts_with(b"p\0\0\0\x28md5") && salted.len() == 41);
        assert_eq!(answer(MD5, b"\0\0\0\x05\x01\x02\x03\x04").unwrap(), salted);
    }

    #[test]
    fn refusals() {
        let wrong_type = Some("server login failed: wrong password type");
        let no_keys = "cannot do SCRAM authentication: password is SCRAM secret but client authentication did not \
                       provide SCRAM keys";
        let none = "none of the server's SASL authentication mechanisms are supported";
        let told = Some("server login failed: none of the server's SASL authentication mechanisms are supported");
        for (secret, request, log, told) in [
            (SCRAM, b"\0\0\0\x05abcd".to_vec(), "cannot do MD5 authentication: wrong password type", wrong_type),
            (MD5, sasl(b"SCRAM-SHA-256\0\0"), "cannot do SCRAM authentication: wrong password type", wrong_type),
            (SCRAM, sasl(b"SCRAM-SHA-256\0\0"), no_keys, wrong_type),
            ("x", sasl(b"SCRAM-SHA-256-PLUS\0\0"), none, told),
            ("x", sasl(b"\0SCRAM-SHA-256\0\0"), none, told),
            ("x", sasl(b""), none, told),
            ("x", b"\0\0\0\x07".to_vec(), "unknown/unsupported auth method: 7", None),
            ("x", b"\xff\xff\xff\xff".to_vec(), "unknown/unsupported auth method: 4294967295", None),
            ("x", b"\0\0\0".to_vec(), "malformed authentication request", None),
            ("x", b"\0\0\0\x05abc".to_vec(), "malformed authentication request", None),
            (
                "x",
                b"\0\0\0\x0br=".to_vec(),
                "protocol error: AuthenticationSASLContinue without prior AuthenticationSASL",
                None,
            ),
            (
                "x",
                b"\0\0\0\x0cv=".to_vec(),
                "protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue",
                None,
            ),
        ] {
            assert_eq!(answer(secret, &request).unwrap_err(), Failure { log: log.into(), told }, "{secret}");
        }
    }

    #[test]
    fn the_first_message_names_nobody() {
        let out = answer("x", &sasl(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")).unwrap();
        let expected = [b"p\0\0\0\x36SCRAM-SHA-256\0\0\0\0\x20n,,n=,r=".as_slice(), &[b'A'; 24]].concat();
        assert_eq!(out, expected);
    }

    #[test]
    fn the_first_message_says_what_it_is_bound_to() {
        let both = sasl(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let first = |binding: Option<&[u8]>, offer: &[u8]| {
            let mut auth = machine("x");
            auth.credentials.binding = binding.map(<[u8]>::to_vec);
            let mut out = Vec::new();
            assert!(matches!(auth.receive(offer, &mut out), Step::Wait));
            String::from_utf8_lossy(&out[5..]).replace('\0', " ")
        };
        let bound = first(Some(b"hash"), &both);
        assert!(bound.starts_with("SCRAM-SHA-256-PLUS ") && bound.contains("p=tls-server-end-point,,n=,r="), "{bound}");
        assert!(first(Some(b"hash"), &sasl(b"SCRAM-SHA-256-PLUS\0\0")).starts_with("SCRAM-SHA-256-PLUS "));
        let unknown = first(Some(b"hash"), &sasl(b"SCRAM-SHA-256\0\0"));
        assert!(unknown.starts_with("SCRAM-SHA-256 ") && unknown.contains("y,,n=,r="), "{unknown}");
        assert!(first(None, &both).contains("n,,n=,r="));
    }

    #[test]
    fn a_server_must_prove_itself_before_it_may_agree() {
        let mut auth = machine(SCRAM);
        auth.credentials.scram_keys = Some(ScramKeys { client_key: [1; 32], server_key: [2; 32] });
        let mut out = Vec::new();
        assert!(matches!(auth.receive(&sasl(b"SCRAM-SHA-256\0\0"), &mut out), Step::Wait));
        let unsigned = Some("server login failed: failed to verify server signature");
        let Step::Fail(failure) = auth.receive(&[0; 4], &mut out) else { panic!("believed") };
        assert_eq!(failure.told, unsigned);
        let challenge = [b"\0\0\0\x0br=".as_slice(), &[b'A'; 24], b"xyz,s=AAAA,i=4096"].concat();
        assert!(matches!(auth.receive(&challenge, &mut out), Step::Wait));
        let Step::Fail(failure) = auth.receive(b"\0\0\0\x03", &mut out) else { panic!("password given away") };
        assert_eq!(failure.log, "protocol error: password requested in the middle of SCRAM");
        let wrong = b"\0\0\0\x0cv=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let Step::Fail(failure) = auth.receive(wrong, &mut out) else { panic!("believed") };
        assert_eq!(
            failure,
            Failure {
                log: "invalid server signature".into(),
                told: Some("server login failed: invalid server signature")
            }
        );
        let Step::Fail(failure) = auth.receive(b"\0\0\0\x0cv=", &mut out) else { panic!("believed") };
        assert_eq!(failure.told, unsigned);
        assert!(matches!(auth.receive(&[0; 4], &mut out), Step::Fail(_)));
    }
}
