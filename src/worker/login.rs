//! A client's login, from its first byte to the login reply.
//!
//! The order of the checks is what clients and log watchers of PgBouncer know: startup message, client limit, database
//! entry, console rules, user, limits, authentication, and only then what must not be told to strangers.

use std::sync::atomic::Ordering;

use crate::admin::command::Rights;
use crate::auth::client::{ClientAuth, Login as Attempt, Method, Random, Step};
use crate::auth::scram::SaltedKeys;
use crate::auth::secret::Secret;
use crate::auth::{MAX_PASSWORD_BYTES, MAX_USER_BYTES};
use crate::config::{AuthType, CONSOLE_DATABASE, effective};
use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::net::stream::ReadResult;
use crate::pool::{Checkout, ShutdownMode, WaitFor, Want};
use crate::relay::cancel::CancelKey;
use crate::relay::vars::Vars;
use crate::shared::{Job, UserSecret};
use crate::sys;
use crate::wire::startup::{self, Replication, Rules, StartupParams};
use crate::worker::Worker;
use crate::worker::client::{Client, Console, End, Login, Phase};
use crate::worker::peer::PeerAddr;

/// Most bytes kept of somebody who has not logged in: the largest password message and a little.
const MAX_RECEIVED: usize = MAX_PASSWORD_BYTES + 1024;

/// Names of databases are cut here in log lines and errors, bytes.
const MAX_REPORTED_DATABASE: usize = 63;

/// What is reported of the name of a database that need not exist.
fn reported(database: &str) -> std::borrow::Cow<'_, str> {
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
            while let Next::Again = self.login_step(client)? {}
            let Phase::Login(login) = &mut client.phase else { return self.logged_in(client) };
            if login.deriving || !client.stream.readable() {
                return Ok(());
            }
            match client.stream.read(&mut self.scratch.input) {
                ReadResult::Data(n) => {
                    login.received.extend_from_slice(&self.scratch.input[..n]);
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
        if login.deriving || login.received.is_empty() {
            return Ok(Next::Wait);
        }
        let max_packet = u32::try_from(self.live.config.settings.max_packet_size).unwrap_or(u32::MAX);
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
                encryption(login, total_len, "SSL")?;
                client.stream.write_bytes(b"N").map_err(|_| gone())?;
                Ok(Next::Again)
            }
            startup::Step::GssEncRequest { total_len } => {
                encryption(login, total_len, "GSSAPI encryption")?;
                client.stream.write_bytes(b"N").map_err(|_| gone())?;
                Ok(Next::Again)
            }
            startup::Step::CancelRequest { key } => self.cancel_request(client, key),
            startup::Step::Startup { minor, body, total_len } => {
                let packet: Vec<u8> = login.received.drain(..total_len).collect();
                self.startup(client, minor, &packet[body])?;
                Ok(Next::Again)
            }
            _ => Ok(Next::Wait),
        }
    }

    fn startup(&mut self, client: &mut Client, minor: u16, body: &[u8]) -> Result<(), End> {
        let params = self.startup_params(client, minor, body)?;
        let settings = &self.live.config.settings;
        let limit = usize::try_from(settings.max_client_conn).unwrap_or(0);
        if params.database != CONSOLE_DATABASE && self.shared.clients.load(Ordering::Relaxed) > limit {
            return Err(Disconnect::fatal("no more connections allowed (max_client_conn)").into());
        }
        let mut out = Vec::new();
        if params.wants_negotiation() {
            params.negotiate(&mut out);
        }
        client.stream.write_bytes(&out).map_err(|_| gone())?;
        if params.replication != Replication::None {
            return Err(Disconnect::fatal("replication connections are not supported by this build").into());
        }
        client.side.vars = self.interner.intern(Vars::from_values(
            &self.shared.names,
            params.tracked.iter().map(|(index, value)| (*index, value.as_str())),
        ));
        if params.database == CONSOLE_DATABASE {
            return self.console_login(client, params);
        }
        self.database_login(client, params)
    }

    fn startup_params(&self, client: &Client, minor: u16, body: &[u8]) -> Result<StartupParams, End> {
        let settings = &self.live.config.settings;
        let ignored: Vec<String> = tokens(&settings.ignore_startup_parameters).map(str::to_owned).collect();
        let host = settings.application_name_add_host.then(|| client.peer.for_application_name(&sys::hostname()));
        let names = &self.shared.names;
        let rules = Rules { tracked: &|name| names.index_of(name), ignored: &ignored, add_host: host.as_deref() };
        StartupParams::parse(minor, body, &rules).map_err(|refused| {
            if let Some(warning) = refused.warning {
                tracing::warn!("{}{warning}", client.prefix());
            }
            refused.disconnect.into()
        })
    }

    /// A login to an ordinary database.
    fn database_login(&mut self, client: &mut Client, params: StartupParams) -> Result<(), End> {
        let now = self.now;
        if params.user.len() > MAX_USER_BYTES {
            tracing::info!("{}login failed: db={} user={}", client.prefix(), reported(&params.database), params.user);
            return Err(Disconnect::fatal("username too long").into());
        }
        let database = self.pools(|broker| {
            let found = broker.pools.find_database(&params.database, now)?;
            Some((found, broker.pools.database(found)?))
        });
        let settings = &self.live.config.settings;
        let auth_type = settings.auth_type;
        let mut user = params.user.clone();
        if auth_type == AuthType::Any
            && let Some((_, entry)) = &database
        {
            let Some(forced) = &entry.user else {
                tracing::error!("{}auth_type=any requires forced user", client.prefix());
                return Err(Disconnect::fatal("bouncer config error").into());
            };
            user.clone_from(forced);
        }
        let known = self.live.users.get(&user).cloned();
        if known.is_none() && auth_type != AuthType::Any {
            tracing::info!("{}no such user: {user}", client.prefix());
        }
        client.user = Some(user.as_str().into());
        if let Some((db, entry)) = &database
            && (known.is_some() || auth_type == AuthType::Any)
        {
            let (attached, shared) = self.pools(|broker| {
                let attached = broker.pools.attach(*db, &user, false, now);
                let shared = attached.as_ref().ok().and_then(|attached| broker.shared(attached.pool));
                (attached, shared)
            });
            let attached = attached?;
            client.mode = effective::pool_mode(&self.live.config, entry, effective::pool_user(entry, &user));
            client.user_id = Some(attached.user);
            client.pool = shared;
        }
        self.log_attempt(client, &params.database, &user);
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        login.unknown_database = database.is_none();
        login.params = Some(params);
        login.user.clone_from(&known);
        self.authenticate(client, &user, known.as_deref())
    }

    fn log_attempt(&self, client: &Client, database: &str, user: &str) {
        if self.live.config.settings.log_connections {
            let database = reported(database);
            tracing::info!("{}login attempt: db={database} user={user} tls=no replication=no", client.prefix());
        }
    }

    /// A login to the console: a known user who may not use it is told so before any password, a stranger only after it.
    fn console_login(&mut self, client: &mut Client, params: StartupParams) -> Result<(), End> {
        let settings = &self.live.config.settings;
        let user = params.user.clone();
        let own_uid = matches!(client.peer, PeerAddr::Unix { uid: Some(uid), .. } if uid == self.shared.uid);
        let peer_login = own_uid && user == CONSOLE_DATABASE;
        let open = peer_login || settings.auth_type == AuthType::Any;
        let is_admin = tokens(&settings.admin_users).any(|name| name == user);
        let is_stats = tokens(&settings.stats_users).any(|name| name == user);
        let rights = match () {
            () if peer_login || is_admin => Some(Rights::Admin),
            () if is_stats || open => Some(Rights::Stats),
            () => None,
        };
        let known = self.live.users.get(&user).cloned();
        // the console's own user always exists, if only with a secret that nothing matches
        let stranger = known.is_none() && !open && user != CONSOLE_DATABASE;
        if stranger {
            tracing::info!("{}no such user: {user}", client.prefix());
        }
        let shown = if open { CONSOLE_DATABASE } else { user.as_str() };
        client.user = Some(shown.into());
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        login.params = Some(params);
        login.user.clone_from(&known);
        if !stranger {
            // for somebody without rights this lasts as long as this call
            login.console = Some(rights.unwrap_or(Rights::Stats));
            client.user_id = Some(self.pools(|broker| broker.pools.attach_console(shown, is_admin))?);
        }
        if peer_login {
            tracing::info!("{}pgbouncer access from unix socket", client.prefix());
        }
        self.log_attempt(client, CONSOLE_DATABASE, &user);
        if open {
            return self.authenticated(client);
        }
        if !stranger && rights.is_none() {
            return Err(Disconnect::fatal("not allowed").into());
        }
        self.authenticate(client, &user, known.as_deref())
    }

    fn authenticate(&mut self, client: &mut Client, user: &str, known: Option<&UserSecret>) -> Result<(), End> {
        let settings = &self.live.config.settings;
        let method = match settings.auth_type {
            AuthType::Any => Method::Any,
            AuthType::Trust => Method::Trust,
            AuthType::Plain => Method::Plain,
            AuthType::Md5 => Method::Md5,
            AuthType::ScramSha256 => Method::ScramSha256,
            AuthType::Cert | AuthType::Hba | AuthType::Ldap | AuthType::Pam => {
                return Err(Disconnect::fatal("bouncer config error").into());
            }
        };
        let Some(random) = random() else { return Err(Disconnect::fatal("bouncer config error").into()) };
        let mut out = Vec::new();
        let attempt = Attempt {
            method,
            user,
            secret: known.map(|known| known.secret.clone()),
            verifier: known.and_then(|known| known.verifier.lock().clone()),
            iterations: u32::try_from(settings.scram_iterations).unwrap_or(4096),
            mock_key: &self.shared.mock_key,
            random,
        };
        let (auth, step) = ClientAuth::start(attempt, &mut out);
        if let Phase::Login(login) = &mut client.phase {
            login.auth = Some(auth);
        }
        self.auth_step(client, step, &out)
    }

    /// A message of a client that is asked for its password.
    fn password(&mut self, client: &mut Client, tag: u8, total_len: usize) -> Result<Next, End> {
        let Phase::Login(login) = &mut client.phase else { return Ok(Next::Wait) };
        if total_len > MAX_RECEIVED {
            return Err(Disconnect::fatal("password authentication failed").into());
        }
        if login.received.len() < total_len {
            return Ok(Next::Wait);
        }
        let message: zeroize::Zeroizing<Vec<u8>> = login.received.drain(..total_len).collect::<Vec<_>>().into();
        let Some(auth) = &mut login.auth else { return Ok(Next::Wait) };
        let mut out = Vec::new();
        let step = auth.receive(tag, &message[5..], &mut out);
        self.auth_step(client, step, &out)?;
        Ok(Next::Again)
    }

    /// The keys that a login asked for.
    pub(super) fn client_derived(&mut self, who: ClientRef, keys: &SaltedKeys) {
        let Some(mut client) = self.clients.take(who) else { return };
        let mut out = Vec::new();
        let mut ended = Ok(());
        if let Phase::Login(login) = &mut client.phase
            && let Some(auth) = &mut login.auth
        {
            login.deriving = false;
            let step = auth.derived(keys, &mut out);
            if let (Some(verifier), Some(user)) = (auth.derived_verifier(), &login.user) {
                *user.verifier.lock() = Some(verifier.clone());
            }
            ended = self.auth_step(&mut client, step, &out);
        }
        match ended {
            Ok(()) => {
                self.clients.put_back(client);
                self.turn(who);
            }
            Err(end) => self.disconnect(client, end),
        }
    }

    fn auth_step(&mut self, client: &mut Client, step: Step, out: &[u8]) -> Result<(), End> {
        client.stream.write_bytes(out).map_err(|_| gone())?;
        match step {
            Step::Wait => Ok(()),
            Step::Derive(derivation) => {
                if let Phase::Login(login) = &mut client.phase {
                    login.deriving = true;
                }
                let _ = self.shared.jobs.send(Job::Client { client: client.me, derivation });
                Ok(())
            }
            Step::Success(proof) => {
                if let (Some(keys), Some(pool)) = (proof.scram_keys, &client.pool)
                    && !pool.forced
                {
                    pool.logins.lock().client_keys = Some(keys);
                }
                self.authenticated(client)
            }
            Step::Fail(failure) => {
                for line in failure.log {
                    tracing::error!("{}{line}", client.prefix());
                }
                Err(failure.disconnect.into())
            }
            Step::External(_) => Err(Disconnect::fatal("bouncer config error").into()),
        }
    }

    /// The client is who it says it is.
    fn authenticated(&mut self, client: &mut Client) -> Result<(), End> {
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        let received = std::mem::take(&mut login.received);
        let console = login.console;
        let unknown = login.unknown_database;
        let params = login.params.take();
        login.auth = None;
        client.cancel_key = self.new_cancel_key()?;
        if let Some(rights) = console {
            return self.open_console(client, rights, received, params);
        }
        let name = params.map(|params| params.database).unwrap_or_default();
        if unknown {
            let user = client.user.as_deref().unwrap_or_default();
            let shown = reported(&name);
            tracing::info!("{}login failed: db={shown} user={user}", client.prefix());
            return Err(Disconnect::fatal(format!("no such database: {shown}")).into());
        }
        let Some(pool) = client.pool.as_ref().map(|pool| pool.id) else {
            return Err(Disconnect::fatal("bouncer config error").into());
        };
        let (me, home, now, since) = (client.me, self.id, self.now, client.connect_time);
        let checkout = self.pools(|broker| {
            let pools = &mut broker.pools;
            let found = pools.find_database(&name, now);
            if found.is_some_and(|db| pools.disabled(db)) {
                return Checkout::Refused(Disconnect::fatal(format!("database \"{name}\" is disabled")));
            }
            if pools.shutdown_mode() != ShutdownMode::None {
                return Checkout::Refused(Disconnect::fatal("pooler is shutting down"));
            }
            pools.checkout(Want { client: me, pool, kind: WaitFor::LoginReply, since, home }, now)
        });
        if !received.is_empty() {
            client.input = Some(Box::new(received));
        }
        match checkout {
            Checkout::LoginReady(reply) => self.finish_login(client, &reply),
            Checkout::Queued(ticket) => {
                client.phase = Phase::WaitingLogin(ticket);
                client.wait_start = now;
                Ok(())
            }
            Checkout::Refused(why) => Err(why.into()),
            Checkout::Granted(_) => Err(Disconnect::fatal("bouncer config error").into()),
        }
    }

    fn open_console(
        &mut self,
        client: &mut Client,
        rights: Rights,
        received: Vec<u8>,
        params: Option<StartupParams>,
    ) -> Result<(), End> {
        let mut out = Vec::new();
        let sent = client.side.vars.clone();
        let notice = &self.live.config.settings.login_notify_message;
        let notice = (!notice.is_empty()).then_some(notice.as_str());
        crate::admin::reply::login(&mut out, sent.iter(&self.shared.names), client.cancel_key, notice);
        drop(params);
        client.phase = Phase::Console(Box::new(Console { rights, received, busy: false }));
        self.shared.console_clients.fetch_add(1, Ordering::Relaxed);
        self.shared.login_clients.fetch_sub(1, Ordering::Relaxed);
        self.shared.cancel_keys.lock().insert(client.cancel_key, client.me);
        client.stream.write_bytes(&out).map_err(|_| gone())
    }

    /// A key that no logged-in client has.
    fn new_cancel_key(&self) -> Result<[u8; 8], End> {
        loop {
            let mut random = [0; 8];
            if getrandom::fill(&mut random).is_err() {
                return Err(Disconnect::fatal("bouncer config error").into());
            }
            let key = CancelKey::generate(random, self.peer_id()).0;
            if !self.shared.cancel_keys.lock().contains_key(&key) {
                return Ok(key);
            }
        }
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

fn random() -> Option<Random> {
    let mut random = Random { md5_salt: [0; 4], nonce: [0; crate::auth::scram::NONCE_BYTES], salt: [0; 16] };
    getrandom::fill(&mut random.md5_salt).ok()?;
    getrandom::fill(&mut random.nonce).ok()?;
    getrandom::fill(&mut random.salt).ok()?;
    Some(random)
}

/// The words of a list setting, between commas and white space.
pub(crate) fn tokens(list: &str) -> impl Iterator<Item = &str> {
    list.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

fn bad_packet() -> Disconnect {
    Disconnect::silent("bad packet")
}

fn gone() -> End {
    Disconnect::silent("client unexpected eof").into()
}

/// The secret that a pool's servers are logged in with.
pub(super) fn pool_secret(worker: &Worker, user: &str, forced_password: Option<&str>) -> Secret {
    match forced_password {
        Some(password) if !password.is_empty() => Secret::classify(password),
        _ => worker.live.users.get(user).map(|user| user.secret.clone()).unwrap_or_default(),
    }
}
