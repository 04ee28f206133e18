//! Whose rights the process runs with.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

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

/// Are we root?
#[must_use]
pub fn is_root() -> bool {
    Uid::current().is_root() || Uid::effective().is_root()
}

/// Refuses to run as root.
///
/// # Errors
/// The FATAL text.
pub fn refuse_root() -> Result<(), Fatal> {
    if is_root() { Err(Fatal("PgBouncer should not run as root".to_owned())) } else { Ok(()) }
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

/// May a daemon that became this user, who has no group but his own then, read a file by its mode? What is not there, or not
/// for us to see, may be read for all we know.
#[must_use]
pub fn may_read(name: &str, path: &Path) -> bool {
    let Ok(Some(user)) = User::from_name(name) else { return true };
    let allowed = |path: &Path, bit: u32| {
        let Ok(meta) = std::fs::metadata(path) else { return true };
        let shift = if meta.uid() == user.uid.as_raw() {
            6
        } else if meta.gid() == user.gid.as_raw() {
            3
        } else {
            0
        };
        user.uid.is_root() || (meta.mode() >> shift) & bit != 0
    };
    let Ok(path) = path.canonicalize() else { return true };
    allowed(&path, 0o4) && path.ancestors().skip(1).all(|dir| allowed(dir, 0o1))
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

    #[test]
    fn reading_takes_the_file_and_every_directory_above() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = std::env::temp_dir().join(format!("pgu-user-{}", std::process::id()));
        let file = dir.join("secret");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(&file, "").unwrap();
        for (of_dir, of_file, readable) in [(0o755, 0o644, true), (0o755, 0o640, false), (0o700, 0o644, false)] {
            let set = |path: &Path, mode| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            };
            set(&file, of_file);
            set(&dir, of_dir);
            assert_eq!(may_read("nobody", &file), readable, "{of_dir:o} {of_file:o}");
            assert!(may_read("root", &file));
        }
        assert!(may_read("nobody", &dir.join("gone")) && may_read("no such user", &file));
        std::fs::remove_dir_all(&dir).unwrap();
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
