//! Texts that operators write.

use std::io;
use std::path::Path;

use pgusher::config::{Config, Settings, connstr, hba, ident, load, userlist};

use super::bytes::Bytes;

const MAIN: &str = "/etc/main.ini";

/// The main file, one other file for everything that is included, nothing else.
fn files<'a>(main: &'a [u8], other: &'a [u8]) -> impl Fn(&Path) -> io::Result<Vec<u8>> + 'a {
    move |path| match path.to_str() {
        Some(MAIN) => Ok(main.to_vec()),
        Some(path) if path.ends_with("other") => Ok(other.to_vec()),
        _ => Err(io::Error::from_raw_os_error(2)),
    }
}

pub(crate) fn ini(data: &[u8]) {
    let mut from = Bytes(data);
    let other = from.stretch();
    let main = from.0;
    let read = files(main, other);
    let (first, log) = load(Path::new(MAIN), &read, None);
    let (again, log_again) = load(Path::new(MAIN), &read, None);
    assert!(first == again && log == log_again, "another day, another configuration");
    let Ok(first) = first else {
        assert!(!log.is_empty(), "refused without a word");
        return;
    };
    assert!(first.needs_restart.is_empty());
    survives_printing(&first.config);
    // the same file at a reload changes nothing
    let (reloaded, _) = load(Path::new(MAIN), &read, Some(&first.config));
    let reloaded = reloaded.expect("what was good at the start is good at a reload");
    assert!(reloaded.needs_restart.is_empty());
    let changes = format!("{:?}", first.config.changes_to(&reloaded.config));
    let none = format!("{:?}", Config::default().changes_to(&Config::default()));
    assert!(changes == none, "a reload of the same file: {changes}");
}

/// What is shown can be set, and is then shown as it was.
fn survives_printing(config: &Config) {
    let mut set = Settings::default();
    let mut text = b"[pgbouncer]\n".to_vec();
    for row in config.settings.rows() {
        let Some(value) = row.value.filter(|value| row.default != Some(value) && row.key != "auth_ldap_options") else {
            continue;
        };
        let done = set.set(row.key, &value);
        assert!(done.is_ok(), "{} = {value:?}: {done:?}", row.key);
        assert_eq!(set.get(row.key), Some(Some(value.clone())), "{}", row.key);
        text.extend_from_slice(format!("{} = {value}\n", row.key).as_bytes());
    }
    let (printed, log) = load(Path::new(MAIN), &files(&text, b""), None);
    // files that settings name are not there the second time
    let Ok(printed) = printed else { panic!("{log:?} in {:?}", String::from_utf8_lossy(&text)) };
    for (one, two) in printed.config.settings.rows().into_iter().zip(config.settings.rows()) {
        assert!(one == two || one.key == "auth_ldap_options", "{one:?} was {two:?}");
    }
}

pub(crate) fn userlist(data: &[u8]) {
    let list = userlist::parse(data);
    let mut text = Vec::new();
    let quoted = |text: &[u8]| text.iter().flat_map(|&b| std::iter::repeat_n(b, 1 + usize::from(b == b'"'))).collect();
    for (name, secret) in &list.secrets {
        let (name, secret): (Vec<u8>, Vec<u8>) = (quoted(name.as_bytes()), quoted(secret));
        text.extend([b"\"", &name[..], b"\" \"", &secret, b"\" and the rest\n"].concat());
    }
    let again = userlist::parse(&text);
    assert!(list.secrets == again.secrets, "{:?}", text.escape_ascii().to_string());
    assert!(again.log.is_empty());
    let mut other = userlist::Userlist { log: list.log.clone(), ..Default::default() };
    other.secrets.extend(list.secrets.keys().map(|name| (name.clone(), b"another".to_vec().into())));
    assert_eq!(format!("{list:?}"), format!("{other:?}"), "secrets are shown");
}

pub(crate) fn ident(data: &[u8]) {
    let (maps, log) = ident::parse(data);
    let (again, _) = ident::parse(&[data, b"\n# the end\n"].concat());
    assert!(maps == again || data.contains(&b'\\') || log.len() > maps.len());
    for (name, map) in &maps {
        assert_eq!(*name, map.name);
        let _ = map.system_users("ann").count();
    }
}

pub(crate) fn hba(data: &[u8]) {
    let mut from = Bytes(data);
    let other = from.stretch();
    let read = files(b"", other);
    let (maps, _) = ident::parse(b"m /^(.*)$ \\1\nn sys ann\n");
    let parse = |text: &[u8]| hba::parse(text, Path::new("/etc/hba"), &maps, &read);
    let (rules, log) = parse(from.0);
    let lines = from.0.split(|byte| *byte == b'\n').count();
    assert!(rules.len() <= lines && log.len() <= 3 * lines);
    for address in [None, Some([127, 0, 0, 1].into()), Some(std::net::IpAddr::V6(1_u128.into()))] {
        for tls in [false, true] {
            for replicating in [hba::Replicating::No, hba::Replicating::Physical] {
                let who = hba::Subject { address, tls, database: "db", user: "ann", replicating };
                let found = rules.find(&who);
                assert!(found.is_none_or(|rule| rule.line >= 1 && rule.line <= lines));
                // a first rule for everybody is found first
                let first = parse(&[b"host all all all trust\nlocal all all trust\n", from.0].concat()).0;
                let before = first.find(&who).map(|rule| rule.line);
                assert!(replicating != hba::Replicating::No || before.is_some_and(|line| line <= 2));
            }
        }
    }
}

pub(crate) fn connstr(data: &[u8]) {
    let mut from = Bytes(data);
    let name = String::from_utf8_lossy(from.stretch()).into_owned();
    let value = String::from_utf8_lossy(from.stretch()).into_owned();
    let text = String::from_utf8_lossy(from.0).into_owned();
    if let Ok(database) = connstr::parse_database(&name, &text) {
        assert!(connstr::parse_database(&name, &text) == Ok(database.clone()));
        assert!(!database.needs_reconnect(&database));
        assert_ne!(name, "pgbouncer");
        // what comes behind wins
        let more = format!("{text} host=elsewhere port=77");
        if let Ok(more) = connstr::parse_database(&name, &more) {
            assert!(more.host.as_deref() == Some("elsewhere") && more.port == 77);
        }
    }
    let _ = connstr::parse_user(&text);
    if let Ok(peer) = connstr::parse_peer(&name, &text) {
        assert!(peer.id > 0);
    }
    // any text can be quoted, but there must be one
    if value.is_empty() {
        return;
    }
    let quoted = format!("host='{0}' password='pa55-w0rd-x' user = '{0}'", value.replace('\'', "''"));
    let database = connstr::parse_database("db", &quoted).expect("a good line");
    assert!(database.host.as_deref() == Some(&*value) && database.user.as_deref() == Some(&*value));
    assert!(value.contains("pa55") || !format!("{database:?}").contains("pa55"), "the password is shown");
}
