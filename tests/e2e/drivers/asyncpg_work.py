"""Typical work of an application with asyncpg, which prepares every statement."""

import asyncio
import datetime
import uuid
from decimal import Decimal

import asyncpg
import pytest

from support.drivers import rows_of


def dsn(pooler):
    return {("database" if key == "dbname" else key): value for key, value in pooler.dsn().items()}


async def work(pooler, number):
    connection = await asyncpg.connect(**dsn(pooler))
    for step in (types, statements, transactions, errors, cursors, copy):
        await step(connection, number)
    await connection.close()


async def types(connection, number):
    sent = (number, 2**60, Decimal("1.50"), 0.1 + 0.2, "ä\U0001f418", True, None, b"\0\xff", uuid.UUID(int=number), [1, 2, None],
            datetime.datetime(2001, 9, 9, 1, 46, 40, tzinfo=datetime.timezone.utc), datetime.timedelta(days=3, seconds=1))
    casts = ("int", "bigint", "numeric", "float8", "text", "bool", "text", "bytea", "uuid", "int[]", "timestamptz", "interval")
    for _ in range(3):
        row = await connection.fetchrow("SELECT " + ", ".join(f"${n}::{cast} AS c{n}" for n, cast in enumerate(casts, 1)), *sent)
        assert tuple(row) == sent
    # a composite type makes the driver look it up in the catalogue
    row = await connection.fetchval("SELECT ROW($1::int, 2, 'x')::driver_work", number)
    assert tuple(row) == (number, 2, "x")


async def statements(connection, number):
    for turn in range(12):
        assert await connection.fetchval(f"SELECT {number} * 1000 + $1::int", turn) == number * 1000 + turn
        assert await connection.fetchval("SELECT $1::text", str(number)) == str(number)
    statement = await connection.prepare("SELECT $1::int * 2")
    assert [await statement.fetchval(n) for n in range(20)] == [2 * n for n in range(20)]
    # more than the driver's cache of 100 holds: it closes the oldest
    for n in range(120):
        assert await connection.fetchval(f"SELECT {n} + $1::int", number) == n + number
    assert await connection.execute("SELECT 1; SELECT 2") == "SELECT 1"


async def transactions(connection, number):
    count = "SELECT count(*) FROM driver_work WHERE client = $1 AND n = 1000"
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            await connection.execute("INSERT INTO driver_work VALUES ($1, 1000, 'for a moment')", number)
            with pytest.raises(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO driver_work VALUES ($1, 1000, 'twice')", number)
            assert await connection.fetchval(count, number) == 1
            raise ZeroDivisionError
    assert await connection.fetchval(count, number) == 0
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with connection.transaction(isolation="serializable", readonly=True):
            await connection.execute("DELETE FROM driver_work")
    await connection.executemany("INSERT INTO driver_work VALUES ($1, $2, 'many')", [(number, 2000 + n) for n in range(300)])
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.executemany("INSERT INTO driver_work VALUES ($1, $2, 'many')", [(number, 1999), (number, 2000)])
    assert await connection.execute("DELETE FROM driver_work WHERE client = $1", number) == "DELETE 300"


async def errors(connection, number):
    for _ in range(8):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("SELECT 100 / $1::int", 0)
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.fetchval("SELECT * FROM nowhere")
        with pytest.raises(asyncpg.DataError):
            await connection.fetchval("SELECT $1::int", "text")
        assert await connection.fetchval("SELECT 100 / $1::int", 4) == 25


async def cursors(connection, number):
    async with connection.transaction():
        total = 0
        async for record in connection.cursor("SELECT generate_series(1, $1::int)", 1000, prefetch=150):
            total += record[0]
        assert total == 500500
        cursor = await connection.cursor("SELECT generate_series(1, $1::int)", 1000)
        assert (await cursor.fetchrow())[0] == 1
        assert await connection.fetchval("SELECT 7") == 7
        await cursor.forward(10)
        assert [row[0] for row in await cursor.fetch(2)] == [12, 13]


async def copy(connection, number):
    rows = rows_of(number)
    assert await connection.copy_records_to_table("driver_work", records=rows) == "COPY 100"
    out = []

    async def keep(data):
        out.append(data)

    await connection.copy_from_query("SELECT * FROM driver_work WHERE client = $1 ORDER BY n", number, output=keep)
    assert b"".join(out).decode() == "".join(f"{client}\t{n}\t{t}\n" for client, n, t in rows)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.copy_records_to_table("driver_work", records=rows)


async def cancel(pooler):
    """A timeout makes the driver send a cancel request on a connection of its own."""
    connection = await asyncpg.connect(**dsn(pooler))
    with pytest.raises(asyncio.TimeoutError):
        await connection.fetchval("SELECT pg_sleep(33)", timeout=0.3)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def pool(pooler, clients):
    """On release the driver resets the session by a script of its own."""
    async with asyncpg.create_pool(**dsn(pooler), min_size=2, max_size=clients) as pool:
        async def one(n):
            async with pool.acquire() as connection:
                return await connection.fetchval("SELECT $1::int", n)

        assert await asyncio.gather(*(one(n) for n in range(60))) == list(range(60))


def everybody(pooler, clients):
    async def all_of_it():
        await asyncio.gather(*(work(pooler, number) for number in range(clients)))
        await cancel(pooler)
        await pool(pooler, clients)

    asyncio.run(all_of_it())
