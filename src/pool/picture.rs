//! Plain pictures of the pools, for SHOW.

use super::Pools;
use super::slot::{Server, ServerState};
use crate::config::{Database, LoadBalanceHosts, PoolMode, effective};
use crate::id::{DbId, PoolId, ServerId, UserId, WorkerId};
use crate::time::Micros;

/// One row of SHOW POOLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRow {
    pub pool: PoolId,
    pub database: String,
    pub user: String,
    pub cl_active: u32,
    pub cl_waiting: u32,
    pub cl_active_cancel_req: u32,
    pub cl_waiting_cancel_req: u32,
    pub sv_active: u32,
    pub sv_active_cancel: u32,
    pub sv_being_canceled: u32,
    pub sv_idle: u32,
    pub sv_used: u32,
    pub sv_tested: u32,
    pub sv_login: u32,
    /// When the request of the first client in the queue began.
    pub waiting_since: Option<Micros>,
    pub pool_mode: PoolMode,
    /// Only when the entry has several hosts.
    pub load_balance_hosts: Option<LoadBalanceHosts>,
}

/// One row of SHOW DATABASES; sizes are effective ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRow {
    pub db: DbId,
    pub name: String,
    pub host: Option<String>,
    pub port: u16,
    pub database: String,
    pub force_user: Option<String>,
    pub pool_size: i64,
    pub min_pool_size: i64,
    pub reserve_pool_size: i64,
    pub server_lifetime: Micros,
    /// The entry's own, if it has one.
    pub pool_mode: Option<PoolMode>,
    pub load_balance_hosts: Option<LoadBalanceHosts>,
    pub max_connections: i64,
    pub current_connections: u32,
    pub max_client_connections: i64,
    pub current_client_connections: u32,
    pub paused: bool,
    pub disabled: bool,
}

/// One row of SHOW USERS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    pub user: UserId,
    pub name: String,
    pub pool_size: Option<i64>,
    pub reserve_pool_size: Option<i64>,
    pub pool_mode: Option<PoolMode>,
    pub max_user_connections: i64,
    pub current_connections: u32,
    pub max_user_client_connections: i64,
    pub current_client_connections: u32,
}

/// One server; in the order of SHOW SERVERS.
#[derive(Debug)]
pub struct ServerRow<'a, S> {
    pub server: ServerId,
    pub pool: PoolId,
    /// `Inspected` is shown as idle.
    pub state: ServerState,
    pub home: WorkerId,
    pub close_needed: bool,
    /// When it was launched.
    pub since: Micros,
    /// Last time it was released.
    pub last_used: Micros,
    /// The connection, unless a worker has it in its hands.
    pub conn: Option<&'a S>,
}

/// One row of SHOW PEER_POOLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRow {
    pub peer: u16,
    pub pool: PoolId,
    pub cl_active_cancel_req: u32,
    pub cl_waiting_cancel_req: u32,
    pub sv_active_cancel: u32,
    pub sv_login: u32,
}

/// Numbers for SHOW LISTS; the console and idle entries are not in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub databases: usize,
    pub users: usize,
    pub pools: usize,
    pub peer_pools: usize,
    pub servers: usize,
    /// Grants that took a server to another worker.
    pub moves: u64,
    pub grants: u64,
}

impl<S, R: Clone> Pools<S, R> {
    /// Rows of SHOW POOLS, sorted; without the console.
    #[must_use]
    pub fn pool_rows(&self) -> Vec<PoolRow> {
        self.shown_pools().map(|id| self.pool_row(id)).collect()
    }

    /// Pools of entries by name, then by user.
    pub(super) fn shown_pools(&self) -> impl Iterator<Item = PoolId> {
        self.names.values().flat_map(|&db| self.entries[db].pools.iter().copied())
    }

    fn pool_row(&self, id: PoolId) -> PoolRow {
        let pool = &self.pools[id];
        let database = &self.entries[pool.db].database;
        PoolRow {
            pool: id,
            database: database.name.clone(),
            user: self.users[pool.user.0 as usize].name.clone(),
            cl_active: pool.ready.saturating_sub(pool.waiting_ready),
            cl_waiting: pool.waiting.len() + pool.waiting_login.len() + pool.replicating.len(),
            cl_active_cancel_req: pool.cancels_sent,
            cl_waiting_cancel_req: pool.cancels_waiting.len(),
            sv_active: pool.count(ServerState::Active),
            sv_active_cancel: pool.count(ServerState::ActiveCancel),
            sv_being_canceled: pool.count(ServerState::BeingCanceled),
            sv_idle: pool.idle + pool.count(ServerState::Inspected),
            sv_used: pool.count(ServerState::Used),
            sv_tested: pool.count(ServerState::Tested),
            sv_login: pool.count(ServerState::New),
            waiting_since: self.first_in_line(id).map(|ticket| self.waiters[ticket].want.since),
            pool_mode: pool.sizes.mode,
            load_balance_hosts: balance(database),
        }
    }

    /// Rows of SHOW DATABASES, sorted; without the console and idle entries.
    #[must_use]
    pub fn database_rows(&self) -> Vec<DatabaseRow> {
        self.listed().map(|db| self.database_row(db)).collect()
    }

    /// Entries by name; an auto entry that sleeps counts for nobody until it is asked for.
    pub(super) fn listed(&self) -> impl Iterator<Item = DbId> {
        self.names.values().copied().filter(|&db| self.entries[db].idle_since.is_none())
    }

    fn database_row(&self, db: DbId) -> DatabaseRow {
        let entry = &self.entries[db];
        let (config, database) = (&*self.config, &*entry.database);
        let settings = &config.settings;
        DatabaseRow {
            db,
            name: database.name.clone(),
            host: database.host.clone(),
            port: database.port,
            database: database.server_dbname().to_owned(),
            force_user: database.user.clone(),
            pool_size: database.pool_size.unwrap_or(settings.default_pool_size),
            min_pool_size: effective::min_pool_size(config, database),
            reserve_pool_size: database.reserve_pool_size.unwrap_or(settings.reserve_pool_size),
            server_lifetime: effective::server_lifetime(config, database),
            pool_mode: database.pool_mode,
            load_balance_hosts: balance(database),
            max_connections: effective::max_db_connections(config, database),
            current_connections: entry.connections,
            max_client_connections: effective::max_db_client_connections(config, database),
            current_client_connections: entry.clients,
            paused: entry.paused,
            disabled: entry.disabled,
        }
    }

    /// Rows of SHOW USERS, sorted.
    #[must_use]
    pub fn user_rows(&self) -> Vec<UserRow> {
        self.user_names.iter().map(|(name, &id)| self.user_row(name, id)).collect()
    }

    fn user_row(&self, name: &str, id: UserId) -> UserRow {
        let user = &self.users[id.0 as usize];
        let own = self.config.users.get(name);
        UserRow {
            user: id,
            name: name.to_owned(),
            pool_size: own.and_then(|own| own.pool_size),
            reserve_pool_size: own.and_then(|own| own.reserve_pool_size),
            pool_mode: own.and_then(|own| own.pool_mode),
            max_user_connections: effective::max_user_connections(&self.config, name),
            current_connections: user.connections,
            max_user_client_connections: effective::max_user_client_connections(&self.config, name),
            current_client_connections: user.clients,
        }
    }

    /// Rows of SHOW PEER_POOLS.
    #[must_use]
    pub fn peer_rows(&self) -> Vec<PeerRow> {
        let pools = self.peers.iter().filter_map(|(&peer, &db)| Some((peer, *self.entries[db].pools.first()?)));
        pools.map(|(peer, id)| self.peer_row(peer, id)).collect()
    }

    fn peer_row(&self, peer: u16, id: PoolId) -> PeerRow {
        let pool = &self.pools[id];
        PeerRow {
            peer,
            pool: id,
            cl_active_cancel_req: pool.cancels_sent,
            cl_waiting_cancel_req: pool.cancels_waiting.len(),
            sv_active_cancel: pool.count(ServerState::ActiveCancel),
            sv_login: pool.count(ServerState::New),
        }
    }

    /// Shows every server in the order of SHOW SERVERS; those of peers come last.
    pub fn server_rows(&self, mut visit: impl FnMut(ServerRow<'_, S>)) {
        let peers = self.peers.values().flat_map(|&db| self.entries[db].pools.iter().copied());
        for id in self.shown_pools().chain(peers) {
            let pool = &self.pools[id];
            for state in ServerState::SHOWN {
                if state == ServerState::Idle {
                    let idle = pool.idle_lists().iter().flat_map(|list| list.iter(&self.servers));
                    idle.for_each(|(id, server)| visit(server_row(id, server)));
                } else {
                    pool.list(state).iter(&self.servers).for_each(|(id, server)| visit(server_row(id, server)));
                }
            }
        }
    }

    /// Numbers of objects; without the console and idle entries.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let peer_pools = self.peer_rows().len();
        Totals {
            databases: self.listed().count(),
            users: self.user_names.len(),
            pools: self.shown_pools().count(),
            peer_pools,
            servers: self.servers.len(),
            moves: self.moves,
            grants: self.grants,
        }
    }
}

fn server_row<S>(id: ServerId, server: &Server<S>) -> ServerRow<'_, S> {
    ServerRow {
        server: id,
        pool: server.pool,
        state: server.state,
        home: server.home,
        close_needed: server.close_needed,
        since: server.launched,
        last_used: server.last_used,
        conn: server.conn.as_ref(),
    }
}

/// The way of choosing a host, where there is a choice.
fn balance(database: &Database) -> Option<LoadBalanceHosts> {
    database.host.as_ref().filter(|host| host.contains(',')).map(|_| database.load_balance_hosts)
}
