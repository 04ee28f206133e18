//! Console values in PostgreSQL's binary formats. The console speaks text; drivers that ask for binary results get the
//! text of a DataRow translated, column by column.
//!
//! Source: the `*_send` functions of PostgreSQL's types, as documented in the manual of libpq's binary results.

use super::show::columns::Kind;

/// Decimal digits in one digit of a binary numeric.
const NUMERIC_GROUP: usize = 4;
const NUMERIC_NEGATIVE: u16 = 0x4000;

/// The binary form of a value; `None` if `text` is not one of its type.
#[must_use]
pub fn of(kind: Kind, text: &[u8]) -> Option<Vec<u8>> {
    let number = || std::str::from_utf8(text).ok();
    match kind {
        Kind::Text => Some(text.to_vec()),
        Kind::Int4 => Some(number()?.parse::<i32>().ok()?.to_be_bytes().to_vec()),
        Kind::Int8 => Some(number()?.parse::<i64>().ok()?.to_be_bytes().to_vec()),
        Kind::Numeric => numeric(number()?),
        Kind::Bytea => bytea(text),
    }
}

/// A whole number: digits to the base 10,000, the weight of the first, the sign, no digits after the point.
fn numeric(text: &str) -> Option<Vec<u8>> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (NUMERIC_NEGATIVE, digits),
        None => (0, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    let groups: Vec<i16> = digits
        .as_bytes()
        .rchunks(NUMERIC_GROUP)
        .rev()
        .map(|group| group.iter().fold(0, |value, digit| value * 10 + i16::from(digit - b'0')))
        .collect();
    let count = i16::try_from(groups.len()).ok()?;
    let mut out = Vec::with_capacity(8 + 2 * groups.len());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&(count - 1).max(0).to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&0_i16.to_be_bytes());
    for group in groups {
        out.extend_from_slice(&group.to_be_bytes());
    }
    Some(out)
}

fn bytea(text: &[u8]) -> Option<Vec<u8>> {
    let hex = text.strip_prefix(b"\\x")?;
    if hex.len() % 2 != 0 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    hex.chunks_exact(2).map(|pair| Some(digit(pair[0])? * 16 + digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (kind, text, expected) in [
            (Kind::Text, "ä", Some("ä".as_bytes())),
            (Kind::Int4, "-2", Some(&[0xff, 0xff, 0xff, 0xfe][..])),
            (Kind::Int4, "2147483648", None),
            (Kind::Int8, "258", Some(&[0, 0, 0, 0, 0, 0, 1, 2])),
            (Kind::Int8, "x", None),
            (Kind::Bytea, "\\x00fF", Some(&[0, 255])),
            (Kind::Bytea, "\\x0", None),
            (Kind::Bytea, "00", None),
        ] {
            assert_eq!(of(kind, text.as_bytes()).as_deref(), expected, "{kind:?} {text}");
        }
        assert_eq!(of(Kind::Int4, b"\xff"), None);
    }

    /// What `numeric_send` of PostgreSQL 15 makes of the same numbers.
    #[test]
    fn numerics() {
        for (text, expected) in [
            ("0", Some(vec![0, 0, 0, 0])),
            ("7", Some(vec![1, 0, 0, 0, 7])),
            ("-7", Some(vec![1, 0, 0x4000, 0, 7])),
            ("12345", Some(vec![2, 1, 0, 0, 1, 2345])),
            ("100000000", Some(vec![3, 2, 0, 0, 1, 0, 0])),
            ("18446744073709551615", Some(vec![5, 4, 0, 0, 1844, 6744, 737, 955, 1615])),
            ("1.5", None),
            ("", None),
        ] {
            let expected: Option<Vec<u8>> =
                expected.map(|words: Vec<u16>| words.into_iter().flat_map(u16::to_be_bytes).collect());
            assert_eq!(of(Kind::Numeric, text.as_bytes()), expected, "{text}");
        }
    }
}
