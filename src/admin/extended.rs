//! The extended query protocol at the console: prepared statements, portals, and results in the formats asked for.
//!
//! A [`Session`] takes the messages of one connection and says which command is to be run. The command runs as it would for
//! a simple query; its answer comes back through [`Session::answer`], which turns the messages of a simple answer into
//! those of an Execute. PgBouncer refuses all of this, so what happens here follows PostgreSQL (manual, chapter
//! "Frontend/Backend Protocol", "Extended Query"). The console is never in a transaction, whatever a client that said BEGIN
//! believes; but then its portals outlive Sync, because drivers fetch from them in several rounds.

use std::collections::HashMap;

use super::binary;
use super::command::{Command, Rights};
use super::probe::Probe;
use super::refusal::Refusal;
use super::reply::{self, message, next_message};
use super::show::columns::{self, Column, Kind};
use super::show::row;
use crate::wire::fields::split_cstr;
use crate::wire::tag::{backend as be, frontend as fe};

/// Named statements or portals that one connection may hold: far more than anybody needs, and little memory.
const MAX_NAMED: usize = 1000;
/// Longest name of a statement or portal, bytes.
const MAX_NAME: usize = 255;

/// What is to be done about a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The answer, if there is one, is written.
    Done,
    /// Run this, and give its answer to [`Session::answer`].
    Run(Command),
    /// An error was written, and what follows is skipped up to Sync.
    Refused(Refusal),
}

/// The extended protocol's state of one console connection.
#[derive(Debug, Default)]
pub struct Session {
    statements: HashMap<Box<[u8]>, Meaning>,
    portals: HashMap<Box<[u8]>, Portal>,
    /// After an error, up to Sync.
    skipping: bool,
    /// The client said BEGIN and nothing since that ends it.
    in_block: bool,
    running: Option<Running>,
}

/// What a statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    Command(Command),
    Probe(Probe),
}

#[derive(Debug)]
struct Portal {
    meaning: Meaning,
    columns: Vec<Column>,
    /// One for each column.
    formats: Vec<Format>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Binary,
}

/// How far a portal was executed.
#[derive(Debug)]
enum State {
    Fresh,
    /// `DataRow` messages that the client has not asked for yet.
    Suspended {
        rows: Vec<u8>,
        tag: Vec<u8>,
    },
    Finished,
}

/// The portal whose command is being run.
#[derive(Debug)]
struct Running {
    portal: Box<[u8]>,
    /// 0 is all of them.
    max_rows: u32,
    /// `DataRow` messages of the answer, unless all are wanted: then they are passed on as they come.
    rows: Vec<u8>,
}

impl Session {
    /// Whether messages other than Sync are to be passed over.
    #[must_use]
    pub const fn skips(&self) -> bool {
        self.skipping
    }

    /// A simple query has come in: the unnamed statement and portal are gone.
    pub fn forget_unnamed(&mut self) {
        self.statements.remove(&b""[..]);
        self.portals.remove(&b""[..]);
    }

    /// One of Parse, Bind, Describe, Execute, Close, Sync and Flush, by its tag.
    pub fn receive(&mut self, tag: u8, body: &[u8], rights: Rights, out: &mut Vec<u8>) -> Step {
        if tag == fe::SYNC {
            self.sync(out);
            return Step::Done;
        }
        if self.skipping {
            return Step::Done;
        }
        let step = match tag {
            fe::PARSE => self.parse(body, rights, out),
            fe::BIND => self.bind(body, out),
            fe::DESCRIBE => self.describe(body, out),
            fe::EXECUTE => self.execute(body, out),
            fe::CLOSE => self.close(body, out),
            // nothing is ever held back
            _ => Ok(None),
        };
        match step {
            Ok(None) => Step::Done,
            Ok(Some(command)) => Step::Run(command),
            Err(refusal) => {
                self.skipping = true;
                reply::error(out, &refusal);
                Step::Refused(refusal)
            }
        }
    }

    /// Is a command running that the extended protocol has sent?
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// The answer to the command that was run, or some messages of it, as a simple query would get them. Those of a simple
    /// query pass unchanged. `last`: the answer ends with them.
    pub fn answer(&mut self, simple: &[u8], last: bool, out: &mut Vec<u8>) {
        let Some(running) = &mut self.running else {
            out.extend_from_slice(simple);
            return;
        };
        let mut portal = self.portals.get_mut(&running.portal);
        let mut rest = simple;
        while let Some(portal) = &mut portal
            && let Some((tag, whole)) = next_message(&mut rest)
        {
            match tag {
                be::DATA_ROW if running.max_rows == 0 => portal.row(&whole[5..], out),
                be::DATA_ROW => portal.row(&whole[5..], &mut running.rows),
                be::COMMAND_COMPLETE => {
                    portal.state = State::Suspended { rows: std::mem::take(&mut running.rows), tag: whole.to_vec() };
                    portal.give(running.max_rows, out);
                }
                be::ERROR_RESPONSE => {
                    self.skipping = true;
                    out.extend_from_slice(whole);
                }
                be::NOTICE_RESPONSE => out.extend_from_slice(whole),
                // Describe has told the columns, and Sync will be answered
                _ => {}
            }
        }
        if last {
            self.running = None;
        }
    }

    /// Answers a simple query of probes.
    pub fn simple(&mut self, probes: &[Probe], out: &mut Vec<u8>) {
        if probes.is_empty() {
            self.answer_probe(&Probe::Empty, out);
        }
        for probe in probes {
            if let Probe::Value { column, value } = probe {
                describe_columns(out, &[*column], &[]);
                row::data(out, 1, |fields| {
                    fields.text(value);
                });
                reply::complete(out, "SELECT 1");
            } else {
                self.answer_probe(probe, out);
            }
        }
        self.sync(out);
    }

    fn sync(&mut self, out: &mut Vec<u8>) {
        self.skipping = false;
        if !self.in_block {
            self.portals.clear();
        }
        reply::ready(out);
    }

    fn parse(&mut self, body: &[u8], rights: Rights, out: &mut Vec<u8>) -> Result<Option<Command>, Refusal> {
        let (name, rest) = split_cstr(body).ok_or(Refusal::Malformed)?;
        let (query, rest) = split_cstr(rest).ok_or(Refusal::Malformed)?;
        let (types, _) = u16_at(rest)?;
        if name.is_empty() {
            // it is gone even if nothing takes its place
            self.statements.remove(name);
        }
        if types > 0 {
            return Err(Refusal::Parameters);
        }
        check_name(name)?;
        if !name.is_empty() && self.statements.contains_key(name) {
            return Err(Refusal::StatementExists(name.to_vec()));
        }
        let meaning = match Probe::find(query) {
            Some(probe) => Meaning::Probe(probe),
            None => match Command::parse(query, rights)? {
                // a successor asks by simple query
                Command::Handover => return Err(Refusal::InvalidCommand(query.to_vec())),
                command => Meaning::Command(command),
            },
        };
        check_room(&self.statements, name)?;
        self.statements.insert(name.into(), meaning);
        message(out, be::PARSE_COMPLETE, |_| {});
        Ok(None)
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Option<Command>, Refusal> {
        let (name, rest) = split_cstr(body).ok_or(Refusal::Malformed)?;
        let (statement, rest) = split_cstr(rest).ok_or(Refusal::Malformed)?;
        let (parameter_formats, rest) = u16_at(rest)?;
        let rest = rest.get(2 * usize::from(parameter_formats)..).ok_or(Refusal::Malformed)?;
        let (parameters, rest) = u16_at(rest)?;
        if parameters > 0 {
            return Err(Refusal::Parameters);
        }
        let meaning = self.statements.get(statement).ok_or_else(|| Refusal::NoStatement(statement.to_vec()))?.clone();
        check_name(name)?;
        if !name.is_empty() && self.portals.contains_key(name) {
            return Err(Refusal::PortalExists(name.to_vec()));
        }
        let columns = meaning.columns();
        let formats = formats(rest, columns.len())?;
        check_room(&self.portals, name)?;
        self.portals.insert(name.into(), Portal { meaning, columns, formats, state: State::Fresh });
        message(out, be::BIND_COMPLETE, |_| {});
        Ok(None)
    }

    fn describe(&self, body: &[u8], out: &mut Vec<u8>) -> Result<Option<Command>, Refusal> {
        let (kind, name) = target(body)?;
        match kind {
            b'S' => {
                let statement = self.statements.get(name).ok_or_else(|| Refusal::NoStatement(name.to_vec()))?;
                message(out, be::PARAMETER_DESCRIPTION, |out| out.extend_from_slice(&0_u16.to_be_bytes()));
                describe_columns(out, &statement.columns(), &[]);
            }
            b'P' => {
                let portal = self.portals.get(name).ok_or_else(|| Refusal::NoPortal(name.to_vec()))?;
                describe_columns(out, &portal.columns, &portal.formats);
            }
            _ => return Err(Refusal::Malformed),
        }
        Ok(None)
    }

    fn execute(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Option<Command>, Refusal> {
        let (name, rest) = split_cstr(body).ok_or(Refusal::Malformed)?;
        let max_rows = rest.first_chunk().ok_or(Refusal::Malformed)?;
        // a negative number of rows means all, as in PostgreSQL
        let max_rows = u32::try_from(i32::from_be_bytes(*max_rows)).unwrap_or(0);
        let portal = self.portals.get_mut(name).ok_or_else(|| Refusal::NoPortal(name.to_vec()))?;
        match (&portal.state, portal.meaning.clone()) {
            (State::Fresh, Meaning::Command(command)) => {
                // a command that fails, or is never answered, is not run again
                portal.state = State::Finished;
                self.running = Some(Running { portal: name.into(), max_rows, rows: Vec::new() });
                return Ok(Some(command));
            }
            (State::Fresh, Meaning::Probe(probe)) => {
                self.probe(name, &probe, max_rows, out);
            }
            (State::Suspended { .. }, _) => portal.give(max_rows, out),
            (State::Finished, _) if portal.columns.is_empty() => return Err(Refusal::PortalDone(name.to_vec())),
            (State::Finished, _) => reply::complete(out, "SHOW"),
        }
        Ok(None)
    }

    fn probe(&mut self, name: &[u8], probe: &Probe, max_rows: u32, out: &mut Vec<u8>) {
        if let Some(portal) = self.portals.get_mut(name) {
            portal.state = State::Finished;
            if let Probe::Value { value, .. } = probe {
                let mut simple = Vec::new();
                row::data(&mut simple, 1, |fields| {
                    fields.text(value);
                });
                let mut rows = Vec::new();
                portal.row(&simple[5..], &mut rows);
                let mut tag = Vec::new();
                reply::complete(&mut tag, "SELECT 1");
                portal.state = State::Suspended { rows, tag };
                return portal.give(max_rows, out);
            }
        }
        self.answer_probe(probe, out);
    }

    /// The answer without rows, and what it changes here.
    fn answer_probe(&mut self, probe: &Probe, out: &mut Vec<u8>) {
        match probe {
            Probe::Empty => message(out, be::EMPTY_QUERY_RESPONSE, |_| {}),
            Probe::Nothing(tag) => reply::complete(out, tag),
            Probe::BlockStarts(tag) | Probe::BlockEnds(tag) => {
                self.in_block = matches!(probe, Probe::BlockStarts(_));
                reply::complete(out, tag);
            }
            Probe::SetIgnored => reply::set_ignored(out),
            Probe::ForgetAll(tag) => {
                // the unnamed one is not among those that are deallocated
                self.statements.retain(|name, _| name.is_empty());
                reply::complete(out, tag);
            }
            Probe::Forget(statement) => {
                self.statements.remove(statement.as_bytes());
                reply::complete(out, "DEALLOCATE");
            }
            Probe::Value { .. } => {}
        }
    }

    fn close(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Option<Command>, Refusal> {
        let (kind, name) = target(body)?;
        match kind {
            b'S' => drop(self.statements.remove(name)),
            b'P' => drop(self.portals.remove(name)),
            _ => return Err(Refusal::Malformed),
        }
        message(out, be::CLOSE_COMPLETE, |_| {});
        Ok(None)
    }
}

impl Meaning {
    /// The columns of its rows; none if it answers with a tag alone.
    fn columns(&self) -> Vec<Column> {
        match self {
            Self::Command(Command::Show(topic)) => columns::of(*topic).to_vec(),
            Self::Command(Command::ShowFake(fake)) => vec![Column { name: fake.name(), kind: Kind::Text }],
            Self::Command(_) => Vec::new(),
            Self::Probe(probe) => probe.column().into_iter().collect(),
        }
    }
}

impl Portal {
    /// Appends a row to `out` in the portal's formats. `body` is that of a DataRow in text format.
    fn row(&self, body: &[u8], out: &mut Vec<u8>) {
        message(out, be::DATA_ROW, |out| {
            let Some((count, mut rest)) = body.split_at_checked(2) else { return };
            out.extend_from_slice(count);
            for (column, format) in self.columns.iter().zip(&self.formats) {
                let Some((value, next)) = field(rest) else { return };
                rest = next;
                let binary = value.filter(|_| *format == Format::Binary).and_then(|text| binary::of(column.kind, text));
                let Some(bytes) = binary.as_deref().or(value) else {
                    out.extend_from_slice(&(-1_i32).to_be_bytes());
                    continue;
                };
                let length = i32::try_from(bytes.len()).expect("a console value is far below 2 GB");
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(bytes);
            }
        });
    }

    /// Gives up to `max_rows` of the rows that are left, 0 being all.
    fn give(&mut self, max_rows: u32, out: &mut Vec<u8>) {
        let State::Suspended { rows, tag } = &mut self.state else { return };
        let mut rest = rows.as_slice();
        let mut given = 0;
        while (max_rows == 0 || given < max_rows)
            && let Some((_, whole)) = next_message(&mut rest)
        {
            out.extend_from_slice(whole);
            given += 1;
        }
        // as in PostgreSQL, who got as many rows as he asked for is not told yet that there are no more
        if rest.is_empty() && (max_rows == 0 || given < max_rows) {
            out.extend_from_slice(tag);
            self.state = State::Finished;
            return;
        }
        let gone = rows.len() - rest.len();
        rows.drain(..gone);
        message(out, be::PORTAL_SUSPENDED, |_| {});
    }
}

fn describe_columns(out: &mut Vec<u8>, columns: &[Column], formats: &[Format]) {
    if columns.is_empty() {
        return message(out, be::NO_DATA, |_| {});
    }
    let binary = |index| formats.get(index) == Some(&Format::Binary);
    row::columns_description(out, columns.iter().copied(), |index| i16::from(binary(index)));
}

/// The result formats at the end of a Bind: none, one for all columns, or one for each.
fn formats(rest: &[u8], columns: usize) -> Result<Vec<Format>, Refusal> {
    let (count, rest) = u16_at(rest)?;
    let codes = rest.get(..2 * usize::from(count)).ok_or(Refusal::Malformed)?;
    let format = |code: &[u8]| match code {
        [0, 0] => Ok(Format::Text),
        [0, 1] => Ok(Format::Binary),
        _ => Err(Refusal::ResultFormat),
    };
    let given = codes.chunks_exact(2).map(format).collect::<Result<Vec<_>, _>>()?;
    match given.as_slice() {
        [] => Ok(vec![Format::Text; columns]),
        [all] => Ok(vec![*all; columns]),
        // without columns there is nothing to be formatted
        _ if columns == 0 => Ok(Vec::new()),
        _ if given.len() == columns => Ok(given),
        _ => Err(Refusal::ResultFormats { given: given.len(), columns }),
    }
}

/// What a Describe or a Close is about: the letter, and the name.
fn target(body: &[u8]) -> Result<(u8, &[u8]), Refusal> {
    let (kind, rest) = body.split_first().ok_or(Refusal::Malformed)?;
    let (name, _) = split_cstr(rest).ok_or(Refusal::Malformed)?;
    Ok((*kind, name))
}

const fn check_name(name: &[u8]) -> Result<(), Refusal> {
    if name.len() > MAX_NAME { Err(Refusal::NameTooLong) } else { Ok(()) }
}

fn check_room<T>(held: &HashMap<Box<[u8]>, T>, name: &[u8]) -> Result<(), Refusal> {
    let room = held.len() < MAX_NAMED || held.contains_key(name);
    if room { Ok(()) } else { Err(Refusal::TooManyNamed) }
}

fn u16_at(bytes: &[u8]) -> Result<(u16, &[u8]), Refusal> {
    let (number, rest) = bytes.split_first_chunk().ok_or(Refusal::Malformed)?;
    Ok((u16::from_be_bytes(*number), rest))
}

/// One field of a DataRow, NULL being `None`, and what follows it.
fn field(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else { return Some((None, rest)) };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((Some(value), rest))
}

#[cfg(test)]
mod tests;
