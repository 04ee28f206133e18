//! Whole files: what they become, what they leave in the log, what a reload keeps.

use super::*;
use crate::config::{AuthType, Database, Level, PoolMode};
use crate::time::Micros;

/// Loads the first of `files`, which may include the others.
fn load_files(files: &[(&str, &[u8])], previous: Option<&Config>) -> (Result<Loaded, LoadFailed>, Vec<LogLine>) {
    let read = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, text)| text.to_vec()).ok_or_else(|| io::Error::from_raw_os_error(2))
    };
    load(Path::new(files[0].0), &read, previous)
}

fn start(text: &str) -> Config {
    let (result, log) = load_files(&[("p.ini", text.as_bytes())], None);
    assert_eq!(log, [], "{text}");
    result.expect("no error was logged").config
}

fn reload(text: &str, previous: &Config) -> (Loaded, Vec<LogLine>) {
    let (result, log) = load_files(&[("p.ini", text.as_bytes())], Some(previous));
    (result.unwrap_or_else(|_| panic!("{text}: {log:?}")), log)
}

/// The log of a load that must fail, without levels; hints are checked by their level.
fn refused(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|&(name, text)| (name, text.as_bytes())).collect();
    let (result, log) = load_files(&files, None);
    assert!(result.is_err(), "{files:?}");
    assert!(log.iter().all(|line| (line.level == Level::Log) == line.text.starts_with("did you mean")));
    log.into_iter().map(|line| line.text).collect()
}

#[test]
fn a_deployment() {
    let config = start(
        "[databases]\n\
         enterprisescanner = host=127.0.0.1 port=5432 dbname=enterprisescanner\n\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = 6432\n\
         auth_type = md5\n\
         auth_file = /etc/pgbouncer/userlist.txt\n\
         admin_users = admin\n\
         pool_mode = transaction\n\
         max_client_conn = 100\n\
         default_pool_size = 25\n\
         min_pool_size = 5\n\
         reserve_pool_size = 5\n\
         reserve_pool_timeout = 3\n\
         max_db_connections = 50\n\
         log_connections = 1\n\
         log_disconnections = 1\n\
         pidfile = /var/run/pgbouncer/pgbouncer.pid\n",
    );
    let mut want = Config::default();
    let settings = &mut want.settings;
    settings.conffile = Some("p.ini".to_owned());
    settings.listen_addr = "127.0.0.1".to_owned();
    settings.listen_port = 6432;
    settings.auth_type = AuthType::Md5;
    settings.auth_file = Some("/etc/pgbouncer/userlist.txt".to_owned());
    settings.admin_users = "admin".to_owned();
    settings.pool_mode = PoolMode::Transaction;
    settings.max_client_conn = 100;
    settings.default_pool_size = 25;
    settings.min_pool_size = 5;
    settings.reserve_pool_size = 5;
    settings.reserve_pool_timeout = Micros::from_secs(3);
    settings.max_db_connections = 50;
    settings.pidfile = "/var/run/pgbouncer/pgbouncer.pid".to_owned();
    let name = "enterprisescanner".to_owned();
    want.databases.insert(
        name.clone(),
        Database { host: Some("127.0.0.1".to_owned()), dbname: Some(name.clone()), ..Database::new(&name) },
    );
    assert_eq!(config, want);
}

#[test]
fn each_mistake_has_its_lines() {
    let long = "a".repeat(64);
    let main = "[pgbouncer]\n";
    for (text, want) in [
        ("", &["load_init_file: main section missing from config file"][..]),
        ("[databases]\na=\n", &["load_init_file: main section missing from config file"]),
        (
            "x = y",
            &[
                "load_init_file: value without section: x",
                "invalid value \"y\" for parameter x in configuration (p.ini:1)",
            ],
        ),
        ("[foo]", &["fill_defaults fail", "invalid section \"foo\" in configuration (p.ini:1)"]),
        (
            "[database]",
            &[
                "fill_defaults fail",
                "invalid section \"database\" in configuration (p.ini:1)",
                "did you mean \"databases\"?",
            ],
        ),
        ("hello", &["syntax error in configuration (p.ini:1), stopping loading"]),
        ("\na=\u{0}", &["syntax error in configuration (p.ini:2), stopping loading"]),
        (
            &format!("{main}pool_mode=x\n\n\nlog_stats=1\n"),
            &["invalid value \"x\" for parameter pool_mode in configuration (p.ini:4)"],
        ),
        (
            &format!("{main}poolmode=x\n"),
            &[
                "unknown parameter: pgbouncer/poolmode",
                "invalid value \"x\" for parameter poolmode in configuration (p.ini:2)",
                "did you mean \"pool_mode\"?",
            ],
        ),
        (
            &format!("{main}service_name=x\n"),
            &[
                "unknown parameter: pgbouncer/service_name",
                "invalid value \"x\" for parameter service_name in configuration (p.ini:2)",
            ],
        ),
        (
            &format!("{main}=x\n"),
            &["unknown parameter: pgbouncer/", "invalid value \"x\" for parameter  in configuration (p.ini:2)"],
        ),
        (
            &format!("{main}auth_dbname=pgbouncer\n"),
            &[
                "cannot use the reserved \"pgbouncer\" database as an auth_dbname",
                "invalid value \"pgbouncer\" for parameter auth_dbname in configuration (p.ini:2)",
            ],
        ),
        (
            "[databases] foo = host=a [users]",
            &[
                "syntax error in connection string",
                "invalid value \"host=a [users]\" for parameter foo in configuration (p.ini:1)",
            ],
        ),
        (
            "[databases]\na = password=geheim prot=1\n",
            &[
                "unrecognized connection parameter: prot",
                "invalid value \"password=...\" for parameter a in configuration (p.ini:2)",
                "did you mean \"port\"?",
            ],
        ),
        (
            "[databases]\na = host=h password=my geheim\n",
            &[
                "syntax error in connection string",
                "invalid value \"host=h password=...\" for parameter a in configuration (p.ini:2)",
            ],
        ),
        (
            "[databases]\npassword=geheim\n",
            &[
                "syntax error in connection string",
                "invalid value \"...\" for parameter password in configuration (p.ini:2)",
            ],
        ),
        (
            "[pgbouncer]\na = host=h passwd=geheim\n",
            &[
                "unknown parameter: pgbouncer/a",
                "invalid value \"host=h passwd=...\" for parameter a in configuration (p.ini:2)",
            ],
        ),
        (
            "[databases]\npgbouncer=\n",
            &[
                "database name \"pgbouncer\" is reserved",
                "invalid value \"\" for parameter pgbouncer in configuration (p.ini:2)",
            ],
        ),
        (
            &format!("[databases]\n{long}=\n"),
            &[
                &format!("too long db name: {long}"),
                "cannot create database, no memory?",
                &format!("invalid value \"\" for parameter {long} in configuration (p.ini:2)"),
            ],
        ),
        (
            "[users]\na = garbage",
            &["syntax error in user settings", "invalid value \"garbage\" for parameter a in configuration (p.ini:2)"],
        ),
        (
            "[users]\na = pool_sice=1",
            &[
                "unrecognized user parameter: pool_sice",
                "invalid value \"pool_sice=1\" for parameter a in configuration (p.ini:2)",
                "did you mean \"pool_size\"?",
            ],
        ),
        (
            "[peers]\n1 = port=1",
            &[
                "host was not provided for peer 1",
                "invalid value \"port=1\" for parameter 1 in configuration (p.ini:2)",
            ],
        ),
        (
            "[pgbouncer]\n%include nofile\n",
            &[
                "could not load file \"nofile\": No such file or directory",
                "error processing include file in configuration (p.ini:2), stopping loading",
            ],
        ),
    ] {
        assert_eq!(refused(&[("p.ini", text)]), want, "{text:?}");
    }
    let (_, log) = load_files(&[("p.ini", b"a=\xff")], None);
    assert_eq!(log[0], LogLine::error("text is not valid UTF-8 (p.ini:1)"));
    assert_eq!(log[1], LogLine::error("syntax error in configuration (p.ini:1), stopping loading"));
    let (_, log) = load(Path::new("/x"), &|_| Err(io::Error::from_raw_os_error(13)), None);
    assert_eq!(log, [LogLine::error("could not load file \"/x\": Permission denied")]);
}

#[test]
fn sections_run_into_and_out_of_includes() {
    let (result, log) = load_files(
        &[
            ("p.ini", b"[pgbouncer]\n%include a/b.inc \nb = port=2\n"),
            ("a/b.inc", b"pool_mode = statement\n[databases]\na = port=1"),
        ],
        None,
    );
    let config = result.expect("valid").config;
    assert_eq!(log, []);
    assert_eq!(config.settings.pool_mode, PoolMode::Statement);
    assert_eq!(config.databases.values().map(|db| db.port).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(
        refused(&[("p.ini", "[pgbouncer]\n\n%include b\n"), ("b", "pool_mode=x")]),
        [
            "invalid value \"x\" for parameter pool_mode in configuration (b:1)",
            "error processing include file in configuration (p.ini:3), stopping loading"
        ]
    );
}

#[test]
fn ten_levels_of_includes_and_no_more() {
    let names: Vec<String> = (0..=11).map(|i| format!("i{i}")).collect();
    let texts: Vec<String> =
        (0..=11).map(|i| if i < 11 { format!("%include i{}", i + 1) } else { "[pgbouncer]".to_owned() }).collect();
    let files: Vec<_> = names.iter().map(String::as_str).zip(texts.iter().map(String::as_bytes)).collect();
    let (result, log) = load_files(&files[1..], None);
    assert!(result.is_ok() && log.is_empty(), "{log:?}");
    let (result, log) = load_files(&files, None);
    assert!(result.is_err());
    assert_eq!(log.len(), 11);
    assert_eq!(log[0], LogLine::error("include nesting level too deep (i10:1), stopping loading"));
    for (line, level) in log[1..].iter().zip((0..10).rev()) {
        let want = format!("error processing include file in configuration (i{level}:1), stopping loading");
        assert_eq!(line.text, want);
    }
}

#[test]
fn reload_brings_back_defaults_but_not_over_null() {
    let old = start("[pgbouncer]\npool_mode=statement\nauth_user=a\nverbose=1\nauth_file=/f\n");
    let old = old.set_setting("max_client_conn", "7").expect("valid");
    let (new, log) = reload("[pgbouncer]\nlog_stats=0\n", &old);
    assert_eq!((log, new.needs_restart), (vec![], vec![]));
    let settings = new.config.settings;
    assert_eq!(
        (settings.pool_mode, settings.max_client_conn, settings.log_stats.is_on()),
        (PoolMode::Session, 100, false)
    );
    assert_eq!((settings.auth_user.as_deref(), settings.auth_file.as_deref()), (Some("a"), Some("/f")));
    assert_eq!((settings.verbose, settings.conffile.as_deref()), (Some(1), Some("p.ini")));
}

#[test]
fn a_second_header_starts_again() {
    let config = start("[pgbouncer]\npool_mode=statement\nlisten_port=1\n[databases]\n[pgbouncer]\nlog_stats=0");
    assert_eq!(config.settings.pool_mode, PoolMode::Session);
    assert_eq!(config.settings.listen_port, 6432);
}

#[test]
fn what_needs_a_restart_is_named_and_not_applied() {
    let old = start("[pgbouncer]\nlisten_port=1\npkt_buf=75\nuser=u\n");
    let (new, log) = reload("[pgbouncer]\nlisten_port=2\nlisten_backlog=x\nuser=v\npool_mode=statement\n", &old);
    assert_eq!(log, []);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        new.needs_restart,
        [
            NeedsRestart { key: "listen_backlog", running: text("128"), file: text("x") },
            NeedsRestart { key: "listen_port", running: text("1"), file: text("2") },
            NeedsRestart { key: "pkt_buf", running: text("75"), file: text("4096") },
            NeedsRestart { key: "user", running: text("u"), file: text("v") },
        ]
    );
    assert_eq!(
        new.needs_restart[1].log_line(),
        LogLine::warning("setting \"listen_port\" stays \"1\" until a restart; the configuration file has \"2\"")
    );
    let settings = new.config.settings;
    assert_eq!((settings.listen_port, settings.pkt_buf, settings.listen_backlog), (1, 75, 128));
    assert_eq!((settings.user.as_deref(), settings.pool_mode), (Some("u"), PoolMode::Statement));
    let (again, _) = reload("[pgbouncer]\nlisten_port=x\nlisten_port=1\npkt_buf=0x4b\n", &old);
    assert_eq!(again.needs_restart, []);
    assert!(load_files(&[("p.ini", b"[pgbouncer]\nlisten_port=x\n")], None).0.is_err());
}

#[test]
fn entries_go_but_users_the_wildcard_and_forced_users_stay() {
    let main = "[pgbouncer]\n";
    let old = start(&format!(
        "{main}[databases]\na=user=u password=p\nb=\n*=host=h\n[users]\nu=pool_size=1 query_timeout=2\nv=pool_size=3\n\
         [peers]\n1=host=h\n2=host=h\n"
    ));
    let (new, log) = reload(&format!("{main}[databases]\na=port=1\n[users]\nu=pool_size=4\n[peers]\n2=host=i"), &old);
    assert_eq!(log, [LogLine::warning("losing forced user not supported, keeping old setting")]);
    let new = new.config;
    assert_eq!(new.databases.keys().collect::<Vec<_>>(), ["a"]);
    let a = &new.databases["a"];
    assert_eq!((a.user.as_deref(), a.password.as_deref(), a.port), (Some("u"), Some("p"), 1));
    assert_eq!(new.wildcard.as_deref(), Some("host=h"));
    assert_eq!((new.users["u"].pool_size, new.users["u"].query_timeout), (Some(4), None));
    assert_eq!(new.users["v"].pool_size, Some(3));
    assert_eq!(new.peers.keys().collect::<Vec<_>>(), [&2]);
    // also within one file
    let (_, log) = load_files(&[("p.ini", b"[databases]\na=user=u\na=port=1\n[pgbouncer]\n")], None);
    assert_eq!(log, [LogLine::warning("losing forced user not supported, keeping old setting")]);
}

#[test]
fn the_wildcard_is_read_when_used() {
    let config = start("[databases]\n* = port=7\n[pgbouncer]\n");
    let made = config.auto_database("x").expect("a wildcard").expect("valid");
    assert_eq!((made.name.as_str(), made.server_dbname(), made.port), ("x", "x", 7));
    assert_eq!(config.auto_database("pgbouncer"), Some(Err(EntryError::Reserved)));
    let broken = start("[databases]\n* = garbage\n[pgbouncer]\n");
    assert_eq!(broken.auto_database("x"), Some(Err(EntryError::Syntax)));
    assert_eq!(start("[pgbouncer]").auto_database("x"), None);
}

#[test]
fn set_on_the_console() {
    let config = start("[pgbouncer]\n");
    assert_eq!(config.set_setting("pool_mode", "Statement").map(|c| c.settings.pool_mode), Ok(PoolMode::Statement));
    assert_eq!(config.set_setting("listen_port", "junk"), Ok(config.clone()));
    assert_eq!(config.set_setting("pool_mode", "x"), Err(SetError::BadValue));
    assert_eq!(config.set_setting("nosuch", "x"), Err(SetError::Unknown));
}

#[test]
fn hints_are_close() {
    for (a, b, want) in [
        ("pool_mode", "pool_mode", Some(0)),
        ("poolmode", "pool_mode", Some(1)),
        ("prot", "port", Some(2)),
        ("kitten", "sitting", None),
        ("", "ab", Some(2)),
        ("", "abc", None),
    ] {
        assert_eq!(distance(a, b), want, "{a} {b}");
    }
}

/// Pieces of valid files and noise, glued at random: nothing panics, and what loads also reloads.
#[test]
fn noise_is_survived() {
    const PIECES: &[&[u8]] = &[
        b"[pgbouncer]\n",
        b"[databases]",
        b"[users]\n",
        b"[peers]",
        b"[",
        b"]",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b"=",
        b"'",
        b"''",
        b"%include self\n",
        b"%include ",
        b"*",
        b"a = host=b user='c d' password='e''f'\n",
        b"a = ",
        b"1 = host=x\n",
        b"listen_port = 0x",
        b"query_timeout = 1e",
        b"9999999999",
        b"-",
        b"pool_size=-1 ",
        b";x\n",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
        b"password",
        b"pool_mode=session ",
        b"max_client_conn=",
        b"auth_type=any\n",
        b"conffile=x\n",
        b"port=",
        b"unknown=1\n",
    ];
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).expect("31 bits")
    };
    let mut loaded = 0;
    for round in 0..20_000 {
        let mut text = if random() % 4 == 0 { Vec::new() } else { b"[pgbouncer]\n".to_vec() };
        for _ in 0..random() % 16 {
            if random() % 16 == 0 {
                text.push(u8::try_from(random() % 256).expect("below 256"));
            } else {
                text.extend_from_slice(PIECES[random() % PIECES.len()]);
            }
        }
        // an include of oneself ends at the nesting limit; more than one a file would only cost time
        let read = |path: &Path| match path.to_str() {
            Some("p.ini") => Ok(text.clone()),
            Some("self") => Ok(b"%include self".to_vec()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let (result, log) = load(Path::new("p.ini"), &read, None);
        // it reads other texts, but must survive the same
        drop(crate::config::userlist::parse(&text));
        let Ok(first) = result else {
            assert!(log.iter().any(|line| line.level == Level::Error), "round {round}");
            continue;
        };
        loaded += 1;
        let (again, _) = load(Path::new("p.ini"), &read, Some(&first.config));
        let again = again.expect("the same text");
        assert_eq!(again.config, first.config, "round {round}");
        assert_eq!(again.needs_restart, [], "round {round}");
        assert_eq!(first.config.changes_to(&again.config), crate::config::Changes::default());
    }
    assert!(loaded > 100, "only {loaded} texts were valid");
}
