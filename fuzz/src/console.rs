//! The console: its grammar, its extended protocol, and what two processes tell each other over it.

use std::collections::HashMap;

use pgusher::admin::command::{Command, Rights};
use pgusher::admin::extended::{Session, Step};
use pgusher::admin::refusal::Refusal;
use pgusher::admin::{grammar, handover as rows, probe, reply};
use pgusher::relay::handover::{Context, put_client, put_server, take_client, take_reply, take_server};
use pgusher::relay::prepared::Statements;
use pgusher::relay::vars::{Interner, TrackedNames};
use pgusher::time::Micros;

use super::bytes::{Bytes, whole_messages};

pub(crate) fn console(data: &[u8]) {
    let _ = grammar::statement(data);
    let admin = Command::parse(data, Rights::Admin);
    assert_eq!(admin, Command::parse(&[data, b"\0SHOW POOLS"].concat(), Rights::Admin), "read beyond the NUL");
    let stats = Command::parse(data, Rights::Stats);
    match (&admin, &stats) {
        (Ok(admin), Ok(stats)) => assert!(admin == stats && !stats.needs_admin()),
        (Ok(admin), Err(refusal)) => {
            assert_eq!(*refusal, Refusal::AdminNeeded);
            assert!(!matches!(admin, Command::ShowFake(_) | Command::SetFake(_)));
        }
        (Err(_), Ok(stats)) => panic!("{stats:?} for everybody but admins"),
        (Err(_), Err(_)) => {}
    }
    if let Ok(Command::Set { key, value }) = &admin {
        let (key, value) = (key.replace('"', "\"\""), value.replace('\'', "''"));
        let quoted = format!("SET \"{key}\" = '{value}'");
        // with its quotes a text may be longer than what is allowed
        let fits = key.len() < 32 && value.len() < 128;
        assert!(!fits || Command::parse(quoted.as_bytes(), Rights::Admin) == admin, "{quoted}");
    }
    if let Ok(command) = &admin {
        assert!(!command.tag().contains('\0'));
        let _ = command.log_line();
    }
    let _ = probe::Probe::find(data);
}

pub(crate) fn extended(data: &[u8]) {
    let mut from = Bytes(data);
    let rights = if from.one() & 1 == 0 { Rights::Admin } else { Rights::Stats };
    let mut session = Session::default();
    let (mut syncs, mut readies) = (0, 0);
    while !from.0.is_empty() {
        let tag = b"PBDECSHFdcf"[usize::from(from.one()) % 11];
        let body = from.stretch();
        let (mut out, skipped) = (Vec::new(), session.skips());
        let step = session.receive(tag, body, rights, &mut out);
        syncs += usize::from(tag == b'S');
        match step {
            Step::Run(command) => {
                assert!(!skipped && (rights == Rights::Admin || !command.needs_admin()));
                let mut simple = Vec::new();
                if matches!(command, Command::Show(_)) {
                    reply::error(&mut simple, &Refusal::BadArguments);
                } else {
                    reply::done(&mut simple, &command.tag());
                }
                session.answer(&simple, true, &mut out);
            }
            Step::Refused(_) => assert!(session.skips() && !skipped),
            Step::Done => {}
        }
        let said = whole_messages(&out);
        let ready = said.iter().filter(|(tag, _)| *tag == b'Z').count();
        assert!(!skipped || tag == b'S' || said.is_empty(), "an answer to what is skipped");
        readies += ready;
        assert_eq!(syncs, readies, "one ReadyForQuery for each Sync");
    }
}

/// What a predecessor says is believed only as far as it makes sense.
pub(crate) fn handover(data: &[u8]) {
    let _ = rows::parse_state(data);
    let _ = rows::parse_fd(data);
    let names = TrackedNames::new([]);
    let mut table = Statements::default();
    let known: HashMap<_, _> =
        [&b"SELECT 1\0\0\0"[..], b"SELECT 2\0\0\0"].map(|t| table.intern(t)).map(|s| (s.number, s)).into();
    let mut interner = Interner::default();
    let mut ctx = Context { names: &names, interner: &mut interner, known: &known };
    let _ = take_reply(data, &names);
    let now = Micros(5);
    if let Some((client, input)) = take_client(data, &mut ctx, now) {
        let put = put_client(&client, &input, &names);
        let (again, same) = take_client(&put, &mut ctx, now).expect("it is ours");
        assert!(put_client(&again, &same, &names).len() == put.len() && input == same);
    }
    if let Some(server) = take_server(data, &mut ctx) {
        let put = put_server(&server, &names);
        let again = take_server(&put, &mut ctx).expect("it is ours");
        assert_eq!(put_server(&again, &names), put);
    }
}
