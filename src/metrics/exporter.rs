//! The metrics of pgbouncer_exporter, under its names and with its labels.
//!
//! Its prefix for the counters of SHOW STATS_TOTALS became `pgbouncer_stats_totals_` in release 0.11, dashboards from before
//! know `pgbouncer_stats_`: both are there. Not there is `..._queries_total`, which it reads from a column that PgBouncer
//! lost in 1.8.

use super::Picture;
use super::picture::PoolFigures;
use super::text::{Exposition, Kind, Labels};
use crate::admin::snapshot::{DatabaseRow, StatsRow};

pub(super) fn write(out: &mut Exposition, picture: &Picture) {
    process(out, picture);
    lists(out, picture);
    clients(out, picture);
    databases(out, &picture.databases);
    pools(out, &picture.pools);
    for prefix in ["pgbouncer_stats", "pgbouncer_stats_totals"] {
        stats(out, prefix, &picture.stats);
    }
}

fn gauge(out: &mut Exposition, name: &str, help: &str, value: impl TryInto<i128>) {
    out.family(name, Kind::Gauge, help);
    out.int(&[], value);
}

fn process(out: &mut Exposition, picture: &Picture) {
    gauge(out, "pgbouncer_up", "Whether the pooler could be asked; 1 whenever it answers at all.", 1);
    out.family("pgbouncer_version_info", Kind::Gauge, "The version that SHOW VERSION claims.");
    out.int(&[("version", &picture.version)], 1);
    let help = "The setting max_client_conn.";
    gauge(out, "pgbouncer_config_max_client_connections", help, picture.max_client_conn);
    let help = "The setting max_user_connections; 0 is no limit.";
    gauge(out, "pgbouncer_config_max_user_connections", help, picture.max_user_connections);
}

fn lists(out: &mut Exposition, picture: &Picture) {
    let lists = &picture.lists;
    for (name, value, help) in [
        ("databases", lists.databases, "Databases."),
        ("users", lists.users, "Users."),
        ("pools", lists.pools, "Pools."),
        ("free_clients", lists.free_clients, "Client records kept for later; always 0."),
        ("used_clients", lists.used_clients, "Client connections."),
        ("login_clients", lists.login_clients, "Clients that are logging in."),
        ("free_servers", lists.free_servers, "Server records kept for later; always 0."),
        ("used_servers", lists.used_servers, "Server connections."),
        ("cached_dns_names", lists.dns_names, "Host names in the cache."),
        ("cached_dns_zones", lists.dns_zones, "DNS zones in the cache."),
        ("in_flight_dns_queries", lists.dns_queries, "DNS lookups under way."),
    ] {
        gauge(out, &format!("pgbouncer_{name}"), help, value);
    }
}

fn clients(out: &mut Exposition, picture: &Picture) {
    let help = "Client connections by database, user, application_name and state.";
    out.family("pgbouncer_client_connections", Kind::Gauge, help);
    for (client, &count) in &picture.clients {
        let labels: &Labels<'_> = &[
            ("database", &client.database),
            ("user", &client.user),
            ("application_name", &client.application_name),
            ("state", client.state),
        ];
        out.int(labels, count);
    }
}

fn databases(out: &mut Exposition, rows: &[DatabaseRow]) {
    type Column = (&'static str, &'static str, fn(&DatabaseRow) -> i64);
    const COLUMNS: [Column; 6] = [
        ("pool_size", "Server connections that a pool of the database may have.", |row| row.pool_size),
        ("reserve_pool", "Further ones that a pool under pressure may have.", |row| row.reserve_pool_size),
        ("max_connections", "Server connections that the database may have; 0 is no limit.", |row| row.max_connections),
        ("current_connections", "Server connections of the database.", |row| {
            i64::try_from(row.current_connections).unwrap_or(i64::MAX)
        }),
        ("paused", "Whether the database is paused.", |row| row.paused.into()),
        ("disabled", "Whether the database is disabled.", |row| row.disabled.into()),
    ];
    for (name, help, value) in COLUMNS {
        out.family(&format!("pgbouncer_databases_{name}"), Kind::Gauge, help);
        for row in rows {
            let port = row.port.to_string();
            let labels: &Labels<'_> = &[
                ("name", &row.name),
                ("host", row.host.as_deref().unwrap_or_default()),
                ("port", &port),
                ("database", &row.database),
                ("force_user", row.force_user.as_deref().unwrap_or_default()),
                ("pool_mode", row.pool_mode.as_deref().unwrap_or_default()),
            ];
            out.int(labels, value(row));
        }
    }
}

fn pools(out: &mut Exposition, pools: &[PoolFigures]) {
    type Column = (&'static str, &'static str, fn(&PoolFigures) -> u64);
    const COLUMNS: [Column; 12] = [
        ("client_active_connections", "Clients that are logged in and do not wait.", |pool| pool.row.cl_active),
        ("client_waiting_connections", "Clients that wait for a server.", |pool| pool.row.cl_waiting),
        ("client_active_cancel_connections", "Cancel requests that were passed on.", |pool| {
            pool.row.cl_active_cancel_req
        }),
        ("client_waiting_cancel_connections", "Cancel requests that wait to be passed on.", |pool| {
            pool.row.cl_waiting_cancel_req
        }),
        ("server_active_connections", "Servers that are linked to a client.", |pool| pool.row.sv_active),
        ("server_idle_connections", "Servers that are ready for a client.", |pool| pool.row.sv_idle),
        ("server_used_connections", "Servers that have to be checked before their next use.", |pool| pool.row.sv_used),
        ("server_testing_connections", "Servers that are being checked or cleaned.", |pool| pool.row.sv_tested),
        ("server_login_connections", "Servers that are logging in.", |pool| pool.row.sv_login),
        ("server_active_cancel_connections", "Connections that carry a cancel request.", |pool| {
            pool.row.sv_active_cancel
        }),
        ("server_being_canceled_connections", "Servers that wait for a cancel request to be over.", |pool| {
            pool.row.sv_being_canceled
        }),
        ("client_maxwait_seconds", "How long the first client in line has been waiting, whole seconds.", |pool| {
            pool.row.maxwait.secs()
        }),
    ];
    for (name, help, value) in COLUMNS {
        out.family(&format!("pgbouncer_pools_{name}"), Kind::Gauge, help);
        for pool in pools {
            out.int(&[("database", &pool.row.database), ("user", &pool.row.user)], value(pool));
        }
    }
}

fn stats(out: &mut Exposition, prefix: &str, rows: &[StatsRow]) {
    type Column = (&'static str, &'static str, fn(&StatsRow) -> u64);
    const TIMES: [Column; 3] = [
        ("queries_duration_seconds", "Time of queries, summed up.", |row| row.totals.query_time),
        ("server_in_transaction_seconds", "Time of transactions, summed up.", |row| row.totals.xact_time),
        ("client_wait_seconds", "Time that clients waited for servers, summed up.", |row| row.totals.wait_time),
    ];
    const COUNTS: [Column; 8] = [
        ("queries_pooled", "Queries.", |row| row.totals.query_count),
        ("sql_transactions_pooled", "Transactions.", |row| row.totals.xact_count),
        ("received_bytes", "Bytes received from clients.", |row| row.totals.client_bytes),
        ("sent_bytes", "Bytes received from servers, for clients.", |row| row.totals.server_bytes),
        ("client_parses", "Prepared statements that clients made.", |row| row.totals.client_parse_count),
        ("server_parses", "Prepared statements made on servers for them.", |row| row.totals.server_parse_count),
        ("binds", "Prepared statements that were bound.", |row| row.totals.bind_count),
        ("server_assignments", "How many times a server was linked to a client.", |row| {
            row.totals.server_assignment_count
        }),
    ];
    for (name, help, value) in TIMES {
        out.family(&format!("{prefix}_{name}"), Kind::Counter, help);
        rows.iter().for_each(|row| out.seconds(&[("database", &row.database)], value(row)));
    }
    for (name, help, value) in COUNTS {
        out.family(&format!("{prefix}_{name}"), Kind::Counter, help);
        rows.iter().for_each(|row| out.int(&[("database", &row.database)], value(row)));
    }
}
