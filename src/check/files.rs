//! What is on the disk: files that others can read or change, directories that are missing, certificates.

use std::path::Path;

use super::{Judge, Place};
use crate::config::SslMode;
use crate::config::keys;

const OTHERS_READ: u32 = 0o004;
const OTHERS_WRITE: u32 = 0o002;

impl<'a> Judge<'a> {
    pub(super) fn files(&mut self) {
        self.secrecy();
        self.readable();
        self.directories();
        self.tls();
        self.user();
    }

    fn secrecy(&mut self) {
        let settings = &self.config().settings;
        for file in &self.survey.files {
            let secret = self.survey.with_passwords.contains(file);
            self.exposed(file, "the configuration, with passwords,", secret, None);
        }
        let named = |file: &str| !file.is_empty();
        if let Some(file) = settings.auth_file.as_deref().filter(|file| named(file)) {
            self.exposed(file, "auth_file", true, Some("auth_file"));
        }
        for (key, file) in [
            ("client_tls_key_file", &settings.client_tls_key_file),
            ("server_tls_key_file", &settings.server_tls_key_file),
        ] {
            if named(file) {
                self.exposed(file, key, true, Some(key));
            }
        }
        for (key, file) in
            [("auth_hba_file", Some(&settings.auth_hba_file)), ("auth_ident_file", settings.auth_ident_file.as_ref())]
        {
            if let Some(file) = file.filter(|file| named(file)) {
                self.exposed(file, key, false, Some(key));
            }
        }
    }

    /// `key`: the setting that names the file, where the finding is to be placed; else its first line.
    fn exposed(&mut self, file: &str, what: &str, secret: bool, key: Option<&str>) {
        let Some(mode) = (self.machine.permissions)(Path::new(file)) else { return };
        let place = key.map_or_else(|| Place { file: file.into(), line: 1 }, |key| self.at(key));
        let what = if secret { what } else { what.split(',').next().unwrap_or(what) };
        if mode & OTHERS_WRITE != 0 {
            let text = format!("everybody can change {what} ({file}, mode {mode:04o})");
            self.warn(place, text, format!("chmod o-rwx {file}"));
        } else if secret && mode & OTHERS_READ != 0 {
            let text = format!("everybody can read {what} ({file}, mode {mode:04o})");
            self.warn(place, text, format!("chmod o-rwx {file}"));
        }
    }

    /// What root reads for the check, and the daemon cannot read when it has become a user.
    fn readable(&mut self) {
        let settings = &self.config().settings;
        let Some(user) = self.user_to_be().filter(|_| self.machine.root) else { return };
        let machine = self.machine;
        let locked = |file: &str| !file.is_empty() && !(machine.may_read)(user, Path::new(file));
        let lines = |what: &str, file: &str| {
            let text = format!("user \"{user}\", whom the daemon becomes, cannot read {what} ({file})");
            (text, "chown or chmod it, or a directory above it")
        };
        // read as the user; all others before, and at each reload
        if let Some(file) = settings.auth_file.as_deref().filter(|file| locked(file)) {
            let (text, remedy) = lines("auth_file", file);
            self.error(self.at("auth_file"), text, remedy);
        }
        let optional = |file: &Option<String>| file.clone().unwrap_or_default();
        let clients = settings.client_tls_sslmode != SslMode::Disable;
        let servers = settings.server_tls_sslmode != SslMode::Disable;
        let hba = settings.auth_type == crate::config::AuthType::Hba;
        let named = [
            ("auth_hba_file", hba, settings.auth_hba_file.clone()),
            ("auth_ident_file", hba, optional(&settings.auth_ident_file)),
            ("client_tls_key_file", clients, settings.client_tls_key_file.clone()),
            ("client_tls_cert_file", clients, settings.client_tls_cert_file.clone()),
            ("client_tls_ca_file", clients, settings.client_tls_ca_file.clone()),
            ("server_tls_key_file", servers, settings.server_tls_key_file.clone()),
            ("server_tls_cert_file", servers, settings.server_tls_cert_file.clone()),
            ("server_tls_ca_file", servers, settings.server_tls_ca_file.clone()),
        ];
        let start = |file: &str| Place { file: file.into(), line: 1 };
        let of_config = self.survey.files.iter().map(|file| (start(file), "the configuration", file.to_string()));
        let named = named.into_iter().filter(|(_, used, _)| *used).map(|(key, _, file)| (self.at(key), key, file));
        for (place, what, file) in of_config.chain(named).filter(|(_, _, file)| locked(file)).collect::<Vec<_>>() {
            let (text, remedy) = lines(what, &file);
            self.warn(place, format!("{text}, and every reload fails"), remedy);
        }
    }

    /// The user that the daemon is told to become.
    fn user_to_be(&self) -> Option<&'a str> {
        let setting = self.survey.config.settings.user.as_deref();
        self.machine.user.or(setting).filter(|user| !user.is_empty())
    }

    fn directories(&mut self) {
        let settings = &self.config().settings;
        let socket_dir = settings.unix_socket_dir.as_str();
        if !socket_dir.is_empty() && !socket_dir.starts_with('@') {
            self.missing_directory("unix_socket_dir", Path::new(socket_dir));
        }
        for (key, file) in [("logfile", &settings.logfile), ("pidfile", &settings.pidfile)] {
            if let Some(dir) = Path::new(file).parent().filter(|dir| !dir.as_os_str().is_empty()) {
                self.missing_directory(key, dir);
            }
        }
        if self.machine.daemon && settings.pidfile.is_empty() {
            self.error(self.at("pidfile"), "-d needs a pidfile", "set pidfile");
        }
        if self.machine.reboot && (socket_dir.is_empty() || socket_dir.starts_with('@')) {
            let text = "-R reaches the old process by its Unix socket, and there is none in a directory";
            self.error(self.at("unix_socket_dir"), text, "set unix_socket_dir to a directory");
        }
    }

    fn missing_directory(&mut self, key: &str, dir: &Path) {
        if (self.machine.permissions)(dir).is_none() {
            let text = format!("the directory of {key}, {}, is not there", dir.display());
            self.warn(self.at(key), text, "make it, for the user of the daemon, unless the service manager does");
        }
    }

    fn tls(&mut self) {
        let settings = &self.config().settings;
        // one side at a time, so that what is wrong with one does not hide the other
        let mut clients = settings.clone();
        clients.server_tls_sslmode = SslMode::Disable;
        let mut servers = settings.clone();
        servers.client_tls_sslmode = SslMode::Disable;
        servers.auth_type = crate::config::AuthType::Trust;
        for (side, one) in [("client_tls", clients), ("server_tls", servers)] {
            for text in (self.machine.tls)(&one) {
                // the setting that the text names or quotes, the longest value first
                let about = |key: &&keys::Key| {
                    key.name.starts_with(side)
                        && (text.contains(key.name)
                            || one
                                .get(key.name)
                                .flatten()
                                .is_some_and(|value| value.len() > 1 && text.contains(&value)))
                };
                let mode = if side == "client_tls" { "client_tls_sslmode" } else { "server_tls_sslmode" };
                let found = keys::TABLE.iter().filter(about).filter(|key| self.says(key.name));
                let key = found
                    .max_by_key(|key| one.get(key.name).flatten().map_or(0, |value| value.len()))
                    .map_or(mode, |key| key.name);
                let remedy = format!("mend {key} or what it names; the daemon does not start so");
                self.error(self.at(key), text, remedy);
            }
            let off = |mode| mode == SslMode::Disable;
            let unused =
                if side == "client_tls" { off(settings.client_tls_sslmode) } else { off(settings.server_tls_sslmode) };
            let cert = format!("{side}_cert_file");
            if unused && self.says(&cert) {
                let text = format!("{cert} is not used with {side}_sslmode=disable");
                self.warn(self.at(&cert), text, format!("set {side}_sslmode, or leave it out"));
            }
        }
    }

    fn user(&mut self) {
        match self.user_to_be() {
            Some(user) if !(self.machine.user_exists)(user) => {
                let text = format!("there is no user \"{user}\" on this machine");
                self.error(self.at("user"), text, "make the user, or name another one");
            }
            Some("root") => self.error(self.at("user"), "the daemon refuses to run as root", "name another user"),
            Some(_) => {}
            None if self.machine.root => {
                let text = "the daemon refuses to run as root, and root is asking";
                self.warn(self.at("user"), text, "set user or give -u, unless the service manager changes the user");
            }
            None => {}
        }
    }
}
