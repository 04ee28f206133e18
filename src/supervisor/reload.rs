//! Putting a configuration in force: at start, on RELOAD and SIGHUP, by SET.
//!
//! Files are read and judged as a whole before anything changes; a broken one leaves the old configuration in force.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::auth::decoy::Decoy;
use crate::auth::secret::Secret;
use crate::clock::Clock;
use crate::config::hba::{self, Rules};
use crate::config::{self, AuthType, Config, Level, LogLine, Settings, effective, ident, userlist};
use crate::log;
use crate::net::tls::Contexts;
use crate::shared::{Live, Message, UserSecret};
use crate::supervisor::{Supervisor, ahead};
use crate::sys::pam::Pam;
use crate::sys::{limits, service};
use crate::worker::authenticate::scram_iterations;
use crate::worker::log_line;
use crate::worker::open::tcp_options;

/// Users by name, with their secrets.
pub type Users = HashMap<String, Arc<UserSecret>>;

/// What was read along with the configuration file.
pub struct FilesRead {
    pub users: Users,
    /// None: not wanted.
    pub rules: Option<Arc<Rules>>,
}

/// Loads the configuration file and logs what it says. `None` if it cannot be used. `before_lines` gets the settings before
/// anything is logged: those of the file, or what there was of them before the mistake.
pub fn load(path: &Path, running: Option<&Config>, before_lines: impl FnOnce(&Settings)) -> Option<Config> {
    let read = |path: &Path| std::fs::read(path);
    let (loaded, lines) = config::load(path, &read, running);
    before_lines(match &loaded {
        Ok(loaded) => &loaded.config.settings,
        Err(failed) => &failed.so_far,
    });
    for line in lines {
        log_line(line.level, &line.text);
    }
    let loaded = loaded.ok()?;
    if let Some(missing) = missing_library(&loaded.config) {
        tracing::error!("auth_type=pam cannot be used: {missing}");
        return None;
    }
    for restart in &loaded.needs_restart {
        let line = restart.log_line();
        log_line(line.level, &line.text);
    }
    Some(loaded.config)
}

/// What the machine lacks to serve the configuration.
pub fn missing_library(config: &Config) -> Option<String> {
    if config.settings.auth_type == AuthType::Pam { Pam::load().err() } else { None }
}

/// Says so if there may be more connections than this process may have descriptors.
fn warn_of_descriptors(config: &Config, users: &Users) {
    let (clients, expected) =
        (config.settings.max_client_conn, effective::expected_fds(config, users.keys().map(String::as_str), []));
    if let Some(text) = limits::too_low(limits::reachable_fd_limit(), clients, expected) {
        tracing::warn!("{text}");
    }
}

/// Reads the users that the configuration names. Those who have disappeared stay known, without a password; what was
/// derived from an unchanged secret is kept. A file that cannot be read changes nothing.
pub fn read_users(config: &Config, known: &Users) -> Users {
    let nobodys = || known.keys().map(|name| (name.clone(), Arc::new(UserSecret::default()))).collect();
    let settings = &config.settings;
    let Some(path) = &settings.auth_file else { return nobodys() };
    if path.is_empty() || matches!(settings.auth_type, AuthType::Any | AuthType::Pam) {
        return known.clone();
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => zeroize::Zeroizing::new(bytes),
        Err(error) => {
            let line = userlist::unreadable(path, &error);
            log_line(line.level, &line.text);
            return known.clone();
        }
    };
    let mut users: Users = nobodys();
    let list = userlist::parse(&bytes);
    for line in &list.log {
        log_line(line.level, &line.text);
    }
    for (name, text) in &list.secrets {
        let secret = Secret::classify(text);
        let same = known.get(name).filter(|user| user.secret == secret).cloned();
        let user = same.unwrap_or_else(|| Arc::new(UserSecret { secret, ..UserSecret::default() }));
        users.insert(name.clone(), user);
    }
    users
}

/// What somebody whom nobody knows is taken for.
pub fn decoy(config: &Config, users: &Users, key: [u8; 32]) -> Decoy {
    Decoy::of(users.values().map(|user| &user.secret), scram_iterations(config), key)
}

/// Reads the access rules and the user name maps they refer to. None when the configuration has no use for them.
pub fn read_rules(config: &Config) -> Option<Arc<Rules>> {
    let settings = &config.settings;
    if settings.auth_type != AuthType::Hba {
        return None;
    }
    let read = |path: &Path| std::fs::read(path);
    let maps = match settings.auth_ident_file.as_deref().filter(|path| !path.is_empty()) {
        Some(path) => match read(Path::new(path)) {
            Ok(text) => logged(ident::parse(&text)),
            Err(error) => logged((ident::Maps::new(), vec![ident::unreadable(path, &error)])),
        },
        None => ident::Maps::new(),
    };
    let path = &settings.auth_hba_file;
    let rules = match read(Path::new(path)) {
        Ok(text) => hba::parse(&text, Path::new(path), &maps, &read),
        // nobody gets in by rules that cannot be read
        Err(error) => (Rules::default(), vec![hba::unreadable(path, &error)]),
    };
    Some(Arc::new(logged(rules)))
}

fn logged<T>((value, lines): (T, Vec<LogLine>)) -> T {
    for line in lines {
        log_line(line.level, &line.text);
    }
    value
}

/// Builds the TLS contexts and logs why it cannot be done.
pub fn build_tls(config: &Config) -> Option<Contexts> {
    match Contexts::build(&config.settings) {
        Ok(contexts) => Some(contexts),
        Err(lines) => {
            lines.iter().for_each(|line| tracing::error!("{line}"));
            None
        }
    }
}

impl Supervisor {
    pub(super) fn hangup(&mut self) {
        tracing::info!("got SIGHUP, re-reading config");
        service::notify_reloading();
        self.reload();
        service::notify(service::READY);
    }

    /// Reads everything again. False: nothing has changed.
    pub(super) fn reload(&mut self) -> bool {
        let path = self.live.config.settings.conffile.clone().unwrap_or_default();
        let Some(config) = load(Path::new(&path), Some(&self.live.config), |_| ()) else {
            log_line(Level::Warning, "config file loading failed");
            // the one who rotates logs must not have to mend the configuration first
            self.reopen_logs();
            return false;
        };
        let read = FilesRead { users: read_users(&config, &self.live.users), rules: read_rules(&config) };
        let tls = build_tls(&config).map(Arc::new);
        if tls.is_none() {
            tracing::error!("TLS configuration could not be reloaded, keeping old configuration");
        }
        warn_of_descriptors(&config, &read.users);
        let done = tls.is_some();
        self.put_in_force(config, Some(read), tls);
        self.reopen_logs();
        done
    }

    fn reopen_logs(&self) {
        let settings = &self.live.config.settings;
        log::reopen_logfile(&settings.logfile);
        log::set_syslog(settings.syslog.is_on(), &settings.syslog_facility, &settings.syslog_ident, true);
    }

    /// Gives everybody the new configuration, and new TLS contexts if there are any.
    pub(super) fn put_in_force(&mut self, config: Config, read: Option<FilesRead>, tls: Option<Arc<Contexts>>) {
        let config = Arc::new(config);
        let from_file = read.is_some();
        let (users, hba) = match read {
            Some(read) => (Arc::new(read.users), read.rules),
            None => (self.live.users.clone(), self.live.hba.clone()),
        };
        let servers_outdated = tls.as_ref().is_some_and(|new| new.outdates_servers_of(&self.live.tls));
        let tls = tls.unwrap_or_else(|| self.live.tls.clone());
        let decoy = decoy(&config, &users, self.live.decoy.key);
        let live = Arc::new(Live { config: config.clone(), users: users.clone(), decoy, hba, tls });
        let before = std::mem::replace(&mut self.live, live);
        ahead::make(&self.live, ahead::BLINK, 1);
        ahead::make_in_background(&self.shared, &self.live, Some(&before));
        self.live.tls.prepare();
        log::set_verbose(verbosity(&config));
        let settings = &config.settings;
        log::set_format(settings.log_format, settings.log_rate_limit);
        log::set_syslog(settings.syslog.is_on(), &settings.syslog_facility, &settings.syslog_ident, false);
        self.listeners.retune(&tcp_options(settings), settings.tcp_defer_accept.is_on());
        for post in &self.shared.posts {
            post.send(Message::Live(self.live.clone()));
        }
        let now = Clock::now();
        self.pools(|broker| {
            broker.pools.set_known_users(users.keys().cloned());
            broker.pools.configure(config, now);
            if from_file {
                broker.pools.forget_auth_users();
            }
            if servers_outdated {
                // without databases there is nothing to reconnect
                let _ = broker.pools.reconnect(None, now);
            }
        });
        for post in &self.shared.posts {
            post.send(Message::PoolModes);
        }
    }
}

/// The verbosity for the log.
pub fn verbosity(config: &Config) -> u8 {
    u8::try_from(config.settings.verbose.unwrap_or(0).clamp(0, 2)).unwrap_or(0)
}
