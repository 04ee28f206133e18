//! The command line, read as getopt_long reads it, into one value.
//!
//! A pure function of the arguments: it prints nothing and never exits, `main` does. Options are taken in order, so
//! `-V` before a wrong option still prints the version and `-V` after it does not; packaged scripts rely on the exact
//! texts, which no general parser reproduces (ambiguous abbreviations, `-u=x` meaning the name `=x`, options in a
//! bundle). Source: PgBouncer's usage text and glibc's getopt_long.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The version we are compatible with; also the first line of SHOW VERSION.
pub const PGBOUNCER_VERSION: &str = "PgBouncer 1.25.2";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cli {
    /// Do what the options ask for.
    Run(Options),
    /// Print this to stdout and exit with status 0.
    Print(String),
    /// Print this to stderr and exit with status 1.
    Fail(String),
}

/// What to do with the configuration file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Run the pooler.
    #[default]
    Serve,
    /// `--check`: say what is wrong or doubtful with it; status 1 if anything is wrong.
    Check,
    /// `--dump-config`: print the configuration that would be in force.
    Dump,
}

/// The options of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `-d`: go into the background.
    pub daemon: bool,
    /// `-q`: nothing on stderr.
    pub quiet: bool,
    /// `-R`: take over from a running process.
    pub reboot: bool,
    /// `-u`: the Unix user to become; wins over the setting `user`.
    pub user: Option<String>,
    /// How many `-v` were given.
    pub verbose: u8,
    /// Of several the last one counts.
    pub task: Task,
    pub config_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Quiet,
    Verbose,
    Help,
    Daemon,
    Version,
    Reboot,
    User,
    Task(Task),
}

/// Long name, letter, meaning. The order is the one in which an ambiguous abbreviation lists its candidates.
const OPTIONS: [(&str, u8, Opt); 7] = [
    ("quiet", b'q', Opt::Quiet),
    ("verbose", b'v', Opt::Verbose),
    ("help", b'h', Opt::Help),
    ("daemon", b'd', Opt::Daemon),
    ("version", b'V', Opt::Version),
    ("reboot", b'R', Opt::Reboot),
    ("user", b'u', Opt::User),
];

/// Options of our own. They have no letters, and an abbreviation means one of them only if it means none of the others.
const OWN_OPTIONS: [(&str, Opt); 2] = [("check", Opt::Task(Task::Check)), ("dump-config", Opt::Task(Task::Dump))];

/// Reads `argv`, whose first item is the program's own name.
#[must_use]
pub fn parse<I: IntoIterator<Item = OsString>>(argv: I) -> Cli {
    let mut argv = argv.into_iter();
    let argv0 = argv.next().map_or_else(|| "pgbouncer".to_owned(), |name| name.to_string_lossy().into_owned());
    let mut options = Options::default();
    match read(argv, &mut options) {
        Ok(files) => match <[OsString; 1]>::try_from(files) {
            Ok([file]) => {
                options.config_file = PathBuf::from(file);
                Cli::Run(options)
            }
            Err(_) => fail(&argv0, "no configuration file specified"),
        },
        Err(Stop::Help) => Cli::Print(help(&argv0)),
        Err(Stop::Version) => Cli::Print(version()),
        Err(Stop::Wrong(text)) => fail(&argv0, &text),
    }
}

/// Why reading ends before the last argument.
enum Stop {
    Help,
    Version,
    Wrong(String),
}

/// Fills `options` and returns the arguments that are no options.
fn read(mut args: impl Iterator<Item = OsString>, options: &mut Options) -> Result<Vec<OsString>, Stop> {
    let mut files = Vec::new();
    while let Some(arg) = args.next() {
        match arg.as_bytes() {
            b"--" => {
                files.extend(args);
                break;
            }
            [b'-', b'-', long @ ..] => read_long(long, &mut args, options)?,
            [b'-', bundle @ ..] if !bundle.is_empty() => read_bundle(bundle, &mut args, options)?,
            _ => files.push(arg),
        }
    }
    Ok(files)
}

fn read_long(long: &[u8], args: &mut impl Iterator<Item = OsString>, options: &mut Options) -> Result<(), Stop> {
    let equals = long.iter().position(|b| *b == b'=');
    let (name, value) = equals.map_or((long, None), |at| (&long[..at], Some(&long[at + 1..])));
    let (full_name, opt) = find_long(name, long)?;
    match (opt, value) {
        (Opt::User, Some(value)) => set(opt, Some(OsStr::from_bytes(value).to_owned()), options),
        (Opt::User, None) => match args.next() {
            Some(value) => set(opt, Some(value), options),
            None => Err(Stop::Wrong(format!("option '--{full_name}' requires an argument"))),
        },
        (_, Some(_)) => Err(Stop::Wrong(format!("option '--{full_name}' doesn't allow an argument"))),
        (_, None) => set(opt, None, options),
    }
}

/// The option called `name` or the only one that starts so; `whole` is the argument as the user wrote it.
fn find_long(name: &[u8], whole: &[u8]) -> Result<(&'static str, Opt), Stop> {
    let matching: Vec<_> = OPTIONS.iter().filter(|(full, ..)| full.as_bytes().starts_with(name)).collect();
    let exact = matching.iter().find(|(full, ..)| full.len() == name.len());
    match (exact, matching.as_slice()) {
        (Some((full, _, opt)), _) | (None, [(full, _, opt)]) => Ok((full, *opt)),
        (None, []) => {
            let own = OWN_OPTIONS.into_iter().find(|(full, _)| full.as_bytes().starts_with(name));
            own.ok_or_else(|| Stop::Wrong(format!("unrecognized option '--{}'", String::from_utf8_lossy(whole))))
        }
        (None, several) => {
            let mut text = format!("option '--{}' is ambiguous; possibilities:", String::from_utf8_lossy(whole));
            for (full, ..) in several {
                // writing to a String cannot fail
                let _ = write!(text, " '--{full}'");
            }
            Err(Stop::Wrong(text))
        }
    }
}

fn read_bundle(
    mut bundle: &[u8],
    args: &mut impl Iterator<Item = OsString>,
    options: &mut Options,
) -> Result<(), Stop> {
    while let [letter, rest @ ..] = bundle {
        let Some((.., opt)) = OPTIONS.iter().find(|(_, l, _)| l == letter) else {
            return Err(Stop::Wrong(format!("invalid option -- '{}'", String::from_utf8_lossy(&[*letter]))));
        };
        if *opt != Opt::User {
            set(*opt, None, options)?;
            bundle = rest;
            continue;
        }
        // the rest of the bundle is the value, "=" included
        let value = if rest.is_empty() { args.next() } else { Some(OsStr::from_bytes(rest).to_owned()) };
        let value = value.ok_or_else(|| Stop::Wrong("option requires an argument -- 'u'".to_owned()))?;
        return set(*opt, Some(value), options);
    }
    Ok(())
}

fn set(opt: Opt, value: Option<OsString>, options: &mut Options) -> Result<(), Stop> {
    match opt {
        Opt::Quiet => options.quiet = true,
        Opt::Verbose => options.verbose = options.verbose.saturating_add(1),
        Opt::Daemon => options.daemon = true,
        Opt::Reboot => options.reboot = true,
        Opt::User => options.user = value.map(|v| String::from_utf8_lossy(&v.into_vec()).into_owned()),
        Opt::Help => return Err(Stop::Help),
        Opt::Version => return Err(Stop::Version),
        Opt::Task(task) => options.task = task,
    }
    Ok(())
}

fn fail(argv0: &str, text: &str) -> Cli {
    Cli::Fail(format!("{argv0}: {text}\nTry \"{argv0} --help\" for more information.\n"))
}

/// The block `-V` prints; only its first line is relied on by others.
#[must_use]
pub fn version() -> String {
    format!(
        "{PGBOUNCER_VERSION}\npgusher {}\nevents: mio\nadns: system getaddrinfo\ntls: rustls (aws-lc-rs)\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The line that reports a complete start.
#[must_use]
pub fn process_up() -> String {
    format!("process up: {PGBOUNCER_VERSION}, pgusher {}", env!("CARGO_PKG_VERSION"))
}

fn help(argv0: &str) -> String {
    format!(
        "{argv0} is a connection pooler for PostgreSQL.

Usage:
  {argv0} [OPTION]... CONFIG_FILE

Options:
  -d, --daemon         run in background (as a daemon)
  -q, --quiet          run quietly
  -R, --reboot         do an online reboot
  -u, --user=USERNAME  assume identity of USERNAME
  -v, --verbose        increase verbosity
  -V, --version        show version, then exit
  -h, --help           show this help, then exit

Report bugs to <https://github.com/pgbouncer/pgbouncer/issues>.
PgBouncer home page: <https://www.pgbouncer.org/>

Without serving anybody (not in PgBouncer):
      --check          report what is wrong or doubtful in CONFIG_FILE, then exit
      --dump-config    print the configuration that would be in force, then exit
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(args: &[&str]) -> Cli {
        parse(std::iter::once("pgb").chain(args.iter().copied()).map(OsString::from))
    }

    fn options(config_file: &str) -> Options {
        Options { config_file: config_file.into(), ..Options::default() }
    }

    #[test]
    fn accepted_command_lines() {
        let root = || Some("root".to_owned());
        let table: Vec<(&[&str], Options)> = vec![
            (&["f"], options("f")),
            (&["-"], options("-")),
            (&["-dq", "f"], Options { daemon: true, quiet: true, ..options("f") }),
            (&["f", "-d"], Options { daemon: true, ..options("f") }),
            (&["-vv", "--verbose", "f"], Options { verbose: 3, ..options("f") }),
            (&["--verb", "f"], Options { verbose: 1, ..options("f") }),
            (&["--re", "f"], Options { reboot: true, ..options("f") }),
            (&["-u", "root", "f"], Options { user: root(), ..options("f") }),
            (&["-duroot", "f"], Options { daemon: true, user: root(), ..options("f") }),
            (&["-u=x", "f"], Options { user: Some("=x".to_owned()), ..options("f") }),
            (&["--user=root", "f"], Options { user: root(), ..options("f") }),
            (&["--us", "root", "f"], Options { user: root(), ..options("f") }),
            (&["--user=", "f"], Options { user: Some(String::new()), ..options("f") }),
            (&["-R", "--", "-f"], Options { reboot: true, ..options("-f") }),
            (&["--check", "f"], Options { task: Task::Check, ..options("f") }),
            (&["f", "--dump-c"], Options { task: Task::Dump, ..options("f") }),
            // abbreviations of PgBouncer's options stay what they were
            (&["--d", "f"], Options { daemon: true, ..options("f") }),
        ];
        for (args, want) in table {
            assert_eq!(cli(args), Cli::Run(want), "{args:?}");
        }
    }

    /// The texts are those glibc's getopt_long gave PgBouncer 1.18 for the same arguments.
    #[test]
    fn refused_command_lines() {
        let table: &[(&[&str], &str)] = &[
            (&[], "no configuration file specified"),
            (&["a", "b"], "no configuration file specified"),
            (&["--", "-d", "f"], "no configuration file specified"),
            (&["--x"], "unrecognized option '--x'"),
            (&["--x=3"], "unrecognized option '--x=3'"),
            (&["-x"], "invalid option -- 'x'"),
            (&["-dx", "f"], "invalid option -- 'x'"),
            (&["-x", "-V"], "invalid option -- 'x'"),
            (&["-q=3"], "invalid option -- '='"),
            (&["-u"], "option requires an argument -- 'u'"),
            (&["--user"], "option '--user' requires an argument"),
            (&["--us"], "option '--user' requires an argument"),
            (&["--qui=3"], "option '--quiet' doesn't allow an argument"),
            (&["--check=3"], "option '--check' doesn't allow an argument"),
            (&["--checks"], "unrecognized option '--checks'"),
            (&["--version="], "option '--version' doesn't allow an argument"),
            (&["--ver"], "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"),
            (
                &["--=3"],
                "option '--=3' is ambiguous; possibilities: '--quiet' '--verbose' '--help' '--daemon' '--version' \
                 '--reboot' '--user'",
            ),
        ];
        for (args, want) in table {
            let want = format!("pgb: {want}\nTry \"pgb --help\" for more information.\n");
            assert_eq!(cli(args), Cli::Fail(want), "{args:?}");
        }
    }

    #[test]
    fn help_and_version_win_over_what_follows() {
        for args in [&["-V", "-x"][..], &["--version"], &["-dV", "f"], &["--vers"]] {
            let Cli::Print(text) = cli(args) else { panic!("{args:?}") };
            let mut lines = text.lines();
            assert_eq!(lines.next(), Some("PgBouncer 1.25.2"));
            assert!(lines.next().is_some_and(|l| l.starts_with("pgusher ")));
        }
        let Cli::Print(text) = cli(&["-h"]) else { panic!() };
        assert!(
            text.starts_with("pgb is a connection pooler for PostgreSQL.\n\nUsage:\n  pgb [OPTION]... CONFIG_FILE\n")
        );
        assert!(text.contains("\n  -u, --user=USERNAME  assume identity of USERNAME\n"));
    }
}
