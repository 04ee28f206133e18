//! Reads a configuration file to its end, whatever is wrong with it, and remembers where it says what.
//!
//! It accepts exactly what `config::load` accepts at a start, and then makes the same [`Config`]; the tests compare both.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::entries::{self, Mistake};
use super::{Finding, Place, Severity};
use crate::config::ini::{Item, Reader, Unreadable, Why};
use crate::config::load::{MAX_INCLUDE_DEPTH, SECTIONS, io_error_text, keep_forced_user, nearest};
use crate::config::{Config, ReadFile, SetError, connstr, keys, mask};

/// What the file says, and where.
pub(super) struct Survey {
    pub config: Config,
    pub findings: Vec<Finding>,
    /// All files, in the order in which they are read.
    pub files: Vec<Arc<str>>,
    /// The files that hold a password.
    pub with_passwords: Vec<Arc<str>>,
    /// The last `[pgbouncer]`.
    pub main_section: Option<Place>,
    pub settings: BTreeMap<&'static str, Place>,
    /// By name, with `*`.
    pub databases: BTreeMap<String, Place>,
    pub users: BTreeMap<String, Place>,
    pub peers: BTreeMap<u16, Place>,
}

#[derive(Clone, Copy)]
enum Section {
    Pgbouncer,
    Databases,
    Users,
    Peers,
    /// One whose name nobody knows: what is in it is not looked at.
    Unknown,
}

impl Survey {
    pub(super) fn of(path: &Path, read: ReadFile<'_>) -> Self {
        let mut survey = Self {
            config: Config::default(),
            findings: Vec::new(),
            files: Vec::new(),
            with_passwords: Vec::new(),
            main_section: None,
            settings: BTreeMap::new(),
            databases: BTreeMap::new(),
            users: BTreeMap::new(),
            peers: BTreeMap::new(),
        };
        survey.config.settings.conffile = Some(path.to_string_lossy().into_owned());
        let mut section = None;
        let here = Place { file: path.to_string_lossy().into(), line: 1 };
        survey.file(path, read, &here, 0, &mut section);
        if survey.main_section.is_none() && survey.findings.is_empty() {
            survey.error(here, "there is no section [pgbouncer]", "put [pgbouncer] before the settings");
        }
        survey
    }

    /// The first line of the first file.
    pub(super) fn start(&self) -> Place {
        Place { file: self.files.first().cloned().unwrap_or_else(|| "".into()), line: 1 }
    }

    fn error(&mut self, place: Place, text: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding { place, severity: Severity::Error, text: text.into(), remedy: remedy.into() });
    }

    fn warn(&mut self, place: Place, text: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding { place, severity: Severity::Warning, text: text.into(), remedy: remedy.into() });
    }

    /// `from` is where the file is asked for; `depth` is 0 for the first one and one more for each include.
    fn file(&mut self, path: &Path, read: ReadFile<'_>, from: &Place, depth: usize, section: &mut Option<Section>) {
        let name: Arc<str> = path.to_string_lossy().into();
        if !self.files.contains(&name) {
            self.files.push(name.clone());
        }
        let text = match read(path) {
            Ok(text) => text,
            Err(error) => {
                let why = format!("could not load file \"{name}\": {}", io_error_text(&error));
                return self.error(from.clone(), why, "relative names count from the working directory of the daemon");
            }
        };
        let mut reader = Reader::new(&text);
        loop {
            let next = reader.next();
            let place = Place { file: name.clone(), line: reader.item_line() };
            match next {
                Ok(None) => return,
                Err(Unreadable { why, .. }) => {
                    self.unreadable(place, why);
                    reader.skip_line();
                }
                Ok(Some((Item::Section(word), _))) => *section = Some(self.section(word, place)),
                Ok(Some((Item::Pair { key, value }, _))) => self.pair(&key, value, place, *section),
                Ok(Some((Item::Include(_), _))) if depth == MAX_INCLUDE_DEPTH => {
                    let text = format!("files include each other more than {MAX_INCLUDE_DEPTH} deep");
                    self.error(place, text, "does a file include itself?");
                }
                Ok(Some((Item::Include(included), _))) => {
                    self.file(Path::new(included), read, &place, depth + 1, section);
                }
            }
        }
    }

    fn unreadable(&mut self, place: Place, why: Why) {
        match why {
            Why::Encoding => self.error(place, "the text is not UTF-8", "save the file as UTF-8"),
            Why::Syntax => self.error(
                place,
                "syntax error",
                "a line is `[section]`, `key = value`, `%include file`, or a comment behind `;` or `#`",
            ),
        }
    }

    fn section(&mut self, word: &str, place: Place) -> Section {
        match word {
            "pgbouncer" => {
                if let Some(earlier) = self.main_section.clone().filter(|_| !self.settings.is_empty()) {
                    let text = format!("this [pgbouncer] sets everything back that the one {} has set", by(&earlier));
                    self.warn(place.clone(), text, "keep one [pgbouncer]");
                }
                // as a load does
                self.config.settings.reset(|_| true);
                self.settings.clear();
                self.main_section = Some(place);
                Section::Pgbouncer
            }
            "databases" => Section::Databases,
            "users" => Section::Users,
            "peers" => Section::Peers,
            _ => {
                let remedy = match nearest(word, SECTIONS.iter().copied()) {
                    Some(name) => format!("did you mean [{name}]?"),
                    None => format!("the sections are [{}]", SECTIONS.join("], [")),
                };
                self.error(place, format!("unknown section [{word}]"), remedy);
                Section::Unknown
            }
        }
    }

    fn pair(&mut self, key: &str, value: &str, place: Place, section: Option<Section>) {
        match section {
            Some(Section::Unknown) => {}
            None => self.error(place, format!("\"{key}\" is in no section"), "put [pgbouncer] before the settings"),
            Some(Section::Pgbouncer) => self.setting(key, value, place),
            Some(Section::Databases) => self.database(key, value, place),
            Some(Section::Users) => self.user(key, value, place),
            Some(Section::Peers) => self.peer(key, value, place),
        }
    }

    fn setting(&mut self, key: &str, value: &str, place: Place) {
        match self.config.settings.set(key, value) {
            Ok(()) => self.comment_or_quotes(key, value, &place),
            Err(SetError::Unknown) => {
                let remedy = match nearest(key, keys::TABLE.iter().map(|key| key.name)) {
                    Some(name) => format!("did you mean \"{name}\"?"),
                    None => elsewhere(key),
                };
                return self.error(place, format!("unknown setting \"{key}\""), remedy);
            }
            Err(SetError::BadValue) => {
                let expects = keys::find(key).map_or("another value", |key| key.expects);
                let text = format!("invalid value \"{}\" for {key}", mask::refused_value(key, value));
                self.error(place.clone(), text, better(value, expects));
            }
            Err(SetError::ReservedAuthDbname) => {
                self.error(place.clone(), format!("{key} cannot be the console"), "name an entry of [databases]");
            }
        }
        let Some(known) = keys::find(key) else { return };
        if let Some(earlier) = self.settings.insert(known.name, place.clone()) {
            let text = format!("{key} is already set {}", by(&earlier));
            self.warn(place, text, "the last one counts: remove the other");
        }
    }

    /// What stands in the value although it was not meant to be part of it.
    fn comment_or_quotes(&mut self, key: &str, value: &str, place: &Place) {
        let query = key.ends_with("_query") || key.ends_with("_message") || key == "auth_ldap_options";
        if !query && (value.contains(" ;") || value.contains(" #") || value.contains("\t;") || value.contains("\t#")) {
            let text = format!("the comment is part of the value of {key}");
            self.warn(place.clone(), text, "give the comment a line of its own");
        }
        let quoted = |quote: char| value.len() > 1 && value.starts_with(quote) && value.ends_with(quote);
        if quoted('"') || quoted('\'') {
            self.warn(place.clone(), format!("the quotes are part of the value of {key}"), "leave them out");
        }
    }

    /// Reports the mistakes of an entry; true if it counts.
    fn mistakes(&mut self, mistakes: Vec<Mistake>, place: &Place) -> bool {
        let counts = mistakes.iter().all(|mistake| mistake.severity == Severity::Warning);
        for Mistake { severity, text, remedy } in mistakes {
            self.findings.push(Finding { place: place.clone(), severity, text, remedy });
        }
        counts
    }

    fn twice(&mut self, what: &str, earlier: Option<Place>, place: Place) {
        if let Some(earlier) = earlier {
            let text = format!("{what} is already there {}", by(&earlier));
            self.warn(place, text, "the last one counts, whole: remove the other");
        }
    }

    fn database(&mut self, name: &str, text: &str, place: Place) {
        if connstr::masked(text) != text && !self.with_passwords.contains(&place.file) {
            self.with_passwords.push(place.file.clone());
        }
        let (mut db, mistakes) = entries::database(name, text);
        // a load looks at the `*` string only when it is used; who checks wants to know before
        let counts = self.mistakes(mistakes, &place);
        let earlier = self.databases.insert(name.to_owned(), place.clone());
        self.twice(&format!("database \"{name}\""), earlier, place.clone());
        if name == "*" {
            self.config.wildcard = Some(text.to_owned());
        } else if counts {
            if keep_forced_user(&mut db, self.config.databases.get(name)) {
                let text = format!("database \"{name}\" keeps the user of its earlier line");
                self.warn(place, text, "remove the earlier line");
            }
            self.config.databases.insert(name.to_owned(), db);
        }
    }

    fn user(&mut self, name: &str, text: &str, place: Place) {
        let (user, mistakes) = entries::user(text);
        if self.mistakes(mistakes, &place) {
            self.config.users.insert(name.to_owned(), user);
        }
        let earlier = self.users.insert(name.to_owned(), place.clone());
        self.twice(&format!("user \"{name}\""), earlier, place);
    }

    fn peer(&mut self, id: &str, text: &str, place: Place) {
        let (peer, mistakes) = entries::peer(id, text);
        self.mistakes(mistakes, &place);
        if let Some(peer) = peer {
            let earlier = self.peers.insert(peer.id, place.clone());
            self.twice(&format!("peer {}", peer.id), earlier, place);
            self.config.peers.insert(peer.id, peer);
        }
    }
}

/// A place in a sentence.
pub(super) fn by(place: &Place) -> String {
    format!("in {}:{}", place.file, place.line)
}

/// Where a word belongs that is no setting.
fn elsewhere(word: &str) -> String {
    if connstr::DATABASE_KEYS.contains(&word) || connstr::USER_KEYS.contains(&word) {
        "it belongs into the lines of [databases] or [users]".to_owned()
    } else {
        "SHOW CONFIG lists the settings".to_owned()
    }
}

/// A remedy for a value that cannot be read.
fn better(value: &str, expects: &str) -> String {
    let word = value.to_ascii_lowercase();
    if expects == "0 or 1" {
        match word.as_str() {
            "on" | "yes" | "true" => return "write 1".to_owned(),
            "off" | "no" | "false" => return "write 0".to_owned(),
            _ => {}
        }
    }
    if value.contains([';', '#']) {
        return format!("write {expects}, and give the comment a line of its own");
    }
    format!("write {expects}")
}
