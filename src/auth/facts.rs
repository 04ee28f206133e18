//! What is known of a client's connection beyond what the client says: where it comes from, and what TLS has shown.

use std::net::IpAddr;

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// None: a Unix socket.
    pub address: Option<IpAddr>,
    /// User id of the process at the other end of a Unix socket, where the system tells.
    pub uid: Option<u32>,
    /// None: the connection is not encrypted.
    pub tls: Option<Tls>,
}

/// An encrypted connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Version and cipher, as SHOW CLIENTS and the log print them.
    pub info: String,
    /// Of a certificate that the client presented and that was verified.
    pub certificate: Option<Certificate>,
}

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Alternative names of type DNS.
    pub dns_names: Vec<String>,
    /// Alternative names of type IP.
    pub ip_addresses: Vec<IpAddr>,
    pub common_name: Option<String>,
}

impl Certificate {
    /// Whether the certificate was made out to `name`: alternative names first, then the common name, without regard to
    /// case. `*.` stands for one label in front of at least two.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        if let Ok(address) = name.parse::<IpAddr>() {
            let common = self.common_name.as_deref().is_some_and(|common| common.eq_ignore_ascii_case(name));
            return self.ip_addresses.contains(&address) || common;
        }
        self.dns_names.iter().chain(&self.common_name).any(|pattern| covers(pattern, name))
    }
}

fn covers(pattern: &str, name: &str) -> bool {
    if name.is_empty() {
        return false;
    }
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    let Some(domain) = pattern.strip_prefix("*.") else { return false };
    let enough = domain.split('.').count() > 1 && domain.split('.').all(|label| !label.is_empty());
    enough && name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(dns: &[&str], ips: &[&str], common: Option<&str>) -> Certificate {
        Certificate {
            dns_names: dns.iter().map(|&name| name.to_owned()).collect(),
            ip_addresses: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
            common_name: common.map(str::to_owned),
        }
    }

    #[test]
    fn names_of_certificates() {
        let one = certificate(&["db.example.org", "*.a.b"], &["10.0.0.1", "::1"], Some("Joe"));
        for (name, fits) in [
            ("joe", true),
            ("JOE", true),
            ("joey", false),
            ("DB.example.org", true),
            ("x.a.b", true),
            ("x.A.B", true),
            ("a.b", false),
            (".a.b", false),
            ("y.x.a.b", false),
            ("10.0.0.1", true),
            ("0:0::1", true),
            ("10.0.0.2", false),
            ("", false),
        ] {
            assert_eq!(one.is_for(name), fits, "{name}");
        }
        assert!(!certificate(&["*.org", "*", "*.", "*..b"], &[], None).is_for("x.org"));
        assert!(!certificate(&["*.org", "*", "*.", "*..b"], &[], None).is_for("x..b"));
        assert!(certificate(&[], &[], Some("10.0.0.1")).is_for("10.0.0.1"));
        assert!(!certificate(&["10.0.0.1"], &[], None).is_for("10.0.0.1"));
        assert!(!certificate(&[], &[], None).is_for("joe"));
    }
}
