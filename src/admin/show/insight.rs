//! SHOW WAITS, LATENCY and ADVICE.

use super::row::Fields;
use super::{sorted, table};
use crate::admin::command::Topic;
use crate::admin::insight::{Advice, LatencyRow, Percentiles, WaitLine};
use crate::admin::snapshot::shown_id;
use crate::pool::WaitFor;

/// SHOW WAITS, in the order given: pool by pool, the next one of each line first.
pub fn waits(out: &mut Vec<u8>, rows: &[WaitLine]) {
    table(out, Topic::Waits, rows, |fields, row| {
        let kind = match row.kind {
            WaitFor::Query => "query",
            WaitFor::AuthQuery => "auth_query",
            WaitFor::LoginReply => "login",
        };
        fields.text(&row.database).text(&row.user).text(row.cause.name()).text(kind).int4(row.position);
        fields.int4(row.waited.secs()).int4(row.waited.0 % 1_000_000);
        fields.text(&row.addr).int4(row.port).text(&row.application_name).int4(shown_id(row.id));
    });
}

/// SHOW LATENCY, by database and user.
pub fn latency(out: &mut Vec<u8>, rows: &[LatencyRow]) {
    table(out, Topic::Latency, sorted(rows, |row| (&row.database, &row.user)), |fields, row| {
        fields.text(&row.database).text(&row.user);
        for percentiles in [&row.wait, &row.query, &row.transaction] {
            distribution(fields, percentiles);
        }
    });
}

fn distribution(fields: &mut Fields<'_>, percentiles: &Percentiles) {
    fields.int8(percentiles.count);
    for time in percentiles.times {
        match time {
            Some(time) => fields.int8(time.0),
            None => fields.maybe(None),
        };
    }
}

/// SHOW ADVICE, in the order given.
pub fn advice(out: &mut Vec<u8>, rows: &[Advice]) {
    table(out, Topic::Advice, rows, |fields, row| {
        fields.text(if row.urgent { "warning" } else { "notice" });
        fields.maybe(row.database.as_deref()).maybe(row.user.as_deref());
        fields.text(row.setting).text(&row.text);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::tests::{rows, texts};
    use crate::pool::WaitCause;
    use crate::stats::histogram::{Span, Times, bucket};
    use crate::time::Micros;

    #[test]
    fn waits_and_latency_and_advice() {
        let line = WaitLine {
            database: "db".to_owned(),
            user: "u".to_owned(),
            cause: WaitCause::DatabaseLimit,
            kind: WaitFor::AuthQuery,
            position: 3,
            waited: Micros(2_000_017),
            addr: "10.0.0.1".to_owned(),
            port: 77,
            application_name: "app".to_owned(),
            id: 0x8000_0005,
        };
        let mut out = Vec::new();
        waits(&mut out, &[line]);
        assert_eq!(rows(&out), [texts("db|u|database_limit|auth_query|3|2|17|10.0.0.1|77|app|5")]);

        let mut times = Times::default();
        times.of_mut(Span::Query).buckets[bucket(Micros(4))] = 10;
        let row = LatencyRow::new("db".to_owned(), "u".to_owned(), &times);
        out.clear();
        latency(&mut out, &[LatencyRow { database: "z".to_owned(), ..LatencyRow::default() }, row]);
        assert_eq!(rows(&out), [texts("db|u|0|~|~|~|10|4|4|4|0|~|~|~"), texts("z||0|~|~|~|0|~|~|~|0|~|~|~")]);

        out.clear();
        let text = "Do it.".to_owned();
        advice(&mut out, &[Advice { urgent: true, database: None, user: Some("u".to_owned()), setting: "s", text }]);
        assert_eq!(rows(&out), [texts("warning|~|u|s|Do it.")]);
    }
}
