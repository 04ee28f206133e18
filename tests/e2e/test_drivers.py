"""The drivers people use, doing what they do by default, through transaction pooling."""

import asyncio
import threading

import asyncpg
import psycopg
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy

from support.system import until


@pytest.fixture
def pooler(make_pooler):
    return make_pooler(ini={"auth_type": "md5", "default_pool_size": 3, "ignore_startup_parameters": "extra_float_digits"})


def url(pooler, driver):
    return sqlalchemy.URL.create(driver, "app", "app-secret", "127.0.0.1", pooler.port, "p0")


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_sqlalchemy_pre_ping_outlives_cut_servers(pooler, pg, driver, binary):
    if driver.endswith("psycopg") and binary.version < (1, 21):
        engine = sqlalchemy.create_engine(url(pooler, driver), pool_pre_ping=True, connect_args={"prepare_threshold": None})
    else:
        engine = sqlalchemy.create_engine(url(pooler, driver), pool_pre_ping=True)
    for _ in range(4):
        with engine.begin() as connection:
            assert connection.execute(sqlalchemy.text("SELECT 1 + :n"), {"n": 1}).scalar() == 2
        for pid in pg.backends("p0", "app"):
            pg.sql("SELECT pg_terminate_backend(%s)", pid)
        until(lambda: not pg.backends("p0", "app"))
        until(lambda: pooler.pool()["sv_idle"] == 0)
    engine.dispose()


def test_sqlalchemy_pre_ping_outlives_a_restart_of_the_pooler(pooler):
    engine = sqlalchemy.create_engine(url(pooler, "postgresql+psycopg2"), pool_pre_ping=True)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    pooler.process.kill()
    pooler.wait_end()
    pooler.stderr.unlink()
    pooler.expected_to_end = False
    pooler.start()
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.text("SELECT 2")).scalar() == 2
    engine.dispose()


def test_sqlalchemy_transactions_in_threads(pooler):
    engine = sqlalchemy.create_engine(url(pooler, "postgresql+psycopg2"), pool_size=10, pool_pre_ping=True)
    metadata = sqlalchemy.MetaData()
    table = sqlalchemy.Table("orm_rows", metadata, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
                             sqlalchemy.Column("who", sqlalchemy.String(20)))
    metadata.drop_all(engine)
    metadata.create_all(engine)
    errors = []

    def work(number):
        try:
            for turn in range(20):
                with engine.begin() as connection:
                    connection.execute(table.insert(), [{"who": f"{number}-{turn}"}])
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.select(sqlalchemy.func.count(sqlalchemy.distinct(table.c.who)))).scalar() == 200
    metadata.drop_all(engine)
    engine.dispose()


def test_psycopg2(pooler):
    connection = psycopg2.connect(**pooler.dsn())
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT %s, %s", (1, "ä"))
        assert cursor.fetchone() == (1, "ä")
    with pytest.raises(psycopg2.errors.UniqueViolation), connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE u (n int UNIQUE) ON COMMIT DROP")
        cursor.execute("INSERT INTO u VALUES (1), (1)")
    with connection, connection.cursor("named") as cursor:
        cursor.execute("SELECT generate_series(1, 5000)")
        assert sum(1 for _ in cursor) == 5000
    connection.close()


def test_psycopg2_reads_the_console(pooler):
    connection = psycopg2.connect(host="127.0.0.1", port=pooler.port, user="admin", password=pooler.userlist["admin"], dbname="pgbouncer")
    connection.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    with connection.cursor() as cursor:
        cursor.execute("SHOW POOLS")
        assert cursor.description[0].name == "database" and cursor.fetchall()
    connection.close()


@pytest.mark.parametrize("threshold", [None, pytest.param(0, marks=pytest.mark.since("1.24")), pytest.param(5, marks=pytest.mark.since("1.24"))])
def test_psycopg3(pooler, threshold):
    connections = [pooler.connect(prepare_threshold=threshold) for _ in range(6)]
    for turn in range(12):
        for number, connection in enumerate(connections):
            with connection.transaction():
                assert connection.execute("SELECT %s::int * 1000 + %s::int", (number, turn)).fetchone() == (number * 1000 + turn,)
                assert connection.execute("SELECT %s::text", (f"{number}",)).fetchone() == (str(number),)
    for connection in connections:
        connection.close()


def test_psycopg3_binary_and_errors(pooler):
    with pooler.connect(prepare_threshold=None) as connection:
        assert connection.execute("SELECT %b::bytea", (b"\0\xff",), binary=True).fetchone() == (b"\0\xff",)
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM no_such_table")
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("cache", [0, pytest.param(100, marks=pytest.mark.since("1.24"))])
def test_asyncpg(pooler, cache, binary):
    async def client(number):
        connection = await asyncpg.connect(**{("database" if k == "dbname" else k): v for k, v in pooler.dsn().items()},
                                           statement_cache_size=cache)
        try:
            for turn in range(10):
                async with connection.transaction():
                    assert await connection.fetchval("SELECT $1::int * 100 + $2::int", number, turn) == number * 100 + turn
                rows = await connection.fetch("SELECT n, $1::text AS t FROM generate_series(1, 20) n", f"c{number}")
                assert len(rows) == 20 and {r["t"] for r in rows} == {f"c{number}"}
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("SELECT 1/$1::int", 0)
            assert await connection.fetchval("SELECT 7") == 7
        finally:
            await connection.close()

    async def several():
        await asyncio.gather(*(client(n) for n in range(8)))

    if binary.version < (1, 21):
        asyncio.run(client(1))
    else:
        asyncio.run(several())


@pytest.mark.since("1.24")
def test_asyncpg_pool(pooler):
    async def work():
        dsn = {("database" if k == "dbname" else k): v for k, v in pooler.dsn().items()}
        async with asyncpg.create_pool(**dsn, min_size=2, max_size=8) as pool:
            async def one(n):
                async with pool.acquire() as connection:
                    return await connection.fetchval("SELECT $1::int", n)
            assert await asyncio.gather(*(one(n) for n in range(100))) == list(range(100))

    asyncio.run(work())
