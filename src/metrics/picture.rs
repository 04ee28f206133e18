//! What an exposition is written from: the process at one moment.

use std::collections::BTreeMap;

use crate::admin::snapshot::{DatabaseRow, ListsSnapshot, PoolRow, StatsRow};
use crate::pool::WaitCause;
use crate::stats::ends::Ends;
use crate::stats::histogram::Times;

/// Everything. Rows may come in any order; each pool is there once.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub version: String,
    pub max_client_conn: i64,
    pub max_user_connections: i64,
    pub lists: ListsSnapshot,
    pub databases: Vec<DatabaseRow>,
    pub pools: Vec<PoolFigures>,
    pub stats: Vec<StatsRow>,
    /// Clients by who they are.
    pub clients: Clients,
    pub ends: Ends,
    pub workers: Vec<WorkerFigures>,
    pub process: ProcessFigures,
    /// Bugs that were caught.
    pub bugs: u64,
    /// Whether `/readyz` says so.
    pub ready: bool,
}

/// A pool: its row of SHOW POOLS, and what that has no columns for.
#[derive(Clone, Debug, Default)]
pub struct PoolFigures {
    pub row: PoolRow,
    /// Clients in line by cause, in the order of [`WaitCause::ALL`].
    pub causes: [u32; WaitCause::COUNT],
    /// 0 is unlimited.
    pub pool_size: u32,
    /// `None` for the console, which has no servers.
    pub times: Option<Box<Times>>,
}

/// Of whom clients are counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    pub database: String,
    pub user: String,
    pub application_name: String,
    /// As SHOW CLIENTS says it.
    pub state: &'static str,
}

pub type Clients = BTreeMap<Client, u64>;

/// One worker thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerFigures {
    pub clients: u64,
    /// Turns of clients since the start.
    pub turns: u64,
    pub busy_us: u64,
}

/// What the kernel says of the process; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    pub cpu_us: Option<u64>,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    /// Unix time.
    pub start_us: u64,
}
