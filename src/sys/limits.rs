//! The limit of open files: the ceiling of how many clients can be served.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Limits of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdLimit {
    /// In force now.
    pub soft: u64,
    pub hard: u64,
}

/// Raises the soft limit to the hard one, as far as the kernel lets it, and reports both.
#[must_use]
pub fn raise_fd_limit() -> FdLimit {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return FdLimit { soft: 0, hard: 0 };
    };
    // "unlimited" is refused for files; the kernel's own maximum is then the most one can have
    let target = hard.min(kernel_maximum());
    if target > soft && setrlimit(Resource::RLIMIT_NOFILE, target, hard).is_ok() {
        return FdLimit { soft: target, hard };
    }
    FdLimit { soft, hard }
}

/// What [`raise_fd_limit`] would reach, without raising anything.
#[must_use]
pub fn reachable_fd_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, hard)| soft.max(hard.min(kernel_maximum())))
}

/// No core dumps: they would hold passwords and keys. A limit of one byte is no room for any, and unlike 0 it is also what
/// keeps the kernel from piping one to a program that `core_pattern` names (core(5)). Only the soft limit is lowered, so
/// that whoever hunts a crash can lift it for a running process (`prlimit --core`). Whether debuggers may look into the
/// process is left to the system: making it undumpable would hide its /proc from operators and gain nothing against its
/// own user.
pub fn no_core_dumps() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        let _ = setrlimit(Resource::RLIMIT_CORE, hard.min(1), hard);
    }
}

fn kernel_maximum() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    text.trim().parse().unwrap_or(1 << 20)
}

impl FdLimit {
    /// The start-up line; `expected` is the number of descriptors the configuration may come to use.
    #[must_use]
    pub fn describe(self, max_client_conn: i64, expected: u64) -> String {
        let Self { soft, hard } = self;
        format!(
            "kernel file descriptor limit: {soft} (hard: {hard}); max_client_conn: {max_client_conn}, max expected fd \
             use: {expected}"
        )
    }
}

/// What is to be said of a `limit` if the configuration may come to use more descriptors.
#[must_use]
pub fn too_low(limit: u64, max_client_conn: i64, expected: u64) -> Option<String> {
    (expected > limit).then(|| {
        format!(
            "max_client_conn={max_client_conn} and the servers of all pools may need {expected} file descriptors, of which \
             there are {limit}: raise the limit (ulimit -Hn, LimitNOFILE) or lower max_client_conn and pool sizes"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_dumps_are_off_and_can_be_had() {
        let (_, before) = getrlimit(Resource::RLIMIT_CORE).expect("readable");
        no_core_dumps();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((before.min(1), before)));
    }

    #[test]
    fn soft_limit_is_raised() {
        let limit = raise_fd_limit();
        assert_eq!(limit.soft, limit.hard.min(kernel_maximum()));
        assert_eq!(limit.soft, reachable_fd_limit());
        assert_eq!(
            FdLimit { soft: 1024, hard: 20000 }.describe(100, 576),
            "kernel file descriptor limit: 1024 (hard: 20000); max_client_conn: 100, max expected fd use: 576"
        );
        assert_eq!(too_low(1024, 100, 1024), None);
        assert_eq!(
            too_low(1024, 2000, 2012).as_deref(),
            Some(
                "max_client_conn=2000 and the servers of all pools may need 2012 file descriptors, of which there are 1024: \
                 raise the limit (ulimit -Hn, LimitNOFILE) or lower max_client_conn and pool sizes"
            )
        );
    }
}
