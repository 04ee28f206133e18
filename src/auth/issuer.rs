//! What a certificate that issues others says of those, read once: whether it may issue any, for what, how far, for whom.
//!
//! Sources: RFC 5280, 4.2.1; where that leaves a choice, OpenSSL's.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, GeneralSubtree, NameConstraints};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use super::certificate::{Invalid, Purpose, Validity, is_known, is_meant_for, is_own_issuer};

const NAME_CONSTRAINTS: &str = "2.5.29.30";

/// Critical extensions that OpenSSL lets a trusted certificate have, besides the ones that are looked at.
const UNDERSTOOD: [&str; 10] = [
    NAME_CONSTRAINTS,
    // where lists of revoked ones are; policies, their mappings and constraints, "any" of them
    "2.5.29.31",
    "2.5.29.32",
    "2.5.29.33",
    "2.5.29.36",
    "2.5.29.54",
    // Netscape's type, proxies, addresses, autonomous systems
    "2.16.840.1.113730.1.1",
    "1.3.6.1.5.5.7.1.14",
    "1.3.6.1.5.5.7.1.7",
    "1.3.6.1.5.5.7.1.8",
];

/// What an issuer's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    validity: Validity,
    may_issue: bool,
    is_self_issued: bool,
    longest_path: Option<usize>,
    for_servers: bool,
    for_clients: bool,
    hosts: Hosts,
    is_understood: bool,
    is_plain: bool,
}

impl Issuer {
    /// `None` if the certificate cannot be read.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let constraints = certificate.basic_constraints().ok().flatten();
        let longest = constraints.and_then(|constraints| constraints.value.path_len_constraint);
        let extensions = || certificate.extensions().iter().map(|one| (one.oid.to_id_string(), one.critical));
        Some(Self {
            validity: Validity::of(&certificate),
            may_issue: may_issue(&certificate),
            is_self_issued: is_own_issuer(&certificate),
            longest_path: longest.and_then(|longest| usize::try_from(longest).ok()),
            for_servers: is_meant_for(&certificate, Purpose::Server),
            for_clients: is_meant_for(&certificate, Purpose::Client),
            hosts: match certificate.name_constraints() {
                Ok(constraints) => constraints.map_or_else(Hosts::default, |found| Hosts::of(found.value)),
                Err(_) => Hosts::unreadable(),
            },
            is_understood: extensions()
                .all(|(oid, critical)| !critical || is_known(&oid) || UNDERSTOOD.contains(&&*oid)),
            is_plain: extensions().all(|(oid, critical)| oid != NAME_CONSTRAINTS && (!critical || is_known(&oid))),
        })
    }

    /// Is it within its validity at `now`, in seconds since 1970?
    ///
    /// # Errors
    /// Not yet, or no more.
    pub fn check_validity(&self, now: i64) -> Result<(), Invalid> {
        self.validity.check(now)
    }

    /// May it issue others at all?
    #[must_use]
    pub const fn may_issue(&self) -> bool {
        self.may_issue
    }

    #[must_use]
    pub const fn is_self_issued(&self) -> bool {
        self.is_self_issued
    }

    /// May so many stand between one that it issues and the certificate at the end?
    #[must_use]
    pub fn allows(&self, between: usize) -> bool {
        self.longest_path.is_none_or(|longest| between <= longest)
    }

    /// May it, by its extended key usage if it has one, stand on a path for `purpose`?
    #[must_use]
    pub const fn is_for(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Server => self.for_servers,
            Purpose::Client => self.for_clients,
        }
    }

    /// May it, by its constraints on names, vouch for a host?
    #[must_use]
    pub fn vouches_for(&self, host: &str) -> bool {
        self.hosts.contain(host)
    }

    /// Does it say nothing that must be understood and is not?
    #[must_use]
    pub const fn is_understood(&self) -> bool {
        self.is_understood
    }

    /// Does it constrain no names, and say nothing that must be understood and is not? Where there are constraints, who is
    /// constrained is for those to judge who go by the book.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.is_plain
    }
}

/// As OpenSSL has it: by its basic constraints, and by its key usage if that says anything; an old one that has neither only if
/// it is of version 1 and its own issuer.
fn may_issue(certificate: &X509Certificate<'_>) -> bool {
    let (Ok(usage), Ok(constraints)) = (certificate.key_usage(), certificate.basic_constraints()) else { return false };
    match (usage, constraints) {
        (Some(usage), _) if !usage.value.key_cert_sign() => false,
        (_, Some(constraints)) => constraints.value.ca,
        (Some(_), None) => true,
        (None, None) => certificate.version() == X509Version::V1 && is_own_issuer(certificate),
    }
}

/// The hosts whose names are within constraints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hosts {
    /// Empty: all.
    permitted: Vec<String>,
    excluded: Vec<String>,
}

impl Hosts {
    fn of(constraints: &NameConstraints<'_>) -> Self {
        Self { permitted: trees(&constraints.permitted_subtrees), excluded: trees(&constraints.excluded_subtrees) }
    }

    /// Nobody knows what they are: no host is within them.
    fn unreadable() -> Self {
        Self { permitted: Vec::new(), excluded: vec![String::new()] }
    }

    fn contain(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let within = |base: &String| is_within(&host, base);
        (self.permitted.is_empty() || self.permitted.iter().any(within)) && !self.excluded.iter().any(within)
    }
}

fn trees(subtrees: &Option<Vec<GeneralSubtree<'_>>>) -> Vec<String> {
    let hosts = subtrees.iter().flatten().filter_map(|tree| match tree.base {
        GeneralName::DNSName(base) => Some(base.to_ascii_lowercase()),
        _ => None,
    });
    hosts.collect()
}

/// RFC 5280, 4.2.1.10: the base itself, or with labels before it.
fn is_within(name: &str, base: &str) -> bool {
    name.strip_suffix(base)
        .is_some_and(|before| before.is_empty() || base.is_empty() || base.starts_with('.') || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_a_tree() {
        for (name, base, within) in [
            ("a.example", "example", true),
            ("example", "example", true),
            ("badexample", "example", false),
            ("a.example", ".example", true),
            ("example", ".example", false),
            ("a.example", "", true),
            ("a.example", "a.example.org", false),
        ] {
            assert_eq!(is_within(name, base), within, "{name} in {base}");
        }
        assert!(Hosts::default().contain("a.example") && !Hosts::unreadable().contain("a.example"));
        let hosts = Hosts { permitted: vec!["example".to_owned()], excluded: vec!["bad.example".to_owned()] };
        assert!(hosts.contain("A.Example") && !hosts.contain("x.bad.example") && !hosts.contain("other"));
    }

    #[test]
    fn what_a_leaf_says_of_others() {
        let leaf = Issuer::read(include_bytes!("testdata/leaf.der")).expect("readable");
        assert!(!leaf.may_issue() && !leaf.is_self_issued());
        assert_eq!(leaf.check_validity(0), Err(Invalid::NotYet));
        assert_eq!(leaf.check_validity(i64::from(u32::MAX) * 10), Err(Invalid::Expired));
        assert_eq!(Issuer::read(b""), None);
    }
}
