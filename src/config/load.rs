//! A file, its includes, and what they say, to a [`Config`].
//!
//! A reload starts from the configuration in force and works on a copy, so that a file with a mistake changes nothing.
//! It treats what the file no longer says as PgBouncer does: entries and peers go; settings return to their defaults,
//! except those whose default is NULL; `[users]` lines, the `*` string and forced users stay.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::connstr::{self, DATABASE_KEYS, EntryError, USER_KEYS};
use super::ini::{self, Item, Unreadable, Why};
use super::mask;
use super::{Config, Database, LogLine, SetError, Settings, WILDCARD, keys};

/// Gives the bytes of a file. Relative paths are the reader's business; PgBouncer takes them from the working
/// directory.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// Files that may include each other below the first one.
pub(crate) const MAX_INCLUDE_DEPTH: usize = 10;

pub(crate) const SECTIONS: &[&str] = &["pgbouncer", "databases", "users", "peers"];

/// Beyond this many typing errors a hint would be a guess.
const MAX_HINT_DISTANCE: usize = 2;

/// A configuration was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    /// Settings that only a restart applies and for which the file has another value than the one in force.
    pub needs_restart: Vec<NeedsRestart>,
}

/// A setting whose value in the file waits for a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsRestart {
    pub key: &'static str,
    pub running: Option<String>,
    pub file: Option<String>,
}

impl NeedsRestart {
    /// The line to log.
    #[must_use]
    pub fn log_line(&self) -> LogLine {
        let shown = |value: &Option<String>| value.as_ref().map_or_else(|| "unset".to_owned(), |v| format!("\"{v}\""));
        LogLine::warning(format!(
            "setting \"{}\" stays {} until a restart; the configuration file has {}",
            self.key,
            shown(&self.running),
            shown(&self.file)
        ))
    }
}

/// No configuration came of it; the log lines say why.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadFailed {
    /// What the file had said until then: it may have said where log lines go.
    pub so_far: Box<Settings>,
}

/// Reading has come to its end too early.
#[derive(Clone, Copy, Debug)]
struct Stopped;

/// Reads the configuration file `path`: at start with no `previous`, on reload with the configuration in force.
///
/// The lines to log come in order, whether the load succeeds or not.
///
/// # Errors
/// The file, or one it includes, cannot be read or understood.
pub fn load(path: &Path, read: ReadFile<'_>, previous: Option<&Config>) -> (Result<Loaded, LoadFailed>, Vec<LogLine>) {
    let mut loader = Loader::new(path, read, previous);
    let result = loader.run(path);
    let result = result.map_err(|Stopped| LoadFailed { so_far: Box::new(std::mem::take(&mut loader.config.settings)) });
    (result, loader.log)
}

#[derive(Clone, Copy)]
enum Section {
    Pgbouncer,
    Databases,
    Users,
    Peers,
}

struct Loader<'a> {
    read: ReadFile<'a>,
    previous: Option<&'a Config>,
    /// What the files say so far.
    config: Config,
    section: Option<Section>,
    has_main_section: bool,
    /// Values refused by settings that a reload does not apply anyway: no reason to refuse the rest.
    refused: BTreeMap<&'static str, String>,
    log: Vec<LogLine>,
}

impl<'a> Loader<'a> {
    fn new(path: &Path, read: ReadFile<'a>, previous: Option<&'a Config>) -> Self {
        let mut config = Config::default();
        if let Some(previous) = previous {
            config.settings.clone_from(&previous.settings);
            config.wildcard.clone_from(&previous.wildcard);
            config.users.clone_from(&previous.users);
        } else {
            config.settings.conffile = Some(path.to_string_lossy().into_owned());
        }
        Self {
            read,
            previous,
            config,
            section: None,
            has_main_section: false,
            refused: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn run(&mut self, path: &Path) -> Result<Loaded, Stopped> {
        self.file(path, 0)?;
        if !self.has_main_section {
            return self.fail("load_init_file: main section missing from config file");
        }
        let needs_restart = self.keep_running_values();
        Ok(Loaded { config: std::mem::take(&mut self.config), needs_restart })
    }

    /// `depth` is 0 for the first file and one more for each include.
    fn file(&mut self, path: &Path, depth: usize) -> Result<(), Stopped> {
        let name = path.display();
        let text = match (self.read)(path) {
            Ok(text) => text,
            Err(error) => return self.fail(format!("could not load file \"{name}\": {}", io_error_text(&error))),
        };
        let mut reader = ini::Reader::new(&text);
        loop {
            let (item, line) = match reader.next() {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(()),
                Err(Unreadable { line, why }) => {
                    if why == Why::Encoding {
                        self.log.push(LogLine::error(format!("text is not valid UTF-8 ({name}:{line})")));
                    }
                    return self.fail(format!("syntax error in configuration ({name}:{line}), stopping loading"));
                }
            };
            match item {
                Item::Section(section) => {
                    if !self.section(section) {
                        self.log.push(LogLine::error(format!(
                            "invalid section \"{section}\" in configuration ({name}:{line})"
                        )));
                        self.hint(section, SECTIONS.iter().copied());
                        return Err(Stopped);
                    }
                }
                Item::Pair { key, value } => self.pair(&key, value, &format_args!("({name}:{line})"))?,
                Item::Include(_) if depth == MAX_INCLUDE_DEPTH => {
                    return self.fail(format!("include nesting level too deep ({name}:{line}), stopping loading"));
                }
                Item::Include(included) => {
                    if self.file(Path::new(included), depth + 1).is_err() {
                        return self.fail(format!(
                            "error processing include file in configuration ({name}:{line}), stopping loading"
                        ));
                    }
                }
            }
        }
    }

    fn section(&mut self, name: &str) -> bool {
        self.section = Some(match name {
            "pgbouncer" => {
                self.has_main_section = true;
                // also what only a restart applies, so that the file's own value can be told from the running one
                self.config.settings.reset(|_| true);
                self.refused.clear();
                Section::Pgbouncer
            }
            "databases" => Section::Databases,
            "users" => Section::Users,
            "peers" => Section::Peers,
            _ => {
                self.log.push(LogLine::error("fill_defaults fail"));
                return false;
            }
        });
        true
    }

    fn pair(&mut self, key: &str, value: &str, place: &std::fmt::Arguments<'_>) -> Result<(), Stopped> {
        let invalid = |value: &str| {
            LogLine::error(format!("invalid value \"{value}\" for parameter {key} in configuration {place}"))
        };
        let shown = mask::refused_value(key, value);
        let Some(section) = self.section else {
            self.log.push(LogLine::error(format!("load_init_file: value without section: {key}")));
            self.log.push(invalid(&shown));
            return Err(Stopped);
        };
        let error = match section {
            Section::Pgbouncer => {
                let Err(error) = self.setting(key, value) else {
                    return Ok(());
                };
                self.log.extend(error.detail(key).map(LogLine::error));
                self.log.push(invalid(&shown));
                if error == SetError::Unknown {
                    self.hint(key, keys::TABLE.iter().map(|key| key.name));
                }
                return Err(Stopped);
            }
            Section::Databases => self.database(key, value),
            Section::Users => self.user(key, value),
            Section::Peers => self.peer(key, value),
        };
        let Err(error) = error else {
            return Ok(());
        };
        self.log.extend(error.log_lines());
        self.log.push(invalid(&shown));
        match &error {
            EntryError::UnknownKey(key) if matches!(section, Section::Databases) => {
                self.hint(key, DATABASE_KEYS.iter().copied());
            }
            EntryError::UnknownUserKey(key) => self.hint(key, USER_KEYS.iter().copied()),
            _ => {}
        }
        Err(Stopped)
    }

    fn setting(&mut self, name: &str, value: &str) -> Result<(), SetError> {
        let result = self.config.settings.set(name, value);
        let fixed = keys::find(name).filter(|key| !key.changeable && self.previous.is_some());
        let Some(key) = fixed else {
            return result;
        };
        if result.is_err() {
            self.refused.insert(key.name, value.to_owned());
        } else {
            self.refused.remove(key.name);
        }
        Ok(())
    }

    fn database(&mut self, name: &str, connstr: &str) -> Result<(), EntryError> {
        if name == WILDCARD {
            self.config.wildcard = Some(connstr.to_owned());
            return Ok(());
        }
        let mut db = connstr::parse_database(name, connstr)?;
        let known =
            self.config.databases.get(name).or_else(|| self.previous.and_then(|config| config.databases.get(name)));
        if keep_forced_user(&mut db, known) {
            self.log.push(LogLine::warning("losing forced user not supported, keeping old setting"));
        }
        self.config.databases.insert(name.to_owned(), db);
        Ok(())
    }

    fn user(&mut self, name: &str, text: &str) -> Result<(), EntryError> {
        self.config.users.insert(name.to_owned(), connstr::parse_user(text)?);
        Ok(())
    }

    fn peer(&mut self, id: &str, text: &str) -> Result<(), EntryError> {
        let peer = connstr::parse_peer(id, text)?;
        self.config.peers.insert(peer.id, peer);
        Ok(())
    }

    /// On reload, puts back what only a restart changes, and says where the file wants something else.
    fn keep_running_values(&mut self) -> Vec<NeedsRestart> {
        let Some(previous) = self.previous else {
            return Vec::new();
        };
        let mut waiting = Vec::new();
        for key in keys::TABLE.iter().filter(|key| !key.changeable) {
            let running = previous.settings.get(key.name).flatten();
            let file = match self.refused.remove(key.name) {
                Some(text) => Some(text),
                None => self.config.settings.get(key.name).flatten(),
            };
            if running != file {
                waiting.push(NeedsRestart { key: key.name, running, file });
            }
            self.config.settings.copy_from(key.name, &previous.settings);
        }
        waiting
    }

    /// Adds a line that names the word meant, if `word` is close to one.
    fn hint(&mut self, word: &str, known: impl Iterator<Item = &'static str>) {
        if let Some(name) = nearest(word, known) {
            self.log.push(LogLine::log(format!("did you mean \"{name}\"?")));
        }
    }

    fn fail<T>(&mut self, text: impl Into<String>) -> Result<T, Stopped> {
        self.log.push(LogLine::error(text));
        Err(Stopped)
    }
}

/// An entry never loses its forced user; true if `db` got that of the entry known before.
pub(crate) fn keep_forced_user(db: &mut Database, known: Option<&Database>) -> bool {
    let Some(known) = known.filter(|known| db.user.is_none() && known.user.is_some()) else { return false };
    db.user.clone_from(&known.user);
    db.password.clone_from(&known.password);
    db.forced_user_kept = known.forced_user_kept.saturating_add(1);
    true
}

/// The name that `word` was probably meant to be.
pub(crate) fn nearest(word: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let near = known.filter_map(|name| Some((distance(&word, name)?, name)));
    near.min_by_key(|&(distance, _)| distance).map(|(_, name)| name)
}

/// What went wrong, in the words of the C library: without the number that Rust adds.
pub(crate) fn io_error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// Letters to change, add or leave out to make `b` of `a`; `None` when more than [`MAX_HINT_DISTANCE`].
fn distance(a: &str, b: &str) -> Option<usize> {
    // words that long are no mistyped names, and must cost nothing
    if a.len().abs_diff(b.len()) > MAX_HINT_DISTANCE {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    Some(row[b.len()]).filter(|&distance| distance <= MAX_HINT_DISTANCE)
}

#[cfg(test)]
mod tests;
