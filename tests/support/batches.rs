//! Random batches of the extended protocol, and what PostgreSQL answers to them, message by message.
//!
//! All clients use the same few names for statements out of the same few texts, so names collide between clients while texts
//! are shared. The model is PostgreSQL's: a name is taken until it is closed, deallocated or discarded, whatever server the
//! batch meets; an error skips to the next Sync.

use std::collections::HashMap;
use std::io::Result;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use super::dice::Dice;
use super::raw::{Message, Raw, field, first_column};

const NAMES: [&str; 4] = ["a", "b", "s0", "s1"];
const TEXTS: u64 = 12;

/// An answer that must come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Message(u8),
    Row(String),
    Error(&'static str),
}

/// What a batch must be answered with.
#[derive(Default)]
struct Batch {
    bytes: BytesMut,
    answers: Vec<Answer>,
}

/// A session and the names it has given.
pub(crate) struct Session {
    raw: Raw,
    names: HashMap<&'static str, u64>,
}

/// What became of a batch.
pub(crate) enum Outcome {
    Answered,
    /// The server was killed: the session is over.
    Killed,
}

impl Session {
    pub(crate) fn new(raw: Raw) -> Self {
        Self { raw, names: HashMap::new() }
    }

    /// Sends one to three batches at once, perhaps in pieces, and compares every answer.
    pub(crate) async fn work(&mut self, token: &str, dice: &mut Dice) -> Outcome {
        let mut batch = Batch::default();
        for part in 0..=dice.roll(3) {
            self.one(&mut batch, &format!("{token}.{part}"), dice);
        }
        if send_in_pieces(&mut self.raw, &batch.bytes, dice).await.is_err() {
            return Outcome::Killed;
        }
        self.compare(&batch).await
    }

    /// Sends a part of a batch, perhaps reads a part of the answers, and goes.
    pub(crate) async fn leave_in_the_middle(mut self, token: &str, dice: &mut Dice) {
        let mut batch = Batch::default();
        self.one(&mut batch, token, dice);
        self.one(&mut batch, token, dice);
        let sent = dice.roll(batch.bytes.len() as u64) as usize;
        if send_in_pieces(&mut self.raw, &batch.bytes[..sent], dice).await.is_ok() && dice.roll(2) == 0 {
            let patience = std::time::Duration::from_micros(dice.roll(3000));
            let _ = tokio::time::timeout(patience, self.raw.next()).await;
        }
    }

    async fn compare(&mut self, batch: &Batch) -> Outcome {
        for (at, expected) in batch.answers.iter().enumerate() {
            let Ok((tag, body)) = self.answer().await else { return Outcome::Killed };
            if tag == b'E' && matches!(field(&body, b'C').as_str(), "57P01" | "08P01") {
                return Outcome::Killed;
            }
            let got = match tag {
                b'D' => Answer::Row(first_column(body.clone())),
                tag => Answer::Message(tag),
            };
            let same = match expected {
                Answer::Error(code) => tag == b'E' && field(&body, b'C') == *code,
                expected => got == *expected,
            };
            assert!(same, "answer {at} is {got:?} {body:?}, expected {:?}", batch.answers);
        }
        Outcome::Answered
    }

    /// The next message that answers something.
    async fn answer(&mut self) -> Result<Message> {
        loop {
            let message = self.raw.next().await?;
            if !matches!(message.0, b'S' | b'N') {
                return Ok(message);
            }
        }
    }

    /// Adds one batch up to its ReadyForQuery.
    fn one(&mut self, batch: &mut Batch, token: &str, dice: &mut Dice) {
        match dice.roll(20) {
            0 => self.forget(batch, "DISCARD ALL"),
            1 => self.forget(batch, "DEALLOCATE ALL"),
            2 | 3 => {
                frontend::query(&format!("SELECT '{token}'"), &mut batch.bytes).expect("no NUL");
                batch.says(b"T");
                batch.answers.push(Answer::Row(token.into()));
                batch.says(b"C");
            }
            _ => self.extended(batch, token, dice),
        }
        batch.says(b"Z");
    }

    fn forget(&mut self, batch: &mut Batch, sql: &str) {
        frontend::query(sql, &mut batch.bytes).expect("no NUL");
        batch.says(b"C");
        self.names.clear();
    }

    fn extended(&mut self, batch: &mut Batch, token: &str, dice: &mut Dice) {
        let mut skipping = false;
        for _ in 0..1 + dice.roll(5) {
            let from = batch.answers.len();
            let before = skipping.then(|| self.names.clone());
            let failed = self.step(batch, token, dice);
            if let Some(before) = before {
                batch.answers.truncate(from);
                self.names = before;
            }
            skipping |= failed;
        }
        frontend::sync(&mut batch.bytes);
    }

    /// One request; true if it fails.
    fn step(&mut self, batch: &mut Batch, token: &str, dice: &mut Dice) -> bool {
        let name = NAMES[dice.roll(NAMES.len() as u64) as usize];
        match dice.roll(12) {
            0..=3 => self.prepare(batch, name, dice.roll(TEXTS)),
            4..=7 => self.run(batch, name, token),
            8 => self.describe(batch, name),
            9 => {
                frontend::close(b'S', name, &mut batch.bytes).expect("no NUL");
                self.names.remove(name);
                batch.says(b"3")
            }
            10 => {
                frontend::flush(&mut batch.bytes);
                false
            }
            _ => {
                frontend::parse("", "SELECT 1 / 0", [], &mut batch.bytes).expect("no NUL");
                batch.bind("", None);
                batch.says(b"1");
                batch.fails("22012")
            }
        }
    }

    fn prepare(&mut self, batch: &mut Batch, name: &'static str, text: u64) -> bool {
        frontend::parse(name, &format!("SELECT $1::text || '/{text}'"), [], &mut batch.bytes).expect("no NUL");
        if self.names.contains_key(name) {
            return batch.fails("42P05");
        }
        self.names.insert(name, text);
        batch.says(b"1")
    }

    fn run(&self, batch: &mut Batch, name: &str, token: &str) -> bool {
        batch.bind(name, Some(token));
        frontend::execute("", 0, &mut batch.bytes).expect("no NUL");
        let Some(text) = self.names.get(name) else { return batch.fails("26000") };
        batch.says(b"2");
        batch.answers.push(Answer::Row(format!("{token}/{text}")));
        batch.says(b"C")
    }

    fn describe(&self, batch: &mut Batch, name: &str) -> bool {
        frontend::describe(b'S', name, &mut batch.bytes).expect("no NUL");
        if self.names.contains_key(name) { batch.says(b"tT") } else { batch.fails("26000") }
    }
}

impl Batch {
    fn says(&mut self, tags: &[u8]) -> bool {
        self.answers.extend(tags.iter().map(|&tag| Answer::Message(tag)));
        false
    }

    fn fails(&mut self, code: &'static str) -> bool {
        self.answers.push(Answer::Error(code));
        true
    }

    fn bind(&mut self, statement: &str, value: Option<&str>) {
        let put = |value: &str, out: &mut BytesMut| {
            out.extend_from_slice(value.as_bytes());
            Ok(IsNull::No)
        };
        let bound = frontend::bind("", statement, [], value, put, [], &mut self.bytes);
        assert!(bound.is_ok(), "a small message without NUL");
    }
}

/// Half of the time as a whole, else cut at random places.
async fn send_in_pieces(raw: &mut Raw, mut bytes: &[u8], dice: &mut Dice) -> Result<()> {
    let whole = dice.roll(2) == 0;
    while !bytes.is_empty() {
        let size = if whole { bytes.len() } else { bytes.len().min(1 + dice.roll(40) as usize) };
        let (piece, rest) = bytes.split_at(size);
        raw.send(piece).await?;
        bytes = rest;
        tokio::task::yield_now().await;
    }
    Ok(())
}
