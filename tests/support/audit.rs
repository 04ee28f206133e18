//! What must hold when all is over.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::{Outcome, Stack, connect};

/// Nothing that only a mistake of the pooler could cause.
pub(crate) fn log_is_clean(log: &str) {
    let mistakes = [
        "panicked",
        " FATAL ",
        "client disconnected with query in progress",
        "server sent an answer that nobody waits for",
        "bad pkt header",
        "bad packet header",
        "unknown pkt",
        "invalid server parameter",
    ];
    let found: Vec<&str> = log.lines().filter(|line| mistakes.iter().any(|mistake| line.contains(mistake))).collect();
    assert!(found.is_empty(), "{} lines such as {:?}", found.len(), &found[..found.len().min(5)]);
}

/// Nobody is busy, and the pooler has as many servers as PostgreSQL has clients.
pub(crate) async fn counts_return_to_zero(stack: &Stack, direct: &Client) -> Outcome {
    let console = connect(&stack.address("pgbouncer")).await?;
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let pool = row(&console, "SHOW POOLS", "app").await?;
        let busy = ["cl_active", "cl_waiting", "sv_active", "sv_tested", "sv_login", "sv_being_canceled"];
        let busy: u64 = busy.iter().map(|name| pool.get(*name).unwrap_or_default().parse::<u64>().unwrap_or(99)).sum();
        let idle: i64 = pool.get("sv_idle").unwrap_or_default().parse()?;
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let servers: i64 = direct.query_one(sql, &[]).await?.get(0);
        if busy == 0 && idle == servers {
            return Ok(());
        }
        assert!(Instant::now() < deadline, "busy {busy}, idle {idle}, PostgreSQL counts {servers}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The row of SHOW whose first column is `key`.
async fn row(console: &Client, show: &str, key: &str) -> Result<SimpleQueryRow, Box<dyn std::error::Error>> {
    for message in console.simple_query(show).await? {
        if let SimpleQueryMessage::Row(row) = message
            && row.get(0) == Some(key)
        {
            return Ok(row);
        }
    }
    Err(format!("{show} has no {key}").into())
}
