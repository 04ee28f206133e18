//! What stands behind the lock: the real pools, and a judge who sees every decision in the order in which it was made.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pgusher::broker::Decides;
use pgusher::config::{Config, Database, PoolMode, UserSettings};
use pgusher::id::{ClientRef, PoolId};
use pgusher::pool::{Action, PoolRow, Pools};
use pgusher::time::Micros;

pub(crate) const DATABASES: [&str; 2] = ["one", "two"];
pub(crate) const USER: &str = "ann";
pub(crate) const POOL_SIZE: u32 = 2;
/// Of the user, over both databases: pools of both fill up and give way to each other.
pub(crate) const MOST_CONNECTIONS: u32 = 3;

/// A server connection. It cannot be copied, how many exist is counted, and it knows whether somebody uses it.
#[derive(Debug)]
pub(crate) struct Conn {
    alive: Arc<AtomicUsize>,
    used: AtomicBool,
}

impl Conn {
    pub(crate) fn open(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self { alive: alive.clone(), used: AtomicBool::new(false) }
    }

    pub(crate) fn begin(&self) {
        assert!(!self.used.swap(true, Ordering::Relaxed), "a server in two hands");
    }

    pub(crate) fn end(&self) {
        assert!(self.used.swap(false, Ordering::Relaxed), "a server that nobody used was given back");
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) type Order = Action<Conn>;

/// A line of a pool: for servers, or for login replies.
pub(crate) type Line = (PoolId, bool);

pub(crate) struct Desk {
    pub(crate) pools: Pools<Conn, u32>,
    /// Who stands in line, as the clients know it.
    lines: BTreeMap<Line, VecDeque<ClientRef>>,
    pub(crate) now: Micros,
}

impl Desk {
    pub(crate) fn new(cleaning: bool) -> Self {
        let mut config = Config::default();
        let settings = &mut config.settings;
        settings.default_pool_size = i64::from(POOL_SIZE);
        settings.pool_mode = PoolMode::Transaction;
        settings.server_login_retry = Micros::ZERO;
        settings.server_reset_query_always = cleaning.into();
        for name in DATABASES {
            config.databases.insert(name.to_owned(), Database::new(name));
        }
        let user = UserSettings { max_user_connections: Some(i64::from(MOST_CONNECTIONS)), ..UserSettings::default() };
        config.users.insert(USER.to_owned(), user);
        let now = Micros::from_secs(1);
        Self { pools: Pools::new(Arc::new(config), now), lines: BTreeMap::new(), now }
    }

    /// Time goes on with every decision.
    pub(crate) fn moment(&mut self) -> Micros {
        self.now = self.now + Micros(100);
        self.now
    }

    pub(crate) fn joins(&mut self, line: Line, client: ClientRef) {
        self.lines.entry(line).or_default().push_back(client);
    }

    /// Whether it was still in line; if not, what it waited for lay ready.
    pub(crate) fn leaves(&mut self, client: ClientRef) -> bool {
        let before = self.in_line();
        self.lines.values_mut().for_each(|line| line.retain(|&other| other != client));
        self.in_line() < before
    }

    pub(crate) fn in_line(&self) -> usize {
        self.lines.values().map(VecDeque::len).sum()
    }

    /// Lines are served in order, whatever they get.
    fn woken(&mut self, client: ClientRef) {
        let line = self.lines.values_mut().find(|line| line.contains(&client)).expect("it stood in a line");
        assert_eq!(line.pop_front(), Some(client), "not the first in line");
    }

    /// Every count is that of the objects, and no limit is passed.
    fn judge(&self) {
        self.pools.check();
        let rows = self.pools.pool_rows();
        let all: u32 = rows.iter().map(connections).sum();
        assert!(all <= MOST_CONNECTIONS, "max_user_connections: {all}");
        let waiting: u32 = rows.iter().map(|row| row.cl_waiting).sum();
        assert_eq!(waiting as usize, self.in_line(), "clients in line");
    }

    /// A connection is opened: was there room? A pool whose reply is out of date opens one to have a new one.
    fn launched(&self, pool: PoolId) {
        let row = self.pools.pool_rows().into_iter().find(|row| row.pool == pool).expect("a pool that opens one");
        let excused = self.pools.login_reply(pool).is_none();
        assert!(excused || connections(&row) <= POOL_SIZE, "pool_size: {row:?}");
    }
}

fn connections(row: &PoolRow) -> u32 {
    row.sv_active + row.sv_idle + row.sv_used + row.sv_tested + row.sv_login
}

impl Decides for Desk {
    type Order = Order;

    fn next_order(&mut self) -> Option<Order> {
        let order = self.pools.next_action();
        match &order {
            Some(Action::Wake(client)) => self.woken(*client),
            Some(Action::Launch { pool, .. }) => self.launched(*pool),
            Some(_) => {}
            None => self.judge(),
        }
        order
    }
}
