//! Texts of the configuration that were refused, as a log may show them.
//!
//! What was refused was not understood: where a password in it ends, nobody knows. So nothing behind the first word that
//! looks like a password's key is shown.

/// What stands in the place of a password.
pub(crate) const MASK: &str = "...";

/// `text` up to the value of the first key that looks like that of a password, without what a URL has before its host.
pub(crate) fn refused(text: &str) -> String {
    let mut shown = without_userinfo(text);
    if let Some(end) = behind_key(&shown).filter(|&end| end < shown.len()) {
        shown.truncate(end);
        shown.push_str(MASK);
    }
    shown
}

/// The value of the parameter `key`, which was refused: a whole line may have been nothing but a password.
pub(crate) fn refused_value(key: &str, value: &str) -> String {
    if find_key(key).is_some() && !value.is_empty() { MASK.to_owned() } else { refused(value) }
}

/// Where such a key begins: `password`, and everything that may have been meant by it, like `PASSWD` and `pasword`.
fn find_key(text: &str) -> Option<usize> {
    text.as_bytes().windows(3).position(|bytes| bytes.eq_ignore_ascii_case(b"pas"))
}

/// The place behind such a key and the `=` that follows it.
fn behind_key(text: &str) -> Option<usize> {
    let key = &text[find_key(text)?..];
    let rest = key.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let rest = rest.strip_prefix(['"', '\'']).unwrap_or(rest).trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    Some(text.len() - rest.len())
}

/// `scheme://user:password@host` without user and password. A password may hold any sign, so the last `@` counts.
fn without_userinfo(text: &str) -> String {
    match text.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, host)) => format!("{scheme}://{MASK}@{host}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_behind_a_password_is_shown() {
        for (text, shown) in [
            ("", ""),
            ("host=a port=x", "host=a port=x"),
            ("host=a password=my geheim", "host=a password=..."),
            ("host=a password='x' 'geheim'", "host=a password=..."),
            ("password = 'ge''heim' port=x", "password = ..."),
            ("host=a PASSWORD=geheim", "host=a PASSWORD=..."),
            ("host=a passwd=geheim", "host=a passwd=..."),
            ("host=a passwrd=geheim x=y", "host=a passwrd=..."),
            ("host=a pasword='geheim", "host=a pasword=..."),
            ("host=a,password=geheim", "host=a,password=..."),
            ("host=a password geheim", "host=a password ..."),
            ("\"ldapbindpasswd\"=geheim a=b", "\"ldapbindpasswd\"=..."),
            ("LDAPBINDPASSWORD= geheim", "LDAPBINDPASSWORD= ..."),
            ("postgres://u:geheim@h/db", "postgres://...@h/db"),
            ("postgres://u:ge@heim@h/db?password=geheim", "postgres://...@h/db?password=..."),
            ("ldap://h/dc=x", "ldap://h/dc=x"),
            ("password", "password"),
        ] {
            assert_eq!(refused(text), shown, "{text:?}");
        }
    }

    #[test]
    fn a_line_may_be_nothing_but_a_password() {
        assert_eq!(refused_value("password", "geheim"), "...");
        assert_eq!(refused_value("db_Passwd", "geheim"), "...");
        assert_eq!(refused_value("password", ""), "");
        assert_eq!(refused_value("a", "host=a password=geheim"), "host=a password=...");
    }
}
