"""SHOW WAITS, LATENCY and ADVICE, and the log line that says what a client waited for."""

import re
import socket
import struct

import pytest

from support.load import Background, transactions
from support.system import as_daemon_user, run, until
from support.wire import SYNC, cstr, describe, execute, message, parse, query

pytestmark = pytest.mark.ours

WAITS = ["database", "user", "cause", "kind", "position", "wait", "wait_us", "addr", "port", "application_name", "id"]
LATENCY = ["database", "user"] + [f"{what}_{column}" for what in ("wait", "query", "xact") for column in ("count", "p50", "p95", "p99")]
ADVICE = ["severity", "database", "user", "setting", "advice"]


class Queue:
    """A pool whose only server is taken, and clients that wait for it."""

    def __init__(self, pooler, waiters=1, database="p0"):
        self.holder = pooler.login("app", database)
        self.holder.query("BEGIN")
        self.waiters = [pooler.login("app", database, application_name=f"waiter {n}") for n in range(waiters)]
        for n, waiter in enumerate(self.waiters, 1):
            waiter.send(query("SELECT 1"))
            until(lambda n=n: pooler.pool(database)["cl_waiting"] == n)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for wire in (self.holder, *self.waiters):
            wire.close()


def causes(pooler):
    return [row["cause"] for row in pooler.show("WAITS")]


def advice(pooler, setting):
    return [row for row in pooler.show("ADVICE") if row["setting"] == setting]


def test_waits_lists_the_line_in_its_order(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    assert pooler.show("WAITS") == []
    with Queue(pooler, 2) as queue:
        with pooler.console("stats") as console:
            result = console.query("SHOW WAITS")
            clients = {row["application_name"]: row for row in console.query("SHOW CLIENTS").dicts}
        assert result.names == WAITS and result.tags == ["SHOW"]
        assert [(r["database"], r["user"], r["cause"], r["kind"], r["position"], r["application_name"]) for r in result.dicts] == [
            ("p0", "app", "pool_full", "query", "1", "waiter 0"), ("p0", "app", "pool_full", "query", "2", "waiter 1")]
        for row in result.dicts:
            client = clients[row["application_name"]]
            assert (row["addr"], row["port"], row["id"]) == (client["addr"], client["port"], client["id"])
            assert client["state"] == "waiting" and int(row["wait"]) < 30 and int(row["wait_us"]) > 0
        queue.holder.query("COMMIT")
        assert [w.result().value for w in queue.waiters] == ["1", "1"]
    assert pooler.show("WAITS") == []


@pytest.mark.parametrize("ini, cause", [
    ({"default_pool_size": 1}, "pool_full"), ({"max_db_connections": 1}, "database_limit"), ({"max_user_connections": 1}, "user_limit")])
def test_limits_are_told_apart(make_pooler, ini, cause):
    pooler = make_pooler(ini=ini)
    with Queue(pooler) as queue:
        assert causes(pooler) == [cause]
        pooler.admin("DISABLE p0")
        assert causes(pooler) == [cause], "a disabled database turns away, it does not let wait"
        queue.holder.query("COMMIT")
        queue.waiters[0].result()


@pytest.mark.parametrize("command, cause", [("PAUSE", "paused"), ("PAUSE p0", "database_paused")])
def test_pauses(make_pooler, command, cause):
    pooler = make_pooler()
    with pooler.login() as client:
        client.query("SELECT 1")
        pooler.admin(command)
        client.send(query("SELECT 1"))
        until(lambda: causes(pooler) == [cause])
        pooler.admin(command.replace("PAUSE", "RESUME"))
        assert client.result().value == "1"


def test_server_logins_that_fail(make_pooler):
    """Nothing listens there."""
    pooler = make_pooler(databases={"p0": {"host": "127.0.0.1", "port": 1}}, ini={"server_login_retry": 30, "auth_type": "trust"})
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        until(lambda: causes(pooler) == ["server_login_failing"])
        (row,) = pooler.show("WAITS")
        assert row["kind"] == "login"


def test_a_server_login_that_hangs(make_pooler):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        pooler = make_pooler(databases={"p0": {"host": "127.0.0.1", "port": server.getsockname()[1]}})
        with pooler.wire() as wire:
            wire.startup("app", "p0")
            until(lambda: causes(pooler) == ["server_login"])


def test_a_wait_that_was_in_vain_is_explained_in_a_line_of_its_own(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "query_wait_timeout": 1})
    with Queue(pooler) as queue:
        queue.waiters[0].expect_fatal("query_wait_timeout")
    log = pooler.log()
    assert re.search(r"LOG C-0x[0-9a-f]+: p0/app@127\.0\.0\.1:\d+ waited 1s because all servers of the pool were in use \(pool_size\)\n", log)
    assert re.search(r"WARNING C-0x\S+: p0/app@\S+ pooler error: query_wait_timeout\n", log)
    assert re.search(r"LOG C-0x\S+: p0/app@\S+ closing because: query_wait_timeout \(age=\d+s\)\n", log)
    assert advice(pooler, "query_wait_timeout")[0]["severity"] == "warning"


def test_latency_has_the_percentiles_of_each_pool(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as client, pooler.console("stats") as console:
        client.query("BEGIN")
        for _ in range(90):
            client.query("SELECT 1")
        for _ in range(10):
            client.query("SELECT pg_sleep(0.05)")
        client.query("COMMIT")
        # the answer leaves a moment before it is counted
        until(lambda: console.query("SHOW LATENCY").dicts[0]["xact_count"] == "1")
        result = console.query("SHOW LATENCY")
    assert result.names == LATENCY
    (row,) = result.dicts
    assert (row["database"], row["user"], row["query_count"], row["xact_count"], row["wait_count"]) == ("p0", "app", "102", "1", "1")
    assert int(row["query_p50"]) < 20_000 and 50_000 <= int(row["query_p95"]) <= int(row["query_p99"]) < 400_000
    assert int(row["xact_p50"]) > 500_000 and row["xact_p50"] == row["xact_p99"]
    assert row["wait_p99"] == "0", "the login had opened the server"


def test_latency_is_that_of_the_last_periods(make_pooler):
    pooler = make_pooler(ini={"stats_period": 1})
    with pooler.login() as client:
        client.query("SELECT 1")
    assert pooler.show("LATENCY")[0]["query_count"] in ("0", "1")
    until(lambda: pooler.show("LATENCY")[0]["query_count"] == "0")
    assert pooler.show("LATENCY")[0]["query_p50"] is None


@pytest.mark.parametrize("topic, names", [("WAITS", WAITS), ("LATENCY", LATENCY), ("ADVICE", ADVICE)])
def test_they_work_over_the_extended_protocol_too(make_pooler, topic, names):
    pooler = make_pooler(ini={"default_pool_size": 1, "query_wait_timeout": 0})
    with Queue(pooler), pooler.console("stats") as console:
        simple = console.query(f"select {topic} ;")
        console.send(parse("", f"SHOW {topic}") + message("B", b"\0\0" + struct.pack("!HHH", 0, 0, 0)) + describe("P") + execute() + SYNC)
        extended = console.result()
        assert extended.columns == simple.columns and extended.names == names and extended.tags == ["SHOW"]
        assert len(extended.rows) == len(simple.rows) > 0
        console.send(parse("", f"SHOW {topic}") + message("B", cstr("") + cstr("") + struct.pack("!HHHH", 0, 0, 1, 1)) + execute() + SYNC)
        types = ""
        while not types.endswith("Z"):
            types += console.recv().type
        assert types == "12" + "D" * len(simple.rows) + "CZ", "in binary too"


def test_help_is_still_that_of_the_original(pooler):
    with pooler.console() as console:
        assert not any(word in str(console.query("SHOW HELP").notices) for word in ("WAITS", "LATENCY", "ADVICE"))


@pytest.mark.slow(60)
def test_advice_on_a_pool_that_is_too_small(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    assert advice(pooler, "default_pool_size") == []
    with Queue(pooler, 3):
        until(lambda: advice(pooler, "default_pool_size"), 30)
        (row,) = advice(pooler, "default_pool_size")
    assert (row["severity"], row["database"], row["user"]) == ("warning", "p0", "app")
    assert re.fullmatch(r"In \d+ % of the last minute up to 3 clients waited, for up to \S+ m?s because all servers of the pool were in use "
                        r"\(pool_size\)\. Raise it above 1 if .*", row["advice"])


def test_advice_on_settings(make_pooler):
    pooler = make_pooler(ini={"max_db_connections": 3, "max_client_conn": 2, "auth_type": "trust"})
    with pooler.login(), pooler.login(), pooler.wire() as third:
        third.startup("app", "p0")
        third.expect_fatal("no more connections allowed (max_client_conn)")
    found = {(row["severity"], row["setting"], row["database"]) for row in pooler.show("ADVICE")}
    assert found == {("warning", "max_client_conn", None), ("notice", "max_db_connections", "p0"), ("notice", "max_db_connections", "p1")}
    pooler.admin("SET max_db_connections = 0")
    assert advice(pooler, "max_db_connections") == []


def test_psql_prints_them(make_pooler, pg):
    pooler = make_pooler()
    with Background(transactions(pooler), 2) as load:
        until(lambda: load.done > 20)
        for topic in ("WAITS", "LATENCY", "ADVICE"):
            done = run([pg.bin / "psql", "-X", "-q", "-h", "127.0.0.1", "-p", pooler.port, "-U", "stats", "-d", "pgbouncer", "-c",
                        f"SHOW {topic}"], cwd="/", **as_daemon_user())
            assert done.stderr == "" and "database" in done.stdout
