//! The two results with which a process hands its sockets to a successor, as the successor reads them, and the second one
//! as it is written.
//!
//! SHOW FDS is PgBouncer's own. HANDOVER is ours: what the rows of SHOW FDS have no columns for. PgBouncer knows no such
//! command and refuses it, which tells the two apart.

use super::reply;
use super::show::columns::{Column, Kind};
use super::show::row;
use super::snapshot::{FdRow, FdTask};

/// The form of what HANDOVER says; a successor that knows another one asks for nothing.
pub const VERSION: i64 = 2;

/// One row of HANDOVER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRow {
    pub kind: StateKind,
    /// The descriptor or the number of what it is about.
    pub number: i64,
    pub value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    Version,
    /// A prepared statement, by number.
    Statement,
    /// A client, by descriptor.
    Client,
    /// What a client that replicates asked for, by descriptor.
    Replication,
    /// A server, by descriptor.
    Server,
    /// The login reply of a pool.
    Pool,
}

const KINDS: [(StateKind, &str); 6] = [
    (StateKind::Version, "version"),
    (StateKind::Statement, "statement"),
    (StateKind::Client, "client"),
    (StateKind::Replication, "replication"),
    (StateKind::Server, "server"),
    (StateKind::Pool, "pool"),
];

/// The reply to HANDOVER, without its ReadyForQuery.
pub fn state(out: &mut Vec<u8>, rows: &[StateRow]) {
    let columns = [("kind", Kind::Text), ("number", Kind::Int8), ("value", Kind::Bytea)];
    row::columns_description(out, columns.into_iter().map(|(name, kind)| Column { name, kind }), |_| 0);
    for state in rows {
        let word = KINDS.iter().find(|(kind, _)| *kind == state.kind).map_or("", |(_, word)| word);
        row::data(out, 3, |fields| {
            fields.text(word).int8(state.number).text(&hex(&state.value));
        });
    }
    reply::complete(out, "HANDOVER");
}

/// A bytea in text form.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(b"\\x")?;
    if digits.len() % 2 != 0 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// The fields of a `DataRow`; `None` inside is NULL.
fn fields(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut found = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
            found.push(None);
            rest = after;
            continue;
        };
        let (value, after) = after.split_at_checked(len)?;
        found.push(Some(value));
        rest = after;
    }
    Some(found)
}

/// Reads the body of a `DataRow` of HANDOVER.
#[must_use]
pub fn parse_state(body: &[u8]) -> Option<StateRow> {
    let fields = fields(body)?;
    let [Some(kind), Some(number), Some(value)] = fields[..] else { return None };
    let (kind, _) = *KINDS.iter().find(|(_, word)| word.as_bytes() == kind)?;
    Some(StateRow { kind, number: std::str::from_utf8(number).ok()?.parse().ok()?, value: unhex(value)? })
}

/// Reads the body of a `DataRow` of SHOW FDS. Columns that an older process does not have are NULL, those that a newer one
/// adds are passed over.
#[must_use]
pub fn parse_fd(body: &[u8]) -> Option<FdRow> {
    let fields = fields(body)?;
    let bytes = |at: usize| fields.get(at).copied().flatten();
    let text = |at: usize| bytes(at).map(|bytes| std::str::from_utf8(bytes).map(str::to_owned).ok());
    // outer None: not UTF-8
    let optional = |at: usize| text(at).map_or(Some(None), |text| text.map(Some));
    let required = |at: usize| text(at).flatten();
    let key = |at: usize| bytes(at).map_or(Some(None), |bytes| unhex(bytes).map(Some));
    let task = match bytes(1)? {
        b"pooler" => FdTask::Pooler,
        b"client" => FdTask::Client,
        b"server" => FdTask::Server,
        _ => return None,
    };
    Some(FdRow {
        fd: required(0)?.parse().ok()?,
        task,
        user: optional(2)?,
        database: optional(3)?,
        addr: required(4)?,
        port: required(5)?.parse().ok()?,
        cancel: cancel(&required(6)?)?,
        link: required(7)?.parse().ok()?,
        client_encoding: optional(8)?,
        std_strings: optional(9)?,
        datestyle: optional(10)?,
        timezone: optional(11)?,
        password: bytes(12).map(<[u8]>::to_vec),
        scram_client_key: key(13)?,
        scram_server_key: key(14)?,
    })
}

/// A cancel key as a number; some print it unsigned.
fn cancel(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| text.parse::<u64>().ok().map(|key| i64::from_be_bytes(key.to_be_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show;

    fn bodies(bytes: &[u8]) -> Vec<Vec<u8>> {
        show::tests::messages(bytes).into_iter().filter(|(tag, _)| *tag == b'D').map(|(_, b)| b).collect()
    }

    #[test]
    fn rows_of_fds_are_read_as_they_are_written() {
        let full = FdRow {
            fd: 13,
            task: FdTask::Server,
            user: Some("app".to_owned()),
            database: Some("p0".to_owned()),
            addr: "127.0.0.1".to_owned(),
            port: 5432,
            cancel: i64::MIN + 7,
            link: 14,
            client_encoding: Some("UTF8".to_owned()),
            std_strings: Some("on".to_owned()),
            datestyle: Some("ISO, MDY".to_owned()),
            timezone: Some(String::new()),
            password: Some(b"p\xe4ss".to_vec()),
            scram_client_key: Some(vec![0, 1, 0xfe]),
            scram_server_key: Some(Vec::new()),
        };
        let bare = FdRow { fd: 3, task: FdTask::Pooler, addr: "unix".to_owned(), port: 6432, ..FdRow::default() };
        let mut out = Vec::new();
        show::fds(&mut out, [full.clone(), bare.clone()]);
        let read: Vec<_> = bodies(&out).iter().map(|body| parse_fd(body)).collect();
        assert!(read == [Some(full), Some(bare)]);
    }

    #[test]
    fn an_unsigned_cancel_key_is_the_same_key() {
        assert_eq!(cancel("18446744073709551615"), Some(-1));
        assert_eq!(cancel("-1"), Some(-1));
        assert_eq!(cancel("x"), None);
    }

    #[test]
    fn rows_of_state_are_read_as_they_are_written() {
        let rows = [
            StateRow { kind: StateKind::Version, number: VERSION, value: Vec::new() },
            StateRow { kind: StateKind::Client, number: 12, value: (0..=255).collect() },
        ];
        let mut out = Vec::new();
        state(&mut out, &rows);
        let read: Vec<_> = bodies(&out).iter().map(|body| parse_state(body).expect("valid")).collect();
        assert_eq!(read, rows);
    }

    #[test]
    fn what_was_cut_is_refused() {
        let mut out = Vec::new();
        let row = StateRow { kind: StateKind::Pool, number: 0, value: vec![1, 2] };
        state(&mut out, &[row]);
        let body = &bodies(&out)[0];
        for end in 0..body.len() {
            assert!(parse_state(&body[..end]).is_none() && parse_fd(&body[..end]).is_none());
        }
        assert!(unhex(b"\\x0").is_none() && unhex(b"00").is_none() && unhex(b"\\x0g").is_none());
    }
}
