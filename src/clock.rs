//! The only reader of clocks.
//!
//! Core time is monotonic [`Micros`] since the process started. Wall time serves log lines and SHOW columns only; a
//! step of the wall clock must never end a timeout.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::sys;
use crate::time::Micros;

static START: OnceLock<Instant> = OnceLock::new();
/// Wall clock minus monotonic clock in microseconds; zero until first asked for.
static WALL_OFFSET_US: AtomicI64 = AtomicI64::new(0);
/// The offset is kept until the wall clock has been stepped by more than this, so that a time shown twice is the same.
const STEP_US: u64 = 500_000;

/// The process's clock; the first call of [`Clock::now`] is time zero.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

impl Clock {
    /// Monotonic time since process start.
    #[must_use]
    #[allow(clippy::disallowed_methods)]
    pub fn now() -> Micros {
        let start = START.get_or_init(Instant::now);
        Micros(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Processor time that the calling thread has had.
    #[must_use]
    pub fn of_thread() -> Micros {
        let spent = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
        let micros = spent.map_or(0, |spent| spent.tv_sec().saturating_mul(1_000_000) + spent.tv_nsec() / 1000);
        Micros(u64::try_from(micros).unwrap_or(0))
    }

    /// Wall clock in microseconds since 1970; zero when the clock stands before that.
    #[must_use]
    #[allow(clippy::disallowed_methods)]
    pub fn wall_us() -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    /// Unix seconds of a point in core time, for SHOW.
    #[must_use]
    pub fn unix_secs(at: Micros) -> i64 {
        Self::wall().unix_secs(at)
    }

    /// How core time and time of day go together now.
    #[must_use]
    pub fn wall() -> Wall {
        let fresh = Self::wall_us().saturating_sub(signed(Self::now()));
        let kept = WALL_OFFSET_US.load(Ordering::Relaxed);
        let offset = if kept.abs_diff(fresh) > STEP_US { fresh } else { kept };
        if offset != kept {
            WALL_OFFSET_US.store(offset, Ordering::Relaxed);
        }
        Wall { offset_us: offset }
    }
}

/// Makes times of day of points in core time, many of them without reading the clock again.
#[derive(Clone, Copy, Debug)]
pub struct Wall {
    offset_us: i64,
}

impl Wall {
    /// Unix seconds.
    #[must_use]
    pub fn unix_secs(self, at: Micros) -> i64 {
        self.offset_us.saturating_add(signed(at)).div_euclid(1_000_000)
    }
}

fn signed(at: Micros) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// `YYYY-MM-DD HH:MM:SS TZ` in local time, as SHOW prints a time.
#[must_use]
pub fn format_local(unix_secs: i64) -> String {
    let local = sys::localtime::local(unix_secs);
    format!("{} {}", local.stamp, local.zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_time_converts_to_wall_time() {
        let now = Clock::now();
        let wall = Clock::wall_us() / 1_000_000;
        assert!((Clock::unix_secs(now) - wall).abs() <= 1);
        let later = Micros(now.0 + 100_000_000);
        assert_eq!(Clock::unix_secs(later), Clock::unix_secs(now) + 100);
        assert!(Clock::now() >= now);
    }

    #[test]
    fn local_format_has_three_words() {
        let text = format_local(1_700_000_000);
        assert!(text.starts_with("2023-11-1"), "{text}");
        assert_eq!(text.split(' ').count(), 3, "{text}");
    }
}
