"""Typical work of an application with psycopg 3."""

import datetime
import threading
import uuid
from decimal import Decimal

import psycopg
import psycopg.errors
import psycopg.types.json
import psycopg_pool
import pytest

from support.drivers import rows_of
from support.system import until


def work(pooler, number):
    with psycopg.connect(**pooler.dsn()) as connection:
        for step in (types, statements, many_statements, transactions, errors, pipelines, cursors, copy):
            step(connection, number)
            connection.commit()


def types(connection, number):
    sent = (number, 2**60, Decimal("1.50"), 0.1 + 0.2, "ä\U0001f418", True, None, b"\0\xff", uuid.UUID(int=number), [1, 2, None],
            datetime.datetime(2001, 9, 9, 1, 46, 40, tzinfo=datetime.timezone.utc), datetime.timedelta(days=3, seconds=1))
    casts = ("int", "bigint", "numeric", "float8", "text", "bool", "text", "bytea", "uuid", "int[]", "timestamptz", "interval")
    for binary in (False, True):
        with connection.cursor(binary=binary) as cursor:
            for _ in range(7):
                row = cursor.execute("SELECT " + ", ".join(f"%s::{cast}" for cast in casts), sent).fetchone()
                assert row == sent
    assert connection.execute("SELECT %s", (psycopg.types.json.Jsonb({"a": [number]}),)).fetchone() == ({"a": [number]},)


def statements(connection, number):
    """The driver prepares what it has executed five times, each connection under the same names."""
    for turn in range(12):
        assert connection.execute(f"SELECT {number} * 1000 + %s", (turn,)).fetchone() == (number * 1000 + turn,)
        assert connection.execute("SELECT %s::text", (str(number),)).fetchone() == (str(number),)
        if turn % 3 == 0:
            connection.commit()
    with connection.cursor() as cursor:
        cursor.executemany("SELECT %s::int + %s::int", [(number, n) for n in range(20)], returning=True)
        assert [result.fetchone()[0] for result in cursor.results()] == [number + n for n in range(20)]


def many_statements(connection, number):
    """More than the driver keeps: it closes the oldest."""
    connection.prepared_max = 5
    for turn in range(3):
        for n in range(12):
            assert connection.execute(f"SELECT {n} + %s::int", (number,), prepare=True).fetchone() == (n + number,)
        connection.commit()


def transactions(connection, number):
    count = "SELECT count(*) FROM driver_work WHERE client = %s AND n = 1000"
    with pytest.raises(ZeroDivisionError), connection.transaction():
        connection.execute("INSERT INTO driver_work VALUES (%s, 1000, 'for a moment')", (number,))
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute("INSERT INTO driver_work VALUES (%s, 1000, 'twice')", (number,))
        assert connection.execute(count, (number,)).fetchone() == (1,)
        raise ZeroDivisionError
    assert connection.execute(count, (number,)).fetchone() == (0,)
    connection.rollback()
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.SERIALIZABLE, True
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connection.execute("DELETE FROM driver_work")
    connection.rollback()
    connection.isolation_level, connection.read_only = None, None
    connection.autocommit = True
    assert connection.execute("SHOW transaction_read_only").fetchone() == ("off",)
    connection.autocommit = False


def errors(connection, number):
    for _ in range(8):
        for text, error in (("SELECT 100 / %s", psycopg.errors.DivisionByZero), ("SELECT %s FROM nowhere", psycopg.errors.UndefinedTable)):
            with pytest.raises(error):
                connection.execute(text, (0,))
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                connection.execute("SELECT %s", (1,))
            connection.rollback()
        assert connection.execute("SELECT 100 / %s", (4,)).fetchone() == (25,)
        connection.commit()


def pipelines(connection, number):
    with connection.pipeline() as pipeline:
        cursors = [connection.execute("SELECT %s::int + %s::int", (number, n)) for n in range(30)]
        pipeline.sync()
        assert [cursor.fetchone()[0] for cursor in cursors] == [number + n for n in range(30)]
    connection.commit()
    connection.autocommit = True
    for turn in range(8):
        mine = f"{number}-{turn}"
        with connection.pipeline() as pipeline:
            before = connection.execute("SELECT %s::text", (mine,))
            pipeline.sync()
            after = connection.execute("SELECT 1 / %s::int, %s::text", (1, mine))
            assert before.fetchone() == (mine,) and after.fetchone() == (1, mine)
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
            connection.execute("SELECT %s::text", (mine,))
            connection.execute("SELECT 1 / %s::int, %s::text", (0, mine))
            connection.execute("SELECT %s::text || %s", (mine, "skipped"))
        assert connection.execute("SELECT %s::text", (mine,)).fetchone() == (mine,)
    connection.autocommit = False


def cursors(connection, number):
    for scrollable in (False, True):
        with connection.cursor("named", scrollable=scrollable) as cursor:
            cursor.itersize = 150
            cursor.execute("SELECT generate_series(1, %s::int)", (1000,))
            assert sum(n for n, in cursor) == 500500
            if scrollable:
                cursor.scroll(10, mode="absolute")
                assert cursor.fetchone() == (11,)
        connection.commit()
    with connection.cursor() as cursor:
        assert sum(n for n, in cursor.stream("SELECT generate_series(1, %s::int)", (1000,))) == 500500
        assert sum(n for n, in cursor.stream("SELECT generate_series(1, %s::int)", (1000,), size=70)) == 500500


def copy(connection, number):
    rows = rows_of(number)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM driver_work WHERE client = %s", (number,))
        with cursor.copy("COPY driver_work FROM STDIN") as copying:
            for row in rows[:50]:
                copying.write_row(row)
        with cursor.copy("COPY driver_work FROM STDIN (FORMAT BINARY)") as copying:
            copying.set_types(["int4", "int4", "text"])
            for row in rows[50:]:
                copying.write_row(row)
        connection.commit()
        with cursor.copy("COPY (SELECT * FROM driver_work WHERE client = %s ORDER BY n) TO STDOUT", (number,)) as copying:
            copying.set_types(["int4", "int4", "text"])
            assert list(copying.rows()) == rows
        with pytest.raises(ZeroDivisionError), cursor.copy("COPY driver_work FROM STDIN") as copying:
            copying.write_row((number, 5000, "never"))
            raise ZeroDivisionError
        connection.rollback()
        with pytest.raises(psycopg.errors.InvalidTextRepresentation), cursor.copy("COPY driver_work FROM STDIN") as copying:
            copying.write("no number\n")
        connection.rollback()


def cancel(pooler, pg):
    with psycopg.connect(**pooler.dsn()) as connection:
        for stop in (connection.cancel, connection.cancel_safe):
            asked = threading.Thread(target=lambda: (until(lambda: pg.sleeping("pg_sleep(31)")), stop()))
            asked.start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("SELECT pg_sleep(31)")
            asked.join()
            connection.rollback()
            assert connection.execute("SELECT 1").fetchone() == (1,)


def pool(pooler, clients):
    with psycopg_pool.ConnectionPool(kwargs=pooler.dsn(), min_size=2, max_size=clients, check=psycopg_pool.ConnectionPool.check_connection) as pool:
        for turn in range(30):
            with pool.connection() as connection:
                assert connection.execute("SELECT %s::int", (turn,)).fetchone() == (turn,)
        with pytest.raises(psycopg.errors.DivisionByZero), pool.connection() as connection:
            connection.execute("SELECT 1 / 0")
        with pool.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
