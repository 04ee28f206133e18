//! auth_query: a client that logs in waits, in the pool of (auth database, auth_user), for a server that knows its secret.
//!
//! ```text
//! look_up -> checkout -> [Lookup, waiting ->] run_lookup -> lookup (each turn) -> looked_up: the login goes on
//! ```
//! The client is not read meanwhile, and nothing it said reaches the server but the user's name, as a parameter.

use zeroize::Zeroize as _;

use crate::auth::lookup::{Answer, Defect, Progress, request};
use crate::config::{CONSOLE_DATABASE, PoolMode, effective};
use crate::disconnect::Disconnect;
use crate::id::{ClientRef, DbId};
use crate::net::stream::ReadResult;
use crate::pool::{Checkout, WaitFor, Want};
use crate::relay::side::TxStatus;
use crate::wire::fields::split_cstr;
use crate::wire::scan::{Item, Scanner};
use crate::wire::tag::backend as be;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Login, Lookup, Phase};
use crate::worker::identify::Entry;
use crate::worker::login::{log_registered, reported};
use crate::worker::server::Server;

/// Most bytes of an answer that are kept: one name, one secret, and what a server may say besides.
const MAX_RECEIVED: usize = 1 << 20;

/// What the client is told whatever went wrong with the query.
fn config_error() -> End {
    Disconnect::fatal("bouncer config error").into()
}

impl Worker {
    /// Asks for a server of `auth_user` that can tell about `user`. `entry` is what the client wants to use; none is the
    /// console.
    pub(super) fn look_up(
        &mut self,
        client: &mut Client,
        user: String,
        auth_user: &str,
        entry: Option<&Entry>,
    ) -> Result<(), End> {
        let live = self.live.clone();
        let global = &*live.config.settings.auth_query;
        let sql = entry.map_or(global, |(_, database)| effective::auth_query(&live.config, database));
        if let Phase::Login(login) = &mut client.phase {
            login.database = entry.map(|(_, database)| database.name.as_str().into());
        }
        if let Some((db, database)) = entry {
            self.refuse_if_full(*db, database)?;
        }
        let db = self.auth_database(client, entry)?;
        let now = self.now;
        let found = self.pools(|broker| {
            let pool = broker.pools.auth_pool(db, auth_user, now)?;
            broker.shared(pool)
        });
        let Some(pool) = found else { return Err(config_error()) };
        let mut out = Vec::new();
        request(&mut out, sql, &user);
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        let lookup = Lookup {
            login: std::mem::take(&mut **login),
            ticket: None,
            request: out,
            answer: Answer::default(),
            received: Vec::new().into(),
        };
        client.phase = Phase::Lookup(Box::new(lookup));
        let (me, home, since) = (client.me, self.id, client.connect_time);
        let want = Want { client: me, pool: pool.id, kind: WaitFor::AuthQuery, since, home, replication: false };
        client.pool = Some(pool);
        match self.pools(|broker| broker.pools.checkout(want, now)) {
            Checkout::Granted(grant) => self.run_lookup(client, grant.conn),
            Checkout::Queued(ticket) => {
                if let Phase::Lookup(lookup) = &mut client.phase {
                    lookup.ticket = Some(ticket);
                }
                client.wait_start = now;
                Ok(())
            }
            Checkout::Refused(why) => Err(why.into()),
            Checkout::LoginReady(_) => Err(config_error()),
        }
    }

    /// The entry on which the query runs.
    fn auth_database(&mut self, client: &Client, entry: Option<&Entry>) -> Result<DbId, End> {
        let live = self.live.clone();
        let named = match entry {
            Some((_, database)) => effective::auth_dbname(&live.config, database),
            None => live.config.settings.auth_dbname.as_deref(),
        };
        let name = match (named, entry) {
            (Some(name), _) => name,
            (None, Some((_, database))) => &database.name,
            (None, None) => CONSOLE_DATABASE,
        };
        if name == CONSOLE_DATABASE {
            tracing::error!(conn = %client.prefix(), "cannot use the reserved \"{name}\" database as an auth_dbname");
            return Err(config_error());
        }
        let now = self.now;
        let (found, registered) = self.pools(|broker| {
            let found = broker.pools.find_database(name, now).map(|db| (db, broker.pools.disabled(db)));
            (found, broker.pools.take_registered())
        });
        log_registered(|| client.prefix(), registered);
        match found {
            Some((db, false)) => Ok(db),
            Some((_, true)) => Err(Disconnect::fatal(format!("authentication database \"{name}\" is disabled")).into()),
            None => {
                tracing::error!(conn = %client.prefix(), "authentication database \"{name}\" is not configured.");
                Err(config_error())
            }
        }
    }

    /// A server is there: sends it the query. Its parameters stay what they are.
    pub(super) fn run_lookup(&mut self, client: &mut Client, server: Box<Server>) -> Result<(), End> {
        let mut server = self.take_over(client, server).map_err(|_| config_error())?;
        let Phase::Lookup(lookup) = &mut client.phase else { return Err(config_error()) };
        server.side.ready = false;
        let sent = server.stream.write_bytes(&std::mem::take(&mut lookup.request));
        client.server = Some(server);
        match sent {
            Ok(()) => Ok(()),
            Err(_) => Err(self.lookup_failed(client, "server conn crashed?")),
        }
    }

    /// The turn of a client whose secret is being fetched.
    pub(super) fn lookup(&mut self, client: &mut Client) -> Result<(), End> {
        Self::still_there(client)?;
        let Some(server) = &mut client.server else { return Ok(()) };
        if server.stream.is_blocked() && server.stream.flush().is_err() {
            return Err(self.lookup_failed(client, "server conn crashed?"));
        }
        let mut rounds = 0..self.rounds();
        while let Some(server) = &mut client.server
            && server.stream.readable()
            && let Phase::Lookup(lookup) = &mut client.phase
        {
            if rounds.next().is_none() {
                self.goes_on(client.me);
                return Ok(());
            }
            match server.stream.read(&mut self.scratch.input) {
                ReadResult::Data(n) if lookup.received.len() + n <= MAX_RECEIVED => {
                    lookup.received.extend_from_slice(&self.scratch.input[..n]);
                    self.scratch.input[..n].zeroize();
                    server.request_time = self.now;
                    self.tally.server_bytes += n as u64;
                }
                ReadResult::Data(_) => return Err(self.lookup_failed(client, "unexpected response from auth_query")),
                ReadResult::Nothing => break,
                ReadResult::Eof | ReadResult::Failed(_) => {
                    return Err(self.lookup_failed(client, "server conn crashed?"));
                }
            }
            match self.lookup_messages(client) {
                Ok(Progress::More) => {}
                Ok(Progress::Found(row)) => {
                    self.lookup_over(client);
                    self.looked_up(client, row)?;
                    return self.login(client);
                }
                Ok(Progress::NoRow) => {
                    self.lookup_over(client);
                    return Err(Self::no_such_user(client));
                }
                Err(defect) => {
                    if let Some(line) = defect.log {
                        tracing::error!("{line}");
                    }
                    return Err(self.lookup_failed(client, &defect.reason));
                }
            }
        }
        Ok(())
    }

    /// PgBouncer plays no exchange here either: who asks learns that the user does not exist.
    fn no_such_user(client: &Client) -> End {
        if let Phase::Login(login) = &client.phase
            && let Some(params) = &login.params
        {
            tracing::info!(conn = %client.prefix(), "login failed: db={}", reported(&params.database));
        }
        Disconnect::fatal("no such user").into()
    }

    /// Handles all complete messages of the answer.
    fn lookup_messages(&mut self, client: &mut Client) -> Result<Progress, Defect> {
        let (Some(server), Phase::Lookup(lookup)) = (&mut client.server, &mut client.phase) else {
            return Ok(Progress::More);
        };
        let mut done = 0;
        let mut progress = Progress::More;
        while progress == Progress::More {
            let mut pos = done;
            let item = Scanner::default().next(&lookup.received, &mut pos, i32::MAX as u32);
            let item = item.map_err(|_| Defect { reason: "bad pkt header".into(), log: None })?;
            let Some(Item::Whole { tag, start, end }) = item else { break };
            let body = &lookup.received[start + 5..end];
            if tag == be::PARAMETER_STATUS
                && let Some((name, rest)) = split_cstr(body)
                && let Some((value, _)) = split_cstr(rest)
                && let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value))
                && let Some(index) = self.shared.names.index_of(name)
            {
                server.side.vars = self.interner.intern(server.side.vars.with(index, value));
            }
            progress = lookup.answer.receive(tag, body)?;
            done = end;
        }
        if progress != Progress::More && done < lookup.received.len() {
            return Err(Defect { reason: "unexpected response from auth_query".into(), log: None });
        }
        lookup.received.drain(..done);
        lookup.received.spare_capacity_mut().zeroize();
        Ok(progress)
    }

    /// Gives the server back and goes on as before the lookup.
    fn lookup_over(&mut self, client: &mut Client) {
        if let Some(mut server) = client.server.take() {
            server.side.ready = true;
            server.side.tx = TxStatus::Idle;
            let session = client.pool.as_ref().and_then(|pool| self.pools(|broker| broker.pools.pool_mode(pool.id)));
            self.release(server, session == Some(PoolMode::Session));
        }
        if let Some(pool) = client.pool.take() {
            pool.add(self.id, &std::mem::take(&mut self.tally));
        }
        let mut login = Box::<Login>::default();
        if let Phase::Lookup(lookup) = &mut client.phase {
            std::mem::swap(&mut *login, &mut lookup.login);
        }
        client.phase = Phase::Login(login);
    }

    /// The server of a lookup has to go.
    pub(super) fn end_lookup(&mut self, who: ClientRef, reason: &str) {
        self.attend(who, |worker, client| Err(worker.lookup_failed(client, reason)));
    }

    /// Closes the server. How the client ends.
    fn lookup_failed(&mut self, client: &mut Client, reason: &str) -> End {
        if let Some(server) = client.server.take() {
            self.drop_server(*server, reason);
        }
        config_error()
    }
}
