//! Typical work of a Rust application, with tokio-postgres through transaction pooling.

#![expect(clippy::disallowed_methods, reason = "deadlines of a test, not times of the core")]

mod support;

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use support::{Outcome, Stack, connect};

#[tokio::test]
async fn an_application_works_through_transaction_pooling() -> Outcome {
    let stack = Stack::start(2);
    simple_and_extended(&stack).await?;
    transactions_commit_and_roll_back(&stack).await?;
    prepared_statements_of_many_clients(&stack).await?;
    copy_in_and_out(&stack).await?;
    cancel_hits_its_own_query(&stack).await?;
    pipelined_queries(&stack).await?;
    the_console_is_a_database_like_others(&stack).await?;
    portals_and_savepoints(&stack).await
}

async fn simple_and_extended(stack: &Stack) -> Outcome {
    let client = stack.client().await?;
    let row = client.query_one("SELECT $1::int + 1, $2::text", &[&41, &"hello"]).await?;
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "hello"));
    let messages = client.simple_query("SELECT 1; SELECT 2").await?;
    let rows = messages.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count();
    assert_eq!(rows, 2);
    let error = client.query("SELECT * FROM no_such_table", &[]).await.expect_err("there is no such table");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("42P01"));
    assert_eq!(client.query_one("SELECT 7", &[]).await?.get::<_, i32>(0), 7);
    Ok(())
}

async fn transactions_commit_and_roll_back(stack: &Stack) -> Outcome {
    let mut client = stack.client().await?;
    client.batch_execute("CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL)").await?;
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO accounts VALUES ($1, $2)", &[&1, &100_i64]).await?;
    transaction.commit().await?;
    let transaction = client.transaction().await?;
    transaction.execute("UPDATE accounts SET balance = 0", &[]).await?;
    transaction.rollback().await?;
    {
        // a transaction that is dropped is rolled back
        let transaction = client.transaction().await?;
        transaction.execute("DELETE FROM accounts", &[]).await?;
    }
    let row = client.query_one("SELECT count(*), sum(balance)::bigint FROM accounts", &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 100));
    Ok(())
}

/// Every client names its statements s0, s1, ...: over two servers the names collide unless they are kept apart.
async fn prepared_statements_of_many_clients(stack: &Stack) -> Outcome {
    let mut clients = Vec::new();
    for number in 0..8_i32 {
        let client = stack.client().await?;
        let statement = client.prepare(&format!("SELECT {number} * 1000 + $1::int")).await?;
        clients.push((number, client, statement));
    }
    for turn in 0..20_i32 {
        for (number, client, statement) in &clients {
            let value: i32 = client.query_one(statement, &[&turn]).await?.get(0);
            assert_eq!(value, number * 1000 + turn);
        }
    }
    Ok(())
}

async fn copy_in_and_out(stack: &Stack) -> Outcome {
    let client = stack.client().await?;
    client.batch_execute("CREATE TABLE copied (n int, t text)").await?;
    let sink = client.copy_in::<_, Bytes>("COPY copied FROM STDIN").await?;
    let mut sink = pin!(sink);
    for n in 0..1000 {
        sink.send(Bytes::from(format!("{n}\trow {n}\n"))).await?;
    }
    assert_eq!(sink.finish().await?, 1000);
    let stream = client.copy_out("COPY copied TO STDOUT").await?;
    let chunks: Vec<Bytes> = pin!(stream).try_collect().await?;
    assert!(chunks.concat().ends_with(b"999\trow 999\n"));
    let row = client.query_one("SELECT count(*), sum(n) FROM copied", &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1000, 499_500));
    Ok(())
}

async fn cancel_hits_its_own_query(stack: &Stack) -> Outcome {
    let (victim, bystander) = (stack.client().await?, stack.client().await?);
    let token = victim.cancel_token();
    let sleeping = async { victim.query("SELECT pg_sleep(20), 'victim'", &[]).await };
    let cancelling = async {
        // while it is being parsed its text is there already, and a cancel request would come too early
        let running =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%''victim''%'";
        let deadline = Instant::now() + Duration::from_secs(10);
        while bystander.query_one(running, &[]).await?.get::<_, i64>(0) == 0 {
            assert!(Instant::now() < deadline, "the query to cancel never ran");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        token.cancel_query(NoTls).await
    };
    let (slept, cancelled) = tokio::join!(sleeping, cancelling);
    cancelled?;
    let error = slept.expect_err("the query is cancelled");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("57014"));
    assert_eq!(victim.query_one("SELECT 1", &[]).await?.get::<_, i32>(0), 1);
    assert_eq!(bystander.query_one("SELECT 2", &[]).await?.get::<_, i32>(0), 2);
    Ok(())
}

async fn pipelined_queries(stack: &Stack) -> Outcome {
    let client = stack.client().await?;
    let statement = client.prepare("SELECT $1::int").await?;
    let (a, b, c) = tokio::join!(
        client.query_one(&statement, &[&1]),
        client.query_one(&statement, &[&2]),
        client.query_one(&statement, &[&3])
    );
    assert_eq!((a?.get::<_, i32>(0), b?.get::<_, i32>(0), c?.get::<_, i32>(0)), (1, 2, 3));
    Ok(())
}

async fn the_console_is_a_database_like_others(stack: &Stack) -> Outcome {
    let console = connect(&stack.address("pgbouncer")).await?;
    let rows = console.query("SHOW POOLS", &[]).await?;
    let own = rows.iter().find(|row| row.get::<_, &str>("database") == "pgbouncer").expect("the console's own pool");
    assert_eq!((own.get::<_, i32>("cl_active"), own.get::<_, &str>("pool_mode")), (1, "statement"));
    assert_eq!(own.get::<_, Option<&str>>("load_balance_hosts"), None);
    assert_eq!(console.execute("RELOAD", &[]).await?, 0);
    let error = console.query("PAUSE nosuch", &[]).await.expect_err("there is no such database");
    let error = error.as_db_error().expect("the console said so");
    assert_eq!((error.code().code(), error.message()), ("08P01", "no such database: nosuch"));
    let version = console.prepare("SHOW VERSION").await?;
    for _ in 0..3 {
        let row = console.query_one(&version, &[]).await?;
        assert!(row.get::<_, &str>(0).starts_with("PgBouncer 1."));
    }
    Ok(())
}

/// A portal is read in pieces with other statements between them; a savepoint undoes an error.
async fn portals_and_savepoints(stack: &Stack) -> Outcome {
    let (mut client, mut other) = (stack.client().await?, stack.client().await?);
    let (mut one, two) = (client.transaction().await?, other.transaction().await?);
    let portals = [
        one.bind("SELECT generate_series(1, $1::int)", &[&1000]).await?,
        two.bind("SELECT generate_series(1, $1::int)", &[&500]).await?,
    ];
    let mut sums = [0_i64; 2];
    loop {
        let rows = [one.query_portal(&portals[0], 150).await?, two.query_portal(&portals[1], 150).await?];
        if rows[0].is_empty() {
            break;
        }
        for (sum, rows) in sums.iter_mut().zip(&rows) {
            *sum += rows.iter().map(|row| i64::from(row.get::<_, i32>(0))).sum::<i64>();
        }
        assert_eq!(one.query_one("SELECT 7", &[]).await?.get::<_, i32>(0), 7);
    }
    assert_eq!(sums, [500_500, 125_250]);
    two.commit().await?;
    let nested = one.savepoint("before").await?;
    nested.query("SELECT 1 / $1::int", &[&0]).await.expect_err("a division by zero");
    nested.rollback().await?;
    assert_eq!(one.query_one("SELECT 8", &[]).await?.get::<_, i32>(0), 8);
    one.commit().await?;
    Ok(())
}
