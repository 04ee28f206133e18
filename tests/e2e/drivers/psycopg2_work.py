"""Typical work of an application with psycopg2."""

import datetime
import io
import threading
from decimal import Decimal

import psycopg2
import psycopg2.errors
import psycopg2.extras
import psycopg2.pool
import pytest

from support.drivers import rows_of
from support.system import until


def work(pooler, number):
    connection = psycopg2.connect(**pooler.dsn())
    with connection.cursor() as cursor:
        for step in (types, transactions, errors, many_rows, cursors, copy):
            step(connection, cursor, number)
            connection.commit()
    connection.close()


def one(cursor, *query):
    cursor.execute(*query)
    return cursor.fetchone()[0]


def types(connection, cursor, number):
    sent = (number, 2**60, Decimal("1.50"), 0.1 + 0.2, "ä\U0001f418", True, None, [1, 2, None], datetime.date(2001, 9, 9),
            datetime.datetime(2001, 9, 9, 1, 46, 40, tzinfo=datetime.timezone.utc), datetime.timedelta(days=3, seconds=1))
    casts = ("int", "bigint", "numeric", "float8", "text", "bool", "text", "int[]", "date", "timestamptz", "interval")
    cursor.execute("SELECT " + ", ".join(f"%s::{cast}" for cast in casts), sent)
    assert cursor.fetchone() == sent
    assert bytes(one(cursor, "SELECT %s::bytea", (psycopg2.Binary(b"\0\xff"),))) == b"\0\xff"
    assert one(cursor, "SELECT %s::jsonb", (psycopg2.extras.Json({"a": [number]}),)) == {"a": [number]}


def transactions(connection, cursor, number):
    count = "SELECT count(*) FROM driver_work WHERE client = %s AND n = 1000"
    with pytest.raises(ZeroDivisionError), connection:
        cursor.execute("INSERT INTO driver_work VALUES (%s, 1000, 'for a moment')", (number,))
        cursor.execute("SAVEPOINT before")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute("INSERT INTO driver_work VALUES (%s, 1000, 'twice')", (number,))
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            cursor.execute("SELECT 1")
        cursor.execute("ROLLBACK TO before")
        assert one(cursor, count, (number,)) == 1
        raise ZeroDivisionError
    assert one(cursor, count, (number,)) == 0
    connection.rollback()
    connection.set_session(isolation_level="SERIALIZABLE", readonly=True)
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        cursor.execute("DELETE FROM driver_work")
    connection.rollback()
    connection.set_session(isolation_level="DEFAULT", readonly="DEFAULT", autocommit=True)
    assert one(cursor, "SHOW transaction_read_only") == "off"
    connection.autocommit = False


def errors(connection, cursor, number):
    for text, error in (("SELECT 1 / 0", psycopg2.errors.DivisionByZero), ("SELEC", psycopg2.errors.SyntaxError)):
        with pytest.raises(error):
            cursor.execute(text)
        connection.rollback()
        assert one(cursor, "SELECT %s", (number,)) == number


def many_rows(connection, cursor, number):
    rows = [(number, 2000 + n, "x") for n in range(250)]
    psycopg2.extras.execute_values(cursor, "INSERT INTO driver_work VALUES %s", rows)
    assert one(cursor, "SELECT count(*) FROM driver_work WHERE client = %s AND n >= 2000", (number,)) == 250
    cursor.callproc("abs", (-number,))
    assert cursor.fetchone() == (number,)
    connection.rollback()


def cursors(connection, cursor, number):
    for scrollable in (False, True):
        with connection.cursor("named", scrollable=scrollable) as named:
            named.itersize = 150
            named.execute("SELECT generate_series(1, %s)", (1000,))
            assert sum(n for n, in named) == 500500
        connection.commit()


def copy(connection, cursor, number):
    rows = rows_of(number)
    text = "".join(f"{client}\t{n}\t{t}\n" for client, n, t in rows)
    cursor.execute("DELETE FROM driver_work WHERE client = %s", (number,))
    cursor.copy_from(io.StringIO(text), "driver_work")
    connection.commit()
    out = io.StringIO()
    cursor.copy_expert(f"COPY (SELECT * FROM driver_work WHERE client = {number} ORDER BY n) TO STDOUT", out)
    assert out.getvalue() == text
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
        cursor.copy_expert("COPY driver_work FROM STDIN", io.StringIO("no number\n"))
    connection.rollback()


def cancel(pooler, pg):
    connection = psycopg2.connect(**pooler.dsn())
    asked = threading.Thread(target=lambda: (until(lambda: pg.sleeping("pg_sleep(32)")), connection.cancel()))
    asked.start()
    with connection.cursor() as cursor:
        with pytest.raises(psycopg2.errors.QueryCanceled):
            cursor.execute("SELECT pg_sleep(32)")
        asked.join()
        connection.rollback()
        assert one(cursor, "SELECT 1") == 1
    connection.commit()
    connection.close()


def pool(pooler, clients):
    """Returning a connection in the middle of a transaction rolls back; `reset` also undoes settings."""
    pool = psycopg2.pool.ThreadedConnectionPool(2, clients, **pooler.dsn())
    for turn in range(30):
        connection = pool.getconn()
        with connection.cursor() as cursor:
            assert one(cursor, "SELECT %s", (turn,)) == turn
        if turn % 3 == 0:
            connection.reset()
        pool.putconn(connection)
    pool.closeall()
