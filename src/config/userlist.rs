//! The file of users and their secrets (`auth_file`): `"name" "secret"` records.
//!
//! A record starts after any white space; `;` there starts a comment. `""` inside quotes is one quote, quoted text may
//! run over lines, and the rest of a record's last line does not matter. Reading stops at the first mistake, with the
//! records before it valid. What kind of secret a text is, `auth::secret` decides.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use zeroize::Zeroizing;

use super::LogLine;
use super::load::io_error_text;

/// Bytes of a name that are too many, counted as written, quotes doubled.
const TOO_LONG_NAME: usize = 128;

/// Bytes of a secret that are too many.
const TOO_LONG_SECRET: usize = 65_531;

/// What the file said.
#[derive(Default)]
pub struct Userlist {
    /// Secrets as written, by name. Of several records with a name the last one counts. An empty text is no password.
    pub secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
    /// The names in the order of the file, each with the line of its record, from 1 on.
    pub records: Vec<(String, usize)>,
    /// Lines to log.
    pub log: Vec<LogLine>,
}

/// Without the secrets.
impl fmt::Debug for Userlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Userlist").field("names", &self.secrets.keys()).field("log", &self.log).finish()
    }
}

/// The line to log when the file cannot be read. The process goes on without it.
#[must_use]
pub fn unreadable(path: &str, error: &io::Error) -> LogLine {
    LogLine::error(format!("could not open auth_file {path}: {}", io_error_text(error)))
}

/// Reads the whole text of a file. It ends at a NUL, as it does for PgBouncer.
#[must_use]
pub fn parse(text: &[u8]) -> Userlist {
    let text = text.split(|&b| b == 0).next().unwrap_or_default();
    let mut list = Userlist::default();
    let mut rest = text;
    // the line that `counted` begins in: every byte is looked at once
    let (mut line, mut counted) = (1, text);
    loop {
        rest = rest.trim_ascii_start();
        // trim_ascii leaves the vertical tab, which is white space to C
        if let Some(tail) = rest.strip_prefix(b"\x0b") {
            rest = tail;
            continue;
        }
        match rest.first() {
            None => return list,
            Some(b';') => rest = skip_line(rest),
            Some(_) => {
                line += counted[..counted.len() - rest.len()].iter().filter(|&&b| b == b'\n').count();
                counted = rest;
                match record(rest) {
                    Ok((name, secret, tail)) => {
                        if let Ok(name) = String::from_utf8(unquoted(name)) {
                            list.records.push((name.clone(), line));
                            list.secrets.insert(name, Zeroizing::new(unquoted(secret)));
                        } else {
                            let text =
                                format!("auth file line {line}: a name that is not valid UTF-8, ignoring the user");
                            list.log.push(LogLine::warning(text).at(line));
                        }
                        rest = skip_line(tail);
                    }
                    Err(mistake) => {
                        list.log.push(LogLine::error(mistake).at(line));
                        return list;
                    }
                }
            }
        }
    }
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Name and secret, both still with doubled quotes, and what follows.
fn record(text: &[u8]) -> Result<Record<'_>, &'static str> {
    const BROKEN: &str = "broken auth file";
    let (name, rest) = text.strip_prefix(b"\"").and_then(quoted).ok_or(BROKEN)?;
    if name.len() >= TOO_LONG_NAME {
        return Err("username too long in auth file");
    }
    let open = rest.iter().position(|&b| b == b'"').ok_or(BROKEN)?;
    let (secret, rest) = quoted(&rest[open + 1..]).ok_or(BROKEN)?;
    if secret.len() >= TOO_LONG_SECRET {
        return Err("password too long in auth file");
    }
    Ok((name, secret, rest))
}

/// Splits after an opening quote at the closing one.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        at += text.get(at..)?.iter().position(|&b| b == b'"')?;
        if text.get(at + 1) != Some(&b'"') {
            return Some((&text[..at], &text[at + 1..]));
        }
        at += 2;
    }
}

fn skip_line(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|&b| b == b'\n').unwrap_or(text.len());
    &text[end..]
}

/// Allocates once, so that no copy of a secret stays behind.
fn unquoted(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&b| b == b'"') {
        out.extend_from_slice(&rest[..=at]);
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and secrets, and the texts logged.
    fn read(text: &[u8]) -> (Vec<(String, String)>, Vec<String>) {
        let list = parse(text);
        let secrets = list
            .secrets
            .iter()
            .map(|(name, secret)| (name.clone(), String::from_utf8_lossy(secret).into_owned()))
            .collect();
        (secrets, list.log.into_iter().map(|line| line.text).collect())
    }

    #[test]
    fn records_and_mistakes() {
        let broken = Some("broken auth file");
        for (text, want, mistake) in [
            ("", &[][..], None),
            ("\n \x0b\t\r\n", &[], None),
            (r#""a" "b""#, &[("a", "b")], None),
            ("\"a\" \"b\" \"c\" rest\n  \"d\" \"e\"\n", &[("a", "b"), ("d", "e")], None),
            ("; \"x\" \"y\"\n\"a\" \"\"\n", &[("a", "")], None),
            (r#""a" whatever, really "b""#, &[("a", "b")], None),
            ("\"a\"\n\n\"b\"", &[("a", "b")], None),
            (r#""a""b" "c""""#, &[("a\"b", "c\"")], None),
            ("\"a\nb\" \"c\nd\"", &[("a\nb", "c\nd")], None),
            (r#""" "x""#, &[("", "x")], None),
            ("\"a\" \"1\"\n\"a\" \"2\"", &[("a", "2")], None),
            ("\"a\" \"b\"\0 junk", &[("a", "b")], None),
            ("# no comment", &[], broken),
            ("\"a\" \"b\"\na b\n\"c\" \"d\"", &[("a", "b")], broken),
            ("\"a", &[], broken),
            ("\"a\"", &[], broken),
            ("\"a\" \"b", &[], broken),
            ("\"a\" \"b\"\"", &[], broken),
            ("\"a\0\" \"b\"", &[], broken),
        ] {
            let want: Vec<_> = want.iter().map(|&(name, secret)| (name.to_owned(), secret.to_owned())).collect();
            let log: Vec<_> = mistake.into_iter().map(str::to_owned).collect();
            assert_eq!(read(text.as_bytes()), (want, log), "{text:?}");
        }
    }

    #[test]
    fn lengths_are_limited() {
        let record = |name, secret| format!("\"{}\" \"{}\"", "n".repeat(name), "s".repeat(secret)).into_bytes();
        assert_eq!(read(&record(127, 65_530)).0.len(), 1);
        assert_eq!(read(&record(128, 1)).1, ["username too long in auth file"]);
        assert_eq!(read(&record(1, 65_531)).1, ["password too long in auth file"]);
    }

    #[test]
    fn a_name_in_another_encoding_costs_one_user() {
        let (secrets, log) = read(b"\"a\" \"b\"\n\"\xe4\" \"c\"\n\"d\" \"\xe4\"\"e\"\n");
        assert_eq!(secrets, [("a".to_owned(), "b".to_owned()), ("d".to_owned(), "\u{fffd}\"e".to_owned())]);
        assert_eq!(log, ["auth file line 2: a name that is not valid UTF-8, ignoring the user"]);
    }

    #[test]
    fn unreadable_names_file_and_reason() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(unreadable("/x", &error), LogLine::error("could not open auth_file /x: No such file or directory"));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", parse(b"\"a\" \"geheim\"")).contains("geheim"));
    }
}
