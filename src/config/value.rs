//! How the value of a setting is read and printed, by type.
//!
//! Reading follows C where files in the field depend on it: integers are `strtol` with base 0 over the whole text
//! (`0777` is octal, `0x10` hexadecimal), a switch is such an integer, a time is a decimal number of seconds. Printing is
//! that of SHOW CONFIG: `%d`, and `%g` for times.

use std::fmt;

use crate::time::Micros;

/// A type that a setting can have.
pub trait Value: Sized {
    /// What a text must be to be a value of this type, in the words of a remedy.
    const EXPECTED: &'static str;

    /// `None`: the text is no value of this type.
    fn parse(text: &str) -> Option<Self>;

    /// The value column of SHOW CONFIG; `None` is NULL.
    fn print(&self) -> Option<String>;

    /// The value as a file has to say it to get the very same one; `None` if no text does.
    fn written(&self) -> Option<String> {
        self.print()
    }

    /// The value before any file is read.
    #[must_use]
    fn initial(default: Option<&str>) -> Self {
        default.and_then(Self::parse).expect("each default in the table is a value of its type")
    }
}

impl Value for String {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn print(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Value for Option<String> {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str) -> Option<Self> {
        Some(Some(text.to_owned()))
    }

    fn print(&self) -> Option<String> {
        self.clone()
    }

    fn initial(default: Option<&str>) -> Self {
        default.map(str::to_owned)
    }
}

/// Numbers beyond an `int` stop at its ends, so that sums of settings cannot overflow.
impl Value for i64 {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Option<Self> {
        let value = parse_int(text)?.clamp(i128::from(i32::MIN), i128::from(i32::MAX));
        Self::try_from(value).ok()
    }

    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A number that is 0 until somebody sets it, and NULL in the default column (`verbose`).
impl Value for Option<i64> {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Option<Self> {
        <i64 as Value>::parse(text).map(Some)
    }

    fn print(&self) -> Option<String> {
        Some(self.unwrap_or(0).to_string())
    }

    fn written(&self) -> Option<String> {
        self.map(|value| value.to_string())
    }

    fn initial(_: Option<&str>) -> Self {
        None
    }
}

/// As in C a negative number counts down from the end: -1 is the largest `unsigned int`.
impl Value for u64 {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Option<Self> {
        const COUNT: i128 = 1 << u32::BITS;
        let value = parse_int(text)?;
        let value = if value < 0 { value.rem_euclid(COUNT) } else { value.min(COUNT - 1) };
        Self::try_from(value).ok()
    }

    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A setting that is on or off. As in PgBouncer it is an int, of which 0 is off, and is shown as it was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(i64);

impl Switch {
    #[must_use]
    pub const fn is_on(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Switch {
    fn from(on: bool) -> Self {
        Self(on.into())
    }
}

impl Value for Switch {
    const EXPECTED: &'static str = "0 or 1";

    fn parse(text: &str) -> Option<Self> {
        <i64 as Value>::parse(text).map(Self)
    }

    fn print(&self) -> Option<String> {
        self.0.print()
    }
}

impl Value for Micros {
    const EXPECTED: &'static str = "seconds without a unit, such as 1.5";

    fn parse(text: &str) -> Option<Self> {
        parse_seconds(text)
    }

    fn print(&self) -> Option<String> {
        Some(print_g(self.as_secs_f64()))
    }

    /// `%g` has six digits. What is read is cut, so half a microsecond more is the same value.
    fn written(&self) -> Option<String> {
        let (secs, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        Some(if micros == 0 { secs.to_string() } else { format!("{secs}.{micros:06}5") })
    }
}

/// An enum whose values have one spelling each; reading ignores case.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($variant,)* }

        impl $name {
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            #[must_use]
            pub fn from_text(text: &str) -> Option<Self> {
                $(if text.eq_ignore_ascii_case($text) { return Some(Self::$variant); })*
                None
            }
        }

        impl Value for $name {
            const EXPECTED: &'static str = concat!("one of:" $(, " ", $text)*);

            fn parse(text: &str) -> Option<Self> {
                Self::from_text(text)
            }

            fn print(&self) -> Option<String> {
                Some(self.as_str().to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// How clients prove who they are.
    AuthType {
        Any = "any",
        Trust = "trust",
        Plain = "plain",
        Md5 = "md5",
        Cert = "cert",
        Hba = "hba",
        Ldap = "ldap",
        Pam = "pam",
        ScramSha256 = "scram-sha-256",
    }
}

words! {
    /// When a server connection returns to its pool.
    PoolMode {
        Session = "session",
        Transaction = "transaction",
        Statement = "statement",
    }
}

words! {
    /// TLS policy, weakest first.
    SslMode {
        Disable = "disable",
        Allow = "allow",
        Prefer = "prefer",
        Require = "require",
        VerifyCa = "verify-ca",
        VerifyFull = "verify-full",
    }
}

words! {
    /// What log lines look like.
    LogFormat {
        Text = "text",
        Json = "json",
    }
}

words! {
    /// How the next host of a comma list is chosen.
    LoadBalanceHosts {
        Disable = "disable",
        RoundRobin = "round-robin",
    }
}

/// C `strtol(text, &end, 0)` over the whole text: blanks before it, a sign, `0x` for base 16, a leading 0 for base 8.
fn parse_int(text: &str) -> Option<i128> {
    let text = text.trim_start_matches(is_c_space);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        (16, hex)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, &digits[1..])
    } else {
        (10, digits)
    };
    // from_str_radix would take a second sign
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -value } else { value })
}

/// C `atoi`: blanks, a sign, as many digits as there are; garbage is 0. Numbers beyond an `int` stop at its ends.
pub(super) fn atoi(text: &str) -> i64 {
    let text = text.trim_start_matches(is_c_space);
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let mut value = 0i64;
    for digit in digits.bytes().take_while(u8::is_ascii_digit) {
        value = value.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
    }
    let value = if negative { -value } else { value };
    value.clamp(i64::from(i32::MIN), i64::from(i32::MAX))
}

/// Seconds, decimal, not negative; beyond the range of [`Micros`] its end.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn parse_seconds(text: &str) -> Option<Micros> {
    let text = text.trim_start_matches(is_c_space);
    // f64's own reader also knows words such as "inf" and "nan"
    if !text.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b)) {
        return None;
    }
    let seconds: f64 = text.parse().ok()?;
    if !seconds.is_finite() || seconds < 0.0 {
        return None;
    }
    // cut, not rounded, as PgBouncer does and prints; `as` saturates
    Some(Micros((seconds * 1e6) as u64))
}

/// C `isspace` in the C locale.
pub(super) const fn is_c_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// C `%g`: six significant digits, no trailing zeros, an exponent when it is below -4 or above 5.
fn print_g(value: f64) -> String {
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} prints an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} prints a decimal exponent");
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).unwrap_or(0);
        return trim_zeros(&format!("{value:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trim_zeros(mantissa), exponent.abs())
}

fn trim_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_strtol_base_0() {
        for (text, want) in [
            ("0", Some(0)),
            ("100", Some(100)),
            (" 7", Some(7)),
            ("+07", Some(7)),
            ("-3", Some(-3)),
            ("0777", Some(511)),
            ("0x1F", Some(31)),
            ("0X1f", Some(31)),
            ("-0x10", Some(-16)),
            ("99999999999", Some(2_147_483_647)),
            ("-99999999999", Some(-2_147_483_648)),
            ("", None),
            (" ", None),
            ("+", None),
            ("+-7", None),
            ("- 1", None),
            ("08", None),
            ("0x", None),
            ("0x-1", None),
            ("7 ", None),
            ("1.5", None),
            ("1k", None),
            ("\u{0663}", None),
        ] {
            assert_eq!(<i64 as Value>::parse(text), want, "{text:?}");
        }
        for (text, want) in [("2147483647", Some(2_147_483_647)), ("-1", Some(4_294_967_295)), ("x", None)] {
            assert_eq!(<u64 as Value>::parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn switches_are_integers_and_shown_as_set() {
        for (text, on, shown) in [("0", false, "0"), ("1", true, "1"), (" 0x7", true, "7"), ("-5", true, "-5")] {
            let switch = Switch::parse(text).expect("an integer");
            assert_eq!((switch.is_on(), switch.print().as_deref()), (on, Some(shown)), "{text:?}");
        }
        for text in ["on", "true", "", "1 "] {
            assert_eq!(Switch::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn times_are_read_and_printed() {
        // text, microseconds, SHOW CONFIG
        for (text, us, printed) in [
            ("0", 0, "0"),
            ("-0", 0, "0"),
            ("1.5", 1_500_000, "1.5"),
            (".5", 500_000, "0.5"),
            ("5.", 5_000_000, "5"),
            (" 2", 2_000_000, "2"),
            ("3600", 3_600_000_000, "3600"),
            ("123456.789", 123_456_789_000, "123457"),
            ("999999.5", 999_999_500_000, "1e+06"),
            ("1000000", 1_000_000_000_000, "1e+06"),
            ("1e6", 1_000_000_000_000, "1e+06"),
            ("1234567", 1_234_567_000_000, "1.23457e+06"),
            ("0.1234567", 123_456, "0.123456"),
            ("0.001", 1000, "0.001"),
            ("0.0000015", 1, "1e-06"),
            ("1e300", u64::MAX, "1.84467e+13"),
        ] {
            let value = <Micros as Value>::parse(text);
            assert_eq!(value, Some(Micros(us)), "{text:?}");
            assert_eq!(value.and_then(|value| value.print()), Some(printed.to_owned()), "{text:?}");
        }
        for text in ["", " ", "-1", "-0.1", "2 ", "5s", "inf", "nan", "1e999", ".", "e", "1,5"] {
            assert_eq!(<Micros as Value>::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn words_ignore_case_and_print_their_spelling() {
        assert_eq!(AuthType::from_text("SCRAM-SHA-256"), Some(AuthType::ScramSha256));
        assert_eq!(AuthType::ScramSha256.to_string(), "scram-sha-256");
        assert_eq!(PoolMode::from_text("Transaction"), Some(PoolMode::Transaction));
        assert_eq!(SslMode::from_text("verify_ca"), None);
        assert_eq!(PoolMode::from_text(""), None);
    }

    #[test]
    fn atoi_reads_what_it_can() {
        for (text, want) in [
            ("5432", 5432),
            (" -7x", -7),
            ("+3", 3),
            ("x", 0),
            ("", 0),
            ("0x10", 0),
            ("99999999999999999999", 2_147_483_647),
            ("-99999999999999999999", -2_147_483_648),
        ] {
            assert_eq!(atoi(text), want, "{text:?}");
        }
    }
}
