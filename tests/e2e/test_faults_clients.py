"""Clients that vanish, cut their lines, do not read, or never log in: what that costs, and that the others do not notice.

Each test is a line of docs/faults.md. E2E_STRANGERS=10000 sets how many lines never log in, E2E_RESETS how many are reset."""

import os
import random
import time

import pytest

from support.footprint import Footprint
from support.lines import reset, room_for, vanish
from support.load import Honest
from support.system import until
from support.wire import SYNC, ServerError, bind, execute, parse, query, startup_packet

pytestmark = [pytest.mark.slow(180), pytest.mark.ours]
GROWTH_KB = 4096
RESETS = int(os.environ.get("E2E_RESETS", "80"))
STRANGERS = int(os.environ.get("E2E_STRANGERS", "5000"))


def at_rest(pooler, clients=0):
    row = pooler.pool()
    busy = ("cl_waiting", "sv_active", "sv_login", "sv_tested", "sv_being_canceled", "cl_active_cancel_req", "cl_waiting_cancel_req")
    return all(row[name] == 0 for name in busy) and row["cl_active"] == clients


@pytest.mark.fault("half-open clients: 40 hosts gone without a word, 4 of them in a transaction", "with tcp_keepidle=1, tcp_keepintvl=1, "
                   "tcp_keepcnt=2 their lines and servers are free within 3 s + 2 s; the line behind them is served")
@pytest.mark.goal("G18")
def test_half_open_clients(make_pooler, pg, measured):
    pooler = make_pooler(ini={"default_pool_size": 4, "tcp_keepalive": 1, "tcp_keepidle": 1, "tcp_keepintvl": 1, "tcp_keepcnt": 2})
    print_ = Footprint(pooler)
    gone = [pooler.login() for _ in range(40)]
    for wire in gone[:4]:
        wire.query("BEGIN")
    with pooler.login(timeout=30) as queued, Honest(pooler, dbname="p1") as others:
        queued.send(query("SELECT 'served'"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        began = time.monotonic()
        for wire in gone:
            vanish(wire)
        assert queued.result().value == "served"
        until(lambda: at_rest(pooler, 1), 20, what="the lines are free")
        measured.most("all free after", time.monotonic() - began, 3 + 2, "s")
        others.goes_on()
        until(lambda: len(pg.backends("p0")) <= 1, what="PostgreSQL has no open transaction")
    # less than a wait for those who are gone would take
    measured.most("slowest transaction elsewhere", others.slowest_ms(), 500 * min(SLACK, 4), "ms")
    until(lambda: print_.more_descriptors <= 4 + 2, what="no descriptor is left")
    measured.memory(print_, GROWTH_KB)
    for wire in gone:
        wire.close()


def in_the_middle(dice, number):
    """What a client has sent, in whole or in part, when its line is reset."""
    whole = dice.choice([
        query("SELECT pg_sleep(0.02)"), query("SELECT repeat('x', 100000) FROM generate_series(1, 100)"),
        query(f"BEGIN; INSERT INTO resets VALUES ({number}); SELECT pg_sleep(0.02)"),
        query("COPY (SELECT repeat('y', 1000) FROM generate_series(1, 5000)) TO STDOUT"), query("COPY resets FROM STDIN"),
        parse("s", "SELECT $1::text, pg_sleep(0.01)") + bind("", "s", [number]) + execute() + SYNC,
        (parse("", "SELECT repeat('z', 10000)") + bind() + execute() + SYNC) * 20,
    ])
    return whole if dice.random() < 0.7 else whole[:dice.randrange(1, len(whole))]


@pytest.mark.fault(f"{RESETS} clients reset their line (RST) in mid-query, mid-message, mid-result", "nobody else gets a wrong answer or an "
                   "error; nothing they had not committed stays; all counts go back to zero")
@pytest.mark.goal("G1", "G2")
def test_resets_in_mid_query(make_pooler, pg, measured):
    pooler = make_pooler(ini={"default_pool_size": 6})
    pg.run_psql("p0", "DROP TABLE IF EXISTS resets; CREATE TABLE resets (n int); GRANT ALL ON resets TO app")
    dice = random.Random(20250611)
    with Honest(pooler) as others:
        others.goes_on(50)
        print_ = Footprint(pooler)
        for number in range(RESETS):
            wire = pooler.login(timeout=30)
            wire.send(in_the_middle(dice, number))
            if dice.random() < 0.5:
                wire.recv_or_none(dice.random() * 0.02)
            reset(wire)
        others.goes_on()
    until(lambda: at_rest(pooler), 20, what="the counts are zero")
    until(lambda: len(pg.backends("p0", "app")) == pooler.pool()["sv_idle"] + pooler.pool()["sv_used"], what="PostgreSQL agrees")
    measured.exactly("rows of cut transactions", pg.direct("p0").execute("SELECT count(*) FROM resets").fetchone()[0])
    measured.least("transactions of others, none wrong", others.done, 70)
    # whoever is reset leaves a server that must be closed: the next one has to log in
    measured.most("slowest of them", others.slowest_ms(), 2000, "ms")
    until(lambda: print_.more_descriptors <= 6, what="no descriptor is left")
    measured.memory(print_, GROWTH_KB)


@pytest.mark.fault("two clients that do not read results of 200 MB", "they cost less than 5 MB and 5 % of a core, and delay nobody")
@pytest.mark.goal("G13")
def test_slow_readers(make_pooler, pg, measured):
    pooler = make_pooler(ini={"default_pool_size": 4})
    with Honest(pooler, threads=1, pause=0.05) as other:
        other.goes_on(5)
        print_ = Footprint(pooler)
        slow = [pooler.login(timeout=60) for _ in range(2)]
        for wire in slow:
            wire.send(query("SELECT repeat('x', 1000000) FROM generate_series(1, 200)"))
            # the first bytes are there, and both directions are full soon
            assert wire.recv().type == "T"
        until(lambda: len(pg.sleeping("repeat('x', 1000000)")) == 2)
        until(lambda: pg.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'")[0][0] == 2, what="PostgreSQL waits")
        still = Footprint(pooler)
        other.goes_on(20)
        # PostgreSQL still waits after that: nothing has been read
        assert pg.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'")[0][0] == 2
        measured.most("processor meanwhile, with another client at work", still.cpu_percent, 5 + 10, "% of a core")
        measured.memory(print_, 5 * 1024)
        for wire in slow:
            got = read_all(wire)
            assert got >= 200 * 1_000_000
        measured.memory(print_, 5 * 1024)
    measured.most("slowest transaction of the other", other.slowest_ms(), 1000, "ms")
    for wire in slow:
        assert wire.query("SELECT 'next'").value == "next"
        wire.close()


def read_all(wire):
    """Reads up to ReadyForQuery without keeping it; the number of bytes."""
    size, last = len(wire.buffer), wire.buffer[-6:]
    wire.buffer = b""
    while last != b"Z\0\0\0\x05I":
        data = wire.sock.recv(1 << 20)
        assert data, "closed in the middle"
        size, last = size + len(data), (last + data)[-6:]
    return size


def knock(pooler, stage):
    """A line that goes no further than so far."""
    wire = pooler.wire()
    if stage == 1:
        wire.send(startup_packet({"user": "app", "database": "p0"})[:-7])
    elif stage == 2:
        wire.startup("app", "p0")
    return wire


@pytest.mark.fault(f"{STRANGERS:,} lines that never log in: silent, in mid-packet, at the challenge", "at most 4 kB each and 60 MB in all; "
                   "an honest p99 below 20 ms when they are there; all dropped within client_login_timeout + 1 s")
@pytest.mark.goal("G18")
def test_lines_that_never_log_in(make_pooler, pg, measured):
    room_for(STRANGERS)
    pooler = make_pooler(ini={"auth_type": "scram-sha-256", "max_client_conn": STRANGERS + 100, "client_login_timeout": 60,
                              "log_connections": 0, "log_disconnections": 0})
    with Honest(pooler, threads=2) as honest:
        honest.goes_on()
        print_ = Footprint(pooler)
        strangers = [knock(pooler, number % 3) for number in range(STRANGERS)]
        last = time.monotonic()
        until(lambda: print_.more_descriptors >= STRANGERS, what="they are all there")
        del honest.seconds[:]
        assert strangers[2::3][-1].recv().type == "R", "the last one has its challenge"
        honest.goes_on(100)
        measured.least("lines at once", print_.more_descriptors, STRANGERS)
        measured.most("memory of one", print_.growth_kb / STRANGERS, 4, "kB")
        measured.most("memory of the process", print_.kilobytes / 1024, 60, "MB")
        measured.most("honest p99", honest.slowest_ms(0.99), 20 * SLACK, "ms")
        # all of them are older than a second
        time.sleep(max(0, last + 1 - time.monotonic()))
        pooler.admin("SET client_login_timeout = 1")
        over = time.monotonic()
        until(lambda: print_.more_descriptors <= 4, 30, what="they are dropped, and no descriptor is left")
        measured.most("all dropped after client_login_timeout +", time.monotonic() - over, 1 * SLACK, "s")
    for wire in strangers:
        wire.close()


# A machine that runs other tests meanwhile makes everybody wait; who measures for docs/faults.md runs nothing else.
SLACK = 1 if os.environ.get("FIGURES") else 10


@pytest.mark.goal("G18")
def test_a_wrong_password_does_not_keep_others_out(make_pooler, measured):
    """500 wrong passwords: nothing grows, and everybody who knows his gets in meanwhile."""
    pooler = make_pooler(ini={"auth_type": "md5", "log_connections": 0, "log_disconnections": 0, "log_pooler_errors": 0})
    pooler.login().close()

    def guess(times):
        for _ in range(times):
            with pytest.raises(ServerError, match="password authentication failed"):
                pooler.login(password="wrong")

    guess(100)
    print_ = Footprint(pooler)
    began = time.monotonic()
    guess(500)
    measured.memory(print_, 1024)
    measured.most("descriptors more", print_.more_descriptors, 1)
    slow = time.monotonic()
    pooler.login().close()
    measured.most("login afterwards", 1000 * (time.monotonic() - slow), 1000, "ms")
    assert slow - began < 60
