//! Putting a configuration in force: at start, on RELOAD and SIGHUP, by SET.
//!
//! Files are read and judged as a whole before anything changes; a broken one leaves the old configuration in force.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::auth::secret::Secret;
use crate::clock::Clock;
use crate::config::{self, AuthType, Config, Level, userlist};
use crate::log;
use crate::shared::{Live, Message, UserSecret};
use crate::supervisor::Supervisor;
use crate::sys::service;
use crate::worker::log_line;
use crate::worker::open::tcp_options;

/// Users by name, with their secrets.
pub type Users = HashMap<String, Arc<UserSecret>>;

/// Loads the configuration file and logs what it says. `None` if it cannot be used.
pub fn load(path: &Path, running: Option<&Config>) -> Option<Config> {
    let read = |path: &Path| std::fs::read(path);
    let (loaded, lines) = config::load(path, &read, running);
    for line in lines {
        log_line(line.level, &line.text);
    }
    let loaded = loaded.ok()?;
    let unsupported = loaded.config.unsupported();
    for unbuilt in &unsupported {
        tracing::error!("{unbuilt}");
    }
    for restart in &loaded.needs_restart {
        let line = restart.log_line();
        log_line(line.level, &line.text);
    }
    unsupported.is_empty().then_some(loaded.config)
}

/// Reads the users that the configuration names. Those who have disappeared stay known, without a password; what was
/// derived from an unchanged secret is kept.
pub fn read_users(config: &Config, known: &Users) -> Users {
    let mut users: Users = known.keys().map(|name| (name.clone(), Arc::new(UserSecret::default()))).collect();
    let settings = &config.settings;
    let Some(path) = &settings.auth_file else { return users };
    if path.is_empty() || matches!(settings.auth_type, AuthType::Any | AuthType::Pam) {
        return known.clone();
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => zeroize::Zeroizing::new(bytes),
        Err(error) => {
            let line = userlist::unreadable(path, &error);
            log_line(line.level, &line.text);
            return users;
        }
    };
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
        let Some(config) = load(Path::new(&path), Some(&self.live.config)) else {
            log_line(Level::Warning, "config file loading failed");
            // the one who rotates logs must not have to mend the configuration first
            log::reopen_logfile(&self.live.config.settings.logfile);
            return false;
        };
        let users = read_users(&config, &self.live.users);
        self.put_in_force(config, Some(users));
        log::reopen_logfile(&self.live.config.settings.logfile);
        true
    }

    /// Gives everybody the new configuration.
    pub(super) fn put_in_force(&mut self, config: Config, users: Option<Users>) {
        let config = Arc::new(config);
        let users = users.map_or_else(|| self.live.users.clone(), Arc::new);
        self.live = Arc::new(Live { config: config.clone(), users: users.clone() });
        log::set_verbose(verbosity(&config));
        let settings = &config.settings;
        self.listeners.retune(&tcp_options(settings), settings.tcp_defer_accept);
        for post in &self.shared.posts {
            post.send(Message::Live(self.live.clone()));
        }
        let now = Clock::now();
        self.pools(|broker| {
            broker.pools.set_known_users(users.keys().cloned());
            broker.pools.configure(config, now);
        });
    }
}

/// The verbosity for the log.
pub fn verbosity(config: &Config) -> u8 {
    u8::try_from(config.settings.verbose.unwrap_or(0).clamp(0, 2)).unwrap_or(0)
}
