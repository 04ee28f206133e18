//! What clients say: random transactions with values that nobody else uses.

use super::postgres::{Postgres, message};
use super::world::Dice;

const NAMES: [&[u8]; 3] = [b"a", b"b", b"c"];
const TEXTS: [&[u8]; 3] = [b"SELECT $1 one", b"SELECT $1 two", b"SELECT $1 three"];

/// Appends one request, or a batch of them, to what the client says. `own` is the client's own PostgreSQL, which has heard
/// everything before.
pub(crate) fn next(own: &Postgres, token: u64, dice: &mut Dice, out: &mut Vec<u8>) {
    let query = |out: &mut Vec<u8>, sql: &[u8]| message(out, b'Q', &[sql, b"\0"]);
    if own.in_copy() {
        return match dice.below(4) {
            0 => message(out, b'f', &[b"no\0"]),
            1 => message(out, b'c', &[]),
            _ => message(out, b'd', &[&vec![b'r'; dice.below(40)]]),
        };
    }
    // a failed transaction ends
    if own.status == b'E' {
        return query(out, b"COMMIT");
    }
    match dice.below(24) {
        0..=2 if own.status == b'I' => query(out, b"BEGIN"),
        0..=7 if own.status == b'T' => query(out, b"COMMIT"),
        3 if own.status == b'I' => query(out, b"DISCARD ALL"),
        8 => query(out, b"whoami"),
        9 => query(out, b"fail"),
        10 => query(out, b"copy"),
        11 => {
            query(out, b"copy");
            message(out, b'd', &[b"row"]);
            message(out, b'c', &[]);
        }
        12 => query(out, &value(token, 1100 + dice.below(1500))),
        13..=15 => query(out, &value(token, 0)),
        _ => batch(token, dice, out),
    }
}

fn value(token: u64, len: usize) -> Vec<u8> {
    let mut value = format!("q{token}").into_bytes();
    value.resize(value.len().max(len), b'.');
    value
}

/// Extended requests up to Sync.
fn batch(token: u64, dice: &mut Dice, out: &mut Vec<u8>) {
    for part in 0..1 + dice.below(3) {
        let name = dice.pick(&NAMES);
        match dice.below(8) {
            0..=2 => parse(name, dice, out),
            3 => message(out, b'C', &[b"S", name, b"\0"]),
            4 => message(out, b'D', &[b"S", name, b"\0"]),
            5 => {
                parse(b"", dice, out);
                run(b"", token, part, dice, out);
            }
            6 => message(out, b'H', &[]),
            _ => run(name, token, part, dice, out),
        }
    }
    message(out, b'S', &[]);
}

fn parse(name: &[u8], dice: &mut Dice, out: &mut Vec<u8>) {
    let filling = if dice.one_in(8) { vec![b' '; 1500] } else { Vec::new() };
    message(out, b'P', &[name, b"\0", dice.pick(&TEXTS), &filling, b"\0\0\0"]);
}

fn run(name: &[u8], token: u64, part: usize, dice: &mut Dice, out: &mut Vec<u8>) {
    let mut value = format!("v{token}.{part}").into_bytes();
    if dice.one_in(8) {
        value.resize(1400, b'.');
    }
    let len = u32::try_from(value.len()).expect("short").to_be_bytes();
    message(out, b'B', &[b"\0", name, b"\0", &[0, 0, 0, 1], &len, &value, &[0, 0]]);
    message(out, b'E', &[b"\0\0\0\0\0"]);
}
