//! A client that has proved who it is: its place in a pool or at the console, and the login reply.
//!
//! ```text
//! authenticated -> attach -> await_reply -> [WaitingLogin ->] finish_login
//!               -> open_console
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::admin::extended::Session;
use crate::broker::ServerPools;
use crate::config::{PoolMode, effective};
use crate::disconnect::Disconnect;
use crate::id::DbId;
use crate::pool::{Checkout, ShutdownMode, WaitFor, Want};
use crate::relay::cancel::CancelKey;
use crate::shared::{Learned, LoginReply, PoolShared};
use crate::stats::histogram::Span;
use crate::wire::encode;
use crate::worker::Worker;
use crate::worker::answers::Answers;
use crate::worker::client::{Access, Client, Console, End, Phase, Source};
use crate::worker::login::{gone, log_registered, reported};
use crate::worker::peer::PeerAddr;

impl Worker {
    /// The client is who it says it is.
    pub(super) fn authenticated(&mut self, client: &mut Client, learned: Learned) -> Result<(), End> {
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        let received = std::mem::take(&mut login.received);
        let (console, params) = (login.console, login.params.take());
        let fetched = login.user.clone().filter(|_| login.source == Source::AuthQuery);
        login.auth = None;
        client.cancel_key = self.new_cancel_key()?;
        if let Some(access) = console {
            return self.open_console(client, access, received);
        }
        let name = params.map(|params| params.database).unwrap_or_default();
        let (pool, forced) = self.attach(client, &name)?;
        if !forced {
            pool.logins.lock().learn(fetched.as_deref(), learned);
        }
        if !received.is_empty() {
            client.input = Some(Box::new(received));
        }
        self.await_reply(client, &pool)
    }

    /// Counts the client on its entry and user, and gives it its place in their pool, unless there is something against it that
    /// is told at the end of a login only. Whether the entry forces its user comes with the pool.
    fn attach(&mut self, client: &mut Client, name: &str) -> Result<(Arc<PoolShared>, bool), End> {
        let (user, now) = (client.user.clone().unwrap_or_default(), self.now);
        let over_tcp = matches!(client.peer, PeerAddr::Tcp(_));
        let (place, registered) = self.pools(|broker| {
            let found = broker.pools.find_database(name, now);
            let registered = broker.pools.take_registered();
            let entry = found.and_then(|db| Some((db, broker.pools.database(db)?)));
            let place = entry.map(|(db, database)| {
                let (attached, pool) = broker.attach(db, &user, false, now)?;
                Ok::<_, Disconnect>((attached, pool, database, barred(&broker.pools, db, name, over_tcp)))
            });
            (place, registered)
        });
        log_registered(|| client.prefix(), registered);
        let Some(place) = place else { return Err(self.no_such_database(client, name)) };
        let (attached, pool, database, barred) = place?;
        client.mode = effective::pool_mode(&self.live.config, &database, effective::pool_user(&database, &user));
        client.user_id = Some(attached.user);
        self.shared.post(self.id).logins.fetch_sub(1, Ordering::Relaxed);
        client.pool = Some(pool.clone());
        // a panic from here on gives its place back
        self.turning.begin(client);
        #[cfg(debug_assertions)]
        crate::worker::plant::once("attached");
        // as the entry says now: the pool may be older
        let forced = database.user.is_some();
        barred.map_or(Ok((pool, forced)), |why| Err(why.into()))
    }

    fn no_such_database(&mut self, client: &Client, name: &str) -> End {
        let user = client.user.as_deref().unwrap_or_default();
        if let Err(full) = self.pools(|broker| broker.pools.user_has_room(user)) {
            return full.into();
        }
        let shown = reported(name);
        tracing::info!(conn = %client.prefix(), "login failed: db={shown} user={user}");
        Disconnect::fatal(format!("no such database: {shown}")).into()
    }

    /// The client is told what the pool's first server has said: at once, or when there is one.
    fn await_reply(&mut self, client: &mut Client, pool: &PoolShared) -> Result<(), End> {
        let (me, home, now, since) = (client.me, self.id, self.now, client.connect_time);
        let dedicated = client.dedicated();
        let checkout = self.pools(|broker| {
            let replication = broker.replicates(me, dedicated);
            let want = Want { client: me, pool: pool.id, kind: WaitFor::LoginReply, since, home, replication };
            broker.pools.checkout(want, now)
        });
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

    /// Sends the login reply: from here on the client is logged in.
    pub(super) fn finish_login(&mut self, client: &mut Client, reply: &LoginReply) -> Result<(), End> {
        // What the client did not ask for is what the pool's first server had: nothing of the client before stays visible.
        client.side.vars = self.interner.intern(client.side.vars.or(&reply.tracked));
        let mut out = Vec::with_capacity(512);
        encode::authentication_ok(&mut out);
        let names = &self.shared.names;
        crate::relay::vars::login_parameters(&reply.untracked, &reply.tracked, &client.side.vars, names, &mut out);
        encode::backend_key_data(&mut out, client.cancel_key);
        let notice = &self.live.config.settings.login_notify_message;
        if !notice.is_empty() {
            encode::notice(&mut out, notice);
        }
        encode::ready_for_query(&mut out, b'I');
        if client.replicating.is_some() {
            client.mode = PoolMode::Session;
        }
        client.phase = Phase::Active;
        self.shared.cancel_keys.lock().insert(client.cancel_key, client.me);
        if let Some(pool) = &client.pool {
            let (id, now) = (pool.id, self.now);
            pool.record(self.id, Span::ClientLogin, now.since(client.connect_time));
            self.pools(|broker| broker.pools.client_ready(id, now));
            client.counted_ready = true;
        }
        self.turning.begin(client);
        client.stream.write_bytes(&out).map_err(|_| gone())
    }

    fn open_console(&mut self, client: &mut Client, access: Access, received: Vec<u8>) -> Result<(), End> {
        let user = client.user.as_deref().unwrap_or_default();
        client.user_id = Some(self.pools(|broker| broker.pools.attach_console(user, access.limits_exempt))?);
        self.shared.post(self.id).logins.fetch_sub(1, Ordering::Relaxed);
        self.turning.begin(client);
        #[cfg(debug_assertions)]
        crate::worker::plant::once("at the console");
        let mut out = Vec::new();
        let sent = client.side.vars.clone();
        let notice = &self.live.config.settings.login_notify_message;
        let notice = (!notice.is_empty()).then_some(notice.as_str());
        crate::admin::reply::login(&mut out, sent.iter(&self.shared.names), client.cancel_key, notice);
        client.phase = Phase::Console(Box::new(Console {
            rights: access.rights,
            received,
            through: 0,
            taken: 0,
            busy: false,
            waits: 0,
            session: Session::default(),
            answers: Answers::default(),
        }));
        self.shared.console_clients.fetch_add(1, Ordering::Relaxed);
        self.shared.cancel_keys.lock().insert(client.cancel_key, client.me);
        self.turning.begin(client);
        client.stream.write_bytes(&out).map_err(|_| gone())
    }

    /// A key that no logged-in client has.
    fn new_cancel_key(&mut self) -> Result<[u8; 8], End> {
        loop {
            let Ok(random) = self.random.take() else { return Err(Disconnect::fatal("bouncer config error").into()) };
            let key = CancelKey::generate(random, self.peer_id()).0;
            if !self.shared.cancel_keys.lock().contains_key(&key) {
                return Ok(key);
            }
        }
    }
}

/// Why nobody may come in.
fn barred(pools: &ServerPools, db: DbId, name: &str, over_tcp: bool) -> Option<Disconnect> {
    if pools.disabled(db) {
        return Some(Disconnect::fatal(format!("database \"{name}\" is disabled")));
    }
    // who comes over TCP was connected before the listeners were closed: one of the clients that are waited for
    let let_in = match pools.shutdown_mode() {
        ShutdownMode::None => true,
        ShutdownMode::WaitForClients => over_tcp,
        ShutdownMode::WaitForServers => false,
    };
    (!let_in).then(|| Disconnect::fatal("pooler is shutting down"))
}
