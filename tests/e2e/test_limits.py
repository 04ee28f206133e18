"""Sizes and limits: what a full pool, database or user does to those who come next."""

import contextlib
import copy
import re
import struct
import time

import pytest

from support.footprint import Footprint
from support.gate import Gate
from support.load import Background, Sampler, transactions
from support.system import holds, until
from support.wire import CANCEL_REQUEST, ServerError, md5_response, message, query


FULL = r"no more connections allowed \(max_client_conn\)"
PASSWORD_METHODS = pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])


def begin(wires):
    for wire in wires:
        wire.send(query("BEGIN"))


def test_pool_size_is_never_exceeded(make_pooler, pg):
    pooler = make_pooler(ini={"default_pool_size": 4})
    with Sampler(lambda: len(pg.backends("p0"))) as servers:
        with Background(transactions(pooler), threads=20) as load:
            until(lambda: load.done > 500, 30)
    assert servers.largest == 4


def test_size_of_the_entry_and_of_the_user(make_pooler, binary, pg):
    users = {"app2": {"pool_size": 1}} if binary.version >= (1, 23) else {}
    pooler = make_pooler(start=False, ini={"default_pool_size": 5}, users=users)
    pooler.databases["p0"] = pooler.backend(pool_size=2)
    pooler.write()
    pooler.start()
    for user, size in (("app", 2), ("app2", 1 if users else 2)):
        clients = [pooler.login(user) for _ in range(4)]
        begin(clients)
        until(lambda: len(pg.backends("p0", user)) == size)
        holds(lambda: len(pg.backends("p0", user)) == size, 0.5)
        for client in clients:
            client.close()


def test_reserve_pool(make_pooler, pg):
    pooler = make_pooler(ini={"default_pool_size": 2, "reserve_pool_size": 1, "reserve_pool_timeout": 3})
    clients = [pooler.login() for _ in range(5)]
    begin(clients)
    until(lambda: len(pg.backends("p0")) == 2)
    holds(lambda: len(pg.backends("p0")) == 2, 0.6, what="no reserve before its time")
    until(lambda: len(pg.backends("p0")) == 3)
    holds(lambda: len(pg.backends("p0")) == 3, 1.5, what="no more than the reserve")
    pooler.wait_log(re.compile(r"WARNING C-0x[0-9a-f]+: p0/app@127\.0\.0\.1:\d+ taking connection from reserve_pool"))


def test_max_db_connections_evicts_the_idle_server_of_another_user(make_pooler, pg):
    pooler = make_pooler(ini={"max_db_connections": 2, "default_pool_size": 5})
    with pooler.login("app") as a, pooler.login("app") as a2:
        a.query("BEGIN"), a2.query("BEGIN")
        a.query("COMMIT"), a2.query("COMMIT")
        assert len(pg.backends("p0", "app")) == 2
        with pooler.login("app2") as b:
            b.query("BEGIN")
            assert len(pg.backends("p0", "app2")) == 1
            until(lambda: len(pg.backends("p0")) == 2)
            pooler.wait_log("closing because: evicted")
            b.query("COMMIT")
        assert a.query("SELECT 1").value == "1"


def test_two_users_share_max_db_connections_under_load(make_pooler):
    pooler = make_pooler(ini={"max_db_connections": 3, "default_pool_size": 3})
    with Sampler(lambda: int(next(d for d in pooler.show("DATABASES") if d["name"] == "p0")["current_connections"])) as servers:
        with Background(transactions(pooler, "app"), threads=5) as one, Background(transactions(pooler, "app2"), threads=5) as two:
            until(lambda: one.done > 100 and two.done > 100, 40, what="both users get work done")
    assert servers.largest == 3


def test_max_user_connections_over_databases(make_pooler, pg):
    pooler = make_pooler(ini={"max_user_connections": 2, "default_pool_size": 5})
    p0 = [pooler.login("app", "p0") for _ in range(2)]
    for wire in p0:
        wire.query("BEGIN")
    with pooler.login("app2", "p1") as other:
        assert other.query("SELECT 1").value == "1"
    waiting = pooler.wire()
    waiting.startup("app", "p1")
    assert waiting.recv_or_none(0.5) is None, "the user has no connection left"
    p0[0].query("COMMIT")
    waiting.finish_login("app")
    assert waiting.query("SELECT 1").value == "1"
    assert len(pg.backends(user="app")) <= 2


@pytest.mark.since("1.24")
@pytest.mark.parametrize("setting", ["max_db_client_connections", "max_user_client_connections"])
def test_client_limits(make_pooler, setting):
    pooler = make_pooler(ini={setting: 2})
    clients = [pooler.login() for _ in range(2)]
    with pytest.raises(ServerError) as refused:
        pooler.login()
    assert list(refused.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", f"client connections exceeded ({setting})")]
    clients.pop().close()
    until(lambda: len([c for c in pooler.show("CLIENTS") if c["user"] == "app"]) == 1)
    pooler.login().close()
    with pooler.login("app2", "p1" if setting.startswith("max_db") else "p0"):
        pass
    consoles = [pooler.console() for _ in range(4)]
    assert all(c.query("SHOW VERSION").rows for c in consoles), "administrators are not counted out"


@pytest.mark.since("1.24")
@PASSWORD_METHODS
def test_a_full_database_does_not_tell_who_is_known(make_pooler, auth_type):
    pooler = make_pooler(ini={"auth_type": auth_type, "max_db_client_connections": 1})
    with pooler.login("app"):
        for user in ("app2", "nosuch"):
            with pytest.raises(ServerError, match=r"client connections exceeded \(max_db_client_connections\)"):
                pooler.login(user, password="x")


@pytest.mark.ours
@PASSWORD_METHODS
def test_a_full_user_does_not_tell_who_is_known(make_pooler, auth_type):
    """Only who has the password is told that there are too many."""
    pooler = make_pooler(ini={"auth_type": auth_type, "max_user_client_connections": 1}, users={"nosuch": {"pool_size": 1}})
    with pooler.login("app") as first:
        answers = set()
        for user in ("app", "app2", "nosuch", "nobody"):
            with pytest.raises(ServerError, match="authentication failed") as refused:
                pooler.login(user, password="wrong")
            answers.add(str(refused.value))
        assert len(answers) == 1
        for database in ("p0", "p1", "nosuch"):
            with pytest.raises(ServerError, match=r"client connections exceeded \(max_user_client_connections\)"):
                pooler.login("app", database)
        assert first.query("SELECT 1").value == "1"


@pytest.mark.ours
@pytest.mark.parametrize("setting", ["max_db_client_connections", "max_user_client_connections"])
def test_whoever_has_no_password_takes_nobodys_place(make_pooler, setting):
    pooler = make_pooler(ini={"auth_type": "md5", setting: 2, "admin_users": "admin, nosuch"}, users={"nosuch": {"pool_size": 1}})

    def counted(show, name):
        return [row["current_client_connections"] for row in pooler.show(show) if row["name"] == name]

    with contextlib.ExitStack() as strangers:
        for _ in range(8):
            for user, database in (("app", "p0"), ("nosuch", "p0"), ("app", "nosuch"), ("stats", "pgbouncer")):
                wire = strangers.enter_context(pooler.wire())
                wire.startup(user, database)
                assert wire.recv().type == "R"
        assert counted("USERS", "app") + counted("USERS", "stats") + counted("DATABASES", "p0") == ["0", "0", "0"]
        with pooler.login(), pooler.login(), pooler.console("stats"):
            assert counted("USERS", "app") + counted("DATABASES", "p0") == ["2", "2"]
            with pytest.raises(ServerError, match=f"client connections exceeded \\({setting}\\)"):
                pooler.login()
    until(lambda: counted("USERS", "app") + counted("DATABASES", "p0") == ["0", "0"])
    pooler.login().close()


@pytest.mark.ours
def test_those_who_prove_themselves_at_once_are_let_in_up_to_the_limit(make_pooler):
    """However many stand at the door with the right password."""
    pooler = make_pooler(ini={"auth_type": "md5", "max_user_client_connections": 3, "worker_threads": 2})
    wires = [pooler.wire() for _ in range(12)]
    challenges = []
    for wire in wires:
        wire.startup("app", "p0")
        challenges.append(wire.recv())
    for wire, challenge in zip(wires, challenges, strict=True):
        proof = md5_response("app", pooler.userlist["app"], challenge.body[4:8])
        wire.send(message("p", proof.encode() + b"\0"))
    firsts = [wire.recv() for wire in wires]
    assert sorted(first.type for first in firsts) == ["E"] * 9 + ["R"] * 3
    for wire in wires:
        wire.close()


def test_max_client_conn_changes_at_once(make_pooler):
    pooler = make_pooler(ini={"max_client_conn": 100})
    # the console counts as well; it stays, for nobody knows when one that leaves is no longer counted
    with pooler.console() as console:
        console.query("SET max_client_conn = 3")
        pooler.settle(console)
        with pooler.login(), pooler.login():
            with pytest.raises(ServerError, match="no more connections allowed"):
                pooler.login()
            console.query("SET max_client_conn = 50")
            pooler.settle(console)
            pooler.login().close()


@pytest.mark.fault("all of max_client_conn taken by who never logs in", "who has a password gets in: strangers keep a quarter at most, the oldest "
                   "yields")
@pytest.mark.goal("G18")
@pytest.mark.parametrize("workers", [1, 2])
def test_strangers_keep_a_share_of_max_client_conn(make_pooler, measured, workers):
    pooler = make_pooler(ini={"max_client_conn": 20, "client_login_timeout": 60, "worker_threads": workers})
    console = pooler.console()
    strangers = [pooler.wire() for _ in range(25)]
    for stranger in strangers:
        stranger.send(b"\0")
    strangers[0].expect_fatal("no more connections allowed (max_client_conn)")
    let_users_in(pooler, console, measured)
    for stranger in strangers:
        stranger.close()
    nobody_left(console)
    console.close()


@pytest.mark.ours
@pytest.mark.fault("the last connections of max_client_conn held by who never logs in", "who has a password gets in: the oldest yields two "
                   "seconds after it was asked")
@pytest.mark.goal("G18")
@pytest.mark.parametrize("workers", [1, 2])
def test_strangers_in_no_hurry_yield_even_when_they_are_few(make_pooler, workers):
    pooler = make_pooler(ini={"auth_type": "md5", "max_client_conn": 20, "client_login_timeout": 60, "worker_threads": workers})
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(pooler.login())
        strangers = [stack.enter_context(pooler.wire()) for _ in range(4)]
        for stranger in strangers:
            stranger.startup("app", "p0")
            assert stranger.recv().type == "R"
        with pytest.raises(ServerError, match=FULL):
            pooler.login()
        users = []

        def one_more():
            try:
                users.append(stack.enter_context(pooler.login()))
            except ServerError as refused:
                assert re.search(FULL, str(refused))
            return len(users) == 4

        until(one_more)
        for stranger in strangers:
            stranger.expect_fatal("no more connections allowed (max_client_conn)")
        with pytest.raises(ServerError, match=FULL):
            pooler.login()


@pytest.mark.ours
@pytest.mark.parametrize("lookups", ["wait", "run"])
@pytest.mark.parametrize("workers", [1, 2])
def test_strangers_who_are_looked_up_keep_no_more(make_pooler, pg, measured, workers, lookups):
    with Gate(pg.port) as gate:
        gate.shut = lookups == "wait"
        pooler = make_pooler(start=False, ini={"max_client_conn": 20, "client_login_timeout": 60, "worker_threads": workers, "auth_user": "admin",
                                               "auth_query": "SELECT $1::text, pg_sleep(60)::text"})
        pooler.databases["p1"] = pooler.backend("p1", port=gate.port)
        pooler.write()
        pooler.start()
        with pooler.console() as console:
            strangers = [pooler.wire() for _ in range(19)]
            for number, stranger in enumerate(strangers):
                stranger.startup(f"unknown{number}", "p1")
            column = "cl_waiting" if lookups == "wait" else "sv_active"
            until(lambda: shown(console, "POOLS", "p1", column) == 19, what="they are being looked up")
            let_users_in(pooler, console, measured)
            strangers[0].expect_fatal("no more connections allowed (max_client_conn)")
            assert "closing because: no more connections allowed (max_client_conn)" in pooler.log()
            for stranger in strangers:
                stranger.close()
            nobody_left(console)
            until(lambda: shown(console, "POOLS", "p1", "cl_waiting") == shown(console, "POOLS", "p1", "sv_active") == 0, what="no lookup left")
        # what it opened for lookups and did not need stays with it otherwise
        pooler.stop()


@pytest.mark.ours
@pytest.mark.parametrize("workers", [1, 2])
def test_cancel_requests_for_a_peer_keep_no_more(make_pooler, measured, workers):
    with Gate(0) as peer:
        peer.shut = True
        pooler = make_pooler(ini={"max_client_conn": 20, "worker_threads": workers, "peer_id": 1, "cancel_wait_timeout": 60},
                             peers={2: {"host": "127.0.0.1", "port": peer.port}})
        with pooler.console() as console:
            requests = [pooler.wire() for _ in range(19)]
            for number, request in enumerate(requests):
                # a key that peer 2 may have given to somebody
                request.send(struct.pack("!II", 16, CANCEL_REQUEST) + bytes([1, 2, 0, number, 5, 6, 7, 3]))
            until(lambda: canceling(console) == 19, what="they are passed on")
            let_users_in(pooler, console, measured)
            requests[0].expect_fatal("no more connections allowed (max_client_conn)")
            until(lambda: canceling(console) <= 20 // 4, what="they keep their share")
            for request in requests:
                request.close()
            nobody_left(console)
            assert canceling(console) == 0


def canceling(console):
    """The requests that are on their way to peers, or wait for it."""
    return sum(int(row["cl_active_cancel_req"]) + int(row["cl_waiting_cancel_req"]) for row in console.query("SHOW PEER_POOLS").dicts)


def let_users_in(pooler, console, measured):
    """As many users log in as there is room for, which is nearly all but the strangers' share; then they leave."""
    users = []
    with pytest.raises(ServerError, match=re.escape("no more connections allowed (max_client_conn)")):
        while len(users) < 30:
            users.append(pooler.login())
    assert all(user.query("SELECT 1").value == "1" for user in users)
    measured.least("users of 19 let in", len(users), 14)
    measured.most("connections at most", int(listed(console, "used_clients")), 20)
    assert int(listed(console, "login_clients")) <= 20 // 4
    for user in users:
        user.close()


def shown(console, topic, database, column):
    """A figure summed over the pools of a database, by a console that is there: one that came would make a stranger yield."""
    return sum(int(row[column]) for row in console.query(f"SHOW {topic}").dicts if row["database"] == database)


def nobody_left(console):
    """Only the console is counted."""
    until(lambda: listed(console, "login_clients") == "0" and listed(console, "used_clients") == "1", what="all are counted out")


def listed(console, item):
    """A figure of SHOW LISTS."""
    return next(row["items"] for row in console.query("SHOW LISTS").dicts if row["list"] == item)


@pytest.mark.since("1.21")
def test_forced_user_pool_is_warmed_up_without_clients(make_pooler, pg):
    pooler = make_pooler(start=False)
    pooler.databases["p0"] = pooler.backend(user="app", password="app-secret", min_pool_size=3)
    pooler.write()
    pooler.start()
    until(lambda: len(pg.backends("p0", "app")) == 3)


def test_auto_database(make_pooler, pg):
    pooler = make_pooler(start=False)
    pooler.databases = {"*": f"host=127.0.0.1 port={pg.port}"}
    pooler.write()
    pooler.start()
    with pooler.login("app", "p1") as wire:
        assert wire.query("SELECT current_database()").value == "p1"
    pooler.wait_log(re.compile("registered new auto-database: .*p1"))
    assert "p1" in [d["name"] for d in pooler.show("DATABASES")]
    with pytest.raises(ServerError, match="absent|server login"):
        pooler.login("app", "absent")


def test_pool_size_raised_by_set_lets_waiters_in(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    a, b = pooler.login(), pooler.login()
    a.query("BEGIN")
    b.send(query("SELECT 'in'"))
    assert b.recv_or_none(0.3) is None
    pooler.admin("SET default_pool_size = 2")
    assert b.result().value == "in"


def test_host_list_is_used_in_turn(make_pooler, pg):
    pooler = make_pooler(start=False)
    pooler.databases["p0"] = {**pooler.backend(), "host": f"127.0.0.1,{pg.dir}"}
    pooler.write()
    pooler.start()
    clients = [pooler.login() for _ in range(4)]
    for client in clients:
        client.query("BEGIN")
    local = [c.query("SELECT inet_server_addr() IS NULL").value for c in clients]
    assert sorted(local) == ["f", "f", "t", "t"]


@pytest.mark.fault("limit of file descriptors reached", "who is connected is served, less than half a core is used, who waits gets in when "
                   "there is room")
@pytest.mark.goal("G12")
def test_accepting_rests_when_descriptors_run_out(make_pooler, measured):
    """Those who are connected are served, no core is burnt, and those who wait get in when there is room again."""
    pooler = make_pooler(start=False, ini={"max_client_conn": 1000, "client_login_timeout": 0})
    poor = pooler.dir / "poor"
    poor.write_text(f'#!/bin/sh\nulimit -n 120\nexec {pooler.binary.path} "$@"\n')
    poor.chmod(0o755)
    pooler.binary = copy.copy(pooler.binary)
    pooler.binary.path = poor
    pooler.start()
    too_few = re.compile(r"WARNING max_client_conn=1000 and the servers of all pools may need \d+ file descriptors, of which there are 120")
    pooler.wait_log(too_few)
    pooler.reload()
    pooler.wait_log(too_few, 2)
    with pooler.login() as client, pooler.console() as console:
        client.query("SELECT 1")
        crowd = [pooler.wire() for _ in range(130)]
        pooler.wait_log("ERROR accept() failed: Too many open files")
        footprint, since, slowest = Footprint(pooler), time.monotonic(), 0
        while time.monotonic() < since + 2:
            began = time.monotonic()
            assert client.query("SELECT 1").value == "1"
            assert console.query("SHOW VERSION").rows
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        measured.most("processor", footprint.cpu_percent, 50, "% of a core")
        measured.most("slowest query and SHOW", 1000 * slowest, 1000, "ms")
        measured.memory(footprint, 1024)
        for wire in crowd:
            wire.close()
        with pooler.login(timeout=20) as late:
            assert late.query("SELECT 1").value == "1"
        assert 1 <= pooler.log().count("accept() failed") <= 3
