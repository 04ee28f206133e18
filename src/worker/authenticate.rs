//! A client proves who it is: the method that was chosen for it, and its exchange of messages.

use std::collections::HashMap;
use std::sync::Arc;

use zeroize::{Zeroize as _, Zeroizing};

use crate::auth::choice::{self, CERTIFICATE_FAILED, Choice, Outside, PEER_FAILED, Policy, Refused};
use crate::auth::client::{ClientAuth, Login as Attempt, Method, Random, Step};
use crate::auth::facts::Facts;
use crate::auth::scram::{MAX_ITERATIONS, SaltedKeys};
use crate::config::Config;
use crate::config::hba::{Replicating, Subject};
use crate::config::ident::Map;
use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::shared::{Job, Learned, UserSecret};
use crate::wire::startup::Replication;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase, Source};
use crate::worker::login::{MAX_RECEIVED, Next, gone};

impl Worker {
    /// Chooses how the client has to prove that it is `user`, and begins.
    pub(super) fn authenticate(
        &mut self,
        client: &mut Client,
        user: &str,
        known: Option<&UserSecret>,
    ) -> Result<(), End> {
        let facts = client.facts();
        if matches!(&client.phase, Phase::Login(login) if login.outside.is_some()) {
            // chosen already, or the user would have been looked for
            return self.exchange(client, Method::External, user, known);
        }
        match self.choice(client, user, &facts) {
            Choice::Outside(outside) => {
                // by a rule for physical replication: those are not among the ones looked up before the user
                if let Phase::Login(login) = &mut client.phase {
                    login.outside = Some(outside);
                }
                self.exchange(client, Method::External, user, known)
            }
            Choice::Exchange(method) => self.exchange(client, method, user, known),
            Choice::Peer { map } => self.ask_system(client, &facts, map),
            Choice::Certificate { map } => {
                let verdict = choice::certificate(&facts, user, map.as_deref());
                self.verdict(client, verdict, CERTIFICATE_FAILED)
            }
            Choice::Refuse(text) => Err(Disconnect::fatal(text).into()),
        }
    }

    fn choice(&self, client: &Client, user: &str, facts: &Facts) -> Choice {
        let who = Self::subject(client, user, facts);
        choice::choose(&self.policy(), &who)
    }

    /// Whether the name is all that the client is asked for.
    pub(super) fn trusts(&self, client: &Client, user: &str) -> bool {
        matches!(self.choice(client, user, &client.facts()), Choice::Exchange(Method::Trust))
    }

    /// Who judges the client's password, if we do not.
    pub(super) fn outside(&self, client: &Client, user: &str) -> Option<Outside> {
        let facts = client.facts();
        let who = Subject { replicating: Replicating::No, ..Self::subject(client, user, &facts) };
        choice::outside(&self.policy(), &who)
    }

    fn policy(&self) -> Policy<'_> {
        let settings = &self.live.config.settings;
        let ldap_options = settings.auth_ldap_options.as_deref().filter(|text| !text.is_empty());
        Policy { auth_type: settings.auth_type, rules: self.live.hba.as_deref(), ldap_options }
    }

    fn subject<'a>(client: &'a Client, user: &'a str, facts: &Facts) -> Subject<'a> {
        let params = match &client.phase {
            Phase::Login(login) => login.params.as_ref(),
            _ => None,
        };
        Subject {
            address: facts.address,
            tls: facts.tls.is_some(),
            database: params.map_or("", |params| &params.database),
            user,
            replicating: match params.map(|params| params.replication) {
                Some(Replication::Physical) => Replicating::Physical,
                Some(Replication::Logical | Replication::None) | None => Replicating::No,
            },
        }
    }

    fn exchange(
        &mut self,
        client: &mut Client,
        method: Method,
        user: &str,
        known: Option<&UserSecret>,
    ) -> Result<(), End> {
        let Some(random) = self.login_random() else { return Err(Disconnect::fatal("bouncer config error").into()) };
        let iterations = scram_iterations(&self.live.config);
        let mut out = Vec::new();
        let attempt = Attempt {
            method,
            user,
            secret: known.map(|known| known.secret.clone()),
            verifier: known.and_then(|known| known.verifier.lock().clone()),
            iterations,
            decoy: self.live.decoy,
            binding: client.stream.tls().and_then(|session| session.channel_binding()),
            random,
        };
        let (auth, step) = ClientAuth::start(attempt, &mut out);
        if let Phase::Login(login) = &mut client.phase {
            login.auth = Some(auth);
        }
        self.auth_step(client, step, &out)
    }

    /// What the operating system calls the client's user is not asked for here: a directory service may be behind it.
    fn ask_system(&mut self, client: &mut Client, facts: &Facts, map: Option<Arc<Map>>) -> Result<(), End> {
        let Some(uid) = facts.uid else { return self.verdict(client, Err(None), PEER_FAILED) };
        if let Phase::Login(login) = &mut client.phase {
            login.busy = true;
            login.peer_map = map;
        }
        let _ = self.shared.jobs.send(Job::SystemUser { client: client.me, uid });
        Ok(())
    }

    /// The operating system's name of the user at the other end of a client's Unix socket.
    pub(super) fn system_user(&mut self, who: ClientRef, name: Option<&str>) {
        self.resume(who, |worker, client| {
            let user = client.user.clone().unwrap_or_default();
            let Phase::Login(login) = &mut client.phase else { return Ok(()) };
            let verdict = choice::peer(name, &user, login.peer_map.take().as_deref());
            worker.verdict(client, verdict, PEER_FAILED)
        });
    }

    /// Ends an authentication that needed no messages.
    fn verdict(&mut self, client: &mut Client, verdict: Result<(), Refused>, text: &'static str) -> Result<(), End> {
        let known = matches!(&client.phase, Phase::Login(login) if login.user.is_some());
        match verdict {
            Ok(()) if known => self.authenticated(client, Learned::Nothing),
            Ok(()) => Err(Disconnect::fatal(text).into()),
            Err(log) => {
                if let Some(line) = log {
                    tracing::error!(conn = %client.prefix(), "{line}");
                }
                Err(Disconnect::fatal(text).into())
            }
        }
    }

    /// Goes on with a login for which somebody else has done the work.
    fn resume(&mut self, who: ClientRef, go_on: impl FnOnce(&mut Self, &mut Client) -> Result<(), End>) {
        self.attend_and_turn(who, |worker, client| {
            if let Phase::Login(login) = &mut client.phase {
                login.busy = false;
            }
            go_on(worker, client)
        });
    }

    /// A message of a client that is asked for its password.
    pub(super) fn password(&mut self, client: &mut Client, tag: u8, total_len: usize) -> Result<Next, End> {
        let Phase::Login(login) = &mut client.phase else { return Ok(Next::Wait) };
        if total_len > MAX_RECEIVED {
            let Some(auth) = &mut login.auth else { return Ok(Next::Wait) };
            let step = if tag == b'p' { auth.too_long() } else { auth.receive(tag, b"", &mut Vec::new()) };
            self.auth_step(client, step, b"")?;
            return Ok(Next::Wait);
        }
        if login.received.len() < total_len {
            return Ok(Next::Wait);
        }
        let message: Zeroizing<Vec<u8>> = login.received.drain(..total_len).collect::<Vec<_>>().into();
        login.received.spare_capacity_mut().zeroize();
        let Some(auth) = &mut login.auth else { return Ok(Next::Wait) };
        client.request_time = self.now;
        let now = in_force(&self.live.users, client.user.as_deref(), login.source, login.user.as_deref());
        if auth.is_fresh() {
            let verifier = now.and_then(|now| now.verifier.lock().clone());
            let changed = now.filter(|now| login.user.as_ref().is_none_or(|before| !Arc::ptr_eq(now, before)));
            let secret = changed.map(|changed| &changed.secret);
            auth.renew(secret, verifier, scram_iterations(&self.live.config), self.live.decoy);
            login.user = changed.cloned().or(login.user.take());
        } else if has_changed(login.user.as_deref(), now) {
            auth.forget_secret();
        }
        let mut out = Vec::new();
        let step = auth.receive(tag, &message[5..], &mut out);
        self.auth_step(client, step, &out)?;
        Ok(Next::Again)
    }

    /// The keys that a login asked for.
    pub(super) fn client_derived(&mut self, who: ClientRef, keys: &SaltedKeys) {
        self.resume(who, |worker, client| {
            let Phase::Login(login) = &mut client.phase else { return Ok(()) };
            let now = in_force(&worker.live.users, client.user.as_deref(), login.source, login.user.as_deref());
            let Some(auth) = &mut login.auth else { return Ok(()) };
            if has_changed(login.user.as_deref(), now) {
                auth.forget_secret();
            }
            let mut out = Vec::new();
            let step = auth.derived(keys, &mut out);
            let made = auth.take_made();
            if let (Some(made), Some(known), Some(user)) = (made, &login.user, client.user.as_deref())
                && made.is_current(user, scram_iterations(&worker.live.config), &worker.live.decoy.key)
            {
                *known.verifier.lock() = Some(made);
            }
            worker.auth_step(client, step, &out)
        });
    }

    fn auth_step(&mut self, client: &mut Client, step: Step, out: &[u8]) -> Result<(), End> {
        client.stream.write_bytes(out).map_err(|_| gone())?;
        match step {
            Step::Wait => {
                // from here on it keeps us waiting
                client.request_time = self.now;
                Ok(())
            }
            Step::Derive(derivation) => {
                let wanted = Arc::new(());
                let job = Job::Client { client: client.me, derivation, wanted: Arc::downgrade(&wanted) };
                if let Phase::Login(login) = &mut client.phase {
                    (login.busy, login.wanted) = (true, Some(wanted));
                }
                let _ = self.shared.jobs.send(job);
                Ok(())
            }
            Step::Success(proof) => {
                self.authenticated(client, proof.scram_keys.map_or(Learned::Nothing, Learned::ScramKeys))
            }
            Step::Fail(failure) => {
                for line in failure.log {
                    tracing::error!(conn = %client.prefix(), "{line}");
                }
                Err(failure.disconnect.into())
            }
            Step::External(password) => self.ask_outside(client, password),
        }
    }

    /// Hands the client's password to whoever judges it.
    fn ask_outside(&mut self, client: &mut Client, password: Option<Zeroizing<Vec<u8>>>) -> Result<(), End> {
        let user = client.user.as_deref().unwrap_or_default().to_owned();
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        let Some(outside) = login.outside.clone() else { return Err(Disconnect::fatal("bouncer config error").into()) };
        let Some(password) = password else { return Err(Disconnect::fatal(outside.failure()).into()) };
        login.busy = true;
        login.password.clone_from(&password);
        let from = client.peer.show();
        let _ = self.shared.jobs.send(Job::Password { client: client.me, outside, user, password, from });
        Ok(())
    }

    /// The client's password was judged. One that was accepted is what the pool's servers are logged in with.
    pub(super) fn judged(&mut self, who: ClientRef, accepted: bool) {
        self.resume(who, |worker, client| {
            let Phase::Login(login) = &mut client.phase else { return Ok(()) };
            let password = std::mem::take(&mut login.password);
            if !accepted {
                let text = login.outside.as_ref().map_or("bouncer config error", Outside::failure);
                return Err(Disconnect::fatal(text).into());
            }
            worker.authenticated(client, Learned::Password(password))
        });
    }

    fn login_random(&mut self) -> Option<Random> {
        let (md5_salt, nonce) = (self.random.take().ok()?, self.random.take().ok()?);
        Some(Random { md5_salt, nonce })
    }
}

/// The iterations of verifiers made from plain passwords.
pub(crate) fn scram_iterations(config: &Config) -> u32 {
    u32::try_from(config.settings.scram_iterations).unwrap_or(4096).clamp(1, MAX_ITERATIONS)
}

/// What auth_file says by now of somebody whom it has known when his login began.
fn in_force<'a>(
    users: &'a HashMap<String, Arc<UserSecret>>,
    user: Option<&str>,
    source: Source,
    before: Option<&UserSecret>,
) -> Option<&'a Arc<UserSecret>> {
    if source != Source::AuthFile || before.is_none() { None } else { users.get(user?) }
}

/// Is another secret in force by now than the one that a login began with?
fn has_changed(before: Option<&UserSecret>, now: Option<&Arc<UserSecret>>) -> bool {
    matches!((before, now), (Some(before), Some(now)) if before.secret != now.secret)
}
