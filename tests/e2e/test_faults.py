"""Faults under load, with one, two and four workers: who is told what, who must not notice, and that nothing stays behind."""

import os
import random
import signal
import struct
import threading
import time

import pytest

from support.footprint import Footprint
from support.load import Background
from support.system import until
from support.wire import Closed, ServerError, message, query, startup_packet

pytestmark = pytest.mark.slow(120)
workers = pytest.mark.parametrize("workers", [1, 2, 4])

# What a client may hear when its server goes: PostgreSQL's own words, if it had time for any, and ours.
POSTGRESQL_SAYS = {"57P01", "57P02"}
# What starts with the first use of a pool is not growth.
GROWTH_KB = 4096


@pytest.fixture
def start(make_pooler, binary, workers):
    def make(**ini):
        if binary.ours:
            ini["worker_threads"] = workers
        elif workers > 1:
            pytest.skip("one thread")
        return make_pooler(ini={"server_login_retry": 1, **ini})

    return make


def ending(wire):
    """What a client hears up to the end of its connection: pairs of severity and SQLSTATE or text."""
    heard = []
    while True:
        try:
            said = wire.recv()
        except (Closed, ConnectionError):
            return heard
        if said.type == "E":
            heard.append(said.fields)


def assert_told_once(wire):
    """One error that ends the connection; PostgreSQL's own words may come before it."""
    heard = ending(wire)
    assert heard, "the connection ended without a word"
    *before, last = heard
    assert (last["S"], last["C"], last["M"]) == ("FATAL", "08P01", "server conn crashed?")
    assert len(before) <= 1 and {error["C"] for error in before} <= POSTGRESQL_SAYS, before


def is_told(wire, answer):
    """A client in the queue gets its answer, or the one error."""
    said = wire.recv()
    if said.type == "T":
        assert wire.result().rows == [[answer]]
        return False
    assert said.type in "EN"
    if said.fields["M"] != "server conn crashed?":
        assert said.fields["C"] in POSTGRESQL_SAYS
        assert_told_once(wire)
    return True


def served(pooler):
    """Whether a new client gets an answer; for server_login_retry it may be told why not."""
    try:
        with pooler.login() as wire:
            return wire.query("SELECT 1").value == "1"
    except (ServerError, Closed, ConnectionError):
        return False


def agrees(pooler, pg, clients):
    """SHOW POOLS, SHOW SERVERS, SHOW CLIENTS and pg_stat_activity have the same numbers, and nobody is busy."""
    row = pooler.pool()
    backends = len(pg.backends("p0", "app"))
    servers = [s for s in pooler.show("SERVERS") if s["database"] == "p0"]
    return (row["cl_waiting"] == row["sv_active"] == row["sv_login"] == row["sv_tested"] == row["sv_being_canceled"] == 0
            and row["cl_active"] == clients == len([c for c in pooler.show("CLIENTS") if c["user"] == "app"])
            and row["sv_idle"] + row["sv_used"] == backends == len(servers))


@workers
@pytest.mark.fault("a backend killed (kill -9): PostgreSQL ends all of them", "clients in a query are told once, those in line are served, "
                   "those without a server do not notice")
@pytest.mark.goal("G7")
def test_a_killed_backend_costs_one_error_for_each_client_in_a_query(start, pg, measured):
    """kill -9: PostgreSQL ends all backends. Clients in a query are told once, those in the queue are served by new servers,
    those without a server do not notice."""
    pooler = start(default_pool_size=4)
    busy, queued, idle = ([pooler.login(timeout=30) for _ in range(count)] for count in (4, 4, 8))
    for wire in idle:
        assert wire.query("SELECT 1").value == "1"
    pids = []
    for number, wire in enumerate(busy):
        if number % 2:
            wire.query("BEGIN")
        pids.append(int(wire.ask("SELECT pg_backend_pid()").value))
        wire.send(query("SELECT pg_sleep(60)"))
    until(lambda: len(pg.sleeping("pg_sleep(60)")) == 4)
    for number, wire in enumerate(queued):
        wire.send(query(f"SELECT 'queued {number}'"))
    until(lambda: pooler.pool()["cl_waiting"] == 4)
    footprint = Footprint(pooler)
    os.kill(pg.sleeping("pg_sleep(60)")[0], signal.SIGKILL)
    killed = time.monotonic()
    for wire in busy:
        assert_told_once(wire)
    # PostgreSQL may let a new server in before it notices what happened to its children: then this one's client is told, too
    told = sum(is_told(wire, f"queued {number}") for number, wire in enumerate(queued))
    for number, wire in enumerate(idle):
        assert wire.query(f"SELECT {number}").value == str(number)
    until(lambda: pg._answers(), 20)
    until(lambda: agrees(pooler, pg, 12 - told), what="the counts agree")
    fresh = pooler.login()
    assert fresh.query("SELECT 7").value == "7"
    # PostgreSQL takes its time to recover
    measured.most("everybody served after", time.monotonic() - killed, 20, "s")
    measured.most("clients told that were in line", told, 1)
    measured.most("descriptors more", footprint.more_descriptors, 2)
    measured.memory(footprint, GROWTH_KB)


@workers
@pytest.mark.fault("20 single backends terminated under load", "one error for one client each; everybody else goes on in his connection")
@pytest.mark.goal("G7")
def test_a_terminated_backend_costs_its_client_alone(start, pg, measured):
    """Under load: each terminated backend is one error of one client, and everybody else goes on in its connection."""
    pooler = start(default_pool_size=4)
    idle = pooler.login()
    idle.query("SELECT 1")
    cut, lock = [], threading.Lock()

    def work(background, number):
        wire = pooler.login(timeout=30)
        while not background.stopping.is_set():
            try:
                assert wire.query("BEGIN").status == "T"
                assert wire.query(f"SELECT {number}").value == str(number)
                wire.query("COMMIT")
                background.count()
            except (ServerError, Closed, ConnectionError) as error:
                with lock:
                    cut.append((number, error.fields if isinstance(error, ServerError) else None))
                wire.close()
                wire = pooler.login(timeout=30)
        wire.close()

    killed = 0
    with Background(work, threads=12) as load:
        until(lambda: load.done > 20)
        footprint = Footprint(pooler)
        for _ in range(20):
            seen = load.done
            until(lambda: load.done > seen + 12, 20, what="transactions go on")
            for pid in pg.backends("p0", "app")[:1]:
                killed += pg.sql("SELECT pg_terminate_backend(%s)", pid)[0][0]
        measured.most("descriptors more", footprint.more_descriptors, 4)
        measured.memory(footprint, GROWTH_KB)
    assert killed > 10, (killed, cut)
    measured.most("clients told beyond the number of backends", len(cut) - killed, 0)
    told = [error for _, error in cut if error]
    assert all(error["C"] in POSTGRESQL_SAYS or error["M"] == "server conn crashed?" for error in told), told
    assert idle.query("SELECT 2").value == "2"
    until(lambda: agrees(pooler, pg, 1), what="the counts agree")


@workers
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
@pytest.mark.fault("PostgreSQL restarted under load, fast or immediate", "each client is told once, all work again within "
                   "server_login_retry + 1 s (+ 3 s on a busy machine); clients without a server do not notice")
@pytest.mark.goal("G7")
def test_a_restart_costs_each_client_one_error(start, pg, how, measured):
    """Clients that were cut come back when the server is back; from then on nobody is cut again."""
    pooler = start(default_pool_size=5)
    up, lock = threading.Event(), threading.Lock()
    cut, after = {}, set()

    def work(background, number):
        wire = pooler.login(timeout=30)
        while not background.stopping.is_set():
            try:
                wire.query("BEGIN")
                assert wire.query(f"SELECT {number}").value == str(number)
                wire.query("COMMIT")
                background.count()
                if up.is_set():
                    with lock:
                        after.add(number)
            except (ServerError, Closed, ConnectionError) as error:
                with lock:
                    cut.setdefault(number, []).append(error)
                wire.close()
                up.wait(30)
                wire = pooler.login(timeout=30)
        wire.close()

    with Background(work, threads=12) as load:
        until(lambda: load.done > 200, 30)
        idle = [pooler.login() for _ in range(3)]
        for wire in idle:
            wire.query("SELECT 1")
        footprint = Footprint(pooler)
        pg.stop(how)
        pg.start()
        back = time.monotonic()
        until(lambda: served(pooler), 10, what="a client is served")
        up.set()
        until(lambda: len(after) == 12, 15, what="every client works again")
        recovered = time.monotonic() - back
        for wire in idle:
            assert wire.query("SELECT 2").value == "2", "a client without a server does not notice"
        measured.most("descriptors more", footprint.more_descriptors, 2)
        measured.memory(footprint, GROWTH_KB)
    measured.exactly("errors of one client", max(len(errors) for errors in cut.values()), 1)
    measured.most("all clients work again after", recovered, 1 + 4, "s")
    until(lambda: agrees(pooler, pg, 3), what="the counts agree")


def packet(code, body):
    return struct.pack("!II", len(body) + 8, code) + body


def stranger(dice):
    """What somebody who does not know the protocol, or knows it too well, may send."""
    junk = dice.randbytes(dice.randint(1, 200))
    return dice.choice([
        junk,
        packet(0x30000, junk[:60]),
        startup_packet({"user": "app", "database": "p0"}) + dice.choice("QPBDECSHFdcfpX").encode() + junk,
        startup_packet({"user": "app", "database": "p0", junk[:20].hex(): "x"}),
        startup_packet({"user": junk.hex(), "database": junk[::-1].hex()}),
        startup_packet({"user": "app", "database": "p0"}) + message("p", junk),
        startup_packet({"user": "app", "database": "p0"})[:dice.randint(1, 20)],
        b"\0\0\0\x08\x04\xd2\x16\x2f" * dice.randint(1, 3) + junk,
        b"\0\0\0\x10\x04\xd2\x16\x2e" + junk[:8],
    ])


@workers
@pytest.mark.parametrize("auth_type", ["trust", "scram-sha-256"])
@pytest.mark.fault("1,000 connections with random bytes", "no panic, no growth, clients that work meanwhile do not notice")
@pytest.mark.goal("G18", "G19")
def test_a_thousand_strangers_leave_nothing_behind(start, pg, auth_type, measured):
    """1,000 connections with random bytes: no panic, no growth, and clients that work meanwhile do not notice."""
    pooler = start(auth_type=auth_type, default_pool_size=3)
    dice = random.Random(20240607)

    def knock(times):
        for _ in range(times):
            with pooler.wire(timeout=10) as wire:
                try:
                    wire.send(stranger(dice))
                    if dice.random() < 0.3:
                        wire.recv_or_none(0.01)
                except (Closed, ConnectionError):
                    pass

    def work(background, number):
        with pooler.login(timeout=30) as wire:
            while not background.stopping.is_set():
                assert wire.query(f"SELECT {number}").value == str(number)
                background.count()
                background.stopping.wait(0.005)

    with Background(work, threads=4) as load:
        # what is allocated once and kept is not growth
        knock(300)
        settled = lambda: len([c for c in pooler.show("CLIENTS") if c["user"] != "admin"]) == 4  # noqa: E731
        until(settled, what="strangers are gone")
        footprint, done = Footprint(pooler), load.done
        knock(1000)
        until(settled, what="strangers are gone")
        assert load.done > done
        # the pool may have opened what it is allowed to meanwhile
        until(lambda: footprint.more_descriptors <= 3, what="no descriptor is left")
        measured.memory(footprint, 2048)
    until(lambda: agrees(pooler, pg, 0), what="the counts agree")
    assert pooler.alive
