//! From a finished connect to a server that is ready: TLS, startup packet, authentication, connect_query.
//!
//! Protocol chapters "Message Flow" (start-up, SSL session encryption) and "SASL Authentication".

use crate::auth::scram::{Derivation, SaltedKeys};
use crate::auth::secret::Secret;
use crate::auth::server::{Credentials, REFUSAL, ServerAuth, Step};
use crate::disconnect::Disconnect;
use crate::id::ServerId;
use crate::net::stream::{Handshake, ReadResult};
use crate::net::tls::session::Work;
use crate::pool::FailureKind;
use crate::shared::Job;
use crate::wire::encode;
use crate::wire::fields::{ErrorFields, lossy, split_cstr};
use crate::wire::scan::{HEADER_LEN, Item, Scanner};
use crate::wire::tag::backend as be;
use crate::worker::Worker;
use crate::worker::steps::Whose;
use crate::worker::table::Place;
use crate::worker::tls;

use super::{Failed, MAX_RECEIVED, Opening, Progress, Stage, crashed, write};

/// SQLSTATE cannot_connect_now: the server will soon be ready.
const CANNOT_CONNECT_NOW: &[u8] = b"57P03";

impl Worker {
    /// Reads the one byte that answers an SSLRequest. False if it is not there yet.
    pub(super) fn ssl_answer(&mut self, opening: &mut Opening) -> Result<bool, Failed> {
        let Some(stream) = opening.stream.as_mut().filter(|stream| stream.readable()) else { return Ok(false) };
        let read = match stream.read(&mut self.scratch.input) {
            ReadResult::Data(n) => n,
            ReadResult::Nothing => return Ok(false),
            ReadResult::Eof | ReadResult::Failed(_) => return Err(crashed()),
        };
        // what comes after the byte could have been put there by anybody
        if read > 1 {
            return Err(Failed::connect("received unencrypted data after SSL response"));
        }
        // the contexts may have been replaced since the question
        let context = self.live.tls.servers.as_ref();
        match self.scratch.input[0] {
            b'S' => {
                let session = match context.map(|context| context.connect(&opening.host)) {
                    Some(Ok(session)) => session,
                    Some(Err(why)) => return Err(handshake_failed(opening, &why)),
                    None => return Err(Failed::connect("bad sslreq answer")),
                };
                stream.start_tls(session);
                opening.stage = Stage::Handshake;
                Ok(true)
            }
            b'N' if context.is_some_and(|context| context.is_required()) => Err(Failed::connect("server refused SSL")),
            b'N' => {
                self.send_startup(opening)?;
                Ok(true)
            }
            _ => Err(Failed::connect("bad sslreq answer")),
        }
    }

    /// True when the handshake is over.
    pub(super) fn after_server_step(&mut self, opening: &mut Opening, next: Handshake) -> Result<bool, Failed> {
        match next {
            Handshake::Done => {
                if self.live.config.settings.log_connections.is_on() {
                    let info = opening.tls_info().unwrap_or_default();
                    tracing::info!(conn = %opening.prefix(), "SSL established: {info}");
                }
                self.send_startup(opening)?;
                Ok(true)
            }
            Handshake::Wait => Ok(false),
            Handshake::Work(work) => {
                self.push_step(Whose::Server(opening.me), work);
                Ok(false)
            }
            Handshake::Gone => Err(crashed()),
            Handshake::Failed(why) => Err(handshake_failed(opening, &why)),
        }
    }

    /// A step of the handshake with a server was computed.
    pub(in crate::worker) fn server_shook(&mut self, server: ServerId, work: Work) {
        let Place::Opening(mut opening) = self.places.take(server) else { return };
        let Some(stream) = &mut opening.stream else { return };
        let next = stream.worked(work);
        match self.after_server_step(&mut opening, next) {
            Ok(_) => self.advance(opening),
            Err(failed) => self.opening_failed(*opening, failed),
        }
    }

    pub(super) fn send_startup(&mut self, opening: &mut Opening) -> Result<(), Failed> {
        opening.dedicated = self.shared.broker.lock().tie(opening.me);
        let database = &opening.info.database;
        let mut parameters = vec![("database", database.server_dbname())];
        let optional = [
            ("client_encoding", &database.client_encoding),
            ("datestyle", &database.datestyle),
            ("timezone", &database.timezone),
            ("application_name", &database.application_name),
        ];
        parameters.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
        if let Some(dedicated) = &opening.dedicated {
            parameters.extend(dedicated.parameters(&self.shared.names));
        }
        parameters.push(("user", &opening.info.user));
        let mut out = Vec::new();
        encode::startup(&mut out, &parameters);
        let nonce = self.random.take().map_err(|_| crashed())?;
        let credentials = Credentials {
            user: opening.info.user.as_str().into(),
            secret: self.server_secret(opening),
            scram_keys: opening.pool.logins.lock().client_keys.clone(),
            binding: opening.channel_binding(),
        };
        opening.auth = Some(ServerAuth::new(credentials, nonce));
        opening.stage = Stage::Login;
        write(opening, &out)
    }

    /// What the pool's user logs in with: the password that the entry gives for its forced user, the one that PAM or LDAP
    /// accepted, what auth_file has, what auth_query gave.
    fn server_secret(&self, opening: &Opening) -> Secret {
        let info = &opening.info;
        let forced = info.forced.then_some(info.database.password.as_deref()).flatten();
        if let Some(password) = forced.filter(|password| !password.is_empty()) {
            return Secret::classify(password);
        }
        if let Some(accepted) = &opening.pool.logins.lock().accepted {
            return accepted.clone();
        }
        match self.live.users.get(&info.user) {
            Some(user) => user.secret.clone(),
            None => opening.pool.logins.lock().fetched.clone().unwrap_or_default(),
        }
    }

    /// Handles all complete messages that have arrived.
    pub(super) fn login_messages(&mut self, opening: &mut Opening) -> Result<Progress, Failed> {
        if matches!(opening.stage, Stage::Carrying) {
            opening.received.clear();
        }
        let mut received = std::mem::take(&mut opening.received);
        let mut pos = 0;
        let mut done = Progress::Wait;
        while matches!(opening.stage, Stage::Login | Stage::ConnectQuery) {
            let before = pos;
            let item = Scanner::default().next(&received, &mut pos, i32::MAX as u32);
            let item = item.map_err(|_| Failed::connect("bad pkt header"))?;
            let Some(Item::Whole { tag, start, end }) = item else {
                pos = before;
                break;
            };
            if let Progress::Ready = self.login_message(opening, tag, &received[start + 5..end])? {
                done = Progress::Ready;
                break;
            }
        }
        // in place: a long message that comes in small pieces is not copied for each of them
        received.drain(..pos);
        opening.received = received;
        Ok(done)
    }

    fn login_message(&mut self, opening: &mut Opening, tag: u8, body: &[u8]) -> Result<Progress, Failed> {
        let querying = matches!(opening.stage, Stage::ConnectQuery);
        match tag {
            be::AUTHENTICATION if !querying => {
                let mut out = Vec::new();
                let Some(auth) = &mut opening.auth else { return Err(Failed::connect("unknown pkt from server")) };
                let step = auth.receive(body, &mut out);
                return self.server_auth_step(opening, step, &out);
            }
            be::ERROR_RESPONSE if querying => {
                let fields = ErrorFields::parse(body);
                tracing::error!("S: error while executing exec_on_query: {}", fields.text(": "));
            }
            be::ERROR_RESPONSE if opening.dedicated.is_some() => {
                tracing::error!("S: login failed: {}", ErrorFields::parse(body).text(": "));
                return Err(Failed::connect("login failed"));
            }
            be::ERROR_RESPONSE => return Err(refused(body)),
            be::PARAMETER_STATUS => self.server_parameter(opening, body)?,
            be::BACKEND_KEY_DATA if !querying => {
                if let Ok(key) = body.try_into() {
                    opening.cancel_key = key;
                }
            }
            be::READY_FOR_QUERY => {
                if !querying && let Some(step) = opening.auth.as_ref().map(ServerAuth::ready) {
                    self.server_auth_step(opening, step, b"")?;
                }
                let query = opening.info.database.connect_query.clone();
                if let (false, Some(sql)) = (querying, query) {
                    let mut out = Vec::new();
                    encode::query(&mut out, sql.as_bytes());
                    opening.stage = Stage::ConnectQuery;
                    write(opening, &out)?;
                } else {
                    return Ok(Progress::Ready);
                }
            }
            be::NOTICE_RESPONSE | be::NEGOTIATE_PROTOCOL_VERSION => {}
            _ if querying => {}
            _ => {
                tracing::error!(conn = %opening.prefix(), "unknown pkt from server: '{}'", char::from(tag));
                return Err(Failed::connect("unknown pkt from server"));
            }
        }
        Ok(Progress::Wait)
    }

    fn server_parameter(&mut self, opening: &mut Opening, body: &[u8]) -> Result<(), Failed> {
        let Some((name, rest)) = split_cstr(body) else { return Ok(()) };
        let Some((value, _)) = split_cstr(rest) else { return Ok(()) };
        let index = std::str::from_utf8(name).ok().and_then(|name| self.shared.names.index_of(name));
        match (index, std::str::from_utf8(value)) {
            (Some(index), Ok(value)) => opening.vars = opening.vars.with(index, value),
            (Some(_), Err(_)) => {}
            // all of them are kept for the clients' logins
            (None, _) if opening.untracked.len() + HEADER_LEN + body.len() > MAX_RECEIVED => return Err(crashed()),
            (None, _) => encode::parameter_status(&mut opening.untracked, name, value),
        }
        Ok(())
    }

    fn server_auth_step(&mut self, opening: &mut Opening, step: Step, out: &[u8]) -> Result<Progress, Failed> {
        write(opening, out)?;
        match step {
            Step::Wait | Step::Done => Ok(Progress::Wait),
            Step::Derive(derivation) => {
                let known = match &opening.pool.logins.lock().derived {
                    Some((same, keys)) if *same == derivation => Some(keys.clone()),
                    _ => None,
                };
                if let Some(keys) = known {
                    return self.server_keys(opening, &keys);
                }
                opening.stage = Stage::Deriving;
                let _ = self.shared.jobs.send(Job::Server { server: opening.me, worker: self.id, derivation });
                Ok(Progress::Wait)
            }
            Step::Fail(failure) => {
                tracing::error!(conn = %opening.prefix(), "{}", failure.log);
                let relay = failure.told.map(Disconnect::fatal);
                let reason = failure.told.unwrap_or(REFUSAL).to_owned();
                Err(Failed { reason, kind: FailureKind::Login { relay } })
            }
        }
    }

    fn server_keys(&mut self, opening: &mut Opening, keys: &SaltedKeys) -> Result<Progress, Failed> {
        let mut out = Vec::new();
        let Some(auth) = &mut opening.auth else { return Ok(Progress::Wait) };
        let step = auth.derived(keys, &mut out);
        self.server_auth_step(opening, step, &out)
    }

    /// The keys that a server's login asked for.
    pub(in crate::worker) fn server_derived(&mut self, server: ServerId, derivation: Derivation, keys: &SaltedKeys) {
        let Place::Opening(mut opening) = self.places.take(server) else { return };
        opening.pool.logins.lock().derived = Some((derivation, keys.clone()));
        opening.stage = Stage::Login;
        match self.server_keys(&mut opening, keys) {
            Ok(_) => self.advance(opening),
            Err(failed) => self.opening_failed(*opening, failed),
        }
    }
}

/// An ErrorResponse in place of a login.
fn refused(body: &[u8]) -> Failed {
    let fields = ErrorFields::parse(body);
    let (Some(message), Some(_)) = (fields.message, fields.severity) else {
        tracing::warn!("server login failed");
        return Failed { reason: "server login failed".to_owned(), kind: FailureKind::Login { relay: None } };
    };
    tracing::warn!("server login failed: {}", fields.text(" "));
    let text = String::from_utf8_lossy(message).into_owned();
    let sqlstate = lossy(fields.sqlstate.or(Some(b"08P01")));
    let relay = (fields.sqlstate != Some(CANNOT_CONNECT_NOW)).then(|| Disconnect::relayed(sqlstate, text.clone()));
    Failed { reason: text, kind: FailureKind::Login { relay } }
}

/// Logs why a handshake failed.
fn handshake_failed(opening: &Opening, why: &str) -> Failed {
    tracing::warn!(conn = %opening.prefix(), "{}", tls::failure(why));
    crashed()
}
