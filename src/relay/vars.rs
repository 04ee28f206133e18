//! Tracked parameters: what each client and each server connection has a session parameter set to, and the SETs that
//! make a server agree with the client that is about to use it.
//!
//! A set of values is immutable and shared: twenty thousand clients with the same settings hold one allocation
//! ([`Interner`]), and a client whose set is the server's own is recognised by its address. Source: the manual's
//! chapter on track_extra_parameters, and what PgBouncer is seen to send.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// Parameters that every pooler tracks, as they are spelled on output.
const BUILT_IN: [&str; 5] =
    ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name"];

/// Longest quoted value that is sent to a server; longer ones are passed over.
const MAX_QUOTED_BYTES: usize = 127;

/// The names that are tracked, in the order in which they are set and reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedNames(Box<[Box<str>]>);

impl TrackedNames {
    /// The built-in names and `extra`, in which repetitions and empty words are passed over.
    #[must_use]
    pub fn new<'a>(extra: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names: Vec<Box<str>> = BUILT_IN.iter().map(|&name| name.into()).collect();
        for name in extra.into_iter().map(str::trim).filter(|name| !name.is_empty()) {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name.into());
            }
        }
        Self(names.into())
    }

    /// The position of a name, spelled in any case.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known.eq_ignore_ascii_case(name))
    }

    #[must_use]
    pub fn name(&self, index: usize) -> Option<&str> {
        self.0.get(index).map(AsRef::as_ref)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: there are built-in names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// A value, or none, for each tracked name. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vars(Arc<[Option<Box<str>>]>);

impl Vars {
    /// Nothing is set.
    #[must_use]
    pub fn unset(names: &TrackedNames) -> Self {
        Self(names.0.iter().map(|_| None).collect())
    }

    /// A set with the given values, as a startup message brings them.
    #[must_use]
    pub fn from_values<'a>(names: &TrackedNames, values: impl IntoIterator<Item = (usize, &'a str)>) -> Self {
        let mut set: Vec<Option<Box<str>>> = names.0.iter().map(|_| None).collect();
        for (index, value) in values {
            if let Some(slot) = set.get_mut(index) {
                *slot = Some(value.into());
            }
        }
        Self(set.into())
    }

    #[must_use]
    pub fn get(&self, index: usize) -> Option<&str> {
        self.0.get(index)?.as_deref()
    }

    /// The set with one value changed; an index outside of it changes nothing.
    #[must_use]
    pub fn with(&self, index: usize, value: &str) -> Self {
        if self.get(index) == Some(value) || index >= self.0.len() {
            return self.clone();
        }
        let change = |(at, old): (usize, &Option<Box<str>>)| if at == index { Some(value.into()) } else { old.clone() };
        Self(self.0.iter().enumerate().map(change).collect())
    }

    /// The set with what is missing taken from `defaults`: a client's wishes, completed at its login with the pool's
    /// cached values, so that it does not inherit what the server's last user had set.
    #[must_use]
    pub fn or(&self, defaults: &Self) -> Self {
        if self.0.iter().all(Option::is_none) {
            return defaults.clone();
        }
        if self.0.iter().zip(defaults.0.iter()).all(|(mine, theirs)| mine.is_some() || theirs.is_none()) {
            return self.clone();
        }
        Self(
            self.0
                .iter()
                .zip(defaults.0.iter())
                .map(|(mine, theirs)| mine.as_ref().or(theirs.as_ref()).cloned())
                .collect(),
        )
    }

    /// Whether both are the very same allocation, and therefore equal.
    #[must_use]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The values that are set, with their names.
    pub fn iter<'a>(&'a self, names: &'a TrackedNames) -> impl Iterator<Item = (&'a str, &'a str)> {
        names.iter().zip(self.0.iter()).filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

/// Makes equal sets share one allocation, and forgets those that nobody else holds.
#[derive(Debug, Default)]
pub struct Interner {
    sets: BTreeSet<Vars>,
    /// Size at which the next sweep is due.
    sweep_at: usize,
}

/// Below this size a sweep is not worth it.
const SWEEP_LEAST: usize = 64;

impl Interner {
    /// The shared set equal to `vars`, which may become it.
    pub fn intern(&mut self, vars: Vars) -> Vars {
        if let Some(shared) = self.sets.get(&vars) {
            return shared.clone();
        }
        if self.sets.len() >= self.sweep_at.max(SWEEP_LEAST) {
            self.sweep();
        }
        self.sets.insert(vars.clone());
        vars
    }

    /// Drops the sets that only the interner holds. Called by itself whenever the number of sets has doubled.
    pub fn sweep(&mut self) {
        self.sets.retain(|vars| Arc::strong_count(&vars.0) > 1);
        self.sweep_at = self.sets.len().saturating_mul(2);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }
}

/// The text of the one query that gives a server the client's values; none when there is nothing to do.
///
/// Only names that both have a value for are compared, so a server is never asked for a parameter it does not know.
#[must_use]
pub fn difference(client: &Vars, server: &Vars, names: &TrackedNames) -> Option<String> {
    if client.ptr_eq(server) {
        return None;
    }
    let mut sql = String::new();
    for (index, name) in names.iter().enumerate() {
        let (Some(wanted), Some(actual)) = (client.get(index), server.get(index)) else { continue };
        if wanted.eq_ignore_ascii_case(actual) {
            continue;
        }
        if let Some(value) = assigned(name, wanted) {
            write!(sql, "SET {name}={value};").expect("writing to a String cannot fail");
        }
    }
    (!sql.is_empty()).then_some(sql)
}

/// The right side of an assignment. A server reports `search_path` with its elements quoted already.
fn assigned(name: &str, value: &str) -> Option<String> {
    if name.eq_ignore_ascii_case("search_path") {
        let empty = matches!(value, "" | "\"\"");
        return Some(if empty { "''".to_owned() } else { value.to_owned() });
    }
    let quoted = quote(value);
    (quoted.len() <= MAX_QUOTED_BYTES).then_some(quoted)
}

/// A SQL literal that means the same whatever standard_conforming_strings says.
fn quote(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 3);
    if value.contains('\\') {
        out.push('E');
    }
    out.push('\'');
    for c in value.chars() {
        if matches!(c, '\'' | '\\') {
            out.push(c);
        }
        out.push(c);
    }
    out.push('\'');
    out
}

/// The client's set once the server has accepted its values: the server's own wording (`ISO` becomes `ISO, MDY`), so
/// that the two do not look different for ever. None when nothing changes.
#[must_use]
pub fn canonicalise(client: &Vars, server: &Vars) -> Option<Vars> {
    if client.ptr_eq(server) {
        return None;
    }
    let wording = |(mine, theirs): (&Option<Box<str>>, &Option<Box<str>>)| match (mine, theirs) {
        (Some(_), Some(theirs)) => Some(theirs.clone()),
        _ => mine.clone(),
    };
    let merged = Vars(client.0.iter().zip(server.0.iter()).map(wording).collect());
    if merged == *client {
        None
    } else if merged == *server {
        Some(server.clone())
    } else {
        Some(merged)
    }
}

/// Appends a ParameterStatus message.
pub fn parameter_status(name: &str, value: &str, out: &mut Vec<u8>) {
    let len = u32::try_from(name.len() + value.len() + 6).expect("names and values came in messages of 32-bit length");
    out.push(b'S');
    out.extend_from_slice(&len.to_be_bytes());
    for text in [name, value] {
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    }
}

/// Appends the parameters of a login reply: what the pool's first server reported and is not tracked (`untracked`,
/// whole messages in their order), then the tracked ones: the client's wish, or else the server's value.
pub fn login_parameters(untracked: &[u8], tracked: &Vars, client: &Vars, names: &TrackedNames, out: &mut Vec<u8>) {
    out.extend_from_slice(untracked);
    for (index, name) in names.iter().enumerate() {
        if let Some(value) = client.get(index).or_else(|| tracked.get(index)) {
            parameter_status(name, value, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Interner, TrackedNames, Vars, canonicalise, difference, login_parameters, parameter_status};

    fn names() -> TrackedNames {
        TrackedNames::new(["IntervalStyle", " timezone", "intervalstyle", "", "search_path"])
    }

    fn vars(values: &[(&str, &str)]) -> Vars {
        let names = names();
        Vars::from_values(&names, values.iter().map(|(name, value)| (names.index_of(name).unwrap(), *value)))
    }

    #[test]
    fn names_keep_their_order_and_spelling() {
        let names = names();
        let all: Vec<&str> = names.iter().collect();
        assert_eq!(
            all,
            [
                "DateStyle",
                "client_encoding",
                "TimeZone",
                "standard_conforming_strings",
                "application_name",
                "IntervalStyle",
                "search_path"
            ]
        );
        assert_eq!(names.index_of("datestyle"), Some(0));
        assert_eq!(names.index_of("INTERVALSTYLE"), Some(5));
        assert_eq!(names.index_of("work_mem"), None);
    }

    #[test]
    fn assignments() {
        let long_ok = "x".repeat(125);
        let long_bad = "x".repeat(126);
        for (name, client, server, sql) in [
            ("DateStyle", "ISO", "ISO, MDY", Some("SET DateStyle='ISO';")),
            ("datestyle", "iso, mdy", "ISO, MDY", None),
            ("client_encoding", "UTF8", "UTF8", None),
            ("application_name", "it's", "", Some("SET application_name='it''s';")),
            ("application_name", "", "psql", Some("SET application_name='';")),
            ("application_name", "a\\b'c", "", Some("SET application_name=E'a\\\\b''c';")),
            ("application_name", "\u{c4}", "\u{e4}", Some("SET application_name='\u{c4}';")),
            ("application_name", &long_ok, "", Some(&*format!("SET application_name='{long_ok}';"))),
            ("application_name", &long_bad, "", None),
            ("search_path", "\"$user\", public", "public", Some("SET search_path=\"$user\", public;")),
            ("search_path", "\"\"", "public", Some("SET search_path='';")),
        ] {
            let text = difference(&vars(&[(name, client)]), &vars(&[(name, server)]), &names());
            assert_eq!(text.as_deref(), sql, "{name} {client}");
        }
    }

    #[test]
    fn all_assignments_are_one_query_in_order() {
        let client = vars(&[("application_name", "a"), ("TimeZone", "UTC"), ("IntervalStyle", "iso_8601")]);
        let server = vars(&[("application_name", ""), ("TimeZone", "GMT"), ("DateStyle", "ISO, MDY")]);
        let text = difference(&client, &server, &names());
        assert_eq!(text.as_deref(), Some("SET TimeZone='UTC';SET application_name='a';"));
        assert_eq!(difference(&client, &client.clone(), &names()), None);
    }

    #[test]
    fn canonical_wording_replaces_the_clients() {
        let client = vars(&[("DateStyle", "ISO"), ("IntervalStyle", "iso_8601")]);
        let server = vars(&[("DateStyle", "ISO, MDY"), ("TimeZone", "UTC")]);
        let merged = canonicalise(&client, &server).unwrap();
        assert_eq!(merged, vars(&[("DateStyle", "ISO, MDY"), ("IntervalStyle", "iso_8601")]));
        assert_eq!(canonicalise(&merged, &server), None);
        let same = canonicalise(&vars(&[("DateStyle", "ISO"), ("TimeZone", "utc")]), &server).unwrap();
        assert!(same.ptr_eq(&server));
    }

    #[test]
    fn changed_sets_are_new_and_unchanged_ones_are_not() {
        let old = vars(&[("TimeZone", "UTC")]);
        assert!(old.with(2, "UTC").ptr_eq(&old));
        assert!(old.with(99, "x").ptr_eq(&old));
        let new = old.with(0, "ISO");
        assert_eq!((old.get(0), new.get(0), new.get(2)), (None, Some("ISO"), Some("UTC")));
    }

    #[test]
    fn a_clients_wishes_are_completed_with_the_pools_values() {
        let cached = vars(&[("DateStyle", "ISO, MDY"), ("application_name", "")]);
        assert!(vars(&[]).or(&cached).ptr_eq(&cached));
        let wishes = vars(&[("DateStyle", "German")]);
        let complete = vars(&[("DateStyle", "German"), ("application_name", "")]);
        assert_eq!(wishes.or(&cached), complete);
        assert!(complete.or(&cached).ptr_eq(&complete));
        // the server's last user left its name behind
        let server = cached.with(4, "q");
        let sql = difference(&vars(&[]).or(&cached), &server, &names());
        assert_eq!(sql.as_deref(), Some("SET application_name='';"));
    }

    #[test]
    fn equal_sets_are_shared_and_forgotten() {
        let mut interner = Interner::default();
        let a = interner.intern(vars(&[("TimeZone", "UTC")]));
        let b = interner.intern(vars(&[("TimeZone", "UTC")]));
        assert!(a.ptr_eq(&b));
        for n in 0..10_000 {
            let _gone = interner.intern(vars(&[("application_name", &n.to_string())]));
        }
        assert!(interner.len() <= 128, "{}", interner.len());
        let c = interner.intern(vars(&[("TimeZone", "UTC")]));
        assert!(a.ptr_eq(&c));
        drop((a, b, c));
        interner.sweep();
        assert!(interner.is_empty());
    }

    #[test]
    fn login_reply_has_the_clients_wishes() {
        let mut untracked = Vec::new();
        parameter_status("server_version", "15.1", &mut untracked);
        let tracked = vars(&[("DateStyle", "ISO, MDY"), ("application_name", "")]);
        let client = vars(&[("DateStyle", "iso"), ("IntervalStyle", "postgres")]);
        let mut out = Vec::new();
        login_parameters(&untracked, &tracked, &client, &names(), &mut out);
        assert_eq!(
            out,
            b"S\0\0\0\x18server_version\x0015.1\0S\0\0\0\x12DateStyle\0iso\0S\0\0\0\x16application_name\0\0\
              S\0\0\0\x1bIntervalStyle\0postgres\0"
        );
    }
}
