//! Names to addresses: the system's resolver on the blocking pool, and a cache with lifetimes of our own.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::admin::snapshot::DnsHostRow;
use crate::clock::Clock;
use crate::id::{ServerId, WorkerId};
use crate::shared::{Message, Request};
use crate::supervisor::Supervisor;
use crate::sys;
use crate::time::Micros;

/// What is known about host names.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    hosts: HashMap<String, Host>,
}

#[derive(Debug, Default)]
struct Host {
    /// The answer, and until when it counts; none while the first lookup runs.
    answer: Option<(Result<Vec<IpAddr>, String>, Micros)>,
    /// The address that the next connection takes.
    turn: usize,
    looking: bool,
    waiting: Vec<(ServerId, WorkerId)>,
}

impl Resolver {
    /// Rows of SHOW DNS_HOSTS.
    pub(crate) fn rows(&self, now: Micros) -> Vec<DnsHostRow> {
        let mut rows: Vec<_> = self
            .hosts
            .iter()
            .filter_map(|(name, host)| {
                let (answer, until) = host.answer.as_ref()?;
                Some(DnsHostRow {
                    hostname: name.clone(),
                    ttl: until.since(now).secs(),
                    addrs: answer.clone().unwrap_or_default(),
                })
            })
            .collect();
        rows.sort_by(|a, b| a.hostname.cmp(&b.hostname));
        rows
    }

    /// Names known, lookups running.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.hosts.len() as u64, self.hosts.values().filter(|host| host.looking).count() as u64)
    }
}

impl Host {
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
}

impl Supervisor {
    /// A worker needs an address for a server.
    pub(super) fn resolve(&mut self, name: String, server: ServerId, worker: WorkerId) {
        let host = self.resolver.hosts.entry(name.clone()).or_default();
        if host.answer.as_ref().is_some_and(|(_, until)| Clock::now() < *until) {
            let addresses = host.take();
            self.shared.post(worker).send(Message::Resolved { server, addresses });
            return;
        }
        host.waiting.push((server, worker));
        if !std::mem::replace(&mut host.looking, true) {
            let shared = self.shared.clone();
            tokio::task::spawn_blocking(move || {
                let result = match sys::resolve::lookup(Some(&name), 0) {
                    Ok(addresses) => Ok(addresses.into_iter().map(|addr| addr.ip()).collect()),
                    Err(error) => Err(error.text),
                };
                shared.ask(Request::Looked { host: name, result });
            });
        }
    }

    /// A lookup is done.
    pub(super) fn looked_up(&mut self, name: &str, result: Result<Vec<IpAddr>, String>) {
        let settings = &self.live.config.settings;
        let lifetime = if result.is_ok() { settings.dns_max_ttl } else { settings.dns_nxdomain_ttl };
        if result.is_err() {
            tracing::warn!("DNS lookup failed: {name}: result=0");
        }
        let Some(host) = self.resolver.hosts.get_mut(name) else { return };
        host.looking = false;
        host.answer = Some((result, Clock::now() + lifetime));
        for (server, worker) in std::mem::take(&mut host.waiting) {
            let addresses = host.take();
            self.shared.post(worker).send(Message::Resolved { server, addresses });
        }
    }
}
