//! Priority of threads.

use nix::libc;

/// How much less than others a thread that stands back wants the processor.
const NICENESS: libc::c_int = 5;

/// Lets other threads go first. For threads whose work takes long and can wait a little.
pub fn stand_back() {
    // SAFETY: the call takes three numbers. On Linux 0 stands for the calling thread, not for its process.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, NICENESS) };
}

/// Makes this thread run only where no other thread wants the core, and give way at once when one does. `false`: the
/// kernel does not allow it.
#[must_use]
pub fn only_when_idle() -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads a valid struct during the call. On Linux 0 stands for the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_stands_back() {
        let niceness = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux");
            // behind the name, which ends with the last bracket: state, and fifteen numbers
            let fields = stat.rsplit(')').next().unwrap_or_default();
            fields.split_whitespace().nth(16).and_then(|field| field.parse::<i32>().ok()).expect("a number")
        };
        let before = niceness();
        let theirs = std::thread::spawn(move || {
            stand_back();
            niceness()
        });
        assert!(theirs.join().expect("thread") >= NICENESS);
        assert_eq!(niceness(), before);
    }
}
