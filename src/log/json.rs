//! JSON text that is one line and cannot steer a terminal, whatever is in it.

use std::fmt::{self, Write as _};

/// Bytes of a text that are shown at most.
const MAX_BYTES: usize = 2047;

/// A JSON string. Besides what JSON asks for, control characters of C1 and Unicode's line separators are escaped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.0[..self.0.floor_char_boundary(MAX_BYTES)];
        f.write_char('"')?;
        for c in text.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                _ if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => write!(f, "\\u{:04x}", u32::from(c))?,
                _ => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_one_line_and_read_back() {
        for text in ["", "a \"b\" \\ /", "two\nlines\r\t\0", "\x1b[2J\x7f\u{85}\u{9b}\u{2028}", "caf\u{e9} \u{1f600}"] {
            let json = Text(text).to_string();
            assert!(!json.contains(|c: char| c.is_control() || c == '\u{2028}'), "{json:?}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
        assert_eq!(Text(&"\u{e9}".repeat(3000)).to_string().len(), 2 + 2046);
    }
}
