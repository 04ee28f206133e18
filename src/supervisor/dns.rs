//! Asking for names: the hosts file first, then the DNS servers of resolv.conf.
//!
//! Both files are looked at again when they change, because a pooler outlives many network configurations.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, Resolver, TokioResolver};

use crate::sys::error_text;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What resolv.conf means when it names no timeout.
const UNSAID_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one server has for an answer then: clients wait for it, so a dead server must be noticed soon.
const TIMEOUT: Duration = Duration::from_secs(2);

/// By this a change of a file is noticed.
type Stamp = Option<(SystemTime, u64)>;

/// The way to names.
#[derive(Debug)]
pub(crate) struct Dns {
    resolv_conf: PathBuf,
    hosts: (Stamp, Arc<Hosts>),
    resolver: Option<(Stamp, TokioResolver)>,
}

/// Who asks one question.
pub(crate) struct Asker {
    hosts: Arc<Hosts>,
    resolver: TokioResolver,
}

impl Dns {
    /// `resolv_conf` stands in for the system's file unless it is empty.
    pub(crate) fn new(resolv_conf: &str) -> Self {
        let resolv_conf = if resolv_conf.is_empty() { RESOLV_CONF } else { resolv_conf };
        Self { resolv_conf: resolv_conf.into(), hosts: Default::default(), resolver: None }
    }

    /// An asker that knows the files as they are now. `None`: no resolver can be had.
    pub(crate) fn asker(&mut self) -> Option<Asker> {
        let seen = stamp(Path::new(HOSTS));
        if self.hosts.0 != seen {
            self.hosts = (seen, Arc::new(read_hosts()));
        }
        let seen = stamp(&self.resolv_conf);
        if self.resolver.as_ref().is_none_or(|(known, _)| *known != seen) {
            self.resolver = Some((seen, build(&self.resolv_conf)?));
        }
        let (_, resolver) = self.resolver.as_ref()?;
        Some(Asker { hosts: self.hosts.1.clone(), resolver: resolver.clone() })
    }
}

impl Asker {
    /// The addresses of a name, all of one family: IPv6 if it has any, else IPv4. None at all if the lookup fails.
    pub(crate) async fn addresses(&self, host: &str) -> Vec<IpAddr> {
        let Ok(name) = Name::from_str_relaxed(host) else { return Vec::new() };
        for family in [RecordType::AAAA, RecordType::A] {
            let known = self.hosts.lookup_static_host(&Query::query(name.clone(), family));
            let known = known.map(|found| found.answers().iter().filter_map(|record| record.data.ip_addr()).collect());
            if let Some(known) = known.filter(|known: &Vec<IpAddr>| !known.is_empty()) {
                return known;
            }
        }
        let found = self.resolver.lookup_ip(name).await;
        found.map(|found| one_family(found.iter().collect())).unwrap_or_default()
    }

    /// The servers of a service, `host:port`, the preferred ones first.
    pub(crate) async fn services(&self, record: &str) -> Vec<(String, u16)> {
        let Ok(mut name) = Name::from_str_relaxed(record) else { return Vec::new() };
        name.set_fqdn(true);
        let Ok(found) = self.resolver.srv_lookup(name).await else { return Vec::new() };
        let mut servers: Vec<_> = found
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => {
                    let host = srv.target.to_utf8().trim_end_matches('.').to_owned();
                    Some((srv.priority, std::cmp::Reverse(srv.weight), host, srv.port))
                }
                _ => None,
            })
            .filter(|(_, _, host, _)| !host.is_empty())
            .collect();
        servers.sort();
        servers.into_iter().map(|(_, _, host, port)| (host, port)).collect()
    }

    /// The serial number of a zone.
    pub(crate) async fn serial(&self, zone: &str) -> Option<u32> {
        let mut name = Name::from_str_relaxed(zone).ok()?;
        name.set_fqdn(true);
        let found = self.resolver.soa_lookup(name).await.ok()?;
        found.answers().iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        })
    }
}

fn one_family(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let v6 = addresses.iter().any(IpAddr::is_ipv6);
    addresses.retain(|address| address.is_ipv6() == v6);
    addresses
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read_hosts() -> Hosts {
    let mut hosts = Hosts::default();
    if let Ok(file) = fs::File::open(HOSTS)
        && let Err(error) = hosts.read_hosts_conf(file)
    {
        tracing::warn!("cannot read {HOSTS}: {}", error_text(&error));
    }
    hosts
}

fn build(resolv_conf: &Path) -> Option<TokioResolver> {
    let (config, options) = read_resolv_conf(resolv_conf);
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let timeout = if options.timeout == UNSAID_TIMEOUT { TIMEOUT } else { options.timeout };
    *builder.options_mut() = options;
    let options = builder.options_mut();
    options.timeout = timeout;
    // both at once: the wait is not twice as long for names without an IPv6 address
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    options.use_hosts_file = ResolveHosts::Never;
    // how long an answer counts is said by settings of ours
    options.positive_max_ttl = Some(Duration::ZERO);
    options.negative_max_ttl = Some(Duration::ZERO);
    match builder.build() {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            tracing::warn!("cannot look up names: {error}");
            None
        }
    }
}

/// The file's servers; without any, one on this machine, as resolv.conf(5) has it.
fn read_resolv_conf(path: &Path) -> (ResolverConfig, ResolverOpts) {
    let local = || {
        let server = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        (ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default())
    };
    match fs::read(path) {
        Ok(text) => parse_resolv_conf(text).unwrap_or_else(|_| local()),
        Err(error) => {
            tracing::warn!("cannot read {}: {}", path.display(), error_text(&error));
            local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_family_only() {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("valid")).collect::<Vec<IpAddr>>();
        assert_eq!(one_family(list(&["10.0.0.1", "::1", "10.0.0.2"])), list(&["::1"]));
        assert_eq!(one_family(list(&["10.0.0.1", "10.0.0.2"])), list(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(one_family(Vec::new()), list(&[]));
    }

    #[tokio::test]
    async fn the_hosts_file_comes_first() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"10.1.2.3 db db.lan\n::5 six\n10.0.0.6 six\n"[..]).expect("readable");
        let mut dns = Dns::new("/nonexistent/resolv.conf");
        let resolver = dns.asker().expect("a resolver").resolver;
        let asker = Asker { hosts: Arc::new(hosts), resolver };
        assert_eq!(asker.addresses("db.lan").await, ["10.1.2.3".parse::<IpAddr>().expect("valid")]);
        assert_eq!(asker.addresses("six").await, ["::5".parse::<IpAddr>().expect("valid")]);
        assert_eq!(asker.addresses(&"x".repeat(300)).await, [] as [IpAddr; 0]);
    }
}
