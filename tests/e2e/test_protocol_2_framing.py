"""protocol.md 2 and 9: message boundaries, buffer sizes, limits, and what does not belong."""

import re
import struct
import threading

import pytest

from support.system import until
from support.wire import SYNC, Closed, ServerError, bind, close, cstr, describe, execute, message, parse, query
from test_servers import AUTH_OK, scripted

pytestmark = pytest.mark.since("1.25")

READY = b"Z\0\0\0\5I"
PARAMETERS = b"".join(message("S", cstr(name) + cstr(value)) for name, value in [
    ("client_encoding", "UTF8"), ("DateStyle", "ISO, MDY"), ("TimeZone", "UTC"), ("standard_conforming_strings", "on"),
    ("application_name", ""), ("server_version", "15.0")])
WELCOME = AUTH_OK + PARAMETERS + message("K", b"\0\0\0\1\0\0\0\2") + READY


def read_message(sock):
    header = sock.recv(5, 0x100)
    if len(header) < 5:
        raise OSError("closed")
    return header[:1].decode(), sock.recv(struct.unpack("!I", header[1:])[0] - 4, 0x100)


@pytest.fixture
def odd_server(make_pooler):
    """A pooler before a server that answers every query with given bytes."""
    servers = []

    def make(answer, **ini):
        def serve(sock):
            sock.sendall(WELCOME)
            while True:
                kind, _ = read_message(sock)
                if kind in "QS":
                    sock.sendall(answer)

        server = scripted(serve)
        servers.append(server)
        return make_pooler(ini=ini, databases={"p0": {"host": "127.0.0.1", "port": server.port}})

    yield make
    for server in servers:
        server.listener.close()


# --- pkt_buf -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [75, 100, 4096, 100_000])
def test_messages_around_the_size_of_the_buffer(make_pooler, size):
    """Alone, and behind others that leave just enough, or too little, room."""
    pooler = make_pooler(ini={"pkt_buf": size, "default_pool_size": 1})
    with pooler.login() as wire:
        for total in [*range(size - 8, size + 9), 2 * size, 3 * size + 1]:
            text = "SELECT 1 --"
            data = query(text + "x" * (total - 6 - len(text)))
            assert len(data) == total
            wire.send(data)
            assert wire.result().value == "1"
            wire.send(query("SELECT 2") + data + query("SELECT 3"))
            assert [wire.result().value for _ in range(3)] == ["2", "1", "3"]


@pytest.mark.parametrize("size", [75, 4096])
def test_rows_around_the_size_of_the_buffer(make_pooler, size):
    pooler = make_pooler(ini={"pkt_buf": size})
    with pooler.login() as wire:
        lengths = list(range(size - 20, size + 20)) + [10 * size]
        rows = wire.query(f"SELECT repeat('x', n) FROM unnest(ARRAY{lengths}) n").rows
        assert [len(row[0]) for row in rows] == lengths


@pytest.mark.since("1.24")
@pytest.mark.parametrize("size", [75, 4096])
def test_prepared_statements_and_names_larger_than_the_buffer(make_pooler, size):
    pooler = make_pooler(ini={"pkt_buf": size, "default_pool_size": 1, "max_prepared_statements": 5})
    with pooler.login() as wire:
        for length in (10, size - 30, size, size + 1, 3 * size):
            name = "n" * length
            for text in ("SELECT 1", "SELECT 1 --" + "y" * (2 * size)):
                batch = parse(name, text) + describe("S", name) + bind("", name) + execute() + close("S", name) + SYNC
                wire.send(batch)
                got = wire.result()
                assert got.error is None and got.value == "1", (length, got.error)
                wire.send(batch * 3)
                assert [wire.result().value for _ in range(3)] == ["1", "1", "1"]


@pytest.mark.since("1.24")
def test_a_pipeline_of_many_large_messages_does_not_stall(make_pooler):
    pooler = make_pooler(ini={"pkt_buf": 75, "default_pool_size": 1, "max_prepared_statements": 3})
    with pooler.login(timeout=30) as wire:
        one = b"".join(parse(f"s{n}", f"SELECT {n} --" + "z" * 900) + bind("", f"s{n}") + execute() + SYNC for n in range(50))
        again = b"".join(bind("", f"s{n}") + execute() + SYNC for n in range(50))
        wire.send(one + again)
        assert [wire.result().value for _ in range(100)] == [str(n) for n in range(50)] * 2


def test_options_longer_than_the_buffer(make_pooler):
    pooler = make_pooler(ini={"pkt_buf": 75, "ignore_startup_parameters": "options"})
    name = "a" * 60
    with pooler.login(options=f"-c application_name={name} -c search_path=" + "x" * 3000) as wire:
        assert wire.query("SHOW application_name").value == name


def test_login_messages_longer_than_the_buffer(make_pooler):
    password = "p" * 500
    pooler = make_pooler(ini={"pkt_buf": 75, "auth_type": "plain"}, databases={"p0": "host=127.0.0.1"},
                         userlist={"app": password, "admin": password})
    with pooler.login("admin", "pgbouncer", password) as console:
        assert console.query("SHOW VERSION").rows


# --- headers -------------------------------------------------------------------------------------------------------------------


def test_headers_wait_for_their_bytes(pooler):
    """Eight bytes of a startup packet, five of any other message."""
    with pooler.wire() as wire:
        wire.send(b"\0\0\0\x08\x00\x09\x00")
        assert wire.recv_or_none(0.2) is None
        wire.send(b"\0")
        wire.expect_fatal("bad packet header: '0000000800090000'")
    with pooler.login() as wire:
        wire.send(b"Q\0\0\0")
        assert wire.recv_or_none(0.2) is None
        wire.send(b"\3")
        wire.expect_fatal("bad packet header: '5100000003'")


@pytest.mark.parametrize("code, text", [(0x30000, None), (0x2FFFF, "0000001b0002ffff"), (0x40000, "0000001b00040000")])
def test_versions(pooler, code, text):
    with pooler.wire() as wire:
        wire.startup("app", "p0", code=code)
        if text is None:
            wire.finish_login("app")
        else:
            got = wire.recv()
            assert got.type == "E" and got.fields["M"].startswith("bad packet header: '") and got.fields["M"].endswith(text[8:] + "'")


def test_a_message_of_a_server_larger_than_max_packet_size(make_pooler):
    pooler = make_pooler(ini={"max_packet_size": 5000})
    with pooler.login() as wire:
        assert len(wire.query("SELECT repeat('x', 4000)").value) == 4000
        wire.send(query("SELECT repeat('x', 6000)"))
        assert wire.recv().type == "T"
        wire.expect_fatal("bad pkt header")
    pooler.wait_log("closing because: bad pkt header", 2)


@pytest.mark.parametrize("answer, text", [
    (b"?\0\0\0\4", "unknown pkt"), (b"R\0\0\0\x08\0\0\0\0", "unknown pkt"), (b"D\0\0\0\3", "bad pkt header"), (b"Z\xff\xff\xff\xff", "bad pkt header"),
    (b"v\0\0\0\4", "unknown pkt"),
])
def test_what_a_working_server_may_not_say(odd_server, answer, text):
    pooler = odd_server(answer)
    with pooler.login() as wire:
        wire.send(query("SELECT 1"))
        wire.expect_fatal(text)
    pooler.wait_log(f"closing because: {text}", 2)


@pytest.mark.ours
@pytest.mark.parametrize("answer", [message("C", cstr("SELECT 1")) + READY + READY, READY + message("1"), message("1")])
def test_answers_that_nobody_asked_for_reach_nobody(odd_server, answer):
    pooler = odd_server(answer, default_pool_size=1)
    with pooler.login() as wire, pooler.login() as other:
        wire.send(query("SELECT 1"))
        with pytest.raises((Closed, ServerError)):
            wire.result()
            wire.query("SELECT 2")
            wire.query("SELECT 3")
        assert other.recv_or_none(0.1) is None


# --- messages to an idle server (protocol.md 6, end) ----------------------------------------------------------------------------


def test_a_notification_to_an_idle_server_is_dropped_and_does_no_harm(make_pooler, pg):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as wire:
        wire.query("LISTEN bell")
        pid = wire.query("SELECT pg_backend_pid()").value
        pg.run_psql("p0", "NOTIFY bell, 'ring'")
        pooler.wait_log("got packet 'A' from server when not linked")
        assert wire.recv_or_none(0.2) is None
        assert wire.query("SELECT pg_backend_pid()").value == pid


@pytest.mark.parametrize("said", [message("N", b"SNOTICE\0C00000\0Mlook\0\0"), message("E", b"SERROR\0C57P01\0Mbye\0\0"),
                                  message("S", cstr("TimeZone") + cstr("UTC")), message("S", cstr("TimeZone") + cstr("UTC"))[:9]])
def test_anything_else_from_an_idle_server_makes_it_dirty(make_pooler, said):
    speak = threading.Event()

    def serve(sock):
        sock.sendall(WELCOME)
        read_message(sock)
        sock.sendall(message("I") + READY)
        if not speak.is_set():
            speak.wait(20)
            sock.sendall(said)
        sock.recv(100)

    with scripted(serve) as server:
        pooler = make_pooler(databases={"p0": {"host": "127.0.0.1", "port": server.port}})
        with pooler.login() as wire:
            wire.query("")
            until(lambda: pooler.pool()["sv_idle"] == 1)
            speak.set()
            pooler.wait_log(f"got packet '{chr(said[0])}' from server when not linked")
            pooler.wait_log(re.compile("closing because: (SV_IDLE|idle) server got dirty"))
            assert wire.recv_or_none(0.1) is None
            assert [m.type for m in wire.query("").messages] == ["I", "Z"], "another server answers"


# --- large messages ------------------------------------------------------------------------------------------------------------

LARGE = 900 * 1024 * 1024
GROWTH = 20 * 1024 * 1024


def peak(pooler):
    """Largest resident size so far, bytes."""
    with open(f"/proc/{pooler.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@pytest.mark.slow(240)
def test_a_message_of_900_mb_streams_both_ways(make_pooler):
    """The server reads it, counts it, and answers with one as large; the pooler does not grow."""
    counted = []
    piece = b"x" * (1 << 20)

    def serve(sock):
        sock.sendall(WELCOME)
        header = sock.recv(5, 0x100)
        left = total = struct.unpack("!I", header[1:])[0] - 4
        while left:
            left -= len(sock.recv(min(left, 1 << 20)))
        counted.append(total)
        sock.sendall(message("T", struct.pack("!H", 1) + cstr("x") + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0)))
        sock.sendall(b"D" + struct.pack("!IHI", LARGE + 10, 1, LARGE))
        for _ in range(LARGE // len(piece)):
            sock.sendall(piece)
        sock.sendall(message("C", cstr("SELECT 1")) + READY)
        sock.recv(1)

    with scripted(serve) as server:
        pooler = make_pooler(databases={"p0": {"host": "127.0.0.1", "port": server.port}})
        with pooler.login(timeout=120) as wire:
            before = peak(pooler)
            wire.send(b"Q" + struct.pack("!I", LARGE + 4))
            for _ in range(LARGE // len(piece)):
                wire.send(piece)
            assert wire.recv().type == "T"
            assert counted == [LARGE]
            header = wire.raw(11)
            assert header[:1] == b"D"
            left = LARGE - len(wire.buffer)
            assert set(wire.buffer) <= {ord("x")}
            wire.buffer = b""
            while left:
                left -= len(wire.sock.recv(min(left, 1 << 20)))
            assert [wire.recv().type for _ in range(2)] == ["C", "Z"]
            assert peak(pooler) - before < GROWTH
