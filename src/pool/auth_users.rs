//! Under whom an entry's users are looked up. What it took from the global `auth_user` it keeps: a SET afterwards is for
//! entries that nobody has needed it for yet.

use std::sync::Arc;

use super::Pools;
use super::limits::EntryKind;
use crate::config::effective;
use crate::id::DbId;

impl<S, R: Clone> Pools<S, R> {
    /// The role that looks up a user of this entry (none: of the console), for a login that needs it now. From here on
    /// the entry keeps it.
    pub fn auth_user(&mut self, entry: Option<DbId>) -> Option<Arc<str>> {
        let Some(db) = entry else {
            let global = self.config.settings.auth_user.as_deref();
            self.console_auth_user = self.console_auth_user.take().or_else(|| global.map(Arc::from));
            return self.console_auth_user.clone();
        };
        let entry = self.entries.get_mut(db)?;
        if entry.auth_user.is_none() {
            entry.auth_user = effective::auth_user(&self.config, &entry.database).map(Arc::from);
        }
        entry.auth_user.clone()
    }

    /// Whether the entry (none: the console) has an `auth_user`: its own, or one that it keeps.
    #[must_use]
    pub fn has_auth_user(&self, entry: Option<DbId>) -> bool {
        let Some(db) = entry else { return self.console_auth_user.is_some() };
        self.entries.get(db).is_some_and(|entry| entry.auth_user.is_some() || entry.database.auth_user.is_some())
    }

    /// The configuration file was read: its entries forget what they kept. Those made from `*` do when that changes, the
    /// console never does.
    pub fn forget_auth_users(&mut self) {
        for &db in self.names.values() {
            let entry = &mut self.entries[db];
            if matches!(entry.kind, EntryKind::Configured) {
                entry.auth_user = None;
            }
        }
    }
}
