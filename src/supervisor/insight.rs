//! What operators ask beyond PgBouncer's topics: SHOW WAITS, LATENCY and ADVICE.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use crate::admin::advice::{Facts, Sight};
use crate::admin::insight::{Advice, LatencyRow, WaitLine};
use crate::clock::Clock;
use crate::id::ClientRef;
use crate::shared::{Message, Waiting};
use crate::supervisor::Supervisor;
use crate::sys::process;

impl Supervisor {
    /// Everybody who waits. Who has been served between two questions is left out.
    pub(super) async fn wait_lines(&self) -> Vec<WaitLine> {
        let mut waiting: HashMap<ClientRef, Waiting> = HashMap::new();
        for post in &self.shared.posts {
            let (reply, answer) = oneshot::channel();
            post.send(Message::Waiting(reply));
            waiting.extend(answer.await.unwrap_or_default().into_iter().map(|client| (client.client, client)));
        }
        let now = Clock::now();
        let rows = self.shared.broker.lock().pools.wait_rows(now);
        let lines = rows.into_iter().filter_map(|row| {
            let Waiting { addr, port, application_name, id, .. } = waiting.remove(&row.client)?;
            Some(WaitLine {
                database: row.database,
                user: row.user,
                cause: row.cause,
                kind: row.kind,
                position: row.position,
                waited: now.since(row.since),
                addr,
                port,
                application_name,
                id,
            })
        });
        lines.collect()
    }

    pub(super) fn latency_rows(&self) -> Vec<LatencyRow> {
        let shared: Vec<_> = self.shared.broker.lock().all_shared().cloned().collect();
        let pools = shared.iter().filter(|pool| pool.peer_id.is_none());
        pools
            .map(|pool| LatencyRow::new(pool.database.to_string(), pool.user.to_string(), &self.recent_times(pool)))
            .collect()
    }

    pub(super) fn advice(&self) -> Vec<Advice> {
        let facts = Facts { ends: self.shared.ends.lock().clone(), max_fds: process::usage().max_fds };
        self.watch.advice(Clock::now(), &self.live.config, &facts)
    }

    /// Looks at the pools now and then, for SHOW ADVICE.
    pub(super) fn look(&mut self) {
        let now = Clock::now();
        if !self.watch.is_due(now) {
            return;
        }
        let broker = self.shared.broker.lock();
        let rows = broker.pools.pool_rows();
        let waits = broker.pools.pool_waits(now);
        drop(broker);
        let sights: Vec<_> = rows
            .into_iter()
            .zip(waits)
            .map(|(row, waits)| Sight {
                database: row.database,
                user: row.user,
                causes: waits.causes,
                pool_size: waits.pool_size,
                busy: row.sv_active,
                pool_mode: row.pool_mode,
                longest_wait: row.waiting_since.map(|since| now.since(since)).unwrap_or_default(),
            })
            .collect();
        self.watch.look(now, &sights, self.shared.clients.load(Ordering::Relaxed) as u64);
    }
}
