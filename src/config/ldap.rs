//! The options of LDAP logins (`auth_ldap_options`, and what follows `ldap` in an access rule): how a directory is asked
//! whether a password is right.
//!
//! `key=value` pairs between blanks or commas; keys and values may be in double quotes, in which `""` is a quote. Keys are
//! those of PostgreSQL's `pg_hba.conf`. What does not fit together is found out here, when somebody logs in.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::mask::{self, MASK};
use super::value::is_c_space;

/// Options as written: they may hold the password of the user who searches.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub Arc<str>);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Text(..)")
    }
}

/// How the connection to the directory is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    #[default]
    None,
    /// TLS from the first byte.
    Ldaps,
    /// TLS after a request.
    StartTls,
}

/// Below the base of a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    Base,
    OneLevel,
    #[default]
    Subtree,
}

/// How the directory's name for a user is found.
#[derive(Debug, PartialEq, Eq)]
pub enum How {
    /// It is the user's name between these two.
    Between { prefix: String, suffix: String },
    /// It is looked for.
    Search(Search),
}

/// A search for a user.
#[derive(PartialEq, Eq)]
pub struct Search {
    pub base: String,
    pub scope: Scope,
    /// Who searches; empty is anybody.
    pub bind_dn: String,
    pub bind_password: Zeroizing<String>,
    /// With `$username` for the user's name.
    filter: String,
}

/// Without the password.
impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search").field("base", &self.base).field("filter", &self.filter).finish_non_exhaustive()
    }
}

/// Understood options.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Tried in order; none: the directory's own records in DNS name them.
    pub servers: Vec<String>,
    pub port: u16,
    pub security: Security,
    pub how: How,
}

/// What the machine's own LDAP configuration (ldap.conf) says about the certificates of directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub ca_file: Option<String>,
    pub ca_dir: Option<String>,
    /// False: any certificate will do.
    pub verify: bool,
}

impl Default for Trust {
    fn default() -> Self {
        Self { ca_file: None, ca_dir: None, verify: true }
    }
}

impl Trust {
    /// Takes in the text of a file. Names do not care for case; what is said later counts.
    pub fn read(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.trim().split_once(is_c_space) {
                self.set(name, value.trim());
            }
        }
    }

    /// Takes in one option, by its name in files.
    pub fn set(&mut self, name: &str, value: &str) {
        match name.to_ascii_uppercase().as_str() {
            "TLS_CACERT" => self.ca_file = Some(value.to_owned()),
            "TLS_CACERTDIR" => self.ca_dir = Some(value.to_owned()),
            "TLS_REQCERT" => self.verify = !["never", "allow"].iter().any(|word| value.eq_ignore_ascii_case(word)),
            _ => {}
        }
    }
}

/// The scheme's own port.
const LDAP_PORT: u16 = 389;
const LDAPS_PORT: u16 = 636;

/// Characters of user names that mean something in a filter.
const SPECIAL: &[char] = &['*', '(', ')', '\\', '/'];

impl Search {
    /// The filter for one user.
    ///
    /// # Errors
    /// The name could be taken for a part of the filter.
    pub fn filter(&self, user: &str) -> Result<String, String> {
        if user.contains(SPECIAL) || user.contains('\0') {
            return Err("invalid character in user name for LDAP authentication".to_owned());
        }
        Ok(self.filter.replace("$username", user))
    }
}

impl Options {
    /// The name of the DNS record that lists the directory's servers, from the `dc=` parts of the base.
    #[must_use]
    pub fn service_record(&self) -> Option<String> {
        let How::Search(search) = &self.how else { return None };
        let part = |part: &str| {
            let (key, value) = part.split_once('=')?;
            key.trim().eq_ignore_ascii_case("dc").then(|| value.trim().to_owned())
        };
        let labels: Vec<String> = search.base.split(',').filter_map(part).filter(|label| !label.is_empty()).collect();
        (!labels.is_empty()).then(|| format!("_ldap._tcp.{}.", labels.join(".")))
    }

    /// Reads options.
    ///
    /// # Errors
    /// What is wrong with them, for the log.
    pub fn parse(text: &str) -> Result<Self, String> {
        Given::read(text)?.options()
    }
}

/// Options as they may be shown: without the password, and without all that may belong to one if they cannot be read.
#[must_use]
pub fn masked(text: &str) -> String {
    const KEY: &str = "ldapbindpasswd";
    if Given::read(text).is_err() {
        return mask::refused(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(KEY) {
        let (head, tail) = rest.split_at(at + KEY.len());
        out.push_str(head);
        rest = tail;
        let after = tail.strip_prefix('"').unwrap_or(tail);
        if let Some(value) = after.strip_prefix('=') {
            out.push_str(&tail[..tail.len() - value.len()]);
            out.push_str(MASK);
            rest = word(value, ',').map_or("", |(_, rest)| rest);
        }
    }
    out.push_str(rest);
    out
}

/// What may be shown of options that cannot be read.
fn head(text: &str) -> &str {
    &text[..text.find('=').unwrap_or(text.len()).min(text.floor_char_boundary(20))]
}

/// A word in quotes, or up to a blank or `end`. `None`: a quote is not closed.
fn word(text: &str, end: char) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let at = text.find(|c| is_c_space(c) || c == end).unwrap_or(text.len());
        return Some((text[..at].to_owned(), &text[at..]));
    };
    let mut word = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        word.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                word.push('"');
                rest = after;
            }
            None => return Some((word, after)),
        }
    }
}

/// Values as given.
#[derive(Default)]
struct Given {
    servers: String,
    port: Option<u16>,
    ldaps: bool,
    start_tls: bool,
    prefix: Option<String>,
    suffix: Option<String>,
    base: Option<String>,
    bind_dn: Option<String>,
    bind_password: Option<Zeroizing<String>>,
    attribute: Option<String>,
    filter: Option<String>,
    scope: Scope,
}

impl Given {
    fn read(text: &str) -> Result<Self, String> {
        let mut given = Self::default();
        let mut rest = text;
        loop {
            rest = rest.trim_start_matches(|c| is_c_space(c) || c == ',');
            if rest.is_empty() {
                return Ok(given);
            }
            let (key, after) =
                word(rest, '=').ok_or_else(|| format!("malformed LDAP options at \"{}\"", given.shown(head(rest))))?;
            let Some(after) = after.strip_prefix('=') else { return Err(given.invalid(&key)) };
            let (value, after) =
                word(after, ',').ok_or_else(|| format!("malformed LDAP option: \"{}\"", given.shown(&key)))?;
            given.take(&key, value)?;
            rest = after;
        }
    }

    /// A word that is out of place: behind the password it may be more of that.
    const fn shown<'a>(&self, word: &'a str) -> &'a str {
        if self.bind_password.is_some() { MASK } else { word }
    }

    fn invalid(&self, key: &str) -> String {
        format!("invalid LDAP option: \"{}\"", self.shown(key))
    }

    fn take(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "ldapserver" => self.servers = value,
            "ldapport" => self.port = Some(port(&value)?),
            "ldapscheme" => self.ldaps = scheme(&value)?,
            "ldaptls" => self.start_tls = value == "1",
            "ldapprefix" => self.prefix = Some(value),
            "ldapsuffix" => self.suffix = Some(value),
            "ldapbasedn" => self.base = Some(value),
            "ldapbinddn" => self.bind_dn = Some(value),
            "ldapbindpasswd" => self.bind_password = Some(value.into()),
            "ldapsearchattribute" => self.attribute = Some(value),
            "ldapsearchfilter" => self.filter = Some(value),
            "ldapurl" => self.url(&value)?,
            _ => return Err(self.invalid(key)),
        }
        Ok(())
    }

    /// `ldap[s]://host:port/base?attribute?scope?filter` replaces what was given before.
    fn url(&mut self, url: &str) -> Result<(), String> {
        let invalid = || format!("invalid LDAP URL: \"{url}\"");
        let (name, rest) = url.split_once("://").ok_or_else(invalid)?;
        self.ldaps = scheme(&name.to_ascii_lowercase())?;
        let (place, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, number) = match place.rsplit_once(':') {
            Some((host, number)) if !number.contains(']') => (host, Some(port(number)?)),
            _ => (place, None),
        };
        (self.servers, self.port) = (unescaped(host).ok_or_else(invalid)?, number);
        let mut parts = rest.split('?').map(unescaped);
        let mut part = || match parts.next() {
            Some(Some(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(None) => Err(invalid()),
            None => Ok(None),
        };
        self.base = part()?;
        // of several the first one counts
        self.attribute = part()?.map(|list| list.split(',').next().unwrap_or_default().to_owned());
        self.scope = match part()?.as_deref() {
            None | Some("sub" | "subtree") => Scope::Subtree,
            Some("base") => Scope::Base,
            Some("one") => Scope::OneLevel,
            Some(_) => return Err(invalid()),
        };
        self.filter = part()?;
        if self.base.is_none() {
            self.base = Some(String::new());
        }
        Ok(())
    }

    fn options(self) -> Result<Options, String> {
        let default_port = if self.ldaps { LDAPS_PORT } else { LDAP_PORT };
        let (port, security) = (self.port.unwrap_or(default_port), self.security());
        let servers = self.servers.split_whitespace().map(str::to_owned).collect();
        Ok(Options { servers, port, security, how: self.how()? })
    }

    const fn security(&self) -> Security {
        match (self.ldaps, self.start_tls) {
            (true, _) => Security::Ldaps,
            (false, true) => Security::StartTls,
            (false, false) => Security::None,
        }
    }

    fn how(self) -> Result<How, String> {
        let searching = self.base.is_some()
            || self.bind_dn.is_some()
            || self.bind_password.is_some()
            || self.attribute.is_some()
            || self.filter.is_some();
        if self.prefix.is_some() || self.suffix.is_some() {
            if searching {
                return Err(
                    "cannot use ldapbasedn, ldapbinddn, ldapbindpasswd, ldapsearchattribute, ldapsearchfilter, \
                            or ldapurl together with ldapprefix or ldapsuffix"
                        .to_owned(),
                );
            }
            let (prefix, suffix) = (self.prefix.unwrap_or_default(), self.suffix.unwrap_or_default());
            return Ok(How::Between { prefix, suffix });
        }
        let Some(base) = self.base else {
            return Err("LDAP authentication needs ldapbasedn, ldapprefix, or ldapsuffix".to_owned());
        };
        let filter = match (self.attribute, self.filter) {
            (Some(_), Some(_)) => {
                return Err("cannot use ldapsearchattribute together with ldapsearchfilter".to_owned());
            }
            (_, Some(filter)) if filter.starts_with('(') => filter,
            (_, Some(filter)) => format!("({filter})"),
            (attribute, None) => format!("({}=$username)", attribute.as_deref().unwrap_or("uid")),
        };
        Ok(How::Search(Search {
            base,
            scope: self.scope,
            bind_dn: self.bind_dn.unwrap_or_default(),
            bind_password: self.bind_password.unwrap_or_default(),
            filter,
        }))
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|&port| port > 0).ok_or_else(|| format!("invalid LDAP port number: \"{text}\""))
}

/// Is it ldaps?
fn scheme(text: &str) -> Result<bool, String> {
    match text {
        "ldap" => Ok(false),
        "ldaps" => Ok(true),
        _ => Err(format!("invalid ldapscheme value: \"{text}\"")),
    }
}

/// `%xx` is a byte.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(options: &Options) -> &Search {
        match &options.how {
            How::Search(search) => search,
            How::Between { .. } => panic!("no search"),
        }
    }

    #[test]
    fn names_between_prefix_and_suffix() {
        let text = "ldapserver=\"a b\", ldapprefix=\"cn=\" ldapsuffix=\", dc=x, \"\"dc=y\" ldapport=1389 ldaptls=1";
        let options = Options::parse(text).expect("valid");
        assert_eq!(options.servers, ["a", "b"]);
        assert_eq!((options.port, options.security), (1389, Security::StartTls));
        let how = How::Between { prefix: "cn=".to_owned(), suffix: ", dc=x, \"dc=y".to_owned() };
        assert_eq!(options.how, how);
        let options = Options::parse("\"ldapserver\"=a,ldapsuffix=@x,ldapscheme=ldaps").expect("valid");
        assert_eq!((options.port, options.security), (636, Security::Ldaps));
    }

    #[test]
    fn searches() {
        let text = "ldapserver=s ldapbasedn=\"dc=example,dc=org\" ldapbinddn=cn=me ldapbindpasswd=geheim";
        let options = Options::parse(text).expect("valid");
        let found = search(&options);
        assert_eq!((&*found.base, &*found.bind_dn, &**found.bind_password), ("dc=example,dc=org", "cn=me", "geheim"));
        assert_eq!(found.filter("joe").as_deref(), Ok("(uid=joe)"));
        for name in ["*", "a(b", "a)", "a\\b", "a/b"] {
            assert!(found.filter(name).is_err(), "{name}");
        }
        assert_eq!(options.service_record().as_deref(), Some("_ldap._tcp.example.org."));
        assert!(!format!("{options:?}").contains("geheim"));
        for (text, filter) in [
            ("ldapbasedn=x ldapsearchattribute=mail", "(mail=joe)"),
            ("ldapbasedn=x ldapsearchfilter=\"(|(a=$username)(b=$username))\"", "(|(a=joe)(b=joe))"),
            ("ldapbasedn=x ldapsearchfilter=a=$username", "(a=joe)"),
        ] {
            assert_eq!(search(&Options::parse(text).expect(text)).filter("joe").as_deref(), Ok(filter));
        }
    }

    #[test]
    fn passwords_are_masked() {
        for (text, shown) in [
            ("ldapserver=s", "ldapserver=s"),
            ("ldapbindpasswd=geheim", "ldapbindpasswd=..."),
            ("ldapbindpasswd=\"ge \"\"heim\", ldapserver=s", "ldapbindpasswd=..., ldapserver=s"),
            ("\"ldapbindpasswd\"=geheim ldapport=1", "\"ldapbindpasswd\"=... ldapport=1"),
            ("ldapserver=s ldapbindpasswd=my geheim", "ldapserver=s ldapbindpasswd=..."),
            ("ldapbindpasswd= geheim", "ldapbindpasswd= ..."),
            ("ldapbindpasswd=a geheim=b", "ldapbindpasswd=..."),
            ("LDAPBINDPASSWD=geheim ldapserver=s", "LDAPBINDPASSWD=..."),
            ("ldapserver=s ldapbindpassword=\"geheim\"", "ldapserver=s ldapbindpassword=..."),
            ("ldapbindpasswd=\"geheim", "ldapbindpasswd=..."),
            ("ldapbindpasswd", "ldapbindpasswd"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }

    #[test]
    fn urls() {
        let url = "ldapserver=old ldapurl=\"ldaps://h:1/dc=a,dc=%20b?mail?one?(x=1)\"";
        assert!(Options::parse(url).is_err(), "attribute and filter");
        let options = Options::parse("ldapurl=\"ldaps://h:1/dc=a,dc=%20b?mail?one\"").expect("valid");
        assert_eq!((&*options.servers, options.port, options.security), (&["h".to_owned()][..], 1, Security::Ldaps));
        let found = search(&options);
        assert_eq!((&*found.base, found.scope), ("dc=a,dc= b", Scope::OneLevel));
        assert_eq!(found.filter("u").as_deref(), Ok("(mail=u)"));
        let options = Options::parse("ldapurl=ldap://h/b???(x=$username)").expect("valid");
        assert_eq!((options.port, search(&options).filter("u").as_deref()), (389, Ok("(x=u)")));
        let options = Options::parse("ldapurl=\"LDAP://h/b?uid,cn?subtree\"").expect("valid");
        assert_eq!((search(&options).filter("u").as_deref(), search(&options).scope), (Ok("(uid=u)"), Scope::Subtree));
        for bad in
            ["ldapurl=h", "ldapurl=http://h/", "ldapurl=ldap://h/b??up", "ldapurl=ldap://h/%x", "ldapurl=ldap://h:x/"]
        {
            assert!(Options::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machines_trust() {
        let mut trust = Trust::default();
        trust
            .read("# TLS_REQCERT never\nBASE dc=x\nTLS_CACERT\t/etc/ca.pem \nTLS_REQCERT demand\n tls_cacertdir /ca\n");
        let want = Trust { ca_file: Some("/etc/ca.pem".to_owned()), ca_dir: Some("/ca".to_owned()), verify: true };
        assert_eq!(trust, want);
        trust.read("TLS_REQCERT\tNever");
        assert!(!trust.verify);
    }

    #[test]
    fn mistakes() {
        for (text, want) in [
            ("nonsense=1", "invalid LDAP option: \"nonsense\""),
            ("ldapserver", "invalid LDAP option: \"ldapserver\""),
            ("ldapbindpasswd=my secret", "invalid LDAP option: \"...\""),
            ("ldapbindpasswd=my sec=ret", "invalid LDAP option: \"...\""),
            ("ldapbindpasswd=my sec=\"ret", "malformed LDAP option: \"...\""),
            ("ldapserver =x", "invalid LDAP option: \"ldapserver\""),
            ("ldapport=0", "invalid LDAP port number: \"0\""),
            ("ldapscheme=x", "invalid ldapscheme value: \"x\""),
            ("ldapserver=\"x", "malformed LDAP option: \"ldapserver\""),
            ("", "LDAP authentication needs ldapbasedn, ldapprefix, or ldapsuffix"),
            ("ldapserver=x", "LDAP authentication needs ldapbasedn, ldapprefix, or ldapsuffix"),
            (
                "ldapbasedn=x ldapsearchattribute=a ldapsearchfilter=b",
                "cannot use ldapsearchattribute together with ldapsearchfilter",
            ),
            (
                "ldapprefix=x ldapbasedn=y",
                "cannot use ldapbasedn, ldapbinddn, ldapbindpasswd, ldapsearchattribute, ldapsearchfilter, or ldapurl \
                 together with ldapprefix or ldapsuffix",
            ),
        ] {
            assert_eq!(Options::parse(text).err().as_deref(), Some(want), "{text}");
        }
    }
}
