//! The picture of the process for metrics.
//!
//! The lock is held for a walk over pools and databases and never for one over clients; workers count theirs themselves.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use crate::admin::show;
use crate::clock::Clock;
use crate::http::readiness;
use crate::metrics::bounds::bound_clients;
use crate::metrics::picture::{Clients, PoolFigures, ProcessFigures, WorkerFigures};
use crate::metrics::{Format, Picture, render};
use crate::shared::Message;
use crate::supervisor::Supervisor;
use crate::supervisor::rows::pool_row;
use crate::sys::process;
use crate::time::Micros;

impl Supervisor {
    /// The exposition.
    pub(super) async fn scrape(&mut self, format: Format) -> String {
        let clients = self.census().await;
        let pools = self.pool_figures();
        let settings = &self.live.config.settings;
        let picture = Picture {
            version: show::VERSION.to_owned(),
            max_client_conn: settings.max_client_conn,
            max_user_connections: settings.max_user_connections,
            lists: self.lists(),
            databases: self.database_rows(),
            pools: self.admitted.bound(pools),
            stats: self.stats_rows(),
            clients: bound_clients(clients),
            ends: self.shared.ends.lock().clone(),
            workers: self.worker_figures(),
            process: process_figures(),
            bugs: self.shared.guard.trips(),
            ready: readiness(&self.shared.broker.lock()).is_ok(),
        };
        render(&picture, format)
    }

    async fn census(&self) -> Clients {
        let mut all = Clients::new();
        for post in &self.shared.posts {
            let (reply, census) = oneshot::channel();
            post.send(Message::Census(reply));
            for (client, count) in census.await.unwrap_or_default() {
                *all.entry(client).or_default() += count;
            }
        }
        all
    }

    /// Every pool; times are read when the lock is free again.
    fn pool_figures(&self) -> Vec<PoolFigures> {
        let now = Clock::now();
        let broker = self.shared.broker.lock();
        let rows = broker.pools.pool_rows();
        let waits = broker.pools.pool_waits(now);
        let shared: HashMap<_, _> = broker.all_shared().map(|pool| (pool.id, pool.clone())).collect();
        drop(broker);
        let figures = rows.into_iter().zip(waits).map(|(row, waits)| {
            debug_assert_eq!(row.pool, waits.pool);
            PoolFigures {
                causes: waits.causes,
                pool_size: waits.pool_size,
                times: shared.get(&row.pool).map(|pool| Box::new(pool.times())),
                row: pool_row(row, now),
            }
        });
        let console = PoolFigures { row: self.console_pool_row(), ..PoolFigures::default() };
        figures.chain([console]).collect()
    }

    fn worker_figures(&self) -> Vec<WorkerFigures> {
        let of = |post: &crate::shared::Post| WorkerFigures {
            clients: post.clients.load(Ordering::Relaxed) as u64,
            turns: post.load.turns.load(Ordering::Relaxed),
            busy_us: post.load.busy_us.load(Ordering::Relaxed),
        };
        self.shared.posts.iter().map(of).collect()
    }
}

fn process_figures() -> ProcessFigures {
    let usage = process::usage();
    let start = u64::try_from(Clock::unix_secs(Micros::ZERO)).unwrap_or(0);
    ProcessFigures {
        cpu_us: usage.cpu_us,
        resident_bytes: usage.resident_bytes,
        virtual_bytes: usage.virtual_bytes,
        open_fds: usage.open_fds,
        max_fds: usage.max_fds,
        start_us: start.saturating_mul(1_000_000),
    }
}
