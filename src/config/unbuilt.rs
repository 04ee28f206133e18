//! Settings whose feature is not in this build.
//!
//! A value that would have no effect must not be taken silently: it may be the one that keeps somebody out. When a
//! feature is built, its lines here go.

use std::fmt;

use super::{Config, Settings, keys};

/// A value given to something that this build does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnbuiltSetting {
    /// As an operator finds it.
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
const SETTINGS: &[(&str, &[&str])] =
    &[("auth_type", &["any", "trust", "plain", "scram-sha-256", "cert", "hba", "pam"]), ("auth_ldap_options", &[])];

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
                    Some(text) => format!("remove it or set it to its default \"{text}\""),
                };
                Some(UnbuiltSetting { key: key.to_owned(), value, remedy })
            })
            .collect()
    }
}

impl Config {
    /// Everything in the configuration that this build cannot serve.
    #[must_use]
    pub fn unsupported(&self) -> Vec<UnbuiltSetting> {
        self.settings.unsupported()
    }
}

#[cfg(test)]
mod tests {
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
            (
                "auth_type",
                "ldap",
                Some(
                    "setting \"auth_type\" is set to \"ldap\", which this build does not support; \
                     remove it or set it to its default \"md5\"",
                ),
            ),
            ("syslog", "1", None),
            ("client_tls_sslmode", "require", None),
            ("auth_user", "a", None),
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
}
