//! Local time with the zone's abbreviation, from the C library as PgBouncer has it.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use nix::libc;

/// One second in local time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// `YYYY-MM-DD HH:MM:SS`.
    pub stamp: String,
    /// The abbreviation, such as `CET`.
    pub zone: String,
}

/// Breaks up seconds since 1970; zone rules are read from `TZ` or /etc/localtime at the first call.
#[must_use]
pub fn local(unix_secs: i64) -> Local {
    let tm = broken_up(unix_secs);
    Local { stamp: format(&tm, c"%Y-%m-%d %H:%M:%S"), zone: format(&tm, c"%Z") }
}

/// Universal time to the second, as `YYYY-MM-DDTHH:MM:SS`.
#[must_use]
pub fn utc_stamp(unix_secs: i64) -> String {
    let mut tm = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; the thread-safe variant writes nothing but `tm`, and a zeroed tm is a
    // valid value too, should the year not fit.
    let tm = unsafe {
        libc::gmtime_r(&raw const unix_secs, tm.as_mut_ptr());
        tm.assume_init()
    };
    format(&tm, c"%Y-%m-%dT%H:%M:%S")
}

/// The time as it stands at the head of a syslog message.
#[must_use]
pub fn syslog_stamp(unix_secs: i64) -> String {
    format(&broken_up(unix_secs), c"%b %e %H:%M:%S")
}

fn broken_up(unix_secs: i64) -> libc::tm {
    let mut tm = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; the thread-safe variant writes nothing but `tm`.
    unsafe {
        libc::localtime_r(&raw const unix_secs, tm.as_mut_ptr());
        // a zeroed tm is a valid value too, should the year not fit
        tm.assume_init()
    }
}

fn format(tm: &libc::tm, format: &CStr) -> String {
    let mut buf = [0_u8; 64];
    // SAFETY: `buf` and its length belong together, `format` ends with a zero, `tm` is initialised and its zone
    // pointer is null or points to the C library's table of zone names, which is never freed.
    let len = unsafe { libc::strftime(buf.as_mut_ptr().cast(), buf.len(), format.as_ptr(), tm) };
    String::from_utf8_lossy(&buf[..len.min(buf.len())]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn agrees_with_date() {
        for secs in [0, 1_700_000_000, 1_720_000_000, 4_000_000_000] {
            let out = Command::new("date").args(["-d", &format!("@{secs}"), "+%Y-%m-%d %H:%M:%S|%Z"]).output().unwrap();
            let Local { stamp, zone } = local(secs);
            assert_eq!(format!("{stamp}|{zone}\n"), String::from_utf8_lossy(&out.stdout));
            let utc = ["-u", "-d", &format!("@{secs}"), "+%Y-%m-%dT%H:%M:%S"];
            let out = Command::new("date").args(utc).output().unwrap();
            assert_eq!(utc_stamp(secs) + "\n", String::from_utf8_lossy(&out.stdout));
            let short = ["-d", &format!("@{secs}"), "+%b %e %H:%M:%S"];
            let out = Command::new("date").args(short).env("LC_ALL", "C").output().unwrap();
            assert_eq!(syslog_stamp(secs) + "\n", String::from_utf8_lossy(&out.stdout));
        }
    }
}
