//! Whose rights the process runs with.

use nix::unistd::{Gid, Group, Uid, User, setgid, setgroups, setuid};

use super::error_text;
use crate::log::Fatal;

/// Becomes `name`, with no group but that user's own.
///
/// # Errors
/// FATAL texts.
pub fn switch_user(name: &str) -> Result<(), Fatal> {
    let Ok(Some(user)) = User::from_name(name) else {
        return Err(Fatal(format!("could not find user '{name}' to switch to")));
    };
    let failed =
        |e: nix::Error| Fatal(format!("failed to assume identity of user '{name}': {}", error_text(&e.into())));
    if Uid::current().is_root() {
        setgroups(&[user.gid]).map_err(failed)?;
    }
    setgid(user.gid).map_err(failed)?;
    setuid(user.uid).map_err(failed)
}

/// Refuses to run as root.
///
/// # Errors
/// The FATAL text.
pub fn refuse_root() -> Result<(), Fatal> {
    if Uid::current().is_root() || Uid::effective().is_root() {
        Err(Fatal("PgBouncer should not run as root".to_owned()))
    } else {
        Ok(())
    }
}

/// Our user id, to which the console is open over the Unix socket.
#[must_use]
pub fn own_uid() -> u32 {
    Uid::effective().as_raw()
}

/// The name of a user; the system's databases are asked, which may take a while.
#[must_use]
pub fn name_of(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// Is there a user of this name?
#[must_use]
pub fn exists(name: &str) -> bool {
    matches!(User::from_name(name), Ok(Some(_)))
}

/// A group by name or number.
#[must_use]
pub fn find_group(name: &str) -> Option<Gid> {
    match Group::from_name(name) {
        Ok(Some(group)) => Some(group.gid),
        _ => name.parse().ok().map(Gid::from_raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn unknown_user() {
        assert_eq!(switch_user("no such user").unwrap_err().0, "could not find user 'no such user' to switch to");
        assert_eq!(find_group("root"), Some(Gid::from_raw(0)));
        assert_eq!(find_group("4711"), Some(Gid::from_raw(4711)));
        assert_eq!(find_group("nosuchgroup"), None);
    }

    #[test]
    fn names_of_users() {
        assert_eq!(name_of(0).as_deref(), Some("root"));
        assert_eq!(name_of(4_000_000_000), None);
        assert!(exists("root") && !exists("no such user"));
    }

    /// Runs as the child of the next test, which is root.
    #[test]
    #[ignore = "started by identity_is_assumed"]
    fn become_nobody() {
        assert_eq!(refuse_root().unwrap_err().0, "PgBouncer should not run as root");
        switch_user("nobody").unwrap();
        assert_eq!(refuse_root(), Ok(()));
        let user = User::from_name("nobody").unwrap().unwrap();
        assert_eq!((Uid::effective(), Gid::effective()), (user.uid, user.gid));
        assert_eq!(nix::unistd::getgroups().unwrap(), [user.gid]);
        assert_eq!(
            switch_user("daemon").unwrap_err().0,
            "failed to assume identity of user 'daemon': Operation not permitted"
        );
    }

    #[test]
    fn identity_is_assumed() {
        if !Uid::current().is_root() {
            return;
        }
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--test-threads=1"])
            .arg(concat!(module_path!(), "::become_nobody").split_once("::").unwrap().1)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("1 passed"), "{text}");
    }
}
