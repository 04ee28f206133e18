//! `--check`: everything that is wrong or doubtful with a configuration, with its place and a remedy.
//!
//! The daemon stops reading at the first mistake; this room reads on. `survey.rs` reads the configuration file and
//! remembers where it says what, `entries.rs` reads the lists of its entries, and the judges look at the whole:
//! `limits.rs` at numbers that do not fit together, `logins.rs` at users, secrets and access rules, `files.rs` at what is
//! on the disk, `settings.rs` at settings that do nothing or not what one thinks.
//!
//! An error is what keeps the daemon from starting or serving as the file says; a warning is what works, and is probably
//! not meant. It is all a function of file contents and of the facts in [`Machine`]; nothing is opened, bound or written.

mod entries;
mod files;
mod limits;
mod logins;
mod settings;
mod survey;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, ReadFile, Settings};
use survey::Survey;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<str>,
    /// From 1 on.
    pub line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Warning,
    Error,
}

/// One thing that is wrong or doubtful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub place: Place,
    pub severity: Severity,
    pub text: String,
    /// What to do about it.
    pub remedy: String,
}

/// `file:line: severity: text; remedy`, in one line whatever the files contain.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let line = format!("{}:{}: {severity}: {}; {}", self.place.file, self.place.line, self.text, self.remedy);
        for c in line.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// What the check must know of the machine and of the command line; the shell answers.
pub struct Machine<'a> {
    pub read: ReadFile<'a>,
    /// Permission bits of a file or directory; `None` if it is not there.
    pub permissions: &'a dyn Fn(&Path) -> Option<u32>,
    /// Is there a user of this name?
    pub user_exists: &'a dyn Fn(&str) -> bool,
    /// May a user of this name read the file, once the daemon has become him? What is not there may be read.
    pub may_read: &'a dyn Fn(&str, &Path) -> bool,
    /// Is there a syslog facility of this name?
    pub facility_exists: &'a dyn Fn(&str) -> bool,
    /// Descriptors that a process may have at most.
    pub fd_limit: u64,
    /// The daemon would be started by root.
    pub root: bool,
    /// Lines about TLS settings and files that cannot be used.
    pub tls: &'a dyn Fn(&Settings) -> Vec<String>,
    /// A library that the configuration needs and the machine does not have.
    pub missing_library: &'a dyn Fn(&Config) -> Option<String>,
    /// `-d`
    pub daemon: bool,
    /// `-R`
    pub reboot: bool,
    /// `-u`
    pub user: Option<&'a str>,
}

/// Reads the configuration file `path` and everything it names: the findings, file by file and line by line.
#[must_use]
pub fn check(path: &Path, machine: &Machine<'_>) -> Vec<Finding> {
    let survey = Survey::of(path, machine.read);
    let mut judge = Judge { machine, survey: &survey, findings: survey.findings.clone() };
    // a file that cannot be read at all says nothing that could be judged
    if survey.main_section.is_some() {
        let users = judge.logins();
        judge.limits(&users);
        judge.files();
        judge.settings();
    }
    let mut findings = judge.findings;
    let rank = |file: &str| survey.files.iter().position(|known| &**known == file).unwrap_or(usize::MAX);
    findings.sort_by_cached_key(|finding| (rank(&finding.place.file), finding.place.clone()));
    findings.dedup();
    findings
}

/// Looks at what was read; the judges are in the files of this room.
struct Judge<'a> {
    machine: &'a Machine<'a>,
    survey: &'a Survey,
    findings: Vec<Finding>,
}

impl<'a> Judge<'a> {
    const fn config(&self) -> &'a Config {
        &self.survey.config
    }

    fn error(&mut self, place: Place, text: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding { place, severity: Severity::Error, text: text.into(), remedy: remedy.into() });
    }

    fn warn(&mut self, place: Place, text: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding { place, severity: Severity::Warning, text: text.into(), remedy: remedy.into() });
    }

    /// Where a setting is given, or, if it keeps its default, where the section begins in which it could be.
    fn at(&self, key: &str) -> Place {
        let section = || self.survey.main_section.clone();
        self.survey.settings.get(key).cloned().or_else(section).unwrap_or_else(|| self.survey.start())
    }

    /// Where an entry of `[databases]` is.
    fn at_database(&self, name: &str) -> Place {
        self.survey.databases.get(name).cloned().unwrap_or_else(|| self.survey.start())
    }

    /// Does the file say something about this setting?
    fn says(&self, key: &str) -> bool {
        self.survey.settings.contains_key(key)
    }
}

#[cfg(test)]
mod tests;
