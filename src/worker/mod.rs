//! A worker: one thread, one poller, its own clients.
//!
//! The loop waits for readiness and messages and gives each event one synchronous turn. Nothing here blocks: name lookups
//! and key stretching are somebody else's work, and their results come back as messages. A client lives and dies here; a
//! server connection is here while one of these clients holds it, or while it is opened or tested, and belongs to the
//! pools otherwise.

pub mod accept;
mod admit;
mod answers;
pub(crate) mod authenticate;
mod cancel;
mod census;
pub mod client;
pub(crate) mod console;
mod drain;
mod ending;
mod handover;
mod identify;
pub(crate) mod inherit;
pub(crate) mod login;
mod lookup;
pub(crate) mod open;
mod parked;
pub mod peer;
pub(crate) mod picture;
#[cfg(debug_assertions)]
pub(crate) mod plant;
mod relay;
pub mod replication;
pub mod server;
mod spare;
pub mod steps;
mod strangers;
mod suspend;
mod sweep;
pub(crate) mod table;
mod tls;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll};

use crate::broker::{Broker, ServerAction, locked};
use crate::clock::Clock;
use crate::config::{Level, LogLine};
use crate::disconnect::Disconnect;
use crate::id::{ClientRef, ServerId, WorkerId};
use crate::log::EACH_TARGET;
use crate::pool::Released;
use crate::relay::out::Out;
use crate::relay::vars::{Interner, Vars};
use crate::shared::{Hold, Live, Message, Shared};
use crate::stats::Counters;
use crate::stats::ends::SqlState;
use crate::sys::random::Random;
use crate::time::Micros;
use crate::worker::accept::Acceptor;
use crate::worker::client::{Client, End, Phase, ServerFate};
use crate::worker::table::{Clients, Place, Places, Subject};

/// One read takes this much at most, unless `pkt_buf` asks for more: the measured optimum between system calls and cache
/// misses. Buffers belong to workers, not to connections, so less would save nothing.
const SCRATCH_BYTES: usize = 32 * 1024;

/// No read takes more, whatever `pkt_buf` says.
const MAX_SCRATCH_BYTES: usize = 16 * 1024 * 1024;

/// The buffer that a worker reads into.
fn scratch_buffer(live: &Live) -> Box<[u8]> {
    let asked = usize::try_from(live.config.settings.pkt_buf).unwrap_or(0);
    vec![0; asked.clamp(SCRATCH_BYTES, MAX_SCRATCH_BYTES)].into_boxed_slice()
}

/// Deadlines are looked at three times a second.
const SWEEP_EVERY: Micros = Micros(333_000);

/// Most clients one slice of a sweep looks at before traffic gets its turn.
const SWEEP_SLICE: u32 = 512;

/// What a turn reads into and writes from; lent to synchronous calls only.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) input: Box<[u8]>,
    pub(crate) to_client: Out,
    pub(crate) to_server: Out,
}

/// A worker's state.
pub struct Worker {
    id: WorkerId,
    shared: Arc<Shared>,
    live: Arc<Live>,
    poll: Poll,
    /// The acceptor is with the first worker.
    acceptor: Option<Acceptor>,
    accept_rests_until: Option<Micros>,
    /// The TCP listeners are about to be closed.
    retreat: Option<Box<accept::Retreat>>,
    now: Micros,
    clients: Clients,
    places: Places,
    scratch: Scratch,
    spare: spare::Spare,
    interner: Interner,
    /// What a client has set that has said nothing yet.
    nothing_set: Vars,
    random: Random,
    tally: Counters,
    /// SQLSTATEs of errors that the turn passed on.
    errors: Vec<SqlState>,
    /// Turns since the last sleep.
    turns: u64,
    /// The end of the last sleep.
    woke: Micros,
    log: Vec<LogLine>,
    actions: Vec<ServerAction>,
    /// Messages to ourselves.
    local: VecDeque<Message>,
    /// Clients whose turn was cut short.
    again: Vec<ClientRef>,
    /// Listeners at which more may wait.
    crowded: Vec<usize>,
    /// Servers without a client that have more to say.
    talking: Vec<ServerId>,
    sweep_at: Micros,
    /// The slot where the running sweep goes on.
    sweep_next: Option<u32>,
    listings: Vec<picture::Listing>,
    censuses: Vec<census::Census>,
    /// What the turn in progress holds, should it panic.
    turning: table::Turning,
    hold: Hold,
    /// Parked servers whose events came while everything was frozen.
    missed: Vec<ServerId>,
    steps: steps::Steps,
}

impl Worker {
    pub fn new(id: WorkerId, shared: Arc<Shared>, live: Arc<Live>, poll: Poll, acceptor: Option<Acceptor>) -> Self {
        let now = Clock::now();
        let nothing_set = Vars::unset(&shared.names);
        let scratch = Scratch { input: scratch_buffer(&live), ..Scratch::default() };
        Self {
            id,
            shared,
            live,
            poll,
            acceptor,
            accept_rests_until: None,
            retreat: None,
            now,
            clients: Clients::new(id),
            places: Places::default(),
            scratch,
            spare: spare::Spare::default(),
            interner: Interner::default(),
            nothing_set,
            random: Random::default(),
            tally: Counters::default(),
            errors: Vec::new(),
            turns: 0,
            woke: now,
            log: Vec::new(),
            actions: Vec::new(),
            local: VecDeque::new(),
            again: Vec::new(),
            crowded: Vec::new(),
            talking: Vec::new(),
            sweep_at: now + SWEEP_EVERY,
            sweep_next: None,
            listings: Vec::new(),
            censuses: Vec::new(),
            turning: table::Turning::default(),
            hold: Hold::Off,
            missed: Vec::new(),
            steps: steps::Steps::default(),
        }
    }

    /// Runs until the process ends.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut messages = Vec::new();
        self.start_listening();
        loop {
            let wait = self.wait();
            let slept = !wait.is_zero();
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!("waiting for events failed: {error}");
            }
            self.now = Clock::now();
            if slept {
                self.woke = self.now;
            }
            // first what we were told: a client that sends something after a SET was answered must find it done
            self.shared.post(self.id).take(&mut messages);
            for message in messages.drain(..) {
                self.guarded(|worker| worker.message(message));
                self.obey_local();
            }
            for event in &events {
                self.guarded(|worker| worker.event(event));
                self.obey_local();
            }
            for client in std::mem::take(&mut self.again) {
                self.guarded(|worker| worker.turn(client));
                self.obey_local();
            }
            for server in std::mem::take(&mut self.talking) {
                self.guarded(|worker| worker.talking_turn(server));
                self.obey_local();
            }
            for listener in std::mem::take(&mut self.crowded) {
                self.guarded(|worker| worker.accept(listener));
                self.obey_local();
            }
            self.guarded(Self::retreat_ends);
            self.guarded(Self::sweep_slice);
            self.guarded(Self::picture_slice);
            self.guarded(Self::census_slice);
            let idle = events.is_empty() && !self.more_to_read();
            self.guarded(|worker| worker.handshake_steps(idle));
            self.obey_local();
        }
    }

    /// Somebody has more to read than his turn allowed.
    fn more_to_read(&self) -> bool {
        !(self.again.is_empty() && self.talking.is_empty() && self.crowded.is_empty())
    }

    /// How long to sleep at most. Sleeping is what ends a busy time: the clock is read here anyway.
    fn wait(&mut self) -> Duration {
        if self.more_to_read() || self.sweep_next.is_some() || !self.listings.is_empty() || !self.censuses.is_empty() {
            return Duration::ZERO;
        }
        let due = self.retreat.as_ref().map_or(self.sweep_at, |retreat| retreat.ends.min(self.sweep_at));
        let now = Clock::now();
        let wait = self.steps.sleep().map_or(due.since(now), |longest| longest.min(due.since(now)));
        if !wait.is_zero() {
            self.shared.post(self.id).load.worked(std::mem::take(&mut self.turns), now.since(self.woke));
        }
        Duration::from_micros(wait.0)
    }

    /// Runs a turn; a panic in it costs its client and server, nothing else.
    fn guarded(&mut self, turn: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| turn(self))).is_err() {
            self.after_panic();
        }
    }

    fn obey_local(&mut self) {
        while let Some(message) = self.local.pop_front() {
            self.guarded(|worker| worker.message(message));
        }
    }

    fn event(&mut self, event: &Event) {
        match table::subject(event.token()) {
            Subject::Waker => {}
            Subject::Listener(index) => self.accept(index),
            Subject::Client(client) => {
                let client = ClientRef { worker: self.id, ..client };
                if let Some(found) = self.clients.get_mut(client) {
                    found.stream.note(event);
                    self.turn(client);
                }
            }
            Subject::Server(server) => {
                self.turning.attends(Some(server));
                self.server_event(server, event);
                self.turning.attends(None);
            }
        }
    }

    fn message(&mut self, message: Message) {
        self.turning.attends(message.server());
        self.obey_message(message);
        self.turning.attends(None);
    }

    fn obey_message(&mut self, message: Message) {
        match message {
            Message::Accepted(accepted) => self.adopt(accepted),
            Message::Wake(client) => self.wake(client),
            Message::TakesReserve(client) => self.takes_reserve(client),
            Message::Launch { server, pool, kind } => self.launch(server, pool, kind),
            Message::Check { conn, query, .. } => self.start_test(conn, query),
            Message::Evict { server, reason } => self.evict(server, &reason),
            Message::CloseClients { pool, why } => {
                for client in self.clients.refs_where(|client| client.pool.as_ref().is_some_and(|p| p.id == pool)) {
                    self.end(client, End { why: why.clone(), server: ServerFate::Goes });
                }
            }
            Message::CloseClient { client, why } => self.end(client, End::from(why)),
            Message::CancelTarget { target, request } => self.cancel_target(target, request),
            Message::CancelQueued { request, pool } => self.cancel_queued(request, pool),
            Message::CancelSent { request } => self.cancel_sent(request),
            Message::CancelFinished { request, why } => self.end(request, End::from(why)),
            Message::ClientDerived { client, keys } => self.client_derived(client, &keys),
            Message::Judged { client, accepted } => self.judged(client, accepted),
            Message::SystemUser { client, name } => self.system_user(client, name.as_deref()),
            Message::ServerDerived { server, derivation, keys } => self.server_derived(server, *derivation, &keys),
            Message::Helped { whose, work } => self.helped(whose, *work),
            Message::Resolved { server, addresses } => self.resolved(server, addresses),
            Message::Live(live) => self.live = live,
            Message::PoolModes => self.take_pool_modes(),
            Message::Picture(order) => self.picture(order),
            Message::Waiting(reply) => {
                let _ = reply.send(self.waiting());
            }
            Message::Census(reply) => self.censuses.push(census::Census::new(reply)),
            Message::ConsoleReply { client, bytes, waited } => self.console_reply(client, bytes, waited),
            Message::ConsoleWaits { client } => self.console_waits(client),
            Message::ConsolePieces { client, pieces } => self.console_pieces(client, &pieces),
            Message::HandOver(reply) => {
                let _ = reply.send(self.hand_over());
            }
            Message::Kill { id, done } => {
                let found = self.clients.refs_where(|c| {
                    crate::admin::snapshot::shown_id(c.id) == id && !matches!(c.phase, Phase::Login(_))
                });
                let _ = done.send(!found.is_empty());
                for client in found {
                    self.end(client, Disconnect::fatal("admin forced disconnect").into());
                }
            }
            Message::StopTcp => self.stop_tcp(),
            Message::Hold(hold) => self.set_hold(hold),
            Message::Restless(reply) => {
                let _ = reply.send(self.restless());
            }
            Message::SuspendTimeout => self.suspend_timeout(),
        }
    }

    /// Runs `call` under the broker's lock, then obeys what the pools ordered.
    #[inline]
    pub(crate) fn pools<T>(&mut self, call: impl FnOnce(&mut Broker) -> T) -> T {
        let done = locked(&self.shared.broker, &mut self.actions, call);
        if !self.actions.is_empty() {
            self.obey_actions();
        }
        done
    }

    /// As [`Worker::pools`] for calls that give a server back: what is to be closed is closed before anything is opened in
    /// its place.
    #[inline]
    pub(crate) fn pools_release(&mut self, call: impl FnOnce(&mut Broker) -> Released<Box<server::Server>>) {
        let released = locked(&self.shared.broker, &mut self.actions, call);
        if matches!(released, Released::Kept) {
            if !self.actions.is_empty() {
                self.obey_actions();
            }
            return;
        }
        let mut actions = std::mem::take(&mut self.actions);
        match released {
            Released::Kept => {}
            Released::Close { conn, reason } => self.close_server(*conn, &reason),
            Released::Test { conn, query } => self.start_test(conn, query),
        }
        if !actions.is_empty() {
            actions.append(&mut self.actions);
            self.actions = actions;
            self.obey_actions();
        } else if self.actions.is_empty() {
            self.actions = actions;
        }
    }

    fn obey_actions(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            let (worker, message) = match route(action) {
                Routed::Here(log) => {
                    self.obey_here(log);
                    continue;
                }
                Routed::To(worker, message) => (worker, message),
                Routed::All(messages) => {
                    for (index, post) in self.shared.posts.iter().enumerate() {
                        post.send(messages(index));
                    }
                    continue;
                }
            };
            if worker == self.id {
                self.local.push_back(message);
            } else {
                self.shared.post(worker).send(message);
            }
        }
        if self.actions.is_empty() {
            self.actions = actions;
        }
    }

    fn obey_here(&mut self, action: Here) {
        match action {
            Here::Close { conn, reason } => self.close_server(*conn, &reason),
            Here::Log(level, text) => log_line(level, &text),
            Here::Drained => self.shared.ask(crate::shared::Request::Drained),
        }
    }

    /// Gives one client its turn.
    pub(crate) fn turn(&mut self, client: ClientRef) {
        self.attend(client, |worker, client| {
            worker.turns += 1;
            let ended = worker.drive(client);
            if let Some(pool) = &client.pool {
                pool.add(worker.id, &std::mem::take(&mut worker.tally));
            }
            ended
        });
    }

    /// Does something for a client, and then gives it its turn.
    fn attend_and_turn(&mut self, who: ClientRef, act: impl FnOnce(&mut Self, &mut Client) -> Result<(), End>) {
        if self.attend(who, act) {
            self.turn(who);
        }
    }

    /// Does something for a client, and ends it if that says so. Should it panic, all that the client holds is given back.
    /// False: the client is no more.
    #[inline]
    fn attend(&mut self, who: ClientRef, act: impl FnOnce(&mut Self, &mut Client) -> Result<(), End>) -> bool {
        let Some(mut client) = self.clients.take(who) else { return false };
        self.turning.begin(&client);
        let ended = act(self, &mut client);
        self.flush_log(&client);
        self.turning.done();
        match ended {
            Ok(()) => self.clients.put_back(client),
            Err(end) => {
                self.disconnect(client, end);
                return false;
            }
        }
        true
    }

    fn drive(&mut self, client: &mut Client) -> Result<(), End> {
        match client.phase {
            _ if self.is_frozen(client) => Ok(()),
            Phase::Active => self.relay(client),
            Phase::Login(_) => self.login(client),
            Phase::Lookup(_) => self.lookup(client),
            Phase::Waiting(_) | Phase::WaitingLogin(_) => Self::still_there(client),
            Phase::Console(_) => self.console(client),
            Phase::Cancel(_) => {
                self.canceling(client);
                Ok(())
            }
        }
    }

    /// A queued client is not read, but one that has gone gives up its place.
    pub(crate) fn still_there(client: &mut Client) -> Result<(), End> {
        if client.stream.closing() {
            return Err(Disconnect::silent("client unexpected eof").into());
        }
        Ok(())
    }

    #[inline]
    fn flush_log(&mut self, client: &Client) {
        if !self.errors.is_empty() || !self.log.is_empty() {
            self.write_log(client);
        }
    }

    #[cold]
    fn write_log(&mut self, client: &Client) {
        if !self.errors.is_empty() {
            let mut ends = self.shared.ends.lock();
            self.errors.drain(..).for_each(|sqlstate| ends.server_error(&sqlstate));
        }
        for line in self.log.drain(..) {
            if line.bare {
                log_line(line.level, &line.text);
                continue;
            }
            let (conn, text) = (client.prefix(), &line.text);
            match line.level {
                Level::Error => tracing::error!(conn = %conn, "{text}"),
                Level::Warning => tracing::warn!(conn = %conn, "{text}"),
                Level::Log => tracing::info!(conn = %conn, "{text}"),
                Level::Debug => tracing::debug!(conn = %conn, "{text}"),
            }
        }
    }

    /// Ends a client from outside its own turn.
    pub(crate) fn end(&mut self, client: ClientRef, end: End) {
        if let Some(taken) = self.clients.take(client) {
            self.disconnect(taken, end);
        }
    }

    /// A turn panicked: what it held is closed and forgotten, everybody else is unharmed.
    fn after_panic(&mut self) {
        let trips = self.shared.guard.trip();
        let bug = crate::log::last_panic();
        if self.scratch.input.is_empty() {
            self.scratch.input = scratch_buffer(&self.live);
        }
        self.scratch.to_client.clear();
        self.scratch.to_server.clear();
        self.log.clear();
        self.tally = Counters::default();
        let (held, attended) = self.turning.take();
        let held = match (held, attended) {
            (Some(held), _) => held,
            (None, Some(server)) => return self.abandon_server(server, trips, &bug),
            (None, None) => {
                tracing::error!("a bug ended one turn: {bug} ({trips} so far)");
                return;
            }
        };
        let (client, server) = (held.client, held.server);
        tracing::error!("a bug ended one connection: client {client:?}, server {server:?}: {bug} ({trips} so far)");
        self.clients.forget(held.client);
        self.uncount(&held);
        if let Some(server) = held.server {
            self.places.clear(server);
        }
        let now = self.now;
        self.pools_after_panic(|broker| held.give_back(broker, now));
    }

    /// A turn of a server without a client panicked.
    fn abandon_server(&mut self, server: ServerId, trips: u64, bug: &str) {
        tracing::error!("a bug ended one connection: server {server:?}: {bug} ({trips} so far)");
        self.places.clear(server);
        let now = self.now;
        self.pools_after_panic(|broker| broker.pools.gone(server, now));
    }

    /// A bug in the pools themselves may show itself again: the worker lives on all the same.
    fn pools_after_panic(&mut self, call: impl FnOnce(&mut Broker)) {
        if catch_unwind(AssertUnwindSafe(|| self.pools(call))).is_err() {
            let (trips, bug) = (self.shared.guard.trip(), crate::log::last_panic());
            tracing::error!("what a bug held could not be given back: {bug} ({trips} so far)");
        }
    }

    pub(crate) fn place(&mut self, server: ServerId) -> Option<&mut Place> {
        self.places.get_mut(server)
    }
}

/// Where an action of the pools is to be obeyed.
enum Routed {
    Here(Here),
    To(WorkerId, Message),
    All(Box<dyn Fn(usize) -> Message>),
}

/// What any thread can do.
pub(crate) enum Here {
    Close { conn: Box<server::Server>, reason: std::borrow::Cow<'static, str> },
    Log(Level, String),
    Drained,
}

fn route(action: ServerAction) -> Routed {
    match action {
        ServerAction::Launch { server, pool, kind, home } => Routed::To(home, Message::Launch { server, pool, kind }),
        ServerAction::Wake(client) => Routed::To(client.worker, Message::Wake(client)),
        ServerAction::Close { conn, reason, .. } => Routed::Here(Here::Close { conn, reason }),
        ServerAction::Evict { server, home, reason } => Routed::To(home, Message::Evict { server, reason }),
        ServerAction::Check { server, conn, home, query } => Routed::To(home, Message::Check { server, conn, query }),
        ServerAction::CloseClients { pool, why } => {
            Routed::All(Box::new(move |_| Message::CloseClients { pool, why: why.clone() }))
        }
        ServerAction::CancelFinished(request, why) => {
            Routed::To(request.worker, Message::CancelFinished { request, why })
        }
        ServerAction::TakesReserve(client) => Routed::To(client.worker, Message::TakesReserve(client)),
        ServerAction::Drained => Routed::Here(Here::Drained),
        ServerAction::Log(level, text) => Routed::Here(Here::Log(level, text)),
    }
}

/// Obeys actions from a thread that is not a worker.
pub(crate) fn obey_from_outside(shared: &Shared, actions: &mut Vec<ServerAction>, mut here: impl FnMut(Here)) {
    for action in actions.drain(..) {
        match route(action) {
            Routed::Here(action) => here(action),
            Routed::To(worker, message) => shared.post(worker).send(message),
            Routed::All(messages) => {
                for (index, post) in shared.posts.iter().enumerate() {
                    post.send(messages(index));
                }
            }
        }
    }
}

/// Writes a line of the core to the log.
pub(crate) fn log_line(level: Level, text: &str) {
    match level {
        Level::Error => tracing::error!(target: EACH_TARGET, "{text}"),
        Level::Warning => tracing::warn!(target: EACH_TARGET, "{text}"),
        Level::Log => tracing::info!(target: EACH_TARGET, "{text}"),
        Level::Debug => tracing::debug!(target: EACH_TARGET, "{text}"),
    }
}
