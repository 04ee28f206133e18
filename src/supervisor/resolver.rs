//! Names to addresses: a cache with lifetimes of our own over [`Dns`], and the serial numbers of zones.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::admin::snapshot::{DnsHostRow, DnsZoneRow};
use crate::clock::Clock;
use crate::config::Settings;
use crate::id::{ServerId, WorkerId};
use crate::shared::{Message, Request};
use crate::supervisor::Supervisor;
use crate::supervisor::dns::{Asker, Dns};
use crate::time::Micros;

/// What is known about host names.
#[derive(Debug)]
pub(crate) struct Resolver {
    dns: Dns,
    hosts: HashMap<String, Host>,
    /// Zones with the serial number seen last.
    zones: BTreeMap<String, Option<u32>>,
    zones_checked: Micros,
}

#[derive(Debug, Default)]
struct Host {
    /// What the last lookup came to, and when; none while the first one runs.
    answer: Option<(Result<Vec<IpAddr>, String>, Micros)>,
    /// The addresses of the last lookup that had any.
    addresses: Vec<IpAddr>,
    /// The address that the next connection takes.
    turn: usize,
    looking: bool,
    waiting: Vec<(ServerId, WorkerId)>,
}

impl Resolver {
    pub(crate) fn new(resolv_conf: &str, now: Micros) -> Self {
        Self { dns: Dns::new(resolv_conf), hosts: HashMap::new(), zones: BTreeMap::new(), zones_checked: now }
    }

    /// Who asks one question; none if no resolver can be had.
    pub(crate) fn asker(&mut self) -> Option<Asker> {
        self.dns.asker()
    }

    /// Rows of SHOW DNS_HOSTS.
    pub(crate) fn rows(&self, settings: &Settings, now: Micros) -> Vec<DnsHostRow> {
        let mut rows: Vec<_> = self
            .hosts
            .iter()
            .filter_map(|(name, host)| {
                Some(DnsHostRow {
                    hostname: name.clone(),
                    ttl: host.good_until(settings)?.since(now).secs(),
                    addrs: host.answer.as_ref()?.0.clone().unwrap_or_default(),
                })
            })
            .collect();
        rows.sort_by(|a, b| a.hostname.cmp(&b.hostname));
        rows
    }

    /// Rows of SHOW DNS_ZONES.
    pub(crate) fn zone_rows(&self) -> Vec<DnsZoneRow> {
        let row = |(zone, serial): (&String, &Option<u32>)| DnsZoneRow {
            zonename: zone.clone(),
            serial: serial.unwrap_or_default(),
            count: self.names_in(zone).count() as u64,
        };
        self.zones.iter().map(row).collect()
    }

    /// Names known, zones known, lookups running.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let looking = self.hosts.values().filter(|host| host.looking).count();
        (self.hosts.len() as u64, self.zones.len() as u64, looking as u64)
    }

    fn names_in(&self, zone: &str) -> impl Iterator<Item = &String> {
        self.hosts.keys().filter(move |name| zone_of(name) == Some(zone))
    }
}

impl Host {
    /// Until when the answer counts.
    fn good_until(&self, settings: &Settings) -> Option<Micros> {
        let (answer, at) = self.answer.as_ref()?;
        Some(*at + if answer.is_ok() { settings.dns_max_ttl } else { settings.dns_nxdomain_ttl })
    }

    /// The addresses, each time beginning with the next one.
    fn take(&mut self) -> Result<Vec<IpAddr>, String> {
        let Some((answer, _)) = &self.answer else { return Err("not looked up".to_owned()) };
        let mut addresses = answer.clone()?;
        if !addresses.is_empty() {
            let first = self.turn % addresses.len();
            addresses.rotate_left(first);
            self.turn = self.turn.wrapping_add(1);
        }
        Ok(addresses)
    }

    /// Takes in a new answer; returns the addresses that the name has no longer.
    fn update(&mut self, result: Result<Vec<IpAddr>, String>, now: Micros) -> Vec<IpAddr> {
        self.looking = false;
        let mut gone = Vec::new();
        if let Ok(addresses) = &result {
            gone = std::mem::replace(&mut self.addresses, addresses.clone());
            gone.retain(|old| !addresses.contains(old));
        }
        self.answer = Some((result, now));
        gone
    }
}

/// The zone of a name is what follows its first dot; names without a dot have none.
fn zone_of(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, zone)| zone).filter(|zone| !zone.is_empty())
}

/// Serial numbers go round; a number is greater than those of the half circle behind it (RFC 1982).
fn has_grown(old: Option<u32>, new: u32) -> bool {
    old.is_none_or(|old| new != old && new.wrapping_sub(old) < 1 << 31)
}

impl Supervisor {
    /// A worker needs an address for a server.
    pub(super) fn resolve(&mut self, name: String, server: ServerId, worker: WorkerId) {
        let host = self.resolver.hosts.entry(name.clone()).or_default();
        if host.good_until(&self.live.config.settings).is_some_and(|until| Clock::now() < until) {
            let addresses = host.take();
            self.shared.post(worker).send(Message::Resolved { server, addresses });
            return;
        }
        host.waiting.push((server, worker));
        self.note_zones();
        self.look_up(name);
    }

    fn look_up(&mut self, name: String) {
        let Some(host) = self.resolver.hosts.get_mut(&name) else { return };
        if std::mem::replace(&mut host.looking, true) {
            return;
        }
        let (shared, asker) = (self.shared.clone(), self.resolver.dns.asker());
        tokio::spawn(async move {
            let found = match asker {
                Some(asker) => {
                    let addresses = asker.addresses(&name);
                    shared.guard.watch(format!("the lookup of {name}"), addresses).await.unwrap_or_default()
                }
                None => Vec::new(),
            };
            let result = if found.is_empty() { Err("no address".to_owned()) } else { Ok(found) };
            shared.ask(Request::Looked { host: name, result });
        });
    }

    /// A lookup is done.
    pub(super) fn looked_up(&mut self, name: &str, result: Result<Vec<IpAddr>, String>) {
        if result.is_err() {
            tracing::warn!("DNS lookup failed: {name}: result=0");
        }
        let Some(host) = self.resolver.hosts.get_mut(name) else { return };
        let gone = host.update(result, Clock::now());
        for (server, worker) in std::mem::take(&mut host.waiting) {
            let addresses = host.take();
            self.shared.post(worker).send(Message::Resolved { server, addresses });
        }
        if !gone.is_empty() {
            self.pools(|broker| broker.pools.addresses_gone(name, &gone));
        }
    }

    /// Asks for the serial numbers of all zones when it is time.
    pub(super) fn check_zones(&mut self) {
        self.note_zones();
        let (period, now) = (self.live.config.settings.dns_zone_check_period, Clock::now());
        if period.is_zero() || now.since(self.resolver.zones_checked) < period {
            return;
        }
        self.resolver.zones_checked = now;
        for zone in self.resolver.zones.keys().cloned().collect::<Vec<_>>() {
            let Some(asker) = self.resolver.dns.asker() else { return };
            let shared = self.shared.clone();
            tokio::spawn(async move {
                let serial = shared.guard.watch(format!("the check of zone {zone}"), asker.serial(&zone)).await;
                if let Some(serial) = serial.flatten() {
                    shared.ask(Request::ZoneSerial { zone, serial });
                }
            });
        }
    }

    /// Adds the zones of all names to the list.
    fn note_zones(&mut self) {
        for zone in self.resolver.hosts.keys().filter_map(|name| zone_of(name)) {
            if !self.resolver.zones.contains_key(zone) {
                self.resolver.zones.insert(zone.to_owned(), None);
            }
        }
    }

    /// The serial number of a zone: when it has grown, all names of the zone are asked for again.
    pub(super) fn zone_serial(&mut self, zone: &str, serial: u32) {
        let Some(known) = self.resolver.zones.get_mut(zone) else { return };
        if !has_grown(*known, serial) {
            return;
        }
        let old = known.replace(serial).unwrap_or_default();
        tracing::info!("zone '{zone}' serial changed: old={old} new={serial}");
        for name in self.resolver.names_in(zone).cloned().collect::<Vec<_>>() {
            self.look_up(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("valid")).collect()
    }

    #[test]
    fn addresses_take_turns() {
        let mut host = Host::default();
        host.update(Ok(ips(&["10.0.0.1", "10.0.0.2"])), Micros::ZERO);
        let firsts: Vec<_> = (0..3).map(|_| host.take().expect("known")[0]).collect();
        assert_eq!(firsts, ips(&["10.0.0.1", "10.0.0.2", "10.0.0.1"]));
    }

    #[test]
    fn only_a_new_answer_takes_addresses_away() {
        let mut host = Host::default();
        assert_eq!(host.update(Ok(ips(&["10.0.0.1", "10.0.0.2"])), Micros::ZERO), ips(&[]));
        assert_eq!(host.update(Err(String::new()), Micros::ZERO), ips(&[]), "a failure says nothing");
        assert_eq!(host.update(Ok(ips(&["10.0.0.2", "10.0.0.3"])), Micros::ZERO), ips(&["10.0.0.1"]));
    }

    #[test]
    fn zones_and_serials() {
        assert_eq!(zone_of("db.example.com"), Some("example.com"));
        assert_eq!((zone_of("localhost"), zone_of("db.")), (None, None));
        for (old, new, want) in [
            (None, 1, true),
            (None, u32::MAX, true),
            (Some(1), 1, false),
            (Some(1), 2, true),
            (Some(2), 1, false),
            (Some(u32::MAX), 0, true),
        ] {
            assert_eq!(has_grown(old, new), want, "{old:?} {new}");
        }
    }
}
