//! The start of the process, in the order that operators know, and its end.
//!
//! Everything that can fail fails before the first thread exists: configuration, user, pidfile, fork, listeners. Then the
//! workers start, and the main thread becomes the supervisor.

use std::path::PathBuf;
use std::sync::Arc;

use mio::{Poll, Waker};
use tokio::sync::mpsc;

use crate::broker::Broker;
use crate::cli::{self, Options};
use crate::clock::Clock;
use crate::config::{Config, Settings, effective};
use crate::helpers::Helpers;
use crate::id::WorkerId;
use crate::log::{self, Fatal};
use crate::net::listener::{self, ListenOptions, Listeners, UnixSocket};
use crate::net::tls::Contexts;
use crate::pool::Pools;
use crate::relay::vars::TrackedNames;
use crate::shared::{Live, Post, Shared};
use crate::supervisor::ahead;
use crate::supervisor::reload::{FilesRead, Users, build_tls, decoy, load, read_rules, read_users, verbosity};
use crate::supervisor::{Signals, Supervisor, client_turns};
use crate::sys;
use crate::sys::pidfile::{self, Pidfile};
use crate::takeover::{self, Takeover};
use crate::time::Micros;
use crate::worker::Worker;
use crate::worker::accept::Acceptor;
use crate::worker::inherit;
use crate::worker::login::tokens;
use crate::worker::open::tcp_options;
use crate::worker::table::WAKER;

/// Stack of a worker thread; turns are shallow.
const WORKER_STACK_BYTES: usize = 1 << 20;

/// The daemon could not start, and has said why: exit status 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotStarted;

/// Runs the daemon from its options to its end.
///
/// # Errors
/// It could not start.
pub fn run(options: &Options) -> Result<(), NotStarted> {
    // The first reading is the zero of all later ones.
    let _ = Clock::now();
    log::init(options.quiet, options.verbose);
    // before the first secret is read
    sys::limits::no_core_dumps();
    let ended = start(options);
    log::write_repeats(true);
    ended.map_err(|Fatal(text)| {
        if !text.is_empty() {
            log::fatal(text);
        }
        NotStarted
    })
}

fn start(options: &Options) -> Result<(), Fatal> {
    // asked before anything else is opened, and before a fork changes who we are
    let passed = sys::service::passed_sockets();
    let config = load_config(options)?;
    log::set_verbose(verbosity(&config));
    // before the user changes: private keys are often root's
    let tls = build_tls(&config).ok_or_else(|| Fatal("TLS setup failed".to_owned()))?;
    if let Some(user) = config.settings.user.as_deref().filter(|user| !user.is_empty()) {
        sys::user::switch_user(user)?;
    }
    sys::user::refuse_root()?;
    open_logfile(&config.settings)?;
    let read = FilesRead { users: read_users(&config, &Users::new()), rules: read_rules(&config) };
    let settings = &config.settings;
    let port = u16::try_from(settings.listen_port).map_err(|_| bad_port(settings.listen_port))?;
    let limit = sys::limits::raise_fd_limit();
    let predecessor = predecessor(options, settings, port, passed > 0)?;
    if options.daemon {
        sys::daemon::daemonize(&settings.pidfile)?;
        log::silence_stderr();
    }
    let taken_over = predecessor.iter().flat_map(Takeover::databases);
    let expected = effective::expected_fds(&config, read.users.keys().map(String::as_str), taken_over);
    tracing::info!("{}", limit.describe(settings.max_client_conn, expected));
    if let Some(text) = sys::limits::too_low(limit.soft, settings.max_client_conn, expected) {
        tracing::warn!("{text}");
    }
    let listen = listen_options(&config, port);
    let (listeners, predecessor) = match predecessor {
        Some(mut old) if !old.listeners.is_empty() => {
            let listeners = std::mem::take(&mut old.listeners);
            listeners.retune(&listen.tcp, listen.tcp_defer_accept);
            (listeners, Some(old))
        }
        old if passed > 0 => (listener::passed(passed, &listen, &Settings::default().unix_socket_dir)?, old),
        old => (listener::open(&listen)?, old),
    };
    serve(config, read, tls, listeners, port, predecessor)
}

/// The configuration; from here on log lines go where it says.
fn load_config(options: &Options) -> Result<Config, Fatal> {
    let mut opened = Ok(());
    let loaded = load(&options.config_file, None, |settings| {
        log::set_format(settings.log_format, settings.log_rate_limit);
        log::set_syslog(settings.syslog.is_on(), &settings.syslog_facility, &settings.syslog_ident, true);
        // Root waits until it has become somebody else, or a refused start would leave a file that belongs to root.
        if !sys::user::is_root() {
            opened = open_logfile(settings);
        }
    });
    opened?;
    let mut config = loaded.ok_or_else(|| Fatal("cannot load config file".to_owned()))?;
    apply_options(&mut config, options);
    Ok(config)
}

/// Makes sure that nobody else runs, or takes over from whoever does.
fn predecessor(options: &Options, settings: &Settings, port: u16, passed: bool) -> Result<Option<Takeover>, Fatal> {
    if options.reboot {
        tracing::warn!("Online restart is deprecated, use so_reuseport instead");
        let dir = &settings.unix_socket_dir;
        if passed && !dir.is_empty() && listener::refuse_used_unix_socket(dir, port).is_err() {
            return Err(Fatal("cannot reboot under service manager".to_owned()));
        }
        if let Some(old) = takeover::begin(dir, port)? {
            return Ok(Some(old));
        }
    } else if !settings.unix_socket_dir.is_empty() && !passed {
        listener::refuse_used_unix_socket(&settings.unix_socket_dir, port)?;
    }
    pidfile::check(&settings.pidfile)?;
    Ok(None)
}

/// What the command line adds to the file.
pub(crate) fn apply_options(config: &mut Config, options: &Options) {
    let settings = &mut config.settings;
    settings.conffile = Some(options.config_file.to_string_lossy().into_owned());
    if settings.verbose.is_none() {
        settings.verbose = Some(i64::from(options.verbose));
    }
    if options.user.is_some() {
        settings.user.clone_from(&options.user);
    }
}

fn open_logfile(settings: &Settings) -> Result<(), Fatal> {
    use std::io::Write as _;
    log::open_logfile(&settings.logfile).map_err(|line| {
        let _ = std::io::stderr().write_all(line.as_bytes());
        Fatal(String::new())
    })
}

fn bad_port(port: i64) -> Fatal {
    Fatal(format!("listen_port {port} is not a port number"))
}

fn listen_options(config: &Config, port: u16) -> ListenOptions {
    let settings = &config.settings;
    ListenOptions {
        listen_addr: settings.listen_addr.clone(),
        listen_port: port,
        listen_backlog: i32::try_from(settings.listen_backlog).unwrap_or(128),
        unix_socket_dir: settings.unix_socket_dir.clone(),
        unix_socket_mode: u32::try_from(settings.unix_socket_mode).unwrap_or(0o777),
        unix_socket_group: settings.unix_socket_group.clone(),
        tcp_defer_accept: settings.tcp_defer_accept.is_on(),
        so_reuseport: settings.so_reuseport.is_on(),
        tcp: tcp_options(settings),
    }
}

/// Starts the workers and supervises them until the end.
fn serve(
    config: Config,
    read: FilesRead,
    tls: Contexts,
    mut listeners: Listeners,
    port: u16,
    predecessor: Option<Takeover>,
) -> Result<(), Fatal> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Fatal(format!("{what}: {}", sys::error_text(&error)))
    };
    let workers = worker_count(&config);
    let config = Arc::new(config);
    let names = Arc::new(TrackedNames::new(tokens(&config.settings.track_extra_parameters)));
    let (requests, request_queue) = mpsc::unbounded_channel();
    let (jobs, job_queue) = mpsc::unbounded_channel();
    let mut salt_key = [0; 32];
    getrandom::fill(&mut salt_key).map_err(|error| Fatal(format!("no random numbers: {error}")))?;
    let mut pools = Pools::new(config.clone(), Clock::now());
    pools.set_known_users(read.users.keys().cloned());
    let mut polls = Vec::new();
    let mut posts = Vec::new();
    for _ in 0..workers {
        let poll = Poll::new().map_err(failed("cannot create a poller"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(failed("cannot create a waker"))?;
        let registry = poll.registry().try_clone().map_err(failed("cannot share a poller"))?;
        posts.push(Post::new(waker, registry));
        polls.push(poll);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(client_turns(usize::from(workers)) + 1)
        .thread_name("helper")
        // a storm of logins must not take the processor from those who are logged in
        .on_thread_start(sys::priority::stand_back)
        .build()
        .map_err(failed("cannot start the supervisor"))?;
    let shared = Arc::new(Shared::new(
        Broker::new(pools, usize::from(workers)),
        posts,
        names,
        requests,
        jobs,
        Helpers::new(usize::from(workers), cores() > workers),
        PathBuf::from(&config.settings.unix_socket_dir),
        port,
        listeners.only_tcp_address,
        sys::user::own_uid(),
    ));
    let decoy = decoy(&config, &read.users, salt_key);
    let live = Arc::new(Live { config, users: Arc::new(read.users), decoy, hba: read.rules, tls: Arc::new(tls) });
    // clients that are taken over must not wait
    let patience = if predecessor.is_none() { Micros::from_secs(1) } else { ahead::BLINK };
    ahead::make(&live, patience, usize::from(cores()));
    let mut acceptor = Some(acceptor(&listeners).map_err(failed("cannot share a listener"))?);
    let mut crew: Vec<Worker> = (0..workers)
        .zip(polls)
        .map(|(id, poll)| Worker::new(id, shared.clone(), live.clone(), poll, acceptor.take()))
        .collect();
    let pidfile_path = live.config.settings.pidfile.clone();
    let signals = {
        let _inside = runtime.enter();
        // before the predecessor is told to end, and before anybody can know that we are here
        Signals::new().map_err(failed("cannot receive signals"))?
    };
    if let Some(mut old) = predecessor {
        let (sockets, state) = (std::mem::take(&mut old.sockets), std::mem::take(&mut old.state));
        inherit::distribute(&mut crew, &shared, sockets, &state);
        old.finish(&pidfile_path)?;
    }
    let pidfile = pidfile::write(&pidfile_path).inspect_err(|_| {
        // nobody will ever answer there
        listeners.unix.drain(..).for_each(UnixSocket::unlink);
    })?;
    for (id, worker) in crew.into_iter().enumerate() {
        std::thread::Builder::new()
            .name(format!("worker {id}"))
            .stack_size(WORKER_STACK_BYTES)
            .spawn(move || worker.run())
            .map_err(failed("cannot start a worker"))?;
    }
    tracing::info!("{}", cli::process_up());
    sys::service::notify(sys::service::READY);
    let supervisor = Supervisor::new(shared, live, listeners);
    let ended = runtime.block_on(supervisor.run(request_queue, job_queue, signals));
    if let Some(pidfile) = pidfile {
        Pidfile::remove(pidfile);
    }
    ended.unix.into_iter().for_each(UnixSocket::unlink);
    runtime.shutdown_background();
    // what there was to say has been logged
    if ended.failed { Err(Fatal(String::new())) } else { Ok(()) }
}

fn worker_count(config: &Config) -> WorkerId {
    let asked = WorkerId::try_from(config.settings.worker_threads).unwrap_or(0);
    if asked > 0 {
        return asked;
    }
    cores()
}

/// Cores that this process may use.
fn cores() -> WorkerId {
    std::thread::available_parallelism().map_or(1, |cores| WorkerId::try_from(cores.get()).unwrap_or(1))
}

/// The listeners again, for the first worker's poller.
fn acceptor(listeners: &Listeners) -> std::io::Result<Acceptor> {
    let tcp = listeners.tcp.iter().map(|tcp| Ok(mio::net::TcpListener::from_std(tcp.socket.try_clone()?)));
    let unix = listeners.unix.iter().map(|unix| Ok(mio::net::UnixListener::from_std(unix.socket.try_clone()?)));
    Ok(Acceptor {
        tcp: tcp.collect::<std::io::Result<_>>()?,
        unix: unix.collect::<std::io::Result<_>>()?,
        retreats: false,
    })
}
