"""Each timeout: whom it strikes, what that one is told, and whom it spares."""

import time

import pytest

from support.system import holds, until
from support.wire import ServerError, query


def test_query_wait_timeout(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "query_wait_timeout": 1})
    holder, waiter = pooler.login(), pooler.login()
    holder.query("BEGIN")
    started = time.monotonic()
    waiter.send(query("SELECT 1"))
    waiter.expect_fatal("query_wait_timeout")
    assert 0.9 < time.monotonic() - started < 3
    assert holder.query("SELECT 1").value == "1"


def test_query_timeout(make_pooler, pg):
    pooler = make_pooler(ini={"query_timeout": 1})
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(20), 'query_timeout'"))
        wire.expect_fatal("query timeout")
    pooler.wait_log("closing because: query timeout")
    assert pooler.pool()["sv_active"] == 0


@pytest.mark.since("1.25")
def test_query_timeout_spares_a_client_idle_in_transaction(make_pooler):
    pooler = make_pooler(ini={"query_timeout": 1})
    with pooler.login() as wire:
        wire.query("BEGIN")
        holds(lambda: wire.recv_or_none(0.1) is None, 2)
        wire.query("COMMIT")


def test_query_timeout_while_queued(make_pooler):
    pooler = make_pooler(ini={"query_timeout": 1})
    with pooler.login() as waiter:
        waiter.query("SELECT 1")
        pooler.admin("PAUSE")
        waiter.send(query("SELECT 1"))
        waiter.expect_fatal("query_timeout")
        pooler.admin("RESUME")


def test_idle_transaction_timeout(make_pooler, pg):
    pooler = make_pooler(ini={"idle_transaction_timeout": 1})
    with pooler.login() as idle, pooler.login() as busy, pooler.login() as bystander:
        idle.query("BEGIN")
        busy.send(query("SELECT pg_sleep(2.5), 'busy'"))
        idle.expect_fatal("idle transaction timeout")
        assert busy.result().rows[0][1] == "busy"
        assert bystander.query("SELECT 1").value == "1"
    pooler.wait_log("closing because: idle transaction timeout")


@pytest.mark.since("1.25")
def test_transaction_timeout(make_pooler):
    pooler = make_pooler(ini={"transaction_timeout": 1})
    with pooler.login() as wire, pooler.login() as short:
        wire.query("BEGIN")
        deadline = time.monotonic() + 5
        with pytest.raises(ServerError, match="FATAL 08P01: transaction timeout"):
            while time.monotonic() < deadline:
                wire.query("SELECT pg_sleep(0.1)")
                assert short.query("SELECT 1").value == "1"
        assert time.monotonic() < deadline
    pooler.wait_log("closing because: transaction timeout")


def test_client_idle_timeout(make_pooler):
    pooler = make_pooler(ini={"client_idle_timeout": 1})
    with pooler.login() as idle, pooler.login() as linked:
        linked.query("BEGIN")
        idle.expect_fatal("client_idle_timeout")
        holds(lambda: linked.recv_or_none(0.1) is None, 1)
        linked.query("COMMIT")


@pytest.mark.parametrize("stage", ["nothing sent", pytest.param("half a startup packet", marks=pytest.mark.since("1.25")), "at the password"])
def test_client_login_timeout(make_pooler, stage):
    pooler = make_pooler(ini={"client_login_timeout": 1, "auth_type": "md5"})
    with pooler.wire() as wire:
        if stage == "half a startup packet":
            wire.send(b"\0\0\0\x30\0\3\0\0user")
        if stage == "at the password":
            wire.startup("app", "p0")
            assert wire.recv().type == "R"
        wire.expect_fatal("client_login_timeout")


def test_client_login_timeout_with_the_server_down(make_pooler, pg):
    from support.system import free_port

    pooler = make_pooler(start=False, ini={"client_login_timeout": 1})
    pooler.databases["down"] = {"host": "127.0.0.1", "port": free_port()}
    pooler.write()
    pooler.start()
    with pooler.wire() as wire:
        wire.startup("app", "down")
        wire.expect_fatal("client_login_timeout (server down)")


@pytest.mark.since("1.24")
@pytest.mark.parametrize("key, text", [("query_timeout", "query timeout"), ("idle_transaction_timeout", "idle transaction timeout"),
                                       ("client_idle_timeout", "client_idle_timeout")])
def test_timeouts_of_one_user(make_pooler, key, text):
    pooler = make_pooler(users={"app2": {key: 1}})
    hit, spared = pooler.login("app2"), pooler.login("app")
    for wire in (hit, spared):
        if key == "query_timeout":
            wire.send(query("SELECT pg_sleep(2.5)"))
        elif key == "idle_transaction_timeout":
            wire.query("BEGIN")
    hit.expect_fatal(text)
    if key == "query_timeout":
        spared.result()
    assert spared.query("SELECT 1").value == "1"


@pytest.mark.since("1.25")
def test_notice_to_a_queued_client(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "query_wait_notify": 1})
    holder, waiter = pooler.login(), pooler.login()
    holder.query("BEGIN")
    waiter.send(query("SELECT 1"))
    until(lambda: pooler.pool()["cl_waiting"] == 1)
    notice = waiter.recv()
    assert notice.type == "N" and notice.fields == {
        "S": "NOTICE", "C": "00000", "M": "No server connection available in postgres backend, client being queued"}
    holds(lambda: waiter.recv_or_none(0.1) is None, 1.5)
    holder.query("COMMIT")
    assert waiter.result().value == "1"


def test_server_idle_timeout(make_pooler, pg):
    pooler = make_pooler(ini={"server_idle_timeout": 1})
    with pooler.login() as wire:
        wire.query("SELECT 1")
        until(lambda: not pg.backends("p0"), 5)
        pooler.wait_log("closing because: server idle timeout")
        assert wire.query("SELECT 2").value == "2"


def test_server_idle_timeout_keeps_min_pool_size(make_pooler, pg):
    pooler = make_pooler(ini={"server_idle_timeout": 1, "min_pool_size": 2})
    with pooler.login(), pooler.login() as a, pooler.login() as b, pooler.login() as c:
        for wire in (a, b, c):
            wire.query("BEGIN")
        for wire in (a, b, c):
            wire.query("COMMIT")
        until(lambda: len(pg.backends("p0")) == 2, 6)
        holds(lambda: len(pg.backends("p0")) >= 1, 1)


def test_server_lifetime(make_pooler, pg):
    pooler = make_pooler(ini={"server_lifetime": 1})
    with pooler.login() as wire:
        first = wire.query("SELECT pg_backend_pid()").value
        until(lambda: wire.query("SELECT pg_backend_pid()").value != first, 5)
    pooler.wait_log("closing because: server lifetime over")


def test_server_lifetime_of_zero_closes_at_release(make_pooler, pg):
    pooler = make_pooler(ini={"server_lifetime": 0})
    with pooler.login() as wire:
        pids = {wire.query("SELECT pg_backend_pid()").value for _ in range(3)}
    assert len(pids) == 3
