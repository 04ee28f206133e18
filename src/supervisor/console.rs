//! Console commands: [`crate::admin`] joined to the pools and the workers.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::admin::command::{Command, Shutdown, Topic};
use crate::admin::refusal::Refusal;
use crate::admin::{reply, show};
use crate::broker::ServerPools;
use crate::clock::Clock;
use crate::config::keys;
use crate::id::ClientRef;
use crate::log::Conn;
use crate::pool::{PauseMode, ShutdownMode};
use crate::shared::{ConsoleCommand, Message};
use crate::supervisor::reload::{build_tls, missing_library};
use crate::supervisor::{Pending, PendingKind, Supervisor};
use crate::worker::console::log_refusal;
use crate::worker::login::log_registered;

/// What a command comes to.
enum Done {
    /// Reply with the tag.
    Tag(String),
    /// Reply with these messages; ReadyForQuery is added.
    Bytes(Vec<u8>),
    /// Reply later.
    Later(PendingKind),
    /// No reply at all.
    Nothing,
}

impl Supervisor {
    /// Runs a command and sends the answer to the console's worker.
    pub(super) async fn console(&mut self, command: ConsoleCommand) {
        let client = command.client;
        let done = match command.command {
            Command::Show(Topic::Fds) if command.own => {
                self.send_descriptors(client, &self.fd_rows().await);
                Ok(Done::Nothing)
            }
            Command::Handover if command.own => Ok(Done::Bytes(self.hand_over(client).await)),
            other => self.run_command(client, other, &command.prefix).await,
        };
        let mut out = Vec::new();
        match done {
            Ok(Done::Tag(tag)) => reply::done(&mut out, &tag),
            Ok(Done::Bytes(bytes)) => {
                out = bytes;
                reply::ready(&mut out);
            }
            Ok(Done::Later(what)) => {
                self.pending.push(Pending { client, what });
                self.shared.post(client.worker).send(Message::ConsoleWaits { client });
                self.answer_pending();
                return;
            }
            Ok(Done::Nothing) => return,
            Err(refusal) => {
                log_refusal(&refusal, &command.prefix, self.live.config.settings.log_pooler_errors.is_on());
                if reply::refuse(&mut out, &refusal).is_err() {
                    out.clear();
                }
            }
        }
        self.reply(client, out);
    }

    fn reply(&self, client: ClientRef, bytes: Vec<u8>) {
        self.shared.post(client.worker).send(Message::ConsoleReply { client, bytes, waited: false });
    }

    /// The wait of a console is over.
    fn reply_to_wait(&mut self, client: ClientRef, tag: &str) {
        self.answered = true;
        let mut bytes = Vec::new();
        reply::done(&mut bytes, tag);
        self.shared.post(client.worker).send(Message::ConsoleReply { client, bytes, waited: true });
    }

    async fn run_command(&mut self, client: ClientRef, command: Command, prefix: &Conn) -> Result<Done, Refusal> {
        self.may_run(&command).map_err(Refusal::Pools)?;
        if let Some(line) = command.log_line() {
            tracing::info!("{line}");
        }
        let tag = command.tag();
        let now = Clock::now();
        let pools = |result: Result<(), String>| result.map(|()| Done::Tag(tag.clone())).map_err(Refusal::Pools);
        match command {
            Command::Show(topic) => self.show(topic).await,
            Command::ShowFake(fake) => {
                let mut out = Vec::new();
                show::fake(&mut out, fake);
                Ok(Done::Bytes(out))
            }
            Command::SetFake(_) => {
                let mut out = Vec::new();
                reply::set_ignored(&mut out);
                Ok(Done::Bytes(out))
            }
            Command::Set { key, value } => self.set(&key, &value).map(|notice| match notice {
                None => Done::Tag(tag),
                Some(notice) => {
                    let mut out = Vec::new();
                    reply::notice(&mut out, &notice, None);
                    reply::complete(&mut out, &tag);
                    Done::Bytes(out)
                }
            }),
            Command::Reload => match self.reload() {
                true => Ok(Done::Tag(tag)),
                false => {
                    tracing::error!("RELOAD Failed, see logs for more details");
                    Err(Refusal::ReloadFailed)
                }
            },
            Command::Pause(None) => match self.pools(|broker| broker.pools.pause_all(now)) {
                Ok(()) => Ok(Done::Later(PendingKind::Pause)),
                Err(text) => Err(Refusal::Pools(text)),
            },
            Command::Pause(Some(db)) => match self.of_entry(prefix, |pools| pools.pause_db(&db, now)) {
                Ok(true) => Ok(Done::Tag(tag)),
                Ok(false) => Ok(Done::Later(PendingKind::PauseEntry)),
                Err(text) => Err(Refusal::Pools(text)),
            },
            Command::Resume(None) => pools(self.resume()),
            Command::Resume(Some(db)) => pools(self.pools(|broker| broker.pools.resume_db(&db, now))),
            Command::Disable(db) => pools(self.of_entry(prefix, |pools| pools.disable_db(Some(&db), now))),
            Command::Enable(db) => pools(self.pools(|broker| broker.pools.enable_db(Some(&db), now))),
            Command::Reconnect(db) => pools(self.of_entry(prefix, |pools| pools.reconnect(db.as_deref(), now))),
            Command::Kill(db) => pools(self.of_entry(prefix, |pools| pools.kill(db.as_deref(), now))),
            Command::KillClient(id) => match self.kill_client(id).await {
                true => Ok(Done::Tag(tag)),
                false => Err(Refusal::ClientNotFound),
            },
            Command::WaitClose(db) => match self.of_entry(prefix, |pools| pools.wait_close(db.as_deref(), now)) {
                Ok(None) => Ok(Done::Tag(tag)),
                Ok(Some(scope)) => Ok(Done::Later(PendingKind::WaitClose(scope))),
                Err(text) => Err(Refusal::Pools(text)),
            },
            Command::Nowhere { name, .. } => Err(Refusal::NoSuchDatabase(name)),
            Command::Handover => Ok(Done::Nothing),
            Command::Suspend => match self.suspend(self.patience_for(client)) {
                Ok(()) => Ok(Done::Later(PendingKind::Suspend)),
                Err(text) => Err(Refusal::Pools(text)),
            },
            Command::Shutdown(Shutdown::Immediate) => {
                self.exit_now();
                Ok(Done::Nothing)
            }
            Command::Shutdown(mode) => {
                let mode = match mode {
                    Shutdown::WaitForServers => ShutdownMode::WaitForServers,
                    Shutdown::WaitForClients | Shutdown::Immediate => ShutdownMode::WaitForClients,
                };
                let mut out = Vec::new();
                reply::done(&mut out, &tag);
                self.reply(client, out);
                self.answered = true;
                self.begin_shutdown(mode);
                Ok(Done::Nothing)
            }
        }
    }

    /// A command that may make an entry.
    fn of_entry<T>(&mut self, prefix: &Conn, call: impl FnOnce(&mut ServerPools) -> T) -> T {
        let (done, registered) = self.pools(|broker| (call(&mut broker.pools), broker.pools.take_registered()));
        log_registered(|| prefix.clone(), registered);
        done
    }

    /// What is refused because everything stands still already is not logged as issued.
    fn may_run(&self, command: &Command) -> Result<(), String> {
        let pools = &self.shared.broker.lock().pools;
        match command {
            Command::Pause(_) | Command::Kill(_) => pools.may_pause(),
            Command::Suspend => pools.may_suspend(),
            Command::Nowhere { command, .. } if matches!(**command, Command::Pause(_) | Command::Kill(_)) => {
                pools.may_pause()
            }
            _ => Ok(()),
        }
    }

    async fn kill_client(&self, id: u64) -> bool {
        let mut found = false;
        for post in &self.shared.posts {
            let (done, answer) = oneshot::channel();
            post.send(Message::Kill { id, done });
            found |= answer.await.unwrap_or(false);
        }
        found
    }

    /// Sets a setting; what comes back is a notice for the console. A setting that only a restart changes stays as it is.
    fn set(&mut self, key: &str, value: &str) -> Result<Option<String>, Refusal> {
        let changed = self.live.config.set_setting(key, value).map_err(|error| {
            if let Some(detail) = error.detail(key) {
                tracing::error!("{detail}");
            }
            Refusal::SetFailed
        })?;
        if let Some(missing) = missing_library(&changed) {
            tracing::error!("auth_type=pam cannot be used: {missing}");
            return Err(Refusal::SetFailed);
        }
        if keys::find(key).is_some_and(|key| !key.changeable) {
            let text = format!("{key} can only be changed by a restart");
            tracing::warn!("{text}");
            return Ok(Some(text));
        }
        if !key.contains("_tls_") && !key.contains("_tls13_") {
            self.put_in_force(changed, None, None);
            return Ok(None);
        }
        let tls = build_tls(&changed).map(Arc::new);
        let failed = tls.is_none();
        self.put_in_force(changed, None, tls);
        Ok(failed.then(|| "TLS settings could not be applied, still using old configuration".to_owned()))
    }

    async fn show(&mut self, topic: Topic) -> Result<Done, Refusal> {
        let mut out = Vec::new();
        let lists = self.socket_lists();
        match topic {
            Topic::Clients => show::clients(&mut out, &self.sockets(topic).await, &lists),
            Topic::Servers => show::servers(&mut out, &self.sockets(topic).await, &lists),
            Topic::Sockets => show::sockets(&mut out, &self.sockets(topic).await, &lists),
            Topic::ActiveSockets => show::active_sockets(&mut out, &self.sockets(topic).await, &lists),
            Topic::Pools => show::pools(&mut out, &self.pool_rows()),
            Topic::Databases => show::databases(&mut out, &self.database_rows()),
            Topic::Users => show::users(&mut out, &self.user_rows()),
            Topic::Config => show::config(&mut out, &self.config_rows()),
            Topic::Stats => show::stats(&mut out, &self.stats_rows()),
            Topic::StatsTotals => show::stats_totals(&mut out, &self.stats_rows()),
            Topic::StatsAverages => show::stats_averages(&mut out, &self.stats_rows()),
            Topic::Totals => {
                let (totals, averages) = self.stats_total();
                show::totals(&mut out, &totals, &averages);
            }
            Topic::Lists => show::lists(&mut out, &self.lists()),
            Topic::Mem => show::mem(&mut out, &self.mem_rows()),
            Topic::State => show::state(&mut out, self.state()),
            Topic::Version => show::version(&mut out),
            Topic::Help => show::help(&mut out),
            Topic::Peers => show::peers(&mut out, &self.peer_rows()),
            Topic::PeerPools => show::peer_pools(&mut out, &self.peer_pool_rows()),
            Topic::DnsHosts => show::dns_hosts(&mut out, &self.resolver.rows(&self.live.config.settings, Clock::now())),
            Topic::DnsZones => show::dns_zones(&mut out, &self.resolver.zone_rows()),
            Topic::Fds => {
                let rows = self.fd_rows().await;
                show::fds(&mut out, show::give_way_between(rows.into_iter(), &lists));
            }
            Topic::Waits => show::waits(&mut out, &self.wait_lines().await),
            Topic::Latency => show::latency(&mut out, &self.latency_rows()),
            Topic::Advice => show::advice(&mut out, &self.advice()),
        }
        Ok(Done::Bytes(out))
    }

    /// Answers the consoles whose wait is over. A completed PAUSE, also that of a signal, answers every console that waits
    /// for anything, by its own tag: that is also how a console whose command was cancelled comes back.
    pub(super) fn answer_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let shared = self.shared.clone();
        let broker = shared.broker.lock();
        let pools = &broker.pools;
        let paused = pools.pause_mode() != PauseMode::None;
        let entry_paused = !paused && pools.has_paused_entry();
        let waits_for = |what: PendingKind| pending.iter().any(|pending| pending.what == what);
        let pause_done = pools.pause_mode() == PauseMode::Paused && pools.is_drained();
        let entries_done = waits_for(PendingKind::PauseEntry) && entry_paused && pools.paused_entries_drained();
        let closed = |what| matches!(what, PendingKind::WaitClose(scope) if !pools.close_pending(scope));
        let wait_done = pending.iter().any(|pending| closed(pending.what));
        let over = |pending: &Pending| match pending.what {
            _ if pause_done || entries_done => true,
            PendingKind::WaitClose(_) => closed(pending.what),
            // what it waited for was called off
            PendingKind::Pause | PendingKind::Suspend => wait_done && !paused,
            PendingKind::PauseEntry => wait_done && !entry_paused,
        };
        let (done, waiting): (Vec<_>, Vec<_>) = pending.iter().copied().partition(over);
        drop(broker);
        self.pending = waiting;
        let tag = if pause_done || entries_done { "PAUSE" } else { "WAIT_CLOSE" };
        for pending in done {
            self.reply_to_wait(pending.client, tag);
        }
    }

    /// Answers every console that waits for something.
    pub(super) fn answer_all(&mut self, tag: &str) {
        for pending in std::mem::take(&mut self.pending) {
            self.reply_to_wait(pending.client, tag);
        }
    }

    /// A console command was cancelled: a global PAUSE or SUSPEND ends.
    pub(super) fn cancel_console(&mut self) {
        let _ = self.resume();
    }
}
