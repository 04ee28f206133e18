//! Users, their secrets and the access rules: who cannot log in, and who can too easily.

use std::collections::BTreeMap;
use std::path::Path;

use super::survey::by;
use super::{Judge, Place};
use crate::auth::secret::Secret;
use crate::config::hba;
use crate::config::load::io_error_text;
use crate::config::{AuthType, Config, Level, LogLine, SslMode, ident, userlist};

impl Judge<'_> {
    /// Returns the users that `auth_file` lists, with the places of their last records.
    pub(super) fn logins(&mut self) -> BTreeMap<String, Place> {
        let users = self.users();
        self.access_rules();
        self.openness();
        self.lookups(&users);
        users
    }

    /// Reads `auth_file`: the names, with the places of their last records.
    fn users(&mut self) -> BTreeMap<String, Place> {
        let settings = &self.config().settings;
        let auth_type = settings.auth_type;
        let mut users = BTreeMap::new();
        let Some(file) = settings.auth_file.as_deref().filter(|file| !file.is_empty()) else {
            let needed = !matches!(auth_type, AuthType::Any | AuthType::Pam | AuthType::Ldap);
            if needed && !looks_users_up(self.config()) {
                let text =
                    format!("nobody can log in: auth_type={auth_type} knows users from auth_file or by auth_user");
                self.warn(self.at("auth_type"), text, "set auth_file");
            }
            return users;
        };
        if matches!(auth_type, AuthType::Any | AuthType::Pam) {
            let text = format!("auth_file is not read with auth_type={auth_type}");
            self.warn(self.at("auth_file"), text, "leave it out");
            return users;
        }
        let bytes = match (self.machine.read)(Path::new(file)) {
            Ok(bytes) => zeroize::Zeroizing::new(bytes),
            Err(error) => {
                let text = format!("could not open auth_file {file}: {}", io_error_text(&error));
                let remedy = "it must be there and readable for the daemon, or nobody can log in";
                self.error(self.at("auth_file"), text, remedy);
                return users;
            }
        };
        let list = userlist::parse(&bytes);
        let place = |line| Place { file: file.into(), line };
        for line in &list.log {
            let (place, text) = (place(line.line.unwrap_or(1)), line.text.clone());
            if line.level == Level::Warning {
                self.warn(place, text, "write the name in UTF-8: nobody can log in by it");
            } else {
                self.error(place, text, "a line is \"name\" \"secret\"; whoever comes behind this one is not read");
            }
        }
        for (name, line) in &list.records {
            if let Some(earlier) = users.insert(name.clone(), place(*line)) {
                let text = format!("user \"{name}\" is already there {}", by(&earlier));
                self.warn(place(*line), text, "the last one counts: remove the other");
            }
        }
        for (name, text) in &list.secrets {
            if let Some(place) = users.get(name).cloned() {
                self.secret(name, &Secret::classify(text), place);
            }
        }
        users
    }

    fn secret(&mut self, name: &str, secret: &Secret, place: Place) {
        match (self.config().settings.auth_type, secret) {
            (AuthType::ScramSha256, Secret::Plain(_)) => self.warn(
                place,
                format!("the password of user \"{name}\" is kept in plain text, which SCRAM does not need"),
                "put the secret from pg_authid.rolpassword there (SCRAM-SHA-256$...)",
            ),
            (AuthType::ScramSha256, Secret::Md5(_)) => self.warn(
                place,
                format!("user \"{name}\" cannot log in: its secret is MD5, and auth_type is scram-sha-256"),
                "set the password anew on the server with password_encryption = scram-sha-256 and copy that secret",
            ),
            _ => {}
        }
    }

    fn access_rules(&mut self) {
        let settings = &self.config().settings;
        let auth_type = settings.auth_type;
        if auth_type != AuthType::Hba {
            for key in ["auth_hba_file", "auth_ident_file"] {
                if self.says(key) && settings.get(key).flatten().is_some_and(|file| !file.is_empty()) {
                    let text = format!("{key} is not read with auth_type={auth_type}");
                    self.warn(self.at(key), text, "set auth_type = hba, or leave it out");
                }
            }
            return;
        }
        let mut maps = ident::Maps::new();
        if let Some(file) = settings.auth_ident_file.as_deref().filter(|file| !file.is_empty()) {
            match (self.machine.read)(Path::new(file)) {
                Ok(text) => {
                    let (found, log) = ident::parse(&text);
                    self.left_out(file, &log);
                    maps = found;
                }
                Err(error) => {
                    let text = format!("could not open ident config file {file}: {}", io_error_text(&error));
                    self.error(self.at("auth_ident_file"), text, "rules with map= do not count without it");
                }
            }
        }
        let file = settings.auth_hba_file.as_str();
        match (self.machine.read)(Path::new(file)) {
            Ok(text) => {
                let (rules, log) = hba::parse(&text, Path::new(file), &maps, self.machine.read);
                self.left_out(file, &log);
                if rules.is_empty() {
                    let place = Place { file: file.into(), line: 1 };
                    self.error(place, "there is no access rule that could be read", "nobody can log in: add rules");
                }
            }
            Err(error) => {
                let text = format!("could not open hba config file {file}: {}", io_error_text(&error));
                self.error(self.at("auth_hba_file"), text, "nobody gets in without the rules");
            }
        }
    }

    /// Lines of a file that do not count; several texts may be about one line.
    fn left_out(&mut self, file: &str, log: &[LogLine]) {
        let mut texts: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for line in log {
            texts.entry(line.line.unwrap_or(1)).or_default().push(&line.text);
        }
        for (line, mut texts) in texts {
            if texts.len() > 1 {
                texts.retain(|text| !text.starts_with("could not parse"));
            }
            let place = Place { file: file.into(), line };
            self.error(place, texts.join(", "), "the line does not count until it is mended");
        }
    }

    /// Logins that anybody could make or listen to.
    fn openness(&mut self) {
        let settings = &self.config().settings;
        let local = settings.listen_addr.split(',').map(str::trim).filter(|addr| !addr.is_empty());
        let far = local.filter(|addr| !is_loopback(addr)).map(str::to_owned).next();
        let Some(far) = far else { return };
        match settings.auth_type {
            AuthType::Any | AuthType::Trust => {
                let text = format!("whoever reaches {far} needs no password: auth_type={}", settings.auth_type);
                self.warn(self.at("auth_type"), text, "take scram-sha-256, or listen on 127.0.0.1 alone");
            }
            AuthType::Plain | AuthType::Pam | AuthType::Ldap
                if matches!(settings.client_tls_sslmode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) =>
            {
                let text = format!(
                    "passwords cross the network readable: auth_type={} with client_tls_sslmode={}",
                    settings.auth_type, settings.client_tls_sslmode
                );
                self.warn(self.at("auth_type"), text, "set client_tls_sslmode = require");
            }
            AuthType::Md5
            | AuthType::Cert
            | AuthType::Hba
            | AuthType::ScramSha256
            | AuthType::Plain
            | AuthType::Pam
            | AuthType::Ldap => {}
        }
    }

    /// Names that must be known, and the query for those that are not.
    fn lookups(&mut self, users: &BTreeMap<String, Place>) {
        let config = self.config();
        let settings = &config.settings;
        let lookups = looks_users_up(config);
        if self.says("auth_query") && !lookups {
            self.warn(self.at("auth_query"), "auth_query is never run without auth_user", "set auth_user");
        }
        let dbnames =
            config.databases.values().filter_map(|db| Some((db.auth_dbname.clone()?, self.at_database(&db.name))));
        let all: Vec<_> =
            dbnames.chain(settings.auth_dbname.clone().map(|name| (name, self.at("auth_dbname")))).collect();
        for (name, place) in all {
            if config.wildcard.is_none() && !config.databases.contains_key(&name) {
                let text = format!("auth_dbname=\"{name}\" is no entry of [databases]");
                self.error(place, text, "add the entry: users cannot be looked up without it");
            }
        }
        // only where the list of users is known to be all there are
        if users.is_empty() || lookups {
            return;
        }
        for key in ["admin_users", "stats_users"] {
            let names = settings.get(key).flatten().unwrap_or_default();
            for name in names.split([',', ' ', '\t']).filter(|name| !name.is_empty() && !users.contains_key(*name)) {
                let text = format!("{key} names \"{name}\", who is not in auth_file");
                self.warn(self.at(key), text, "add the user to auth_file");
            }
        }
        for name in config.users.keys().filter(|name| !users.contains_key(*name)) {
            if config.databases.values().all(|db| db.user.as_deref() != Some(name)) {
                let place = self.survey.users.get(name).cloned().unwrap_or_else(|| self.survey.start());
                let text = format!("[users] has a line for \"{name}\", who is not in auth_file");
                self.warn(place, text, "is the name right?");
            }
        }
    }
}

/// Does anything in the configuration fetch secrets from a server?
fn looks_users_up(config: &Config) -> bool {
    config.settings.auth_user.as_ref().is_some_and(|user| !user.is_empty())
        || config.databases.values().any(|db| db.auth_user.is_some())
        || config.wildcard.as_ref().is_some_and(|text| text.contains("auth_user"))
}

fn is_loopback(addr: &str) -> bool {
    addr == "localhost" || addr.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
