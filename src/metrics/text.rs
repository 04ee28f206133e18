//! The exposition formats as text: families, samples, escapes.
//!
//! Written by hand because the well-kept libraries write one of the two formats and keep registries of live metrics, while
//! here a picture is written that was taken a moment ago. Sources: "Exposition formats" in the Prometheus documentation,
//! OpenMetrics 1.0.

use std::fmt::Write;

use super::Format;
use crate::stats::histogram::Histogram;

/// The bounds of buckets that are written: `1 << n` microseconds, from 64 us to 67 s. The histograms have four buckets for
/// each; nobody could pay for all of them in a time series database.
pub const BOUNDS: std::ops::RangeInclusive<u32> = 6..=26;

/// What a family measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Of a name that does not say, and that others chose.
    Unknown,
}

/// Labels of a sample, values not escaped yet.
pub type Labels<'a> = [(&'a str, &'a str)];

/// An exposition being written. A family is begun, then its samples are written.
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    out: String,
    /// The family begun last, with `_total` if it is a counter.
    name: String,
}

impl Exposition {
    #[must_use]
    pub const fn new(format: Format) -> Self {
        Self { format, out: String::new(), name: String::new() }
    }

    /// Begins a family. Names of counters are given without `_total`. `help` is one line.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        debug_assert!(!help.contains(['\n', '\\']) && !name.ends_with("_total"), "{name}: {help}");
        self.name.clear();
        self.name.push_str(name);
        if kind == Kind::Counter {
            self.name.push_str("_total");
        }
        // OpenMetrics speaks of a counter without the suffix, Prometheus with it
        let spoken = if self.format == Format::OpenMetrics { name } else { &self.name };
        let kind = match (kind, self.format) {
            (Kind::Counter, _) => "counter",
            (Kind::Gauge, _) => "gauge",
            (Kind::Histogram, _) => "histogram",
            (Kind::Unknown, Format::OpenMetrics) => "unknown",
            (Kind::Unknown, Format::Prometheus) => "untyped",
        };
        put(&mut self.out, format_args!("# HELP {spoken} {help}\n# TYPE {spoken} {kind}\n"));
    }

    /// A whole number.
    pub fn int(&mut self, labels: &Labels<'_>, value: impl TryInto<i128>) {
        let value: i128 = value.try_into().unwrap_or(i128::MAX);
        self.sample("", labels, None);
        put(&mut self.out, format_args!("{value}\n"));
    }

    /// Microseconds, written as seconds.
    pub fn seconds(&mut self, labels: &Labels<'_>, us: u64) {
        self.sample("", labels, None);
        put(&mut self.out, format_args!("{}\n", Seconds(us)));
    }

    pub fn histogram(&mut self, labels: &Labels<'_>, histogram: &Histogram) {
        for power in BOUNDS {
            self.sample("_bucket", labels, Some(Some(1 << power)));
            put(&mut self.out, format_args!("{}\n", histogram.below_power(power)));
        }
        let count = histogram.count();
        self.sample("_bucket", labels, Some(None));
        put(&mut self.out, format_args!("{count}\n"));
        self.sample("_sum", labels, None);
        put(&mut self.out, format_args!("{}\n", Seconds(histogram.sum_us)));
        self.sample("_count", labels, None);
        put(&mut self.out, format_args!("{count}\n"));
    }

    /// Name and labels; the value is to follow. `le`: the bound of a bucket in microseconds, the inner `None` is infinity.
    fn sample(&mut self, suffix: &str, labels: &Labels<'_>, le: Option<Option<u64>>) {
        let out = &mut self.out;
        out.push_str(&self.name);
        out.push_str(suffix);
        let mut separator = '{';
        for (name, value) in labels {
            out.push(separator);
            separator = ',';
            out.push_str(name);
            out.push_str("=\"");
            escape(out, value);
            out.push('"');
        }
        if let Some(bound) = le {
            out.push(separator);
            separator = ',';
            match bound {
                Some(us) => put(out, format_args!("le=\"{}\"", Seconds(us))),
                None => out.push_str("le=\"+Inf\""),
            }
        }
        out.push_str(if separator == ',' { "} " } else { " " });
    }

    /// The text.
    #[must_use]
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

/// Microseconds as seconds, exactly.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{rest:06}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::histogram::bucket;
    use crate::time::Micros;

    fn written(format: Format) -> String {
        let mut out = Exposition::new(format);
        out.family("a_seconds", Kind::Counter, "Time.");
        out.seconds(&[("x", "1\"\\\n2"), ("y", "")], 1_500_000);
        out.family("b", Kind::Unknown, "Others.");
        out.int(&[], -3_i64);
        out.finish()
    }

    #[test]
    fn both_formats() {
        let samples = ["a_seconds_total{x=\"1\\\"\\\\\\n2\",y=\"\"} 1.5", "b -3"];
        assert_eq!(
            written(Format::Prometheus),
            format!(
                "# HELP a_seconds_total Time.\n# TYPE a_seconds_total counter\n{}\n# HELP b Others.\n# TYPE b untyped\n{}\n",
                samples[0], samples[1]
            )
        );
        assert_eq!(
            written(Format::OpenMetrics),
            format!(
                "# HELP a_seconds Time.\n# TYPE a_seconds counter\n{}\n# HELP b Others.\n# TYPE b unknown\n{}\n# EOF\n",
                samples[0], samples[1]
            )
        );
    }

    #[test]
    fn histograms_are_cumulative() {
        let mut histogram = Histogram::default();
        for us in [10, 100, 1_000_000_000] {
            histogram.buckets[bucket(Micros(us))] += 1;
            histogram.sum_us += us;
        }
        let mut out = Exposition::new(Format::Prometheus);
        out.family("h", Kind::Histogram, "Times.");
        out.histogram(&[("d", "x")], &histogram);
        let text = out.finish();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines.len(), BOUNDS.count() + 3);
        assert_eq!(lines[0], "h_bucket{d=\"x\",le=\"0.000064\"} 1");
        assert_eq!(lines[1], "h_bucket{d=\"x\",le=\"0.000128\"} 2");
        let [.., last, infinity, sum, count] = lines[..] else { panic!("{text}") };
        assert_eq!(last, "h_bucket{d=\"x\",le=\"67.108864\"} 2");
        assert_eq!(infinity, "h_bucket{d=\"x\",le=\"+Inf\"} 3");
        assert_eq!((sum, count), ("h_sum{d=\"x\"} 1000.00011", "h_count{d=\"x\"} 3"));
    }

    #[test]
    fn seconds_are_exact() {
        for (us, text) in
            [(0, "0"), (1, "0.000001"), (1_000_000, "1"), (10_100_000, "10.1"), (u64::MAX, "18446744073709.551615")]
        {
            assert_eq!(Seconds(us).to_string(), text);
        }
    }
}
