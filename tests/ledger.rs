//! Many clients with colliding statement names, errors, cancels, copies, connections cut in mid-message and killed servers:
//! every answer belongs to its asker, no acknowledged commit is lost, nothing rolled back appears, money is neither made nor
//! lost, a cancel stops no query of somebody else, and afterwards the pooler's counts agree with PostgreSQL's.
//!
//! What servers say arrives in pieces, and cancel requests take their time. The pooler's memory stays what it is.
//!
//! `LEDGER_OPERATIONS` sets the number of operations (10,000), `LEDGER_WORKERS` that of worker threads (2), `LEDGER_SEED` the
//! seed, which is printed, `LEDGER_DRAIN` whether connections are used again whose clients left in mid-query (1) or closed (0);
//! by itself the seed decides. With 1,000,000 it takes some ten minutes:
//!
//! `LEDGER_OPERATIONS=1000000 cargo test --profile checked --test ledger -- --nocapture`

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "deadlines and figures of a test")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::SinkExt;
use support::audit::{counts_return_to_zero, log_is_clean};
use support::batches::{self, Session};
use support::dice::Dice;
use support::memory::Memory;
use support::{Outcome, Stack, connect, slicer};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

const CLIENTS: u64 = 24;
const SERVERS: u32 = 6;
/// Fewer than there are statements, so that servers drop some all the time.
const MAX_PREPARED: u32 = 8;
/// From so many operations on memory must be flat: before, the pooler is still filling what it keeps.
const LONG: u64 = 100_000;
/// An operation takes milliseconds; the longest wait is for servers that were killed.
const PATIENCE: Duration = Duration::from_secs(30);
const ACCOUNTS: i32 = 50;
const BALANCE: i64 = 1000;

fn account(dice: &mut Dice) -> i32 {
    i32::try_from(dice.roll(u64::try_from(ACCOUNTS).expect("small"))).expect("small")
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What one client did, for the audit.
#[derive(Default)]
struct Done {
    acknowledged: HashSet<i64>,
    /// Those of them that were copies.
    copied: HashSet<i64>,
    rolled_back: HashSet<i64>,
    operations: u64,
    cut: u64,
}

#[tokio::test]
async fn every_answer_belongs_to_its_asker_and_no_commit_is_lost() -> Outcome {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    let seed = number("LEDGER_SEED", u64::from(fresh) + 1);
    let operations = number("LEDGER_OPERATIONS", 10_000);
    let workers = number("LEDGER_WORKERS", 2);
    // what is left in mid-query: closed, or canceled and used again
    let drain = number("LEDGER_DRAIN", seed % 2);
    println!("LEDGER_SEED={seed} LEDGER_OPERATIONS={operations} LEDGER_WORKERS={workers} LEDGER_DRAIN={drain}");
    let settings = format!(
        "default_pool_size = {SERVERS}\nmax_prepared_statements = {MAX_PREPARED}\nworker_threads = {workers}\n\
         cancel_on_disconnect = {drain}\nserver_drain_timeout = {}\n",
        5 * drain
    );
    let stack = Arc::new(Stack::over(&settings, |port| slicer::start(port, seed)));
    let direct = connect(&stack.direct()).await?;
    direct
        .batch_execute(&format!(
            "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
             INSERT INTO account SELECT n, {BALANCE} FROM generate_series(0, {ACCOUNTS} - 1) n;
             CREATE TABLE journal (client bigint, seq bigint, PRIMARY KEY (client, seq));
             CREATE TABLE copied (client bigint, seq bigint, n int)"
        ))
        .await?;
    let left = Arc::new(AtomicU64::new(operations));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for id in 0..CLIENTS {
        let (stack, left) = (stack.clone(), left.clone());
        let dice = Dice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (id + 1).wrapping_mul(0xd134_2543_de82_ef95));
        tasks.push(tokio::spawn(async move { work(&stack, id, dice, &left).await }));
    }
    let mut killer = Dice::new(seed | 1);
    let (mut memory, mut killed) = (Memory::default(), 0);
    // a task that ends before has found something
    while left.load(Ordering::Relaxed) > 0 && !tasks.iter().any(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(50 + killer.roll(200))).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = '' AND pid <> pg_backend_pid() AND backend_type = 'client backend'
                   ORDER BY random() LIMIT 1";
        killed += direct
            .simple_query(sql)
            .await?
            .iter()
            .filter(|message| matches!(message, SimpleQueryMessage::Row(_)))
            .count();
        memory.note(operations - left.load(Ordering::Relaxed), stack.memory_kb());
    }
    left.store(0, Ordering::Relaxed);
    let (mut total, mut commits) = (Done::default(), 0);
    for (id, task) in (0..CLIENTS).zip(tasks) {
        let done = task.await?;
        audit(&direct, id, &done).await?;
        total.operations += done.operations;
        total.cut += done.cut;
        commits += done.acknowledged.len();
    }
    let (first, last) = memory.first_and_last_tenth(operations);
    println!(
        "{} operations in {:.1} s, {} commits, {} connections cut or killed, {killed} backends killed, nothing lost, \
         doubled or foreign; memory {first} kB in the first tenth, {last} kB in the last",
        total.operations,
        began.elapsed().as_secs_f64(),
        commits,
        total.cut
    );
    assert!(operations < LONG || last <= first + first / 20, "memory grows: {first} kB, {last} kB");
    let sum: i64 = direct.query_one("SELECT sum(balance)::bigint FROM account", &[]).await?.get(0);
    assert_eq!(sum, i64::from(ACCOUNTS) * BALANCE, "money was made or lost");
    counts_return_to_zero(&stack, &direct).await?;
    log_is_clean(&stack.log());
    Ok(())
}

/// Acknowledged is there, rolled back is not; what was cut in mid-commit may be either.
async fn audit(direct: &Client, id: u64, done: &Done) -> Result<(), Error> {
    let client = i64::try_from(id).expect("small");
    let rows = direct.query("SELECT seq FROM journal WHERE client = $1", &[&client]).await?;
    let found: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let copied = "SELECT seq FROM copied WHERE client = $1 GROUP BY seq HAVING count(*) <> 3 OR count(DISTINCT n) <> 3";
    assert!(direct.query(copied, &[&client]).await?.is_empty(), "client {id} copied parts of a copy");
    let rows = direct.query("SELECT DISTINCT seq FROM copied WHERE client = $1", &[&client]).await?;
    let found: HashSet<i64> = found.into_iter().chain(rows.iter().map(|row| row.get(0))).collect();
    let lost: Vec<_> = done.acknowledged.difference(&found).collect();
    let copies: Vec<_> = lost.iter().filter(|seq| done.copied.contains(**seq)).collect();
    assert!(lost.is_empty(), "client {id} lost acknowledged commits {lost:?}, of which copies: {copies:?}");
    let ghosts: Vec<_> = done.rolled_back.intersection(&found).collect();
    assert!(ghosts.is_empty(), "client {id} sees what it rolled back {ghosts:?}");
    Ok(())
}

async fn work(stack: &Stack, id: u64, mut dice: Dice, left: &AtomicU64) -> Done {
    let mut done = Done::default();
    let mut client = stack.client().await.expect("the pooler lets clients in");
    let (mut session, mut sleeper) = (None, None);
    let mut seq = 0;
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
        seq += 1;
        done.operations += 1;
        let token = format!("{id}-{seq}");
        let operation = async {
            match dice.roll(100) {
                0..25 => own_answer(&client, &token, &mut dice).await,
                25..50 => transfer(&mut client, id, seq, &mut dice, &mut done).await,
                50..55 => failing(&client, &token).await,
                55..60 => simple(&client, &token).await,
                60..64 => pipelined(&client, &token).await,
                64..68 => copied(&client, id, seq, &mut dice, &mut done).await,
                68..71 => cancelled(stack, &mut sleeper, &mut dice).await,
                71..96 => {
                    batch(stack, &mut session, &token, &mut dice, &mut done).await;
                    Ok(())
                }
                96..98 => {
                    cut(stack, &token, &mut dice).await;
                    Ok(())
                }
                _ => {
                    let own = session.take();
                    let own = if own.is_some() { own } else { new_session(stack).await };
                    if let Some(own) = own {
                        own.leave_in_the_middle(&token, &mut dice).await;
                    }
                    Ok(())
                }
            }
        };
        let result = tokio::time::timeout(PATIENCE, operation).await.expect("the client is stuck");
        if let Err(error) = result {
            assert!(expected(&error), "client {id}: {error:?}");
            done.cut += 1;
            client = stack.client().await.expect("the pooler lets clients in");
        }
    }
    done
}

/// A server that is killed during the login makes it fail.
async fn new_session(stack: &Stack) -> Option<Session> {
    stack.raw().await.ok().map(Session::new)
}

async fn batch(stack: &Stack, session: &mut Option<Session>, token: &str, dice: &mut Dice, done: &mut Done) {
    if session.is_none() {
        *session = new_session(stack).await;
    }
    let Some(own) = session else { return };
    if let batches::Outcome::Killed = own.work(token, dice).await {
        *session = None;
        done.cut += 1;
    }
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
    let (a, b) = (account(dice), account(dice));
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

/// A cancel hits a query of the session it is meant for, or comes too late and hits nothing: whoever else is told that he was
/// cancelled has found a mistake.
async fn cancelled(stack: &Stack, sleeper: &mut Option<Client>, dice: &mut Dice) -> Result<(), Error> {
    let client = match sleeper.take() {
        Some(client) if !client.is_closed() => client,
        _ => stack.client().await.expect("the pooler lets clients in"),
    };
    let cancel = client.cancel_token();
    let query = client.simple_query("SELECT pg_sleep(0.004)");
    // around the moment at which the query ends and its server goes to somebody else
    let delay = Duration::from_micros(2000 + dice.roll(4000));
    let (result, _) = tokio::join!(query, async {
        tokio::time::sleep(delay).await;
        cancel.cancel_query(NoTls).await
    });
    match result {
        Err(error) if error.code().is_some_and(|code| code.code() == "57014") => {}
        Err(error) => assert!(expected(&error), "the sleeper: {error:?}"),
        Ok(_) => {}
    }
    *sleeper = Some(client);
    Ok(())
}

/// Three rows or none.
async fn copied(client: &Client, id: u64, seq: i64, dice: &mut Dice, done: &mut Done) -> Result<(), Error> {
    let sink = client.copy_in::<_, Bytes>("COPY copied FROM STDIN").await?;
    let mut sink = std::pin::pin!(sink);
    for n in 0..3 {
        sink.send(Bytes::from(format!("{id}\t{seq}\t{n}\n"))).await?;
    }
    match dice.roll(4) {
        0 => {
            // a sink that is dropped fails its copy
            done.rolled_back.insert(seq);
            Ok(())
        }
        1 => {
            done.rolled_back.insert(seq);
            sink.send(Bytes::from_static(b"no number\n")).await?;
            match sink.finish().await {
                Err(error) if error.code().is_some_and(|code| code.code() == "22P02") => Ok(()),
                other => other.map(|_| ()),
            }
        }
        _ => {
            let rows = sink.finish().await?;
            assert_eq!(rows, 3);
            // the sink is content with CommandComplete, which comes before the commit: only what follows ReadyForQuery proves it
            client.simple_query("").await?;
            done.acknowledged.insert(seq);
            done.copied.insert(seq);
            Ok(())
        }
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
