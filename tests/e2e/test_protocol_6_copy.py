"""protocol.md 6: copies and function calls at their edges, and clients and servers that go at any byte.

Where it can be, the same bytes go to PostgreSQL directly, and every reply must be the same.
"""

import random
import socket
import struct

import pytest

from support.postgres import ROLES
from support.slicer import send_cut
from support.system import holds, until
from support.way import in_background, pump, serve, shut
from support.wire import FLUSH, SYNC, Wire, bind, close, cstr, describe, execute, message, parse, query, startup_packet

pytestmark = pytest.mark.since("1.25")

GOOD, BAD = message("d", b"1\n"), message("d", b"no number\n")
DONE, FAIL = message("c"), message("f", cstr("given up"))
COPY = "COPY copy6 FROM STDIN"


def copying(*more):
    """A copy by the extended protocol, with what follows its Execute."""
    return parse("", COPY) + bind() + execute() + b"".join(more)


def call(oid, *arguments):
    body = struct.pack("!IHHH", oid, 1, 0, len(arguments)) + b"".join(struct.pack("!I", len(a)) + a for a in arguments)
    return message("F", body + struct.pack("!H", 0))


INT4PL, INT4DIV, NO_FUNCTION = 177, 154, 999_999

# Bytes, and how many ReadyForQuery they are answered with.
CONVERSATIONS = {
    "copy in by a simple query": (query(COPY) + GOOD + GOOD + DONE, 1),
    "empty copy": (query(COPY) + DONE, 1),
    "copy fails": (query(COPY) + GOOD + FAIL, 1),
    "copy of nonsense": (query(COPY) + BAD + DONE, 1),
    "nonsense, then fail": (query(COPY) + BAD + GOOD + FAIL, 1),
    "copy into nowhere": (query("COPY nowhere FROM STDIN") + GOOD + DONE, 1),
    "data for nothing": (GOOD + DONE + FAIL + query("SELECT 1"), 1),
    "data in a transaction that copies nothing": (query("BEGIN") + GOOD + DONE + query("COMMIT"), 2),
    "a statement after the copy": (query(f"{COPY}; SELECT count(*) FROM copy6") + GOOD + DONE, 1),
    "two copies in one query": (query(f"{COPY}; {COPY}") + GOOD + DONE + GOOD + DONE, 1),
    "the first of two copies fails": (query(f"{COPY}; {COPY}") + GOOD + FAIL + GOOD + DONE + query("SELECT 1"), 2),
    "the second of two copies fails": (query(f"{COPY}; {COPY}") + GOOD + DONE + GOOD + FAIL + query("SELECT 1"), 2),
    "copy in a transaction": (query("BEGIN") + query(COPY) + GOOD + DONE + query("ROLLBACK"), 3),
    "failed copy in a transaction": (query("BEGIN") + query(COPY) + BAD + DONE + query("SELECT 1") + query("ROLLBACK"), 4),
    "extended copy": (copying(GOOD, DONE, SYNC), 1),
    "extended copy that fails": (copying(GOOD, FAIL, SYNC), 1),
    "extended copy of nonsense": (copying(BAD, DONE, SYNC) + query("SELECT 1"), 2),
    "Syncs inside the copy": (copying(SYNC, GOOD, SYNC, GOOD, DONE, SYNC) + query("SELECT 1"), 2),
    "Flushes inside the copy": (copying(FLUSH, GOOD, FLUSH, DONE, FLUSH, SYNC), 1),
    "a Sync before the CopyDone": (query(COPY) + SYNC + GOOD + SYNC + DONE + query("SELECT 1"), 2),
    "batch after the copy in one go": (copying(GOOD, DONE) + parse("", "SELECT 1") + bind() + execute() + SYNC, 1),
    "batch after the failed copy is skipped": (copying(GOOD, FAIL) + parse("", "SELECT 1") + bind() + execute() + SYNC, 1),
    "copies in a pipeline": (copying(GOOD, DONE, SYNC) + copying(GOOD, FAIL, SYNC) + copying(DONE, SYNC) + query("SELECT 1"), 4),
    "copy after an error in the batch": (parse("", "SELECT 1/0") + bind() + execute() + copying(GOOD, DONE, SYNC) + query("SELECT 1"), 2),
    "copy out": (query("COPY (SELECT generate_series(1, 3)) TO STDOUT"), 1),
    "copy out is no copy mode": (query("COPY (SELECT generate_series(1, 3)) TO STDOUT") + DONE + GOOD + FAIL + query("SELECT 1"), 2),
    "copy out that fails under way": (query("COPY (SELECT 1 / (2 - n) FROM generate_series(1, 3) n) TO STDOUT") + query("SELECT 1"), 2),
    "extended copy out": (parse("", "COPY (VALUES (1), (2)) TO STDOUT") + bind() + describe("P") + execute() + SYNC, 1),
    "copy out and in": (query(f"COPY (VALUES (1)) TO STDOUT; {COPY}") + GOOD + DONE, 1),
    "large copy": (query(COPY) + message("d", b"7\n" * 50_000) * 4 + DONE, 1),
    "function call": (call(INT4PL, b"40", b"2"), 1),
    "function call that fails": (call(INT4DIV, b"1", b"0") + query("SELECT 1"), 2),
    "function that does not exist": (call(NO_FUNCTION) + query("SELECT 1"), 2),
    "function call in a transaction": (query("BEGIN") + call(INT4PL, b"1", b"1") + query("COMMIT"), 3),
    "function call in a failed transaction": (query("BEGIN") + query("SELECT 1/0") + call(INT4PL, b"1", b"1") + query("ROLLBACK"), 4),
    "function calls in a pipeline": (call(INT4PL, b"1", b"1") + call(INT4DIV, b"1", b"0") + call(INT4PL, b"2", b"2"), 3),
    "function call behind a batch": (parse("", "SELECT 1") + bind() + execute() + SYNC + call(INT4PL, b"1", b"1"), 2),
}


def replies(wire, readies):
    got = []
    while readies:
        answer = wire.recv()
        fields = tuple((k, v) for k, v in answer.fields.items() if k not in "LRF") if answer.type == "E" else answer.body
        got.append((answer.type, fields))
        readies -= answer.type == "Z"
    return got


@pytest.fixture
def table(pg):
    """The table that is copied into, in both databases."""
    for name in ("p0", "p1"):
        pg.run_psql(name, "DROP TABLE IF EXISTS copy6; CREATE TABLE copy6 (n int); GRANT ALL ON copy6 TO PUBLIC")
    yield
    for name in ("p0", "p1"):
        pg.run_psql(name, "DROP TABLE IF EXISTS copy6")


@pytest.fixture
def one_server(make_pooler, table):
    return make_pooler(ini={"default_pool_size": 1})


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("how", ["at once", "in pieces"])
def test_conversation(one_server, pg, name, how):
    """The same as PostgreSQL's, and the server is free for others afterwards."""
    data, readies = CONVERSATIONS[name]
    with Wire(pg.port).login("app", "p1", ROLES["app"][0]) as direct, Wire(path=one_server.unix_path) as wire:
        wire.login("app", "p0")
        direct.send(data)
        if how == "at once":
            wire.send(data)
        else:
            send_cut(wire.sock, data, random.Random(name))
        assert replies(wire, readies) == replies(direct, readies)
        if "nonsense" in name:
            # an end of the copy that comes behind the server's own keeps the server until the next request
            assert wire.query("SELECT 1").value == "1"
        with one_server.login() as other:
            until(lambda: one_server.pool()["sv_active"] == 0, what="the server is free")
            assert other.query("SELECT 'free'").value == "free"
        assert wire.query("SELECT count(*) FROM copy6").value == direct.query("SELECT count(*) FROM copy6").value


@pytest.mark.parametrize("late", [DONE, FAIL, GOOD + DONE, GOOD + FAIL, GOOD])
def test_late_messages_from_a_client_without_a_server_are_discarded(one_server, late):
    with one_server.login() as holder, one_server.login() as wire:
        wire.query("SELECT 1")
        holder.query("BEGIN")
        for byte in late:
            wire.send(bytes([byte]))
        holds(lambda: one_server.pool()["cl_waiting"] == 0, 0.2, what="no server is asked for")
        holder.query("COMMIT")
        assert wire.query("SELECT 2").value == "2"


@pytest.mark.parametrize("end", [DONE, FAIL])
def test_a_copy_that_the_server_ended_keeps_the_pair_until_the_client_said_so_and_asked_again(one_server, end):
    with one_server.login() as wire, one_server.login() as other:
        wire.send(query(COPY))
        assert wire.recv().type == "G"
        wire.send(BAD)
        # PostgreSQL looks at the rows when it has a buffer full of them
        wire.send(message("d", b"1\n" * 40_000) * 2)
        assert wire.result().error["C"] == "22P02"
        other.send(query("SELECT 'other'"))
        assert other.recv_or_none(0.3) is None, "linked: the client may still send rows"
        wire.send(GOOD + end)
        assert other.recv_or_none(0.3) is None, "linked until the next request is answered"
        assert wire.query("SELECT 1").value == "1"
        assert other.result().value == "other"


@pytest.mark.parametrize("sent", [b"", DONE])
def test_a_client_that_leaves_after_such_a_copy_costs_the_server(one_server, sent):
    wire = one_server.login()
    wire.send(query(COPY))
    assert wire.recv().type == "G"
    wire.send(BAD + message("d", b"1\n" * 40_000) * 2)
    assert wire.result().error["C"] == "22P02"
    wire.send(sent)
    wire.close()
    one_server.wait_log("client disconnect while server was not ready")
    with one_server.login() as other:
        assert other.query("SELECT 1").value == "1"


def test_a_copy_holds_its_server(one_server):
    with one_server.login() as wire, one_server.login() as other:
        wire.send(query(COPY))
        assert wire.recv().type == "G"
        other.send(query("SELECT 'other'"))
        assert other.recv_or_none(0.3) is None
        wire.send(GOOD + DONE)
        assert wire.result().tags == ["COPY 1"]
        assert other.result().value == "other"


def test_statement_pooling_lets_copies_pass(make_pooler, table):
    pooler = make_pooler(ini={"default_pool_size": 1, "pool_mode": "statement"})
    with pooler.login() as wire:
        wire.send(query(COPY) + GOOD + DONE)
        assert wire.result().tags == ["COPY 1"]
        wire.send(copying(GOOD, FAIL, SYNC))
        assert wire.result().error["C"] == "57014"


# --- gone at any byte ----------------------------------------------------------------------------------------------------------

SESSION = (query("SELECT 1") + parse("s", "SELECT $1::int") + describe("S", "s") + bind("", "s", [7]) + execute() + SYNC
           + query("BEGIN") + query(COPY) + GOOD + DONE + query("ROLLBACK") + copying(GOOD, FAIL, SYNC) + call(INT4PL, b"1", b"2")
           + close("S", "s") + SYNC + query("SELECT 'last'") + message("X"))


@pytest.mark.slow(300)
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_client_gone_at_any_byte(make_pooler, table, mode):
    """Whatever part of a session was sent, the next client finds a clean server and nothing of what was not committed."""
    pooler = make_pooler(ini={"default_pool_size": 1, "pool_mode": mode})
    rng = random.Random(6)
    for offset in range(len(SESSION) + 1):
        with pooler.login() as wire:
            wire.send(SESSION[:offset])
            if rng.random() < 0.3:
                # some leave when answers have come already
                wire.recv_or_none(0.01)
            if rng.random() < 0.3:
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with pooler.login() as other:
            got = other.query(f"SELECT {offset}, (SELECT count(*) FROM copy6)")
            assert got.rows == [[str(offset), "0"]] and got.status == "I", f"offset {offset}"
    until(lambda: [r for r in pooler.show("CLIENTS") if r["database"] == "p0"] == [], what="no client is left")
    row = pooler.pool()
    assert (row["cl_active"], row["cl_waiting"], row["sv_active"]) == (0, 0, 0)


class CutShort:
    """A way to PostgreSQL that breaks after so many bytes of the answers that follow the login."""

    def __init__(self, target):
        self._target, self.limit = target, None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        serve(self._listener, self._join)

    def _join(self, near):
        far = socket.create_connection(("127.0.0.1", self._target))
        in_background(pump, near, far)
        in_background(self._answer, far, near)

    def _answer(self, source, sink):
        """The login passes whole: it ends with the first ReadyForQuery."""
        seen, left = b"", None
        try:
            while data := source.recv(65536):
                if left is None:
                    seen += data
                    if b"Z\0\0\0\5I" in seen:
                        left = self.limit
                    sink.sendall(data)
                    continue
                sink.sendall(data[:left])
                left -= len(data)
                if left <= 0:
                    break
        except OSError:
            pass
        shut(source, sink)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()


@pytest.mark.slow(300)
def test_server_gone_at_any_byte(make_pooler, pg, table):
    """The client gets what the server said, whole or not, then a clean end; nobody else notices."""
    data = SESSION[:-5]
    with Wire(pg.port).login("app", "p1", ROLES["app"][0]) as direct:
        direct.send(data)
        expected = b""
        for _ in range(8):
            while True:
                got = direct.recv()
                expected += message(got.type, got.body)
                if got.type == "Z":
                    break
    with CutShort(pg.port) as cut:
        databases = {"p0": {"host": "127.0.0.1", "port": pg.port, "dbname": "p0"},
                     "cut": {"host": "127.0.0.1", "port": cut.port, "dbname": "p1"}}
        pooler = make_pooler(databases=databases, ini={"server_login_retry": 0.05})
        with pooler.login() as honest:
            for offset in range(1, len(expected)):
                cut.limit = offset
                with pooler.wire() as wire:
                    wire.startup("app", "cut")
                    wire.finish_login("app")
                    wire.send(data)
                    got = b""
                    try:
                        while chunk := wire.sock.recv(65536):
                            got += chunk
                    except ConnectionResetError:
                        pass
                check_cut(got, expected, offset)
                if offset % 20 == 0:
                    assert honest.query(f"SELECT {offset}").value == str(offset)
        assert pooler.alive


CRASHED = message("E", b"SFATAL\0C08P01\0Mserver conn crashed?\0\0")


def check_cut(got, expected, offset):
    """A part of the right answers, then nothing, or at the end of a message the error."""
    got = got.removesuffix(CRASHED)
    assert got == expected[:len(got)], f"offset {offset}"


def test_client_gone_at_any_byte_of_its_login(make_pooler):
    """It leaves nothing behind."""
    pooler = make_pooler(ini={"auth_type": "plain"})
    login = startup_packet({"user": "app", "database": "p0"}) + message("p", cstr("app-secret")) + query("SELECT 1")
    for offset in range(len(login) + 1):
        with pooler.wire() as wire:
            wire.send(login[:offset])
    until(lambda: len(pooler.show("CLIENTS")) == 1, 10, what="only the console is left")
    with pooler.login() as wire:
        assert wire.query("SELECT 1").value == "1"
