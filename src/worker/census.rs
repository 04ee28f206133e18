//! This worker's clients counted by who they are, for metrics, and those that wait.
//!
//! One pass without system calls and, but for the names of those counted, without allocations: ten thousand clients must not
//! be felt by anybody.

use std::collections::HashMap;

use crate::config::CONSOLE_DATABASE;
use crate::metrics::picture::{Client as Counted, Clients};
use crate::shared::Waiting;
use crate::worker::Worker;
use crate::worker::client::{Client, Phase};
use crate::worker::picture::APPLICATION_NAME;

/// Who a client is: database, login user, application_name, state.
type Who<'a> = (&'a str, &'a str, &'a str, &'static str);

impl Worker {
    /// The clients that SHOW CLIENTS lists.
    pub(super) fn census(&self) -> Clients {
        let mut counts: HashMap<Who<'_>, u64> = HashMap::new();
        for who in self.clients.iter().filter_map(who) {
            *counts.entry(who).or_default() += 1;
        }
        let name = |(database, user, application_name, state): Who<'_>| Counted {
            database: database.to_owned(),
            user: user.to_owned(),
            application_name: application_name.to_owned(),
            state,
        };
        counts.into_iter().map(|(who, count)| (name(who), count)).collect()
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
