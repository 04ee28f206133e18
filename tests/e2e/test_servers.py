"""Servers that break, hang, come back; the check and reset queries; what clients see of it."""

import os
import re
import signal
import socket
import threading
import time

import pytest

from support.load import Background, transactions
from support.system import free_port, holds, until
from support.wire import Closed, ServerError, message, query


def test_killed_backend_costs_only_its_client(make_pooler, pg):
    """kill -9 makes PostgreSQL restart all backends; idle clients keep their connections."""
    pooler = make_pooler()
    idle, victim = pooler.login(), pooler.login()
    idle.query("SELECT 1")
    # A client has its answer a moment before another worker has the server: a second login still under way would fail
    # with the restart, and the pool with it.
    until(lambda: pooler.pool()["sv_idle"] == 1)
    victim.query("BEGIN")
    pid = int(victim.query("SELECT pg_backend_pid()").value)
    os.kill(pid, signal.SIGKILL)
    victim.expect_fatal("server conn crashed?")
    until(lambda: pg._answers(), 20)

    def works():
        try:
            return idle.query("SELECT 5").value == "5"
        except ServerError as error:
            pytest.fail(f"the idle client was told {error}")

    assert works()


def test_terminated_idle_server_is_never_seen(make_pooler, pg):
    pooler = make_pooler()
    with pooler.login() as wire:
        for _ in range(5):
            pid = int(wire.query("SELECT pg_backend_pid()").value)
            pg.sql("SELECT pg_terminate_backend(%s)", pid)
            until(lambda: pid not in pg.backends("p0"))
            until(lambda: pooler.pool()["sv_idle"] == 0)
            assert wire.query("SELECT 1").value == "1"
    log = pooler.log()
    assert log.count("got packet 'E' from server when not linked") == log.count("closing because: server conn crashed?") == 5
    assert "got dirty" not in log, "the end of a connection counts for more than what was said before it"


def test_a_server_does_not_wait(make_pooler):
    pooler = make_pooler()
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(20)"))
        until(lambda: int(pooler.show("SERVERS")[0]["wait_us"] == "0" and pooler.show("CLIENTS")[0]["wait_us"]) > 0)
        assert (row := pooler.show("SERVERS")[0])["state"] == "active" and (row["wait"], row["wait_us"]) == ("0", "0")


def test_a_forced_user_that_goes_stays_but_its_servers_go(make_pooler, pg):
    pooler = make_pooler(start=False)
    pooler.databases["forced"] = {**pooler.backend(), "dbname": "p0", "user": "app2", "password": "app2-secret"}
    pooler.write()
    pooler.start()
    with pooler.login("app", "forced") as wire:
        pid = wire.query("SELECT pg_backend_pid()").value
        pooler.settle()
        del pooler.databases["forced"]["user"], pooler.databases["forced"]["password"]
        pooler.write()
        pooler.reload()
        pooler.wait_log("WARNING losing forced user not supported, keeping old setting")
        pooler.wait_log("closing because: database configuration changed")
        assert wire.query("SELECT current_user").value == "app2"
        assert wire.query("SELECT pg_backend_pid()").value != pid


@pytest.fixture
def too_late(make_pooler):
    """A logged-in client whose query came after servers could no longer be reached."""
    pooler = make_pooler(start=False, ini={"server_login_retry": 5})
    pooler.databases["moved"] = pooler.backend()
    pooler.write()
    pooler.start()
    a, b = pooler.login("app", "moved"), pooler.login("app", "moved")
    a.query("SELECT 1")
    pooler.databases["moved"]["port"] = free_port()
    pooler.write()
    pooler.reload()
    a.send(query("SELECT 1"))
    pooler.wait_log("closing because: connect failed")
    b.send(query("SELECT 1"))
    return b


def test_fast_fail_after_a_failed_connect(too_late):
    """He is told at once."""
    error = too_late.recv()
    assert error.type == "E" and error.fields["S"] == "FATAL" and error.fields["M"].startswith("server login has been failing")
    assert too_late.at_eof()


@pytest.mark.since("1.24")
def test_fast_fail_tells_the_reason(too_late):
    too_late.expect_fatal("server login has been failing, cached error: connect failed (server_login_retry)")


def test_client_waits_for_a_server_that_comes_up(make_pooler, pg):
    """A first login does not fail fast: it waits for the next attempt."""
    port = free_port()
    pooler = make_pooler(start=False)
    pooler.databases["late"] = {**pooler.backend(), "port": port}
    pooler.write()
    pooler.start()
    with pooler.wire() as wire:
        wire.startup("app", "late")
        pooler.wait_log("closing because: connect failed")
        with forwarder(port, pg.port):
            wire.finish_login("app")
            assert wire.query("SELECT 1").value == "1"


class forwarder:
    """A port that leads to another one."""

    def __init__(self, port, target):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.target = target
        self.open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            self.open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        for sock in self.open:
            sock.close()


class scripted:
    """A server that says what the test wants after AuthenticationOk."""

    def __init__(self, answer):
        self.port = free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.answer = answer
        self.served = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with sock:
            try:
                first = sock.recv(8192)
                if first[4:8] == (80877103).to_bytes(4, "big"):
                    sock.sendall(b"N")
                    first = sock.recv(8192)
                self.served += 1
                self.answer(sock)
            except OSError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


def beside(make_pooler, server, name="odd", **ini):
    """A pooler with this one among its databases."""
    pooler = make_pooler(start=False, ini=ini)
    pooler.databases[name] = {"host": "127.0.0.1", "port": server.port}
    pooler.write()
    return pooler.start()


AUTH_OK = b"R\0\0\0\x08\0\0\0\0"
READY = b"Z\0\0\0\x05I"


@pytest.mark.parametrize("answer", [
    AUTH_OK + b"E\0\0\0\x05\0", b"\0" * 64, b"R\0\0\0\x04", b"R\xff\xff\xff\xff\0", AUTH_OK + b"S\0\0\0\x06ab", AUTH_OK + b"K\0\0\0\x04",
    AUTH_OK + b"?\0\0\0\x04", b"E\0\0\0\x04", b"", b"R\0\0\0\x0c\0\0\0\x05ab", b"R\0\0\0\x08\0\0\0\x63",
    pytest.param(AUTH_OK + READY, marks=pytest.mark.ours),
])
def test_server_that_breaks_the_protocol_hurts_nobody_else(make_pooler, answer):
    def say(sock):
        sock.sendall(answer)
        time.sleep(0.3)

    with scripted(say) as server:
        pooler = beside(make_pooler, server)
        honest = pooler.login()
        with pooler.wire() as wire:
            wire.startup("app", "odd")
            until(lambda: server.served)
            pooler.wait_log(re.compile(r"S-0x\S+: odd/\S+ closing because: "))
            assert honest.query("SELECT 1").value == "1"
        assert honest.query("SELECT 2").value == "2" and pooler.alive


@pytest.mark.ours
@pytest.mark.parametrize("asks", [b"", b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0", b"R\0\0\0\x08\0\0\0\x03"])
def test_a_server_that_is_ready_has_to_say_that_we_may_come_in(make_pooler, asks):
    def say(sock):
        sock.sendall(asks)
        if asks:
            sock.recv(8192)
        sock.sendall(b"K\0\0\0\x0c" + bytes(8) + READY)
        sock.recv(1)

    with scripted(say) as server:
        pooler = beside(make_pooler, server)
        with pooler.wire() as wire:
            wire.startup("app", "odd")
            pooler.wait_log("protocol error: ReadyForQuery before ")
            pooler.wait_log(re.compile(r"S-0x\S+: odd/\S+ closing because: "))
            if b"SCRAM" in asks:
                wire.expect_fatal("server login failed: failed to verify server signature")


def test_mute_server_is_given_up_after_server_connect_timeout(make_pooler):
    with scripted(lambda sock: sock.recv(1)) as server:
        pooler = beside(make_pooler, server, "mute", server_connect_timeout=1, query_wait_timeout=3)
        with pooler.wire() as wire, pooler.login() as honest:
            wire.startup("app", "mute")
            pooler.wait_log("closing because: connect timeout")
            assert honest.query("SELECT 1").value == "1"
            wire.expect_fatal("query_wait_timeout")


@pytest.mark.parametrize("check", ["SELECT 'checked'", pytest.param("<empty>", marks=pytest.mark.since("1.25"))])
def test_check_query_hides_a_broken_server(make_pooler, pg, check):
    pooler = make_pooler(ini={"server_check_delay": 0, "server_check_query": check})
    with pooler.login() as wire:
        pid = int(wire.query("SELECT pg_backend_pid()").value)
        until(lambda: pooler.pool()["sv_used"] == 1)
        assert int(wire.query("SELECT pg_backend_pid()").value) == pid, "a sound server passes its check"
        pg.sql("SELECT pg_terminate_backend(%s)", pid)
        until(lambda: pid not in pg.backends("p0"))
        assert int(wire.query("SELECT pg_backend_pid()").value) != pid


def test_idle_server_becomes_used_after_the_delay(make_pooler):
    pooler = make_pooler(ini={"server_check_delay": 2, "server_check_query": "SELECT 1"})
    with pooler.login() as wire:
        wire.query("SELECT 1")
        assert pooler.pool()["sv_idle"] == 1
        until(lambda: pooler.pool()["sv_used"] == 1)
        assert wire.query("SELECT 2").value == "2"
        assert pooler.pool()["sv_used"] == 0


def test_connect_query(make_pooler):
    pooler = make_pooler(start=False)
    pooler.databases["p0"] = pooler.backend(connect_query="SET work_mem TO '321kB'")
    pooler.databases["p1"] = pooler.backend(connect_query="SELECT nonsense")
    pooler.write()
    pooler.start()
    with pooler.login("app") as wire:
        assert wire.query("SHOW work_mem").value == "321kB"
    with pooler.login("app", "p1") as wire:
        assert wire.query("SELECT 1").value == "1"
    pooler.wait_log("error while executing exec_on_query: ERROR")


def test_too_many_servers_for_postgresql(make_pooler, pg):
    """PostgreSQL refuses more connections: those who have none wait or are told, the others go on."""
    pg.sql("ALTER ROLE app CONNECTION LIMIT 2")
    try:
        pooler = make_pooler(ini={"default_pool_size": 10})
        a, b, c = (pooler.login() for _ in range(3))
        a.query("BEGIN"), b.query("BEGIN")
        c.send(query("SELECT 'served'"))
        pooler.wait_log("too many connections for role")
        b.query("COMMIT")
        assert c.result().value == "served"
    finally:
        pg.sql("ALTER ROLE app CONNECTION LIMIT -1")


class goodbye:
    """Passes on to PostgreSQL, and ends with an error right behind the answer to a statement."""

    WORDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"

    def __init__(self, target, statement):
        self.target, self.statement = target, statement
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near):
        with near, socket.create_connection(("127.0.0.1", self.target)) as far:
            said = threading.Event()
            threading.Thread(target=self._answers, args=(far, near, said), daemon=True).start()
            try:
                while data := near.recv(65536):
                    if self.statement in data:
                        said.set()
                    far.sendall(data)
            except OSError:
                pass

    def _answers(self, far, near, said):
        try:
            while data := far.recv(65536):
                if said.is_set() and data.endswith(b"Z\0\0\0\x05I"):
                    near.sendall(data + message("E", self.WORDS))
                    near.shutdown(socket.SHUT_RDWR)
                    return
                near.sendall(data)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


@pytest.mark.ours
def test_server_that_ends_behind_its_answer_is_nobodys_trouble(make_pooler, pg):
    """The client has all its answers; an error in the same piece of data is not told to it, and the server serves nobody else."""
    with goodbye(pg.port, b"SELECT 'last'") as way:
        pooler = make_pooler(start=False, ini={"default_pool_size": 1})
        pooler.databases["p0"] = {**pooler.backend(), "port": way.port}
        pooler.write()
        pooler.start()
        with pooler.login() as a, pooler.login() as b:
            for turn in range(10):
                a.send(query("SELECT 'last'"))
                b.send(query(f"SELECT {turn}"))
                assert a.result().value == "last"
                assert b.result().value == str(turn)
                assert a.query("SELECT 3").value == "3"


@pytest.mark.slow(120)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_postgresql_restarts_under_load(make_pooler, pg, how):
    """Clients whose work is cut are told; everybody works again soon after the server is back; nothing wrong is answered."""
    pooler = make_pooler(ini={"default_pool_size": 5, "server_login_retry": 1})
    cut, committed, after = [0], [0], set()
    restarted = threading.Event()

    def work(background, number):
        wire = None
        while not background.stopping.is_set():
            try:
                wire = wire or pooler.login(timeout=20)
                wire.query("BEGIN")
                assert wire.query(f"SELECT {number}").value == str(number)
                wire.query("COMMIT")
                committed[0] += 1
                if restarted.is_set():
                    after.add(number)
            except (ServerError, Closed, ConnectionError):
                cut[0] += 1
                if wire is not None:
                    wire.close()
                wire = None
                background.stopping.wait(0.02)

    with Background(work, threads=12):
        until(lambda: committed[0] > 200, 20)
        idle = pooler.login()
        pg.stop(how)
        pg.start()
        restarted.set()
        until(lambda: len(after) == 12, 15, what="every client works again")
    assert cut[0] > 0
    assert idle.query("SELECT 1").value == "1", "a client without a transaction keeps its connection"


@pytest.mark.slow(120)
def test_backends_terminated_under_load(make_pooler, pg):
    pooler = make_pooler(ini={"default_pool_size": 4})
    committed, cut = [0], [0]
    with pg.direct("p0", "app") as direct:
        direct.execute("DROP TABLE IF EXISTS ledger")
        direct.execute("CREATE TABLE ledger (client int, n int)")

    def work(background, number):
        wire, done = None, 0
        while not background.stopping.is_set():
            try:
                wire = wire or pooler.login(timeout=20)
                wire.query("BEGIN")
                wire.query(f"INSERT INTO ledger VALUES ({number}, {done})")
                wire.query("COMMIT")
                done += 1
                committed[0] += 1
            except (ServerError, Closed, ConnectionError):
                cut[0] += 1
                if wire is not None:
                    wire.close()
                wire = None

    with Background(work, threads=8):
        until(lambda: committed[0] > 50, 20)
        for _ in range(15):
            for pid in pg.backends("p0", "app")[:2]:
                pg.sql("SELECT pg_terminate_backend(%s)", pid)
            seen = committed[0]
            until(lambda: committed[0] > seen + 5, 15)
    (rows,), = pg.direct("p0").execute("SELECT count(*) FROM ledger").fetchall()
    assert committed[0] <= rows <= committed[0] + cut[0], "no acknowledged commit is lost, no row comes from nowhere"


def test_load_leaves_no_servers_busy(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 3})
    with Background(transactions(pooler), threads=10) as load:
        until(lambda: load.done > 300, 20)
    until(lambda: pooler.pool()["cl_active"] == 0)
    row = pooler.pool()
    assert row["sv_active"] == 0 and row["cl_waiting"] == 0 and row["sv_idle"] <= 3
    holds(lambda: pooler.alive, 0.2)
