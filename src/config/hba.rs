//! Access rules (`auth_hba_file`): who may come from where, and how he proves who he is.
//!
//! One rule on a line, the first that fits decides. Lines with a mistake are left out, with warnings: PgBouncer's texts.
//! Sources: the manual's "HBA file format" and the warnings of PgBouncer.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LogLine;
use super::ident::{Map, Maps};
use super::ldap;
use super::load::{ReadFile, io_error_text};
use super::value::is_c_space;
use super::words::{Kind, Words, lines};

/// `@file`s in `@file`s below the rules.
const MAX_FILE_DEPTH: usize = 10;

/// What a rule demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    Trust,
    Reject,
    Md5,
    Password,
    Peer,
    Cert,
    ScramSha256,
    /// With the options of the rule.
    Ldap(ldap::Text),
}

/// What kind of connection a client asked for, as far as rules care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replicating {
    /// Not, or logically: such a connection has a database like any other.
    #[default]
    No,
    /// Physically: only rules for `replication` fit.
    Physical,
}

/// A login as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// None: a Unix socket.
    pub address: Option<IpAddr>,
    /// The connection is encrypted.
    pub tls: bool,
    /// As the client asked for it.
    pub database: &'a str,
    /// As the client gave it.
    pub user: &'a str,
    pub replicating: Replicating,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands in the file, from 1 on.
    pub line: usize,
    pub method: Method,
    /// For peer and cert.
    pub map: Option<Arc<Map>>,
    kind: Connection,
    databases: Names,
    users: Names,
}

/// All rules of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Local,
    Host { tls: Option<bool>, from: Addresses },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    All,
    V4 { net: u32, mask: u32 },
    V6 { net: u128, mask: u128 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    same_user: bool,
    replication: bool,
    listed: BTreeSet<String>,
}

impl Rules {
    /// The first rule that fits.
    #[must_use]
    pub fn find(&self, who: &Subject<'_>) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.fits(who))
    }

    /// The number of rules that could be read.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Rule {
    fn fits(&self, who: &Subject<'_>) -> bool {
        let reached = match (self.kind, who.address) {
            (Connection::Local, address) => address.is_none(),
            (Connection::Host { tls, from }, Some(address)) => {
                tls.is_none_or(|tls| tls == who.tls) && from.contain(address)
            }
            (Connection::Host { .. }, None) => false,
        };
        let database = match who.replicating {
            Replicating::Physical => self.databases.replication,
            Replicating::No => self.databases.contain(who.database, who),
        };
        reached && database && self.users.contain(who.user, who)
    }
}

impl Addresses {
    fn contain(self, address: IpAddr) -> bool {
        match (self, address.to_canonical()) {
            (Self::All, _) => true,
            (Self::V4 { net, mask }, IpAddr::V4(address)) => address.to_bits() & mask == net,
            (Self::V6 { net, mask }, IpAddr::V6(address)) => address.to_bits() & mask == net,
            (Self::V4 { .. }, IpAddr::V6(_)) | (Self::V6 { .. }, IpAddr::V4(_)) => false,
        }
    }
}

impl Names {
    /// `name` is the database or the user of `who`.
    fn contain(&self, name: &str, who: &Subject<'_>) -> bool {
        self.all || (self.same_user && who.database == who.user) || self.listed.contains(name)
    }
}

/// The line to log when the file cannot be read.
#[must_use]
pub fn unreadable(path: &str, error: &io::Error) -> LogLine {
    LogLine::error(format!("could not open hba config file {path}: {}", io_error_text(error)))
}

/// Reads the text of the file `path`: its rules, and the lines to log. `read` gets the `@file`s.
#[must_use]
pub fn parse(text: &[u8], path: &Path, maps: &Maps, read: ReadFile<'_>) -> (Rules, Vec<LogLine>) {
    let mut parser = Parser { path, maps, read, number: 0, log: Vec::new() };
    let mut rules = Rules::default();
    for (number, line) in lines(text) {
        parser.number = number;
        match line.and_then(|line| parser.line(line, number)) {
            Some(rule) => rules.0.extend(rule),
            None => parser.warn(format!("could not parse hba config line {number}")),
        }
    }
    (rules, parser.log)
}

struct Parser<'a> {
    path: &'a Path,
    maps: &'a Maps,
    read: ReadFile<'a>,
    /// The line at hand.
    number: usize,
    log: Vec<LogLine>,
}

/// Whose names are being read: `replication` is a kind of database, and no user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NamesOf {
    Databases,
    Users,
}

impl NamesOf {
    /// Is this a keyword of PostgreSQL's that rules here cannot be made of?
    fn lack(self, word: &str) -> bool {
        word == "samerole" || word == "samegroup" || (self == Self::Users && word == "replication")
    }
}

impl Parser<'_> {
    fn warn(&mut self, text: String) {
        self.log.push(LogLine::warning(text).at(self.number));
    }

    /// Logs what is wrong with a line; the line then is left out.
    fn refuse<T>(&mut self, number: usize, what: impl std::fmt::Display) -> Option<T> {
        self.warn(format!("hba line {number}: {what}"));
        None
    }

    /// Outer `None`: a mistake. Inner `None`: nothing but blanks and comment.
    fn line(&mut self, line: &str, number: usize) -> Option<Option<Rule>> {
        let mut words = Words::new(line);
        if words.at_end() {
            return Some(None);
        }
        let Some(tls) = connection_type(&mut words) else { return self.refuse(number, "unknown type") };
        let databases = self.names(&mut words, NamesOf::Databases)?;
        let users = self.names(&mut words, NamesOf::Users)?;
        let kind = match tls {
            None => Connection::Local,
            Some(tls) => Connection::Host { tls, from: self.addresses(&mut words, number)? },
        };
        let Some(method) = method(&mut words) else {
            let found = words.text().to_owned();
            return self.refuse(number, format_args!("unsupported method: buf={found}"));
        };
        let map = self.map(&mut words, number)?;
        if !words.at_end() {
            return self.refuse(number, "unsupported parameters");
        }
        Some(Some(Rule { line: number, method, map, kind, databases, users }))
    }

    fn names(&mut self, words: &mut Words<'_>, of: NamesOf) -> Option<Names> {
        let mut names = Names::default();
        self.list(words, of, self.path, 0, &mut names)?;
        Some(names)
    }

    fn list(&mut self, words: &mut Words<'_>, of: NamesOf, file: &Path, depth: usize, into: &mut Names) -> Option<()> {
        loop {
            if words.eat("all") {
                into.all = true;
            } else if words.eat("sameuser") {
                into.same_user = true;
            } else if of == NamesOf::Databases && words.eat("replication") {
                into.replication = true;
            } else {
                self.name(words, of, file, depth, into)?;
            }
            if !words.eat_comma() {
                return Some(());
            }
        }
    }

    fn name(&mut self, words: &mut Words<'_>, of: NamesOf, file: &Path, depth: usize, into: &mut Names) -> Option<()> {
        let plain = words.kind() == Kind::Plain;
        let name = words.any()?;
        if plain && of.lack(&name) {
            self.warn(format!("{name} is not supported"));
            return None;
        }
        match name.strip_prefix('@') {
            Some(file_name) if plain => self.file(file_name, of, file, depth, into),
            _ if plain && name.starts_with('+') => None,
            _ => {
                into.listed.insert(name);
                Some(())
            }
        }
    }

    /// Adds the names in a file, whose place is relative to that of the file it is named in. As in PgBouncer a line ends
    /// where its list does: `a, b c` is `a` and `b`.
    fn file(&mut self, name: &str, of: NamesOf, parent: &Path, depth: usize, into: &mut Names) -> Option<()> {
        let path = parent.parent().map_or_else(|| PathBuf::from(name), |dir| dir.join(name));
        if depth == MAX_FILE_DEPTH {
            self.warn(format!("too many files of names inside each other: {}", path.display()));
            return None;
        }
        let text = match (self.read)(&path) {
            Ok(text) => text,
            Err(error) => {
                self.warn(format!("could not open file {}: {}", path.display(), io_error_text(&error)));
                return None;
            }
        };
        for (_, line) in lines(&text) {
            let mut words = Words::new(line?);
            if !words.at_end() {
                self.list(&mut words, of, &path, depth + 1, into)?;
            }
        }
        Some(())
    }

    fn addresses(&mut self, words: &mut Words<'_>, number: usize) -> Option<Addresses> {
        if words.eat("all") {
            return Some(Addresses::All);
        }
        let kind = words.kind();
        let Some(text) = words.plain() else {
            let (code, found) = (kind.code(), words.text().to_owned());
            return self.refuse(number, format_args!("did not find address - {code} - '{found}'"));
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => {
                words.shorten_last(address.len());
                (address, Some(bits))
            }
            None => (text.as_str(), None),
        };
        let Ok(ip) = address.parse::<IpAddr>() else {
            return self.refuse(number, format_args!("failed to parse address - {address}"));
        };
        let mask = match bits {
            Some(bits) => mask_of_bits(ip, bits).or_else(|| self.refuse(number, "invalid mask"))?,
            None => self.mask(words, ip, number)?,
        };
        Some(self.net(ip, mask, number))
    }

    fn mask(&mut self, words: &mut Words<'_>, ip: IpAddr, number: usize) -> Option<IpAddr> {
        let Some(text) = words.plain() else { return self.refuse(number, "did not find mask") };
        match text.parse::<IpAddr>() {
            Ok(mask) if mask.is_ipv4() == ip.is_ipv4() => Some(mask),
            _ => self.refuse(number, format_args!("failed to parse mask: {text}")),
        }
    }

    /// An address with bits outside of its mask stays as it is, and fits nobody.
    fn net(&mut self, ip: IpAddr, mask: IpAddr, number: usize) -> Addresses {
        let (net, fits) = match (ip, mask) {
            (IpAddr::V6(ip), IpAddr::V6(mask)) => {
                let (net, mask) = (ip.to_bits(), mask.to_bits());
                (Addresses::V6 { net, mask }, net & mask == net)
            }
            (IpAddr::V4(ip), IpAddr::V4(mask)) => {
                let (net, mask) = (ip.to_bits(), mask.to_bits());
                (Addresses::V4 { net, mask }, net & mask == net)
            }
            // the callers see to it that both are of one family
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                (Addresses::V4 { net: u32::MAX, mask: 0 }, false)
            }
        };
        if !fits {
            let path = self.path.display();
            self.warn(format!("address does not match mask in {path} line #{number}: {ip} / {mask}"));
        }
        net
    }

    /// `map=NAME`, if anything follows the method. Outer `None`: a mistake.
    fn map(&mut self, words: &mut Words<'_>, number: usize) -> Option<Option<Arc<Map>>> {
        let Some(word) = words.plain() else { return Some(None) };
        let Some(name) = word.strip_prefix("map=") else {
            let what = format!("Ident map {word} is malformed. It is not in map=value format.");
            return self.refuse(number, what);
        };
        match self.maps.get(name) {
            Some(map) => Some(Some(Arc::clone(map))),
            None => self.refuse(number, format_args!("Ident map {name} is not found in ident config file")),
        }
    }
}

/// Outer `None`: no such type. `Some(None)`: local. Then whether TLS is a must, forbidden, or does not matter.
#[allow(clippy::option_option)]
fn connection_type(words: &mut Words<'_>) -> Option<Option<Option<bool>>> {
    if words.eat("local") {
        return Some(None);
    }
    [("host", None), ("hostssl", Some(true)), ("hostnossl", Some(false))]
        .into_iter()
        .find_map(|(word, tls)| words.eat(word).then_some(Some(tls)))
}

/// What stands before a comment: a `#` outside of quotes at the beginning of a word.
fn before_comment(text: &str) -> &str {
    let (mut quoted, mut begins) = (false, true);
    let comment = text.char_indices().find(|&(_, c)| {
        let found = c == '#' && begins && !quoted;
        quoted ^= c == '"';
        begins = is_c_space(c);
        found
    });
    comment.map_or(text, |(at, _)| &text[..at])
}

fn method(words: &mut Words<'_>) -> Option<Method> {
    if let Some(options) = words.all_behind("ldap") {
        return Some(Method::Ldap(ldap::Text(before_comment(options).trim_matches(is_c_space).into())));
    }
    [
        ("trust", Method::Trust),
        ("reject", Method::Reject),
        ("md5", Method::Md5),
        ("password", Method::Password),
        ("peer", Method::Peer),
        ("cert", Method::Cert),
        ("scram-sha-256", Method::ScramSha256),
    ]
    .into_iter()
    .find_map(|(word, method)| words.eat(word).then_some(method))
}

/// The mask with that many leading bits; C's reader of numbers, which PgBouncer uses, lets a plus pass.
fn mask_of_bits(ip: IpAddr, text: &str) -> Option<IpAddr> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let bits: u32 = digits.then(|| text.parse().ok())??;
    match ip {
        IpAddr::V4(_) if bits <= 32 => Some(IpAddr::V4(u32::MAX.checked_shl(32 - bits).unwrap_or(0).into())),
        IpAddr::V6(_) if bits <= 128 => Some(IpAddr::V6(u128::MAX.checked_shl(128 - bits).unwrap_or(0).into())),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests;
