//! Clients and servers joined by the pools and the relay, with time, scheduling, cuts and faults from one seed.
//!
//! The glue does what a worker does, in the same order (`src/worker/relay.rs`). What must hold is verified after every step.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use pgusher::config::{Config, Database, LogLine, PoolMode};
use pgusher::disconnect::Disconnect;
use pgusher::id::{ClientRef, PoolId, ServerId, Ticket, WorkerId};
use pgusher::pool::{
    Action, Attached, Checkout, Collected, FailureKind, Grant, LaunchKind, LoginFailure, PoolRow, Pools, Released,
    WaitFor, Want,
};
use pgusher::relay::downstream::Downstream;
use pgusher::relay::link::{Ctx, Drained, align, can_drain, drained, settled};
use pgusher::relay::out::Out;
use pgusher::relay::outstanding::Outstanding;
use pgusher::relay::prepared::Statements;
use pgusher::relay::side::{ClientSide, ServerSide};
use pgusher::relay::upstream::{Flow, Unlinked, Upstream, unlinked};
use pgusher::relay::vars::{Interner, TrackedNames, Vars};
use pgusher::stats::Counters;
use pgusher::time::Micros;

use super::postgres::Postgres;
use super::script;

pub(crate) const CLIENTS: u32 = 10;
const WORKERS: u32 = 3;
const USERS: [&str; 2] = ["ann", "bob"];

/// xorshift64*
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let roll = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D);
        usize::try_from((roll >> 33) % n as u64).expect("it is below a usize")
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A mistake that the glue makes once, to see whether anybody notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// An answer that is owed is forgotten.
    Desync,
    /// A server is given back although it still owes something.
    EarlyRelease,
    /// A server is closed and the pools are not told.
    LostServer,
    /// The oldest of those who wait goes to the end of the line.
    BrokenFifo,
    /// A server's parameters are taken for the client's.
    Leak,
}

/// A server connection: what the relay knows of it, the server behind it, and the bytes under way.
struct Link {
    id: ServerId,
    side: ServerSide,
    behind: Postgres,
    to_server: Vec<u8>,
    to_us: Vec<u8>,
    dead: bool,
    /// How many exist can be counted.
    _alive: Rc<()>,
}

enum Phase {
    /// For the reply to its login.
    Login(Ticket),
    Idle,
    Waiting(Ticket),
}

struct Session {
    side: ClientSide,
    at: Attached,
    phase: Phase,
    link: Option<Box<Link>>,
    /// Said, and not read by us yet.
    unread: Vec<u8>,
    /// Read, and waiting.
    kept: Option<Vec<u8>>,
    /// What a PostgreSQL of its own answers, and what we have passed on.
    own: Postgres,
    expected: Vec<u8>,
    got: usize,
    /// Requests and batches since all answers had come.
    asked: u64,
}

#[derive(Default)]
struct Client {
    generation: u32,
    session: Option<Box<Session>>,
}

impl Link {
    /// The server has nothing to do and nothing to say.
    fn assert_rest(&self, when: &str) {
        // a Flush behind the last answer may be under way: nothing will come of it
        let rests = self.behind.is_idle() && self.behind.hears_nothing_new(&self.to_server);
        assert!(rests, "{when} in the middle of something: {:?}, still to hear {:?}", self.behind, self.to_server);
    }
}

/// How many connections a pool has.
const fn connections(row: &PoolRow) -> usize {
    (row.sv_active + row.sv_idle + row.sv_used + row.sv_tested + row.sv_login + row.sv_being_canceled) as usize
}

/// How a session ends.
enum End {
    Client,
    Both,
}

pub(crate) struct World {
    pools: Pools<Box<Link>, ()>,
    mode: PoolMode,
    size: usize,
    names: TrackedNames,
    interner: Interner,
    table: Statements,
    tally: Counters,
    log: Vec<LogLine>,
    dice: Dice,
    now: Micros,
    clients: Vec<Client>,
    opening: Vec<(ServerId, WorkerId)>,
    /// What clients left in the middle of a query is heard out.
    drains: bool,
    draining: Vec<Link>,
    evict: Vec<ServerId>,
    lines: BTreeMap<PoolId, VecDeque<u32>>,
    alive: Rc<()>,
    token: u64,
    /// Nothing fails any more.
    peace: bool,
    plant: Option<Plant>,
    /// How often the mistake has been made.
    pub(crate) made: u32,
    /// Requests and batches that were answered in full, and faults that somebody had to stand.
    pub(crate) transactions: u64,
    pub(crate) faults: u64,
    /// Servers that were used again although their client had left in the middle of a query.
    pub(crate) drained: u64,
}

/// The context of a call of the relay.
macro_rules! context {
    ($world:ident, $table:ident, $errors:ident) => {
        Ctx {
            now: $world.now,
            tracking: if $world.mode == PoolMode::Session { 0 } else { 2 },
            session_mode: $world.mode == PoolMode::Session,
            statement_mode: $world.mode == PoolMode::Statement,
            disable_pqexec: false,
            max_packet: 0x7fff_ffff,
            names: &$world.names,
            interner: &mut $world.interner,
            statements: &mut |tail| $table.intern(tail),
            tally: &mut $world.tally,
            log: &mut $world.log,
            errors: $errors,
            verbose: false,
        }
    };
}

impl World {
    pub(crate) fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mode = dice.pick(&[PoolMode::Transaction, PoolMode::Transaction, PoolMode::Session, PoolMode::Statement]);
        let size = dice.pick(&[1, 2, 3, 5]);
        let mut config = Config::default();
        config.settings.pool_mode = mode;
        config.settings.default_pool_size = i64::try_from(size).expect("small");
        config.settings.max_db_connections = dice.pick(&[0, 3]);
        config.settings.server_login_retry = Micros::ZERO;
        config.settings.server_check_delay = Micros::from_secs(1_000_000);
        config.settings.server_lifetime = Micros::from_millis(dice.pick(&[100, 3_600_000]));
        config.settings.server_round_robin = dice.one_in(3).into();
        let mut database = Database::new("db");
        database.host = Some("h".to_owned());
        config.databases.insert("db".to_owned(), database);
        Self {
            pools: Pools::new(Arc::new(config), Micros::ZERO),
            mode,
            size,
            names: TrackedNames::new([]),
            interner: Interner::default(),
            table: Statements::default(),
            tally: Counters::default(),
            log: Vec::new(),
            dice,
            now: Micros::from_secs(1),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            opening: Vec::new(),
            drains: seed.is_multiple_of(2),
            draining: Vec::new(),
            evict: Vec::new(),
            lines: BTreeMap::new(),
            alive: Rc::new(()),
            token: 0,
            peace: false,
            plant,
            made: 0,
            transactions: 0,
            faults: 0,
            drained: 0,
        }
    }

    /// True when it is time for this mistake; from then on it has been made.
    fn errs(&mut self, plant: Plant, occasion: bool) -> bool {
        // one slip, except where it takes a question to notice it
        let errs =
            self.plant == Some(plant) && occasion && self.transactions > 20 && (self.made == 0 || plant == Plant::Leak);
        self.made += u32::from(errs);
        errs
    }

    pub(crate) fn step(&mut self) {
        self.now = self.now + Micros(1 + self.dice.below(400) as u64);
        match self.dice.below(100) {
            0..=69 => self.client_step(),
            70..=84 => self.server_step(),
            85..=93 => self.open_step(),
            94..=95 => self.evict_step(),
            96 if !self.peace && self.dice.one_in(4) => self.fault_step(),
            96 if self.plant == Some(Plant::BrokenFifo) => self.plant_fifo(),
            _ => self.pools.tick(self.now),
        }
        self.settle();
        self.counts_hold();
    }

    pub(crate) fn check(&self) {
        self.pools.check();
    }

    // -- clients

    fn reference(&self, index: u32) -> ClientRef {
        let worker = WorkerId::try_from(index % WORKERS).expect("few workers");
        ClientRef { worker, index, generation: self.clients[index as usize].generation }
    }

    fn client_step(&mut self) {
        let index = u32::try_from(self.dice.below(CLIENTS as usize)).expect("few clients");
        let Some(mut session) = self.clients[index as usize].session.take() else {
            if !self.peace {
                self.come(index);
            }
            return;
        };
        if !matches!(session.phase, Phase::Login(_)) {
            self.speak(&mut session);
        }
        let ended = match session.phase {
            Phase::Login(ticket) => self.log_in(&mut session, ticket),
            Phase::Waiting(ticket) => self.collect(index, &mut session, ticket),
            Phase::Idle => self.round(index, &mut session),
        };
        let content = session.got == session.expected.len() && session.own.is_idle() && session.unread.is_empty();
        match ended {
            Ok(()) if content && !self.peace && self.dice.one_in(40) => self.leave(index, session, End::Client),
            Ok(()) => self.clients[index as usize].session = Some(session),
            Err(end) => self.leave(index, session, end),
        }
    }

    fn come(&mut self, index: u32) {
        let user = USERS[index as usize % USERS.len()];
        let db = self.pools.find_database("db", self.now).expect("it is configured");
        let Ok(at) = self.pools.attach(db, user, false, self.now) else { return };
        let phase = match self.pools.checkout(self.want(index, at.pool, WaitFor::LoginReply), self.now) {
            Checkout::LoginReady(()) => {
                self.pools.client_ready(at.pool, self.now);
                Phase::Idle
            }
            Checkout::Queued(ticket) => Phase::Login(ticket),
            Checkout::Refused(_) => return self.pools.detach(at.pool, at.user, false, self.now),
            Checkout::Granted(_) => panic!("a server for a login"),
        };
        let name = format!("app{index}");
        let at_name = self.names.index_of("application_name").expect("it is tracked");
        let vars = Vars::from_values(&self.names, [(at_name, &*name)]);
        self.clients[index as usize].session = Some(Box::new(Session {
            side: ClientSide::new(self.interner.intern(vars)),
            at,
            phase,
            link: None,
            unread: Vec::new(),
            kept: None,
            own: Postgres::new(&name),
            expected: Vec::new(),
            got: 0,
            asked: 0,
        }));
    }

    /// The client says something more, at the latest when it has all its answers.
    fn speak(&mut self, session: &mut Session) {
        let answered = session.got == session.expected.len() && session.unread.is_empty();
        let rests = session.own.is_idle() && (self.peace || self.dice.one_in(3));
        if rests || !(answered || self.dice.one_in(12) && session.unread.len() < 3000) {
            return;
        }
        self.token += 1;
        session.asked += 1;
        let from = session.unread.len();
        script::next(&session.own, self.token, &mut self.dice, &mut session.unread);
        if answered {
            session.expected.clear();
            session.got = 0;
        }
        session.own.hear(&session.unread[from..], &mut session.expected);
    }

    /// How many bytes come with the next read.
    fn cut(&mut self, len: usize) -> usize {
        if len == 0 {
            return 0;
        }
        match self.dice.below(4) {
            0 => len.min(1 + self.dice.below(3)),
            1 => 1 + self.dice.below(len),
            _ => len,
        }
    }

    fn round(&mut self, index: u32, session: &mut Session) -> Result<(), End> {
        if session.link.is_some() {
            self.read_server(session)?;
            self.let_go(session);
        }
        if let Some(kept) = session.kept.take() {
            if session.link.as_ref().is_some_and(|link| link.side.setting_vars) {
                session.kept = Some(kept);
                return Ok(());
            }
            return self.client_bytes(index, session, &kept);
        }
        if session.unread.is_empty() || session.link.as_ref().is_some_and(|link| link.side.setting_vars) {
            return Ok(());
        }
        let cut = self.cut(session.unread.len());
        let input: Vec<u8> = session.unread.drain(..cut).collect();
        self.client_bytes(index, session, &input)
    }

    /// Calls the relay with everything it needs, and carries what it wrote.
    fn with<T>(
        &mut self,
        session: &mut Session,
        input: &[u8],
        act: impl FnOnce(&mut ClientSide, Option<&mut ServerSide>, &mut Ctx<'_>, &mut Out, &mut Out) -> T,
    ) -> T {
        let (table, errors) = (&mut self.table, &mut Vec::new());
        let mut ctx = context!(self, table, errors);
        let (mut back, mut out) = (Out::default(), Out::default());
        let server = session.link.as_mut().map(|link| &mut link.side);
        let done = act(&mut session.side, server, &mut ctx, &mut back, &mut out);
        self.log.clear();
        for slice in back.slices(input) {
            let expected = &session.expected[session.got..];
            assert!(expected.starts_with(slice), "sees {slice:?}\ninstead of {expected:?}");
            session.got += slice.len();
        }
        if let Some(link) = &mut session.link {
            out.slices(input).for_each(|slice| link.to_server.extend_from_slice(slice));
        }
        done
    }

    fn read_server(&mut self, session: &mut Session) -> Result<(), End> {
        let Some(link) = &mut session.link else { return Ok(()) };
        if link.to_us.is_empty() {
            if !link.dead {
                return Ok(());
            }
            // its end
            if self.mode != PoolMode::Session && settled(&session.side, &link.side) && session.kept.is_none() {
                link.side.leaving = true;
                return Ok(());
            }
            return Err(End::Both);
        }
        let len = link.to_us.len();
        let cut = self.cut(len);
        let input: Vec<u8> = session.link.as_mut().expect("it is there").to_us.drain(..cut).collect();
        let before = session.got;
        let ran = self.with(session, &input, |client, server, ctx, back, _| {
            let server = server.expect("it is linked");
            Downstream { client: Some(client), server, ctx, out: back }.run(&input)
        });
        if session.got > before && session.got == session.expected.len() {
            self.transactions += std::mem::take(&mut session.asked);
        }
        ran.map_err(|why| self.both(&why))
    }

    /// Honest servers give no reason for an end but this one.
    fn both(&mut self, why: &Disconnect) -> End {
        let allowed = self.mode == PoolMode::Statement && why.reason.contains("transaction blocks not allowed");
        assert!(allowed, "an honest server is accused: {why:?}");
        End::Both
    }

    fn let_go(&mut self, session: &mut Session) {
        let Some(link) = &session.link else { return };
        if link.side.leaving {
            let link = session.link.take().expect("it is there");
            session.side.settle();
            self.drop_link(*link);
            return;
        }
        let mut free =
            settled(&session.side, &link.side) && session.kept.is_none() && link.to_us.is_empty() && !link.dead;
        if free {
            link.assert_rest("given back");
        }
        let talks = !link.to_us.is_empty() && !link.dead && self.mode != PoolMode::Session;
        free |= self.errs(Plant::EarlyRelease, talks);
        if free && self.mode != PoolMode::Session {
            session.side.settle();
            let link = session.link.take().expect("it is there");
            self.release(link, false);
        }
    }

    fn release(&mut self, link: Box<Link>, session_end: bool) {
        let id = link.id;
        let home = WorkerId::try_from(self.dice.below(WORKERS as usize)).expect("few workers");
        let released = self.pools.release(id, link, session_end, home, self.now);
        self.settle_released(id, released, home);
    }

    /// Input in hand: as far as it goes without a server, then with one.
    fn client_bytes(&mut self, index: u32, session: &mut Session, input: &[u8]) -> Result<(), End> {
        let mut at = 0;
        if session.link.is_none() {
            match self.with(session, input, |client, _, ctx, back, _| unlinked(client, ctx, input, back)) {
                Err(why) => panic!("an honest client is accused: {why:?}"),
                Ok(Unlinked::Consumed) => return Ok(()),
                Ok(Unlinked::NeedServer { at: from }) => at = from,
            }
            if !self.need_server(index, session)? {
                session.kept = Some(input[at..].to_vec());
                return Ok(());
            }
        }
        let ran = self.with(session, input, |client, server, ctx, back, out| {
            let server = server.expect("it is linked");
            Upstream { client, server, ctx, out, back }.run(input, at)
        });
        let owes = session.link.as_ref().is_some_and(|link| !link.side.outstanding.is_empty() && !link.dead);
        if self.errs(Plant::Desync, owes)
            && let Some(link) = &mut session.link
        {
            link.side.outstanding = Outstanding::default();
        }
        match ran {
            Err(why) => panic!("an honest client is accused: {why:?}"),
            Ok(Flow::Consumed) => {}
            Ok(Flow::Settle { at }) => {
                let held = session.side.extra.as_ref().is_some_and(|extra| extra.held);
                session.kept = (at < input.len() || held).then(|| input[at..].to_vec());
            }
        }
        Ok(())
    }

    fn need_server(&mut self, index: u32, session: &mut Session) -> Result<bool, End> {
        let pool = session.at.pool;
        match self.pools.checkout(self.want(index, pool, WaitFor::Query), self.now) {
            Checkout::Granted(grant) => {
                assert!(self.lines.get(&pool).is_none_or(VecDeque::is_empty), "overtook those in line");
                Ok(self.link(session, grant))
            }
            Checkout::Queued(ticket) => {
                self.lines.entry(pool).or_default().push_back(index);
                session.phase = Phase::Waiting(ticket);
                Ok(false)
            }
            Checkout::Refused(_) => Err(End::Client),
            Checkout::LoginReady(()) => panic!("a login reply for a query"),
        }
    }

    fn link(&mut self, session: &mut Session, grant: Grant<Box<Link>>) -> bool {
        let mut link = grant.conn;
        assert_eq!(link.id, grant.server);
        assert!(link.to_us.is_empty() || link.dead, "a server that talks is lent");
        assert!(link.side.is_clean() && link.behind.is_idle(), "a server that is not clean is lent");
        if self.errs(Plant::Leak, link.side.vars != session.side.vars) {
            link.side.vars = session.side.vars.clone();
        }
        session.link = Some(link);
        !self.with(session, &[], |client, server, ctx, _, out| align(client, server.expect("linked"), ctx, out))
    }

    fn collect(&mut self, index: u32, session: &mut Session, ticket: Ticket) -> Result<(), End> {
        if !self.peace && self.dice.one_in(400) {
            // query_wait_timeout, or the client has no more patience
            self.faults += 1;
            return Err(End::Client);
        }
        match self.pools.collect(ticket) {
            Collected::Waiting => Ok(()),
            Collected::Granted(grant) => {
                session.phase = Phase::Idle;
                self.link(session, grant);
                self.round(index, session)
            }
            Collected::Refused(_) => {
                session.phase = Phase::Idle;
                Err(End::Client)
            }
            Collected::LoginReady(()) => panic!("a login reply for a query"),
        }
    }

    fn log_in(&mut self, session: &mut Session, ticket: Ticket) -> Result<(), End> {
        match self.pools.collect(ticket) {
            Collected::Waiting => return Ok(()),
            Collected::LoginReady(()) => self.pools.client_ready(session.at.pool, self.now),
            Collected::Refused(_) => return Err(End::Client),
            Collected::Granted(_) => panic!("a server for a login"),
        }
        session.phase = Phase::Idle;
        Ok(())
    }

    fn want(&self, index: u32, pool: PoolId, kind: WaitFor) -> Want {
        let client = self.reference(index);
        Want { client, pool, kind, since: self.now, home: client.worker, replication: false }
    }

    /// The client is gone, and gives back what it held.
    fn leave(&mut self, index: u32, mut session: Box<Session>, end: End) {
        if let Phase::Waiting(ticket) = session.phase {
            if let Some(line) = self.lines.get_mut(&session.at.pool) {
                line.retain(|&other| other != index);
            }
            self.pools.abandon(ticket, self.now);
        }
        let ready = !matches!(session.phase, Phase::Login(_));
        if let Phase::Login(ticket) = session.phase {
            self.pools.abandon(ticket, self.now);
        }
        if let Some(link) = session.link.take() {
            let clean = link.side.is_clean() && !session.side.copying && !session.side.scan.in_body();
            if matches!(end, End::Client) && clean && link.to_us.is_empty() && !link.dead {
                link.assert_rest("given back");
                self.release(link, self.mode == PoolMode::Session);
            } else if self.drains && matches!(end, End::Client) && !link.dead && can_drain(&session.side, &link.side) {
                self.draining.push(*link);
            } else {
                self.drop_link(*link);
            }
        }
        self.settle();
        self.clients[index as usize].generation += 1;
        self.pools.detach(session.at.pool, session.at.user, ready, self.now);
    }

    // -- servers

    fn drop_link(&mut self, link: Link) {
        let id = link.id;
        drop(link);
        if !self.errs(Plant::LostServer, true) {
            self.pools.gone(id, self.now);
        }
    }

    fn settle_released(&mut self, id: ServerId, released: Released<Box<Link>>, home: WorkerId) {
        match released {
            Released::Kept => {}
            Released::Close { conn, .. } => drop(conn),
            Released::Test { mut conn, .. } => {
                // DISCARD ALL
                let name = "server";
                conn.behind = Postgres::new(name);
                conn.side = ServerSide::new(self.server_vars(name));
                let released = self.pools.tested(id, conn, home, self.now);
                self.settle_released(id, released, home);
            }
        }
    }

    fn server_vars(&mut self, name: &str) -> Vars {
        let at = self.names.index_of("application_name").expect("it is tracked");
        let vars = Vars::from_values(&self.names, [(at, name)]);
        self.interner.intern(vars)
    }

    /// A server whose client has left hears something, and something of what it says is heard.
    fn drain_step(&mut self) {
        let at = self.dice.below(self.draining.len());
        let mut link = Box::new(self.draining.swap_remove(at));
        let cut = self.cut(link.to_server.len());
        let heard: Vec<u8> = link.to_server.drain(..cut).collect();
        link.behind.hear(&heard, &mut link.to_us);
        let cut = self.cut(link.to_us.len());
        let input: Vec<u8> = link.to_us.drain(..cut).collect();
        let (table, errors) = (&mut self.table, &mut Vec::new());
        let ctx = &mut context!(self, table, errors);
        let ran = Downstream { client: None, server: &mut link.side, ctx, out: &mut Out::default() }.run(&input);
        ran.expect("an honest server is accused");
        match drained(&link.side) {
            Drained::NotYet if !self.peace && self.dice.one_in(100) => self.drop_link(*link),
            Drained::NotYet => self.draining.push(*link),
            Drained::Stuck => self.drop_link(*link),
            Drained::Clean => {
                link.assert_rest("given back after its client");
                self.drained += 1;
                self.release(link, self.mode == PoolMode::Session);
            }
        }
    }

    /// A linked server hears something of what was sent to it.
    fn server_step(&mut self) {
        if !self.draining.is_empty() && self.dice.one_in(2) {
            return self.drain_step();
        }
        let index = self.dice.below(CLIENTS as usize);
        let Some(len) = self.linked(index).map(|link| link.to_server.len()).filter(|&len| len > 0) else { return };
        let cut = self.cut(len);
        let Some(link) = self.linked(index) else { return };
        let heard: Vec<u8> = link.to_server.drain(..cut).collect();
        if !link.dead {
            link.behind.hear(&heard, &mut link.to_us);
        }
    }

    fn linked(&mut self, index: usize) -> Option<&mut Link> {
        self.clients[index].session.as_mut()?.link.as_deref_mut()
    }

    fn open_step(&mut self) {
        if self.opening.is_empty() {
            return;
        }
        let at = self.dice.below(self.opening.len());
        let (id, home) = self.opening.swap_remove(at);
        if !self.peace && self.dice.one_in(10) {
            self.faults += 1;
            let failure = LoginFailure { reason: "connect failed".to_owned(), kind: FailureKind::Connect };
            return self.pools.login_failed(id, failure, self.now);
        }
        let vars = self.server_vars("server");
        let link = Box::new(Link {
            id,
            side: ServerSide::new(vars),
            behind: Postgres::new("server"),
            to_server: Vec::new(),
            to_us: Vec::new(),
            dead: false,
            _alive: Rc::clone(&self.alive),
        });
        let released = self.pools.logged_in(id, link, (), home, self.now);
        self.settle_released(id, released, home);
    }

    fn evict_step(&mut self) {
        let Some(id) = self.evict.pop() else { return };
        if let Some(at) = self.opening.iter().position(|other| other.0 == id) {
            self.opening.swap_remove(at);
            let failure = LoginFailure { reason: "evicted".to_owned(), kind: FailureKind::Connect };
            return self.pools.login_failed(id, failure, self.now);
        }
        if let Some(at) = self.draining.iter().position(|link| link.id == id) {
            let link = self.draining.swap_remove(at);
            return self.drop_link(link);
        }
        for index in 0..CLIENTS {
            if self.linked(index as usize).is_some_and(|link| link.id == id)
                && let Some(session) = self.clients[index as usize].session.take()
            {
                self.leave(index, session, End::Both);
            }
        }
    }

    // -- faults

    fn fault_step(&mut self) {
        let index = u32::try_from(self.dice.below(CLIENTS as usize)).expect("few clients");
        match self.dice.below(5) {
            0 => self.parked_dies(),
            1 => self.linked_dies(index as usize),
            kind if kind == 2 || (kind == 4 && self.drains) => {
                if let Some(session) = self.clients[index as usize].session.take() {
                    self.faults += 1;
                    self.leave(index, session, End::Client);
                }
            }
            3 if self.dice.one_in(4) => {
                let done = if self.dice.one_in(2) { self.pools.reconnect(None, self.now) } else { Ok(()) };
                done.expect("nobody else is at the console");
            }
            _ => {}
        }
    }

    /// A linked server dies with what it has said half delivered, with or without last words.
    fn linked_dies(&mut self, index: usize) {
        let keep = self.dice.below(3);
        let cut = self.dice.below(4000);
        let Some(link) = self.linked(index).filter(|link| !link.dead) else { return };
        link.dead = true;
        match keep {
            0 => link.to_us.clear(),
            1 => link.to_us.truncate(cut),
            _ => {}
        }
        self.faults += 1;
    }

    fn parked_dies(&mut self) {
        let mut parked = Vec::new();
        self.pools.server_rows(|row| parked.extend(row.conn.map(|_| row.server)));
        if parked.is_empty() {
            return;
        }
        let id = self.dice.pick(&parked);
        let taken = self.pools.take_parked(id).expect("it is parked");
        assert!(taken.conn.side.is_clean() && taken.conn.behind.is_idle() && taken.conn.to_us.is_empty());
        self.faults += 1;
        self.drop_link(*taken.conn);
    }

    fn plant_fifo(&mut self) {
        if self.plant != Some(Plant::BrokenFifo) {
            return;
        }
        let Some((&pool, first)) =
            self.lines.iter().find(|(_, line)| line.len() > 2).map(|(pool, line)| (pool, line[0]))
        else {
            return;
        };
        let want = self.want(first, pool, WaitFor::Query);
        let Some(session) = &mut self.clients[first as usize].session else { return };
        let Phase::Waiting(ticket) = session.phase else { return };
        self.pools.abandon(ticket, self.now);
        self.made += 1;
        if let Checkout::Queued(ticket) = self.pools.checkout(want, self.now) {
            session.phase = Phase::Waiting(ticket);
        }
    }

    // -- obedience and judgement

    fn settle(&mut self) {
        let mut launched = Vec::new();
        while let Some(action) = self.pools.next_action() {
            match action {
                Action::Launch { server, pool, kind, home } => {
                    assert_eq!(kind, LaunchKind::Login);
                    self.opening.push((server, home));
                    launched.push(pool);
                }
                Action::Wake(client) => {
                    let session = self.clients[client.index as usize].session.as_ref();
                    // who is in the middle of a turn is taken out, and waits for no login
                    if session.is_some_and(|session| matches!(session.phase, Phase::Login(_))) {
                        continue;
                    }
                    let line = self.lines.values_mut().find(|line| line.contains(&client.index));
                    let first = line.expect("only those in line are woken").pop_front();
                    assert_eq!(first, Some(client.index), "not the first in line");
                    assert!(session.is_none_or(|session| matches!(session.phase, Phase::Waiting(_))));
                }
                Action::Close { conn, .. } => {
                    assert!(conn.side.is_clean() && conn.behind.is_idle(), "parked in the middle of something");
                }
                Action::Evict { server, .. } => self.evict.push(server),
                Action::Check { server, conn, home, .. } => {
                    let released = self.pools.tested(server, conn, home, self.now);
                    self.settle_released(server, released, home);
                }
                Action::CloseClients { .. } | Action::CancelFinished(..) => panic!("nobody asked for that"),
                Action::Drained | Action::TakesReserve(_) | Action::Log(..) => {}
            }
        }
        for row in self.pools.pool_rows().into_iter().filter(|row| launched.contains(&row.pool)) {
            // as with PgBouncer, a pool that has lost its login reply may open one connection more to have it anew
            let fits = connections(&row) <= self.size || self.pools.login_reply(row.pool).is_none();
            assert!(fits, "pool_size {}: {row:?}", self.size);
        }
    }

    /// There are as many connections as the pools count, and no more than they may have.
    fn counts_hold(&self) {
        let rows = self.pools.pool_rows();
        let mut counted = 0;
        for row in &rows {
            // who waits for the reply to a login waits for a server that logs in
            let by_right = self.pools.login_reply(row.pool).is_none();
            assert!(row.cl_waiting == 0 || row.sv_idle == 0 || by_right, "somebody waits for an idle server: {row:?}");
            counted += connections(row);
        }
        let there = Rc::strong_count(&self.alive) - 1 + self.opening.len();
        assert_eq!(counted, there, "connections that the pools count, and connections that there are");
    }

    /// Peace: whoever waits for something gets it.
    pub(crate) fn finish(&mut self) {
        self.peace = true;
        for _ in 0..200_000 {
            let done = |session: &Session| {
                session.got == session.expected.len()
                    && session.unread.is_empty()
                    && session.own.is_idle()
                    && matches!(session.phase, Phase::Idle)
            };
            if self.clients.iter().all(|client| client.session.as_deref().is_none_or(done)) {
                return self.check();
            }
            // sessions end where clients have what they want
            if self.mode == PoolMode::Session {
                let index = u32::try_from(self.dice.below(CLIENTS as usize)).expect("few clients");
                if self.clients[index as usize].session.as_deref().is_some_and(done)
                    && let Some(session) = self.clients[index as usize].session.take()
                {
                    self.leave(index, session, End::Client);
                }
            }
            self.step();
        }
        panic!("somebody waits for ever: {:?}", self.pools.pool_rows());
    }
}
