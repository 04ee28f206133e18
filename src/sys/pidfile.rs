//! The pidfile: says who runs, keeps a second one from starting. Source: PgBouncer `src/main.c`, `check_pidfile`,
//! `write_pidfile`.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, getpid};

use super::error_text;
use crate::log::Fatal;

/// A pidfile this process wrote.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    /// Device and inode, to know the file again at exit.
    identity: (u64, u64),
    pid: Pid,
}

/// Refuses to start when the file names a living process; removes it when that process is gone. An empty path means
/// that there is no pidfile.
///
/// # Errors
/// FATAL texts.
pub fn check(path: &str) -> Result<(), Fatal> {
    if path.is_empty() {
        return Ok(());
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Fatal(format!("could not open pidfile '{path}': {}", error_text(&e)))),
    };
    let mut text = Vec::new();
    file.take(64)
        .read_to_end(&mut text)
        .map_err(|e| Fatal(format!("could not read pidfile '{path}': {}", error_text(&e))))?;
    if !parse(&text).is_some_and(is_gone) {
        return Err(Fatal(format!("pidfile '{path}' exists, another instance running?")));
    }
    remove_stale(path)
}

/// Takes away a file that names a process that is gone, if there is one.
///
/// # Errors
/// The FATAL text: it cannot be taken away.
pub fn remove_left_behind(path: &str) -> Result<(), Fatal> {
    if fs::read(path).is_ok_and(|text| parse(&text).is_some_and(is_gone)) { remove_stale(path) } else { Ok(()) }
}

fn remove_stale(path: &str) -> Result<(), Fatal> {
    tracing::info!("stale pidfile, removing");
    match fs::remove_file(path) {
        // its process had removed it in its last moment
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Fatal(format!("could not remove stale pidfile: {}", error_text(&e))))
        }
        _ => Ok(()),
    }
}

/// The number the text starts with, as strtoul reads it; None for what is no process id.
fn parse(text: &[u8]) -> Option<Pid> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let pid: i32 = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    (pid > 0).then(|| Pid::from_raw(pid))
}

/// Our own number can only be left from an earlier life of the machine or container.
fn is_gone(pid: Pid) -> bool {
    pid == getpid() || kill(pid, None) == Err(Errno::ESRCH)
}

/// Creates the file with our pid, once the listeners are open. None for an empty path.
///
/// # Errors
/// FATAL texts; a file that could not be filled is removed again.
pub fn write(path: &str) -> Result<Option<Pidfile>, Fatal> {
    if path.is_empty() {
        return Ok(None);
    }
    let open_failed = |e| Fatal(format!("could not open pidfile '{path}': {}", error_text(&e)));
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(path).map_err(open_failed)?;
    let meta = file.metadata().map_err(open_failed)?;
    let pid = getpid();
    if let Err(e) = file.write_all(format!("{pid}\n").as_bytes()) {
        let _ = fs::remove_file(path);
        return Err(Fatal(format!("could not write pidfile '{path}': {}", error_text(&e))));
    }
    Ok(Some(Pidfile { path: path.into(), identity: (meta.dev(), meta.ino()), pid }))
}

impl Pidfile {
    /// Removes the file at exit, unless another process has put its own there.
    pub fn remove(self) {
        let same_file = fs::metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        let same_pid = fs::read(&self.path).is_ok_and(|text| parse(&text) == Some(self.pid));
        if same_file && same_pid && self.pid == getpid() {
            let _ = fs::remove_file(&self.path);
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn existing_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.pid").to_str().unwrap().to_owned();
        let mut child = Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let running = Some(format!("pidfile '{path}' exists, another instance running?"));
        let table = [
            (String::new(), running.clone()),
            ("abc\n".to_owned(), running.clone()),
            ("0\n".to_owned(), running.clone()),
            ("-1\n".to_owned(), running.clone()),
            ("99999999999\n".to_owned(), running.clone()),
            (format!("{}\n", std::os::unix::process::parent_id()), running),
            (format!("{dead}\n"), None),
            (format!(" {dead} junk"), None),
            (format!("{}\n", std::process::id()), None),
        ];
        for (text, want) in table {
            fs::write(&path, &text).unwrap();
            assert_eq!(check(&path).err().map(|f| f.0), want, "{text:?}");
            assert_eq!(fs::exists(&path).unwrap(), want.is_some(), "{text:?}");
        }
        assert_eq!(check(&path), Ok(()));
        assert_eq!(check(""), Ok(()));
        let text = check(dir.path().to_str().unwrap()).unwrap_err().0;
        assert!(text.starts_with("could not read pidfile '") && text.ends_with("': Is a directory"), "{text}");
    }

    #[test]
    fn written_once_and_removed_only_when_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.pid").to_str().unwrap().to_owned();
        assert!(write("").unwrap().is_none());
        let ours = write(&path).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        assert_eq!(write(&path).unwrap_err().0, format!("could not open pidfile '{path}': File exists"));
        ours.remove();
        assert!(!fs::exists(&path).unwrap());

        let ours = write(&path).unwrap().unwrap();
        fs::rename(&path, dir.path().join("kept")).unwrap();
        fs::write(&path, "1\n").unwrap();
        ours.remove();
        assert!(fs::exists(&path).unwrap());
        let text = write("/nonexistent/p.pid").unwrap_err().0;
        assert_eq!(text, "could not open pidfile '/nonexistent/p.pid': No such file or directory");
    }
}
