"""PostgreSQL hangs, says nothing, refuses, has no connection left, or is away for a while: whom that concerns, and for how long.

Each test is a line of docs/faults.md."""

import contextlib
import os
import signal
import threading
import time

import pytest

from support.footprint import Footprint
from support.gate import Gate
from support.load import Background, Honest
from support.system import until
from support.wire import Closed, ServerError, query

pytestmark = [pytest.mark.slow(120), pytest.mark.ours]
# What starts with the first use of a pool is not growth.
GROWTH_KB = 4096
HUNG = "SELECT pg_sleep(60), 'hung'"


def behind(make_pooler, gate, **ini):
    """A pooler whose database p0 is behind the gate, and p1 is not."""
    pooler = make_pooler(start=False, ini={"server_login_retry": 1, "default_pool_size": 4, **ini})
    pooler.databases["p0"]["port"] = gate.port
    pooler.write()
    return pooler.start()


@contextlib.contextmanager
def stopped(pids):
    """Processes that do nothing meanwhile, as if their disk hung."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def told(wire):
    """When a client hears the error that ends its connection, and its text."""
    while (said := wire.recv()).type != "E":
        pass
    assert wire.at_eof()
    return time.monotonic(), said.fields["M"]


def served(pooler):
    """If a new client gets its answer; server_login_retry may outlast its query_wait_timeout."""
    try:
        with pooler.login() as wire:
            return wire.query("SELECT 1").value == "1"
    except ServerError as error:
        assert error.message == "query_wait_timeout"
        return False


@pytest.mark.fault("backends hung (SIGSTOP)", "their clients are told within query_timeout + 2 s, the line behind them is served then; "
                   "clients of another database do not wait")
@pytest.mark.goal("G10")
def test_hung_backends_cost_their_clients_alone(make_pooler, pg, measured):
    pooler = make_pooler(ini={"default_pool_size": 2, "query_timeout": 1})
    with Honest(pooler, dbname="p1") as others:
        others.goes_on()
        clients, queued = [pooler.login() for _ in range(2)], [pooler.login() for _ in range(4)]
        for wire in clients:
            wire.send(query(HUNG))
        pids = until(lambda: len(pids := pg.sleeping("'hung'")) == 2 and pids)
        print_ = Footprint(pooler)
        with stopped(pids):
            began = time.monotonic()
            ends = [told(wire) for wire in clients]
            assert {text for _, text in ends} == {"query timeout"}
            for number, wire in enumerate(queued):
                # who waits is under the same limit, from when he asked
                assert wire.query(f"SELECT {number}").value == str(number)
            others.goes_on()
            measured.most("client told after", max(when for when, _ in ends) - began, 1 + 2, "s")
            measured.most("slowest transaction elsewhere", others.slowest_ms(), 1000, "ms")
            measured.memory(print_, GROWTH_KB)
        until(lambda: pooler.pool()["sv_active"] == 0 == pooler.pool()["cl_waiting"])


@pytest.mark.fault("a server that accepts and says nothing", "its clients are told within query_wait_timeout + 2 s; clients of another "
                   "database do not wait")
@pytest.mark.goal("G10")
def test_a_mute_server_costs_its_clients_alone(make_pooler, pg, measured):
    with Gate(pg.port) as gate:
        gate.shut = True
        pooler = behind(make_pooler, gate, query_wait_timeout=1, server_connect_timeout=1)
        with Honest(pooler, dbname="p1") as others:
            others.goes_on()
            print_ = Footprint(pooler)
            began = time.monotonic()
            waiting = [pooler.wire() for _ in range(8)]
            for wire in waiting:
                wire.startup("app", "p0")
            ends = [told(wire) for wire in waiting]
            others.goes_on()
            assert {text for _, text in ends} == {"query_wait_timeout"}
            measured.most("client told after", max(when for when, _ in ends) - began, 1 + 2, "s")
            measured.most("slowest transaction elsewhere", others.slowest_ms(), 500, "ms")
            measured.memory(print_, GROWTH_KB)
            gate.shut = False
            gate.let_go()
            until(lambda: served(pooler), 5, what="the pool works again")


@pytest.mark.fault("connections to PostgreSQL refused", "a client is told once, at once, and served within server_login_retry + 1 s when "
                   "PostgreSQL lets in again; clients of another database do not wait")
@pytest.mark.goal("G7")
def test_a_server_that_refuses_costs_its_clients_one_error(make_pooler, pg, measured):
    with Gate(pg.port) as gate:
        pooler = behind(make_pooler, gate)
        idle = pooler.login()
        assert idle.query("SELECT 1").value == "1"
        with Honest(pooler, dbname="p1") as others, served_again(pooler, 6) as load:
            until(lambda: load.done > 20)
            print_ = Footprint(pooler)
            gate.refuse()
            others.goes_on(100)
            pooler.wait_log("closing because: connect failed")
            gate.reopen()
            back = time.monotonic()
            load.up.set()
            until(lambda: len(load.after) == 6, 20, what="every client works again")
            measured.most("all clients work again after", time.monotonic() - back, 1 + 1 * SLACK, "s")
            measured.exactly("errors of one client", max(len(errors) for errors in load.cut.values()), 1)
            measured.most("slowest transaction elsewhere", others.slowest_ms(), 500, "ms")
            measured.memory(print_, GROWTH_KB)
        assert idle.query("SELECT 2").value == "2", "a client without a server does not notice"


class served_again(Background):
    """Clients that are cut, and come back when they hear that PostgreSQL is `up`. `cut` has the errors of connections that had
    worked, `after` the clients that work again."""

    def __init__(self, pooler, threads):
        self.pooler, self.up, self.cut, self.after = pooler, threading.Event(), {}, set()
        super().__init__(self._work, threads)

    def _work(self, _background, number):
        wire, worked = self.pooler.login(timeout=30), False
        while not self.stopping.is_set():
            try:
                wire.query("BEGIN")
                assert wire.query(f"SELECT {number}").value == str(number)
                wire.query("COMMIT")
                self.count()
                worked = True
                if self.up.is_set():
                    self.after.add(number)
            except (ServerError, Closed, ConnectionError) as error:
                if worked:
                    self.cut.setdefault(number, []).append(error)
                worked = False
                wire.close()
                self.up.wait(30)
                wire = self._back()
        wire.close()

    def _back(self):
        """For server_login_retry after a failure newcomers are refused: they try again, as applications do."""
        while True:
            self.stopping.wait(0.05)
            try:
                return self.pooler.login(timeout=30)
            except (ServerError, Closed, ConnectionError):
                pass


@pytest.mark.fault("PostgreSQL out of connections", "who has a server goes on; who waits is served by a server that comes free; nobody "
                   "is cut")
@pytest.mark.goal("G7")
def test_no_connection_left_at_postgresql(make_pooler, pg, measured, request):
    pg.sql("ALTER ROLE app CONNECTION LIMIT 2")
    request.addfinalizer(lambda: pg.sql("ALTER ROLE app CONNECTION LIMIT -1"))
    pooler = make_pooler(ini={"default_pool_size": 10, "query_wait_timeout": 20})
    with pooler.login() as first, pooler.login() as second:
        first.query("BEGIN"), second.query("BEGIN")
        first.query("COMMIT"), second.query("COMMIT")
    print_ = Footprint(pooler)
    with Honest(pooler, threads=12, pause=0) as clients:
        pooler.wait_log("too many connections for role")
        clients.goes_on(300)
        measured.memory(print_, GROWTH_KB)
        measured.most("servers", len(pg.backends("p0", "app")), 2)
    measured.most("slowest transaction", clients.slowest_ms() / 1000, 1 + 2, "s")
    measured.least("transactions, none failed", clients.done, 300)


@pytest.mark.fault("PostgreSQL stopped under load, back after 3 s", "each client is told once; newcomers are told at once; all work again "
                   "within server_login_retry + 1 s; clients without a server do not notice")
@pytest.mark.goal("G7")
def test_postgresql_away_for_a_while(make_pooler, pg, measured):
    pooler = make_pooler(ini={"server_login_retry": 1, "default_pool_size": 4})
    idle = [pooler.login() for _ in range(3)]
    for wire in idle:
        wire.query("SELECT 1")
    with served_again(pooler, 12) as load:
        until(lambda: load.done > 100)
        print_ = Footprint(pooler)
        pg.stop()
        try:
            refused, gone = [], time.monotonic()
            while time.monotonic() < gone + 3:
                began = time.monotonic()
                try:
                    with pooler.login() as wire:
                        wire.query("SELECT 1")
                except (ServerError, Closed):
                    refused.append(time.monotonic() - began)
                time.sleep(0.05)
        finally:
            pg.start()
        back = time.monotonic()
        load.up.set()
        until(lambda: len(load.after) == 12, 20, what="every client works again")
        measured.most("all clients work again after", time.monotonic() - back, 1 + 1 * SLACK, "s")
        measured.most("newcomer told after", 1000 * max(refused), 1000, "ms")
        measured.exactly("errors of one client", max(len(errors) for errors in load.cut.values()), 1)
        measured.most("descriptors more", print_.more_descriptors, 2)
        measured.memory(print_, GROWTH_KB)
    assert len(refused) > 3
    for wire in idle:
        assert wire.query("SELECT 2").value == "2"


# A machine that runs other tests meanwhile makes everybody wait; who measures for docs/faults.md runs nothing else.
SLACK = 1 if os.environ.get("FIGURES") else 10
