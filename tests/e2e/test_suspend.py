"""SUSPEND: everything comes to rest at the end of a message, nobody is hurt, and RESUME goes on where it stopped."""

import os
import re
import signal
import socket
import struct
import time

import pytest

from support.load import Background, transactions
from support.system import as_daemon_user, until
from support.wire import Closed, Wire, bind, execute, parse, query, SYNC


@pytest.fixture
def console(pooler):
    with pooler.console() as wire:
        yield wire


def test_running_queries_do_not_delay_it(pooler, console, pg):
    with pooler.login() as busy:
        busy.send(query("SELECT pg_sleep(2), 'slept'"))
        until(lambda: pg.sleeping("'slept'"))
        assert console.query("SUSPEND").tags == ["SUSPEND"]
        assert pg.sleeping("'slept'"), "it was not waited for"
        until(lambda: not pg.sleeping("'slept'"))
        assert busy.recv_or_none(0.3) is None
        console.query("RESUME")
        assert busy.result().rows[0][1] == "slept"


def test_half_a_message_is_waited_for(pooler, console):
    with pooler.login() as half:
        text = query("SELECT 'whole'")
        half.send(text[:9])
        # what has been read of it decides
        until(lambda: pooler.pool()["sv_active"] == 1)
        console.send(query("SUSPEND"))
        assert console.recv_or_none(0.4) is None
        half.send(text[9:])
        assert console.result().tags == ["SUSPEND"]
        console.query("RESUME")
        assert half.result().value == "whole"


def test_nobody_is_accepted_meanwhile(pooler, console):
    console.query("SUSPEND")
    with pooler.wire() as late:
        late.startup("app", "p0")
        assert late.recv_or_none(0.5) is None
        console.query("RESUME")
        late.finish_login("app")
        assert late.query("SELECT 1").value == "1"


@pytest.mark.ours
def test_whoever_waits_is_served_first(make_pooler):
    """A client in a transaction holds the only server: it goes on until it has given the server back."""
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as holder, pooler.login() as waiter, pooler.console() as console:
        holder.query("BEGIN")
        waiter.send(query("SELECT 'served'"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        console.send(query("SUSPEND"))
        assert console.recv_or_none(0.3) is None
        assert holder.query("SELECT 1").value == "1"
        assert console.recv_or_none(0.3) is None
        holder.query("COMMIT")
        assert console.result().tags == ["SUSPEND"]
        console.query("RESUME")
        assert waiter.result().value == "served"


def test_suspend_timeout(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "suspend_timeout": 1})
    with pooler.login() as holder, pooler.login() as waiter, pooler.wire() as stranger, pooler.console() as console:
        stranger.send(b"\0\0")
        holder.query("BEGIN")
        waiter.send(query("SELECT 'never'"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        begin = time.monotonic()
        console.send(query("SUSPEND"))
        assert console.result().tags == ["SUSPEND"]
        assert 0.9 < time.monotonic() - begin < 3
        waiter.expect_fatal("suspend_timeout")
        stranger.expect_fatal("suspend_timeout")
        pooler.wait_log("closing because: suspend_timeout")
        console.query("RESUME")
        assert holder.query("COMMIT").tags == ["COMMIT"]


def test_other_consoles_and_refusals(pooler, console):
    with pooler.console() as other:
        console.query("SUSPEND")
        for command in ("SUSPEND", "PAUSE", "PAUSE p0", "KILL"):
            assert other.ask(command).error["M"] == "already suspended/paused"
        assert other.query("SHOW POOLS").names[0] == "database"
        assert other.query("RESUME").tags == ["RESUME"]
        other.query("PAUSE p1")
        assert other.ask("SUSPEND").error["M"] == "cannot suspend with paused databases"


def test_cancelling_it_resumes(pooler):
    with pooler.login() as half, pooler.console() as console, pooler.wire() as cancel:
        half.send(query("SELECT 'late'")[:7])
        until(lambda: len([s for s in pooler.show("SOCKETS") if s["state"] == "cl_login"]) == 1)
        # later ones are not accepted any more
        console.send(query("SUSPEND"))
        assert console.recv_or_none(0.3) is None
        cancel.send(struct.pack("!II", 16, 80877102) + console.key)
        pooler.wait_log("cancel request for console client")
        half.send(query("SELECT 'late'")[7:])
        assert half.result().value == "late"


def test_unused_servers_that_are_to_be_checked_are_closed(make_pooler):
    pooler = make_pooler(ini={"server_check_delay": 0, "server_check_query": "select 1"})
    with pooler.login() as a, pooler.console() as console:
        a.query("SELECT 1")
        console.query("SUSPEND")
        pooler.wait_log("closing because: close unsafe file descriptors on suspend")
        console.query("RESUME")
        assert a.query("SELECT 2").value == "2"


@pytest.mark.ours
@pytest.mark.parametrize("size", [2, 20])
@pytest.mark.goal("G8")
def test_again_and_again_under_load(make_pooler, size):
    """Transactions, prepared statements and new connections: none fails."""
    pooler = make_pooler(ini={"default_pool_size": size, "max_prepared_statements": 10})

    def prepared(background, _number):
        with pooler.login(timeout=30) as wire:
            wire.send(parse("s", "SELECT 41 + $1::int") + SYNC)
            wire.result()
            while not background.stopping.is_set():
                wire.send(bind("", "s", [1]) + execute() + SYNC)
                assert wire.result().value == "42"
                background.count()

    def fresh(background, _number):
        while not background.stopping.is_set():
            with pooler.login(timeout=30) as wire:
                assert wire.query("SELECT repeat('x', 100000)").value == "x" * 100000
            background.count()

    with Background(transactions(pooler), threads=6) as a, Background(prepared, threads=3) as b, Background(fresh, threads=2) as c:
        for _ in range(15):
            seen = a.done, b.done, c.done
            until(lambda: a.done > seen[0] + 5 and b.done > seen[1] + 5 and c.done > seen[2], 20)
            with pooler.console(timeout=30) as console:
                assert console.query("SUSPEND").tags == ["SUSPEND"]
                assert console.query("RESUME").tags == ["RESUME"]
    assert "suspend_timeout" not in pooler.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.ours
def test_signals_meanwhile(pooler, console, number):
    console.query("SUSPEND")
    pooler.signal(number)
    assert pooler.wait_end() == 1
    assert re.search(rf"LOG got {number.name}, shutting down, .*\n.* FATAL suspend was in progress, going down immediately", pooler.log())


@pytest.mark.ours
def test_a_signal_forces_a_shutdown_that_was_suspended(pooler, console):
    console.query("SHUTDOWN WAIT_FOR_CLIENTS")
    console.query("SUSPEND")
    pooler.signal(signal.SIGTERM)
    assert pooler.wait_end() == 0
    assert "got SIGTERM while shutting down, fast exit" in pooler.log()


def test_shutdown_meanwhile_leaves_the_socket_file(pooler, console):
    console.query("SUSPEND")
    console.send(query("SHUTDOWN"))
    assert pooler.wait_end() == 0
    assert os.path.exists(pooler.unix_path)


@pytest.mark.ours
def test_a_shutdown_that_waits_for_clients_ends_it(pooler):
    """Nobody could RESUME any more: whoever is waited for is served to his end, also while the console is there."""
    with pooler.login() as client, pooler.console() as console:
        client.query("SELECT 1")
        console.query("SUSPEND")
        client.send(query("SELECT 'waited'"))
        assert client.recv_or_none(0.3) is None
        assert console.query("SHUTDOWN WAIT_FOR_CLIENTS").tags == ["SHUTDOWN"]
        assert client.result().value == "waited" and client.query("SELECT 1").value == "1"
        assert console.query("SHOW STATE").dicts == [{"key": k, "value": v} for k, v in (("active", "yes"), ("paused", "no"), ("suspended", "no"))]
    assert pooler.wait_end() == 0
    assert "client connections dropped, exiting" in pooler.log() and "admin disappeared" not in pooler.log()
    assert not os.path.exists(pooler.unix_path)


@pytest.mark.since("1.23")
def test_a_console_that_leaves_last_takes_the_socket_file_along(pooler):
    """Suspended in the middle of a shutdown: the console that leaves ends the one, and then the other."""
    with pooler.login() as client:
        with pooler.console() as console:
            assert console.query("SHUTDOWN WAIT_FOR_CLIENTS").tags == ["SHUTDOWN"]
            console.query("SUSPEND")
        pooler.wait_log("admin disappeared when suspended, doing RESUME")
        assert client.query("SELECT 1").value == "1"
    assert pooler.wait_end() == 0
    assert re.search("admin disappeared when suspended, doing RESUME\n(.*\n)*.*client connections dropped, exiting", pooler.log())
    assert not os.path.exists(pooler.unix_path)


class OwnConsole(Wire):
    """The console's own user over the Unix socket, in a process of the daemon's user: collects descriptors."""

    def __init__(self, pooler):
        super().__init__(path=pooler.unix_path)
        self.pieces, self.descriptors = [], []

    def _fill(self, size):
        while len(self.buffer) < size:
            data, fds, _, _ = socket.recv_fds(self.sock, 65536, 8)
            if not data:
                raise Closed("closed")
            self.pieces.append((data, len(fds)))
            self.descriptors += fds
            self.buffer += data


@pytest.mark.skipif(as_daemon_user() != {}, reason="the test's user is not the daemon's; see test_descriptors_come_with_their_rows")
def test_descriptors_here(pooler):
    check_descriptors(pooler)


def check_descriptors(pooler):
    with pooler.login() as client:
        client.query("SELECT 1")
        with OwnConsole(pooler) as console:
            console.startup("pgbouncer", "pgbouncer")
            console.finish_login("pgbouncer")
            console.pieces.clear()
            rows = console.query("SHOW FDS").dicts
            assert len(console.descriptors) == len(rows) >= 4
            # a row and a descriptor in each piece, none longer than PgBouncer reads at once
            assert all(fds <= 1 and len(data) <= 2048 for data, fds in console.pieces)
            for row, fd in zip(rows, console.descriptors):
                with socket.socket(fileno=fd) as taken:
                    if row["task"] == "client":
                        assert taken.getpeername()[1] == int(row["port"]) == client.sock.getsockname()[1]
                        assert struct.pack("!q", int(row["cancel"])) == client.key
                    if row["task"] == "server":
                        assert taken.getpeername()[1] == int(row["port"]) == pooler.pg.port
            assert [r["task"] for r in rows].count("pooler") == 2


@pytest.mark.skipif(as_daemon_user() == {}, reason="test_descriptors_here does it")
@pytest.mark.ours
def test_descriptors_come_with_their_rows(pooler):
    """In a child process, for only the daemon's own user gets them."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            who = as_daemon_user()
            os.setgroups([])
            os.setgid(who["group"])
            os.setuid(who["user"])
            check_descriptors(pooler)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_descriptors_are_for_the_own_user_only(pooler, console):
    with pooler.console("stats") as stats:
        assert stats.ask("HANDOVER").error["M"].startswith("invalid command 'HANDOVER'")
    rows = console.query("SHOW FDS").dicts
    assert {r["task"] for r in rows} == {"pooler"}
    assert console.ask("HANDOVER").error["M"].startswith("invalid command 'HANDOVER'")
