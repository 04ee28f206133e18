//! The rules: from what was seen, and from settings that contradict each other, to sentences.

use super::Seen;
use crate::admin::insight::Advice;
use crate::config::{AuthType, Config, PoolMode, effective};
use crate::pool::WaitCause;
use crate::stats::ends::Ends;
use crate::time::Micros;

/// Looks that a finding needs.
const FEWEST_LOOKS: u32 = 3;

/// Looks after which a pool that is too large is one: half an hour.
const MANY_LOOKS: u32 = 900;

/// Pools below this size are not called too large.
const SMALL_POOL: u32 = 8;

/// What the process knows of itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub ends: Ends,
    /// The limit of open files; `None` if it is not known.
    pub max_fds: Option<u64>,
}

/// A pool that is judged.
pub(super) struct Pool<'a> {
    pub(super) config: &'a Config,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
    pub(super) seen: &'a Seen,
    /// The time over which it was seen.
    pub(super) span: Micros,
}

impl Pool<'_> {
    pub(super) fn judge(&self, out: &mut Vec<Advice>) {
        for cause in WaitCause::ALL {
            if let Some((urgent, setting, remedy)) = self.remedy(cause)
                && let Some(percent) = self.share(cause)
            {
                let waited = self.waited(percent);
                self.say(out, urgent, setting, format!("{waited} because {}. {remedy}", cause.explained()));
            }
        }
        self.too_large(out);
    }

    fn say(&self, out: &mut Vec<Advice>, urgent: bool, setting: &'static str, text: String) {
        let (database, user) = (Some(self.database.to_owned()), Some(self.user.to_owned()));
        out.push(Advice { urgent, database, user, setting, text });
    }

    /// In how many looks of a hundred somebody waited for this, if that is worth a word.
    fn share(&self, cause: WaitCause) -> Option<u32> {
        let looks = self.seen.waiting[cause as usize];
        let percent = u64::from(looks) * 100 / u64::from(self.seen.looks.max(1));
        (looks >= FEWEST_LOOKS && percent >= 1).then(|| u32::try_from(percent).unwrap_or(100))
    }

    fn waited(&self, percent: u32) -> String {
        let (clients, longest) = (self.seen.most_waiting, seconds(self.seen.longest_wait));
        let people = if clients == 1 { "one client".to_owned() } else { format!("up to {clients} clients") };
        format!("In {percent} % of the last {} {people} waited, for up to {longest}", span(self.span))
    }

    /// Whether it is urgent, what to set, and how.
    fn remedy(&self, cause: WaitCause) -> Option<(bool, &'static str, String)> {
        let size = self.seen.pool_size;
        Some(match cause {
            WaitCause::PoolFull if self.seen.pool_mode == PoolMode::Session => {
                let text = format!(
                    "In session mode a client keeps its server until it leaves: pool_mode=transaction would let \
                     the {size} servers serve more of them, or raise the size of the pool."
                );
                (true, "pool_mode", text)
            }
            WaitCause::PoolFull => {
                let text = format!(
                    "Raise it above {size} if PostgreSQL has room for more connections; if not, look for long \
                     transactions with SHOW LATENCY."
                );
                (true, self.size_setting(), text)
            }
            WaitCause::DatabaseLimit => {
                let text = "Raise it, or lower the sizes of the pools of this database, so that they fit into it.";
                (true, "max_db_connections", text.to_owned())
            }
            WaitCause::UserLimit => {
                let text = "Raise it, or lower the sizes of the pools of this user, so that they fit into it.";
                (true, "max_user_connections", text.to_owned())
            }
            WaitCause::LoginFailing => {
                let text = "The log says why; until it is mended, a login is tried again after server_login_retry.";
                (true, "server_login_retry", text.to_owned())
            }
            WaitCause::ServerLogin => {
                let text = "Keep some servers open: min_pool_size, a longer server_idle_timeout or server_lifetime.";
                (false, "min_pool_size", text.to_owned())
            }
            WaitCause::ServerCheck => {
                let text = "A longer server_check_delay checks servers less often.";
                (false, "server_check_delay", text.to_owned())
            }
            // somebody wanted it so
            WaitCause::Paused | WaitCause::DatabasePaused | WaitCause::Suspended => return None,
        })
    }

    /// Where the size of this pool is set.
    fn size_setting(&self) -> &'static str {
        let of_user = self.config.users.get(self.user).and_then(|user| user.pool_size);
        let of_database = self.config.databases.get(self.database).and_then(|database| database.pool_size);
        if of_user.or(of_database).is_some() { "pool_size" } else { "default_pool_size" }
    }

    fn too_large(&self, out: &mut Vec<Advice>) {
        let Seen { looks, most_busy, pool_size, .. } = *self.seen;
        if looks >= MANY_LOOKS && pool_size >= SMALL_POOL && most_busy.saturating_mul(4) <= pool_size {
            let text = format!(
                "In the last {} no more than {most_busy} of the {pool_size} servers that this pool may have were busy \
                 at once. A smaller pool would leave connections of PostgreSQL to others.",
                span(self.span)
            );
            self.say(out, false, self.size_setting(), text);
        }
    }
}

fn general(out: &mut Vec<Advice>, urgent: bool, setting: &'static str, text: impl Into<String>) {
    out.push(Advice { urgent, database: None, user: None, setting, text: text.into() });
}

/// What concerns all pools together.
pub(super) fn process(out: &mut Vec<Advice>, config: &Config, facts: &Facts, most_clients: u64, watched: Micros) {
    let limit = u64::try_from(config.settings.max_client_conn).unwrap_or(0);
    let refused = facts.ends.clients.get("no more connections allowed (max_client_conn)");
    if refused > 0 {
        let text = format!("Since the start {refused} clients were turned away. Raise it above {limit}.");
        general(out, true, "max_client_conn", text);
    } else if limit > 0 && most_clients * 10 >= limit * 9 {
        let span = span(watched);
        let text = format!("In the last {span} up to {most_clients} of {limit} clients were connected. Raise it.");
        general(out, true, "max_client_conn", text);
    }
    let gave_up = facts.ends.clients.get("query_wait_timeout");
    if gave_up > 0 {
        let text = format!(
            "Since the start {gave_up} clients were closed because they waited longer than {} for a server. SHOW WAITS \
             tells what clients wait for while they do.",
            seconds(config.settings.query_wait_timeout)
        );
        general(out, true, "query_wait_timeout", text);
    }
}

/// Settings that contradict each other, or the machine.
pub(super) fn settings(out: &mut Vec<Advice>, config: &Config, facts: &Facts) {
    let settings = &config.settings;
    let clients = u64::try_from(settings.max_client_conn).unwrap_or(0);
    if let Some(max) = facts.max_fds.filter(|&max| max < clients) {
        let text = format!("The process may open {max} files and sockets, which is less than {clients} clients need.");
        general(out, true, "max_client_conn", text);
    }
    for (name, database) in &config.databases {
        let size = database.pool_size.unwrap_or(settings.default_pool_size);
        let most = effective::max_db_connections(config, database);
        let least = effective::min_pool_size(config, database);
        let mut say = |setting, text| {
            out.push(Advice { urgent: false, database: Some(name.clone()), user: None, setting, text });
        };
        if most > 0 && size > most {
            let text = format!("It allows {most} connections, so that no pool can have the {size} of its size.");
            say("max_db_connections", text);
        }
        if size > 0 && least > size {
            say("min_pool_size", format!("It asks for {least} servers where the pool may have {size}."));
        }
    }
    if settings.query_wait_timeout.is_zero() {
        general(out, false, "query_wait_timeout", "0 lets clients wait for ever when no server can be had.");
    }
    if settings.pool_mode == PoolMode::Transaction && settings.max_prepared_statements <= 0 {
        let text = "0 makes prepared statements of drivers fail in transaction mode, when another server is at hand.";
        general(out, false, "max_prepared_statements", text);
    }
    let open = matches!(settings.auth_type, AuthType::Trust | AuthType::Any);
    if open && !local(&settings.listen_addr) {
        let text = "Whoever reaches an address of listen_addr is let in without a password.";
        general(out, true, "auth_type", text);
    }
}

/// Only this machine reaches these addresses.
fn local(listen_addr: &str) -> bool {
    let loopback = |addr: &str| addr.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    listen_addr.split(',').map(str::trim).all(|addr| addr.is_empty() || addr == "localhost" || loopback(addr))
}

/// A time as one says it.
fn seconds(time: Micros) -> String {
    match time.0 {
        us if us < 1_000_000 => format!("{} ms", us / 1000),
        us if us < 10_000_000 => format!("{}.{} s", us / 1_000_000, us / 100_000 % 10),
        us => format!("{} s", us / 1_000_000),
    }
}

fn span(time: Micros) -> String {
    match time.secs() / 60 {
        0 => "minute".to_owned(),
        1..120 => format!("{} minutes", (time.secs() / 60).max(2)),
        minutes => format!("{} hours", minutes / 60),
    }
}
