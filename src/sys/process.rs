//! What the kernel says of this process.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

/// Figures of the process; `None` where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, user and system, microseconds.
    pub cpu_us: Option<u64>,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    /// The soft limit.
    pub max_fds: Option<u64>,
}

#[must_use]
pub fn usage() -> Usage {
    let times = getrusage(UsageWho::RUSAGE_SELF).ok();
    let cpu = times.map(|used| used.user_time().num_microseconds() + used.system_time().num_microseconds());
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|bytes| u64::try_from(bytes).ok());
    let mut pages = statm.split(' ').map(|field| field.parse::<u64>().ok());
    let mut bytes = || Some(pages.next()??.saturating_mul(page?));
    Usage {
        cpu_us: cpu.and_then(|us| u64::try_from(us).ok()),
        virtual_bytes: bytes(),
        resident_bytes: bytes(),
        open_fds: open_fds(),
        max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
    }
}

/// Kernels from 6.2 on have the number as the size of the directory; on others the entries are counted.
fn open_fds() -> Option<u64> {
    let dir = "/proc/self/fd";
    match fs::metadata(dir).ok()?.size() {
        // the counting itself has the directory open
        0 => Some((fs::read_dir(dir).ok()?.count() as u64).saturating_sub(1)),
        open => Some(open),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_counted() {
        let before = open_fds().expect("there is /proc");
        let held: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").expect("it exists")).collect();
        let now = open_fds().expect("there is /proc");
        // other tests of this process open and close descriptors meanwhile
        assert!(now + 25 > before + held.len() as u64, "{before} {now}");
        let usage = usage();
        assert!(usage.resident_bytes < usage.virtual_bytes && usage.resident_bytes > Some(1 << 20), "{usage:?}");
        assert!(usage.max_fds > Some(0) && usage.cpu_us.is_some(), "{usage:?}");
    }
}
