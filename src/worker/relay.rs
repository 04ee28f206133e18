//! A turn of a logged-in client: both directions, checkout, link and release. How it ends stands in `ending`.
//!
//! ```text
//! relay -> read_server -> Downstream::run -> write       (answers first)
//!       -> let_go -> Pools::release                       (the server is settled)
//!       -> read_client -> unlinked -> checkout -> link -> align -> Upstream::run -> write
//! ```

use crate::config::PoolMode;
use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::net::stream::ReadResult;
use crate::pool::{Checkout, Collected, Grant, WaitFor, Want};
use crate::relay::downstream::Downstream;
use crate::relay::link::{Ctx, align, is_impossible, settled};
use crate::relay::outstanding::{Give, Request};
use crate::relay::upstream::{Flow, Unlinked, Upstream, unlinked};
use crate::shared::Hold;
use crate::stats::histogram::Span;
use crate::time::Micros;
use crate::wire::encode;
use crate::wire::startup::Replication;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase};
use crate::worker::server::Server;
use crate::worker::table::{Place, client_token, server_token};

/// The context of a relay call, from fields of the worker that the call does not otherwise touch.
macro_rules! context {
    ($worker:ident, $mode:expr) => {{
        let settings = &$worker.live.config.settings;
        let statements = &$worker.shared.statements;
        Ctx {
            now: $worker.now,
            tracking: if $mode == PoolMode::Session {
                0
            } else {
                usize::try_from(settings.max_prepared_statements).unwrap_or(0)
            },
            session_mode: $mode == PoolMode::Session,
            statement_mode: $mode == PoolMode::Statement,
            disable_pqexec: settings.disable_pqexec.is_on(),
            max_packet: u32::try_from(settings.max_packet_size).unwrap_or(u32::MAX),
            names: &$worker.shared.names,
            interner: &mut $worker.interner,
            statements: &mut |tail| statements.lock().intern(tail),
            tally: &mut $worker.tally,
            errors: &mut $worker.errors,
            log: &mut $worker.log,
            verbose: settings.verbose.is_some_and(|level| level > 0),
        }
    }};
}
pub(super) use context;

impl Worker {
    /// The turn of a client in phase Active.
    #[inline]
    pub(super) fn relay(&mut self, client: &mut Client) -> Result<(), End> {
        for _ in 0..self.rounds() {
            if !self.round(client)? || !Self::has_more(client) {
                return Ok(());
            }
        }
        self.goes_on(client.me);
        Ok(())
    }

    /// Gives a client another turn, one, after the others'.
    pub(super) fn goes_on(&mut self, client: ClientRef) {
        if !self.again.contains(&client) {
            self.again.push(client);
        }
    }

    /// How often a socket is read before others get their turn.
    #[inline]
    pub(super) fn rounds(&self) -> i64 {
        match self.live.config.settings.sbuf_loopcnt {
            n if n > 0 => n,
            _ => i64::MAX,
        }
    }

    /// False if another round would find nothing to do.
    #[inline]
    fn has_more(client: &Client) -> bool {
        let stream = &client.stream;
        let serves = |server: &Server| {
            let (socket, side) = (&server.stream, &server.side);
            socket.readable() || socket.is_blocked() || side.inherited.is_some() || settled(&client.side, side)
        };
        matches!(client.phase, Phase::Active)
            && (stream.readable()
                || stream.is_blocked()
                || client.input.is_some()
                || client.server.as_deref().is_some_and(serves))
    }

    /// One pass over both directions; false when there is nothing left to do.
    #[inline]
    fn round(&mut self, client: &mut Client) -> Result<bool, End> {
        let mut progress = false;
        if client.stream.is_blocked() {
            client.stream.flush().map_err(|_| gone())?;
        }
        if let Some(server) = &mut client.server {
            if server.stream.is_blocked()
                && let Err(error) = server.stream.flush()
            {
                server.lose(&error);
                return Err(crashed());
            }
            if server.stream.readable() && !client.stream.is_blocked() {
                progress |= self.read_server(client)?;
            }
            self.let_go(client)?;
        }
        if client.input.is_some() {
            return Ok(self.held_input(client)? || progress);
        }
        let can_send = client.server.as_ref().is_none_or(|s| !s.stream.is_blocked() && !s.side.setting_vars);
        if client.stream.readable() && can_send {
            progress |= self.read_client(client)?;
        }
        Ok(progress)
    }

    /// Reads the server once and passes on what it said.
    #[inline]
    fn read_server(&mut self, client: &mut Client) -> Result<bool, End> {
        let most = if self.hold == Hold::Off { usize::MAX } else { self.server_allowance(client) };
        let Some(server) = client.server.as_mut().filter(|_| most > 0) else { return Ok(false) };
        let mut input = std::mem::take(&mut self.scratch.input);
        let room = input.len().min(most);
        let read = match server.stream.read(&mut input[..room]) {
            ReadResult::Data(n) => n,
            ReadResult::Nothing => {
                self.scratch.input = input;
                return Ok(false);
            }
            gone @ (ReadResult::Eof | ReadResult::Failed(_)) => {
                self.scratch.input = input;
                server.lost_while_reading(&gone);
                if client.mode != PoolMode::Session && settled(&client.side, &server.side) && client.input.is_none() {
                    server.side.leaving = true;
                    return Ok(false);
                }
                return Err(crashed());
            }
        };
        server.request_time = self.now;
        let (query, transaction) = (client.side.query_start, client.side.xact_start);
        let mut ctx = context!(self, client.mode);
        let side = Some(&mut client.side);
        let out = &mut self.scratch.to_client;
        let ran = Downstream { client: side, server: &mut server.side, ctx: &mut ctx, out }.run(&input[..read]);
        let written = client.stream.write_out(&self.scratch.to_client, &input[..read]);
        self.scratch.to_client.clear();
        self.scratch.input = input;
        self.note_time(client, Span::Query, query, client.side.query_start);
        self.note_time(client, Span::Transaction, transaction, client.side.xact_start);
        if let Err(why) = ran {
            if let Some(server) = &client.server {
                self.note_impossible(server, &why);
            }
            return Err(End::both(why));
        }
        written.map_err(|_| gone())?;
        Ok(true)
    }

    /// An answer without an owner is a bug, of ours or of the server: it is counted, and logged once with what was known.
    #[cold]
    pub(super) fn note_impossible(&self, server: &Server, why: &Disconnect) {
        if !is_impossible(why) {
            return;
        }
        let trips = self.shared.guard.trip();
        let side = &server.side;
        let (head, owed) = (side.scan.header()[0], side.outstanding.len());
        tracing::error!(
            conn = %server.prefix(),
            "{} (last cut message '{}', {owed} answers owed, {:?}, {}; {trips} so far)",
            why.reason,
            head.escape_ascii(),
            side.tx,
            if side.outstanding.skipping() { "skipping to Sync" } else { "not skipping" },
        );
    }

    /// Records how long a query or a transaction took that was open before what the server has just said, and is no more.
    #[inline]
    fn note_time(&self, client: &Client, span: Span, before: Micros, after: Micros) {
        if !before.is_zero()
            && after.is_zero()
            && let Some(pool) = &client.pool
        {
            pool.record(self.id, span, self.now.since(before));
        }
    }

    /// Gives the server back if nothing ties it to the client any more.
    #[inline]
    pub(super) fn let_go(&mut self, client: &mut Client) -> Result<(), End> {
        let Some(server) = &client.server else { return Ok(()) };
        if client.mode == PoolMode::Session {
            return if server.side.inherited.is_none() { Ok(()) } else { self.find_out(client) };
        }
        if server.side.leaving {
            if let Some(server) = client.server.take() {
                client.side.settle();
                self.drop_server(*server, "server conn crashed?");
            }
            return Ok(());
        }
        let free = settled(&client.side, &server.side)
            && client.input.is_none()
            && !client.stream.is_blocked()
            && !server.stream.is_blocked()
            && !server.stream.readable();
        if free && let Some(server) = client.server.take() {
            client.side.settle();
            self.release(server, false);
        }
        Ok(())
    }

    /// Hands a clean server back to the pools.
    pub(super) fn release(&mut self, server: Box<Server>, session_end: bool) {
        let (id, now, home) = (server.me, self.now, self.id);
        self.turning.holds(None);
        self.places.clear(id);
        self.pools_release(|broker| broker.pools.release(id, server, session_end, home, now));
    }

    /// Goes on with input that had to wait.
    fn held_input(&mut self, client: &mut Client) -> Result<bool, End> {
        let waits = client.server.as_ref().is_some_and(|s| s.side.setting_vars || s.stream.is_blocked());
        if waits {
            return Ok(false);
        }
        let Some(input) = client.input.take() else { return Ok(false) };
        let before = input.len();
        let done = self.client_bytes(client, &input);
        self.spare.take_back(input);
        done?;
        // Input that still waits for the server to settle is no progress.
        Ok(client.input.as_ref().is_none_or(|rest| rest.len() < before))
    }

    /// Reads the client once and passes on what it said.
    #[inline]
    fn read_client(&mut self, client: &mut Client) -> Result<bool, End> {
        let most = if self.hold == Hold::Off { usize::MAX } else { self.client_allowance(client) };
        if most == 0 {
            return Ok(false);
        }
        let mut input = std::mem::take(&mut self.scratch.input);
        let room = input.len().min(most);
        let done = match client.stream.read(&mut input[..room]) {
            ReadResult::Data(n) => {
                client.request_time = self.now;
                self.client_bytes(client, &input[..n]).map(|()| true)
            }
            ReadResult::Nothing => Ok(false),
            ReadResult::Eof | ReadResult::Failed(_) => Err(gone()),
        };
        self.scratch.input = input;
        done
    }

    /// Client input, from the scratch or from where it waited.
    #[inline]
    pub(super) fn client_bytes(&mut self, client: &mut Client, input: &[u8]) -> Result<(), End> {
        #[cfg(debug_assertions)]
        crate::worker::plant::client(input);
        let mut at = 0;
        if client.server.is_none() {
            let mut ctx = context!(self, client.mode);
            let step = unlinked(&mut client.side, &mut ctx, input, &mut self.scratch.to_client);
            let written = client.stream.write_out(&self.scratch.to_client, input);
            self.scratch.to_client.clear();
            match step? {
                Unlinked::Consumed => return written.map_err(|_| gone()),
                Unlinked::NeedServer { at: from } => at = from,
            }
            if !self.need_server(client)? {
                self.keep(client, &input[at..]);
                return Ok(());
            }
        }
        self.send_on(client, input, at)
    }

    /// Asks the pools for a server. False if the client has to wait for it, or for its parameters to be set.
    #[inline]
    fn need_server(&mut self, client: &mut Client) -> Result<bool, End> {
        let Some(pool) = &client.pool else { return Err(Disconnect::fatal("bouncer config error").into()) };
        let want = Want {
            client: client.me,
            pool: pool.id,
            kind: WaitFor::Query,
            since: client.side.query_start,
            home: self.id,
            replication: client.replicating.is_some(),
        };
        let (now, dedicated) = (self.now, client.dedicated());
        let checkout = self.pools(|broker| {
            broker.replicates(want.client, dedicated);
            broker.pools.checkout(want, now)
        });
        match checkout {
            Checkout::Granted(grant) => {
                pool.record(self.id, Span::Wait, Micros::ZERO);
                self.link(client, grant)
            }
            Checkout::Queued(ticket) => {
                client.phase = Phase::Waiting(ticket);
                client.wait_start = now;
                Ok(false)
            }
            Checkout::Refused(why) => Err(why.into()),
            Checkout::LoginReady(_) => Ok(false),
        }
    }

    /// Joins a client and a server. False if the server's parameters must be set first.
    #[inline]
    fn link(&mut self, client: &mut Client, grant: Grant<Box<Server>>) -> Result<bool, End> {
        client.mode = grant.pool_mode;
        let mut server = self.take_over(client, grant.conn)?;
        if server.replication != Replication::None {
            // it was told the client's parameters at its startup
            client.server = Some(server);
            return Ok(true);
        }
        if client.side.vars.ptr_eq(&server.side.vars) {
            client.server = Some(server);
            return Ok(true);
        }
        let mut ctx = context!(self, client.mode);
        let waits = align(&mut client.side, &mut server.side, &mut ctx, &mut self.scratch.to_server);
        let written = server.stream.write_out(&self.scratch.to_server, &[]);
        self.scratch.to_server.clear();
        if let Err(error) = &written {
            server.lose(error);
        }
        client.server = Some(server);
        written.map_err(|_| crashed())?;
        Ok(!waits)
    }

    /// Who is linked goes on in the mode that the pool has now: a server that was held for a session may be free at the end of the
    /// next transaction.
    pub(super) fn take_pool_modes(&mut self) {
        let broker = self.shared.broker.lock();
        for client in self.places.linked() {
            let Some(client) = self.clients.get_mut(client) else { continue };
            let ordinary = |server: &Server| server.replication == Replication::None && server.side.inherited.is_none();
            if let (Some(server), Some(pool)) = (&client.server, &client.pool)
                && ordinary(server)
                && let Some(mode) = broker.pools.pool_mode(pool.id)
            {
                client.mode = mode;
            }
        }
    }

    /// Takes a server for the client into the hands of this worker.
    #[inline]
    pub(super) fn take_over(&mut self, client: &mut Client, mut server: Box<Server>) -> Result<Box<Server>, End> {
        self.tally.server_assignment_count += 1;
        self.turning.holds(Some(server.me));
        self.places.set(server.me, Place::Linked(client.me));
        if server.home != self.id {
            let from = &self.shared.post(server.home).registry;
            let to = &self.shared.post(self.id).registry;
            let moved = server.stream.rehome(from, to, server_token(server.me));
            server.home = self.id;
            if moved.is_err() {
                client.server = Some(server);
                return Err(crashed());
            }
        }
        server.request_time = self.now;
        Ok(server)
    }

    #[inline]
    fn send_on(&mut self, client: &mut Client, input: &[u8], at: usize) -> Result<(), End> {
        let Some(server) = &mut client.server else { return Ok(()) };
        let mut ctx = context!(self, client.mode);
        let ran = Upstream {
            client: &mut client.side,
            server: &mut server.side,
            ctx: &mut ctx,
            out: &mut self.scratch.to_server,
            back: &mut self.scratch.to_client,
        }
        .run(input, at);
        server.request_time = self.now;
        let sent = server.stream.write_out(&self.scratch.to_server, input);
        let told = client.stream.write_out(&self.scratch.to_client, input);
        self.scratch.to_server.clear();
        self.scratch.to_client.clear();
        let flow = ran?;
        if sent.is_err() {
            // What the server said before it went is still to be read.
            server.stream.note_closed();
        }
        told.map_err(|_| gone())?;
        if let Flow::Settle { at } = flow {
            self.keep(client, &input[at..]);
        }
        Ok(())
    }

    /// A queued client has something to collect.
    pub(super) fn wake(&mut self, who: ClientRef) {
        self.attend_and_turn(who, Self::collect);
    }

    fn collect(&mut self, client: &mut Client) -> Result<(), End> {
        let Some(ticket) = client.ticket() else { return Ok(()) };
        let collected = self.pools(|broker| broker.pools.collect(ticket));
        if !matches!(collected, Collected::Waiting)
            && let Phase::Lookup(lookup) = &mut client.phase
        {
            lookup.ticket = None;
        }
        match collected {
            Collected::Waiting => Ok(()),
            Collected::Granted(grant) => {
                if let Some(pool) = &client.pool {
                    pool.record(self.id, Span::Wait, self.now.since(client.wait_start));
                }
                self.wait_ends(client);
                if matches!(client.phase, Phase::Lookup(_)) {
                    return self.run_lookup(client, grant.conn);
                }
                let reply = grant.conn.login_reply.clone();
                if matches!(client.phase, Phase::Waiting(_)) {
                    client.phase = Phase::Active;
                }
                self.link(client, grant)?;
                match (&client.phase, reply) {
                    (Phase::WaitingLogin(_), Some(reply)) => self.finish_login(client, &reply),
                    _ => Ok(()),
                }
            }
            Collected::LoginReady(reply) => {
                self.wait_ends(client);
                self.finish_login(client, &reply)
            }
            Collected::Refused(why) => {
                match client.phase {
                    Phase::Waiting(_) => client.phase = Phase::Active,
                    Phase::WaitingLogin(_) => client.phase = login_over(),
                    _ => {}
                }
                Err(why.into())
            }
        }
    }

    fn wait_ends(&mut self, client: &mut Client) {
        self.tally.wait_time += self.now.since(client.wait_start).0;
        client.wait_start = Micros::ZERO;
        client.notified = false;
    }

    /// Keeps input for later.
    fn keep(&mut self, client: &mut Client, rest: &[u8]) {
        if !rest.is_empty() || client.side.extra.as_ref().is_some_and(|extra| extra.held) {
            client.input = Some(self.spare.filled(rest));
        }
    }

    /// Registers a client's socket with our poller.
    pub(super) fn register(&self, client: &mut Client) -> std::io::Result<()> {
        client.stream.register(&self.shared.post(self.id).registry, client_token(client.me))
    }

    /// Runs `query` on a server that nobody uses, for its own sake.
    pub(super) fn start_test(&mut self, mut server: Box<Server>, query: crate::pool::TestQuery) {
        let sql = self.test_sql(query);
        let mut out = Vec::new();
        encode::query(&mut out, sql.as_bytes());
        server.side.outstanding.push(Request::Query, Give::Skip);
        server.side.ready = false;
        server.testing = Some(query);
        server.request_time = self.now;
        if let Err(error) = server.stream.write_bytes(&out) {
            server.lose(&error);
            self.drop_server(*server, "server conn crashed?");
            return;
        }
        self.places.set(server.me, Place::Testing(server));
    }
}

/// Where a login that is no longer waiting stands.
fn login_over() -> Phase {
    Phase::Login(Box::default())
}

/// The client's socket is gone.
fn gone() -> End {
    Disconnect::silent("client unexpected eof").into()
}

/// The server's socket is gone.
pub(super) fn crashed() -> End {
    End::both(Disconnect::fatal("server conn crashed?"))
}
