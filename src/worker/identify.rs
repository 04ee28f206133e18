//! Whom a startup message is about: the entry, the user and his secret, the pool.
//!
//! ```text
//! identify -> known, or nobody can tell ---------------> enter_database | enter_console -> authenticate
//!          -> look_up (auth_query) -> looked_up ------/
//! ```

use std::sync::Arc;

use crate::admin::command::Rights;
use crate::auth::MAX_USER_BYTES;
use crate::auth::choice::Outside;
use crate::auth::lookup::Row;
use crate::config::{AuthType, CONSOLE_DATABASE, Database, effective};
use crate::disconnect::Disconnect;
use crate::id::DbId;
use crate::shared::{Learned, UserSecret};
use crate::wire::startup::StartupParams;
use crate::worker::Worker;
use crate::worker::client::{Access, Client, End, Phase, Source};
use crate::worker::login::{log_registered, reported, tokens};
use crate::worker::peer::PeerAddr;
use crate::worker::tls;

/// An entry of the configuration.
pub(super) type Entry = (DbId, Arc<Database>);

/// A user and how he is known.
pub(super) struct Identity {
    pub(super) user: String,
    /// None: nobody knows him, or nobody needs to.
    pub(super) known: Option<Arc<UserSecret>>,
    pub(super) source: Source,
}

impl Identity {
    /// Of somebody who need not be known.
    const fn unasked(user: String) -> Self {
        Self { user, known: None, source: Source::Nowhere }
    }
}

/// How somebody comes to the console.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// As our own user of the operating system.
    OwnUid,
    /// auth_type=any.
    Any,
    /// As to any database.
    Proof,
}

impl Worker {
    /// A startup message was understood.
    pub(super) fn identify(&mut self, client: &mut Client, params: StartupParams) -> Result<(), End> {
        let user = params.user.clone();
        if user.len() > MAX_USER_BYTES {
            tracing::info!(conn = %client.prefix(), "login failed: db={} user={user}", reported(&params.database));
            return Err(Disconnect::fatal("username too long").into());
        }
        let console = params.database == CONSOLE_DATABASE;
        let entry = if console { None } else { self.entry(client, &params.database) };
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        login.params = Some(params);
        let own = console && self.is_own(client, &user);
        if !own && let Some(outside) = self.outside(client, &user) {
            return self.outside_login(client, user, entry, console, outside);
        }
        if console { self.console_login(client, user) } else { self.database_login(client, user, entry) }
    }

    /// Whoever judges the password knows the users: here everybody is known.
    fn outside_login(
        &mut self,
        client: &mut Client,
        user: String,
        entry: Option<Entry>,
        console: bool,
        outside: Outside,
    ) -> Result<(), End> {
        let db = entry.as_ref().map(|(db, _)| *db);
        // what is only global does not count before somebody was looked up under it
        let exists = console || db.is_some();
        if exists && self.pools(|broker| broker.pools.has_auth_user(db)) {
            let name = outside.name();
            tracing::error!(conn = %client.prefix(), "{name} can't be used together with database authentication");
            return Err(Disconnect::fatal("bouncer config error").into());
        }
        if let Phase::Login(login) = &mut client.phase {
            login.outside = Some(outside);
        }
        let known = Some(Arc::default());
        if console {
            return self.enter_console(client, Identity { user, known, source: Source::Nowhere }, Door::Proof);
        }
        self.enter_database(client, entry, Identity { user, known, source: Source::Nowhere })
    }

    fn entry(&mut self, client: &Client, name: &str) -> Option<Entry> {
        let now = self.now;
        let (entry, registered) = self.pools(|broker| {
            let pools = &mut broker.pools;
            let found = pools.find_database(name, now);
            let entry = found.and_then(|found| Some((found, pools.database(found)?)));
            (entry, pools.take_registered())
        });
        log_registered(|| client.prefix(), registered);
        entry
    }

    fn database_login(&mut self, client: &mut Client, mut user: String, entry: Option<Entry>) -> Result<(), End> {
        let auth_type = self.live.config.settings.auth_type;
        if auth_type == AuthType::Any {
            // users come before databases: one that there is not has no forced user either
            let Some(forced) = entry.as_ref().and_then(|(_, database)| database.user.as_ref()) else {
                tracing::error!(conn = %client.prefix(), "auth_type=any requires forced user");
                return Err(Disconnect::fatal("bouncer config error").into());
            };
            user.clone_from(forced);
            return self.enter_database(client, entry, Identity::unasked(user));
        }
        let known = self.known(&user);
        if known.is_none() {
            if let Some(entry) = &entry
                && let Some(auth_user) = self.pools(|broker| broker.pools.auth_user(Some(entry.0)))
            {
                return self.look_up(client, user, &auth_user, Some(entry));
            }
            tracing::info!(conn = %client.prefix(), "no such user: {user}");
        }
        self.enter_database(client, entry, Identity { user, known, source: Source::AuthFile })
    }

    /// auth_query has found the user.
    pub(super) fn looked_up(&mut self, client: &mut Client, row: Row) -> Result<(), End> {
        let Phase::Login(login) = &client.phase else { return Ok(()) };
        let name = login.params.as_ref().map(|params| params.database.clone()).unwrap_or_default();
        let known = Some(Arc::new(UserSecret { secret: row.secret, ..UserSecret::default() }));
        let identity = Identity { user: row.user, known, source: Source::AuthQuery };
        if name == CONSOLE_DATABASE {
            return self.enter_console(client, identity, Door::Proof);
        }
        let entry = self.entry(client, &name);
        self.enter_database(client, entry, identity)
    }

    /// Asks the client to prove who it is, unless its database is full anyway.
    fn enter_database(&mut self, client: &mut Client, entry: Option<Entry>, who: Identity) -> Result<(), End> {
        let Identity { user, known, source } = who;
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        (login.user, login.source) = (known.clone(), source);
        client.user = Some(user.as_str().into());
        if let Some((db, database)) = &entry {
            if known.is_some() || self.live.config.settings.auth_type == AuthType::Any {
                login.database = Some(database.name.as_str().into());
            }
            self.refuse_if_full(*db, database)?;
        }
        self.log_attempt(client, &user);
        self.authenticate(client, &user, known.as_deref())
    }

    /// Before a password, for it tells nothing about users.
    pub(super) fn refuse_if_full(&mut self, db: DbId, database: &Database) -> Result<(), Disconnect> {
        if effective::max_db_client_connections(&self.live.config, database) <= 0 {
            return Ok(());
        }
        self.pools(|broker| broker.pools.entry_has_room(db))
    }

    fn log_attempt(&self, client: &Client, user: &str) {
        let Phase::Login(login) = &client.phase else { return };
        if self.live.config.settings.log_connections.is_on()
            && let Some(params) = &login.params
        {
            let database = reported(&params.database);
            let tls = tls::info(&client.stream).unwrap_or_else(|| "no".to_owned());
            let replication = client.replication().log();
            tracing::info!(
                conn = %client.prefix(),
                "login attempt: db={database} user={user} tls={tls} replication={replication}"
            );
        }
    }

    /// A login to the console.
    fn console_login(&mut self, client: &mut Client, user: String) -> Result<(), End> {
        let settings = &self.live.config.settings;
        if self.is_own(client, &user) {
            return self.enter_console(client, Identity::unasked(user), Door::OwnUid);
        }
        if settings.auth_type == AuthType::Any {
            return self.enter_console(client, Identity::unasked(user), Door::Any);
        }
        let known = match self.known(&user) {
            Some(known) => Some(known),
            None => {
                if let Some(auth_user) = self.pools(|broker| broker.pools.auth_user(None)) {
                    return self.look_up(client, user, &auth_user, None);
                }
                tracing::info!(conn = %client.prefix(), "no such user: {user}");
                None
            }
        };
        self.enter_console(client, Identity { user, known, source: Source::AuthFile }, Door::Proof)
    }

    /// What auth_file says of a user. The console's own always exists, if only with a secret that nothing matches.
    fn known(&self, user: &str) -> Option<Arc<UserSecret>> {
        let known = self.live.users.get(user).cloned();
        known.or_else(|| (user == CONSOLE_DATABASE).then(Arc::default))
    }

    /// Our own user of the operating system, who needs no proof.
    fn is_own(&self, client: &Client, user: &str) -> bool {
        let own_uid = matches!(client.peer, PeerAddr::Unix { uid: Some(uid), .. } if uid == self.shared.uid);
        own_uid && user == CONSOLE_DATABASE
    }

    /// Who has no business at the console is told so before any password, whether or not there is such a user.
    fn enter_console(&mut self, client: &mut Client, who: Identity, door: Door) -> Result<(), End> {
        let Identity { user, known, source } = who;
        let settings = &self.live.config.settings;
        let open = door != Door::Proof;
        let is_admin = tokens(&settings.admin_users).any(|name| name == user);
        let is_stats = tokens(&settings.stats_users).any(|name| name == user);
        let rights = match () {
            () if door == Door::OwnUid || is_admin => Some(Rights::Admin),
            () if is_stats || open => Some(Rights::Stats),
            () => None,
        };
        let shown = if open { CONSOLE_DATABASE } else { &*user };
        client.user = Some(shown.into());
        let Phase::Login(login) = &mut client.phase else { return Ok(()) };
        (login.user, login.source) = (known.clone(), source);
        if known.is_some() || open {
            // for somebody without rights this lasts as long as this call
            login.console = Some(Access { rights: rights.unwrap_or(Rights::Stats), limits_exempt: is_admin });
        }
        self.pools(|broker| broker.pools.console_has_room(is_admin))?;
        if door == Door::OwnUid {
            tracing::info!(conn = %client.prefix(), "pgbouncer access from unix socket");
        }
        self.log_attempt(client, shown);
        if open {
            return self.authenticated(client, Learned::Nothing);
        }
        let trusts = known.is_none() && self.trusts(client, &user);
        if rights.is_none() && !trusts {
            return Err(Disconnect::fatal("not allowed").into());
        }
        self.authenticate(client, &user, known.as_deref())
    }
}
