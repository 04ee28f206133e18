//! The picture of the process for SHOW, gathered from pools and workers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::admin::command::Topic;
use crate::admin::show;
use crate::admin::snapshot::{
    ConfigRow, DatabaseRow, FdRow, ListsSnapshot, MemRow, PeerPoolRow, PeerRow, PoolRow, SocketRow, SocketState, State,
    UserRow,
};
use crate::clock::{Clock, format_local};
use crate::config::{CONSOLE_DATABASE, PoolMode, effective};
use crate::pool::{PauseMode, ServerState};
use crate::shared::Message;
use crate::supervisor::Supervisor;
use crate::time::Micros;
use crate::worker::client::Client;
use crate::worker::picture::{Order, server_row};
use crate::worker::server::Server;

/// What lists of sockets need while they are written. Many connections share few seconds.
pub(super) struct SocketLists {
    times: RefCell<HashMap<i64, Rc<str>>>,
    pace: Pace,
}

impl show::Shell for SocketLists {
    fn time(&self, unix_secs: i64) -> Rc<str> {
        self.times.borrow_mut().entry(unix_secs).or_insert_with_key(|&secs| format_local(secs).into()).clone()
    }

    fn give_way(&self) {
        self.pace.give_way();
    }
}

/// What a thread that makes long lists does at a time.
const AT_ONCE: Micros = Micros(100);

/// How many times as long it rests then: a worker on its core keeps three quarters of that. Yielding would not do, for who has
/// slept has credit, and while he has, the kernel gives him back what he yields; nor would a short sleep, which earns more of it.
const REST: u64 = 3;

/// What the thread has done besides is not rested for.
const LONGEST_REST: Micros = Micros(2_000);

/// Keeps this thread's claim on its core low, unless everybody waits for it.
struct Pace {
    hurries: bool,
    /// Processor time that the thread had had when it last rested.
    rested: Cell<Micros>,
}

impl Pace {
    fn new(hurries: bool) -> Self {
        Self { hurries, rested: Cell::new(Clock::of_thread()) }
    }

    fn give_way(&self) {
        let spent = Clock::of_thread().since(self.rested.get());
        if spent >= AT_ONCE && !self.hurries {
            std::thread::sleep(Duration::from_micros(spent.0.saturating_mul(REST).min(LONGEST_REST.0)));
            self.rested.set(Clock::of_thread());
        }
    }
}

/// Rows of sockets, list by list: thousands of them are not moved about, and freed a few at a time.
pub(super) struct Sockets {
    lists: Vec<Vec<SocketRow>>,
    pace: Pace,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for list in &mut self.lists {
            while list.len() > show::AT_A_TIME {
                list.truncate(list.len() - show::AT_A_TIME);
                self.pace.give_way();
            }
        }
    }
}

impl std::ops::Deref for Sockets {
    type Target = [Vec<SocketRow>];

    fn deref(&self) -> &Self::Target {
        &self.lists
    }
}

/// The console's own pool, as SHOW prints it.
const CONSOLE_POOL_SIZE: i64 = 2;

impl Supervisor {
    /// Every server socket and every client that is linked; all other clients too if there is to be a list of clients; what
    /// a successor has to know only for the list of descriptors.
    pub(super) async fn sockets(&self, topic: Topic) -> Sockets {
        let handover = topic == Topic::Fds;
        let (mut busy, mut rest) = (Vec::new(), Vec::new());
        for post in &self.shared.posts {
            let (now, soon) = (oneshot::channel(), (topic != Topic::Servers).then(oneshot::channel));
            busy.push(now.1);
            let (later, list) = soon.unzip();
            rest.extend(list);
            post.send(Message::Picture(Order { handover, busy: now.0, rest: later }));
        }
        let mut lists = Vec::new();
        for list in busy {
            lists.push(list.await.unwrap_or_default());
        }
        lists.push(self.parked_rows(handover));
        for list in rest {
            lists.push(list.await.unwrap_or_default());
        }
        Sockets { lists, pace: self.pace() }
    }

    pub(super) fn socket_lists(&self) -> SocketLists {
        SocketLists { times: RefCell::default(), pace: self.pace() }
    }

    /// While all are suspended, lists hold nobody up, and a successor waits for them.
    fn pace(&self) -> Pace {
        Pace::new(self.is_suspended())
    }

    fn parked_rows(&self, handover: bool) -> Vec<SocketRow> {
        let mut rows = Vec::new();
        let (wall, listen_port) = (Clock::wall(), self.shared.listen_port);
        self.shared.broker.lock().pools.server_rows(|row| {
            let Some(conn) = row.conn else { return };
            let state = match row.state {
                ServerState::Used => SocketState::SvUsed,
                ServerState::Tested => SocketState::SvTested,
                ServerState::BeingCanceled => SocketState::SvBeingCanceled,
                ServerState::Active => SocketState::SvActive,
                _ => SocketState::SvIdle,
            };
            let mut shown = server_row(conn, state, wall, listen_port, handover);
            shown.close_needed = row.close_needed;
            rows.push(shown);
        });
        rows
    }

    /// SHOW FDS: the listeners, then every socket that a successor could take over.
    pub(super) async fn fd_rows(&self) -> Vec<FdRow> {
        let listener = |fd: i32, addr: String, port: u16| FdRow { fd, addr, port, ..FdRow::default() };
        let listeners = &self.listeners;
        let tcp = listeners.tcp.iter();
        let mut rows: Vec<_> = tcp
            .map(|tcp| listener(tcp.socket.as_raw_fd(), tcp.addr.ip().to_string(), tcp.addr.port()))
            .chain(
                listeners
                    .unix
                    .iter()
                    .map(|unix| listener(unix.socket.as_raw_fd(), "unix".to_owned(), self.shared.listen_port)),
            )
            .collect();
        rows.extend(show::fds_of(&self.sockets(Topic::Fds).await, &self.socket_lists()));
        rows
    }

    pub(super) fn pool_rows(&self) -> Vec<PoolRow> {
        let now = Clock::now();
        let rows = self.shared.broker.lock().pools.pool_rows();
        rows.into_iter().map(|row| pool_row(row, now)).chain([self.console_pool_row()]).collect()
    }

    pub(super) fn console_pool_row(&self) -> PoolRow {
        PoolRow {
            database: CONSOLE_DATABASE.to_owned(),
            user: CONSOLE_DATABASE.to_owned(),
            cl_active: self.shared.console_clients.load(Ordering::Relaxed) as u64,
            pool_mode: PoolMode::Statement.to_string(),
            ..PoolRow::default()
        }
    }

    pub(super) fn database_rows(&self) -> Vec<DatabaseRow> {
        let settings = &self.live.config.settings;
        let rows = self.shared.broker.lock().pools.database_rows();
        let shown = rows.into_iter().map(|row| DatabaseRow {
            name: row.name,
            host: row.host,
            port: row.port,
            database: row.database,
            force_user: row.force_user,
            pool_size: row.pool_size,
            min_pool_size: row.min_pool_size,
            reserve_pool_size: row.reserve_pool_size,
            server_lifetime: i64::try_from(row.server_lifetime.secs()).unwrap_or(i64::MAX),
            pool_mode: row.pool_mode.map(|mode| mode.to_string()),
            load_balance_hosts: row.load_balance_hosts.map(|hosts| hosts.to_string()),
            max_connections: row.max_connections,
            current_connections: row.current_connections.into(),
            max_client_connections: row.max_client_connections,
            current_client_connections: row.current_client_connections.into(),
            paused: row.paused,
            disabled: row.disabled,
        });
        let console = DatabaseRow {
            name: CONSOLE_DATABASE.to_owned(),
            host: None,
            port: self.shared.listen_port,
            database: CONSOLE_DATABASE.to_owned(),
            force_user: Some(CONSOLE_DATABASE.to_owned()),
            pool_size: CONSOLE_POOL_SIZE,
            server_lifetime: i64::try_from(settings.server_lifetime.secs()).unwrap_or(i64::MAX),
            pool_mode: Some(PoolMode::Statement.to_string()),
            max_connections: settings.max_db_connections,
            max_client_connections: settings.max_db_client_connections,
            current_client_connections: self.shared.console_clients.load(Ordering::Relaxed) as u64,
            ..DatabaseRow::default()
        };
        shown.chain([console]).collect()
    }

    pub(super) fn user_rows(&self) -> Vec<UserRow> {
        let rows = self.shared.broker.lock().pools.user_rows();
        let show = |row: crate::pool::UserRow| UserRow {
            name: row.name,
            pool_size: row.pool_size,
            reserve_pool_size: row.reserve_pool_size,
            pool_mode: row.pool_mode.map(|mode| mode.to_string()),
            max_user_connections: row.max_user_connections,
            current_connections: row.current_connections.into(),
            max_user_client_connections: row.max_user_client_connections,
            current_client_connections: row.current_client_connections.into(),
        };
        rows.into_iter().map(show).collect()
    }

    pub(super) fn peer_rows(&self) -> Vec<PeerRow> {
        let config = &self.live.config;
        let peers = config.peers.values();
        peers
            .map(|peer| PeerRow {
                peer_id: peer.id,
                host: peer.host.clone(),
                port: peer.port,
                pool_size: effective::peer_pool_size(config, peer),
            })
            .collect()
    }

    pub(super) fn peer_pool_rows(&self) -> Vec<PeerPoolRow> {
        let rows = self.shared.broker.lock().pools.peer_rows();
        rows.into_iter()
            .map(|row| PeerPoolRow {
                peer_id: row.peer,
                cl_active_cancel_req: row.cl_active_cancel_req.into(),
                cl_waiting_cancel_req: row.cl_waiting_cancel_req.into(),
                sv_active_cancel: row.sv_active_cancel.into(),
                sv_login: row.sv_login.into(),
            })
            .collect()
    }

    pub(super) fn config_rows(&self) -> Vec<ConfigRow> {
        let rows = self.live.config.settings.rows().into_iter();
        rows.map(|row| ConfigRow {
            key: row.key.to_owned(),
            value: row.value,
            default: row.default.map(str::to_owned),
            changeable: row.changeable,
        })
        .collect()
    }

    pub(super) fn lists(&self) -> ListsSnapshot {
        let totals = self.shared.broker.lock().pools.totals();
        let (dns_names, dns_zones, dns_queries) = self.resolver.counts();
        ListsSnapshot {
            databases: totals.databases as u64 + 1,
            users: totals.users as u64,
            peers: self.live.config.peers.len() as u64,
            pools: totals.pools as u64 + 1,
            peer_pools: totals.peer_pools as u64,
            used_clients: self.shared.clients.load(Ordering::Relaxed) as u64,
            login_clients: self.shared.login_clients() as u64,
            used_servers: totals.servers as u64,
            dns_names,
            dns_zones,
            dns_queries,
            ..ListsSnapshot::default()
        }
    }

    pub(super) fn mem_rows(&self) -> Vec<MemRow> {
        let row = |name: &str, size: usize, used: usize| MemRow {
            name: name.to_owned(),
            size: size as u64,
            used: used as u64,
            free: 0,
            memtotal: (size * used) as u64,
        };
        let servers = self.shared.broker.lock().pools.totals().servers;
        let clients = self.shared.clients.load(Ordering::Relaxed);
        vec![row("server_cache", size_of::<Server>(), servers), row("client_cache", size_of::<Client>(), clients)]
    }

    pub(super) fn state(&self) -> State {
        match self.shared.broker.lock().pools.pause_mode() {
            PauseMode::None => State::Active,
            PauseMode::Paused => State::Paused,
            PauseMode::Suspended => State::Suspended,
        }
    }
}

/// A row of the pools as SHOW has it.
pub(super) fn pool_row(row: crate::pool::PoolRow, now: Micros) -> PoolRow {
    PoolRow {
        database: row.database,
        user: row.user,
        cl_active: row.cl_active.into(),
        cl_waiting: row.cl_waiting.into(),
        cl_active_cancel_req: row.cl_active_cancel_req.into(),
        cl_waiting_cancel_req: row.cl_waiting_cancel_req.into(),
        sv_active: row.sv_active.into(),
        sv_active_cancel: row.sv_active_cancel.into(),
        sv_being_canceled: row.sv_being_canceled.into(),
        sv_idle: row.sv_idle.into(),
        sv_used: row.sv_used.into(),
        sv_tested: row.sv_tested.into(),
        sv_login: row.sv_login.into(),
        maxwait: row.waiting_since.map(|since| now.since(since)).unwrap_or_default(),
        pool_mode: row.pool_mode.to_string(),
        load_balance_hosts: row.load_balance_hosts.map(|hosts| hosts.to_string()),
    }
}
