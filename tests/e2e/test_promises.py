"""Promises to clients that are no faults of anybody: their cancels arrive where they belong, their turn comes, nobody pays more
than his messages are worth."""

import contextlib
import os
import random
import socket
import struct
import threading
import time

import pytest

from support.footprint import Footprint
from support.load import Background
from support.system import until
from support.way import in_background, pump, serve
from support.wire import CANCEL_REQUEST, SYNC, ServerError, close, cstr, parse, query

pytestmark = [pytest.mark.slow(180), pytest.mark.ours]
CANCELS = int(os.environ.get("E2E_CANCELS", "24"))
DELAY_S = 0.35


class SlowCancels:
    """A way to PostgreSQL on which cancel requests take their time."""

    def __init__(self, port):
        self._target, self.passed = port, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        serve(self._listener, lambda sock: in_background(self._join, sock))

    def _join(self, near):
        first = near.recv(8, socket.MSG_WAITALL)
        if first[4:] == struct.pack("!I", CANCEL_REQUEST):
            time.sleep(DELAY_S)
            self.passed += 1
        far = socket.create_connection(("127.0.0.1", self._target))
        with contextlib.suppress(OSError):
            far.sendall(first)
        in_background(pump, near, far)
        pump(far, near)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()


@pytest.mark.goal("G6")
def test_cancels_that_are_long_on_their_way_hit_their_own_query_or_nothing(make_pooler, pg, measured):
    with SlowCancels(pg.port) as way:
        pooler = make_pooler(start=False, ini={"default_pool_size": 6})
        pooler.databases["p0"]["port"] = way.port
        pooler.write()
        pooler.start()
        hit, late, own = [], [], threading.Lock()

        def target(background, number):
            dice = random.Random(number)
            with pooler.login(timeout=30) as wire:
                while way.passed < CANCELS and not background.stopping.is_set():
                    wire.query("BEGIN")
                    # now and then it is over before the request arrives, and somebody else wants the server
                    wire.send(query(f"SELECT pg_sleep({dice.choice([0.1, 0.3, DELAY_S, 0.5, 1])})"))
                    with pooler.wire() as request:
                        request.send(struct.pack("!II", 16, CANCEL_REQUEST) + wire.key)
                        got = wire.result()
                        ended = wire.ask("ROLLBACK")
                        if ended.error:
                            # the request came just behind the end of the query: this one is its own as well
                            assert ended.error["C"] == "57014", ended.error
                            wire.query("ROLLBACK")
                        assert request.at_eof()
                    assert got.error is None or got.error["C"] == "57014", got.error
                    with own:
                        (hit if got.error else late).append(number)

        def innocent(background, number):
            with pooler.login(timeout=30) as wire:
                while not background.stopping.is_set():
                    got = wire.ask(f"SELECT {number}, pg_sleep(0.01)")
                    assert got.error is None, f"an innocent client was told {got.error}"
                    assert got.rows[0][0] == str(number)
                    background.count()

        with Background(innocent, 6) as innocents:
            Background(target, 4).join(60)
        measured.least("cancels", way.passed, CANCELS)
        measured.exactly("innocent queries cancelled", 0)
        measured.least("innocent queries", innocents.done, 20)
        measured.least("cancels that hit their query", len(hit), 1)
        measured.least("cancels that came too late", len(late), 1)
        until(lambda: (pooler.pool()["sv_being_canceled"], pooler.pool()["sv_active"]) == (0, 0))


@pytest.mark.goal("G14")
def test_everybody_has_his_turn_at_saturation(make_pooler, measured):
    """20 clients want two servers all the time, each for 20 ms: the longest wait is not far from the usual one."""
    pooler = make_pooler(ini={"default_pool_size": 2})
    waits = []

    def work(background, _number):
        with pooler.login(timeout=30) as wire:
            while not background.stopping.is_set():
                began = time.monotonic()
                wire.query("SELECT pg_sleep(0.02)")
                waits.append(time.monotonic() - began - 0.02)
                background.count()

    def round_of_waits():
        del waits[:]
        until(lambda: len(waits) >= 200, 30)
        ordered = sorted(waits)
        return ordered[-1] / ordered[len(ordered) // 2], len(ordered)

    with Background(work, threads=20) as load:
        until(lambda: load.done > 40, 30)
        # the machine may stand still for a moment; who is passed over by the pooler is so in every round
        for _ in range(3):
            longest, number = round_of_waits()
            if longest <= 3:
                break
    measured.most("longest wait, as a multiple of the median", longest, 3)
    measured.least("waits", number, 200)


def nothing_but_names():
    """Statements without end: each is short, has a name of its own, and is never closed."""
    return b"".join(parse(f"s{n}", "SELECT 1") for n in range(20_000)) + SYNC


def nothing_but_syncs():
    return SYNC * 50_000


def statements_closed():
    return b"".join(parse("s", f"SELECT {n}") + close("S", "s") for n in range(8_000)) + SYNC


FLOODS = {"names": nothing_but_names, "syncs": nothing_but_syncs, "parse and close": statements_closed}


@pytest.mark.goal("G20")
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_costs_what_it_is_worth(make_pooler, kind, measured):
    """A client that reads what it is told: not more than 100 bytes of memory for each byte, and nobody waits for it."""
    pooler, flood = make_pooler(ini={"max_prepared_statements": 200, "default_pool_size": 2}), FLOODS[kind]()
    with pooler.login(timeout=60) as other, pooler.login(timeout=60) as wire:
        other.query("SELECT 1")
        print_ = Footprint(pooler)
        reader = Background(lambda *_: read_until_ready(wire, flood.count(SYNC)))
        wire.sock.sendall(flood)
        began = time.monotonic()
        assert other.query("SELECT 2").value == "2"
        latency = time.monotonic() - began
        reader.join(60)
        measured.most("memory for each byte", 1024 * print_.growth_kb / len(flood), 100, "bytes")
        measured.most("another client waits", 1000 * latency, 1000, "ms")
        measured.most("processor time for each byte", 1e9 * print_.more_cpu_s / len(flood), 2000, "ns")


def read_until_ready(wire, times):
    """Reads until ReadyForQuery came that often, and keeps nothing."""
    while times:
        said = wire.recv()
        assert said.type != "E", said.fields
        times -= said.type == "Z"


@pytest.mark.goal("G20")
def test_answers_that_nobody_reads_are_not_made(make_pooler, measured):
    """50,000 times SHOW CONFIG for the price of 14 bytes each, without reading: the console makes no more than it can send."""
    pooler = make_pooler()
    with pooler.console() as console, pooler.login() as other:
        other.query("SELECT 1")
        print_ = Footprint(pooler)
        flood = query("SHOW CONFIG;") * 50_000
        console.sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < len(flood):
                sent += console.sock.send(flood[sent:sent + 65536])
        began = time.monotonic()
        assert other.query("SELECT 2").value == "2"
        measured.most("another client waits", 1000 * (time.monotonic() - began), 1000, "ms")
        measured.most("memory for each byte", 1024 * print_.growth_kb / sent, 100, "bytes")
        measured.memory(print_, 16 * 1024)


@pytest.mark.goal("G20")
def test_startup_packets_with_many_parameters(make_pooler, measured):
    pooler = make_pooler(ini={"ignore_startup_parameters": "extra_float_digits"})
    print_ = Footprint(pooler)
    crowd = []
    for number in range(200):
        wire = pooler.wire()
        wire.send(startup_of(9000 + number))
        crowd.append(wire)
    for wire in crowd:
        with pytest.raises(ServerError):
            wire.finish_login("app")
        wire.close()
    measured.most("memory for each byte", 1024 * print_.growth_kb / (200 * 9000), 100, "bytes")


def startup_of(size):
    """A startup packet of nearly `size` bytes, all of it parameters with short names."""
    body = struct.pack("!I", 0x30000) + cstr("user") + cstr("app") + cstr("database") + cstr("p0")
    number = 0
    while len(body) < size:
        number += 1
        body += cstr(f"a{number}") + cstr("b")
    body += b"\0"
    return struct.pack("!I", len(body) + 4) + body
