//! The supervisor: signals, the console's commands, the janitor's tick, name lookups and statistics.
//!
//! It runs on the main thread in a small tokio runtime and never touches a client's traffic. Whatever it decides reaches
//! the workers as messages.

mod console;
mod dns;
mod handover;
mod insight;
mod ldap;
mod outside;
pub mod reload;
mod resolver;
mod rows;
mod scrape;
mod statistics;
mod suspend;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::advice::Watch;
use crate::auth::choice::Outside;
use crate::broker::{Broker, ServerAction, locked};
use crate::clock::Clock;
use crate::config::metrics_address::MetricsAddress;
use crate::http;
use crate::log;
use crate::metrics::bounds::Admitted;
use crate::net::listener::{Listeners, UnixSocket};
use crate::pool::{CloseScope, ShutdownMode};
use crate::shared::{Job, Live, Message, Request, Shared};
use crate::supervisor::ldap::Turns;
use crate::supervisor::outside::{PamThread, Question};
use crate::supervisor::resolver::Resolver;
use crate::supervisor::statistics::Statistics;
use crate::sys::service;
use crate::worker::{Here, log_line, obey_from_outside};

/// Three times a second.
const TICK: Duration = Duration::from_millis(333);

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Immediate,
    /// With status 1; why has been logged.
    Failed,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// The Unix socket whose file is to be removed.
    pub unix: Vec<UnixSocket>,
    /// The exit status is 1; why has been logged.
    pub failed: bool,
}

/// A console command that is answered later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    client: crate::id::ClientRef,
    what: PendingKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingKind {
    Pause,
    PauseEntry,
    Suspend,
    WaitClose(CloseScope),
}

/// The supervisor's state.
pub struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Arc<Live>,
    pub(crate) listeners: Listeners,
    pub(crate) pending: Vec<Pending>,
    pub(crate) suspending: Option<suspend::Suspending>,
    /// The console of a process that means to take over.
    pub(crate) successor: Option<crate::id::ClientRef>,
    pub(crate) resolver: Resolver,
    pub(crate) statistics: Statistics,
    watch: Watch,
    /// The pools with metrics of their own.
    admitted: Admitted,
    pam: PamThread,
    directory_turns: Turns,
    actions: Vec<ServerAction>,
    exit: Option<Exit>,
}

impl Supervisor {
    #[must_use]
    pub fn new(shared: Arc<Shared>, live: Arc<Live>, listeners: Listeners) -> Self {
        let resolver = Resolver::new(&live.config.settings.resolv_conf, Clock::now());
        Self {
            shared,
            live,
            listeners,
            pending: Vec::new(),
            suspending: None,
            successor: None,
            resolver,
            statistics: Statistics::start(Clock::now()),
            watch: Watch::default(),
            admitted: Admitted::default(),
            pam: PamThread::default(),
            directory_turns: Turns::default(),
            actions: Vec::new(),
            exit: None,
        }
    }

    /// Runs until the process is to end.
    pub async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        mut signals: Signals,
    ) -> Ended {
        reload::derive_ahead(&self.live);
        self.serve_metrics();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let period = u64::try_from(self.live.config.settings.stats_period).unwrap_or(0).max(1);
        let mut statistics = interval(Duration::from_secs(period));
        statistics.tick().await;
        while self.exit.is_none() {
            // Every branch's future can be dropped without losing a value.
            tokio::select! {
                Some(request) = requests.recv() => self.request(request).await,
                Some(job) = jobs.recv() => self.job(job),
                Some(()) = signals.hangup.recv() => self.hangup(),
                Some(()) = signals.terminate.recv() => self.stop("SIGTERM", ShutdownMode::WaitForClients),
                Some(()) = signals.interrupt.recv() => self.stop("SIGINT", ShutdownMode::WaitForServers),
                Some(()) = signals.quit.recv() => {
                    tracing::info!("got SIGQUIT, fast exit");
                    self.exit = Some(Exit::Immediate);
                }
                Some(()) = signals.user1.recv() => self.pause_by_signal(),
                Some(()) = signals.user2.recv() => self.resume_by_signal(),
                _ = tick.tick() => self.tick(),
                () = tokio::time::sleep(suspend::LOOK_EVERY), if self.suspending.is_some() => self.suspend_step().await,
                _ = statistics.tick() => self.period_ends(),
            }
        }
        let listeners = std::mem::take(&mut self.listeners);
        Ended {
            // who is suspended may have handed the socket to a successor
            unix: if self.is_suspended() { Vec::new() } else { listeners.unix },
            failed: self.exit == Some(Exit::Failed),
        }
    }

    /// Starts to serve metrics, if they are wanted.
    fn serve_metrics(&self) {
        let settings = &self.live.config.settings;
        if settings.metrics_listen != MetricsAddress::Nowhere {
            let mode = u32::try_from(settings.unix_socket_mode).unwrap_or(0o777);
            tokio::spawn(http::serve(settings.metrics_listen.clone(), mode, self.shared.clone()));
        }
    }

    /// Runs `call` under the broker's lock, then obeys what the pools ordered.
    pub(crate) fn pools<T>(&mut self, call: impl FnOnce(&mut Broker) -> T) -> T {
        let done = locked(&self.shared.broker, &mut self.actions, call);
        let mut drained = false;
        let shared = &self.shared;
        let log = self.live.config.settings.log_disconnections;
        obey_from_outside(shared, &mut self.actions, |here| match here {
            Here::Close { mut conn, reason } => {
                shared.ends.lock().server_closed(&reason);
                if log {
                    let age = Clock::now().since(conn.connect_time).secs();
                    tracing::info!(conn = %conn.prefix(), "closing because: {reason} (age={age}s)");
                }
                let _ = conn.stream.write_bytes(&[b'X', 0, 0, 0, 4]);
                conn.stream.retire(&shared.post(conn.home).registry);
            }
            Here::Log(level, text) => log_line(level, &text),
            Here::Drained => drained = true,
        });
        if drained {
            shared.ask(Request::Drained);
        }
        done
    }

    async fn request(&mut self, request: Request) {
        match request {
            Request::Console(command) => self.console(command).await,
            Request::Resolve { host, server, worker } => self.resolve(host, server, worker),
            Request::Looked { host, result } => self.looked_up(&host, result),
            Request::ZoneSerial { zone, serial } => self.zone_serial(&zone, serial),
            Request::Drained => self.answer_pending(),
            Request::ConsoleLeft => self.console_left(),
            Request::CancelConsole { waiting } => self.cancel_console(waiting),
            Request::Scrape { format, reply } => {
                let _ = reply.send(self.scrape(format).await);
            }
        }
    }

    /// Slow crypto runs on the blocking pool; its result is a message to the worker that asked.
    fn job(&mut self, job: Job) {
        if let Job::Password { client, outside, user, password, from } = job {
            let question = Question { client, user, password, from };
            return match outside {
                Outside::Pam => self.pam.ask(&self.shared, question),
                Outside::Ldap(options) => self.ask_directory(question, options),
            };
        }
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || match job {
            Job::Client { client, derivation } => {
                let keys = Box::new(derivation.run());
                shared.post(client.worker).send(Message::ClientDerived { client, keys });
            }
            Job::Password { .. } => {}
            Job::SystemUser { client, uid } => {
                let name = crate::sys::user::name_of(uid);
                shared.post(client.worker).send(Message::SystemUser { client, name });
            }
            Job::Server { server, worker, derivation } => {
                let keys = Box::new(derivation.run());
                let derivation = Box::new(derivation);
                shared.post(worker).send(Message::ServerDerived { server, derivation, keys });
            }
        });
    }

    fn tick(&mut self) {
        log::write_repeats(false);
        let now = Clock::now();
        self.pools(|broker| {
            broker.pools.tick(now);
            broker.sweep();
        });
        self.look();
        self.check_zones();
        self.answer_pending();
        let mode = self.shared.broker.lock().pools.shutdown_mode();
        match mode {
            ShutdownMode::None => {}
            ShutdownMode::WaitForServers => {
                if self.shared.broker.lock().pools.is_drained() {
                    tracing::info!("server connections dropped, exiting");
                    self.exit = Some(Exit::Immediate);
                }
            }
            ShutdownMode::WaitForClients => {
                let accepts = self.shared.accepts_tcp.load(Ordering::Relaxed);
                if !accepts && self.shared.clients.load(Ordering::Relaxed) == 0 {
                    tracing::info!("client connections dropped, exiting");
                    self.exit = Some(Exit::Immediate);
                }
            }
        }
    }

    fn stop(&mut self, signal: &str, mode: ShutdownMode) {
        if self.shared.broker.lock().pools.shutdown_mode() != ShutdownMode::None {
            tracing::info!("got {signal} while shutting down, fast exit");
            self.exit = Some(Exit::Immediate);
            return;
        }
        log_stop(signal);
        service::notify(service::STOPPING);
        if self.dies_suspended() {
            return;
        }
        self.begin_shutdown(mode);
    }

    /// Closes the TCP listeners and lets the pools run dry. The Unix socket stays open for the console.
    pub(crate) fn begin_shutdown(&mut self, mode: ShutdownMode) {
        self.shared.post(0).send(Message::StopTcp);
        self.listeners.tcp.clear();
        let now = Clock::now();
        let suspended = self.is_suspended();
        self.pools(|broker| broker.pools.set_shutdown(mode, now));
        if suspended {
            self.release_hold();
        }
    }

    pub(crate) fn exit_now(&mut self) {
        self.exit = Some(Exit::Immediate);
    }

    fn pause_by_signal(&mut self) {
        let now = Clock::now();
        match self.pools(|broker| broker.pools.pause_all(now)) {
            Ok(()) => tracing::info!("got SIGUSR1, pausing all activity"),
            Err(_) => tracing::info!("got SIGUSR1, but already paused/suspended"),
        }
    }

    fn resume_by_signal(&mut self) {
        use crate::pool::PauseMode;
        let (mode, shutdown) = {
            let broker = self.shared.broker.lock();
            (broker.pools.pause_mode(), broker.pools.shutdown_mode())
        };
        if shutdown != ShutdownMode::None {
            tracing::info!("got SIGUSR2 while shutting down, ignoring");
            return;
        }
        match mode {
            PauseMode::None => {
                tracing::info!("got SIGUSR2, but not paused/suspended");
                return;
            }
            PauseMode::Paused => tracing::info!("got SIGUSR2, continuing from PAUSE"),
            PauseMode::Suspended => tracing::info!("got SIGUSR2, continuing from SUSPEND"),
        }
        let _ = self.resume();
    }
}

/// Logs that SIGTERM or SIGINT has come, and what it means.
pub fn log_stop(signal: &str) {
    let what = match signal {
        "SIGTERM" => "waiting for all clients disconnect",
        _ => "waiting for all servers connections to be released",
    };
    tracing::info!("got {signal}, shutting down, {what}");
}

/// The signals that mean something. From `new` on they wait for the supervisor instead of ending the process.
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    /// To be called in the runtime that will run the supervisor.
    ///
    /// # Errors
    /// Signals cannot be received.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }
}
