"""The console over the extended protocol: message by message, and with the drivers people use."""

import asyncio
import shutil
import struct
from pathlib import Path

import asyncpg
import psycopg
import psycopg_pool
import pytest

from support.system import run, until
from support.wire import FLUSH, SYNC, Closed, close, cstr, describe, execute, message, parse, query

pytestmark = pytest.mark.ours

TOPICS = ["clients", "config", "databases", "fds", "help", "lists", "peers", "peer_pools", "pools", "servers", "sockets", "active_sockets",
          "stats", "stats_totals", "stats_averages", "users", "version", "totals", "mem", "dns_hosts", "dns_zones", "state"]
# Topics whose answer does not change from one command to the next.
STEADY = ["config", "databases", "peers", "users", "version", "state", "dns_hosts"]
JDBC = [Path("/usr/share/java/postgresql.jar")]


@pytest.fixture
def console(pooler):
    with pooler.console() as wire:
        yield wire


def bind(portal="", statement="", formats=()):
    return message("B", cstr(portal) + cstr(statement) + struct.pack(f"!HHH{len(formats)}H", 0, 0, len(formats), *formats))


def batch(console, sql, formats=()):
    console.send(parse("", sql) + bind(formats=formats) + describe("P") + execute() + SYNC)
    return console.result()


def shape(result):
    return "".join(m.type for m in result.messages)


@pytest.mark.parametrize("topic", TOPICS)
def test_show_has_the_columns_of_the_simple_protocol(pooler, console, topic):
    with pooler.login() as client:
        client.query("SELECT 1")
        simple = console.query(f"SHOW {topic}")
        extended = batch(console, f"SHOW {topic};")
    assert extended.columns == simple.columns and extended.tags == ["SHOW"] and extended.status == "I"
    assert shape(extended) == "12" + ("T" + "D" * len(extended.rows) + "C" if topic != "help" else "nNC") + "Z"
    assert extended.notices == simple.notices
    if topic in STEADY:
        assert extended.rows == simple.rows


def binary(oid, raw):
    if oid in (23, 20):
        return str(int.from_bytes(raw, "big", signed=True))
    if oid == 1700:
        count, weight, sign, scale, *digits = struct.unpack(f"!hhHh{(len(raw) - 8) // 2}h", raw)
        assert count == len(digits) and sign == 0 and scale == 0
        return str(sum(d * 10000 ** (weight - n) for n, d in enumerate(digits)))
    return raw.decode()


@pytest.mark.parametrize("topic", ["databases", "users", "stats_totals", "pools", "lists"])
def test_results_in_binary(pooler, console, topic):
    with pooler.login() as client:
        for _ in range(3):
            client.query("SELECT repeat('x', 20000)")
    until(lambda: [p["cl_active"] for p in console.query("SHOW POOLS").dicts] == ["0", "1"], what="only this console is left")
    simple = console.query(f"SHOW {topic}")
    console.send(parse("", f"SHOW {topic}") + bind(formats=[1]) + execute() + SYNC)
    rows = []
    while (got := console.recv()).type != "Z":
        if got.type == "D":
            at, row = 2, []
            for column in simple.columns:
                size = struct.unpack("!i", got.body[at : at + 4])[0]
                row.append(None if size < 0 else binary(column.oid, got.body[at + 4 : at + 4 + size]))
                at += 4 + max(size, 0)
            assert at == len(got.body)
            rows.append(row)
    named = {r[0]: r for r in simple.rows if r[0] != "pgbouncer"}
    assert {r[0]: r for r in rows if r[0] != "pgbouncer"} == named and named


def test_describe_tells_the_formats(console):
    console.send(parse("s", "SHOW DATABASES") + describe("S", "s") + bind("p", "s", [1]) + describe("P", "p") + SYNC)
    got = [console.recv() for _ in range(6)]
    assert [m.type for m in got] == ["1", "t", "T", "2", "T", "Z"]
    assert got[1].body == b"\0\0"
    assert got[2].body != got[4].body and got[2].body.replace(b"\xff\xff\xff\xff\0\0", b"\xff\xff\xff\xff\0\1") == got[4].body


def test_commands_do_what_they_do_by_simple_query(pooler, console):
    with pooler.login() as client:
        client.query("BEGIN")
        console.send(parse("", "PAUSE p0") + bind() + describe("P") + execute() + SYNC + query("SHOW VERSION"))
        assert [console.recv().type for _ in range(3)] == ["1", "2", "n"]
        assert console.recv_or_none(0.4) is None, "waits for the transaction, and what was sent behind it waits too"
        client.query("COMMIT")
        assert console.result().tags == ["PAUSE"]
        assert console.result().rows
    assert batch(console, "RESUME p0").tags == ["RESUME"]
    assert batch(console, "SET default_pool_size = '7'").tags == ["SET default_pool_size=7"]
    assert pooler.setting("default_pool_size") == "7"
    pooler.ini["default_pool_size"] = 8
    pooler.write()
    assert shape(batch(console, "RELOAD")) == "12nCZ"
    assert pooler.setting("default_pool_size") == "8"
    console.send(parse("", "SHUTDOWN") + bind() + execute() + SYNC)
    assert [console.recv().type for _ in range(2)] == ["1", "2"] and console.at_eof()
    assert pooler.wait_end() == 0


@pytest.mark.parametrize("sql, text, code", [
    ("PAUSE nosuch", "no such database: nosuch", "08P01"), ("RESUME", "pooler is not paused/suspended", "08P01"),
    ("SET nosuch = 1", "SET failed", "08P01"), ("KILL_CLIENT 99999", "client not found", "08P01")])
def test_errors_of_commands_skip_to_sync(pooler, console, sql, text, code):
    console.send(parse("", sql) + bind() + execute() + parse("", "SHOW VERSION") + bind() + execute() + query("SHOW VERSION") + SYNC)
    result = console.result()
    assert result.error == {"S": "ERROR", "C": code, "M": text} and shape(result) == "12EZ"
    assert console.query("SHOW VERSION").rows
    pooler.wait_log(f"] ERROR {text}\n")
    pooler.wait_log(f"pooler error: {text}\n")


def test_errors_at_parse_are_logged_too(pooler, console):
    result = batch(console, "nonsense")
    assert result.error["M"] == "invalid command 'nonsense', use SHOW HELP;" and shape(result) == "EZ"
    pooler.wait_log("] ERROR invalid command 'nonsense', use SHOW HELP;\n")
    long = batch(console, "x" * 3000)
    assert shape(long) == "EZ" and batch(console, "SHOW VERSION").rows, "no text is too long for an answer"


@pytest.mark.parametrize("sql", ["RELOAD", "PAUSE", "SHUTDOWN", "SHOW FDS", "SET default_pool_size = 5", "SET nosuch = 1"])
def test_stats_users_may_no_more_than_by_simple_query(pooler, sql):
    with pooler.console("stats") as console:
        assert batch(console, sql).error["M"] == "admin access needed"
        assert batch(console, "SHOW POOLS").rows


@pytest.mark.parametrize("user", ["admin", "stats"])
@pytest.mark.parametrize("sql, answer", [
    ("BEGIN", "BEGIN"), ("START TRANSACTION READ ONLY", "START TRANSACTION"), ("COMMIT", "COMMIT"), ("ROLLBACK", "ROLLBACK"),
    ("DISCARD ALL", "DISCARD ALL"), ("DEALLOCATE ALL", "DEALLOCATE ALL"), ("SET extra_float_digits = 3", "SET"),
    ("SET application_name = 'PostgreSQL JDBC Driver'", "SET"), ("RESET ALL", "RESET"), ("UNLISTEN *", "UNLISTEN"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED", "SET")])
def test_probes_that_ask_for_nothing(pooler, user, sql, answer):
    with pooler.console(user) as console:
        result = batch(console, sql)
        assert result.tags == [answer] and result.status == "I" and result.columns == []
        refused = console.ask(sql)
        assert refused.error["M"] in (f"invalid command '{sql}', use SHOW HELP;", "SET failed", "admin access needed"), \
            "the simple protocol keeps its documented answer"


@pytest.mark.parametrize("sql, name, value", [
    ("SELECT 1", "?column?", "1"), ("select version()", "version", "PgBouncer 1.25.2"),
    ("SHOW transaction_isolation", "transaction_isolation", "read committed"),
    ("SHOW TRANSACTION ISOLATION LEVEL", "transaction_isolation", "read committed"), ("SHOW client_encoding", "client_encoding", "UTF-8"),
    ("SELECT current_database()", "current_database", "pgbouncer")])
def test_probes_that_want_a_value(console, sql, name, value):
    result = batch(console, sql)
    assert (result.names, result.rows) == ([name], [[value]])


def test_statements_portals_and_rows_by_portions(console):
    console.send(parse("s", "SHOW CONFIG") + SYNC)
    console.result()
    count = len(console.query("SHOW CONFIG").rows)
    for _ in range(2):
        console.send(bind("", "s") + execute("", 30) + execute("", 30) + execute("", 0) + execute("", 0) + SYNC)
        assert shape(console.result()) == "2" + "D" * 30 + "s" + "D" * 30 + "s" + "D" * (count - 60) + "CCZ"
    console.send(close("S", "s") + bind("", "s") + SYNC)
    assert console.result().error["C"] == "26000"
    console.send(execute() + SYNC)
    assert console.result().error["C"] == "34000"


def test_a_lone_sync_and_flush_are_answered(console):
    console.send(SYNC)
    assert shape(console.result()) == "Z"
    console.send(parse("", "SHOW VERSION") + FLUSH)
    assert console.recv().type == "1"
    console.send(SYNC)
    assert shape(console.result()) == "Z"


def test_messages_may_come_in_pieces(console):
    for byte in parse("", "SHOW VERSION") + bind() + describe("P") + execute() + SYNC:
        console.send(bytes([byte]))
    assert console.result().rows


def test_function_calls_stay_refused(console):
    console.send(message("F", b"\0" * 8))
    assert console.result().error["M"] == "unsupported packet type for admin console: 70"
    console.expect_fatal("bad packet")


def test_memory_of_a_console_is_bounded(pooler, console):
    assert batch(console, "SHOW VERSION").rows
    for number in range(1001):
        console.send(parse(f"s{number}", "RELOAD"))
    console.send(SYNC)
    assert console.result().error["C"] == "53400"
    assert batch(console, "DEALLOCATE ALL").error is None, "there is always room for the unnamed statement"
    console.send(parse("s0", "RELOAD") + SYNC)
    assert console.result().error is None
    console.send(message("P", b"x" * (1 << 21)))
    with pytest.raises((Closed, ConnectionError)):
        while True:
            console.recv()
    assert pooler.show("VERSION")


def test_the_first_command_counts_as_a_query(pooler):
    before = next(r for r in pooler.show("STATS") if r["database"] == "pgbouncer")
    with pooler.console() as console:
        console.send(parse("", "SHOW VERSION") + SYNC)
        console.result()
        batch(console, "SHOW VERSION")
        batch(console, "SHOW VERSION")
    after = next(r for r in pooler.show("STATS") if r["database"] == "pgbouncer")
    assert int(after["total_query_count"]) - int(before["total_query_count"]) == 2, "this one's, and that of the second SHOW STATS"


def test_psycopg3(pooler):
    with pooler.connect("admin", "pgbouncer") as connection:
        for how in ({}, {"binary": True}, {"prepare": True}):
            cursor = connection.execute("SHOW POOLS", **how)
            assert [c.name for c in cursor.description][:3] == ["database", "user", "cl_active"]
            assert ("pgbouncer", "pgbouncer", 1) in [row[:3] for row in cursor.fetchall()]
            assert connection.execute("RELOAD", **how).statusmessage == "RELOAD"
        totals = connection.execute("SHOW STATS_TOTALS", binary=True).fetchall()
        assert all(value >= 0 for row in totals for value in row[1:])
        with pytest.raises(psycopg.Error, match="no such database: nosuch"):
            connection.execute("PAUSE nosuch", prepare=True)
        assert connection.execute("SHOW VERSION", prepare=True).fetchone() == ("PgBouncer 1.25.2",)


def test_psycopg3_pipeline_without_autocommit(pooler):
    with pooler.connect("admin", "pgbouncer", autocommit=False) as connection, connection.pipeline():
        assert connection.execute("SHOW POOLS").fetchall()
        connection.commit()
        connection.execute("RELOAD")
        connection.rollback()


def test_psycopg3_sends_begin_unless_it_is_told_not_to(pooler):
    with pytest.raises(psycopg.Error, match="invalid command 'BEGIN', use SHOW HELP;"), pooler.connect("admin", "pgbouncer", autocommit=False) as connection:
        connection.execute("SHOW VERSION")
    with pooler.connect("admin", "pgbouncer", autocommit=False) as connection:
        connection.autocommit = True
        assert connection.execute("SHOW VERSION").fetchone() == ("PgBouncer 1.25.2",)
    dsn = psycopg.conninfo.make_conninfo(**pooler.dsn("admin", "pgbouncer"))
    with psycopg_pool.ConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as pool:
        for _ in range(2):
            with pool.connection() as connection:
                assert connection.execute("SHOW POOLS").fetchall()


def test_pools_of_asyncpg_need_another_reset(pooler):
    async def nothing(_connection):
        pass

    async def work(**more):
        dsn = {("database" if k == "dbname" else k): v for k, v in pooler.dsn("admin", "pgbouncer").items()}
        async with asyncpg.create_pool(**dsn, min_size=1, max_size=1, **more) as pool:
            for _ in range(2):
                async with pool.acquire() as connection:
                    assert await connection.fetchval("SHOW VERSION") == "PgBouncer 1.25.2"

    asyncio.run(work(reset=nothing))
    with pytest.raises(asyncpg.PostgresError, match="invalid command"):
        asyncio.run(work())


def test_console_probes_answers_simple_queries_too(make_pooler):
    """Off by default: test_psycopg3_sends_begin_unless_it_is_told_not_to and test_pools_of_asyncpg_need_another_reset."""
    pooler = make_pooler(ini={"console_probes": 1})
    with pooler.connect("admin", "pgbouncer", autocommit=False) as connection:
        assert ("pgbouncer", "pgbouncer", 1) in [row[:3] for row in connection.execute("SHOW POOLS").fetchall()]
        connection.commit()
        assert connection.execute("RELOAD").statusmessage == "RELOAD"
        with pytest.raises(psycopg.Error, match="no such database: nosuch"):
            connection.execute("PAUSE nosuch")
        connection.rollback()
        with pytest.raises(psycopg.Error, match="invalid command 'BEGIN; SHOW POOLS', use SHOW HELP;"):
            connection.execute("BEGIN; SHOW POOLS")
    dsn = pooler.dsn("admin", "pgbouncer")
    with psycopg_pool.ConnectionPool(psycopg.conninfo.make_conninfo(**dsn), min_size=1, check=psycopg_pool.ConnectionPool.check_connection) as pool:
        for _ in range(2):
            with pool.connection() as connection, connection.transaction():
                assert connection.execute("SHOW POOLS").fetchall()

    async def work():
        async with asyncpg.create_pool(**{("database" if k == "dbname" else k): v for k, v in dsn.items()}, min_size=1, max_size=1) as pool:
            for _ in range(2):
                async with pool.acquire() as connection, connection.transaction():
                    assert await connection.fetchval("SHOW VERSION") == "PgBouncer 1.25.2"

    asyncio.run(work())
    with pooler.login("admin", "pgbouncer") as wire:
        got = wire.ask("SELECT 7; /* */ BEGIN;")
        assert ([c.name for c in got.columns], got.value, got.tags) == (["?column?"], "7", ["SELECT 1", "BEGIN"])
        assert [m.type for m in wire.ask(" ; ").messages] == ["I", "Z"]
        pooler.admin("SET console_probes = 0")
        assert wire.ask("SELECT 7").error["M"] == "invalid command 'SELECT 7', use SHOW HELP;"


def test_asyncpg(pooler):
    async def work():
        dsn = {("database" if k == "dbname" else k): v for k, v in pooler.dsn("admin", "pgbouncer").items()}
        connection = await asyncpg.connect(**dsn)
        rows = await connection.fetch("SHOW POOLS")
        assert ("pgbouncer", "pgbouncer", 1) in [tuple(r)[:3] for r in rows]
        assert all(int(v) >= 0 for r in await connection.fetch("SHOW STATS") for v in tuple(r)[1:])
        assert await connection.fetch("RELOAD") == [] and await connection.execute("RELOAD") == "RELOAD"
        with pytest.raises(asyncpg.PostgresError, match="no such database"):
            await connection.fetch("PAUSE nosuch")
        assert await connection.fetchval("SHOW VERSION") == "PgBouncer 1.25.2"
        await connection.close()

    asyncio.run(work())


PROGRAM = """
import java.sql.*;

public class Console {
    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0], "admin", arguments[1]);
             Statement statement = connection.createStatement()) {
            if (!connection.isValid(5)) throw new Exception("not valid");
            try (PreparedStatement prepared = connection.prepareStatement("SHOW POOLS")) {
                // from the fifth time on the driver keeps a statement on the server and asks for binary results
                for (int turn = 0; turn < 8; turn++) {
                    try (ResultSet rows = prepared.executeQuery()) {
                        int found = 0;
                        while (rows.next()) if (rows.getString("database").equals("pgbouncer")) found += rows.getInt("cl_active");
                        if (found != 1) throw new Exception("cl_active is " + found);
                    }
                }
            }
            statement.execute("RELOAD");
            try (ResultSet rows = statement.executeQuery("SHOW STATS_TOTALS")) {
                while (rows.next()) rows.getBigDecimal("query_count");
            }
            try {
                statement.execute("PAUSE nosuch");
                throw new Exception("no error");
            } catch (SQLException error) {
                if (!error.getMessage().contains("no such database: nosuch")) throw error;
            }
            connection.setAutoCommit(false);
            statement.setFetchSize(20);
            int settings = 0;
            try (ResultSet rows = statement.executeQuery("SHOW CONFIG")) {
                while (rows.next()) settings++;
            }
            connection.commit();
            if (connection.getTransactionIsolation() != Connection.TRANSACTION_READ_COMMITTED) throw new Exception("isolation");
            System.out.println("settings " + settings);
        }
    }
}
"""


@pytest.mark.skipif(not shutil.which("java") or not any(jar.exists() for jar in JDBC), reason="needs java and libpostgresql-jdbc-java")
def test_jdbc(pooler, tmp_path):
    source = tmp_path / "Console.java"
    source.write_text(PROGRAM)
    jar = next(jar for jar in JDBC if jar.exists())
    address = f"jdbc:postgresql://127.0.0.1:{pooler.port}/pgbouncer"
    done = run(["java", "-cp", jar, source, address, pooler.userlist["admin"]], check=False, timeout=80)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"settings {len(pooler.show('CONFIG'))}\n"
