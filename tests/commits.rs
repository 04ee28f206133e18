//! Many small transactions while backends are killed, queries cancelled and lines cut: nobody gets what is somebody else's, no
//! acknowledged commit is lost, none is made twice, nothing that was rolled back or cut stays, a cancel stops no query of
//! somebody else, the counts go back to zero and memory stays what it is.
//!
//! `COMMITS` sets the number of transactions (5,000), `COMMITS_SEED` the seed, which is printed. A million takes some
//! minutes:
//!
//! `COMMITS=1000000 cargo test --profile checked --test commits -- --nocapture`

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "deadlines and figures of a test")]

mod support;

use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use support::audit::{counts_return_to_zero, log_is_clean};
use support::dice::Dice;
use support::memory::Memory;
use support::raw::{Raw, field, first_column};
use support::{Outcome, Stack, connect};

const CLIENTS: usize = 24;
/// From so many transactions on memory must be flat: before, the pooler is still filling what it keeps.
const LONG: u64 = 200_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// The same name for statements that differ between clients.
const INSERTS: [&str; 3] = [
    "INSERT INTO journal VALUES ($1::int8, $2::int8) RETURNING client || '-' || seq",
    "INSERT INTO journal (client, seq) VALUES ($1::int8, $2::int8) RETURNING client || '-' || seq",
    "INSERT INTO journal (seq, client) VALUES ($2::int8, $1::int8) RETURNING client || '-' || seq",
];

/// What a client knows of one of its transactions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    /// Rolled back, or cut before its COMMIT.
    Gone,
    /// Cut while it was committed: it is there or not.
    Unknown,
}

/// All transactions of a client: number `n` is the n-th.
#[derive(Default)]
struct Journal {
    fates: Vec<Fate>,
    cut: u64,
    cancelled: u64,
    left: u64,
}

struct Reply {
    rows: Vec<String>,
    error: Option<String>,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn no_commit_is_lost_doubled_or_foreign() -> Outcome {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    let (wanted, seed) = (number("COMMITS", 5000), number("COMMITS_SEED", u64::from(fresh) + 1));
    println!("COMMITS_SEED={seed} COMMITS={wanted}");
    let stack = Arc::new(Stack::with("default_pool_size = 6\nmax_prepared_statements = 2\nworker_threads = 2\n"));
    let direct = connect(&stack.direct()).await?;
    // commits are lost by the pooler or not at all: this PostgreSQL never crashes
    for sql in ["ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()"] {
        direct.batch_execute(sql).await?;
    }
    direct.batch_execute("CREATE TABLE journal (client int8, seq int8)").await?;
    let left = Arc::new(AtomicU64::new(wanted));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for id in 0..CLIENTS {
        let (stack, left) = (stack.clone(), left.clone());
        let dice = Dice::new(seed ^ (id as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95));
        tasks.push(tokio::spawn(async move { work(&stack, id, dice, &left).await }));
    }
    let (mut killer, mut killed, mut memory) = (Dice::new(seed | 1), 0, Memory::default());
    // a task that ends before has found something
    while left.load(Ordering::Relaxed) > 0 && !tasks.iter().any(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(50 + killer.roll(200))).await;
        let sql =
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = ''
                   AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 1) one";
        killed += direct.query_one(sql, &[]).await?.get::<_, i64>(0);
        memory.note(wanted - left.load(Ordering::Relaxed), stack.memory_kb());
    }
    left.store(0, Ordering::Relaxed);
    let mut journals = Vec::new();
    for task in tasks {
        journals.push(task.await?);
    }
    let seconds = began.elapsed().as_secs_f64();
    let commits = audit(&direct, &journals).await?;
    counts_return_to_zero(&stack, &direct).await?;
    log_is_clean(&stack.log());
    let sum = |pick: fn(&Journal) -> u64| journals.iter().map(pick).sum::<u64>();
    let (first, last) = memory.first_and_last_tenth(wanted);
    println!(
        "{} transactions in {seconds:.0} s, {commits} of them acknowledged commits; {killed} backends killed, {} queries \
         cancelled, {} lines cut by us, {} by dead servers; 0 lost, 0 doubled, 0 ghosts, 0 foreign answers, all counts back \
         to zero; memory {first} kB in the first tenth, {last} kB in the last",
        sum(|journal| journal.fates.len() as u64),
        sum(|journal| journal.cancelled),
        sum(|journal| journal.left),
        sum(|journal| journal.cut),
    );
    assert!(wanted < LONG || last.abs_diff(first) <= first / 20, "memory is not flat: {first} kB, {last} kB");
    Ok(())
}

/// Compares what is there with what the clients know; the number of acknowledged commits.
async fn audit(
    direct: &tokio_postgres::Client,
    journals: &[Journal],
) -> std::result::Result<u64, tokio_postgres::Error> {
    let doubled = "SELECT count(*) FROM (SELECT FROM journal GROUP BY client, seq HAVING count(*) > 1) twice";
    assert_eq!(direct.query_one(doubled, &[]).await?.get::<_, i64>(0), 0, "commits were made twice");
    let mut commits = 0;
    for (id, journal) in journals.iter().enumerate() {
        let client = i64::try_from(id).expect("small");
        let mut there = vec![false; journal.fates.len()];
        for row in direct.query("SELECT seq FROM journal WHERE client = $1", &[&client]).await? {
            there[usize::try_from(row.get::<_, i64>(0)).expect("a number that was given")] = true;
        }
        for (seq, (fate, there)) in journal.fates.iter().zip(there).enumerate() {
            match fate {
                Fate::Acknowledged => assert!(there, "client {id} lost its acknowledged commit {seq}"),
                Fate::Gone => assert!(!there, "client {id} sees what was rolled back or cut: {seq}"),
                Fate::Unknown => {}
            }
            commits += u64::from(*fate == Fate::Acknowledged);
        }
    }
    Ok(commits)
}

async fn work(stack: &Stack, id: usize, mut dice: Dice, left: &AtomicU64) -> Journal {
    let (mut journal, mut session, mut prepared) = (Journal::default(), None, false);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
        let mut raw = match session.take() {
            Some(raw) => raw,
            None => {
                prepared = false;
                enter(stack).await
            }
        };
        let token = format!("{id}-{}", journal.fates.len());
        let values = token.replace('-', ", ");
        let one = async {
            match dice.roll(1000) {
                0..700 => simple(&mut raw, &token, &values).await,
                700..900 => extended(&mut raw, id, &token, &mut prepared).await,
                900..950 => rolled_back(&mut raw, &token, &values).await,
                950..985 => whole(&mut raw, &token, &values).await,
                985..993 => cancelled(&mut raw, stack, &token, &mut dice, &mut journal.cancelled).await,
                _ => {
                    journal.left += 1;
                    leave(&mut raw, &values, &mut dice).await.map(|()| None)
                }
            }
        };
        let (fate, stays) = match tokio::time::timeout(PATIENCE, one).await.expect("the client is stuck") {
            Ok(Some(fate)) => (fate, true),
            // it went away before its COMMIT
            Ok(None) => (Fate::Gone, false),
            Err(_) => {
                journal.cut += 1;
                (Fate::Unknown, false)
            }
        };
        journal.fates.push(fate);
        if stays {
            session = Some(raw);
        }
    }
    journal
}

/// A login fails when the server dies that is to answer for it.
async fn enter(stack: &Stack) -> Raw {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(raw) = stack.raw().await {
            return raw;
        }
        assert!(Instant::now() < deadline, "nobody is let in");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn query(sql: &str) -> BytesMut {
    let mut out = BytesMut::new();
    frontend::query(sql, &mut out).expect("no NUL in it");
    out
}

/// Everything up to ReadyForQuery. A FATAL error is followed by the end of the connection.
async fn reply(raw: &mut Raw) -> Result<Reply> {
    let mut reply = Reply { rows: Vec::new(), error: None };
    loop {
        let (tag, body) = raw.next().await?;
        match tag {
            b'D' => reply.rows.push(first_column(body)),
            b'E' => reply.error = Some(field(&body, b'C')),
            b'Z' => return Ok(reply),
            _ => {}
        }
    }
}

/// A request that must succeed, with the token as its only row.
async fn acknowledged(raw: &mut Raw, token: &str) -> Result<Option<Fate>> {
    let reply = reply(raw).await?;
    assert_eq!(reply.error, None, "{token}");
    assert_eq!(reply.rows, [token], "somebody else's answer");
    Ok(Some(Fate::Acknowledged))
}

async fn simple(raw: &mut Raw, token: &str, values: &str) -> Result<Option<Fate>> {
    raw.send(&query(&format!("INSERT INTO journal VALUES ({values}); SELECT '{token}'"))).await?;
    acknowledged(raw, token).await
}

async fn extended(raw: &mut Raw, id: usize, token: &str, prepared: &mut bool) -> Result<Option<Fate>> {
    let mut out = BytesMut::new();
    if !*prepared {
        frontend::parse("s", INSERTS[id % INSERTS.len()], [], &mut out)?;
        *prepared = true;
    }
    let write = |value: &str, out: &mut BytesMut| {
        out.extend_from_slice(value.as_bytes());
        Ok(IsNull::No)
    };
    let bound = frontend::bind("", "s", [], token.split('-'), write, [], &mut out);
    assert!(bound.is_ok(), "small values");
    frontend::execute("", 0, &mut out)?;
    frontend::sync(&mut out);
    raw.send(&out).await?;
    acknowledged(raw, token).await
}

async fn rolled_back(raw: &mut Raw, token: &str, values: &str) -> Result<Option<Fate>> {
    raw.send(&query(&format!("BEGIN; INSERT INTO journal VALUES ({values}); SELECT '{token}'"))).await?;
    let answer = reply(raw).await;
    // whatever becomes of it: it was not committed
    let Ok(answer) = answer else { return Ok(None) };
    assert_eq!(answer.rows, [token], "somebody else's answer");
    if raw.send(&query("ROLLBACK")).await.is_err() || reply(raw).await.is_err() {
        return Ok(None);
    }
    Ok(Some(Fate::Gone))
}

async fn whole(raw: &mut Raw, token: &str, values: &str) -> Result<Option<Fate>> {
    raw.send(&query("BEGIN")).await?;
    reply(raw).await?;
    raw.send(&query(&format!("INSERT INTO journal VALUES ({values})"))).await?;
    reply(raw).await?;
    raw.send(&query(&format!("SELECT '{token}'; COMMIT"))).await?;
    acknowledged(raw, token).await
}

/// The cancel comes before, while or after the query runs; whoever else it stopped would see an error.
async fn cancelled(
    raw: &mut Raw,
    stack: &Stack,
    token: &str,
    dice: &mut Dice,
    stopped: &mut u64,
) -> Result<Option<Fate>> {
    let values = token.replace('-', ", ");
    let sql = format!("INSERT INTO journal VALUES ({values}); SELECT '{token}' FROM pg_sleep(0.02)");
    raw.send(&query(&sql)).await?;
    // it may wait in line before it runs
    tokio::time::sleep(Duration::from_micros(dice.roll(50_000))).await;
    stack.cancel(raw.key()).await?;
    let reply = reply(raw).await?;
    match reply.error.as_deref() {
        None => {
            assert_eq!(reply.rows, [token], "somebody else's answer");
            Ok(Some(Fate::Acknowledged))
        }
        Some("57014") => {
            *stopped += 1;
            Ok(Some(Fate::Gone))
        }
        other => panic!("{token}: {other:?}"),
    }
}

/// Goes away in the middle of a transaction, or of a message.
async fn leave(raw: &mut Raw, values: &str, dice: &mut Dice) -> Result<()> {
    let mut bytes = query(&format!("BEGIN; INSERT INTO journal VALUES ({values}); SELECT pg_sleep(0.001)"));
    if dice.roll(2) == 0 {
        bytes.truncate(usize::try_from(dice.roll(bytes.len() as u64)).expect("small"));
    }
    // the server may be dead already
    let _ = raw.send(&bytes).await;
    tokio::time::sleep(Duration::from_micros(dice.roll(2000))).await;
    Ok(())
}
