"""Steering under load: operators pause, reload, reconnect and stop while pgbench runs, and no transaction fails."""

import os
import re
import signal
import subprocess
import threading
import time

import psycopg
import pytest

from support import system
from support.load import Background
from support.system import as_daemon_user, run, until

# Seconds under load; raise it for a longer soak.
SECONDS = int(os.environ.get("E2E_STEERING_SECONDS", "6"))
CLIENTS = 50

pytestmark = [pytest.mark.since("1.23"), pytest.mark.slow(SECONDS + 80)]


@pytest.fixture(scope="module")
def accounts(pg):
    run([pg.bin / "pgbench", "-i", "-q", "-s", "2", "-h", pg.dir, "-p", pg.port, "-U", "app", "p0"], cwd="/", **as_daemon_user())


@pytest.fixture
def pooler(make_pooler, accounts):
    return make_pooler(ini={"default_pool_size": 10, "max_client_conn": 200, "log_connections": 0, "log_disconnections": 0})


class Pgbench:
    """pgbench with 50 clients in the background."""

    def __init__(self, pg, pooler, *how):
        self._process = subprocess.Popen(
            [str(a) for a in [pg.bin / "pgbench", "-n", "-c", CLIENTS, "-j", "2", *how, "-h", "127.0.0.1", "-p", pooler.port, "-U", "app", "p0"]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", **as_daemon_user())

    def running(self):
        return self._process.poll() is None

    def finish(self, timeout=60):
        """The transactions done; none may have failed, and no client may have been lost."""
        try:
            out, err = self._process.communicate(timeout=SECONDS + timeout)
        finally:
            self._process.kill()
        assert self._process.returncode == 0, out + err
        assert "aborted" not in err and "number of failed transactions: 0 " in out, out + err
        return int(re.search(r"actually processed: (\d+)", out)[1])


def all_in(pooler):
    """Whether all clients of a pgbench are logged in."""
    pool = pooler.pool()
    return pool and pool["cl_active"] + pool["cl_waiting"] == CLIENTS


def every(seconds, stop, work):
    """Calls `work` again and again until `stop` is set, in a thread."""
    def run_it(background, _number):
        while not stop.wait(seconds):
            work()
            background.count()

    return Background(run_it)


@pytest.mark.parametrize("mode, script", [("simple", "-N"), ("extended", "-N"), pytest.param("prepared", "-S", marks=pytest.mark.since("1.24"))])
@pytest.mark.fault("PAUSE, RESUME, RECONNECT and RELOAD again and again under load", "no transaction fails")
@pytest.mark.goal("G8")
def test_pause_reload_and_reconnect(pooler, pg, mode, script, measured):
    stop = threading.Event()
    consoles = [pooler.console(timeout=60) for _ in range(3)]

    def pause():
        assert consoles[0].query("PAUSE").tags == ["PAUSE"]
        assert consoles[0].query("RESUME").tags == ["RESUME"]

    def reload():
        assert consoles[1].query("RELOAD").tags == ["RELOAD"]

    def reconnect():
        assert consoles[2].query("RECONNECT").tags == ["RECONNECT"]

    bench = Pgbench(pg, pooler, "-M", mode, script, "-T", SECONDS)
    until(lambda: pooler.pool() and pooler.pool()["cl_active"] > 0)
    pause_every, reconnect_every = (2, 5) if SECONDS > 20 else (0.5, 1)
    done = [every(pause_every, stop, pause), every(0.2, stop, reload), every(reconnect_every, stop, reconnect)]
    processed = bench.finish()
    stop.set()
    for background in done:
        background.finish(60)
    measured.least("transactions, none failed", processed, 100)
    assert [b.done > 0 for b in done] == [True] * 3, [b.done for b in done]
    assert done[1].done >= SECONDS, "reloads went on all the time"
    for console in consoles:
        console.close()


def test_one_database_is_paused_reconnected_and_waited_for(pooler, pg):
    stop = threading.Event()
    console = pooler.console(timeout=60)

    def steer():
        for command in ("PAUSE p0", "RESUME p0", "RECONNECT p0", "WAIT_CLOSE p0", "DISABLE p0", "ENABLE p0"):
            assert console.query(command).tags == [command.split()[0]]

    bench = Pgbench(pg, pooler, "-S", "-T", SECONDS)
    until(lambda: all_in(pooler), what="all clients are logged in, before DISABLE")
    steering = every(0.3, stop, steer)
    assert bench.finish() > 100
    stop.set()
    steering.finish(60)
    assert steering.done > 0
    console.close()


@pytest.mark.fault("SIGTERM under load", "all clients finish, then it exits with 0")
@pytest.mark.goal("G11")
def test_sigterm_lets_all_transactions_end(pooler, pg, measured):
    # a number of transactions, not of seconds: the pooler is to end because they have
    bench = Pgbench(pg, pooler, "-N", "-t", 20 * SECONDS)
    until(lambda: all_in(pooler))
    pooler.signal(signal.SIGTERM)
    pooler.wait_log("got SIGTERM, shutting down, waiting for all clients disconnect")
    until(pooler.refuses)
    assert pooler.alive
    measured.exactly("transactions done", bench.finish(), CLIENTS * 20 * SECONDS)
    assert pooler.wait_end() == 0
    assert "client connections dropped, exiting" in pooler.log()


@pytest.mark.goal("G8")
def test_sighup_all_the_time(pooler, pg, measured):
    bench = Pgbench(pg, pooler, "-S", "-T", SECONDS)
    sizes = 0
    while bench.running():
        sizes += 1
        pooler.ini["default_pool_size"] = 3 + sizes % 10
        pooler.write()
        pooler.signal(signal.SIGHUP)
        pooler.wait_log("got SIGHUP, re-reading config", sizes)
        time.sleep(0.05)
    measured.least("transactions, none failed", bench.finish(), 100)
    measured.least("reloads", sizes, 5)


@pytest.mark.ours
def test_rolling_restart_on_a_shared_port(make_pooler, pg):
    """Two poolers on one port take turns in being stopped; no connect, no login and no query fails."""
    port = system.free_port()

    def start():
        pooler = make_pooler(start=False, ini={"so_reuseport": 1, "listen_port": port, "server_login_retry": 1})
        pooler.ini["unix_socket_dir"] = pooler.dir
        pooler.port = port
        pooler.write()
        return pooler.start()

    def work(background, _number):
        while not background.stopping.is_set():
            with psycopg.connect(host="127.0.0.1", port=port, user="app", dbname="p0", connect_timeout=20) as connection:
                connection.execute("SELECT 1")
            background.count()

    old = start()
    with Background(work, threads=4) as clients:
        rounds = max(3, SECONDS // 4)
        for _ in range(rounds):
            seen = clients.done
            new = start()
            until(lambda: clients.done > seen + 20)
            old.signal(signal.SIGTERM)
            assert old.wait_end(20) == 0
            old = new
        clients.finish()
    assert clients.done >= 20 * rounds
