//! The metrics that pgbouncer_exporter has not: distributions, causes, ends of connections, workers, the process.

use super::Picture;
use super::picture::PoolFigures;
use super::text::{Exposition, Kind};
use crate::pool::WaitCause;
use crate::stats::ends::ByText;
use crate::stats::histogram::Span;

pub(super) fn write(out: &mut Exposition, picture: &Picture) {
    out.family("pgbouncer_ready", Kind::Gauge, "Whether clients are accepted and served; 0 while paused, for one.");
    out.int(&[], i64::from(picture.ready));
    sizes(out, &picture.pools);
    causes(out, &picture.pools);
    times(out, &picture.pools);
    ends(out, picture);
    workers(out, picture);
    let help = "Bugs that were caught; each cost what it was about, and is in the log.";
    out.family("pgbouncer_bugs", Kind::Counter, help);
    out.int(&[], picture.bugs);
    process(out, picture);
}

fn sizes(out: &mut Exposition, pools: &[PoolFigures]) {
    let help = "Server connections that the pool may have; 0 is no limit.";
    out.family("pgbouncer_pools_size", Kind::Gauge, help);
    for pool in pools {
        out.int(&[("database", &pool.row.database), ("user", &pool.row.user)], pool.pool_size);
    }
    let help = "How long the first client in line has been waiting.";
    out.family("pgbouncer_pools_client_longest_wait_seconds", Kind::Gauge, help);
    for pool in pools {
        out.seconds(&[("database", &pool.row.database), ("user", &pool.row.user)], pool.row.maxwait.0);
    }
}

fn causes(out: &mut Exposition, pools: &[PoolFigures]) {
    out.family("pgbouncer_pools_client_waiting_by_cause", Kind::Gauge, "Clients that wait for a server, by cause.");
    for pool in pools {
        for (cause, &clients) in WaitCause::ALL.into_iter().zip(&pool.causes) {
            let labels = [("database", &*pool.row.database), ("user", &pool.row.user), ("cause", cause.name())];
            out.int(&labels, clients);
        }
    }
}

fn times(out: &mut Exposition, pools: &[PoolFigures]) {
    for span in Span::ALL {
        let (name, help) = match span {
            Span::Wait => ("client_wait", "From asking for a server to having one; 0 for who found one idle."),
            Span::Query => ("query", "From a request to the end of its answer."),
            Span::Transaction => ("transaction", "From a request outside of a transaction to its end."),
            Span::ServerLogin => ("server_login", "From the launch of a server connection to its first use."),
            Span::ClientLogin => ("client_login", "From the connect of a client to the end of its login."),
        };
        out.family(&format!("pgbouncer_{name}_seconds"), Kind::Histogram, help);
        for pool in pools {
            // empty ones too: the first event is an increase only of what was there before
            if let Some(times) = &pool.times {
                out.histogram(&[("database", &pool.row.database), ("user", &pool.row.user)], times.of(span));
            }
        }
    }
}

/// Sides and reasons that the alert rules watch. They are there from the start: the first event is an increase only of what was
/// there before.
const WATCHED: [(&str, &str); 3] = [
    ("client", "no more connections allowed (max_client_conn)"),
    ("client", "query_wait_timeout"),
    ("server", "server conn crashed?"),
];

fn ends(out: &mut Exposition, picture: &Picture) {
    let ends = &picture.ends;
    out.family("pgbouncer_closed_connections", Kind::Counter, "Closed connections, by side and reason.");
    for (side, counts) in [("client", &ends.clients), ("server", &ends.servers)] {
        for (reason, count) in counts.iter() {
            out.int(&[("side", side), ("reason", reason)], count);
        }
        for (_, reason) in WATCHED.iter().filter(|(of, reason)| *of == side && counts.get(reason) == 0) {
            out.int(&[("side", side), ("reason", reason)], 0);
        }
    }
    let help = "Errors that clients were told, by SQLSTATE; our own have origin pooler.";
    out.family("pgbouncer_errors", Kind::Counter, help);
    for (origin, counts) in [("pooler", &ends.told_sqlstates), ("server", &ends.server_sqlstates)] {
        for (sqlstate, count) in counts.iter() {
            out.int(&[("origin", origin), ("sqlstate", sqlstate)], count);
        }
    }
    // a name that alert rules have spread, with no other source
    out.family("pgbouncer_errors_count", Kind::Unknown, "Errors of the pooler that clients were told, by text.");
    by_text(out, "errmsg", &ends.told);
}

fn by_text(out: &mut Exposition, label: &str, counts: &ByText) {
    for (text, count) in counts.iter() {
        out.int(&[(label, text)], count);
    }
}

fn workers(out: &mut Exposition, picture: &Picture) {
    let numbered = || picture.workers.iter().enumerate().map(|(id, worker)| (id.to_string(), worker));
    out.family("pgbouncer_worker_clients", Kind::Gauge, "Client connections of a worker thread.");
    numbered().for_each(|(id, worker)| out.int(&[("worker", &id)], worker.clients));
    out.family("pgbouncer_worker_turns", Kind::Counter, "Turns of clients that a worker thread has run.");
    numbered().for_each(|(id, worker)| out.int(&[("worker", &id)], worker.turns));
    out.family("pgbouncer_worker_busy_seconds", Kind::Counter, "Time that a worker thread has not slept.");
    numbered().for_each(|(id, worker)| out.seconds(&[("worker", &id)], worker.busy_us));
}

fn process(out: &mut Exposition, picture: &Picture) {
    let process = &picture.process;
    if let Some(cpu_us) = process.cpu_us {
        out.family("process_cpu_seconds", Kind::Counter, "Processor time used, user and system.");
        out.seconds(&[], cpu_us);
    }
    for (name, value, help) in [
        ("process_resident_memory_bytes", process.resident_bytes, "Resident memory."),
        ("process_virtual_memory_bytes", process.virtual_bytes, "Virtual memory."),
        ("process_open_fds", process.open_fds, "Open file descriptors."),
        ("process_max_fds", process.max_fds, "File descriptors that may be open."),
    ] {
        if let Some(value) = value {
            out.family(name, Kind::Gauge, help);
            out.int(&[], value);
        }
    }
    out.family("process_start_time_seconds", Kind::Gauge, "When the process started, Unix time.");
    out.seconds(&[], process.start_us);
}
