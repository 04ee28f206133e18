use super::*;
use crate::admin::command::Topic;
use crate::admin::show;
use crate::admin::show::tests::messages;

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn parse(name: &str, query: &str) -> (u8, Vec<u8>) {
    (b'P', [cstr(name), cstr(query), vec![0, 0]].concat())
}

fn bind(portal: &str, statement: &str, formats: &[u16]) -> (u8, Vec<u8>) {
    let count = u16::try_from(formats.len()).expect("a few");
    let codes = std::iter::once(count).chain(formats.iter().copied()).flat_map(u16::to_be_bytes).collect();
    (b'B', [cstr(portal), cstr(statement), vec![0; 4], codes].concat())
}

fn execute(portal: &str, rows: u32) -> (u8, Vec<u8>) {
    (b'E', [cstr(portal), rows.to_be_bytes().to_vec()].concat())
}

fn about(tag: u8, what: &str) -> (u8, Vec<u8>) {
    (tag, cstr(what))
}

const SYNC: (u8, Vec<u8>) = (b'S', Vec::new());

/// What a command that was to be run is answered with.
fn run(command: &Command) -> Vec<u8> {
    let mut out = Vec::new();
    match command {
        Command::Show(Topic::State) => show::state(&mut out, crate::admin::snapshot::State::Active),
        Command::Show(Topic::DnsZones) => {
            let zone = |serial| crate::admin::snapshot::DnsZoneRow { zonename: "z".into(), serial, count: 2 };
            show::dns_zones(&mut out, &[zone(1), zone(258)]);
        }
        Command::ShowFake(fake) => show::fake(&mut out, *fake),
        Command::Pause(Some(_)) => reply::error(&mut out, &Refusal::NotPaused),
        command => reply::complete(&mut out, &command.tag()),
    }
    reply::ready(&mut out);
    out
}

/// The tags and, for errors, codes of what comes back; results in full behind their tag.
fn talk(session: &mut Session, said: &[(u8, Vec<u8>)]) -> String {
    let mut out = Vec::new();
    for (tag, body) in said {
        if let Step::Run(command) = session.receive(*tag, body, Rights::Admin, &mut out) {
            let answer = run(&command);
            let mut rest = answer.as_slice();
            while let Some((_, message)) = next_message(&mut rest) {
                session.answer(message, rest.is_empty(), &mut out);
            }
        }
    }
    let word = |(tag, body): (u8, Vec<u8>)| match tag {
        b'E' => format!(
            "E{} ",
            String::from_utf8_lossy(&body).split('\0').nth(1).unwrap_or_default().trim_start_matches('C')
        ),
        b'C' => format!("C({}) ", String::from_utf8_lossy(&body).trim_end_matches('\0')),
        tag => format!("{} ", char::from(tag)),
    };
    messages(&out).into_iter().map(word).collect::<String>().trim_end().to_owned()
}

#[test]
fn a_command_in_one_batch() {
    let batch = [parse("", "SHOW STATE"), bind("", "", &[]), about(b'D', "P"), execute("", 0), SYNC];
    assert_eq!(talk(&mut Session::default(), &batch), "1 2 T D D D C(SHOW) Z");
    let batch = [parse("", "RELOAD"), bind("", "", &[1]), about(b'D', "P"), execute("", 0), SYNC];
    assert_eq!(talk(&mut Session::default(), &batch), "1 2 n C(RELOAD) Z");
    let batch = [parse("", "SHOW HELP"), about(b'D', "S"), SYNC];
    assert_eq!(talk(&mut Session::default(), &batch), "1 t n Z");
}

#[test]
fn statements_live_until_they_are_closed() {
    let mut session = Session::default();
    assert_eq!(talk(&mut session, &[parse("s", "SHOW timezone"), about(b'D', "Ss"), SYNC]), "1 t T Z");
    for _ in 0..2 {
        assert_eq!(talk(&mut session, &[bind("", "s", &[]), execute("", 0), SYNC]), "2 D C(SHOW) Z");
    }
    assert_eq!(talk(&mut session, &[parse("s", "RELOAD"), SYNC]), "E42P05 Z");
    assert_eq!(talk(&mut session, &[about(b'C', "Ss"), about(b'C', "Ss"), bind("", "s", &[]), SYNC]), "3 3 E26000 Z");
    let batch = [parse("s", "RELOAD"), parse("all", "DISCARD ALL"), bind("", "all", &[]), execute("", 0), SYNC];
    assert_eq!(talk(&mut session, &batch), "1 1 2 C(DISCARD ALL) Z");
    assert_eq!(talk(&mut session, &[bind("", "s", &[]), SYNC]), "E26000 Z");
    talk(
        &mut session,
        &[parse("all", "DEALLOCATE ALL"), parse("", "SHOW STATE"), bind("", "all", &[]), execute("", 0), SYNC],
    );
    assert_eq!(talk(&mut session, &[bind("", "all", &[]), SYNC]), "E26000 Z");
    assert_eq!(talk(&mut session, &[bind("", "", &[]), SYNC]), "2 Z", "the unnamed statement stays");
    assert_eq!(talk(&mut session, &[parse("", "nonsense"), SYNC]), "E08P01 Z");
    assert_eq!(talk(&mut session, &[bind("", "", &[]), SYNC]), "E26000 Z", "what was there before is not run instead");
    session.receive(b'P', &parse("", "RELOAD").1, Rights::Admin, &mut Vec::new());
    session.forget_unnamed();
    assert_eq!(talk(&mut session, &[bind("", "", &[]), SYNC]), "E26000 Z");
}

#[test]
fn an_error_skips_to_sync() {
    let mut session = Session::default();
    let batch = [parse("", "nonsense"), bind("", "", &[]), about(b'D', "P"), execute("", 0), (b'H', vec![])];
    assert_eq!(talk(&mut session, &batch), "E08P01");
    assert!(session.skips());
    assert_eq!(talk(&mut session, &[SYNC, SYNC]), "Z Z");
    let failing = [parse("", "PAUSE p0"), bind("", "", &[]), execute("", 0), execute("", 0), SYNC];
    assert_eq!(talk(&mut session, &failing), "1 2 E08P01 Z");
    assert_eq!(
        talk(&mut session, &[parse("", "RELOAD"), bind("", "", &[]), execute("", 0), execute("", 0), SYNC]),
        "1 2 C(RELOAD) E55000 Z"
    );
}

#[test]
fn stats_users_are_told_at_parse() {
    let mut out = Vec::new();
    let (tag, body) = parse("", "RELOAD");
    let step = Session::default().receive(tag, &body, Rights::Stats, &mut out);
    assert_eq!(step, Step::Refused(Refusal::AdminNeeded));
    let mut session = Session::default();
    let (tag, body) = parse("", "SET extra_float_digits = 3");
    assert_eq!(session.receive(tag, &body, Rights::Stats, &mut out), Step::Done);
}

#[test]
fn rows_come_in_portions_and_formats() {
    let mut session = Session::default();
    let batch = [parse("", "SHOW STATE"), bind("", "", &[]), execute("", 2), execute("", 2), execute("", 2), SYNC];
    assert_eq!(talk(&mut session, &batch), "1 2 D D s D C(SHOW) C(SHOW) Z");
    assert_eq!(talk(&mut session, &[execute("", 0), SYNC]), "E34000 Z", "portals end with their batch");
    let exactly = [bind("", "", &[]), execute("", 3), execute("", 3), SYNC];
    assert_eq!(talk(&mut session, &exactly), "2 D D D s C(SHOW) Z");

    let mut out = Vec::new();
    for (tag, body) in [parse("", "SHOW DNS_ZONES"), bind("p", "", &[0, 1, 1]), about(b'D', "Pp"), execute("p", 0)] {
        if let Step::Run(command) = session.receive(tag, &body, Rights::Admin, &mut out) {
            session.answer(&run(&command), true, &mut out);
        }
    }
    let got = messages(&out);
    // a type modifier of -1, then the format code
    let end = |at: &&[u8]| at[..4] == [0xff; 4] && at[4] == 0;
    let formats: Vec<u8> = got[2].1.windows(6).filter(end).map(|at| at[5]).collect();
    assert_eq!(formats, [0, 1, 1]);
    assert_eq!(
        got[4].1,
        [&[0, 3, 0, 0, 0, 1, b'z', 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2][..], &[0, 0, 0, 4, 0, 0, 0, 2]].concat()
    );
}

#[test]
fn portals_outlive_sync_between_begin_and_its_end() {
    let mut session = Session::default();
    let begin = [parse("", "BEGIN"), bind("", "", &[]), execute("", 0)];
    assert_eq!(talk(&mut session, &begin), "1 2 C(BEGIN)");
    assert_eq!(talk(&mut session, &[parse("", "SHOW STATE"), bind("c", "", &[]), execute("c", 1), SYNC]), "1 2 D s Z");
    assert_eq!(talk(&mut session, &[bind("c", "", &[]), SYNC]), "E42P03 Z");
    assert_eq!(talk(&mut session, &[execute("c", 0), SYNC]), "D D C(SHOW) Z");
    assert_eq!(talk(&mut session, &[parse("", "COMMIT"), bind("", "", &[]), execute("", 0), SYNC]), "1 2 C(COMMIT) Z");
    assert_eq!(talk(&mut session, &[execute("c", 0), SYNC]), "E34000 Z");
}

#[test]
fn formats_do_not_matter_without_columns() {
    let mut session = Session::default();
    for query in ["BEGIN", "COMMIT"] {
        let batch = [parse("", query), bind("", "", &[1, 1, 0]), execute("", 0), SYNC];
        assert_eq!(talk(&mut session, &batch), format!("1 2 C({query}) Z"));
    }
}

#[test]
fn probes_are_answered_without_a_command() {
    let mut session = Session::default();
    for (query, answer) in [
        ("", "1 2 n I Z"),
        ("SELECT 1", "1 2 T D C(SELECT 1) Z"),
        ("SET extra_float_digits = 3", "1 2 n N C(SET) Z"),
        ("DEALLOCATE x", "1 2 n C(DEALLOCATE) Z"),
        ("ROLLBACK", "1 2 n C(ROLLBACK) Z"),
    ] {
        let batch = [parse("", query), bind("", "", &[1]), about(b'D', "P"), execute("", 0), SYNC];
        assert_eq!(talk(&mut session, &batch), answer, "{query}");
    }
}

#[test]
fn what_is_malformed_or_unknown_is_an_error() {
    let mut session = Session::default();
    let typed = (b'P', [cstr(""), cstr("RELOAD"), vec![0, 1, 0, 0, 0, 23]].concat());
    let long = "x".repeat(256);
    talk(&mut session, &[parse("s", "SHOW STATE"), SYNC]);
    for (said, code) in [
        ((b'P', b"x".to_vec()), "08P01"),
        ((b'P', cstr("x")), "08P01"),
        ((b'B', cstr("x")), "08P01"),
        ((b'B', [cstr(""), cstr("s"), vec![255, 255]].concat()), "08P01"),
        ((b'B', [cstr(""), cstr("s"), vec![0, 0, 0, 1, 255, 255, 255, 255, 0, 0]].concat()), "0A000"),
        ((b'D', vec![]), "08P01"),
        ((b'D', cstr("Xs")), "08P01"),
        ((b'C', cstr("X")), "08P01"),
        ((b'E', cstr("")), "08P01"),
        (typed, "0A000"),
        (parse(&long, "RELOAD"), "42622"),
        (bind(&long, "s", &[]), "42622"),
        (bind("", "s", &[2]), "22023"),
        (bind("", "s", &[0, 0, 0]), "08P01"),
        (about(b'D', "Pnone"), "34000"),
        (about(b'D', "Snone"), "26000"),
        (execute("none", 0), "34000"),
    ] {
        assert_eq!(talk(&mut session, &[said.clone(), SYNC]), format!("E{code} Z"), "{said:?}");
    }
    for number in 0..MAX_NAMED - 1 {
        talk(&mut session, &[parse(&number.to_string(), "RELOAD")]);
    }
    assert_eq!(talk(&mut session, &[parse("more", "RELOAD"), SYNC]), "E53400 Z");
}
