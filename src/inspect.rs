//! `--check` and `--dump-config`: what can be said about a configuration without serving anybody.
//!
//! No socket is opened, no user changed, no log or pidfile written. The room `check` judges; here it is told about the
//! machine.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::boot::apply_options;
use crate::check::{self, Machine, Severity};
use crate::cli::{Options, Task};
use crate::config::{self, dump::dump};
use crate::net::tls::Contexts;
use crate::supervisor::reload::missing_library;
use crate::sys;

/// What to print, and whether to end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub out: String,
    pub err: String,
    pub good: bool,
}

/// Does what the command line asks for.
#[must_use]
pub fn answer(options: &Options) -> Answer {
    match options.task {
        Task::Dump => dumped(options),
        Task::Check | Task::Serve => checked(options),
    }
}

fn checked(options: &Options) -> Answer {
    let path = &options.config_file;
    let machine = Machine {
        read: &|path: &Path| std::fs::read(path),
        permissions: &|path| std::fs::metadata(path).ok().map(|meta| meta.permissions().mode() & 0o7777),
        user_exists: &sys::user::exists,
        may_read: &sys::user::may_read,
        facility_exists: &sys::syslog::is_facility,
        fd_limit: sys::limits::reachable_fd_limit(),
        root: sys::user::own_uid() == 0,
        tls: &|settings| Contexts::build(settings).err().unwrap_or_default(),
        missing_library: &missing_library,
        daemon: options.daemon,
        reboot: options.reboot,
        user: options.user.as_deref(),
    };
    let findings = check::check(path, &machine);
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    let mut out = String::new();
    for finding in findings.iter().filter(|finding| !options.quiet || finding.severity == Severity::Error) {
        // writing to a String cannot fail
        let _ = writeln!(out, "{finding}");
    }
    let err = format!("{}: {}, {}\n", path.display(), counted(errors, "error"), counted(warnings, "warning"));
    Answer { out, err: if options.quiet { String::new() } else { err }, good: errors == 0 }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn dumped(options: &Options) -> Answer {
    let (loaded, lines) = config::load(&options.config_file, &|path| std::fs::read(path), None);
    let mut err = String::new();
    for line in lines.iter().filter(|_| !options.quiet) {
        let _ = writeln!(err, "{}", line.text);
    }
    match loaded {
        Ok(mut loaded) => {
            apply_options(&mut loaded.config, options);
            Answer { out: dump(&loaded.config), err, good: true }
        }
        Err(_) => {
            err.push_str("cannot load config file\n");
            Answer { out: String::new(), err, good: false }
        }
    }
}
