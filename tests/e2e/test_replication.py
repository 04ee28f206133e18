"""Replication through the pooler: PostgreSQL's own tools run to completion, and what a replication client sees, message by
message (pooling.md 9, protocol.md 3)."""

import re
import struct

import pytest

from support import system
from support.postgres import Postgres
from support.system import holds, until
from support.wire import Closed, ServerError, message, query

pytestmark = pytest.mark.since("1.23")

POSTGRES_EPOCH_US = 946_684_800_000_000


@pytest.fixture
def replicating(make_pooler):
    """A pooler for every database there is, so that physical clients find an entry whatever name they give."""
    def make(start=True, **ini):
        pooler = make_pooler(start=False, ini=ini)
        pooler.databases["*"] = {"host": "127.0.0.1", "port": pooler.pg.port}
        pooler.write()
        return pooler.start() if start else pooler

    return make


@pytest.fixture
def slots(pg):
    """Names of replication slots that are gone after the test."""
    names = []

    def name(text):
        names.append(text)
        return text

    yield name
    for slot in names:
        def dropped(slot=slot):
            rows = pg.sql("SELECT active FROM pg_replication_slots WHERE slot_name = %s", slot)
            if rows and not rows[0][0]:
                pg.sql("SELECT pg_drop_replication_slot(%s)", slot)
            return not pg.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", slot)

        until(dropped, 15, what=f"slot {slot} is dropped")


def tool(pooler, name, *args, dbname=None, timeout=60):
    """Runs one of PostgreSQL's programs against the pooler; it must succeed."""
    dsn = f"host=127.0.0.1 port={pooler.port} user=app" + (f" dbname={dbname}" if dbname else "")
    return system.run([pooler.pg.bin / name, "-d", dsn, *args], timeout=timeout, switch_user=True)


def lsn(pg):
    return pg.sql("SELECT pg_current_wal_lsn()::text")[0][0]


def replication_of(pooler, topic, user="app"):
    """Replication and state of this user's sockets."""
    return sorted((r["replication"], r["state"]) for r in pooler.show(topic) if r["user"] == user)


# --- the tools -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["transaction", "statement", "session"])
def test_pg_receivewal(replicating, pg, slots, mode):
    pooler = replicating(pool_mode=mode)
    slot = slots(f"receive_{mode}")
    directory = system.fresh_dir("wal")
    tool(pooler, "pg_receivewal", "-D", directory, "-S", slot, "--create-slot")
    pg.sql("SELECT pg_switch_wal()")
    pg.sql("CREATE TABLE IF NOT EXISTS received AS SELECT generate_series(1, 10000)")
    end = lsn(pg)
    pg.sql("DROP TABLE received")
    tool(pooler, "pg_receivewal", "-D", directory, "-S", slot, "--endpos", end, "-n")
    assert [f for f in directory.iterdir() if re.fullmatch(r"[0-9A-F]{24}(\.partial)?", f.name)]
    system.remove_dir(directory)
    until(lambda: not replication_of(pooler, "SERVERS"), what="no server is left of them")
    pooler.wait_log("replication client was closed")


@pytest.mark.slow(120)
def test_pg_basebackup(replicating, pg):
    """Two connections at once: the backup, and the WAL written meanwhile."""
    pooler = replicating()
    directory = system.fresh_dir("base")
    tool(pooler, "pg_basebackup", "-D", directory / "data", "-X", "stream", "-c", "fast", "--no-sync", timeout=100)
    system.run([pg.bin / "pg_verifybackup", directory / "data"], switch_user=True)
    system.remove_dir(directory)


def test_pg_recvlogical(replicating, pg, slots):
    pooler = replicating()
    slot = slots("recvlogical")
    tool(pooler, "pg_recvlogical", "-S", slot, "--create-slot", "-P", "test_decoding", dbname="p0")
    with pooler.login() as wire:
        wire.query("CREATE TABLE decoded (n int)")
        wire.query("INSERT INTO decoded SELECT generate_series(1, 1000)")
        wire.query("DROP TABLE decoded")
    got = tool(pooler, "pg_recvlogical", "-S", slot, "--start", "-f", "-", "-n", "--endpos", lsn(pg), dbname="p0")
    assert len(re.findall(r"table public.decoded: INSERT: n\[integer\]:\d+", got.stdout)) == 1000
    tool(pooler, "pg_recvlogical", "-S", slot, "--drop-slot", dbname="p0")


@pytest.mark.slow(120)
def test_create_subscription(replicating, pg, slots):
    """Another cluster subscribes: the slot, the first copy, the changes, and the end, all through the pooler."""
    pooler = replicating()
    slots("through_pooler")
    other = Postgres()
    publisher, subscriber = pg.direct("p0"), other.direct("p1")
    for side in (publisher, subscriber):
        side.execute("CREATE TABLE subscribed (n int PRIMARY KEY, t text)")
        side.execute("GRANT ALL ON subscribed TO app")
    try:
        publisher.execute("INSERT INTO subscribed SELECT n, 'first ' || n FROM generate_series(1, 500) n")
        publisher.execute("CREATE PUBLICATION published FOR TABLE subscribed")
        dsn = f"host=127.0.0.1 port={pooler.port} dbname=p0 user=app"
        subscriber.execute(f"CREATE SUBSCRIPTION through_pooler CONNECTION '{dsn}' PUBLICATION published")

        def count(like):
            return subscriber.execute("SELECT count(*) FROM subscribed WHERE t LIKE %s", (like,)).fetchone()[0]

        until(lambda: count("first %") == 500, 30, what="the first copy")
        publisher.execute("INSERT INTO subscribed SELECT n, 'later ' || n FROM generate_series(501, 1500) n")
        until(lambda: count("later %") == 1000, 30, what="changes arrive")
        assert ("logical", "active") in replication_of(pooler, "CLIENTS") and ("logical", "active") in replication_of(pooler, "SERVERS")
        subscriber.execute("ALTER SUBSCRIPTION through_pooler DISABLE")
        until(lambda: not replication_of(pooler, "SERVERS"), 30, what="the server leaves with its client")
    finally:
        subscriber.execute("DROP SUBSCRIPTION IF EXISTS through_pooler")
        publisher.execute("DROP PUBLICATION IF EXISTS published")
        publisher.execute("DROP TABLE IF EXISTS subscribed")
        for side in (publisher, subscriber):
            side.close()
        other.remove()


# --- pooling.md 9 and protocol.md 3, sentence by sentence ----------------------------------------------------------------------


def identify(wire):
    """IDENTIFY_SYSTEM: system, timeline, position, database."""
    return wire.query("IDENTIFY_SYSTEM").rows[0]


@pytest.mark.parametrize("value, shown, logged, database", [
    ("database", "logical", "database", "p0"), ("true", "physical", "yes", None), ("1", "physical", "yes", None), ("On", "physical", "yes", None),
])
def test_kinds(replicating, value, shown, logged, database):
    pooler = replicating()
    with pooler.login(replication=value) as wire:
        assert identify(wire)[3] == database
        assert replication_of(pooler, "CLIENTS") == [(shown, "active")]
        assert replication_of(pooler, "SERVERS") == [(shown, "active")]
        assert replication_of(pooler, "SOCKETS") == [(shown, "cl_active"), (shown, "sv_active")]
    pooler.wait_log(f"login attempt: db=p0 user=app tls=no replication={logged}")


@pytest.mark.parametrize("value", ["false", "off", "0", "no", "nonsense", ""])
def test_values_that_do_not_replicate(replicating, value):
    pooler = replicating()
    with pooler.login(replication=value) as wire:
        assert wire.query("SELECT 1").value == "1"
        assert [kind for kind, _ in replication_of(pooler, "CLIENTS")] == ["none"]
    pooler.wait_log("tls=no replication=no")


def test_they_behave_as_in_session_mode_whatever_the_pool_mode(replicating):
    """The server stays, and a statement pool lets transactions pass."""
    pooler = replicating(pool_mode="statement", default_pool_size=5)
    with pooler.login(replication="database") as wire:
        first = wire.query("SELECT pg_backend_pid()").value
        wire.query("SET work_mem = '123kB'")
        wire.query("BEGIN")
        wire.query("COMMIT")
        assert wire.query("SELECT pg_backend_pid()").value == first
        assert wire.query("SHOW work_mem").value == "123kB"


def test_each_gets_a_new_server_of_its_own_that_nobody_gets_after_it(replicating, pg):
    pooler = replicating()
    with pooler.login() as ordinary:
        idle = ordinary.query("SELECT pg_backend_pid()").value
        with pooler.login(replication="database") as a, pooler.login(replication="database") as b:
            pids = [wire.query("SELECT pg_backend_pid()").value for wire in (a, b)]
            assert len({idle, *pids}) == 3
        pooler.wait_log("replication client was closed", 2)
        until(lambda: not {int(p) for p in pids} & set(pg.backends("p0")))
        assert ordinary.query("SELECT pg_backend_pid()").value == idle


def test_the_server_is_opened_at_the_first_message_when_the_reply_is_cached(replicating):
    pooler = replicating()
    with pooler.login() as ordinary:
        ordinary.query("SELECT 1")
        with pooler.login(replication="true") as wire:
            assert wire.parameters["server_version"].startswith("15")
            holds(lambda: replication_of(pooler, "SERVERS") == [("none", "idle")], 0.3)
            identify(wire)
            assert ("physical", "active") in replication_of(pooler, "SERVERS")


def test_the_server_is_opened_at_login_when_no_reply_is_cached(replicating):
    pooler = replicating()
    with pooler.login(replication="true") as wire:
        assert replication_of(pooler, "SERVERS") == [("physical", "active")]
        assert wire.parameters["server_version"].startswith("15") and wire.parameters["integer_datetimes"] == "on"
        identify(wire)


@pytest.mark.ours
def test_what_a_replication_server_says_is_not_told_to_others(replicating):
    """A physical connection has no database, so its server_encoding is not that of the database; its values are its client's."""
    pooler = replicating()
    with pooler.login(replication="true", application_name="streams", TimeZone="Asia/Tokyo"), pooler.login() as wire:
        assert wire.parameters["server_encoding"] == "UTF8"
        assert wire.parameters["TimeZone"] == "UTC" and wire.parameters["application_name"] == ""
        assert wire.query("SHOW TimeZone").value == "UTC"


def test_tracked_parameters_travel_in_the_startup_packet(replicating):
    pooler = replicating(verbose=2)
    with pooler.login() as other:
        other.query("SELECT 1")
    with pooler.login(replication="database", TimeZone="Asia/Tokyo", application_name="it's", DateStyle="German") as wire:
        assert wire.query("SHOW TimeZone").value == "Asia/Tokyo"
        assert wire.query("SHOW application_name").value == "it's"
        assert wire.query("SHOW DateStyle").value == "German, DMY"
        assert wire.query("SELECT source FROM pg_settings WHERE name = 'TimeZone'").value == "client"
    assert "varcache_apply: " not in pooler.log()


def test_options_pass_unchanged(replicating):
    """An ordinary client may not set these; a replication client's options are not even looked into."""
    pooler = replicating()
    options = "-c geqo=off  -c work_mem=77kB --search_path=a,\\ b"
    with pooler.login(replication="database", options=options) as wire:
        assert wire.query("SHOW geqo").value == "off"
        assert wire.query("SHOW work_mem").value == "77kB"
        assert wire.query("SHOW search_path").value == "a, b"
    with pytest.raises(ServerError, match="unsupported startup parameter in options: geqo"):
        pooler.login(options=options)


def test_prepared_statements_are_not_tracked(replicating):
    pooler = replicating(max_prepared_statements=10)
    with pooler.connect() as c:
        assert c.execute("SELECT 1").fetchone() == (1,)
    with pooler.login(replication="database") as wire:
        identify(wire)
        clients = [r for r in pooler.show("CLIENTS") if r["replication"] == "logical"]
        assert [r["prepared_statements"] for r in clients] == ["0"]


def test_a_full_pool_makes_room_by_evicting_idle_servers(replicating):
    pooler = replicating(default_pool_size=2)
    with pooler.login() as a, pooler.login() as b, pooler.login(replication="database") as wire:
        a.query("BEGIN"), b.query("BEGIN")
        a.query("COMMIT"), b.query("COMMIT")
        assert pooler.pool()["sv_idle"] == 2
        identify(wire)
        pooler.wait_log("closing because: evicted")
        assert pooler.log().count("closing because: evicted") == 1
        assert pooler.pool()["sv_active"] == 1 and pooler.pool()["sv_idle"] == 1


def test_a_full_pool_without_idle_servers_makes_them_wait(replicating):
    pooler = replicating(default_pool_size=1)
    with pooler.login() as busy, pooler.login(replication="database") as wire:
        busy.query("BEGIN")
        wire.send(query("IDENTIFY_SYSTEM"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        assert wire.recv_or_none(0.5) is None
        busy.query("COMMIT")
        assert wire.result().rows[0][3] == "p0"
        busy.send(query("SELECT 1"))
        assert busy.recv_or_none(0.5) is None, "the pool's only place is taken as long as the replication client is there"
        wire.close()
        assert busy.result().value == "1"


def test_an_ordinary_client_that_came_first_is_served_first(replicating):
    pooler = replicating(default_pool_size=1)
    with pooler.login() as busy, pooler.login() as first, pooler.login(replication="database") as wire:
        busy.query("BEGIN")
        first.send(query("SELECT 'first'"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        wire.send(query("IDENTIFY_SYSTEM"))
        until(lambda: pooler.pool()["cl_waiting"] == 2)
        busy.query("COMMIT")
        assert first.result().value == "first"
        assert wire.result().rows[0][3] == "p0"


def test_a_refused_login_is_told_to_that_client_alone(replicating, pg):
    pg.sql("ALTER ROLE app2 NOREPLICATION")
    try:
        pooler = replicating()
        with pooler.wire() as wire, pooler.login("app2") as other:
            wire.startup("app2", "p0", replication="database")
            other.query("SELECT 1")
            with pytest.raises(ServerError) as refused:
                wire.finish_login("app2")
                identify(wire)
            assert list(refused.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", "login failed")]
            pooler.wait_log("ERROR S: login failed: FATAL: must be superuser or replication role to start walsender")
            pooler.wait_log("closing because: login failed", 2)
            assert other.query("SELECT 1").value == "1"
    finally:
        pg.sql("ALTER ROLE app2 REPLICATION")


def test_a_client_that_leaves_while_its_server_is_being_opened(replicating):
    from test_servers import scripted

    with scripted(lambda sock: sock.recv(1)) as mute:
        pooler = replicating(start=False)
        pooler.databases["mute"] = {"host": "127.0.0.1", "port": mute.port}
        pooler.write()
        pooler.start()
        wire = pooler.wire()
        wire.startup("app", "mute", replication="true")
        until(lambda: mute.served)
        until(lambda: [kind for kind, _ in replication_of(pooler, "SERVERS")] == ["physical"])
        wire.close()
        pooler.wait_log("closing because: replication client disconnected")
        until(lambda: not replication_of(pooler, "SERVERS"))


def test_what_the_server_is_told(replicating):
    """database etc., replication, all tracked values of the client, options, then user."""
    import socket
    import threading

    packets = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            size = struct.unpack("!I", sock.recv(4, socket.MSG_WAITALL))[0]
            packets.append(sock.recv(size - 4, socket.MSG_WAITALL))
            sock.close()

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        pooler = replicating(start=False)
        pooler.databases["told"] = {"host": "127.0.0.1", "port": listener.getsockname()[1], "dbname": "p0", "timezone": "UTC"}
        pooler.ini["server_tls_sslmode"] = "disable"
        pooler.write()
        pooler.start()
        with pooler.wire() as wire:
            wire.startup("app", "told", replication="1", options=" -c a=b\\ c ", application_name="me", client_encoding="LATIN1")
            until(lambda: packets)
    words = [w.decode() for w in packets[0][4:].split(b"\0")]
    pairs = [(key, value) for key, value in zip(words[::2], words[1::2]) if key]
    ends = [("options", " -c a=b\\ c "), ("user", "app")]
    assert pairs == [("database", "p0"), ("timezone", "UTC"), ("replication", "yes"), ("client_encoding", "LATIN1"), ("application_name", "me"), *ends]


def test_a_server_to_be_closed_is_closed_at_once(replicating):
    """No waiting for the client as in other pools in session mode."""
    pooler = replicating()
    with pooler.login(replication="database") as wire:
        identify(wire)
        pooler.admin("RECONNECT p0")
        wire.expect_fatal("database configuration changed")
    pooler.wait_log("closing because: database configuration changed", 2)


def test_paused_database_makes_them_wait(replicating):
    pooler = replicating()
    with pooler.login(replication="database") as wire, pooler.login() as ordinary:
        identify(wire)
        ordinary.query("SELECT 1")
        wire.close()
        pooler.wait_log("replication client was closed")
        pooler.admin("PAUSE p0")
        with pooler.login(replication="database") as late:
            late.send(query("IDENTIFY_SYSTEM"))
            assert late.recv_or_none(0.5) is None
            pooler.admin("RESUME p0")
            assert late.result().rows[0][3] == "p0"


def test_query_wait_timeout_applies(replicating):
    pooler = replicating(default_pool_size=1, query_wait_timeout=1)
    with pooler.login() as busy, pooler.login(replication="database") as wire:
        busy.query("BEGIN")
        wire.send(query("IDENTIFY_SYSTEM"))
        wire.expect_fatal("query_wait_timeout")
        assert busy.query("COMMIT").tags == ["COMMIT"]


def test_scram_secret_is_passed_through(make_pooler, pg):
    """A replication client authenticates as any other does."""
    (secret,), = pg.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
    pooler = make_pooler(ini={"auth_type": "scram-sha-256"}, userlist={"app": secret})
    with pooler.login(password="app-secret", replication="database") as wire:
        assert identify(wire)[3] == "p0"
    with pytest.raises(ServerError, match="password authentication failed|SASL authentication failed"):
        pooler.login(password="wrong", replication="database")


# --- COPY BOTH -----------------------------------------------------------------------------------------------------------------


def start_streaming(wire, position=None):
    """START_REPLICATION from the current position; the server has begun to copy."""
    wire.send(query(f"START_REPLICATION PHYSICAL {position or identify(wire)[2]}"))
    assert wire.recv().type == "W"


def status_update(position="0/0"):
    high, low = (int(part, 16) for part in position.split("/"))
    at = (high << 32) + low
    return message("d", b"r" + struct.pack("!QQQQB", at, at, at, 0, 1))


def test_copy_both_goes_both_ways_and_ends(replicating, pg):
    pooler = replicating()
    with pooler.login(replication="true") as wire:
        start = identify(wire)[2]
        start_streaming(wire, start)
        wire.send(status_update(start))
        pg.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000))")
        received = 0
        while received < 100_000:
            got = wire.recv()
            assert got.type == "d"
            received += len(got.body)
        wire.send(message("c"))
        rest = []
        while not rest or rest[-1].type != "Z":
            rest.append(wire.recv())
        kinds = "".join(m.type for m in rest).lstrip("d")
        assert re.fullmatch("cC+Z", kinds), "the server ends its copy, completes the command, and is ready"
        assert identify(wire)[2] is not None, "the connection goes on"


def test_a_copy_both_that_the_server_refuses(replicating):
    pooler = replicating()
    with pooler.login(replication="true") as wire:
        got = wire.ask("START_REPLICATION PHYSICAL FFFFFFFF/0")
        assert got.error["S"] == "ERROR" and got.status == "I"
        assert identify(wire)


def test_a_client_that_leaves_in_the_middle_of_copy_both(replicating, pg):
    pooler = replicating()
    wire = pooler.login(replication="true")
    start_streaming(wire)
    wire.close()
    pooler.wait_log("client disconnect while server was not ready")
    until(lambda: not pg.sql("SELECT 1 FROM pg_stat_replication"), 20)


def test_a_server_that_dies_in_the_middle_of_copy_both(replicating, pg):
    pooler = replicating()
    with pooler.login(replication="true") as wire:
        start_streaming(wire)
        pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        got = []
        with pytest.raises(Closed):
            while True:
                got.append(wire.recv())
        errors = [m.fields["M"] for m in got if m.type == "E"]
        assert errors[-1] == "server conn crashed?" and "terminating connection due to administrator command" in errors


def test_statistics_of_a_streaming_client(replicating, pg):
    """One query is open from START_REPLICATION to its ReadyForQuery; its bytes are counted as they pass."""
    pooler = replicating()

    def counted():
        return next({k: int(v) for k, v in r.items() if k.startswith("total")} for r in pooler.show("STATS") if r["database"] == "p0")

    with pooler.login(replication="true") as wire:
        identify(wire)
        before = counted()
        start_streaming(wire, identify(wire)[2])
        pg.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000))")
        received = 0
        while received < 100_000:
            received += len(wire.recv().body)
        wire.send(message("c"))
        while wire.recv().type != "Z":
            pass
        after = until(lambda: (now := counted())["total_query_time"] > before["total_query_time"] and now)
        grown = {k: after[k] - before[k] for k in after}
        assert grown["total_query_count"] == 2 and grown["total_xact_count"] == 2, "IDENTIFY_SYSTEM and START_REPLICATION"
        assert grown["total_sent"] > 100_000 and grown["total_server_assignment_count"] == 0
