//! How a console query is cut into words, before any of them means something.
//!
//! ```text
//! word    := [0-9A-Za-z_]+  |  "..."      ("" inside is one ")
//! string  := '...'                        ('' inside is one ')
//! command := word [ws word]
//! set     := SET ws word [ws] ( = | TO ) [ws] ( string | word )
//! ```
//! White space (space, tab, CR, LF) may surround either form, and one `;` may end it. The command form is tried first, so
//! `SET x` is a command called SET. Lengths count the quotes, as PgBouncer's buffers do.

/// Longest command word, bytes.
pub const MAX_COMMAND: usize = 15;
/// Longest argument or setting name, bytes.
pub const MAX_ARGUMENT: usize = 63;
/// Longest value of SET, bytes.
pub const MAX_VALUE: usize = 255;

/// A query of one of the two forms, quotes removed; nothing in it need be UTF-8. An empty argument (`""`) counts as none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    Command { word: Vec<u8>, argument: Option<Vec<u8>> },
    Set { key: Vec<u8>, value: Vec<u8> },
}

/// Why a query is not a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Neither form matches.
    Shape,
    /// A form matches, but a part is too long, or the setting has no name.
    Arguments,
}

/// Reads one query; `query` is what precedes the terminating NUL.
///
/// # Errors
/// See [`Malformed`].
pub fn statement(query: &[u8]) -> Result<Statement, Malformed> {
    if let Some((word, argument)) = command_form(query) {
        let word = word.plain(MAX_COMMAND)?;
        let argument = argument.map(|token| token.plain(MAX_ARGUMENT)).transpose()?;
        return Ok(Statement::Command { word, argument: argument.filter(|text| !text.is_empty()) });
    }
    let (key, value) = set_form(query).ok_or(Malformed::Shape)?;
    let key = key.plain(MAX_ARGUMENT)?;
    let value = value.plain(MAX_VALUE)?;
    if key.is_empty() { Err(Malformed::Arguments) } else { Ok(Statement::Set { key, value }) }
}

/// One word or string as it stands in the query, quotes included.
#[derive(Clone, Copy)]
struct Token<'a>(&'a [u8]);

impl Token<'_> {
    fn plain(self, limit: usize) -> Result<Vec<u8>, Malformed> {
        if self.0.len() > limit {
            return Err(Malformed::Arguments);
        }
        Ok(self.unquoted(b'"').or_else(|| self.unquoted(b'\'')).unwrap_or_else(|| self.0.to_vec()))
    }

    fn unquoted(self, quote: u8) -> Option<Vec<u8>> {
        let inner = self.0.strip_prefix(&[quote])?.strip_suffix(&[quote])?;
        let mut text = Vec::with_capacity(inner.len());
        let mut bytes = inner.iter();
        while let Some(&byte) = bytes.next() {
            text.push(byte);
            // inside of quotes they come in pairs only
            if byte == quote {
                bytes.next();
            }
        }
        Some(text)
    }
}

fn command_form(query: &[u8]) -> Option<(Token<'_>, Option<Token<'_>>)> {
    let (word, rest) = word(skip_space(query))?;
    if ends(rest) {
        return Some((word, None));
    }
    let next = skip_space(rest);
    if next.len() == rest.len() {
        return None;
    }
    let (argument, rest) = self::word(next)?;
    ends(rest).then_some((word, Some(argument)))
}

fn set_form(query: &[u8]) -> Option<(Token<'_>, Token<'_>)> {
    let rest = strip_keyword(skip_space(query), b"set")?;
    let name = skip_space(rest);
    if name.len() == rest.len() {
        return None;
    }
    let (key, rest) = word(name)?;
    let usual = skip_space(rest).strip_prefix(b"=").or_else(|| strip_keyword(skip_space(rest), b"to")).and_then(value);
    if let Some(value) = usual {
        return Some((key, value));
    }
    // no space is required before TO: a bare name may have swallowed it (`SET keyto 'x'`)
    let (bare, to) = key.0.split_at_checked(key.0.len().checked_sub(2)?)?;
    if bare.is_empty() || !to.eq_ignore_ascii_case(b"to") {
        return None;
    }
    Some((Token(bare), value(rest)?))
}

/// The value that fills the rest of the query.
fn value(rest: &[u8]) -> Option<Token<'_>> {
    let rest = skip_space(rest);
    let (token, rest) = quoted(rest, b'\'').or_else(|| word(rest))?;
    ends(rest).then_some(token)
}

fn word(input: &[u8]) -> Option<(Token<'_>, &[u8])> {
    if input.first() == Some(&b'"') {
        return quoted(input, b'"');
    }
    let end = input.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').unwrap_or(input.len());
    let (token, rest) = input.split_at_checked(end)?;
    (end > 0).then_some((Token(token), rest))
}

fn quoted(input: &[u8], quote: u8) -> Option<(Token<'_>, &[u8])> {
    if input.first() != Some(&quote) {
        return None;
    }
    let mut at = 1;
    loop {
        at += input.get(at..)?.iter().position(|byte| *byte == quote)? + 1;
        if input.get(at) != Some(&quote) {
            let (token, rest) = input.split_at_checked(at)?;
            return Some((Token(token), rest));
        }
        at += 1;
    }
}

fn ends(rest: &[u8]) -> bool {
    let rest = skip_space(rest);
    skip_space(rest.strip_prefix(b";").unwrap_or(rest)).is_empty()
}

fn skip_space(input: &[u8]) -> &[u8] {
    let start = input.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).unwrap_or(input.len());
    input.get(start..).unwrap_or_default()
}

fn strip_keyword<'a>(input: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(word: &str, argument: Option<&str>) -> Result<Statement, Malformed> {
        Ok(Statement::Command { word: word.into(), argument: argument.map(Into::into) })
    }

    fn set(key: &str, value: &str) -> Result<Statement, Malformed> {
        Ok(Statement::Set { key: key.into(), value: value.into() })
    }

    /// What PgBouncer 1.18 made of the same queries, seen over its console.
    #[test]
    fn forms() {
        let shape = || Err(Malformed::Shape);
        let cases: Vec<(&str, Result<Statement, Malformed>)> = vec![
            ("SHOW VERSION", command("SHOW", Some("VERSION"))),
            (" \t\r\n show\tversion ; \n", command("show", Some("version"))),
            ("show version;;", shape()),
            ("show/**/version", shape()),
            ("SHOW\"version\"", shape()),
            ("\"SHOW\" \"version\"", command("SHOW", Some("version"))),
            ("show", command("show", None)),
            ("show;", command("show", None)),
            ("pause ;", command("pause", None)),
            ("", shape()),
            (";", shape()),
            (" ", shape()),
            ("show a b", shape()),
            ("show\u{b}version", shape()),
            ("set x", command("set", Some("x"))),
            ("set x=", shape()),
            ("set x=to y", shape()),
            ("set x = y", set("x", "y")),
            ("set x TO y;", set("x", "y")),
            ("set x=''", set("x", "")),
            ("set x = 'a''b'", set("x", "a'b")),
            ("set x = '-1, ;'", set("x", "-1, ;")),
            ("set x='0'y", shape()),
            ("set x=-1", shape()),
            ("set x= =0", shape()),
            ("set x='", shape()),
            ("set x to0", set("x", "0")),
            ("set x to'0'", set("x", "0")),
            ("set verboseto 0", set("verbose", "0")),
            ("set \"verbose\"to 0", set("verbose", "0")),
            ("set verboseto0", command("set", Some("verboseto0"))),
            ("set xto to", set("x", "to")),
            ("set xto to 1", set("xto", "1")),
            ("set to to 1", set("to", "1")),
            ("set to=1", set("to", "1")),
            ("set to", command("set", Some("to"))),
            ("set x = to", set("x", "to")),
            ("set x to", shape()),
            ("settoto1=1", shape()),
            ("sett x=0", shape()),
            ("\"set\" x=0", shape()),
            ("set \"\"=1", Err(Malformed::Arguments)),
            ("set x=\"\"", set("x", "")),
            ("set a\"b\"=1", shape()),
            ("pause \"my db\"", command("pause", Some("my db"))),
            ("pause \"p\"x", shape()),
            ("pause p\"x\"", shape()),
            ("pause \"p\"\"x\"", command("pause", Some("p\"x"))),
            ("pause \"\"\"\"", command("pause", Some("\""))),
            ("pause \"\"", command("pause", None)),
            ("pause \"é\"", command("pause", Some("é"))),
            ("show \"ver", shape()),
            ("show é", shape()),
        ];
        for (query, expected) in cases {
            assert_eq!(statement(query.as_bytes()), expected, "{query:?}");
        }
        let raw =
            |argument: &[u8]| Ok(Statement::Command { word: b"pause".to_vec(), argument: Some(argument.to_vec()) });
        assert_eq!(statement(b"pause \"\xff\""), raw(b"\xff"));
        assert_eq!(statement(b"pause \"\"\"\xff\"\"\""), raw(b"\"\xff\""));
        assert_eq!(statement(b"\xff\xfe show"), Err(Malformed::Shape));
    }

    #[test]
    fn lengths_count_the_quotes() {
        let a = |count: usize| "a".repeat(count);
        for (query, fits) in [
            (a(15), true),
            (a(16), false),
            (format!("\"{}\"", a(13)), true),
            (format!("\"{}\"", a(14)), false),
            (format!("show {}", a(63)), true),
            (format!("show {}", a(64)), false),
            (format!("resume \"{}\"", a(61)), true),
            (format!("resume \"{}\"", a(62)), false),
            (format!("set {}=0", a(63)), true),
            (format!("set {}=0", a(64)), false),
            (format!("set x={}", a(255)), true),
            (format!("set x={}", a(256)), false),
            (format!("set x='{}'", a(253)), true),
            (format!("set x='{}'", a(254)), false),
        ] {
            let expected = if fits { None } else { Some(Malformed::Arguments) };
            assert_eq!(statement(query.as_bytes()).err(), expected, "{query}");
        }
    }
}
