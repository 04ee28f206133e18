//! How a client has to prove who it is: the one place that decides, from `auth_type`, the access rules and what is known
//! of the connection; and the verdicts that need no exchange.

use std::borrow::Cow;
use std::sync::Arc;

use super::client::Method;
use super::facts::Facts;
use crate::config::AuthType;
use crate::config::hba::{self, Rules, Subject};
use crate::config::ident::Map;
use crate::config::ldap;

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// An exchange of messages, or none at all.
    Exchange(Method),
    /// The operating system's name of the client's user decides: [`peer`].
    Peer { map: Option<Arc<Map>> },
    /// The client's certificate decides: [`certificate`].
    Certificate { map: Option<Arc<Map>> },
    /// Somebody else judges the client's password.
    Outside(Outside),
    /// The client is turned away with this text.
    Refuse(&'static str),
}

/// Who judges a password that is none of our business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outside {
    /// The operating system's pluggable modules.
    Pam,
    /// A directory; none: nobody said which.
    Ldap(Option<ldap::Text>),
}

impl Outside {
    /// The text for a client whose password is not accepted.
    #[must_use]
    pub const fn failure(&self) -> &'static str {
        match self {
            Self::Pam => "PAM authentication failed",
            Self::Ldap(_) => "LDAP authentication failed",
        }
    }

    /// As logs call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pam => "PAM",
            Self::Ldap(_) => "LDAP",
        }
    }
}

/// A verdict: what the log says beyond the failure itself.
pub type Refused = Option<Cow<'static, str>>;

/// The text for a client that the operating system calls by another name.
pub const PEER_FAILED: &str = "unix socket login rejected";

/// The text for a client without the right certificate.
pub const CERTIFICATE_FAILED: &str = "certificate authentication failed";

/// What the configuration says about logins.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    pub auth_type: AuthType,
    /// Those of auth_hba_file, if it was ever read.
    pub rules: Option<&'a Rules>,
    /// auth_ldap_options
    pub ldap_options: Option<&'a str>,
}

/// Decides.
#[must_use]
pub fn choose(policy: &Policy<'_>, who: &Subject<'_>) -> Choice {
    let Policy { auth_type, rules, ldap_options } = *policy;
    match auth_type {
        AuthType::Any => Choice::Exchange(Method::Any),
        AuthType::Trust => Choice::Exchange(Method::Trust),
        AuthType::Plain => Choice::Exchange(Method::Plain),
        AuthType::Md5 => Choice::Exchange(Method::Md5),
        AuthType::ScramSha256 => Choice::Exchange(Method::ScramSha256),
        AuthType::Cert => Choice::Certificate { map: None },
        AuthType::Hba => by_rule(rules, who),
        AuthType::Pam => Choice::Outside(Outside::Pam),
        AuthType::Ldap => Choice::Outside(Outside::Ldap(ldap_options.map(|text| ldap::Text(text.into())))),
    }
}

fn by_rule(rules: Option<&Rules>, who: &Subject<'_>) -> Choice {
    let Some(rule) = rules.and_then(|rules| rules.find(who)) else {
        return Choice::Refuse("no authentication method is found");
    };
    match &rule.method {
        hba::Method::Trust => Choice::Exchange(Method::Trust),
        hba::Method::Reject => Choice::Refuse("login rejected"),
        hba::Method::Md5 => Choice::Exchange(Method::Md5),
        hba::Method::Password => Choice::Exchange(Method::Plain),
        hba::Method::ScramSha256 => Choice::Exchange(Method::ScramSha256),
        hba::Method::Peer => Choice::Peer { map: rule.map.clone() },
        hba::Method::Ldap(options) => Choice::Outside(Outside::Ldap(Some(options.clone()))),
        hba::Method::Cert => Choice::Certificate { map: rule.map.clone() },
    }
}

/// Who judges the password of a client of which nothing else need be known, if that is how it is done. Asked before the
/// user is looked for.
#[must_use]
pub fn outside(policy: &Policy<'_>, who: &Subject<'_>) -> Option<Outside> {
    match choose(policy, who) {
        Choice::Outside(outside) => Some(outside),
        Choice::Exchange(_) | Choice::Peer { .. } | Choice::Certificate { .. } | Choice::Refuse(_) => None,
    }
}

/// May the operating system's `system_user` log in as `user`?
///
/// # Errors
/// No; the client is told [`PEER_FAILED`].
pub fn peer(system_user: Option<&str>, user: &str, map: Option<&Map>) -> Result<(), Refused> {
    let Some(system_user) = system_user else { return Err(None) };
    match map {
        None if system_user == user => Ok(()),
        None => Err(None),
        Some(map) if map.system_users(user).any(|name| name == system_user) => Ok(()),
        Some(map) => Err(Some(format!("ident map {} cannot be matched", map.name).into())),
    }
}

/// May the holder of the connection's certificate log in as `user`?
///
/// # Errors
/// No; the client is told [`CERTIFICATE_FAILED`].
pub fn certificate(facts: &Facts, user: &str, map: Option<&Map>) -> Result<(), Refused> {
    let Some(tls) = &facts.tls else { return Err(Some("TLS connection required".into())) };
    let Some(certificate) = &tls.certificate else {
        return Err(Some("TLS client certificate required".into()));
    };
    match map {
        None if certificate.is_for(user) => Ok(()),
        None => Err(Some("TLS certificate name mismatch".into())),
        Some(map) if map.system_users(user).any(|name| certificate.is_for(name)) => Ok(()),
        Some(map) => Err(Some(format!("ident map: {} does not have a match", map.name).into())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::auth::facts::{Certificate, Tls};
    use crate::config::ident;

    fn subject(user: &str) -> Subject<'_> {
        Subject { address: None, tls: false, database: "d", user, replicating: hba::Replicating::No }
    }

    const fn policy(auth_type: AuthType, rules: Option<&Rules>) -> Policy<'_> {
        Policy { auth_type, rules, ldap_options: None }
    }

    #[test]
    fn who_judges_outside() {
        let text = ldap::Text("ldapserver=x".into());
        let with = Policy { ldap_options: Some("ldapserver=x"), ..policy(AuthType::Ldap, None) };
        assert_eq!(outside(&with, &subject("a")), Some(Outside::Ldap(Some(text.clone()))));
        assert_eq!(outside(&policy(AuthType::Ldap, None), &subject("a")), Some(Outside::Ldap(None)));
        assert_eq!(outside(&policy(AuthType::Pam, None), &subject("a")), Some(Outside::Pam));
        assert_eq!(outside(&policy(AuthType::Md5, None), &subject("a")), None);
        let lines = b"local all a ldap ldapserver=x\nlocal all all md5";
        let (rules, _) =
            hba::parse(lines, Path::new("hba"), &ident::Maps::new(), &|_| Err(std::io::ErrorKind::NotFound.into()));
        let by_rule = policy(AuthType::Hba, Some(&rules));
        assert_eq!(outside(&by_rule, &subject("a")), Some(Outside::Ldap(Some(text))));
        assert_eq!(outside(&by_rule, &subject("b")), None);
    }

    fn map() -> Arc<Map> {
        ident::parse(b"m root postgres\nm *.ops.org admin\nm joe all").0["m"].clone()
    }

    #[test]
    fn rules_choose() {
        let maps = ident::parse(b"m root postgres").0;
        let text = b"local all a trust\nlocal all b reject\nlocal all c md5\nlocal all d password\n\
                     local all e scram-sha-256\nlocal all f peer map=m\nlocal all g cert";
        let (rules, _) = hba::parse(text, Path::new("hba"), &maps, &|_| Err(std::io::ErrorKind::NotFound.into()));
        let choice = |user| choose(&policy(AuthType::Hba, Some(&rules)), &subject(user));
        assert_eq!(choice("a"), Choice::Exchange(Method::Trust));
        assert_eq!(choice("b"), Choice::Refuse("login rejected"));
        assert_eq!(choice("c"), Choice::Exchange(Method::Md5));
        assert_eq!(choice("d"), Choice::Exchange(Method::Plain));
        assert_eq!(choice("e"), Choice::Exchange(Method::ScramSha256));
        assert_eq!(choice("f"), Choice::Peer { map: maps.get("m").cloned() });
        assert_eq!(choice("g"), Choice::Certificate { map: None });
        assert_eq!(choice("h"), Choice::Refuse("no authentication method is found"));
        let unread = choose(&policy(AuthType::Hba, None), &subject("a"));
        assert_eq!(unread, Choice::Refuse("no authentication method is found"));
        assert_eq!(choose(&policy(AuthType::Cert, Some(&rules)), &subject("a")), Choice::Certificate { map: None });
    }

    #[test]
    fn peers_by_name_or_map() {
        let map = map();
        let unmatched = Err(Some("ident map m cannot be matched".into()));
        for (system, user, with, want) in [
            (Some("joe"), "joe", None, Ok(())),
            (Some("joe"), "Joe", None, Err(None)),
            (None, "joe", None, Err(None)),
            (Some("root"), "postgres", Some(&*map), Ok(())),
            (Some("joe"), "whoever", Some(&*map), Ok(())),
            (Some("root"), "root", Some(&*map), unmatched),
            (None, "postgres", Some(&*map), Err(None)),
        ] {
            assert_eq!(peer(system, user, with), want, "{system:?} {user}");
        }
    }

    #[test]
    fn certificates_by_name_or_map() {
        let plain = Facts::default();
        let bare = Facts { tls: Some(Tls::default()), ..Facts::default() };
        let names = Certificate { dns_names: vec!["db1.ops.org".to_owned()], ..Certificate::default() };
        let shown = Facts { tls: Some(Tls { certificate: Some(names), ..Tls::default() }), ..Facts::default() };
        let map = map();
        let refused = |text: &'static str| Err(Some(text.into()));
        for (facts, user, with, want) in [
            (&plain, "u", None, refused("TLS connection required")),
            (&bare, "u", None, refused("TLS client certificate required")),
            (&shown, "u", None, refused("TLS certificate name mismatch")),
            (&shown, "DB1.ops.org", None, Ok(())),
            (&shown, "db1.ops.org", Some(&*map), refused("ident map: m does not have a match")),
            (&shown, "admin", Some(&*map), refused("ident map: m does not have a match")),
        ] {
            assert_eq!(certificate(facts, user, with), want, "{user}");
        }
        let literal = ident::parse(b"m DB1.OPS.ORG admin").0["m"].clone();
        assert_eq!(certificate(&shown, "admin", Some(&literal)), Ok(()));
    }
}
