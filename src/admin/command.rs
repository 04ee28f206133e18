//! From a console query to the command it means, for somebody with certain rights.
//!
//! The table `COMMANDS` is the only list of commands. Each entry says whether stats users may run it; what does not say so
//! is for admins. RELOAD, SUSPEND, SHUTDOWN and SHOW complain about their argument before they ask for the right, the others
//! after it, as PgBouncer does: a script that probes its rights sees the same errors.

use super::grammar::{self, Malformed, Statement};
use super::refusal::Refusal;

/// What a console connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    Admin,
    /// Read-only.
    Stats,
}

/// A command that its sender is allowed to run. Database names are as given: whether they exist is for the shell to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Show(Topic),
    ShowFake(Fake),
    Set {
        key: String,
        value: String,
    },
    SetFake(Fake),
    Reload,
    Pause(Option<String>),
    Resume(Option<String>),
    Disable(String),
    Enable(String),
    Reconnect(Option<String>),
    Kill(Option<String>),
    /// By the `id` column of SHOW CLIENTS; see [`super::snapshot::shown_id`].
    KillClient(u64),
    Suspend,
    /// What a successor has to know beyond SHOW FDS; see [`super::handover`].
    Handover,
    Shutdown(Shutdown),
    WaitClose(Option<String>),
    /// One of these with a name that is not UTF-8: logged as such, and refused, for no database is called so.
    Nowhere {
        command: Box<Self>,
        name: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    Immediate,
    WaitForServers,
    WaitForClients,
}

/// What SHOW can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    Clients,
    Config,
    Databases,
    Fds,
    Help,
    Lists,
    Peers,
    PeerPools,
    Pools,
    Servers,
    Sockets,
    ActiveSockets,
    Stats,
    StatsTotals,
    StatsAverages,
    Users,
    Version,
    Totals,
    Mem,
    DnsHosts,
    DnsZones,
    State,
    /// From here on ours: PgBouncer has no such topics.
    Waits,
    Latency,
    Advice,
}

impl Topic {
    pub const ALL: [Self; 25] = [
        Self::Clients,
        Self::Config,
        Self::Databases,
        Self::Fds,
        Self::Help,
        Self::Lists,
        Self::Peers,
        Self::PeerPools,
        Self::Pools,
        Self::Servers,
        Self::Sockets,
        Self::ActiveSockets,
        Self::Stats,
        Self::StatsTotals,
        Self::StatsAverages,
        Self::Users,
        Self::Version,
        Self::Totals,
        Self::Mem,
        Self::DnsHosts,
        Self::DnsZones,
        Self::State,
        Self::Waits,
        Self::Latency,
        Self::Advice,
    ];

    /// Those that PgBouncer does not have.
    pub const OURS: [Self; 3] = [Self::Waits, Self::Latency, Self::Advice];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Config => "config",
            Self::Databases => "databases",
            Self::Fds => "fds",
            Self::Help => "help",
            Self::Lists => "lists",
            Self::Peers => "peers",
            Self::PeerPools => "peer_pools",
            Self::Pools => "pools",
            Self::Servers => "servers",
            Self::Sockets => "sockets",
            Self::ActiveSockets => "active_sockets",
            Self::Stats => "stats",
            Self::StatsTotals => "stats_totals",
            Self::StatsAverages => "stats_averages",
            Self::Users => "users",
            Self::Version => "version",
            Self::Totals => "totals",
            Self::Mem => "mem",
            Self::DnsHosts => "dns_hosts",
            Self::DnsZones => "dns_zones",
            Self::State => "state",
            Self::Waits => "waits",
            Self::Latency => "latency",
            Self::Advice => "advice",
        }
    }

    fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name().eq_ignore_ascii_case(name))
    }
}

/// A server parameter that drivers read or set when they connect; the console has none, and plays along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fake {
    ClientEncoding,
    DefaultTransactionIsolation,
    StandardConformingStrings,
    DateStyle,
    TimeZone,
}

impl Fake {
    pub const ALL: [Self; 5] = [
        Self::ClientEncoding,
        Self::DefaultTransactionIsolation,
        Self::StandardConformingStrings,
        Self::DateStyle,
        Self::TimeZone,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientEncoding => "client_encoding",
            Self::DefaultTransactionIsolation => "default_transaction_isolation",
            Self::StandardConformingStrings => "standard_conforming_strings",
            Self::DateStyle => "datestyle",
            Self::TimeZone => "timezone",
        }
    }

    #[must_use]
    pub const fn value(self) -> &'static str {
        match self {
            Self::ClientEncoding => "UTF-8",
            Self::DefaultTransactionIsolation => "read committed",
            Self::StandardConformingStrings => "on",
            Self::DateStyle => "ISO",
            Self::TimeZone => "GMT",
        }
    }

    fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fake| fake.name().eq_ignore_ascii_case(name))
    }
}

/// What can be wrong with an argument.
enum Fault {
    /// Known without looking at the rights: the whole query counts as unknown.
    Syntax,
    /// Told only to those who may run the command.
    Argument(Refusal),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Argument(refusal)
    }
}

type Build = fn(Option<String>) -> Result<Command, Fault>;

/// Every command but SET, which has a grammar of its own; whether stats users may try it; how its argument is read.
const COMMANDS: [(&str, Rights, Build); 15] = [
    ("show", Rights::Stats, show),
    ("select", Rights::Stats, show),
    ("reload", Rights::Admin, |argument| none(argument, Command::Reload)),
    ("pause", Rights::Admin, |argument| Ok(Command::Pause(argument))),
    ("resume", Rights::Admin, |argument| Ok(Command::Resume(argument))),
    ("disable", Rights::Admin, |argument| Ok(Command::Disable(required(argument)?))),
    ("enable", Rights::Admin, |argument| Ok(Command::Enable(required(argument)?))),
    ("reconnect", Rights::Admin, |argument| Ok(Command::Reconnect(argument))),
    ("kill", Rights::Admin, |argument| Ok(Command::Kill(argument))),
    ("kill_client", Rights::Admin, |argument| Ok(Command::KillClient(client_id(argument.as_deref())?))),
    ("suspend", Rights::Admin, |argument| none(argument, Command::Suspend)),
    ("handover", Rights::Stats, |argument| none(argument, Command::Handover)),
    ("shutdown", Rights::Admin, shutdown),
    ("wait_close", Rights::Admin, |argument| Ok(Command::WaitClose(argument))),
    // reached only without a value: with one it is the other form
    ("set", Rights::Stats, |_| Err(Fault::Syntax)),
];

impl Command {
    /// Reads a query, up to its first NUL, for a connection with `rights`.
    ///
    /// # Errors
    /// What the console answers instead.
    pub fn parse(query: &[u8], rights: Rights) -> Result<Self, Refusal> {
        let query = query.split(|byte| *byte == 0).next().unwrap_or_default();
        let invalid = || Refusal::InvalidCommand(query.to_vec());
        let command = match grammar::statement(query) {
            Err(Malformed::Shape) => return Err(invalid()),
            Err(Malformed::Arguments) => return Err(Refusal::BadArguments),
            Ok(Statement::Set { key, value }) => return set(&key, value, rights),
            Ok(Statement::Command { word, argument }) => {
                let entry = COMMANDS.iter().find(|(name, ..)| name.as_bytes().eq_ignore_ascii_case(&word));
                let (_, open_to, build) = entry.ok_or_else(invalid)?;
                match build_from(*build, argument) {
                    Err(Fault::Syntax) => return Err(invalid()),
                    _ if !permits(rights, *open_to) => return Err(Refusal::AdminNeeded),
                    Err(Fault::Argument(refusal)) => return Err(refusal),
                    Ok(command) => command,
                }
            }
        };
        command.allowed(rights)
    }

    fn allowed(self, rights: Rights) -> Result<Self, Refusal> {
        if self.needs_admin() && rights != Rights::Admin { Err(Refusal::AdminNeeded) } else { Ok(self) }
    }

    /// Whether an entry of that name is looked for.
    const fn names_database(&self) -> bool {
        matches!(
            self,
            Self::Pause(Some(_))
                | Self::Resume(Some(_))
                | Self::Disable(_)
                | Self::Enable(_)
                | Self::Reconnect(Some(_))
                | Self::Kill(Some(_))
                | Self::WaitClose(Some(_))
        )
    }

    /// Whether only admins may run this. Everything is for admins unless it is named here.
    #[must_use]
    pub const fn needs_admin(&self) -> bool {
        match self {
            // file descriptors and secrets
            Self::Show(Topic::Fds) => true,
            Self::Show(_) | Self::ShowFake(_) | Self::SetFake(_) => false,
            // whoever is no successor is told, by whoever runs it, that there is no such command
            Self::Handover => false,
            _ => true,
        }
    }

    /// The tag of CommandComplete when the command has been done. An immediate SHUTDOWN gets no reply at all.
    #[must_use]
    pub fn tag(&self) -> String {
        let word = match self {
            Self::Show(_) | Self::ShowFake(_) => "SHOW",
            Self::Set { key, value } => return format!("SET {key}={value}"),
            Self::SetFake(_) => "SET",
            Self::Reload => "RELOAD",
            Self::Pause(_) => "PAUSE",
            Self::Resume(_) => "RESUME",
            Self::Disable(_) => "DISABLE",
            Self::Enable(_) => "ENABLE",
            Self::Reconnect(_) => "RECONNECT",
            Self::Kill(_) => "KILL",
            Self::KillClient(_) => "KILL_CLIENT",
            Self::Suspend => "SUSPEND",
            Self::Handover => "HANDOVER",
            Self::Shutdown(_) => "SHUTDOWN",
            Self::WaitClose(_) => "WAIT_CLOSE",
            Self::Nowhere { command, .. } => return command.tag(),
        };
        word.to_owned()
    }

    /// The log line that records the command, for those that have one.
    #[must_use]
    pub fn log_line(&self) -> Option<String> {
        match self {
            Self::Show(_)
            | Self::ShowFake(_)
            | Self::Set { .. }
            | Self::SetFake(_)
            | Self::KillClient(_)
            | Self::Handover => None,
            Self::Disable(database) | Self::Enable(database) => {
                Some(format!("{} '{database}' command issued", self.tag()))
            }
            Self::Pause(database)
            | Self::Resume(database)
            | Self::Reconnect(database)
            | Self::Kill(database)
            | Self::WaitClose(database) => {
                let object = database.as_ref().map(|name| format!(" '{name}'")).unwrap_or_default();
                Some(format!("{}{object} command issued", self.tag()))
            }
            Self::Shutdown(Shutdown::WaitForServers) => Some("SHUTDOWN WAIT_FOR_SERVERS command issued".to_owned()),
            Self::Shutdown(Shutdown::WaitForClients) => Some("SHUTDOWN WAIT_FOR_CLIENTS command issued".to_owned()),
            Self::Reload | Self::Suspend | Self::Shutdown(Shutdown::Immediate) => {
                Some(format!("{} command issued", self.tag()))
            }
            Self::Nowhere { command, .. } => command.log_line(),
        }
    }
}

const fn permits(rights: Rights, open_to: Rights) -> bool {
    matches!((rights, open_to), (Rights::Admin, _) | (Rights::Stats, Rights::Stats))
}

/// Texts of the configuration are UTF-8, so other ones are values of no setting.
fn set(key: &[u8], value: Vec<u8>, rights: Rights) -> Result<Command, Refusal> {
    let key = String::from_utf8_lossy(key).into_owned();
    if let Some(fake) = Fake::find(&key) {
        return Ok(Command::SetFake(fake));
    }
    let value = String::from_utf8(value).map_err(|_| Refusal::SetFailed);
    let command = Command::Set { key, value: value.clone().unwrap_or_default() }.allowed(rights)?;
    value.map(|_| command)
}

/// The command with this argument, which need not be UTF-8.
fn build_from(build: Build, argument: Option<Vec<u8>>) -> Result<Command, Fault> {
    let Some(bytes) = argument else { return build(None) };
    let command = build(Some(String::from_utf8_lossy(&bytes).into_owned()))?;
    if command.names_database() && std::str::from_utf8(&bytes).is_err() {
        return Ok(Command::Nowhere { command: Box::new(command), name: bytes });
    }
    Ok(command)
}

fn show(argument: Option<String>) -> Result<Command, Fault> {
    let name = argument.ok_or(Fault::Syntax)?;
    if let Some(fake) = Fake::find(&name) {
        return Ok(Command::ShowFake(fake));
    }
    Topic::find(&name).map(Command::Show).ok_or(Fault::Syntax)
}

fn none(argument: Option<String>, command: Command) -> Result<Command, Fault> {
    if argument.is_some() { Err(Fault::Syntax) } else { Ok(command) }
}

fn required(argument: Option<String>) -> Result<String, Fault> {
    Ok(argument.ok_or(Refusal::DatabaseRequired)?)
}

fn shutdown(argument: Option<String>) -> Result<Command, Fault> {
    let mode = match argument.as_deref() {
        None => Shutdown::Immediate,
        Some(mode) if mode.eq_ignore_ascii_case("WAIT_FOR_SERVERS") => Shutdown::WaitForServers,
        Some(mode) if mode.eq_ignore_ascii_case("WAIT_FOR_CLIENTS") => Shutdown::WaitForClients,
        Some(_) => return Err(Fault::Syntax),
    };
    Ok(Command::Shutdown(mode))
}

/// The number that `argument` starts with: `12abc` is 12. A number too large for any client names none.
fn client_id(argument: Option<&str>) -> Result<u64, Fault> {
    let text = argument.unwrap_or_default();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    match text.get(..digits) {
        None | Some("") => Err(Refusal::InvalidClientPointer.into()),
        Some(digits) => Ok(digits.parse().unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin(query: &str) -> Result<Command, Refusal> {
        Command::parse(query.as_bytes(), Rights::Admin)
    }

    fn stats(query: &str) -> Result<Command, Refusal> {
        Command::parse(query.as_bytes(), Rights::Stats)
    }

    fn invalid(query: &str) -> Result<Command, Refusal> {
        Err(Refusal::InvalidCommand(query.as_bytes().to_vec()))
    }

    fn db(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[test]
    fn commands_of_an_admin() {
        for (query, expected) in [
            ("show pools;", Ok(Command::Show(Topic::Pools))),
            ("SELECT Version", Ok(Command::Show(Topic::Version))),
            ("SHOW FDS", Ok(Command::Show(Topic::Fds))),
            ("show Client_Encoding", Ok(Command::ShowFake(Fake::ClientEncoding))),
            ("set TimeZone='x y'", Ok(Command::SetFake(Fake::TimeZone))),
            ("set Verbose=1", Ok(Command::Set { key: "Verbose".into(), value: "1".into() })),
            ("reload", Ok(Command::Reload)),
            ("reload \"\"", Ok(Command::Reload)),
            ("reload x", invalid("reload x")),
            ("PAUSE", Ok(Command::Pause(None))),
            ("pause \"my db\"", Ok(Command::Pause(db("my db")))),
            ("pause P0", Ok(Command::Pause(db("P0")))),
            ("resume p0", Ok(Command::Resume(db("p0")))),
            ("disable p0", Ok(Command::Disable("p0".into()))),
            ("disable", Err(Refusal::DatabaseRequired)),
            ("enable \"\"", Err(Refusal::DatabaseRequired)),
            ("reconnect", Ok(Command::Reconnect(None))),
            ("kill", Ok(Command::Kill(None))),
            ("kill_client 12abc", Ok(Command::KillClient(12))),
            ("kill_client 99999999999999999999999", Ok(Command::KillClient(u64::MAX))),
            ("kill_client abc", Err(Refusal::InvalidClientPointer)),
            ("kill_client", Err(Refusal::InvalidClientPointer)),
            ("suspend", Ok(Command::Suspend)),
            ("suspend x", invalid("suspend x")),
            ("shutdown", Ok(Command::Shutdown(Shutdown::Immediate))),
            ("shutdown wait_for_servers", Ok(Command::Shutdown(Shutdown::WaitForServers))),
            ("SHUTDOWN WAIT_FOR_CLIENTS;", Ok(Command::Shutdown(Shutdown::WaitForClients))),
            ("shutdown now", invalid("shutdown now")),
            ("wait_close p0", Ok(Command::WaitClose(db("p0")))),
            ("show", invalid("show")),
            ("show hba", invalid("show hba")),
            ("set x", invalid("set x")),
            ("BEGIN", invalid("BEGIN")),
            ("SELECT 1", invalid("SELECT 1")),
            ("DISCARD ALL", invalid("DISCARD ALL")),
            ("show pools; show stats", invalid("show pools; show stats")),
            ("", invalid("")),
            ("aaaaaaaaaaaaaaaa", Err(Refusal::BadArguments)),
        ] {
            assert_eq!(admin(query), expected, "{query:?}");
        }
        assert_eq!(Command::parse(b"reload\0junk", Rights::Admin), Ok(Command::Reload));
    }

    #[test]
    fn names_that_are_not_utf8() {
        let kill = Command::parse(b"KILL \"\xe9\"", Rights::Admin).expect("a command");
        assert_eq!(kill.log_line().as_deref(), Some("KILL '\u{fffd}' command issued"));
        assert_eq!(kill, Command::Nowhere { command: Box::new(Command::Kill(db("\u{fffd}"))), name: vec![0xe9] });
        for (query, for_admins, for_stats) in [
            (&b"show \"\xe9\""[..], Refusal::InvalidCommand(b"show \"\xe9\"".to_vec()), None),
            (b"\"\xe9\"", Refusal::InvalidCommand(b"\"\xe9\"".to_vec()), None),
            (b"kill_client \"\xe9\"", Refusal::InvalidClientPointer, Some(Refusal::AdminNeeded)),
            (b"set stats_users = '\xe9'", Refusal::SetFailed, Some(Refusal::AdminNeeded)),
        ] {
            assert_eq!(Command::parse(query, Rights::Stats), Err(for_stats.unwrap_or(for_admins.clone())), "{query:?}");
            assert_eq!(Command::parse(query, Rights::Admin), Err(for_admins), "{query:?}");
        }
        assert_eq!(Command::parse(b"kill \"\xe9\"", Rights::Stats), Err(Refusal::AdminNeeded));
        assert_eq!(Command::parse(b"set timezone = '\xe9'", Rights::Stats), Ok(Command::SetFake(Fake::TimeZone)));
    }

    #[test]
    fn every_topic_has_its_name_once() {
        for topic in Topic::ALL {
            assert_eq!(admin(&format!("SHOW {}", topic.name().to_uppercase())), Ok(Command::Show(topic)));
        }
    }

    /// The order of complaints was observed on PgBouncer 1.18.
    #[test]
    fn rights_of_a_stats_user() {
        let denied = Err(Refusal::AdminNeeded);
        for query in [
            "set x=1",
            "reload",
            "pause",
            "pause pgbouncer",
            "resume",
            "disable",
            "disable p0",
            "enable",
            "reconnect",
            "kill",
            "kill p0",
            "kill_client abc",
            "kill_client 1",
            "suspend",
            "shutdown",
            "shutdown wait_for_clients",
            "wait_close",
            "show fds",
            "select fds",
        ] {
            assert_eq!(stats(query), denied, "{query}");
        }
        for query in ["reload x", "suspend x", "shutdown x", "show nothing", "set x"] {
            assert_eq!(stats(query), invalid(query));
        }
        assert_eq!(stats("set \"\"=1"), Err(Refusal::BadArguments));
        assert_eq!(stats("set timezone=1"), Ok(Command::SetFake(Fake::TimeZone)));
        assert_eq!(stats("show timezone"), Ok(Command::ShowFake(Fake::TimeZone)));
        for topic in Topic::ALL.into_iter().filter(|topic| *topic != Topic::Fds) {
            assert_eq!(stats(&format!("show {}", topic.name())), Ok(Command::Show(topic)));
        }
    }

    #[test]
    fn tags_and_log_lines() {
        for (query, tag, line) in [
            ("set a = 'b c'", "SET a=b c", None),
            ("set timezone = x", "SET", None),
            ("show stats", "SHOW", None),
            ("pause", "PAUSE", Some("PAUSE command issued")),
            ("kill p0", "KILL", Some("KILL 'p0' command issued")),
            ("kill_client 3", "KILL_CLIENT", None),
            ("disable p0", "DISABLE", Some("DISABLE 'p0' command issued")),
            ("shutdown", "SHUTDOWN", Some("SHUTDOWN command issued")),
            ("shutdown wait_for_servers", "SHUTDOWN", Some("SHUTDOWN WAIT_FOR_SERVERS command issued")),
            ("wait_close", "WAIT_CLOSE", Some("WAIT_CLOSE command issued")),
        ] {
            let command = admin(query).expect("a good command");
            assert_eq!(command.tag(), tag);
            assert_eq!(command.log_line().as_deref(), line);
        }
    }

    /// Random bytes, and random mixtures of the pieces that mean something, give an answer and no panic; a stats user never
    /// gets a command that needs an admin.
    #[test]
    fn any_bytes_are_answered() {
        const PIECES: [&[u8]; 18] = [
            b"set",
            b"SHOW",
            b"pause",
            b"kill_client",
            b"to",
            b"=",
            b"\"",
            b"'",
            b"\"\"",
            b"''",
            b" ",
            b"\n",
            b";",
            b"12",
            b"fds",
            b"x_1",
            b"\xff",
            b"\0",
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let mut commands = 0;
        for round in 0..100_000 {
            let mut query = Vec::new();
            for _ in 0..next(12) {
                if round % 2 == 0 {
                    query.push(u8::try_from(next(256)).expect("below 256"));
                } else {
                    let piece = usize::try_from(next(PIECES.len() as u64)).expect("small");
                    query.extend_from_slice(PIECES[piece]);
                }
            }
            let free = Command::parse(&query, Rights::Admin);
            commands += u32::from(free.is_ok());
            match (Command::parse(&query, Rights::Stats), free) {
                (Ok(command), free) => {
                    assert!(!command.needs_admin(), "{query:?}");
                    assert_eq!(Ok(command), free);
                }
                (Err(Refusal::AdminNeeded), free) => assert_ne!(free, Err(Refusal::AdminNeeded)),
                (Err(refusal), free) => assert_eq!(Err(refusal), free),
            }
        }
        assert!(commands > 100, "the mixtures hardly ever made a command: {commands}");
    }
}
