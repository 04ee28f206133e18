use std::path::Path;

use super::super::ident;
use super::*;

fn read(path: &Path) -> io::Result<Vec<u8>> {
    match path.to_str() {
        Some("/etc/pgb/names") => Ok(b"a, \"b c\" # two\n\n  @more/deep\n".to_vec()),
        Some("/etc/pgb/more/deep") => Ok(b"d\nall".to_vec()),
        Some("/etc/pgb/plain") => Ok(b"x\ny,z".to_vec()),
        Some("/etc/pgb/loop") => Ok(b"@loop".to_vec()),
        Some("/etc/pgb/more/words") => Ok(b"a b, c\nd,e \"f\n\"g\" @nofile".to_vec()),
        Some("/etc/pgb/bad") => Ok(b"a\n,b".to_vec()),
        _ => Err(io::Error::from_raw_os_error(2)),
    }
}

fn parsed(text: &str) -> (Rules, Vec<String>) {
    let (maps, _) = ident::parse(b"m root postgres");
    let (rules, log) = parse(text.as_bytes(), Path::new("/etc/pgb/hba.conf"), &maps, &read);
    (rules, log.into_iter().map(|line| line.text).collect())
}

/// `address tls database user`, in short.
fn subject<'a>(address: &str, database: &'a str, user: &'a str) -> Subject<'a> {
    let (address, tls) = match address.strip_suffix("+tls") {
        Some(address) => (address, true),
        None => (address, false),
    };
    let address = (!address.is_empty()).then(|| address.parse().expect("an address"));
    Subject { address, tls, database, user, replicating: Replicating::No }
}

fn line_for(text: &str, who: &Subject<'_>) -> usize {
    let (rules, log) = parsed(text);
    assert_eq!(log, [""; 0], "{text}");
    rules.find(who).map_or(0, |rule| rule.line)
}

#[test]
fn the_first_rule_that_fits_decides() {
    let text = "# rules\n\
                local all all peer\n\
                hostssl all all all cert map=m\n\
                hostnossl secret all all reject\n\
                host \"all\" all 127.0.0.1/32 trust\n\
                host all,\"x\" joe,\"Ann Lee\" 10.1.0.0 255.255.0.0 md5\n\
                host sameuser all ::1/128 scram-sha-256\n\
                host all all 0.0.0.0/0 password\n";
    for (address, database, user, line) in [
        ("", "secret", "joe", 2),
        ("127.0.0.1+tls", "secret", "joe", 3),
        ("127.0.0.1", "secret", "joe", 4),
        ("127.0.0.1", "all", "joe", 5),
        ("127.0.0.1", "other", "joe", 8),
        ("10.1.255.255", "y", "joe", 6),
        ("::ffff:10.1.2.3", "y", "Ann Lee", 6),
        ("10.2.0.0", "y", "joe", 8),
        ("10.1.0.1", "y", "Joe", 8),
        ("::1", "joe", "joe", 7),
        ("::1", "y", "joe", 0),
        ("::2", "joe", "joe", 0),
    ] {
        assert_eq!(line_for(text, &subject(address, database, user)), line, "{address} {database} {user}");
    }
}

#[test]
fn physical_replication_needs_its_keyword() {
    let text = "host all all all trust\nhost \"replication\" all all md5\nhost x,replication all all md5";
    let physical = Subject { replicating: Replicating::Physical, ..subject("1.1.1.1", "x", "u") };
    assert_eq!(line_for(text, &physical), 3);
    assert_eq!(line_for(text, &subject("1.1.1.1", "replication", "u")), 1);
    assert_eq!(line_for("host replication all all md5", &subject("1.1.1.1", "replication", "u")), 0);
    assert_eq!(line_for("host \"replication\" all all md5", &subject("1.1.1.1", "replication", "u")), 1);
}

#[test]
fn keywords_are_no_names_of_users_unless_they_are_quoted() {
    for user in ["sameuser", "replication", "samerole", "samegroup"] {
        let text = format!("host all \"{user}\" all trust");
        assert_eq!(line_for(&text, &subject("1.1.1.1", "x", user)), 1);
        assert_eq!(line_for(&text, &subject("1.1.1.1", "x", "x")), 0);
    }
    for (database, user, line) in [("u", "u", 1), ("x", "u", 0), ("x", "sameuser", 0), ("x", "v", 1)] {
        assert_eq!(line_for("host all sameuser,v all trust", &subject("1.1.1.1", database, user)), line);
    }
}

#[test]
fn names_from_files() {
    for (name, user, line) in [("@plain", "x", 1), ("@plain", "z", 1), ("@plain", "w", 0), ("u,@plain", "u", 1)] {
        assert_eq!(line_for(&format!("host all {name} all trust"), &subject("1.1.1.1", "d", user)), line);
    }
    let (rules, log) = parsed("host @names all all trust\nhost \"@names\" all all md5");
    assert_eq!(log, [""; 0]);
    let method = |database| rules.find(&subject("1.1.1.1", database, "u")).map(|rule| rule.method.clone());
    assert_eq!(method("whatever"), Some(Method::Trust));
    let (rules, _) = parsed("host \"@names\" all all md5");
    assert!(rules.find(&subject("1.1.1.1", "@names", "u")).is_some());
}

#[test]
fn lines_of_files_end_with_their_list() {
    for (user, line) in [("a", 1), ("b", 0), ("c", 0), ("d", 1), ("e", 1), ("f", 0), ("g", 1)] {
        assert_eq!(line_for("host all @more/words all trust", &subject("1.1.1.1", "d", user)), line, "{user}");
    }
}

#[test]
fn options_of_ldap_are_kept_as_written() {
    let (rules, log) = parsed("host all all all ldap ldapserver=\"a # b\" , ldapprefix=cn= \r\nhost all all all ldap");
    assert_eq!(log, [""; 0]);
    let options = rules.0.iter().map(|rule| match &rule.method {
        Method::Ldap(text) => &*text.0,
        other => panic!("{other:?}"),
    });
    assert_eq!(options.collect::<Vec<_>>(), ["ldapserver=\"a # b\" , ldapprefix=cn=", ""]);
}

#[test]
fn masks() {
    for (mask, address, fits) in [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.0", false),
        ("10.0.0.0/+8", "10.255.0.1", true),
        ("10.0.0.0/+8", "11.0.0.0", false),
        ("0.0.0.0/0", "255.255.255.255", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "fe80::1", true),
        ("::/0", "1.1.1.1", false),
        ("10.0.0.1/32", "10.0.0.1", true),
        ("10.0.0.1/32", "10.0.0.2", false),
        ("fe80::/10 ", "febf::1", true),
        ("fe80:: ffc0::", "fec0::1", false),
        ("10.0.0.0 255.0.255.0", "10.7.0.9", true),
    ] {
        assert_eq!(line_for(&format!("host all all {mask} md5"), &subject(address, "d", "u")), usize::from(fits));
    }
}

#[test]
fn lines_that_are_refused_and_their_warnings() {
    let malformed = "hba line 1: Ident map x is malformed. It is not in map=value format.";
    for (line, warning) in [
        ("blah", Some("hba line 1: unknown type")),
        ("\"host\" all all all md5", Some("hba line 1: unknown type")),
        ("HOST all all all md5", Some("hba line 1: unknown type")),
        ("host", None),
        ("host all +group 10.0.0.0/8 md5", None),
        ("host all all, all md5", Some("hba line 1: failed to parse address - md5")),
        ("host all,, all all md5", None),
        ("host \"all all all md5", None),
        ("host samerole all all md5", Some("samerole is not supported")),
        ("host x,samegroup all all md5", Some("samegroup is not supported")),
        ("host all samerole all md5", Some("samerole is not supported")),
        ("host all samegroup,x all md5", Some("samegroup is not supported")),
        ("host all x,replication all md5", Some("replication is not supported")),
        ("host all all", Some("hba line 1: did not find address - 4 - 'all'")),
        ("host all all \"10.0.0.0/8\" md5", Some("hba line 1: did not find address - 0 - '10.0.0.0/8'")),
        ("host all all foo/24 md5", Some("hba line 1: failed to parse address - foo")),
        ("host all all samenet md5", Some("hba line 1: failed to parse address - samenet")),
        ("host all all 10.0.0.0/33 md5", Some("hba line 1: invalid mask")),
        ("host all all 10.0.0.0/x md5", Some("hba line 1: invalid mask")),
        ("host all all 10.0.0.0/ md5", Some("hba line 1: invalid mask")),
        ("host all all 10.0.0.0/+ md5", Some("hba line 1: invalid mask")),
        ("host all all 10.0.0.0/++8 md5", Some("hba line 1: invalid mask")),
        ("host all all 10.0.0.0/-0 md5", Some("hba line 1: invalid mask")),
        ("host all all ::/129 md5", Some("hba line 1: invalid mask")),
        ("host all all 10.0.0.0", Some("hba line 1: did not find mask")),
        ("host all all 10.0.0.0 trust", Some("hba line 1: failed to parse mask: trust")),
        ("host all all 10.0.0.0 ::1 md5", Some("hba line 1: failed to parse mask: ::1")),
        ("host all all 10.0.0.0/8", Some("hba line 1: unsupported method: buf=10.0.0.0")),
        ("host all all 10.0.0.0/8 krb5", Some("hba line 1: unsupported method: buf=krb5")),
        ("host all all all krb5", Some("hba line 1: unsupported method: buf=krb5")),
        ("host all all all \"md5\"", Some("hba line 1: unsupported method: buf=md5")),
        ("local all all", Some("hba line 1: unsupported method: buf=all")),
        ("host all all all md5 x", Some(malformed)),
        ("host all all all md5 map=no", Some("hba line 1: Ident map no is not found in ident config file")),
        ("host all all all md5 map=m x", Some("hba line 1: unsupported parameters")),
        ("host all all all md5 \"x\"", Some("hba line 1: unsupported parameters")),
        ("host @nofile all all md5", Some("could not open file /etc/pgb/nofile: No such file or directory")),
        ("host @bad all all md5", None),
        ("host @loop all all md5", Some("too many files of names inside each other: /etc/pgb/loop")),
    ] {
        let (rules, log) = parsed(line);
        assert!(rules.is_empty(), "{line}");
        let want: Vec<&str> = warning.into_iter().chain(["could not parse hba config line 1"]).collect();
        assert_eq!(log, want, "{line}");
    }
}

#[test]
fn bits_outside_of_the_mask_are_warned_of_and_fit_nobody() {
    let (rules, log) = parsed("\nhost all all 10.0.0.1/24 trust\nhost all all ::1/64 trust");
    assert_eq!(
        log,
        [
            "address does not match mask in /etc/pgb/hba.conf line #2: 10.0.0.1 / 255.255.255.0",
            "address does not match mask in /etc/pgb/hba.conf line #3: ::1 / ffff:ffff:ffff:ffff::"
        ]
    );
    assert_eq!(rules.len(), 2);
    assert!(rules.find(&subject("10.0.0.1", "d", "u")).is_none() && rules.find(&subject("::1", "d", "u")).is_none());
}

#[test]
fn unreadable_names_file_and_reason() {
    let line = unreadable("/x", &io::Error::from_raw_os_error(2));
    assert_eq!(line, LogLine::error("could not open hba config file /x: No such file or directory"));
}
