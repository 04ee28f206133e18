//! Server connections without a client: events on parked ones, reset and check queries, eviction.

use mio::event::Event;

use crate::config::PoolMode;
use crate::disconnect::Disconnect;
use crate::id::{ClientRef, ServerId};
use crate::net::stream::{ReadResult, Stream};
use crate::pool::TestQuery;
use crate::relay::downstream::Downstream;
use crate::relay::link::Ctx;
use crate::shared::Hold;
use crate::wire::scan::Item;
use crate::wire::tag::backend as be;
use crate::worker::Worker;
use crate::worker::client::{End, Phase, ServerFate};
use crate::worker::relay::context;
use crate::worker::server::Server;
use crate::worker::table::Place;

/// Messages that a server may say unasked before it is closed, each of which makes a line in the log: notifications.
const MAX_UNASKED: u32 = 1000;

/// What a look at an idle server found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// It spoke without being asked.
    Dirty,
    /// It said why it ends.
    Leaving,
    Gone,
}

impl Worker {
    pub(super) fn server_event(&mut self, server: ServerId, event: &Event) {
        match self.place(server) {
            Some(Place::Linked(client)) => {
                let client = *client;
                if let Some(found) = self.clients.get_mut(client)
                    && let Some(linked) = &mut found.server
                    && linked.me == server
                {
                    linked.stream.note(event);
                    self.turn(client);
                }
            }
            Some(Place::Opening(_)) => self.opening_event(server, event),
            Some(Place::Testing(_)) => {
                let Place::Testing(mut testing) = self.places.take(server) else { return };
                testing.stream.note(event);
                self.test_turn(testing);
            }
            Some(Place::Draining { .. }) => {
                let Place::Draining { server: mut draining, session_end } = self.places.take(server) else { return };
                draining.stream.note(event);
                self.drain_turn(draining, session_end);
            }
            Some(Place::Leaving(_)) => {
                let Place::Leaving(mut leaving) = self.places.take(server) else { return };
                leaving.stream.note(event);
                self.looked_at(leaving, Found::Leaving);
            }
            Some(Place::Elsewhere) | None => {
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.inspect(server, |stream| stream.note(event));
                }
            }
        }
    }

    /// A parked server became readable: it died, or it said something that nobody asked for.
    pub(super) fn inspect(&mut self, server: ServerId, note: impl FnOnce(&mut Stream)) {
        if matches!(self.hold, Hold::Frozen(_)) {
            self.missed.push(server);
            return;
        }
        let Some(parked) = self.pools(|broker| broker.pools.take_parked(server)) else { return };
        let mut conn = parked.conn;
        note(&mut conn.stream);
        self.looked_at(conn, Found::Nothing);
    }

    /// Reads what a connection without a client has to say after it was found in some state.
    fn looked_at(&mut self, mut conn: Box<Server>, before: Found) {
        match self.look(&mut conn, before) {
            Found::Gone => self.drop_server(*conn, "server conn crashed?"),
            Found::Leaving if self.hold == Hold::Off => self.places.set(conn.me, Place::Leaving(conn)),
            found => self.put_back(conn, found != Found::Nothing),
        }
    }

    fn put_back(&mut self, conn: Box<Server>, dirty: bool) {
        let (server, now) = (conn.me, self.now);
        self.pools_release(|broker| broker.pools.put_back(server, conn, dirty, now));
    }

    /// Closes those whose end has not come.
    pub(super) fn sweep_leaving(&mut self) {
        let leaving = self.places.iter().filter_map(|place| match place {
            Place::Leaving(server) => Some(server.me),
            _ => None,
        });
        for server in leaving.collect::<Vec<_>>() {
            if let Place::Leaving(conn) = self.places.take(server) {
                self.put_back(conn, true);
            }
        }
    }

    fn look(&mut self, conn: &mut Server, mut found: Found) -> Found {
        let (mut allowed, mut rounds) = (MAX_UNASKED, 0..self.rounds());
        // its end counts for more than its last words
        while conn.stream.readable() && (found != Found::Dirty || conn.stream.closing()) {
            if rounds.next().is_none() {
                // whoever talks so much without being asked has the worker for himself
                return Found::Dirty;
            }
            let read = match conn.stream.read(&mut self.scratch.input) {
                ReadResult::Data(n) => n,
                ReadResult::Nothing => break,
                gone @ (ReadResult::Eof | ReadResult::Failed(_)) => {
                    conn.lost_while_reading(&gone);
                    return Found::Gone;
                }
            };
            let mut pos = 0;
            while let Ok(Some(item)) = conn.side.scan.next(&self.scratch.input[..read], &mut pos, i32::MAX as u32) {
                if let Item::Whole { tag, .. } | Item::Begin { tag, .. } = item {
                    let shown = char::from(tag);
                    tracing::warn!(conn = %conn.prefix(), "got packet '{shown}' from server when not linked");
                    found = match tag {
                        be::ERROR_RESPONSE => Found::Leaving,
                        be::NOTIFICATION_RESPONSE => found,
                        _ if found == Found::Leaving => found,
                        _ => Found::Dirty,
                    };
                    allowed -= 1;
                }
                if allowed == 0 {
                    return Found::Dirty;
                }
            }
        }
        if found == Found::Nothing && !conn.side.scan.at_boundary() { Found::Dirty } else { found }
    }

    /// A connection of the reserve is opened for a client.
    pub(super) fn takes_reserve(&self, client: ClientRef) {
        if let Some(client) = self.clients.get(client) {
            tracing::warn!(conn = %client.prefix(), "taking connection from reserve_pool");
        }
    }

    /// The text of a reset or check query.
    pub(super) fn test_sql(&self, query: TestQuery) -> String {
        let settings = &self.live.config.settings;
        match query {
            TestQuery::Reset => settings.server_reset_query.clone(),
            TestQuery::Check => settings.check_query().unwrap_or_default().to_owned(),
        }
    }

    fn test_turn(&mut self, mut conn: Box<Server>) {
        if let Err(why) = self.hear_out(&mut conn) {
            return self.drop_server(*conn, &why.reason);
        }
        if conn.stream.readable() || !conn.side.is_clean() {
            self.places.set(conn.me, Place::Testing(conn));
            return;
        }
        conn.testing = None;
        let (id, home, now) = (conn.me, self.id, self.now);
        self.pools_release(|broker| broker.pools.tested(id, conn, home, now));
    }

    /// Sends and reads what there is on a connection without a client; what it says is for nobody. If it does not stop talking
    /// it gets another turn. An error is why it must go.
    pub(super) fn hear_out(&mut self, conn: &mut Server) -> Result<(), Disconnect> {
        let crashed = || Disconnect::silent("server conn crashed?");
        if conn.stream.is_blocked()
            && let Err(error) = conn.stream.flush()
        {
            conn.lose(&error);
            return Err(crashed());
        }
        for _ in 0..self.rounds() {
            if !conn.stream.readable() {
                return Ok(());
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            let ran = match conn.stream.read(&mut scratch.input) {
                ReadResult::Data(n) => {
                    let mut ctx = context!(self, PoolMode::Session);
                    let out = &mut scratch.to_client;
                    Downstream { client: None, server: &mut conn.side, ctx: &mut ctx, out }.run(&scratch.input[..n])
                }
                ReadResult::Nothing => Ok(()),
                gone @ (ReadResult::Eof | ReadResult::Failed(_)) => {
                    conn.lost_while_reading(&gone);
                    Err(crashed())
                }
            };
            scratch.to_client.clear();
            self.scratch = scratch;
            conn.pool.add(self.id, &std::mem::take(&mut self.tally));
            if let Err(why) = &ran {
                self.note_impossible(conn, why);
            }
            ran?;
        }
        if conn.stream.readable() {
            self.talks_on(conn.me);
        }
        Ok(())
    }

    /// Has a server without a client looked at again, once, after the others' turns.
    pub(super) fn talks_on(&mut self, server: ServerId) {
        if !self.talking.contains(&server) {
            self.talking.push(server);
        }
    }

    /// Another turn for a server that did not stop talking.
    pub(super) fn talking_turn(&mut self, server: ServerId) {
        self.turning.attends(Some(server));
        match self.places.take(server) {
            Place::Testing(conn) => self.test_turn(conn),
            Place::Draining { server: conn, session_end } => self.drain_turn(conn, session_end),
            // gone meanwhile, and another one may be in its place
            Place::Elsewhere => {}
            other => self.places.set(server, other),
        }
        self.turning.attends(None);
    }

    /// The pools want a server gone that is in our hands.
    pub(super) fn evict(&mut self, server: ServerId, reason: &str) {
        match self.places.take(server) {
            Place::Elsewhere => {}
            Place::Linked(client) => {
                self.places.set(server, Place::Linked(client));
                if self.clients.get_mut(client).is_some_and(|client| matches!(client.phase, Phase::Lookup(_))) {
                    return self.end_lookup(client, reason);
                }
                let why = Disconnect::fatal(reason.to_owned());
                self.end(client, End { why, server: ServerFate::Goes });
            }
            Place::Testing(conn) | Place::Draining { server: conn, .. } | Place::Leaving(conn) => {
                self.drop_server(*conn, reason);
            }
            Place::Opening(opening) => self.opening_evicted(*opening, reason),
        }
    }
}
