"""Typical work of an application with SQLAlchemy, by any of its drivers."""

import asyncio
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import create_async_engine

from support.drivers import everybody as in_threads
from support.drivers import rows_of


class Base(orm.DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "driver_work"
    client = sa.Column(sa.Integer, primary_key=True)
    n = sa.Column(sa.Integer, primary_key=True)
    t = sa.Column(sa.String)


def url(pooler, driver):
    return sa.URL.create(driver, "app", "app-secret", "127.0.0.1", pooler.port, "p0")


def work(connection, number):
    """One client's work on a connection; each step is its own transaction."""
    for step in (statements, transactions, errors, rows):
        step(connection, number)
        connection.commit()


def statements(connection, number):
    for turn in range(12):
        query = sa.select(sa.literal(number) * 1000 + sa.literal(turn), sa.literal(str(number)))
        assert connection.execute(query).one() == (number * 1000 + turn, str(number))
        if turn % 4 == 0:
            connection.commit()


def transactions(connection, number):
    mine = sa.select(sa.func.count()).select_from(Row).where(Row.client == number)
    connection.execute(sa.insert(Row), {"client": number, "n": 1000, "t": "for a moment"})
    with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
        connection.execute(sa.insert(Row), {"client": number, "n": 1000, "t": "twice"})
    assert connection.scalar(mine) == 1
    connection.rollback()
    assert connection.scalar(mine) == 0


def errors(connection, number):
    for _ in range(7):
        with pytest.raises(sa.exc.DBAPIError):
            connection.execute(sa.text("SELECT 1 / :n"), {"n": 0})
        connection.rollback()
        assert connection.scalar(sa.text("SELECT 10 / :n"), {"n": 5}) == 2


def rows(connection, number):
    # returning makes insertmanyvalues work in batches
    values = [{"client": client, "n": n, "t": t} for client, n, t in rows_of(number)]
    back = connection.execute(sa.insert(Row).returning(Row.n, sort_by_parameter_order=True), values)
    assert back.scalars().all() == [value["n"] for value in values]
    connection.commit()
    mine = sa.select(Row.client, Row.n, Row.t).where(Row.client == number).order_by(Row.n)
    assert [tuple(row) for row in connection.execute(mine)] == rows_of(number)
    streamed = connection.execution_options(yield_per=30).execute(mine)
    assert [tuple(row) for row in streamed] == rows_of(number)


def sessions(engine, number):
    with orm.Session(engine) as session:
        row = session.get(Row, (number, 0))
        row.t = "changed"
        session.flush()
        session.rollback()
        assert session.get(Row, (number, 0)).t == f"{number}-0"
    # drivers set the level in BEGIN, or by statements inside the transaction
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        assert connection.scalar(sa.text("SHOW transaction_isolation")) == "serializable"
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW transaction_isolation")) == "read committed"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.scalar(sa.text("SELECT :n + 0"), {"n": number}) == number


def everybody(pooler, driver, clients):
    engine = sa.create_engine(url(pooler, driver), pool_size=clients, pool_pre_ping=True)

    def one(number):
        with engine.connect() as connection:
            work(connection, number)
        sessions(engine, number)

    in_threads(one, clients)
    checkouts(engine, clients)
    engine.dispose()


def checkouts(engine, clients):
    """Connections change hands with a ping at each checkout and a rollback at each return."""
    lock, seen = threading.Lock(), []

    def some(number):
        for turn in range(20):
            with engine.connect() as connection:
                value = connection.scalar(sa.text("SELECT :a + :b"), {"a": number * 100, "b": turn})
            with lock:
                seen.append(value)

    in_threads(some, clients)
    assert sorted(seen) == [number * 100 + turn for number in range(clients) for turn in range(20)]


def everybody_async(pooler, clients):
    async def all_of_it():
        engine = create_async_engine(url(pooler, "postgresql+asyncpg"), pool_size=clients, pool_pre_ping=True)

        async def one(number):
            async with engine.connect() as connection:
                await connection.run_sync(work, number)
            for turn in range(20):
                async with engine.connect() as connection:
                    assert await connection.scalar(sa.text("SELECT CAST(:a AS int) + CAST(:b AS int)"), {"a": number, "b": turn}) == number + turn

        await asyncio.gather(*(one(number) for number in range(clients)))
        await engine.dispose()

    asyncio.run(all_of_it())
