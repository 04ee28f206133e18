//! A client's login, from its first byte to the login reply.
//!
//! The order of the checks is what clients and log watchers of PgBouncer know: startup message, client limit, database
//! entry, console rules, user, authentication, and only then what must not be told to strangers: whether a user has too many
//! clients is part of that.

use zeroize::Zeroize as _;

use crate::auth::MAX_PASSWORD_BYTES;
use crate::config::CONSOLE_DATABASE;
use crate::disconnect::Disconnect;
use crate::log::{Conn, EACH_TARGET};
use crate::net::stream::ReadResult;
use crate::relay::vars::Vars;
use crate::sys;
use crate::wire::startup::{self, Rules, StartupParams};
use crate::worker::Worker;
use crate::worker::client::{Client, End, Login, Phase};
use crate::worker::replication::Replicating;
use crate::worker::strangers::full;

/// Most bytes kept of somebody who has not logged in: the largest password message and a little.
pub(super) const MAX_RECEIVED: usize = MAX_PASSWORD_BYTES + 1024;

/// Names of databases are cut here in log lines and errors, bytes.
const MAX_REPORTED_DATABASE: usize = 63;

/// What is reported of the name of a database that need not exist.
pub(super) fn reported(database: &str) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&database.as_bytes()[..database.len().min(MAX_REPORTED_DATABASE)])
}

/// What one look at the received bytes came to.
pub(super) enum Next {
    /// Nothing more can be done now.
    Wait,
    /// Look again.
    Again,
}

impl Worker {
    /// The turn of a client that is not logged in.
    pub(super) fn login(&mut self, client: &mut Client) -> Result<(), End> {
        client.stream.flush().map_err(|_| gone())?;
        loop {
            if client.stream.shakes_hands() && !self.client_handshake(client)? {
                return Ok(());
            }
            while let Next::Again = self.login_step(client)? {}
            if client.stream.shakes_hands() {
                continue;
            }
            let Phase::Login(login) = &mut client.phase else { return self.logged_in(client) };
            if login.busy {
                // work for somebody who has gone need not be done
                return Self::still_there(client);
            }
            if !client.stream.readable() {
                return Ok(());
            }
            match client.stream.read(&mut self.scratch.input) {
                ReadResult::Data(n) => {
                    login.received.extend_from_slice(&self.scratch.input[..n]);
                    // it may have been a password
                    self.scratch.input[..n].zeroize();
                    if login.received.len() > MAX_RECEIVED {
                        return Err(Disconnect::silent("bad packet").into());
                    }
                }
                ReadResult::Nothing => return Ok(()),
                ReadResult::Eof | ReadResult::Failed(_) => return Err(gone()),
            }
        }
    }

    /// What came after the login belongs to the session.
    fn logged_in(&mut self, client: &mut Client) -> Result<(), End> {
        match client.phase {
            Phase::Active => self.relay(client),
            Phase::Console(_) => self.console(client),
            _ => Ok(()),
        }
    }

    fn login_step(&mut self, client: &mut Client) -> Result<Next, End> {
        let Phase::Login(login) = &mut client.phase else { return Ok(Next::Wait) };
        if login.busy || login.received.is_empty() {
            return Ok(Next::Wait);
        }
        let max_packet = u32::try_from(self.live.config.settings.max_packet_size).unwrap_or(u32::MAX);
        if login.auth.is_none() && self.begins_with_tls(client) {
            let received = login_mut(client).map(|login| std::mem::take(&mut login.received)).unwrap_or_default();
            self.start_client_tls(client, received)?;
            return Ok(Next::Wait);
        }
        let Phase::Login(login) = &mut client.phase else { return Ok(Next::Wait) };
        let step = startup::next(&login.received, max_packet);
        if login.auth.is_some() {
            return match step {
                startup::Step::Regular { tag, total_len } => self.password(client, tag, total_len),
                startup::Step::NeedMore => Ok(Next::Wait),
                startup::Step::Startup { .. } => Err(Disconnect::fatal("client re-sent startup pkt").into()),
                startup::Step::BadHeader { .. } => Err(step.refusal().unwrap_or_else(bad_packet).into()),
                _ => Err(bad_packet().into()),
            };
        }
        if let Some(refusal) = step.refusal() {
            return Err(refusal.into());
        }
        match step {
            startup::Step::SslRequest { total_len } => {
                if client.stream.tls().is_some() {
                    return Err(Disconnect::silent("SSL req inside SSL").into());
                }
                encryption(login, total_len, "SSL")?;
                let offered = self.offers_tls(client);
                let answer = if offered { b"S" } else { b"N" };
                client.stream.write_bytes(answer).map_err(|_| gone())?;
                if offered {
                    self.start_client_tls(client, Vec::new())?;
                    return Ok(Next::Wait);
                }
                Ok(Next::Again)
            }
            startup::Step::GssEncRequest { total_len } => {
                encryption(login, total_len, "GSSAPI encryption")?;
                client.stream.write_bytes(b"N").map_err(|_| gone())?;
                Ok(Next::Again)
            }
            startup::Step::CancelRequest { key } => self.cancel_request(client, key),
            startup::Step::Startup { minor, body, total_len } => {
                let rest = login.received.split_off(total_len);
                let packet = std::mem::replace(&mut login.received, rest);
                self.startup(client, minor, &packet[body])?;
                Ok(Next::Again)
            }
            _ => Ok(Next::Wait),
        }
    }

    fn startup(&mut self, client: &mut Client, minor: u16, body: &[u8]) -> Result<(), End> {
        if self.lacks_tls(client) {
            return Err(Disconnect::fatal("SSL required").into());
        }
        let params = self.startup_params(client, minor, body)?;
        if self.live.config.settings.verbose.is_some_and(|level| level > 0) {
            self.log_params(client, &params);
        }
        if params.database != CONSOLE_DATABASE && self.is_full() {
            return Err(full());
        }
        client.request_time = self.now;
        let mut out = Vec::new();
        if params.wants_negotiation() {
            params.negotiate(&mut out);
        }
        client.stream.write_bytes(&out).map_err(|_| gone())?;
        client.replicating = Replicating::asked_for(&params);
        client.side.vars = self.interner.intern(Vars::from_values(
            &self.shared.names,
            params.tracked.iter().map(|(index, value)| (*index, value.as_str())),
        ));
        self.identify(client, params)
    }

    /// What the client asks for in its startup message.
    fn log_params(&self, client: &Client, params: &StartupParams) {
        let conn = client.prefix();
        let names = &self.shared.names;
        let tracked = params.tracked.iter().filter_map(|(index, value)| Some((names.name(*index)?, value)));
        for (key, value) in [("user", &params.user), ("database", &params.database)].into_iter().chain(tracked) {
            match key {
                "application_name" => tracing::debug!(conn = %conn, "using application_name: {value}"),
                _ => tracing::debug!(conn = %conn, "got var: {key}={value}"),
            }
        }
    }

    fn startup_params(&self, client: &Client, minor: u16, body: &[u8]) -> Result<StartupParams, End> {
        let settings = &self.live.config.settings;
        let mut ignored: Vec<&str> = tokens(&settings.ignore_startup_parameters).collect();
        if startup::names_database(body, CONSOLE_DATABASE) {
            // sent by drivers unasked, and without any meaning at the console
            ignored.push("extra_float_digits");
        }
        let host =
            settings.application_name_add_host.is_on().then(|| client.peer.for_application_name(&sys::hostname()));
        let names = &self.shared.names;
        let rules = Rules { tracked: &|name| names.index_of(name), ignored: &ignored, add_host: host.as_deref() };
        StartupParams::parse(minor, body, &rules).map_err(|refused| {
            if let Some(warning) = refused.warning {
                tracing::warn!(conn = %client.prefix(), "{warning}");
            }
            refused.disconnect.into()
        })
    }
}

fn login_mut(client: &mut Client) -> Option<&mut Login> {
    match &mut client.phase {
        Phase::Login(login) => Some(login),
        _ => None,
    }
}

/// Takes an encryption request off the received bytes. Each kind is asked for once at most, and nothing may follow before
/// the answer.
fn encryption(login: &mut Login, total_len: usize, what: &str) -> Result<(), End> {
    let asked = if what == "SSL" { &mut login.encryption_requests.ssl } else { &mut login.encryption_requests.gss };
    if std::mem::replace(asked, true) {
        return Err(bad_packet().into());
    }
    if login.received.len() > total_len {
        return Err(Disconnect::fatal(format!("received unencrypted data after {what} request")).into());
    }
    login.received.clear();
    Ok(())
}

/// The words of a list setting, between commas and white space.
pub(crate) fn tokens(list: &str) -> impl Iterator<Item = &str> {
    list.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

fn bad_packet() -> Disconnect {
    Disconnect::silent("bad packet")
}

pub(super) fn gone() -> End {
    Disconnect::silent("client unexpected eof").into()
}

/// Logs that an entry was made from `*`, as a line about the connection that asked for it.
pub(crate) fn log_registered(prefix: impl FnOnce() -> Conn, line: Option<String>) {
    if let Some(line) = line {
        tracing::info!(target: EACH_TARGET, conn = %prefix(), "{line}");
    }
}
