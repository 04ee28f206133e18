//! The messages of the console that are not rows, appended to the caller's buffer.
//!
//! PgBouncer builds an error and the ReadyForQuery after it in one buffer of 512 bytes and closes the connection when they
//! do not fit; so do we, because a script may rely on either.

use super::refusal::Refusal;

/// An error text is cut here, bytes.
pub const MAX_ERROR_TEXT: usize = 1023;
/// An error and its ReadyForQuery may take this together, bytes.
pub const MAX_ERROR_REPLY: usize = 512;

/// What clients are told the server's version is.
pub(super) const SERVER_VERSION: &str = "1.25.2/bouncer";

/// The parameters of a login reply, before those that the client itself sent.
const PARAMETERS: [(&str, &str); 7] = [
    ("server_version", SERVER_VERSION),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
];

/// An error reply that is not sent: the connection is closed instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// What follows a successful login: `sent` are the tracked parameters the client sent, in their order, `key` the eight bytes
/// of its cancel key.
pub fn login<'a>(
    out: &mut Vec<u8>,
    sent: impl IntoIterator<Item = (&'a str, &'a str)>,
    key: [u8; 8],
    login_notice: Option<&str>,
) {
    message(out, b'R', |out| out.extend_from_slice(&0_u32.to_be_bytes()));
    for (name, value) in PARAMETERS.into_iter().chain(sent) {
        message(out, b'S', |out| {
            text(out, name.as_bytes());
            text(out, value.as_bytes());
        });
    }
    message(out, b'K', |out| out.extend_from_slice(&key));
    if let Some(notice_text) = login_notice {
        notice(out, notice_text, None);
    }
    ready(out);
}

/// ReadyForQuery; the console is never in a transaction.
pub fn ready(out: &mut Vec<u8>) {
    message(out, b'Z', |out| out.push(b'I'));
}

/// CommandComplete.
pub fn complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| text(out, tag.as_bytes()));
}

/// CommandComplete and ReadyForQuery.
pub fn done(out: &mut Vec<u8>, tag: &str) {
    complete(out, tag);
    ready(out);
}

/// The answer to SET of a parameter that the console does not have; ReadyForQuery is the caller's.
pub fn set_ignored(out: &mut Vec<u8>) {
    notice(out, "SET ignored", None);
    complete(out, "SET");
}

/// NoticeResponse.
pub fn notice(out: &mut Vec<u8>, message_text: &str, detail: Option<&str>) {
    message(out, b'N', |out| {
        fields(out, "NOTICE", "00000", message_text.as_bytes());
        if let Some(detail) = detail {
            out.push(b'D');
            text(out, detail.as_bytes());
        }
        out.push(0);
    });
}

/// ErrorResponse and ReadyForQuery.
///
/// # Errors
/// When they would be too long; nothing has been written then, and the connection is to be closed.
pub fn refuse(out: &mut Vec<u8>, refusal: &Refusal) -> Result<(), TooLong> {
    let start = out.len();
    error(out, refusal);
    ready(out);
    if out.len() - start > MAX_ERROR_REPLY {
        out.truncate(start);
        return Err(TooLong);
    }
    Ok(())
}

/// ErrorResponse alone.
pub fn error(out: &mut Vec<u8>, refusal: &Refusal) {
    let mut refusal_text = refusal.text();
    refusal_text.truncate(MAX_ERROR_TEXT);
    message(out, b'E', |out| {
        fields(out, "ERROR", refusal.sqlstate(), &refusal_text);
        out.push(0);
    });
}

fn fields(out: &mut Vec<u8>, severity: &str, sqlstate: &str, message_text: &[u8]) {
    for (field, value) in [(b'S', severity.as_bytes()), (b'C', sqlstate.as_bytes()), (b'M', message_text)] {
        out.push(field);
        text(out, value);
    }
}

/// A string of the protocol; it ends at the first NUL, wherever that is.
fn text(out: &mut Vec<u8>, value: &[u8]) {
    out.extend(value.iter().take_while(|byte| **byte != 0));
    out.push(0);
}

/// Appends a message whose body `fill` appends.
pub(crate) fn message(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = u32::try_from(out.len() - start).expect("a console message is far below 4 GB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Cuts the next message off messages of our own: its tag, and all of it.
pub fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let length = rest.get(1..)?.first_chunk()?;
    let end = 1 + usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (whole, next) = rest.split_at_checked(end)?;
    *rest = next;
    Some((whole[0], whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::tests::messages;

    fn texts(bytes: &[u8]) -> Vec<String> {
        let text = |(tag, body): (u8, Vec<u8>)| format!("{}{}", char::from(tag), String::from_utf8_lossy(&body));
        messages(bytes).into_iter().map(text).collect()
    }

    #[test]
    fn login_in_order() {
        let mut out = Vec::new();
        let sent = [("client_encoding", "LATIN1"), ("application_name", "psql")];
        login(&mut out, sent, *b"abcdefgh", Some("hello"));
        let expected = [
            "R\0\0\0\0",
            "Sserver_version\x001.25.2/bouncer\0",
            "Sclient_encoding\0UTF8\0",
            "Sserver_encoding\0UTF8\0",
            "SDateStyle\0ISO\0",
            "STimeZone\0GMT\0",
            "Sstandard_conforming_strings\0on\0",
            "Sis_superuser\0on\0",
            "Sclient_encoding\0LATIN1\0",
            "Sapplication_name\0psql\0",
            "Kabcdefgh",
            "NSNOTICE\0C00000\0Mhello\0\0",
            "ZI",
        ];
        assert_eq!(texts(&out), expected);
    }

    #[test]
    fn answers() {
        let mut out = Vec::new();
        set_ignored(&mut out);
        assert_eq!(texts(&out), ["NSNOTICE\0C00000\0MSET ignored\0\0", "CSET\0"]);
        out.clear();
        assert_eq!(refuse(&mut out, &Refusal::ReloadFailed), Ok(()));
        let text = "ESERROR\0CF0000\0MRELOAD failed, see logs for additional details\0\0";
        assert_eq!(texts(&out), [text, "ZI"]);
        out.clear();
        done(&mut out, "SET a=b\0c");
        assert_eq!(texts(&out), ["CSET a=b\0", "ZI"]);
    }

    /// PgBouncer 1.18 answers an unknown command of 450 bytes and closes the connection at 451.
    #[test]
    fn long_errors_close_the_connection() {
        let mut out = vec![7];
        assert_eq!(refuse(&mut out, &Refusal::InvalidCommand(vec![b'?'; 450])), Ok(()));
        assert_eq!(out.len(), 1 + MAX_ERROR_REPLY);
        for length in [451, 1000, 100_000] {
            let mut out = vec![7];
            assert_eq!(refuse(&mut out, &Refusal::InvalidCommand(vec![b'?'; length])), Err(TooLong));
            assert_eq!(out, [7]);
        }
    }
}
