//! The supervisor: signals, the console's commands, the janitor's tick, name lookups and statistics.
//!
//! It runs on the main thread in a small tokio runtime and never touches a client's traffic. Whatever it decides reaches
//! the workers as messages.

pub mod ahead;
mod console;
mod dns;
mod handover;
mod insight;
mod jobs;
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
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::advice::Watch;
use crate::broker::{Broker, ServerAction, locked};
use crate::clock::Clock;
use crate::config::metrics_address::MetricsAddress;
use crate::disconnect::Disconnect;
use crate::http;
use crate::id::ClientRef;
use crate::log;
use crate::metrics::bounds::Admitted;
use crate::net::listener::{Listeners, UnixSocket};
use crate::pool::{CloseScope, ShutdownMode};
use crate::shared::{Job, Live, Message, Request, Shared};
use crate::supervisor::ldap::Turns;
use crate::supervisor::outside::PamThread;
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
    client: ClientRef,
    what: PendingKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingKind {
    Pause,
    PauseEntry,
    Suspend,
    WaitClose(CloseScope),
}

/// What the supervisor has to do.
enum Event {
    Request(Request),
    Job(Job),
    Signal(SignalKind),
    Tick,
    /// Whether a SUSPEND has got as far as it can.
    Look,
    PeriodEnds,
}

impl Event {
    /// What a bug in it ends, and the console that would wait for the answer.
    fn subject(&self) -> (&'static str, Option<ClientRef>) {
        match self {
            Self::Request(Request::Console(command)) => ("a console command", Some(command.client)),
            Self::Request(Request::Scrape { .. }) => ("a scrape", None),
            Self::Request(_) => ("a request of a worker", None),
            Self::Job(_) => ("the start of a login's job", None),
            Self::Signal(_) => ("what a signal asked for", None),
            Self::Tick | Self::Look => ("a tick", None),
            Self::PeriodEnds => ("a period of statistics", None),
        }
    }
}

/// The supervisor's state.
pub struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Arc<Live>,
    pub(crate) listeners: Listeners,
    pub(crate) pending: Vec<Pending>,
    pub(crate) suspending: Option<suspend::Suspending>,
    /// The console of a process that means to take over.
    pub(crate) successor: Option<ClientRef>,
    pub(crate) resolver: Resolver,
    pub(crate) statistics: Statistics,
    watch: Watch,
    /// The pools with metrics of their own.
    admitted: Admitted,
    pam: PamThread,
    directory_turns: Turns,
    /// The turns of clients whose logins need a derivation.
    client_turns: Arc<Semaphore>,
    actions: Vec<ServerAction>,
    /// Since the last tick a console got an answer that it must have before the process ends.
    answered: bool,
    exit: Option<Exit>,
}

/// How many derivations are made for clients at a time.
#[must_use]
pub fn client_turns(workers: usize) -> usize {
    workers.max(2)
}

impl Supervisor {
    #[must_use]
    pub fn new(shared: Arc<Shared>, live: Arc<Live>, listeners: Listeners) -> Self {
        let resolver = Resolver::new(&live.config.settings.resolv_conf, Clock::now());
        let workers = shared.posts.len();
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
            client_turns: Arc::new(Semaphore::new(client_turns(workers))),
            actions: Vec::new(),
            answered: false,
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
        ahead::make_in_background(&self.shared, &self.live, None);
        self.live.tls.prepare();
        self.serve_metrics();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let period = u64::try_from(self.live.config.settings.stats_period).unwrap_or(0).max(1);
        let mut statistics = interval(Duration::from_secs(period));
        statistics.tick().await;
        let shared = self.shared.clone();
        while self.exit.is_none() {
            // Every branch's future can be dropped without losing a value.
            let event = tokio::select! {
                Some(request) = requests.recv() => Event::Request(request),
                Some(job) = jobs.recv() => Event::Job(job),
                Some(()) = signals.hangup.recv() => Event::Signal(SignalKind::hangup()),
                Some(()) = signals.terminate.recv() => Event::Signal(SignalKind::terminate()),
                Some(()) = signals.interrupt.recv() => Event::Signal(SignalKind::interrupt()),
                Some(()) = signals.quit.recv() => Event::Signal(SignalKind::quit()),
                Some(()) = signals.user1.recv() => Event::Signal(SignalKind::user_defined1()),
                Some(()) = signals.user2.recv() => Event::Signal(SignalKind::user_defined2()),
                _ = tick.tick() => Event::Tick,
                () = tokio::time::sleep(suspend::LOOK_EVERY), if self.suspending.is_some() => Event::Look,
                _ = statistics.tick() => Event::PeriodEnds,
            };
            let (what, asked_by) = event.subject();
            if shared.guard.watch(what, self.event(event)).await.is_none()
                && let Some(client) = asked_by
            {
                let why = Disconnect::fatal("internal error");
                shared.post(client.worker).send(Message::CloseClient { client, why });
            }
        }
        let listeners = std::mem::take(&mut self.listeners);
        Ended {
            // who ends while suspended may have handed the socket to a successor
            unix: if self.is_suspended() { Vec::new() } else { listeners.unix },
            failed: self.exit == Some(Exit::Failed),
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Request(request) => self.request(request).await,
            Event::Job(job) => self.job(job),
            Event::Signal(kind) => self.signal(kind),
            Event::Tick => self.tick(),
            Event::Look => self.suspend_step().await,
            Event::PeriodEnds => self.period_ends(),
        }
    }

    fn signal(&mut self, kind: SignalKind) {
        match kind {
            kind if kind == SignalKind::hangup() => self.hangup(),
            kind if kind == SignalKind::terminate() => self.stop("SIGTERM", ShutdownMode::WaitForClients),
            kind if kind == SignalKind::interrupt() => self.stop("SIGINT", ShutdownMode::WaitForServers),
            kind if kind == SignalKind::user_defined1() => self.pause_by_signal(),
            kind if kind == SignalKind::user_defined2() => self.resume_by_signal(),
            _ => {
                tracing::info!("got SIGQUIT, fast exit");
                self.exit = Some(Exit::Immediate);
            }
        }
    }

    /// Starts to serve metrics, if they are wanted.
    fn serve_metrics(&self) {
        let settings = &self.live.config.settings;
        if settings.metrics_listen != MetricsAddress::Nowhere {
            let mode = u32::try_from(settings.unix_socket_mode).unwrap_or(0o777);
            let (address, shared) = (settings.metrics_listen.clone(), self.shared.clone());
            tokio::spawn(async move {
                shared.guard.watch("the serving of metrics", http::serve(address, mode, shared.clone())).await
            });
        }
    }

    /// Runs `call` under the broker's lock, then obeys what the pools ordered.
    pub(crate) fn pools<T>(&mut self, call: impl FnOnce(&mut Broker) -> T) -> T {
        let done = locked(&self.shared.broker, &mut self.actions, call);
        let mut drained = false;
        let shared = &self.shared;
        let log = self.live.config.settings.log_disconnections.is_on();
        obey_from_outside(shared, &mut self.actions, |here| match here {
            Here::Close { mut conn, reason } => {
                shared.ends.lock().server_closed(&reason);
                if log {
                    let age = Clock::now().since(conn.connect_time).secs();
                    tracing::info!(conn = %conn.prefix(), "closing because: {reason} (age={age}s)");
                }
                let _ = conn.stream.write_bytes(&[b'X', 0, 0, 0, 4]);
                conn.stream.retire();
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
        #[cfg(debug_assertions)]
        match &request {
            Request::Console(_) => crate::worker::plant::once("console"),
            Request::Scrape { .. } => crate::worker::plant::once("scrape"),
            _ => {}
        }
        match request {
            Request::Console(command) => self.console(command).await,
            Request::Resolve { host, server, worker } => self.resolve(host, server, worker),
            Request::Looked { host, result } => self.looked_up(&host, result),
            Request::ZoneSerial { zone, serial } => self.zone_serial(&zone, serial),
            Request::Drained => self.answer_pending(),
            Request::ConsoleLeft => self.console_left(),
            Request::CancelConsole => self.cancel_console(),
            Request::Scrape { format, reply } => {
                let _ = reply.send(self.scrape(format).await);
            }
        }
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
        if std::mem::take(&mut self.answered) {
            // the answer is on its way over a worker
            return;
        }
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
                    // if the last one was a console, word of that may not be here yet
                    self.console_left();
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
        if self.shared.broker.lock().pools.may_pause().is_err() {
            tracing::info!("got SIGUSR1, but already paused/suspended");
            return;
        }
        // before the lines about the servers that it closes
        tracing::info!("got SIGUSR1, pausing all activity");
        let now = Clock::now();
        let _ = self.pools(|broker| broker.pools.pause_all(now));
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
