"""Servers that never end what they say: the pooler closes the connection before it has kept much."""

import struct

import pytest

from support.wire import SYNC, bind, execute, parse, query
from test_protocol_2_framing import GROWTH, WELCOME, peak, read_message
from test_servers import scripted

pytestmark = pytest.mark.ours

ENDLESS = struct.pack("!I", 0x7FFFFF00)
# What a server says at most: enough to be seen in the pooler's memory, and a test that fails ends all the same.
MOST = 200 << 20


def flood(sock, piece):
    for _ in range(MOST // len(piece)):
        sock.sendall(piece)


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
