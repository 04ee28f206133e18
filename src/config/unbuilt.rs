//! Settings whose feature is not in this build.
//!
//! A value that would have no effect must not be taken silently: it may be the one that keeps somebody out. When a
//! feature is built, its lines here go.

use std::fmt;

use super::{Config, Settings, connstr, keys};

/// A value given to something that this build does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnbuiltSetting {
    /// As an operator finds it: `auth_user`, or `auth_user` with the entry it stands in.
    pub key: String,
    pub value: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for UnbuiltSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "setting \"{}\" is set to \"{}\", which this build does not support; {}",
            self.key, self.value, self.remedy
        )
    }
}

/// THE list of settings: a name, and the values that work besides the default.
const SETTINGS: &[(&str, &[&str])] = &[
    ("auth_type", &["any", "trust", "plain", "scram-sha-256"]),
    ("auth_query", &[]),
    ("auth_user", &[]),
    ("auth_dbname", &[]),
    ("auth_hba_file", &[]),
    ("auth_ident_file", &[]),
    ("auth_ldap_options", &[]),
    ("client_tls13_ciphers", &[]),
    ("client_tls_ca_file", &[]),
    ("client_tls_cert_file", &[]),
    ("client_tls_ciphers", &[]),
    ("client_tls_dheparams", &[]),
    ("client_tls_ecdhcurve", &[]),
    ("client_tls_key_file", &[]),
    ("client_tls_protocols", &[]),
    ("client_tls_sslmode", &[]),
    ("server_tls13_ciphers", &[]),
    ("server_tls_ca_file", &[]),
    ("server_tls_cert_file", &[]),
    ("server_tls_ciphers", &[]),
    ("server_tls_key_file", &[]),
    ("server_tls_protocols", &[]),
    ("server_tls_sslmode", &["disable", "allow"]),
    ("suspend_timeout", &[]),
    ("syslog", &[]),
];

/// The keys of `[databases]` entries that have no effect.
const DATABASE_KEYS: &[&str] = &["auth_user", "auth_query", "auth_dbname"];

impl Settings {
    /// The settings with a value that this build cannot serve.
    #[must_use]
    pub fn unsupported(&self) -> Vec<UnbuiltSetting> {
        let defaults = Self::default();
        SETTINGS
            .iter()
            .filter_map(|&(key, allowed)| {
                let mut value = self.get(key).flatten()?;
                let default = defaults.get(key).flatten();
                if default.as_ref() == Some(&value) || allowed.contains(&value.as_str()) {
                    return None;
                }
                if key == "auth_ldap_options" {
                    // it may hold a password
                    "...".clone_into(&mut value);
                }
                let remedy = match keys::find(key)?.default {
                    None => "remove it".to_owned(),
                    Some("") => "remove it or leave it empty".to_owned(),
                    // too long to read
                    Some(_) if key == "auth_query" => "remove it".to_owned(),
                    Some(text) => format!("remove it or set it to its default \"{text}\""),
                };
                Some(UnbuiltSetting { key: key.to_owned(), value, remedy })
            })
            .collect()
    }
}

impl Config {
    /// Everything in the configuration that this build cannot serve: settings and keys of entries.
    #[must_use]
    pub fn unsupported(&self) -> Vec<UnbuiltSetting> {
        let mut found = self.settings.unsupported();
        // a `*` string that cannot be read says so itself when it is used
        let wildcard = self.wildcard.as_deref().and_then(|text| connstr::parse_database("*", text).ok());
        for db in self.databases.values().chain(wildcard.as_ref()) {
            for &key in DATABASE_KEYS {
                let value = match key {
                    "auth_user" => &db.auth_user,
                    "auth_query" => &db.auth_query,
                    "auth_dbname" => &db.auth_dbname,
                    _ => &None,
                };
                found.extend(value.as_ref().map(|value| UnbuiltSetting {
                    key: format!("databases.{}.{key}", db.name),
                    value: value.clone(),
                    remedy: "remove it".to_owned(),
                }));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::connstr::parse_database;
    use super::*;

    #[test]
    fn the_list_names_settings_and_values_that_exist() {
        for (key, allowed) in SETTINGS {
            assert!(keys::find(key).is_some(), "{key}");
            for value in *allowed {
                assert_eq!(Settings::default().set(key, value), Ok(()), "{key}={value}");
            }
        }
        assert_eq!(Settings::default().unsupported(), []);
    }

    #[test]
    fn messages() {
        for (key, value, want) in [
            ("auth_type", "trust", None),
            ("auth_type", "SCRAM-SHA-256", None),
            ("server_tls_sslmode", "allow", None),
            ("client_tls_sslmode", "Disable", None),
            (
                "client_tls_sslmode",
                "require",
                Some(
                    "setting \"client_tls_sslmode\" is set to \"require\", which this build does not support; \
                     remove it or set it to its default \"disable\"",
                ),
            ),
            (
                "server_tls_ca_file",
                "/x",
                Some(
                    "setting \"server_tls_ca_file\" is set to \"/x\", which this build does not support; \
                     remove it or leave it empty",
                ),
            ),
            (
                "auth_user",
                "a",
                Some("setting \"auth_user\" is set to \"a\", which this build does not support; remove it"),
            ),
            (
                "auth_ldap_options",
                "ldapbindpasswd=geheim",
                Some("setting \"auth_ldap_options\" is set to \"...\", which this build does not support; remove it"),
            ),
        ] {
            let mut settings = Settings::default();
            settings.set(key, value).expect("valid");
            let found: Vec<_> = settings.unsupported().iter().map(ToString::to_string).collect();
            assert_eq!(found, want.into_iter().collect::<Vec<_>>(), "{key}={value}");
        }
    }

    #[test]
    fn entries_count_too() {
        let mut config = Config::default();
        config.databases.insert("a".to_owned(), parse_database("a", "auth_user=u").expect("valid"));
        config.wildcard = Some("auth_dbname=d".to_owned());
        let keys: Vec<_> = config.unsupported().into_iter().map(|found| found.key).collect();
        assert_eq!(keys, ["databases.a.auth_user", "databases.*.auth_dbname"]);
        config.wildcard = Some("garbage".to_owned());
        assert_eq!(config.unsupported().len(), 1);
    }
}
