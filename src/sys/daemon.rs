//! Going into the background (`-d`).

use std::fs::File;
use std::io;

use nix::libc;
use nix::unistd::{ForkResult, fork, setsid};

use super::error_text;
use crate::log::Fatal;

/// Detaches from terminal and session: /dev/null for the three standard files, fork, setsid, fork. Returns in the
/// daemon; the starting process ends with status 0 and does not wait for the daemon's success.
///
/// # Errors
/// FATAL texts. Threads do not survive a fork, so it refuses to run when there are any.
pub fn daemonize(pidfile: &str) -> Result<(), Fatal> {
    if pidfile.is_empty() {
        return Err(Fatal("daemon needs pidfile configured".to_owned()));
    }
    if threads() > 1 {
        return Err(Fatal("cannot go into the background: threads are running already".to_owned()));
    }
    redirect().map_err(|e| Fatal(format!("could not open /dev/null: {}", error_text(&e))))?;
    fork_and_leave()?;
    setsid().map_err(|e| Fatal(format!("setsid: {}", error_text(&e.into()))))?;
    fork_and_leave()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

fn redirect() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

fn fork_and_leave() -> Result<(), Fatal> {
    // SAFETY: the process has one thread, checked by the caller, so the child holds no lock of a vanished thread.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => Ok(()),
        // SAFETY: ends the process without exit handlers, which belong to the child now.
        Ok(ForkResult::Parent { .. }) => unsafe { libc::_exit(0) },
        Err(e) => Err(Fatal(format!("fork: {}", error_text(&e.into())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    const REPORT: &str = "PGUSHER_TEST_DAEMON_REPORT";

    #[test]
    fn refusals() {
        assert_eq!(daemonize("").unwrap_err().0, "daemon needs pidfile configured");
    }

    /// Runs as the child of the next test.
    #[test]
    #[ignore = "started by daemon_is_detached"]
    fn become_a_daemon() {
        let Ok(report) = std::env::var(REPORT) else { return };
        let text = daemonize("some.pid").unwrap_err().0;
        assert_eq!(text, "cannot go into the background: threads are running already");
        // SAFETY: the test harness's other thread only waits; the C library's allocator works in a forked child.
        if let ForkResult::Parent { child } = unsafe { fork() }.unwrap() {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            return;
        }
        daemonize("some.pid").unwrap();
        let link = |n| std::fs::read_link(format!("/proc/self/fd/{n}")).unwrap().display().to_string();
        let sid = nix::unistd::getsid(None).unwrap();
        let leader = sid == nix::unistd::getpid();
        let text = format!("{} {} {} leader={leader} sid={sid}", link(0), link(1), link(2));
        std::fs::write(format!("{report}.new"), text).unwrap();
        std::fs::rename(format!("{report}.new"), report).unwrap();
        // SAFETY: ends the copy of the test harness without its exit handlers.
        unsafe { libc::_exit(0) }
    }

    #[test]
    fn daemon_is_detached() {
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("report");
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--test-threads=1", "--nocapture"])
            .arg(concat!(module_path!(), "::become_a_daemon").split_once("::").unwrap().1)
            .env(REPORT, &report)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let text = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            std::fs::read_to_string(&report).ok()
        });
        let text = text.expect("the daemon reports");
        assert!(text.starts_with("/dev/null /dev/null /dev/null leader=false sid="), "{text}");
        let own_sid = nix::unistd::getsid(None).unwrap();
        assert!(!text.ends_with(&format!("sid={own_sid}")), "{text}");
    }
}
