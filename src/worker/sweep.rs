//! Deadlines: three times a second a worker looks over its clients and openings, a slice at a time.
//!
//! Every timeout therefore fires up to a third of a second late, as in PgBouncer. Comparisons are strict.

use crate::config::{Config, Database, PoolMode, effective};
use crate::disconnect::Disconnect;
use crate::id::ClientRef;
use crate::relay::side::TxStatus;
use crate::shared::Hold;
use crate::time::Micros;
use crate::wire::encode;
use crate::wire::startup::Replication;
use crate::worker::client::{Client, End, Phase};
use crate::worker::open::{Opening, Stage};
use crate::worker::table::Place;
use crate::worker::{SWEEP_EVERY, SWEEP_SLICE, Worker};

const NOTICE: &str = "No server connection available in postgres backend, client being queued";

/// How long a cancel request goes on whose client has closed its connection.
const CANCEL_OUTLIVES: Micros = Micros(2_000_000);

impl Worker {
    /// Looks over some clients if a round is due or under way.
    pub(super) fn sweep_slice(&mut self) {
        if self.sweep_next.is_none() {
            if self.now < self.sweep_at {
                return;
            }
            self.sweep_at = self.now + SWEEP_EVERY;
            if self.hold != Hold::Off {
                // who is not read cannot be late
                return;
            }
            self.sweep_next = Some(0);
            self.accept_again();
            self.sweep_openings();
            self.sweep_leaving();
            self.sweep_draining();
        }
        let Some(from) = self.sweep_next else { return };
        let to = (from + SWEEP_SLICE).min(self.clients.slots());
        let live = self.live.clone();
        let mut over = Vec::new();
        for index in from..to {
            if let Some(client) = self.clients.at(index)
                && let Some(verdict) = self.overdue(client, &live.config)
            {
                over.push((client.me, verdict));
            }
        }
        self.sweep_next = (to < self.clients.slots()).then_some(to);
        for (client, verdict) in over {
            match verdict {
                Verdict::End(end) => self.end(client, end),
                Verdict::Notify => self.notify(client),
                Verdict::LookupTimedOut => self.end_lookup(client, "query timeout"),
            }
        }
    }

    fn sweep_openings(&mut self) {
        let settings = &self.live.config.settings;
        let limit = |opening: &Opening| match opening.stage {
            // the server must not be given to others before the request was carried out
            Stage::Carrying => Micros::ZERO,
            _ if opening.pool().peer_id.is_some() => settings.cancel_wait_timeout,
            _ => settings.server_connect_timeout,
        };
        let overdue: Vec<_> = self
            .places
            .iter()
            .filter_map(|place| match place {
                Place::Opening(opening) if over(self.now.since(opening.started), limit(opening)) => Some(opening.me()),
                _ => None,
            })
            .collect();
        for server in overdue {
            self.opening_timed_out(server);
        }
    }

    fn overdue(&self, client: &Client, config: &Config) -> Option<Verdict> {
        let age = self.now.since(client.connect_time);
        let login_limit = config.settings.client_login_timeout;
        match &client.phase {
            Phase::Login(_) => over(age, login_limit).then(|| fatal("client_login_timeout")),
            Phase::Lookup(lookup) if lookup.ticket.is_none() => {
                let user = client.pool.as_ref().map_or("", |pool| &*pool.user);
                let limit = for_user(config, config.settings.query_timeout, || effective::query_timeout(config, user));
                let runs_long = over(self.now.since(client.request_time), limit);
                let too_late = || over(age, login_limit).then(|| fatal("client_login_timeout"));
                runs_long.then_some(Verdict::LookupTimedOut).or_else(too_late)
            }
            Phase::WaitingLogin(_) | Phase::Lookup(_) => self
                .waits_too_long(client, config, client.request_time)
                .or_else(|| over(age, login_limit).then(|| fatal("client_login_timeout (server down)"))),
            Phase::Waiting(_) => {
                self.waits_too_long(client, config, client.side.query_start).or_else(|| self.to_notify(client, config))
            }
            Phase::Active if client.server.is_some() => self.linked_too_long(client, config),
            Phase::Active => {
                let limit = for_user(config, config.settings.client_idle_timeout, || {
                    effective::client_idle_timeout(config, client.user.as_deref().unwrap_or_default())
                });
                over(self.now.since(client.request_time), limit).then(|| fatal("client_idle_timeout"))
            }
            Phase::Cancel(canceling) if canceling.left.is_some_and(|left| self.now.since(left) > CANCEL_OUTLIVES) => {
                Some(Verdict::End(Disconnect::silent("client unexpected eof").into()))
            }
            Phase::Cancel(canceling) if canceling.sent => None,
            Phase::Cancel(_) => {
                let waited = self.now.since(client.connect_time);
                over(waited, config.settings.cancel_wait_timeout)
                    .then(|| Verdict::End(Disconnect::silent("cancel_wait_timeout").into()))
            }
            Phase::Console(_) => None,
        }
    }

    fn waits_too_long(&self, client: &Client, config: &Config, since: Micros) -> Option<Verdict> {
        let waited = self.now.since(since);
        if over(waited, config.settings.query_timeout) {
            return Some(fatal("query_timeout"));
        }
        let pool = client.pool.as_ref()?;
        let user = client.user.as_deref().unwrap_or_default();
        let limit = match config.databases.get(&*pool.database) {
            Some(entry) => effective::query_wait_timeout(config, entry, user),
            None => match config.auto_database(&pool.database) {
                Some(Ok(entry)) => effective::query_wait_timeout(config, &entry, user),
                Some(Err(_)) | None => effective::query_wait_timeout(config, &Database::new(&pool.database), user),
            },
        };
        over(waited, limit).then(|| {
            self.log_cause(client, waited);
            fatal("query_wait_timeout")
        })
    }

    /// Says what a client waited for in vain, in a line of its own: the one that closes it is known to log watchers.
    fn log_cause(&self, client: &Client, waited: Micros) {
        let cause = client.ticket().and_then(|ticket| self.shared.broker.lock().pools.wait_cause(ticket, self.now));
        if let Some(cause) = cause.filter(|_| self.live.config.settings.log_pooler_errors.is_on()) {
            tracing::info!(conn = %client.prefix(), "waited {}s because {}", waited.secs(), cause.explained());
        }
    }

    fn to_notify(&self, client: &Client, config: &Config) -> Option<Verdict> {
        let seconds = u64::try_from(config.settings.query_wait_notify).ok().filter(|&seconds| seconds > 0)?;
        let due = self.now.since(client.wait_start).secs() > seconds;
        (due && !client.notified).then_some(Verdict::Notify)
    }

    fn notify(&mut self, who: ClientRef) {
        let Some(client) = self.clients.get_mut(who) else { return };
        client.notified = true;
        let mut out = Vec::new();
        encode::notice(&mut out, NOTICE);
        if client.stream.write_bytes(&out).is_err() {
            self.end(who, Disconnect::silent("client unexpected eof").into());
        }
    }

    fn linked_too_long(&self, client: &Client, config: &Config) -> Option<Verdict> {
        let (server, pool) = (client.server.as_ref()?, client.pool.as_ref()?);
        let user = &*pool.user;
        let settings = &config.settings;
        let both = |text: &'static str| Some(Verdict::End(End::both(Disconnect::fatal(text))));
        let running = !server.side.ready && !client.side.query_start.is_zero();
        let limit = for_user(config, settings.query_timeout, || effective::query_timeout(config, user));
        if running && over(self.now.since(client.side.query_start), limit) {
            return both("query timeout");
        }
        let limit =
            for_user(config, settings.idle_transaction_timeout, || effective::idle_transaction_timeout(config, user));
        let idle = server.side.ready && server.side.tx != TxStatus::Idle;
        if idle && over(self.now.since(server.request_time), limit) {
            return both("idle transaction timeout");
        }
        let limit = for_user(config, settings.transaction_timeout, || effective::transaction_timeout(config, user));
        if !client.side.xact_start.is_zero() && over(self.now.since(client.side.xact_start), limit) {
            return both("transaction timeout");
        }
        let replicates = server.replication != Replication::None;
        let fast = settings.server_fast_close.is_on() && client.mode == PoolMode::Session && server.side.is_clean();
        if (replicates || fast) && self.shared.broker.lock().pools.close_needed(server.me) {
            return both("database configuration changed");
        }
        None
    }
}

/// What the sweep found out about a client.
enum Verdict {
    /// Its query has taken too long.
    LookupTimedOut,
    End(End),
    Notify,
}

fn fatal(text: &'static str) -> Verdict {
    Verdict::End(Disconnect::fatal(text).into())
}

/// Zero is no limit.
fn over(age: Micros, limit: Micros) -> bool {
    !limit.is_zero() && age > limit
}

/// A limit that a user may override; looked up only if any user overrides anything.
fn for_user(config: &Config, global: Micros, effective: impl FnOnce() -> Micros) -> Micros {
    if config.users.is_empty() { global } else { effective() }
}
