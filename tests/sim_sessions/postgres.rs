//! A PostgreSQL that knows as much as the scripts need: transactions, prepared statements, copy, one parameter.
//!
//! Its answers depend on nothing but what it was sent. So the same requests, sent by a client to one of its own, say what
//! the client must see through the pooler.

use std::collections::HashMap;

/// One backend.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// Input that is not a whole message yet.
    input: Vec<u8>,
    pub(crate) status: u8,
    statements: HashMap<Vec<u8>, Vec<u8>>,
    portal: Option<(Vec<u8>, Vec<u8>)>,
    skipping: bool,
    copying: bool,
    application_name: Vec<u8>,
}

pub(crate) fn message(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    out.extend_from_slice(&u32::try_from(len + 4).expect("short").to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn cstr(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|&byte| byte == 0).expect("scripts end their strings");
    (&bytes[..end], &bytes[end + 1..])
}

fn row(out: &mut Vec<u8>, value: &[u8]) {
    let len = u32::try_from(value.len()).expect("short").to_be_bytes();
    message(out, b'D', &[&[0, 1], &len, value]);
}

impl Postgres {
    pub(crate) fn new(application_name: &str) -> Self {
        Self {
            input: Vec::new(),
            status: b'I',
            statements: HashMap::new(),
            portal: None,
            skipping: false,
            copying: false,
            application_name: application_name.into(),
        }
    }

    /// No transaction, and not in the middle of anything.
    pub(crate) const fn is_idle(&self) -> bool {
        self.status == b'I' && !self.skipping && !self.copying
    }

    /// Would hear nothing but Flush, if `more` came too.
    pub(crate) fn hears_nothing_new(&self, more: &[u8]) -> bool {
        let under_way = [&self.input, more].concat();
        under_way.chunks(5).all(|message| message == b"H\0\0\0\x04")
    }

    pub(crate) const fn in_copy(&self) -> bool {
        self.copying
    }

    /// Takes bytes as they come, and appends its answers.
    pub(crate) fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while let [tag, a, b, c, d, after @ ..] = rest {
            let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4;
            let Some((body, tail)) = after.split_at_checked(len) else { break };
            self.one(*tag, body, out);
            rest = tail;
        }
        self.input = rest.to_vec();
    }

    fn one(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        if self.copying {
            return self.copy(tag, out);
        }
        if self.skipping && tag != b'S' {
            return;
        }
        match tag {
            b'Q' => {
                self.query(cstr(body).0, out);
                if !self.copying {
                    self.ready(out);
                }
            }
            b'P' => self.parse(body, out),
            b'B' => self.bind(body, out),
            b'D' => match self.statements.get(cstr(&body[1..]).0) {
                Some(_) => {
                    message(out, b't', &[&[0, 1, 0, 0, 0, 25]]);
                    message(out, b'T', &[&[0, 0]]);
                }
                None => self.unknown(cstr(&body[1..]).0, out),
            },
            b'E' => {
                let (text, value) = self.portal.clone().expect("scripts bind before they execute");
                row(out, &[&value[..], b"/", &text].concat());
                message(out, b'C', &[b"SELECT 1\0"]);
            }
            b'C' => {
                self.statements.remove(cstr(&body[1..]).0);
                message(out, b'3', &[]);
            }
            b'S' => {
                self.skipping = false;
                self.ready(out);
            }
            b'H' => {}
            other => panic!("{} is not for a server", char::from(other)),
        }
    }

    fn ready(&self, out: &mut Vec<u8>) {
        message(out, b'Z', &[&[self.status]]);
    }

    fn error(&mut self, code: &str, text: &[u8], out: &mut Vec<u8>) {
        message(out, b'E', &[b"SERROR\0C", code.as_bytes(), b"\0M", text, b"\0\0"]);
        if self.status == b'T' {
            self.status = b'E';
        }
    }

    fn unknown(&mut self, name: &[u8], out: &mut Vec<u8>) {
        self.error("26000", &[b"prepared statement \"", name, b"\" does not exist"].concat(), out);
        self.skipping = true;
    }

    fn query(&mut self, sql: &[u8], out: &mut Vec<u8>) {
        let word = sql.split(|&byte| byte == b' ').next().unwrap_or_default();
        match (word, self.status) {
            (b"COMMIT", status) => {
                self.status = b'I';
                message(out, b'C', &[if status == b'E' { b"ROLLBACK\0" } else { b"COMMIT\0" }]);
            }
            (_, b'E') => self.error("25P02", b"current transaction is aborted", out),
            (b"BEGIN", _) => {
                self.status = b'T';
                message(out, b'C', &[b"BEGIN\0"]);
            }
            (b"DISCARD", _) => {
                self.statements.clear();
                message(out, b'C', &[b"DISCARD ALL\0"]);
            }
            (b"SET", _) => {
                let name = sql.split(|&byte| byte == b'\'').nth(1).expect("SET x='y'");
                self.application_name = name.to_vec();
                message(out, b'S', &[b"application_name\0", name, b"\0"]);
                message(out, b'C', &[b"SET\0"]);
            }
            (b"whoami", _) => {
                message(out, b'T', &[&[0, 0]]);
                row(out, &self.application_name);
                message(out, b'C', &[b"SHOW\0"]);
            }
            (b"copy", _) => {
                self.copying = true;
                message(out, b'G', &[&[0, 0, 0]]);
            }
            (b"fail", _) => self.error("22012", b"division by zero", out),
            _ => {
                message(out, b'T', &[&[0, 0]]);
                row(out, sql);
                message(out, b'C', &[b"SELECT 1\0"]);
            }
        }
    }

    fn copy(&mut self, tag: u8, out: &mut Vec<u8>) {
        match tag {
            b'd' => return,
            b'c' => message(out, b'C', &[b"COPY 1\0"]),
            b'f' => self.error("57014", b"COPY from stdin failed", out),
            other => panic!("{} in the middle of a copy", char::from(other)),
        }
        self.copying = false;
        self.ready(out);
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let (name, rest) = cstr(body);
        if self.status == b'E' {
            self.error("25P02", b"current transaction is aborted", out);
            self.skipping = true;
        } else if !name.is_empty() && self.statements.contains_key(name) {
            self.error("42P05", &[b"prepared statement \"", name, b"\" already exists"].concat(), out);
            self.skipping = true;
        } else {
            self.statements.insert(name.to_vec(), cstr(rest).0.to_vec());
            message(out, b'1', &[]);
        }
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let (_, rest) = cstr(body);
        let (name, rest) = cstr(rest);
        let Some(text) = self.statements.get(name) else { return self.unknown(name, out) };
        // no formats, one value, no result formats
        let value = &rest[8..rest.len() - 2];
        self.portal = Some((text.clone(), value.to_vec()));
        message(out, b'2', &[]);
    }
}
