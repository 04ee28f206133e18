use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::survey::Survey;
use super::*;
use crate::config::load;

/// U+FFFD in a text stands for a byte that is no UTF-8.
fn reader<'a>(files: &'a BTreeMap<&str, &str>) -> impl Fn(&Path) -> io::Result<Vec<u8>> + 'a {
    |path: &Path| {
        let text = path.to_str().and_then(|name| files.get(name));
        let text = text.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(text.split('\u{fffd}').map(str::as_bytes).collect::<Vec<_>>().join(&0xff))
    }
}

/// The findings for `main.ini` on a machine where all is well, in short: line, severity, text.
fn found(files: &[(&'static str, &'static str)]) -> Vec<String> {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let read = reader(&files);
    let machine = Machine {
        read: &read,
        permissions: &|path| Some(if path.ends_with("open.txt") { 0o100_644 & 0o777 } else { 0o640 }),
        user_exists: &|user| user != "ghost",
        may_read: &|_, path| !path.ends_with("locked.txt"),
        facility_exists: &|name| name == "daemon",
        fd_limit: 1000,
        // who asks for a daemon that becomes a user is root
        root: files.values().any(|text| text.contains("user = u\n")),
        tls: &|settings| match settings.client_tls_cert_file.as_str() {
            "bad.pem" if settings.client_tls_sslmode != crate::config::SslMode::Disable => {
                vec!["failed to load certificate file \"bad.pem\"".to_owned()]
            }
            _ => Vec::new(),
        },
        missing_library: &|_| None,
        daemon: false,
        reboot: false,
        user: None,
    };
    check(Path::new("main.ini"), &machine).iter().map(ToString::to_string).collect()
}

/// The findings for settings that follow a good beginning of two lines, `users.txt` being a good file.
fn about(settings: &'static str) -> Vec<String> {
    let text = format!("[pgbouncer]\nauth_file = users.txt\n{settings}\n");
    found(&[
        ("main.ini", Box::leak(text.into_boxed_str())),
        ("users.txt", "\"u\" \"md50123456789abcdef0123456789abcdef\"\n"),
        ("locked.txt", "local all all trust\n"),
    ])
}

#[test]
fn a_good_file_has_no_findings() {
    assert_eq!(about("[databases]\na = host=h\n* = host=h"), [""; 0]);
}

/// What each line of settings is found to be, in the words that matter.
#[test]
fn each_doubt_has_its_line() {
    for (settings, line, words) in [
        ("max_client_con = 5", 3, "error: unknown setting \"max_client_con\"; did you mean \"max_client_conn\"?"),
        ("pool_size = 5", 3, "error: unknown setting \"pool_size\"; it belongs into the lines of [databases]"),
        ("log_stats = yes", 3, "error: invalid value \"yes\" for log_stats; write 1"),
        ("query_timeout = 5s", 3, "error: invalid value \"5s\" for query_timeout; write seconds without a unit"),
        ("max_client_conn = 5 ; few", 3, "give the comment a line of its own"),
        ("pool_mode = sessions", 3, "write one of: session transaction statement"),
        ("auth_dbname = pgbouncer", 3, "error: auth_dbname cannot be the console"),
        ("nonsense", 3, "error: syntax error"),
        ("pidfile = x\npidfile = y", 4, "warning: pidfile is already set in main.ini:3"),
        ("pidfile = 'x'", 3, "warning: the quotes are part of the value"),
        ("logfile = x # log", 3, "warning: the comment is part of the value"),
        ("[database]\na = b", 3, "error: unknown section [database]; did you mean [databases]?"),
        ("[databases]\na = hots=x", 4, "error: unrecognized connection parameter: hots; did you mean \"host\"?"),
        ("[databases]\na = pool_size=x", 4, "warning: the value of pool_size is \"x\", of which only leading digits"),
        ("[databases]\na = host= port=3", 4, "warning: the value of host is \"port=3\""),
        ("[databases]\na = port=0", 4, "error: invalid port: 0; write a number from 1 to 65535"),
        ("[databases]\na =\na =", 5, "warning: database \"a\" is already there in main.ini:4"),
        ("[databases]\na = reserve_pool=3", 4, "warning: reserve_pool is the old name"),
        ("[databases]\n* = hots=x", 4, "error: unrecognized connection parameter: hots"),
        ("[databases]\npgbouncer = host=x", 4, "error: database name \"pgbouncer\" is reserved"),
        (
            "[databases]\na = min_pool_size=30",
            4,
            "warning: database \"a\" has min_pool_size=30, more than its pool_size=20",
        ),
        ("[databases]\na = pool_size=9 max_db_connections=3", 4, "more than its max_db_connections=3"),
        ("[databases]\na = auth_dbname=b", 4, "error: auth_dbname=\"b\" is no entry of [databases]"),
        (
            "[users]\nu = pool_mod=session",
            4,
            "error: unrecognized user parameter: pool_mod; did you mean \"pool_mode\"?",
        ),
        ("[users]\nv =", 4, "warning: [users] has a line for \"v\", who is not in auth_file"),
        ("peer_id = 1\n[peers]\n0 = host=x\n2 = host=x", 5, "error: ids of peers"),
        ("peer_id = 1\n[peers]\n2 = port=5", 5, "error: host was not provided for peer 2; add host="),
        ("[peers]\n2 = host=a", 4, "warning: [peers] without peer_id"),
        ("so_reuseport = 1", 3, "warning: so_reuseport without peer_id"),
        ("min_pool_size = 21", 3, "warning: min_pool_size=21 is more than default_pool_size=20"),
        ("max_client_conn = 2000", 3, "need 2012 file descriptors, here a process has at most 1000"),
        ("max_db_connections = 5", 3, "warning: default_pool_size=20 is more than max_db_connections=5"),
        ("reserve_pool_size = 5\nreserve_pool_timeout = 0", 4, "turns reserve_pool_size off"),
        ("max_user_client_connections = 200", 3, "is more than max_client_conn=100 and never counts"),
        ("auth_type = scram-sha-256", 1, "user \"u\" cannot log in: its secret is MD5"),
        ("auth_hba_file = x", 3, "warning: auth_hba_file is not read with auth_type=md5"),
        ("auth_type = hba\nauth_hba_file = x", 4, "error: could not open hba config file x"),
        ("auth_type = trust\nlisten_addr = *", 3, "warning: whoever reaches * needs no password"),
        ("auth_query = select 1", 3, "warning: auth_query is never run without auth_user"),
        ("admin_users = boss", 3, "warning: admin_users names \"boss\", who is not in auth_file"),
        ("listen_addr =\nunix_socket_dir =", 3, "error: there is nowhere to listen"),
        ("listen_port = 70000", 3, "error: listen_port=70000 is not a port number"),
        ("job_name = x", 3, "warning: job_name has no effect"),
        ("tcp_keepalive = 0\ntcp_keepidle = 5", 4, "warning: tcp_keepidle has no effect"),
        (
            "unix_socket_dir =\n[databases]\na =\n* = port=5",
            5,
            "error: database \"a\" has no host, and unix_socket_dir is empty; write host=",
        ),
        ("unix_socket_dir =\n[databases]\na = host=h\n* = port=5", 6, "error: database \"*\" has no host"),
        ("syslog = 1\nsyslog_facility = mial", 4, "warning: there is no syslog facility \"mial\", and daemon counts"),
        (
            "user = u\nauth_file = locked.txt",
            4,
            "error: user \"u\", whom the daemon becomes, cannot read auth_file (locked.txt); chown or chmod it, or a \
             directory above it",
        ),
        (
            "user = u\nauth_type = hba\nauth_hba_file = locked.txt",
            5,
            "warning: user \"u\", whom the daemon becomes, cannot read auth_hba_file (locked.txt), and every reload fails",
        ),
        ("user = ghost", 3, "error: there is no user \"ghost\""),
        ("client_tls_sslmode = require\nclient_tls_cert_file = bad.pem", 4, "error: failed to load certificate"),
        ("client_tls_cert_file = bad.pem", 3, "warning: client_tls_cert_file is not used"),
        ("[pgbouncer]", 3, "warning: this [pgbouncer] sets everything back that the one in main.ini:1 has set"),
        ("%include gone.ini", 3, "error: could not load file \"gone.ini\": "),
    ] {
        let findings = about(settings);
        let place = format!(":{line}: ");
        let hit = findings.iter().find(|finding| finding.contains(words));
        let hit = hit.unwrap_or_else(|| panic!("{settings:?}: {words:?} is not in {findings:#?}"));
        assert!(hit.contains(&place), "{settings:?}: {hit}");
        assert!(!hit.ends_with("; "), "{hit}: no remedy");
    }
}

#[test]
fn included_files_and_other_files_are_named() {
    let findings = found(&[
        ("main.ini", "[pgbouncer]\nauth_file = open.txt\nauth_type = scram-sha-256\n%include part.ini\n"),
        ("part.ini", "\nlog_stats = maybe\n[databases]\na = password=s3cr3t hots=1 prot=2\n"),
        ("open.txt", "\"u\" \"plain\"\n\"u\" \"plain\"\n\"\u{fffd}\" \"\"\n\"v\n"),
    ]);
    let starts = [
        "main.ini:2: warning: everybody can read auth_file (open.txt, mode 0644); chmod o-rwx open.txt",
        "part.ini:2: error: invalid value \"maybe\" for log_stats; write 0 or 1",
        "part.ini:4: error: unrecognized connection parameter: hots; did you mean \"host\"?",
        "part.ini:4: error: unrecognized connection parameter: prot; did you mean \"port\"?",
        "open.txt:2: warning: the password of user \"u\" is kept in plain text",
        "open.txt:2: warning: user \"u\" is already there in open.txt:1",
        "open.txt:3: warning: auth file line 3: a name that is not valid UTF-8, ignoring the user; write the name in UTF-8",
        "open.txt:4: error: broken auth file",
    ];
    for start in starts {
        assert!(findings.iter().any(|finding| finding.starts_with(start)), "{start} is not in {findings:#?}");
    }
    assert!(!findings.concat().contains("s3cr3t"), "{findings:#?}");
    assert_eq!(findings.len(), starts.len(), "{findings:#?}");
}

#[test]
fn access_rules_that_do_not_count_are_named_once() {
    let findings = found(&[
        ("main.ini", "[pgbouncer]\nauth_type = hba\nauth_hba_file = hba\nauth_ident_file = ident\nauth_file = u\n"),
        (
            "hba",
            "local all all trust\nhost all all 1.2.3.4/33 md5\n\nhost all all 10.0.0.1/8 md5\nhost all all all peer map=m\n",
        ),
        ("ident", "# maps\nm a\n"),
        ("u", "\"u\" \"p\"\n"),
    ]);
    let short: Vec<_> = findings.iter().map(|finding| finding.split(';').next().unwrap_or_default()).collect();
    assert_eq!(
        short,
        [
            "hba:2: error: hba line 2: invalid mask",
            "hba:4: error: address does not match mask in hba line #4: 10.0.0.1 / 255.0.0.0",
            "hba:5: error: hba line 5: Ident map m is not found in ident config file",
            "ident:2: error: could not parse ident config line 2",
        ]
    );
}

#[test]
fn a_finding_is_one_line() {
    let findings = about("pidfile = \x1b[2J\u{85}\n[databases]\na = pool_mode='\x07'");
    assert!(findings.iter().all(|finding| !finding.contains(char::is_control)), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.contains("\\u{7}")), "{findings:?}");
}

/// The check accepts what a start accepts, and makes the same of it.
#[test]
fn it_reads_as_a_load_reads() {
    let texts = [
        "",
        "[pgbouncer]\n",
        "[pgbouncer]\nx = 1\n",
        "[pgbouncer]\nlog_stats = 0\n[pgbouncer]\nlog_connections = 0\n",
        "log_stats = 0\n[pgbouncer]\n",
        "[databases]\na = host=h user=u password=p\na = host=g\n* = nonsense\n[pgbouncer]\n",
        "[databases]\na = host=h port=x\n[pgbouncer]\n",
        "[databases]\na = b c\n[pgbouncer]\n",
        "[users]\nu = pool_size=4 query_timeout=x\n[pgbouncer]\n",
        "[users]\nu = size=4\n[pgbouncer]\n",
        "[peers]\n1 = host=h pool_size=4 port=7\n[pgbouncer]\n",
        "[peers]\n1 = host=h size=4\n[pgbouncer]\n",
        "[peers]\n1 = port=5\n[pgbouncer]\n",
        "[pgbouncer]\n%include a\n",
        "[pgbouncer]\n%include main.ini\n",
        "[pgbouncer]\n%include gone\n",
        "[pgbouncer]\nquery_timeout\n",
        "[pgbouncer]\nlogfile = \0\n",
        "[pg]\n",
    ];
    for text in texts {
        let files: BTreeMap<&str, &str> = [("main.ini", text), ("a", "log_stats = 0\n[users]\n")].into();
        let read = reader(&files);
        let loaded = load(Path::new("main.ini"), &read, None).0;
        let survey = Survey::of(Path::new("main.ini"), &read);
        let star = |finding: &&Finding| finding.severity == Severity::Error && !text.contains("* =");
        assert_eq!(loaded.is_err(), survey.findings.iter().any(|finding| star(&finding)), "{text:?}");
        if let Ok(loaded) = loaded {
            assert_eq!(loaded.config, survey.config, "{text:?}");
        }
    }
}
