//! Room when `max_client_conn` is reached: who has not shown a password must not lock out those who have one.
//!
//! Strangers are those who log in, those whose secrets are being fetched, and cancel requests for peers.

use std::sync::atomic::Ordering;

use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::time::Micros;
use crate::worker::Worker;
use crate::worker::client::{Client, End, Phase};

/// Strangers may have one in so many of the connections; beyond that the one who came first yields to a new one.
const SHARE: usize = 4;

/// Who has not logged in for so long yields all the same: drivers take no longer, even from far away.
const PATIENCE: Micros = Micros::from_secs(2);

/// Why who comes when `max_client_conn` is reached is refused, and why a stranger yields.
pub(super) fn full() -> End {
    Disconnect::fatal("no more connections allowed (max_client_conn)").into()
}

impl Worker {
    /// Whether there are more connections than `max_client_conn`.
    pub(super) fn is_full(&self) -> bool {
        self.shared.clients.load(Ordering::Relaxed) > self.max_client_conn()
    }

    fn max_client_conn(&self) -> usize {
        usize::try_from(self.live.config.settings.max_client_conn).unwrap_or(0)
    }

    /// Who has kept us waiting for what comes next in a login for so long.
    fn is_slow_to_log_in(&self, client: &Client) -> bool {
        matches!(&client.phase, Phase::Login(login) if !login.busy) && self.now.since(client.request_time) >= PATIENCE
    }

    /// Who has been about it for so long, whoever was waiting for whom.
    pub(super) fn is_long_logging_in(&self, client: &Client) -> bool {
        client.logging_in() && self.now.since(client.connect_time) >= PATIENCE
    }

    /// Lets a stranger yield to `newcomer` if that was one too many and they have more than their share, or one of them is in no
    /// hurry: the oldest of this worker, where most of them are.
    pub(super) fn make_room(&mut self, newcomer: ClientRef) {
        // the newcomer is a stranger as well
        if !self.is_full() || self.shared.strangers() <= 1 {
            return;
        }
        let share = (self.max_client_conn() / SHARE).max(1);
        let too_many = self.shared.strangers() > share;
        let may_yield = |client: &&Client| {
            client.me != newcomer && client.is_stranger() && (too_many || self.is_slow_to_log_in(client))
        };
        let oldest = self.clients.iter().filter(may_yield).min_by_key(|stranger| stranger.id);
        if let Some(oldest) = oldest.map(|oldest| oldest.me) {
            self.end(oldest, full());
        }
    }
}
