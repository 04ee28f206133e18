//! Checked views over message bodies: the few fields that decide something.
//!
//! Every field of a message may be missing; nothing here assumes that a peer follows the protocol.

/// The C string at the start of `bytes`, and what comes after its NUL.
#[must_use]
pub fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The fields of an ErrorResponse or NoticeResponse that the pooler looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    pub severity: Option<&'a [u8]>,
    pub sqlstate: Option<&'a [u8]>,
    pub message: Option<&'a [u8]>,
}

impl<'a> ErrorFields<'a> {
    /// Reads the body of an ErrorResponse; unknown fields are passed over, a cut one ends the reading.
    #[must_use]
    pub fn parse(mut body: &'a [u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&kind, rest)) = body.split_first() {
            if kind == 0 {
                break;
            }
            let Some((value, rest)) = split_cstr(rest) else { break };
            match kind {
                b'S' => fields.severity = Some(value),
                b'C' => fields.sqlstate = Some(value),
                b'M' => fields.message = Some(value),
                _ => {}
            }
            body = rest;
        }
        fields
    }

    /// `<severity>: <message>` for log lines, with what is missing left out.
    #[must_use]
    pub fn text(&self, separator: &str) -> String {
        format!("{}{separator}{}", lossy(self.severity), lossy(self.message))
    }
}

/// A field as text for a log line; missing is empty.
#[must_use]
pub fn lossy(field: Option<&[u8]>) -> String {
    String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
}

/// Portal and statement name of a Bind body with the offset at which the rest begins; `None` while a NUL is missing.
#[must_use]
pub fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8], usize)> {
    let (portal, rest) = split_cstr(body)?;
    let (statement, _) = split_cstr(rest)?;
    Some((portal, statement, portal.len() + statement.len() + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_fields_may_be_missing() {
        let all = ErrorFields::parse(b"SERROR\0VERROR\0C42601\0Mbad\0P1\0\0");
        assert_eq!(all.sqlstate, Some(&b"42601"[..]));
        assert_eq!(all.text(": "), "ERROR: bad");
        assert_eq!(ErrorFields::parse(b""), ErrorFields::default());
        assert_eq!(ErrorFields::parse(b"Mcut"), ErrorFields::default());
        assert_eq!(ErrorFields::parse(b"Monly\0").message, Some(&b"only"[..]));
    }

    #[test]
    fn bind_names_wait_for_both() {
        assert_eq!(bind_names(b"p\0s"), None);
        assert_eq!(bind_names(b"p\0s\0xyz"), Some((&b"p"[..], &b"s"[..], 4)));
    }
}
