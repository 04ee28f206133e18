"""Servers that never end what they say: the pooler closes the connection before it has kept much."""

import os
import statistics
import struct
import tempfile
import threading
import time

import pytest

from support.system import until
from support.wire import SYNC, bind, cstr, execute, message, parse, query
from test_protocol_2_framing import GROWTH, WELCOME, peak, read_message
from test_servers import AUTH_OK, READY, scripted

pytestmark = pytest.mark.ours

ENDLESS = struct.pack("!I", 0x7FFFFF00)
CLEAR_TEXT = message("R", struct.pack("!I", 3))
MD5 = message("R", struct.pack("!I", 5) + b"salt")
# What a server says at most: enough to be seen in the pooler's memory, and a test that fails ends all the same.
MOST = 200 << 20


def flood(sock, piece, pause=0.0):
    for _ in range(MOST // len(piece)):
        sock.sendall(piece)
        time.sleep(pause)


@pytest.fixture
def before(make_pooler):
    """Makes a pooler before a server that says what the test wants."""
    servers = []

    def make(serve, **ini):
        servers.append(scripted(serve))
        return make_pooler(ini=ini, databases={"p0": {"host": "127.0.0.1", "port": servers[-1].port}})

    yield make
    for server in servers:
        server.listener.close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("kind", ["S", "C", "Z"])
def test_a_message_that_must_be_read_has_an_end(before, kind, mode):
    def serve(sock):
        sock.sendall(WELCOME)
        read_message(sock)
        sock.sendall(kind.encode() + ENDLESS)
        flood(sock, b"x" * 65536)

    pooler = before(serve, pool_mode=mode)
    with pooler.login() as wire:
        first = peak(pooler)
        wire.send(query("SELECT 1"))
        wire.expect_fatal("bad pkt header")
        pooler.wait_log("closing because: bad pkt header", 2)
        assert peak(pooler) - first < GROWTH


def test_the_refusal_of_a_setting_has_an_end(before):
    def serve(sock):
        sock.sendall(WELCOME)
        kind, body = read_message(sock)
        assert kind == "Q" and body.startswith(b"SET "), body
        sock.sendall(b"E" + ENDLESS)
        flood(sock, b"x" * 65536)

    pooler = before(serve)
    with pooler.login(application_name="other") as wire:
        first = peak(pooler)
        wire.send(query("SELECT 1"))
        wire.expect_fatal("bad pkt header")
        pooler.wait_log("closing because: bad pkt header", 2)
        assert peak(pooler) - first < GROWTH


@pytest.mark.parametrize("size", [1000, 60_000, 70_000, 3 << 20])
def test_errors_that_quote_what_the_client_sent_pass_at_any_size(make_pooler, size):
    """In a query, a Parse, and a Parse for a name that is in use."""
    pooler = make_pooler(ini={"max_prepared_statements": 5})
    literal, sql = "x" * size, f"SELECT '{'x' * size}'::int"
    with pooler.login() as wire:
        wire.send(parse("used", "SELECT 1") + bind("", "used") + execute() + SYNC)
        assert wire.result().value == "1"
        for data in (query(sql), parse("fresh", sql) + SYNC, parse("used", sql) + SYNC):
            wire.send(data)
            error = wire.result().error
            assert error["C"] == "22P02" and f'"{literal}"' in error["M"]
        assert wire.query("SELECT 2").value == "2"


def test_parameters_at_the_login_have_an_end(before):
    def serve(sock):
        sock.sendall(AUTH_OK)
        # in pieces that are taken one after the other
        flood(sock, b"".join(message("S", cstr(f"p{n}") + cstr("v" * 8000)) for n in range(8)), pause=0.001)

    pooler = before(serve)
    first = peak(pooler)
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        pooler.wait_log("closing because: server conn crashed?")
        assert peak(pooler) - first < GROWTH


@pytest.mark.parametrize("request_", [CLEAR_TEXT, MD5], ids=["clear text", "md5"])
def test_requests_for_the_password_have_an_end(before, request_):
    """The server does not read what it asks for."""
    def serve(sock):
        flood(sock, request_ * 500, pause=0.001)

    pooler = before(serve)
    first = peak(pooler)
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        pooler.wait_log("protocol error: password requested too often")
        pooler.wait_log("closing because: failed to answer authreq")
        assert peak(pooler) - first < GROWTH


def test_a_password_is_given_again_in_clear_text(before):
    """PostgreSQL asks once for each module of a PAM stack that wants to know."""
    said = []

    def serve(sock):
        for _ in range(3):
            sock.sendall(CLEAR_TEXT)
            said.append(read_message(sock))
        sock.sendall(WELCOME)
        while read_message(sock)[0] == "Q":
            sock.sendall(message("C", cstr("SELECT 0")) + READY)

    pooler = before(serve)
    with pooler.login() as wire:
        assert wire.query("SELECT 1").error is None
    assert said == [("p", said[0][1])] * 3


@pytest.mark.goal("G20")
@pytest.mark.fault("a server that talks without end, faster than it is read", "clients of another database are served in between")
@pytest.mark.parametrize("what", ["reset query", "left query", "lookup", "nothing"])
def test_a_server_that_talks_on_and_on_does_not_keep_others_waiting(make_pooler, pg, measured, what):
    """In answer to a reset query, to the query of a client who has left, to an auth_query, and unasked."""
    row = message("D", struct.pack("!hi", 1, 1) + b"x")
    told = []

    def serve(sock):
        sock.sendall(WELCOME)
        if what != "nothing":
            kind, body = read_message(sock)
            if what == "reset query":
                sock.sendall(message("C", cstr("SELECT 1")) + READY)
                kind, body = read_message(sock)
                assert body.startswith(b"DISCARD ALL"), body
        told.append(True)
        # faster than anybody can read
        with tempfile.TemporaryFile() as file:
            file.write((message("N", cstr("")) if what in ("nothing", "lookup") else row) * (16 << 20 >> 3))
            file.flush()
            for _ in range(100):
                offset = 0
                while offset < file.tell():
                    offset += os.sendfile(sock.fileno(), file.fileno(), offset, file.tell() - offset)

    server = scripted(serve)
    asks = {"auth_user": "app", "auth_dbname": "p0"} if what == "lookup" else {}
    pooler = make_pooler(
        ini={"worker_threads": 1, "pool_mode": "session", "server_drain_timeout": 1, **asks, "server_reset_query": "DISCARD ALL",
             "server_idle_timeout": 2},
        databases={"p0": {"host": "127.0.0.1", "port": server.port}, "p1": {"host": "127.0.0.1", "port": pg.port, "dbname": "p1"}})
    with pooler.login(database="p1") as other:
        other.query("SELECT 1")
        wire = pooler.wire() if what == "lookup" else pooler.login()
        if what == "lookup":
            wire.startup("stranger", "p1")
        elif what != "nothing":
            wire.send(query("SELECT 1"))
        if what == "reset query":
            wire.result()
        if what != "lookup":
            wire.close()
        until(lambda: told)
        _, early, _, _, late = (waits(other, 1.0) for _ in range(5))
        # a debug build takes its time for so many messages
        measured.most("slowest transaction elsewhere", 1000 * max(early + late), 1500, "ms")
        # and the flood has no larger share the longer it lasts
        assert statistics.median(late) < 2.5 * statistics.median(early) + 0.05
        wire.close()
    if what == "left query":
        pooler.wait_log("closing because: client disconnect while server was not ready")
    server.listener.close()


def test_who_waits_for_a_server_that_talks_on_gets_another(make_pooler):
    """Each of them says rows without end, is closed after server_drain_timeout, and leaves its place to the next one."""
    row = message("D", struct.pack("!hi", 1, 1) + b"x")

    def serve(sock):
        sock.sendall(WELCOME)
        read_message(sock)
        with tempfile.TemporaryFile() as file:
            file.write(row * (16 << 20 >> 3))
            file.flush()
            for _ in range(100):
                os.sendfile(sock.fileno(), file.fileno(), 0, file.tell())

    server = scripted(serve)
    pooler = make_pooler(ini={"worker_threads": 1, "server_drain_timeout": 0.1, "default_pool_size": 1, "log_disconnections": 1},
                         databases={"p0": {"host": "127.0.0.1", "port": server.port}})
    for number in range(12):
        leaving, following = pooler.login(), pooler.login()
        leaving.send(query("SELECT 1"))
        assert leaving.raw(1) == b"D"
        following.send(query("SELECT 1"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        leaving.close()
        assert following.raw(1) == b"D", number
        following.close()
        until(lambda: pooler.pool()["sv_active"] == 0)
    server.listener.close()


def test_the_end_of_a_parked_server_counts_for_more_than_its_last_words(make_pooler):
    """What a PostgreSQL that crashes says to those who ask for nothing: a warning, and then it is gone."""
    parked = threading.Event()

    def serve(sock):
        sock.sendall(WELCOME)
        read_message(sock)
        sock.sendall(message("C", cstr("SELECT 0")) + READY)
        parked.wait(20)
        sock.sendall(message("N", b"SWARNING\0C57P02\0Mterminating connection\0\0"))

    with scripted(serve) as server:
        pooler = make_pooler(databases={"p0": {"host": "127.0.0.1", "port": server.port}})
        with pooler.login() as wire:
            wire.query("SELECT 1")
            until(lambda: pooler.pool()["sv_idle"] == 1)
            parked.set()
            until(lambda: pooler.pool()["sv_idle"] == 0)
        pooler.wait_log("closing because: server conn crashed?")


def waits(wire, seconds):
    """How long queries take, one after the other."""
    taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        wire.query("SELECT 1")
        taken.append(time.monotonic() - start)
    return taken
