"""The same bytes through Debian's pgbouncer and through ours: what the client sees is compared message by message.

The package's version is older; conversations are those that it knows. Skipped where it is not installed.
"""

import copy
import random
import re
import struct
from pathlib import Path

import pytest

from support import system
from support.pooler import Binary, Pooler
from support.slicer import send_cut
from support.wire import CANCEL_REQUEST, FLUSH, GSSENC_REQUEST, SSL_REQUEST, SYNC, Closed, ServerError, Wire, bind, close, cstr, describe, execute, message, parse, query, startup_packet
from test_protocol_6_copy import CONVERSATIONS, DONE, table  # noqa: F401 - a fixture

DEBIAN = Path("/usr/sbin/pgbouncer")

pytestmark = [pytest.mark.ours, pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's pgbouncer is not installed")]


@pytest.fixture(scope="module")
def debian():
    """Debian's program as a `Binary`, where it is."""
    old = Binary.__new__(Binary)
    old.path, old.ours, old.version = DEBIAN, False, (1, 18, 0)
    return old


@pytest.fixture
def both(make_pooler, debian, pg):
    """Two poolers with one configuration: Debian's and ours."""
    made = []

    def make(**what):
        old = Pooler(debian, pg, **copy.deepcopy(what)).start()
        made.append(old)
        return old, make_pooler(**what)

    yield make
    for old in made:
        old.stop()
        system.remove_dir(old.dir)


def everything(wire, readies, seconds=1.5, longest=15):
    """All messages up to a number of ReadyForQuery, or to the end, or to a silence."""
    got = []
    wire.settimeout(seconds if readies is None else longest)
    while readies is None or readies > 0:
        try:
            answer = wire.recv()
        except Closed:
            return [*got, "end"]
        except TimeoutError:
            return [*got, "silence"]
        got.append(comparable(answer))
        if readies is not None:
            readies -= answer.type == "Z"
    return got


def comparable(answer):
    """What may differ is masked: cancel keys, lines in PostgreSQL's source, process ids."""
    if answer.type == "K":
        return "K", len(answer.body)
    if answer.type in "EN":
        return answer.type, tuple((k, re.sub(r"\d{4,}", "N", v)) for k, v in answer.fields.items() if k not in "LRF")
    return answer.type, answer.body


def compare(poolers, data, readies=None, user="app", database="p0", login=True, cut=False, seconds=1.5):
    seen = []
    for pooler in poolers:
        with Wire(path=pooler.unix_path) as wire:
            if login:
                wire.login(user, database, pooler.userlist.get(user))
            if cut:
                send_cut(wire.sock, data, random.Random(1))
            else:
                wire.send(data)
            seen.append(everything(wire, readies, seconds))
    old, ours = seen
    assert ours == old
    return ours


# --- startup -------------------------------------------------------------------------------------------------------------------


def packet(code, body=b"", length=None):
    return struct.pack("!II", 8 + len(body) if length is None else length, code) + body


# Ends of what a stranger may say first.
STRANGERS = {
    "protocol 2": packet(0x20000),
    "protocol 4": packet(0x40000, b"\0\0"),
    "a length below the header": packet(0x30000, b"", 4),
    "a second byte": b"\0\1\0\x20\0\3\0\0",
    "a password first": b"p\0\0\0\x06x\0",
    "a query first": query("SELECT 1"),
    "no user": packet(0x30000, cstr("database") + cstr("p0") + b"\0"),
    "an empty user": packet(0x30000, cstr("user") + cstr("") + b"\0"),
    "an unknown parameter": startup_packet({"user": "app", "geqo": "off"}),
    "an unknown user": startup_packet({"user": "nosuch", "database": "p0"}),
    "an unknown database": startup_packet({"user": "app", "database": "nowhere"}),
    "a cancel request of wrong length": packet(CANCEL_REQUEST, b"\0" * 7),
    "a cancel request for nobody": packet(CANCEL_REQUEST, b"\0" * 8),
    "zeroes": b"\0" * 64,
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers(both, name):
    compare(both(), STRANGERS[name], login=False)


@pytest.mark.parametrize("code", [SSL_REQUEST, GSSENC_REQUEST])
def test_encryption_is_declined(both, code):
    seen = []
    for pooler in both():
        with Wire(path=pooler.unix_path) as wire:
            wire.send(packet(code))
            seen.append(wire.raw(1))
            wire.login("app", "p0")
    assert seen == [b"N", b"N"]


@pytest.mark.parametrize("params", [{}, {"application_name": "x", "TimeZone": "Asia/Tokyo"}, {"DateStyle": "german", "client_encoding": "LATIN1"}])
def test_login_reply(both, params):
    """The types and their order; the values of every parameter. The newer release tracks one parameter more."""
    seen = []
    for pooler in both():
        pooler.login().close()
        with pooler.login(**params) as wire:
            extra = ("IntervalStyle",)
            parameters = {k: v for k, v in wire.parameters.items() if k not in extra}
            kinds = "".join(m.type for m in wire.login_messages if m.type != "S")
            seen.append((kinds, parameters))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("auth_type, password", [("md5", "app-secret"), ("md5", "wrong"), ("scram-sha-256", "app-secret"), ("plain", "app-secret"), ("plain", "wrong")])
def test_authentication(both, auth_type, password):
    seen = []
    for pooler in both(ini={"auth_type": auth_type}):
        with pooler.wire() as wire:
            wire.startup("app", "p0")
            try:
                wire.finish_login("app", password)
                seen.append(wire.auth_requests)
            except Exception as error:  # noqa: BLE001 - compared as it is
                seen.append((wire.auth_requests, str(error)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("data", [message("p", b"\0"), startup_packet({"user": "app"}), query("SELECT 1")])
def test_instead_of_a_password(both, data):
    seen = []
    for pooler in both(ini={"auth_type": "md5"}):
        with pooler.wire() as wire:
            wire.startup("app", "p0")
            assert wire.recv().type == "R"
            wire.send(data)
            seen.append(everything(wire, None))
    assert seen[0] == seen[1]


# --- messages ------------------------------------------------------------------------------------------------------------------

SQL = [
    "SELECT 1", "", ";;", "SELECT 1; SELECT 2", "SELECT 1/0", "SELECT 1; SELECT 1/0; SELECT 2", "BEGIN; SELECT 1; COMMIT", "SET TimeZone = 'Asia/Tokyo'",
    "SELECT generate_series(1, 1000)", "SELECT repeat('x', 100000)", "DO $$ BEGIN RAISE NOTICE 'look'; END $$", "SELECT NULL, ''", "DISCARD ALL", "SELEC",
]


@pytest.mark.parametrize("sql", SQL)
def test_simple_queries(both, sql):
    compare(both(), query(sql) * 3, 3)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_copies_and_function_calls(both, table, name, pg):  # noqa: F811
    data, readies = CONVERSATIONS[name]
    poolers = both()
    seen = []
    for pooler, longest in zip(poolers, (3, 15)):
        pg.run_psql("p0", "TRUNCATE copy6")
        with Wire(path=pooler.unix_path) as wire:
            wire.login("app", "p0")
            wire.send(data)
            seen.append(everything(wire, readies, longest=longest))
    if "silence" in seen[0]:
        pytest.skip("the older release lost its place; test_protocol_6_copy compares with PostgreSQL itself")
    assert seen[1] == seen[0]


BATCHES = {
    "one": parse("", "SELECT 1") + bind() + describe("P") + execute() + SYNC,
    "with parameters": parse("", "SELECT $1::int + 1") + describe("S") + bind("", "", [41]) + execute() + SYNC,
    "an error": parse("", "SELECT 1/0") + bind() + execute() + parse("", "SELECT 2") + bind() + execute() + SYNC,
    "a portal in pieces": parse("", "SELECT generate_series(1, 5)") + bind() + execute("", 2) + execute("", 2) + execute("", 2) + SYNC,
    "a named portal": parse("", "SELECT generate_series(1, 5)") + bind("p") + execute("p", 2) + close("P", "p") + execute("p", 2) + SYNC,
    "Sync alone": SYNC,
    "an unknown portal": execute("nosuch") + SYNC,
    "an unknown statement without a name": close("S") + bind() + SYNC,
    "empty text": parse("", "") + bind() + execute() + SYNC,
    "flushes": parse("", "SELECT 1") + FLUSH + bind() + FLUSH + execute() + FLUSH + SYNC,
    "notices": parse("", "DO $$ BEGIN RAISE NOTICE 'look'; END $$") + bind() + execute() + SYNC,
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("cut", [False, True])
def test_extended_batches(both, name, cut):
    compare(both(), BATCHES[name], 1, cut=cut)


def test_batches_in_a_pipeline(both):
    compare(both(), b"".join(BATCHES.values()), len(BATCHES))


@pytest.mark.parametrize("data", [message("z", b"abcd"), message("\x01"), message("T"), b"Q\0\0\0\3", b"Q\xff\xff\xff\xff", b"P\0\0\0\0", message("X"),
                                  message("d", b"late") + DONE + query("SELECT 1") + message("X")])
def test_what_a_client_may_not_say(both, data):
    compare(both(), data)


def test_a_password_message_after_the_login(both):
    compare(both(), message("p", b"x\0"))


# --- pools ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["BEGIN; SELECT 1; COMMIT", "SELECT 1"])
def test_statement_pooling(both, sql):
    compare(both(ini={"pool_mode": "statement"}), query(sql), seconds=1)


@pytest.mark.parametrize("sql", ["BEGIN", "BEGIN; SELECT 1"])
def test_transactions_in_statement_pooling(both, sql):
    """Ours passes on what came before the ReadyForQuery that betrays the transaction; the end is the same."""
    seen = []
    for pooler in both(ini={"pool_mode": "statement"}):
        with pooler.login() as wire:
            wire.send(query(sql))
            seen.append(everything(wire, None)[-2:])
    assert seen[0] == seen[1]


def test_an_invalid_value_at_startup(both):
    seen = []
    for pooler in both():
        with pooler.login(TimeZone="Nowhere/At_All") as wire:
            wire.send(query("SELECT 1"))
            seen.append(everything(wire, None))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("ini", [{"query_timeout": 1}, {"idle_transaction_timeout": 1}, {"client_idle_timeout": 1}])
def test_timeouts(both, ini):
    seen = []
    for pooler in both(ini=ini):
        with pooler.login() as wire:
            if "query_timeout" in ini:
                wire.send(query("SELECT pg_sleep(10)"))
            elif "idle_transaction_timeout" in ini:
                wire.query("BEGIN")
            seen.append(everything(wire, None, 5))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("setting", ["query_wait_timeout", "query_timeout"])
def test_timeouts_in_the_queue(both, setting):
    seen = []
    for pooler in both(ini={"default_pool_size": 1}):
        with pooler.login() as holder, pooler.login() as wire:
            pooler.admin(f"SET {setting} = 1")
            if setting == "query_timeout":
                pooler.admin("PAUSE")
            else:
                holder.query("BEGIN")
            wire.send(query("SELECT 1"))
            seen.append(everything(wire, None, 5))
    assert seen[0] == seen[1]


def test_a_server_that_is_terminated(both, pg):
    seen = []
    for pooler in both():
        with pooler.login() as wire:
            pid = wire.query("BEGIN; SELECT pg_backend_pid()").value
            pg.sql("SELECT pg_terminate_backend(%s)", int(pid))
            seen.append(everything(wire, None))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("ini", [{"disable_pqexec": 1}, {"max_packet_size": 1000}])
def test_settings_of_the_protocol(both, ini):
    compare(both(ini=ini), query("SELECT 1 --" + "x" * 2000))


@pytest.mark.parametrize("size", [512, 1024])
def test_small_buffers(both, size):
    data = b"".join(query("SELECT 1 --" + "x" * n) for n in range(size - 20, size + 10))
    compare(both(ini={"pkt_buf": size}), data, 30)


# --- console -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["SHOW nothing", "SELECT 1", "SHOW", "PAUSE nosuch", "RESUME", "RESUME p0", "DISABLE", "ENABLE nosuch", "RECONNECT nosuch",
                                 "SET nosuch = 1", "KILL nosuch", "PAUSE pgbouncer", "SET default_pool_size = 7", "SET application_name = 'x'", "PAUSE; RESUME"])
def test_console_answers(both, sql):
    compare(both(), query(sql), user="admin", database="pgbouncer", seconds=0.7)


@pytest.mark.parametrize("user", ["admin", "stats"])
def test_console_words_that_are_not_utf8(both, user):
    words = b'"\xe9t\xe9"'
    commands = [word + b" " + words for word in b"PAUSE RESUME KILL DISABLE ENABLE RECONNECT WAIT_CLOSE SHOW RELOAD SHUTDOWN".split()]
    commands += [words, words + b" x", b"SET " + words + b" = 1", b"SET log_stats = '\xe9'", b"SET timezone = '\xe9'"]
    data = b"".join(message("Q", command + b"\0") for command in commands)
    compare(both(), data, len(commands), user=user, database="pgbouncer")


def test_the_lines_of_clients_that_are_closed(both):
    """A client's closing line, its server's, and then the error it is told."""
    logs = []
    for pooler in both():
        with pooler.console() as console:
            with pooler.login("app", "p0") as client:
                client.query("BEGIN")
                console.query("KILL p0")
                client.expect_fatal("database removed")
            with pooler.login("app", "p1") as client:
                client.query("SELECT 1")
                console.query("DISABLE p1")
                with pytest.raises(ServerError, match='database "p1" is disabled'):
                    pooler.login("app", "p1")
                console.query("KILL p1")
                client.expect_fatal("database removed")
        pooler.wait_log(re.compile("pgbouncer/admin.*closing because"))
        lines = [re.sub(r"0x[0-9a-f]+|:\d+ |age=\d+s", "N", line.partition("] ")[2]) for line in pooler.log().splitlines()]
        # an idle server goes before or after the clients
        logs.append([line for line in lines if re.search("closing because|pooler error", line) and not re.search("S-.*p1/|admin", line)])
    old, ours = logs
    assert ours == old and len(ours) == 7


def test_switches_are_shown_as_they_were_set(both):
    """A switch is an int: whatever number it got is what SHOW CONFIG has, while 0 alone is off."""
    poolers = both(ini={"log_stats": 7, "tcp_keepalive": "-1", "so_reuseport": "0x2", "log_connections": "00"})
    names = {"log_stats", "tcp_keepalive", "so_reuseport", "log_connections", "log_disconnections", "disable_pqexec", "syslog"}
    for pooler in poolers:
        for command in ["log_disconnections = 2", "disable_pqexec = 2", "syslog = '-0'"]:
            pooler.admin(f"SET {command}")
        shown = {row["key"]: row["value"] for row in pooler.show("CONFIG") if row["key"] in names}
        assert shown == {"log_stats": "7", "tcp_keepalive": "-1", "so_reuseport": "2", "log_connections": "0", "log_disconnections": "2",
                         "disable_pqexec": "0", "syslog": "0"}
        with pooler.login("app") as client:
            client.query("SELECT 1")
        pooler.wait_log(re.compile("p0/app@.* closing because: client unexpected eof"))
        assert "login attempt" not in pooler.log()
    for value in ["on", "1.0", "1k", ""]:
        compare(poolers, query(f"SET log_stats = '{value}'"), 1, user="admin", database="pgbouncer")


@pytest.mark.parametrize("topic", ["SOCKETS", "ACTIVE_SOCKETS"])
def test_the_buffer_of_who_asks(both, topic):
    """The query itself is in the buffer, in front of what came with it and behind what was answered before."""
    queries = [[f"SHOW {topic}"], [f" show  {topic} ;"], [f"SHOW {topic}", "SHOW VERSION"], ["SHOW VERSION", "SHOW nothing", f"SHOW {topic}", "RESUME"]]
    columns = ["recv_pos", "pkt_pos", "pkt_remain", "send_pos", "send_remain", "pkt_avail", "send_avail"]
    seen = []
    for pooler in both():
        with Wire(path=pooler.unix_path) as wire:
            wire.login("admin", "pgbouncer")
            for batch in queries * 2:
                wire.send(b"".join(map(query, batch)))
                results = [wire.result() for _ in batch]
                rows = next(result.dicts for result in results if "recv_pos" in result.names)
                seen.append((pooler.binary.ours, [[row[column] for column in columns] for row in rows]))
    old, ours = ([rows for whose, rows in seen if whose == which] for which in (False, True))
    assert ours == old and old[0] == [["18" if topic == "SOCKETS" else "25", "0", "0", "0", "0", "18" if topic == "SOCKETS" else "25", "0"]]


# --- start ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [
    {},
    {"databases": {}},
    {"ini": {"auth_file": None}},
    {"ini": {"auth_type": "any"}},
    {"users": {"app": {"pool_mode": "session"}, "other": {"pool_mode": "session"}}},
    {"databases": {"p0": {"host": "127.0.0.1", "pool_size": 3, "auth_user": "asks"}, "p1": {"host": "127.0.0.1", "user": "app"}, "*": {"host": "127.0.0.1"}}},
], ids=str)
def test_descriptors_expected_at_start(both, what):
    wanted = re.compile(r"max_client_conn: \d+, max expected fd use: \d+")
    old, ours = (wanted.search(pooler.log())[0] for pooler in both(**what))
    assert ours == old
