//! Replication connections: what such a client asked for, and what the server made for it is told.

use std::sync::Arc;

use crate::relay::vars::{TrackedNames, Vars};
use crate::wire::startup::{Replication, StartupParams};

/// What a replication client asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Replicating {
    pub kind: Replication,
    /// `options` of its startup message, not looked into.
    pub options: Option<String>,
}

impl Replicating {
    /// `None` for an ordinary client.
    #[must_use]
    pub fn asked_for(params: &StartupParams) -> Option<Arc<Self>> {
        let kind = params.replication;
        (kind != Replication::None).then(|| Arc::new(Self { kind, options: params.options.clone() }))
    }
}

/// What makes a server connection one client's: its wishes, and its parameters when it asked for the server.
#[derive(Clone, Debug)]
pub struct Dedicated {
    pub wishes: Arc<Replicating>,
    pub vars: Vars,
}

impl Dedicated {
    /// What the startup packet says between the entry's own parameters and the user.
    pub fn parameters<'a>(&'a self, names: &'a TrackedNames) -> impl Iterator<Item = (&'a str, &'a str)> {
        let kind = self.wishes.kind.startup_value().map(|value| ("replication", value));
        let options = self.wishes.options.as_deref().map(|options| ("options", options));
        kind.into_iter().chain(self.vars.iter(names)).chain(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_kind_values_and_options_in_this_order() {
        let names = TrackedNames::new(["IntervalStyle"]);
        let vars = Vars::from_values(&names, [(0, "ISO"), (4, "walreceiver")]);
        let wishes = Replicating { kind: Replication::Logical, options: Some("-c a=b".to_owned()) };
        let dedicated = Dedicated { wishes: Arc::new(wishes), vars };
        let told: Vec<_> = dedicated.parameters(&names).collect();
        let expected = [
            ("replication", "database"),
            ("DateStyle", "ISO"),
            ("application_name", "walreceiver"),
            ("options", "-c a=b"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn only_replication_clients_replicate() {
        let params = |replication| StartupParams { replication, ..StartupParams::default() };
        assert_eq!(Replicating::asked_for(&params(Replication::None)), None);
        let physical = Replicating { kind: Replication::Physical, options: None };
        assert_eq!(Replicating::asked_for(&params(Replication::Physical)), Some(Arc::new(physical)));
    }
}
