//! auth_query: the request for one user's secret and the answer to it.
//!
//! ```text
//! request -> (1, 2, T, D*, C) -> Z: Found | NoRow          any defect: the server connection is not used again
//! ```
//! The name goes to the server as a parameter, never as text of the query.

use std::borrow::Cow;

use super::secret::Secret;
use super::{MAX_PASSWORD_BYTES, MAX_USER_BYTES};
use crate::wire::encode;
use crate::wire::fields::ErrorFields;
use crate::wire::tag::backend as be;

/// Appends the messages that run `sql` for `user`.
pub fn request(out: &mut Vec<u8>, sql: &str, user: &str) {
    encode::unnamed_query(out, sql.as_bytes(), user.as_bytes());
}

/// What the query knows about a user.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// The name that counts from now on.
    pub user: String,
    /// None when the column is NULL: matches nothing.
    pub secret: Secret,
}

/// How far the answer has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    Found(Row),
    NoRow,
}

/// The answer is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct Defect {
    /// The closing reason of the server.
    pub reason: Cow<'static, str>,
    /// For the log, as an error.
    pub log: Option<String>,
}

/// An answer as it comes in.
#[derive(Debug, Default)]
pub struct Answer {
    /// Of several rows the last one counts.
    row: Option<Row>,
}

impl Answer {
    /// Takes one message.
    ///
    /// # Errors
    /// A defect.
    pub fn receive(&mut self, tag: u8, body: &[u8]) -> Result<Progress, Defect> {
        match tag {
            be::ROW_DESCRIPTION => columns(body).map(|_| Progress::More),
            be::DATA_ROW => {
                self.row = Some(row(body)?);
                Ok(Progress::More)
            }
            be::READY_FOR_QUERY if body == b"I" => Ok(match self.row.take() {
                Some(row) => Progress::Found(row),
                None => Progress::NoRow,
            }),
            be::PARSE_COMPLETE
            | be::BIND_COMPLETE
            | be::COMMAND_COMPLETE
            | be::NOTICE_RESPONSE
            | be::NOTIFICATION_RESPONSE
            | be::PARAMETER_STATUS => Ok(Progress::More),
            be::ERROR_RESPONSE => {
                let text = ErrorFields::parse(body).text(": ");
                let log = Some(format!("S: error in auth_query: {text}"));
                Err(Defect { reason: "error response from auth_query".into(), log })
            }
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> Defect {
    Defect { reason: "unexpected response from auth_query".into(), log: None }
}

/// What follows the number of columns, which must be two.
fn columns(body: &[u8]) -> Result<&[u8], Defect> {
    let (count, rest) = body.split_first_chunk::<2>().ok_or_else(unexpected)?;
    match u16::from_be_bytes(*count) {
        2 => Ok(rest),
        count => Err(Defect { reason: format!("expected 2 columns from auth_query, not {count}").into(), log: None }),
    }
}

fn row(body: &[u8]) -> Result<Row, Defect> {
    let rest = columns(body)?;
    let (name, rest) = value(rest)?;
    let (secret, _) = value(rest)?;
    let null = || Defect { reason: "auth_query response contained null user name".into(), log: None };
    let name = name.ok_or_else(null)?;
    // a name that could not be compared byte by byte might be taken for another one
    let user = std::str::from_utf8(cut(name, MAX_USER_BYTES)).map_err(|_| unexpected())?.to_owned();
    let secret = secret.map(|text| Secret::classify(cut(text, MAX_PASSWORD_BYTES)));
    Ok(Row { user, secret: secret.unwrap_or_default() })
}

/// The next value, nothing for NULL, and what follows it.
fn value(body: &[u8]) -> Result<(Option<&[u8]>, &[u8]), Defect> {
    let (len, rest) = body.split_first_chunk::<4>().ok_or_else(unexpected)?;
    let len = i32::from_be_bytes(*len);
    if len == -1 {
        return Ok((None, rest));
    }
    let (value, rest) = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len)).ok_or_else(unexpected)?;
    Ok((Some(value), rest))
}

/// At most `bytes` of a text, without half a character at its end.
fn cut(text: &[u8], bytes: usize) -> &[u8] {
    match std::str::from_utf8(text) {
        Ok(whole) => &text[..whole.floor_char_boundary(bytes)],
        Err(_) => &text[..text.len().min(bytes)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_row(values: &[Option<&str>]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).expect("few").to_be_bytes().to_vec();
        for value in values {
            match value {
                Some(text) => {
                    body.extend(i32::try_from(text.len()).expect("short").to_be_bytes());
                    body.extend(text.as_bytes());
                }
                None => body.extend((-1_i32).to_be_bytes()),
            }
        }
        body
    }

    /// The end of an answer: `user=secret`, `none`, or the closing reason.
    fn end(messages: &[(u8, Vec<u8>)]) -> String {
        let mut answer = Answer::default();
        for (tag, body) in messages {
            match answer.receive(*tag, body) {
                Ok(Progress::More) => {}
                Ok(Progress::Found(row)) => {
                    return format!("{}={}", row.user, String::from_utf8_lossy(row.secret.bytes()));
                }
                Ok(Progress::NoRow) => return "none".to_owned(),
                Err(defect) => return [defect.log, Some(defect.reason.into_owned())].into_iter().flatten().collect(),
            }
        }
        "unfinished".to_owned()
    }

    fn rows(rows: &[&[Option<&str>]]) -> String {
        let mut messages = vec![(b'1', vec![]), (b'2', vec![]), (b'T', b"\0\x02rest".to_vec())];
        messages.extend(rows.iter().map(|row| (b'D', data_row(row))));
        messages.extend([(b'C', b"SELECT 1\0".to_vec()), (b'N', vec![]), (b'Z', b"I".to_vec())]);
        end(&messages)
    }

    #[test]
    fn one_row_is_the_user() {
        assert_eq!(rows(&[&[Some("joe"), Some("secret")]]), "joe=secret");
        assert_eq!(rows(&[&[Some("joe"), None]]), "joe=");
        assert_eq!(rows(&[&[Some("joe"), Some("")]]), "joe=");
        assert_eq!(rows(&[]), "none");
        assert_eq!(rows(&[&[Some("a"), Some("1")], &[Some("b"), Some("2")]]), "b=2");
        assert_eq!(rows(&[&[None, Some("x")]]), "auth_query response contained null user name");
        assert_eq!(rows(&[&[Some("x")]]), "expected 2 columns from auth_query, not 1");
        let long = "ä".repeat(100);
        assert_eq!(rows(&[&[Some(&long), Some("x")]]), format!("{}=x", "ä".repeat(63)));
        let secret = "s".repeat(70_000);
        assert_eq!(rows(&[&[Some("u"), Some(&secret)]]).len(), 2 + 65_530);
        let latin1 = b"\0\x02\0\0\0\x01u\0\0\0\x02\xe4\xdf".to_vec();
        assert_eq!(end(&[(b'D', latin1), (b'Z', b"I".to_vec())]), "u=\u{fffd}\u{fffd}");
    }

    #[test]
    fn defects() {
        let unexpected = "unexpected response from auth_query";
        for (tag, body, want) in [
            (b'T', b"\0\x03".as_slice(), "expected 2 columns from auth_query, not 3"),
            (b'T', b"\0", unexpected),
            (b'n', b"", unexpected),
            (b'I', b"", unexpected),
            (b'G', b"", unexpected),
            (b'Z', b"T", unexpected),
            (b'Z', b"", unexpected),
            (b'D', b"\0\x02\0\0\0\x05ab", unexpected),
            (b'D', b"\0\x02\xff\xff\xff\xfeab", unexpected),
            (b'D', b"\0\x02\x7f\xff\xff\xffab", unexpected),
            (b'D', b"\0\x02\0\0\0\x01\xff\xff\xff\xff\xff", unexpected),
            (
                b'E',
                b"SERROR\0C42P01\0Mno table\0\0",
                "S: error in auth_query: ERROR: no tableerror response from auth_query",
            ),
        ] {
            assert_eq!(end(&[(tag, body.to_vec())]), want, "{}", char::from(tag));
        }
    }

    #[test]
    fn the_name_is_a_parameter() {
        let mut out = Vec::new();
        request(&mut out, "SELECT $1", "o'neil");
        let want = b"P\0\0\0\x11\0SELECT $1\0\0\0B\0\0\0\x16\0\0\0\0\0\x01\0\0\0\x06o'neil\0\0D\0\0\0\x06P\0\
                     E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04";
        assert_eq!(out, want);
    }
}
