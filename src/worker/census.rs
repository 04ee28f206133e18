//! This worker's clients counted by who they are, for metrics, and those that wait.
//!
//! Ten thousand clients must not be felt by anybody: they are counted a slice at a time between the turns of those who work.

use std::collections::HashMap;

use tokio::sync::oneshot;

use crate::config::CONSOLE_DATABASE;
use crate::metrics::picture::{Client as Counted, Clients};
use crate::shared::Waiting;
use crate::worker::Worker;
use crate::worker::client::{Client, Phase};
use crate::worker::picture::APPLICATION_NAME;

/// Who a client is: database, login user, application_name, state.
type Who<'a> = (&'a str, &'a str, &'a str, &'static str);

/// Most clients counted before traffic gets its turn: some hundred microseconds.
const SLICE: u32 = 512;

/// A count that is under way.
pub(super) struct Census {
    counts: Clients,
    /// The slot where it goes on.
    next: u32,
    reply: oneshot::Sender<Clients>,
}

impl Census {
    pub(super) fn new(reply: oneshot::Sender<Clients>) -> Self {
        Self { counts: Clients::new(), next: 0, reply }
    }
}

impl Worker {
    /// Counts some more of the clients that SHOW CLIENTS lists, if somebody wants to know.
    pub(super) fn census_slice(&mut self) {
        let Some(mut census) = self.censuses.pop() else { return };
        let to = census.next.saturating_add(SLICE).min(self.clients.slots());
        let mut counts: HashMap<Who<'_>, u64> = HashMap::new();
        for who in (census.next..to).filter_map(|index| self.clients.at(index)).filter_map(who) {
            *counts.entry(who).or_default() += 1;
        }
        for ((database, user, application_name, state), count) in counts {
            let (database, user) = (database.to_owned(), user.to_owned());
            let counted = Counted { database, user, application_name: application_name.to_owned(), state };
            *census.counts.entry(counted).or_default() += count;
        }
        census.next = to;
        if to < self.clients.slots() {
            self.censuses.push(census);
        } else {
            let _ = census.reply.send(census.counts);
        }
    }

    /// The clients that stand in a line.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let row = |client: &Client| Waiting {
            client: client.me,
            id: client.id,
            addr: client.peer.show(),
            port: client.peer.port(),
            application_name: client.side.vars.get(APPLICATION_NAME).unwrap_or_default().to_owned(),
        };
        self.clients.iter().filter(|client| client.ticket().is_some()).map(row).collect()
    }
}

fn who(client: &Client) -> Option<Who<'_>> {
    let state = match &client.phase {
        Phase::Active | Phase::Console(_) => "active",
        Phase::Waiting(_) | Phase::WaitingLogin(_) => "waiting",
        Phase::Lookup(lookup) if lookup.ticket.is_some() => "waiting",
        Phase::Cancel(canceling) if canceling.sent => "active_cancel_req",
        Phase::Cancel(_) => "waiting_cancel_req",
        Phase::Login(_) | Phase::Lookup(_) => return None,
    };
    let pool = match &client.phase {
        Phase::Cancel(canceling) => canceling.pool.as_ref(),
        _ => client.pool.as_ref(),
    };
    let database = if client.at_console() { CONSOLE_DATABASE } else { pool.map_or("", |pool| &pool.database) };
    let application_name = client.side.vars.get(APPLICATION_NAME).unwrap_or_default();
    Some((database, client.user.as_deref().unwrap_or_default(), application_name, state))
}
