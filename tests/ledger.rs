//! Many clients with colliding statement names, errors, cancels, cut connections and killed servers: every answer belongs to
//! its asker, no acknowledged commit is lost, nothing rolled back appears, money is neither made nor lost, and afterwards the
//! pooler's counts agree with PostgreSQL's.
//!
//! `LEDGER_OPERATIONS` sets the number of operations (10,000), `LEDGER_SEED` the seed, which is printed.

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "deadlines and figures of a test")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::{Outcome, Stack, connect};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

const CLIENTS: u64 = 24;
const SERVERS: u32 = 6;
const ACCOUNTS: i32 = 50;
const BALANCE: i64 = 1000;

/// A small generator of numbers: the same seed, the same operations.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn account(&mut self) -> i32 {
        i32::try_from(self.roll(u64::try_from(ACCOUNTS).expect("small"))).expect("small")
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What one client did, for the audit.
#[derive(Default)]
struct Done {
    acknowledged: HashSet<i64>,
    rolled_back: HashSet<i64>,
    operations: u64,
    cut: u64,
}

#[tokio::test]
async fn every_answer_belongs_to_its_asker_and_no_commit_is_lost() -> Outcome {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    let seed = number("LEDGER_SEED", u64::from(fresh) + 1);
    let operations = number("LEDGER_OPERATIONS", 10_000);
    println!("LEDGER_SEED={seed} LEDGER_OPERATIONS={operations}");
    let stack = Arc::new(Stack::start(SERVERS));
    let direct = connect(&stack.direct()).await?;
    direct
        .batch_execute(&format!(
            "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
             INSERT INTO account SELECT n, {BALANCE} FROM generate_series(0, {ACCOUNTS} - 1) n;
             CREATE TABLE journal (client bigint, seq bigint, PRIMARY KEY (client, seq))"
        ))
        .await?;
    let left = Arc::new(AtomicU64::new(operations));
    let mut tasks = Vec::new();
    for id in 0..CLIENTS {
        let (stack, left) = (stack.clone(), left.clone());
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (id + 1).wrapping_mul(0xd134_2543_de82_ef95));
        tasks.push(tokio::spawn(async move { work(&stack, id, dice, &left).await }));
    }
    let mut killer = Dice(seed | 1);
    while left.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(50 + killer.roll(200))).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = '' AND pid <> pg_backend_pid() AND backend_type = 'client backend'
                   ORDER BY random() LIMIT 1";
        direct.simple_query(sql).await?;
    }
    let mut total = Done::default();
    for (id, task) in (0..CLIENTS).zip(tasks) {
        let done = task.await?;
        audit(&direct, id, &done).await?;
        total.operations += done.operations;
        total.cut += done.cut;
    }
    println!("{} operations, {} connections cut or killed", total.operations, total.cut);
    let sum: i64 = direct.query_one("SELECT sum(balance)::bigint FROM account", &[]).await?.get(0);
    assert_eq!(sum, i64::from(ACCOUNTS) * BALANCE, "money was made or lost");
    counts_return_to_zero(&stack, &direct).await
}

/// Acknowledged is there, rolled back is not; what was cut in mid-commit may be either.
async fn audit(direct: &Client, id: u64, done: &Done) -> Result<(), Error> {
    let client = i64::try_from(id).expect("small");
    let rows = direct.query("SELECT seq FROM journal WHERE client = $1", &[&client]).await?;
    let found: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let lost: Vec<_> = done.acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "client {id} lost acknowledged commits {lost:?}");
    let ghosts: Vec<_> = done.rolled_back.intersection(&found).collect();
    assert!(ghosts.is_empty(), "client {id} sees what it rolled back {ghosts:?}");
    Ok(())
}

async fn work(stack: &Stack, id: u64, mut dice: Dice, left: &AtomicU64) -> Done {
    let mut done = Done::default();
    let mut client = stack.client().await.expect("the pooler lets clients in");
    let mut seq = 0;
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
        seq += 1;
        done.operations += 1;
        let token = format!("{id}-{seq}");
        let result = match dice.roll(100) {
            0..40 => own_answer(&client, &token, &mut dice).await,
            40..70 => transfer(&mut client, id, seq, &mut dice, &mut done).await,
            70..80 => failing(&client, &token).await,
            80..90 => simple(&client, &token).await,
            90..95 => pipelined(&client, &token).await,
            95..97 => cancelled(&client).await,
            _ => {
                cut(stack, &token, &mut dice).await;
                Ok(())
            }
        };
        if let Err(error) = result {
            assert!(expected(&error), "client {id}: {error:?}");
            done.cut += 1;
            client = stack.client().await.expect("the pooler lets clients in");
        }
    }
    done
}

/// Only what killed servers cause: the connection is lost, or the server said why it goes.
fn expected(error: &Error) -> bool {
    error.is_closed() || matches!(error.code().map(tokio_postgres::error::SqlState::code), Some("57P01" | "08P01"))
}

async fn own_answer(client: &Client, token: &str, dice: &mut Dice) -> Result<(), Error> {
    let sql = match dice.roll(4) {
        0 => "SELECT $1::text",
        1 => "SELECT $1::text AS other",
        2 => "SELECT coalesce($1::text, '')",
        _ => "SELECT $1::text FROM generate_series(1, 3)",
    };
    let rows = client.query(sql, &[&token]).await?;
    assert!(!rows.is_empty());
    for row in rows {
        assert_eq!(row.get::<_, &str>(0), token, "somebody else's answer");
    }
    Ok(())
}

async fn transfer(client: &mut Client, id: u64, seq: i64, dice: &mut Dice, done: &mut Done) -> Result<(), Error> {
    let amount = i64::try_from(dice.roll(10)).expect("small");
    // in one order, so that transactions do not wait for each other in a circle
    let (a, b) = (dice.account(), dice.account());
    let (low, high, amount) = if a < b { (a, b, amount) } else { (b, a, -amount) };
    let rollback = dice.roll(5) == 0;
    let transaction = client.transaction().await?;
    let add = "UPDATE account SET balance = balance + $2 WHERE id = $1";
    transaction.execute(add, &[&low, &amount]).await?;
    transaction.execute(add, &[&high, &-amount]).await?;
    let client_id = i64::try_from(id).expect("small");
    transaction.execute("INSERT INTO journal VALUES ($1, $2)", &[&client_id, &seq]).await?;
    if rollback {
        done.rolled_back.insert(seq);
        return transaction.rollback().await;
    }
    transaction.commit().await?;
    done.acknowledged.insert(seq);
    Ok(())
}

async fn failing(client: &Client, token: &str) -> Result<(), Error> {
    let text = format!("SELECT '{token}'::text, 1 / 0");
    match client.query(&text, &[]).await {
        Err(error) if error.code().is_some_and(|code| code.code() == "22012") => Ok(()),
        Err(error) => Err(error),
        Ok(rows) => panic!("{} rows of a division by zero", rows.len()),
    }
}

async fn simple(client: &Client, token: &str) -> Result<(), Error> {
    let messages = client.simple_query(&format!("SELECT '{token}'; SELECT '{token}'")).await?;
    let mut rows = 0;
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message {
            rows += 1;
            assert_eq!(row.get(0), Some(token), "somebody else's answer");
        }
    }
    assert_eq!(rows, 2);
    Ok(())
}

async fn pipelined(client: &Client, token: &str) -> Result<(), Error> {
    let second = format!("{token}b");
    let (one, two): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) = ([&token], [&second]);
    let (a, b, c) = tokio::join!(
        client.query_one("SELECT $1::text", &one),
        client.query_one("SELECT $1::text || ''", &two),
        client.simple_query("SELECT 1"),
    );
    assert_eq!(a?.get::<_, &str>(0), token);
    assert_eq!(b?.get::<_, &str>(0), second);
    c.map(|_| ())
}

/// A cancel hits the query it is meant for, or comes too late and hits nothing.
async fn cancelled(client: &Client) -> Result<(), Error> {
    let cancel = client.cancel_token();
    let query = client.simple_query("SELECT pg_sleep(0.05)");
    let (result, _) = tokio::join!(query, async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        cancel.cancel_query(NoTls).await
    });
    match result {
        Err(error) if error.code().is_some_and(|code| code.code() == "57014") => Ok(()),
        other => other.map(|_| ()),
    }
}

/// A client that goes away in mid-query.
async fn cut(stack: &Stack, token: &str, dice: &mut Dice) {
    let Ok((client, connection)) = tokio_postgres::connect(&stack.address("app"), NoTls).await else { return };
    let driven = tokio::spawn(connection);
    let text = format!("SELECT '{token}', pg_sleep(0.01)");
    let patience = Duration::from_micros(dice.roll(12_000));
    let _ = tokio::time::timeout(patience, client.simple_query(&text)).await;
    driven.abort();
}

async fn counts_return_to_zero(stack: &Stack, direct: &Client) -> Outcome {
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
async fn row(
    console: &Client,
    show: &str,
    key: &str,
) -> Result<tokio_postgres::SimpleQueryRow, Box<dyn std::error::Error>> {
    for message in console.simple_query(show).await? {
        if let SimpleQueryMessage::Row(row) = message
            && row.get(0) == Some(key)
        {
            return Ok(row);
        }
    }
    Err(format!("{show} has no {key}").into())
}
