//! The words of one line of an access-rule file (`auth_hba_file`, `auth_ident_file`).
//!
//! White space separates words, commas stand for themselves, `"..."` is one word in which `""` is a quote, and `#`
//! outside of quotes starts a comment. A quoted word is never a keyword.

use super::value::is_c_space;

/// What stands at the reader's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Quoted,
    Plain,
    Comma,
    /// A quote that is not closed.
    Broken,
    End,
}

impl Kind {
    /// The number by which PgBouncer's warnings speak of it.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Quoted => 0,
            Self::Plain => 1,
            Self::Comma => 2,
            Self::Broken => 3,
            Self::End => 4,
        }
    }
}

/// Reads a line word by word, always one word ahead.
pub(super) struct Words<'a> {
    rest: &'a str,
    kind: Kind,
    /// The word at the position; behind the last one, that one.
    text: String,
}

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        let mut words = Self { rest: line, kind: Kind::End, text: String::new() };
        words.advance();
        words
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The text of the word at the position, or of the last one that was read.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Steps over a plain word that is `keyword`.
    pub(super) fn eat(&mut self, keyword: &str) -> bool {
        let found = self.kind == Kind::Plain && self.text == keyword;
        if found {
            self.advance();
        }
        found
    }

    /// Everything behind a plain word that is `keyword`, as written; nothing is left to read then.
    pub(super) fn all_behind(&mut self, keyword: &str) -> Option<&'a str> {
        if self.kind != Kind::Plain || self.text != keyword {
            return None;
        }
        self.kind = Kind::End;
        Some(std::mem::take(&mut self.rest))
    }

    /// Steps over a comma.
    pub(super) fn eat_comma(&mut self) -> bool {
        let found = self.kind == Kind::Comma;
        if found {
            self.advance();
        }
        found
    }

    /// Takes the word at the position if it is a plain one.
    pub(super) fn plain(&mut self) -> Option<String> {
        (self.kind == Kind::Plain).then(|| self.take())
    }

    /// Takes the word at the position, quoted or not.
    pub(super) fn any(&mut self) -> Option<String> {
        matches!(self.kind, Kind::Plain | Kind::Quoted).then(|| self.take())
    }

    /// Keeps so many bytes of the word read last, if none came behind it: warnings show that much.
    pub(super) fn shorten_last(&mut self, len: usize) {
        if !matches!(self.kind, Kind::Plain | Kind::Quoted) {
            self.text.truncate(len);
        }
    }

    pub(super) fn at_end(&self) -> bool {
        self.kind == Kind::End
    }

    fn take(&mut self) -> String {
        let word = self.text.clone();
        self.advance();
        word
    }

    fn advance(&mut self) {
        self.rest = self.rest.trim_start_matches(is_c_space);
        self.kind = match self.rest.as_bytes().first() {
            None | Some(b'#') => {
                self.rest = "";
                Kind::End
            }
            Some(b',') => {
                self.rest = &self.rest[1..];
                Kind::Comma
            }
            Some(b'"') => self.quoted(),
            Some(_) => {
                let end = self.rest.find(|c| is_c_space(c) || matches!(c, ',' | '#' | '"')).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                word.clone_into(&mut self.text);
                self.rest = rest;
                Kind::Plain
            }
        };
    }

    fn quoted(&mut self) -> Kind {
        let mut text = String::new();
        let mut rest = &self.rest[1..];
        loop {
            let Some((part, after)) = rest.split_once('"') else {
                self.rest = "";
                return Kind::Broken;
            };
            text.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    text.push('"');
                    rest = after;
                }
                None => {
                    self.rest = after;
                    self.text = text;
                    return Kind::Quoted;
                }
            }
        }
    }
}

/// The lines of a file with their numbers, from 1 on.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, Option<&str>)> {
    text.split(|&b| b == b'\n').enumerate().map(|(index, bytes)| {
        // a NUL would end the line early for whoever reads it with C's functions
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
        (index + 1, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(line: &str) -> Vec<(Kind, String)> {
        let mut words = Words::new(line);
        let mut found = Vec::new();
        while !matches!(words.kind(), Kind::End | Kind::Broken) {
            let text = if words.kind() == Kind::Comma { String::new() } else { words.text().to_owned() };
            found.push((words.kind(), text));
            words.advance();
        }
        found.push((words.kind(), String::new()));
        found
    }

    #[test]
    fn words_commas_quotes_and_comments() {
        let plain = |text: &str| (Kind::Plain, text.to_owned());
        let quoted = |text: &str| (Kind::Quoted, text.to_owned());
        let comma = (Kind::Comma, String::new());
        let end = (Kind::End, String::new());
        for (line, want) in [
            ("", vec![end.clone()]),
            (" \t# all", vec![end.clone()]),
            ("a b#c", vec![plain("a"), plain("b"), end.clone()]),
            ("a,b , c", vec![plain("a"), comma.clone(), plain("b"), comma, plain("c"), end.clone()]),
            ("\"a b\"c", vec![quoted("a b"), plain("c"), end.clone()]),
            ("x\"#\"", vec![plain("x"), quoted("#"), end.clone()]),
            ("\"a\"\"b\" \"\"", vec![quoted("a\"b"), quoted(""), end.clone()]),
            ("\"\"\"\"", vec![quoted("\""), end]),
            ("a \"b", vec![plain("a"), (Kind::Broken, String::new())]),
            ("\"a\"\"", vec![(Kind::Broken, String::new())]),
        ] {
            assert_eq!(all(line), want, "{line:?}");
        }
    }

    #[test]
    fn the_rest_of_a_line_is_as_written() {
        let mut words = Words::new("ldap  a=\"b # c\" ");
        assert_eq!(words.all_behind("host"), None);
        assert_eq!(words.all_behind("ldap"), Some("  a=\"b # c\" "));
        assert!(words.at_end());
    }

    #[test]
    fn lines_that_are_no_text_keep_their_numbers() {
        let found: Vec<_> = lines(b"a\n\xff\nb\0c\nd").collect();
        assert_eq!(found, [(1, Some("a")), (2, None), (3, None), (4, Some("d"))]);
    }
}
