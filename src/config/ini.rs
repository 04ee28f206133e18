//! The lines of a configuration file: sections, `key = value` pairs, includes. What they mean is `load.rs`'s business.
//!
//! The grammar is that of PgBouncer's files as they exist in the field. White space before a line is skipped, `;` and
//! `#` start a comment only there, a value is the rest of its line without trailing white space, and after `[section]`
//! the rest of the line is read on. Keys are `A-Z a-z 0-9 _ . - *`, or anything in single quotes; or, as PgBouncer's manual
//! promises for database names and its files do not keep, anything in double quotes, two of which stand for one.

use std::borrow::Cow;

use super::value::is_c_space;

/// One thing that a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    Section(&'a str),
    Pair { key: Cow<'a, str>, value: &'a str },
    Include(&'a str),
}

/// The line `line` cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub line: usize,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Syntax,
    /// The text is not UTF-8.
    Encoding,
}

/// Reads the items of a file one after the other. After an error the rest of its line is not worth reading.
pub(crate) struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    /// The 1-based line that `at` is in.
    line: usize,
    /// The one in which the last item begins.
    item_line: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, line: 1, item_line: 1 }
    }

    /// The next item and the line to name when it is refused; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(Item<'a>, usize)>, Unreadable> {
        self.skip_to_content();
        self.item_line = self.line;
        let Some(first) = self.peek() else {
            return Ok(None);
        };
        if first == b'[' {
            return self.section().map(Some);
        }
        if self.text[self.at..].strip_prefix(b"%include").and_then(|rest| rest.first()).is_some_and(|&b| is_blank(b)) {
            self.at += b"%include".len();
            let line = self.line;
            return Ok(Some((Item::Include(self.rest_of_line()?), line)));
        }
        self.pair().map(Some)
    }

    /// The line in which the last item, or what could not be read, begins.
    pub(crate) const fn item_line(&self) -> usize {
        self.item_line
    }

    /// Gives up the line at hand, for who wants to know what else is wrong.
    pub(crate) fn skip_line(&mut self) {
        self.take_while(|b| b != b'\n');
    }

    fn section(&mut self) -> Result<(Item<'a>, usize), Unreadable> {
        self.at += 1;
        let name = self.take_while(|b| b != b']' && b != b'\n');
        if self.peek() != Some(b']') {
            return Err(self.unreadable(Why::Syntax));
        }
        self.at += 1;
        Ok((Item::Section(self.text(name)?), self.line))
    }

    fn pair(&mut self) -> Result<(Item<'a>, usize), Unreadable> {
        let key = self.key()?;
        self.skip_blanks();
        if self.peek() != Some(b'=') {
            return Err(self.unreadable(Why::Syntax));
        }
        self.at += 1;
        let own_line = self.line;
        let value = self.rest_of_line()?;
        // A refused value is reported with the last blank line that follows it, as files in the field are used to.
        let has_newline = self.peek().is_some();
        self.skip_space();
        let line = if has_newline { self.line - 1 } else { own_line };
        Ok((Item::Pair { key, value }, line))
    }

    fn key(&mut self) -> Result<Cow<'a, str>, Unreadable> {
        match self.peek() {
            Some(b'\'') => self.quoted(b'\'').map(Cow::Borrowed),
            Some(b'"') => self.identifier(),
            _ => {
                let key = self.take_while(|b| b.is_ascii_alphanumeric() || b"_.-*".contains(&b));
                self.text(key).map(Cow::Borrowed)
            }
        }
    }

    /// What stands between this quote and the next one in the same line.
    fn quoted(&mut self, quote: u8) -> Result<&'a str, Unreadable> {
        self.at += 1;
        let key = self.take_while(|b| b != quote && b != b'\n');
        if self.peek() != Some(quote) || key.is_empty() {
            return Err(self.unreadable(Why::Syntax));
        }
        self.at += 1;
        self.text(key)
    }

    /// A quoted identifier of SQL.
    fn identifier(&mut self) -> Result<Cow<'a, str>, Unreadable> {
        let mut key = Cow::Borrowed("");
        loop {
            // on an opening quote, or on the second of a doubled one
            self.at += 1;
            let part = self.take_while(|b| b != b'"' && b != b'\n');
            key += self.text(part)?;
            if self.peek() != Some(b'"') {
                return Err(self.unreadable(Why::Syntax));
            }
            self.at += 1;
            if self.peek() != Some(b'"') {
                return if key.is_empty() { Err(self.unreadable(Why::Syntax)) } else { Ok(key) };
            }
            key.to_mut().push('"');
        }
    }

    /// Up to the newline, without the white space around it.
    fn rest_of_line(&mut self) -> Result<&'a str, Unreadable> {
        self.skip_blanks();
        let rest = self.take_while(|b| b != b'\n');
        Ok(self.text(rest)?.trim_end_matches(is_c_space))
    }

    fn skip_to_content(&mut self) {
        self.skip_space();
        while let Some(b'#' | b';') = self.peek() {
            self.take_while(|b| b != b'\n');
            self.skip_space();
        }
    }

    fn skip_space(&mut self) {
        while let Some(b) = self.peek().filter(|&b| is_c_space(char::from(b))) {
            self.at += 1;
            self.line += usize::from(b == b'\n');
        }
    }

    fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// `wanted` must refuse newlines, which `skip_space` counts.
    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = &self.text[self.at..];
        let len = rest.iter().position(|&b| !wanted(b)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// A NUL would end the text early for a server that reads it, so it ends the load instead.
    fn text(&self, bytes: &'a [u8]) -> Result<&'a str, Unreadable> {
        if bytes.contains(&0) {
            return Err(self.unreadable(Why::Syntax));
        }
        std::str::from_utf8(bytes).map_err(|_| self.unreadable(Why::Encoding))
    }

    fn unreadable(&self, why: Why) -> Unreadable {
        Unreadable { line: self.line, why }
    }
}

fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Result<Vec<(Item<'_>, usize)>, Unreadable> {
        let mut reader = Reader::new(text.as_bytes());
        let mut items = Vec::new();
        while let Some(item) = reader.next()? {
            items.push(item);
        }
        Ok(items)
    }

    fn pair<'a>(key: &'a str, value: &'a str) -> Item<'a> {
        Item::Pair { key: key.into(), value }
    }

    #[test]
    fn items_and_lines() {
        for (text, want) in [
            ("", vec![]),
            ("\n \t\r\n; c\n# c = d\n", vec![]),
            ("a=b", vec![(pair("a", "b"), 1)]),
            ("  a\t =  b c ;d \r\n", vec![(pair("a", "b c ;d"), 1)]),
            ("a=\n", vec![(pair("a", ""), 1)]),
            ("=x\n", vec![(pair("", "x"), 1)]),
            ("*=h\n-._*=1", vec![(pair("*", "h"), 1), (pair("-._*", "1"), 2)]),
            ("'a b'=c", vec![(pair("a b", "c"), 1)]),
            ("\"a = 'b'\" =c", vec![(pair("a = 'b'", "c"), 1)]),
            ("\"a\"\"b\"= c\n\"\"\"\"=\"", vec![(pair("a\"b", "c"), 1), (pair("\"", "\""), 2)]),
            ("a=1\n;\nb=2\n", vec![(pair("a", "1"), 1), (pair("b", "2"), 3)]),
            ("a=1\n\n  \n\n;\nb=2", vec![(pair("a", "1"), 4), (pair("b", "2"), 6)]),
            ("a=1\n\n\n", vec![(pair("a", "1"), 3)]),
            ("a=1   ", vec![(pair("a", "1"), 1)]),
            ("\n[x y] a = b\n", vec![(Item::Section("x y"), 2), (pair("a", "b"), 2)]),
            ("[]\n\n\n[b]", vec![(Item::Section(""), 1), (Item::Section("b"), 4)]),
            ("%include  a b.ini \n\n\nx=1", vec![(Item::Include("a b.ini"), 1), (pair("x", "1"), 4)]),
            ("%include\tx", vec![(Item::Include("x"), 1)]),
        ] {
            assert_eq!(all(text), Ok(want), "{text:?}");
        }
    }

    #[test]
    fn refusals_name_their_line() {
        for (text, line) in [
            ("hello", 1),
            ("\na b = c", 2),
            ("\"\" = b", 1),
            ("\"a\n\" = b", 1),
            ("\n\"a\"b = c", 2),
            ("\"a\"\" = b", 1),
            ("'' = b", 1),
            ("'a\n' = b", 1),
            ("a:b=c", 1),
            ("a=1\n\n[b\n]", 3),
            ("%includex", 1),
            ("%include", 1),
            ("a\n=b", 1),
            ("a=b\0c", 1),
            ("\u{feff}a=b", 1),
        ] {
            assert_eq!(all(text), Err(Unreadable { line, why: Why::Syntax }), "{text:?}");
        }
        let mut reader = Reader::new(b"; \xff is fine here\na=\xff\n");
        assert_eq!(reader.next(), Err(Unreadable { line: 2, why: Why::Encoding }));
    }
}
