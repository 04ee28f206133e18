"""Every command of the console, said by everybody who may or may not say it."""

import os

import pytest

from support.system import daemon_user, until
from support.wire import SYNC, ServerError, Wire, bind, describe, execute, parse, query

pytestmark = pytest.mark.since("1.25")

DENIED = "admin access needed"
TOPICS = ["CLIENTS", "CONFIG", "DATABASES", "HELP", "LISTS", "PEERS", "PEER_POOLS", "POOLS", "SERVERS", "SOCKETS", "ACTIVE_SOCKETS", "STATS",
          "STATS_TOTALS", "STATS_AVERAGES", "USERS", "VERSION", "TOTALS", "MEM", "DNS_HOSTS", "DNS_ZONES", "STATE"]
FAKES = ["client_encoding", "default_transaction_isolation", "standard_conforming_strings", "datestyle", "timezone"]
# A command, what an admin gets (a tag, or an error in brackets), and what a stats user gets: None is the same.
COMMANDS = [
    *((f"SHOW {topic}", "SHOW", None) for topic in TOPICS + FAKES),
    *((f"SELECT {topic}", "SHOW", None) for topic in ("VERSION", "timezone")),
    *((f"SET {name} = 'x'", "SET", None) for name in FAKES),
    ("SHOW FDS", "SHOW", DENIED),
    ("SHOW", "[invalid]", None), ("SHOW HBA", "[invalid]", None), ("SHOW POOLS p0", "[invalid]", None),
    ("SET query_timeout = 5", "SET query_timeout=5", DENIED), ("SET query_timeout TO '0.5'", "SET query_timeout=0.5", DENIED),
    ("SET nosuch = 1", "[SET failed]", DENIED), ("SET query_timeout = many", "[SET failed]", DENIED),
    ("SET x", "[invalid]", None), ("SET x =", "[invalid]", None), ("SET extra_float_digits = 3", "[SET failed]", DENIED),
    ("RELOAD", "RELOAD", DENIED), ("RELOAD p0", "[invalid]", None),
    ("PAUSE p1", "PAUSE", DENIED), ("PAUSE nosuch", "[no such database: nosuch]", DENIED),
    ("PAUSE pgbouncer", "[cannot pause admin db: pgbouncer]", DENIED), ("RESUME p1", "RESUME", DENIED),
    ("RESUME p1", "[database p1 is not paused]", DENIED), ("RESUME nosuch", "[no such database: nosuch]", DENIED),
    ("RESUME", "[pooler is not paused/suspended]", DENIED),
    ("PAUSE", "PAUSE", DENIED), ("PAUSE", "[already suspended/paused]", DENIED), ("PAUSE p0", "[already suspended/paused]", DENIED),
    ("KILL p0", "[already suspended/paused]", DENIED), ("SUSPEND", "[already suspended/paused]", DENIED), ("RESUME", "RESUME", DENIED),
    ("DISABLE p1", "DISABLE", DENIED), ("ENABLE p1", "ENABLE", DENIED), ("DISABLE", "[a database is required]", DENIED),
    ("ENABLE", "[a database is required]", DENIED), ("DISABLE nosuch", "[no such database: nosuch]", DENIED),
    ("ENABLE nosuch", "[no such database: nosuch]", DENIED), ("DISABLE pgbouncer", "[cannot disable admin db: pgbouncer]", DENIED),
    ("ENABLE pgbouncer", "[cannot enable admin db: pgbouncer]", DENIED),
    ("RECONNECT", "RECONNECT", DENIED), ("RECONNECT p0", "RECONNECT", DENIED), ("RECONNECT nosuch", "[no such database: nosuch]", DENIED),
    ("RECONNECT pgbouncer", "[cannot reconnect admin db: pgbouncer]", DENIED),
    ("WAIT_CLOSE", "WAIT_CLOSE", DENIED), ("WAIT_CLOSE p0", "WAIT_CLOSE", DENIED), ("WAIT_CLOSE nosuch", "[no such database: nosuch]", DENIED),
    ("WAIT_CLOSE pgbouncer", "[cannot wait in admin db: pgbouncer]", DENIED),
    ("KILL p1", "KILL", DENIED), ("RESUME p1", "RESUME", DENIED), ("KILL nosuch", "[no such database: nosuch]", DENIED),
    ("KILL pgbouncer", "[cannot kill admin db: pgbouncer]", DENIED), ("KILL", "KILL", DENIED),
    ("KILL_CLIENT 9999999", "[client not found]", DENIED), ("KILL_CLIENT x", "[invalid client pointer supplied]", DENIED),
    ("KILL_CLIENT", "[invalid client pointer supplied]", DENIED),
    ("SUSPEND x", "[invalid]", None), ("SHUTDOWN NOW", "[invalid]", None),
    *((text, "[invalid]", None) for text in ("", ";", "BEGIN", "COMMIT", "SELECT 1", "DISCARD ALL", "DEALLOCATE ALL", "RELOAD; RELOAD", "HELP")),
    ("A23456789012345 x", "[invalid]", None), ("A234567890123456", "[bad arguments]", None), (f"PAUSE {'p' * 64}", "[bad arguments]", None),
]
# Those that would end the test are tried last, each on a pooler of its own.
ENDINGS = ["SHUTDOWN", "SHUTDOWN WAIT_FOR_SERVERS", "SHUTDOWN WAIT_FOR_CLIENTS"]


def said(result):
    if result.error:
        assert list(result.error) == ["S", "C", "M"] and result.error["S"] == "ERROR" and result.error["C"] == "08P01"
        return f"[{result.error['M']}]"
    (tag,) = result.tags
    return tag


def expected(sql, admin, stats, user):
    answer = f"[{stats}]" if user == "stats" and stats else admin
    return f"[invalid command '{sql}', use SHOW HELP;]" if answer == "[invalid]" else answer


@pytest.fixture(params=["tcp", "own uid"])
def admin(request, pooler):
    """The two kinds of admin: one by name, and the daemon's own user over the Unix socket."""
    if request.param == "tcp":
        with pooler.console() as wire:
            yield wire
        return
    if daemon_user() is not None:
        os.seteuid(daemon_user().pw_uid)
    try:
        wire = Wire(path=pooler.unix_path)
    finally:
        os.seteuid(os.getuid())
    wire.login("pgbouncer", "pgbouncer")
    pooler.wait_log("pgbouncer access from unix socket")
    yield wire
    wire.close()


def walk(pooler, wire, user):
    for sql, for_admins, for_stats in COMMANDS:
        result = wire.ask(sql)
        assert said(result) == expected(sql, for_admins, for_stats, user), sql
        assert result.status == "I"
    assert pooler.alive


@pytest.mark.goal("G21")
def test_admins(pooler, admin):
    with pooler.login("app", "p1") as client:
        client.query("SELECT 1")
        walk(pooler, admin, "admin")


@pytest.mark.goal("G21")
def test_stats_users(pooler):
    with pooler.console("stats") as wire:
        before = wire.query("SHOW CONFIG").rows, wire.query("SHOW DATABASES").rows
        walk(pooler, wire, "stats")
        for ending in ENDINGS:
            assert said(wire.ask(ending)) == f"[{DENIED}]"
        assert (wire.query("SHOW CONFIG").rows, wire.query("SHOW DATABASES").rows) == before
        assert wire.query("SHOW STATE").rows[0] == ["active", "yes"]


@pytest.mark.ours
@pytest.mark.parametrize("user", ["admin", "stats"])
def test_the_extended_protocol_has_the_same_rights(pooler, user):
    """What is refused there is refused here, with the same text; only what drivers say unasked is answered."""
    harmless = {"", ";", "BEGIN", "COMMIT", "SELECT 1", "DISCARD ALL", "DEALLOCATE ALL", "SET extra_float_digits = 3"}
    with pooler.login("app", "p1") as client, pooler.console(user) as wire:
        client.query("SELECT 1")
        for sql, for_admins, for_stats in COMMANDS:
            wire.send(parse("", sql) + bind() + describe("P") + execute() + SYNC)
            result = wire.result()
            if sql in harmless:
                assert result.error is None
            else:
                assert said(result) == expected(sql, for_admins, for_stats, user), sql
            assert result.status == "I"


@pytest.mark.parametrize("user, auth_type, text", [
    ("app", "trust", "not allowed"), ("app", "md5", "not allowed"), ("pgbouncer", "trust", "not allowed"),
    ("nosuch", "trust", '"trust" authentication failed')] + [
    pytest.param(user, auth_type, "not allowed", marks=pytest.mark.ours, id=f"{user}-{auth_type}")
    for user in ("app", "nosuch") for auth_type in ("plain", "md5", "scram-sha-256")
    if (user, auth_type) != ("app", "md5")])
@pytest.mark.goal("G21")
def test_others_do_not_come_in(make_pooler, user, auth_type, text):
    pooler = make_pooler(ini={"auth_type": auth_type}, userlist={"app": "secret", "admin": "SecurePass2024!", "pgbouncer": "x"})
    with pooler.wire() as wire:
        wire.startup(user, "pgbouncer")
        wire.expect_fatal(text)
    assert not [c for c in pooler.show("CLIENTS") if c["user"] == user]


def test_everybody_reads_with_auth_type_any(make_pooler):
    pooler = make_pooler(ini={"auth_type": "any"})
    for user in ("nosuch", "app", "stats"):
        with pooler.login(user, "pgbouncer") as wire:
            assert wire.query("SHOW POOLS").rows
            assert said(wire.ask("RELOAD")) == f"[{DENIED}]"
    with pooler.login("admin", "pgbouncer") as wire:
        assert said(wire.ask("RELOAD")) == "RELOAD"


def test_rights_of_an_open_connection_outlive_the_list(pooler):
    with pooler.console() as wire:
        pooler.ini["admin_users"] = "other"
        pooler.write()
        assert said(wire.ask("RELOAD")) == "RELOAD"
        assert said(wire.ask("RELOAD")) == "RELOAD", "rights are decided at login"
        with pytest.raises(ServerError, match="not allowed"):
            pooler.console()


def test_the_console_has_a_name_in_small_letters(pooler):
    with pytest.raises(ServerError, match="no such database: PGBOUNCER"):
        pooler.login("admin", "PGBOUNCER")


def test_a_full_pooler_lets_admins_in(make_pooler):
    pooler = make_pooler(ini={"max_client_conn": 2})
    clients = [pooler.login() for _ in range(2)]
    with pooler.console() as wire:
        assert wire.query("SHOW POOLS").rows
        with pytest.raises(ServerError, match="max_client_conn"):
            pooler.login()
    for client in clients:
        client.close()


def test_settings_that_only_a_restart_changes_say_so(pooler):
    with pooler.console() as wire:
        result = wire.query("SET listen_port = 1234")
        assert result.tags == ["SET listen_port=1234"]
        if pooler.binary.ours:
            assert result.notices == [{"S": "NOTICE", "C": "00000", "M": "listen_port can only be changed by a restart"}]
        assert pooler.setting("listen_port") == str(pooler.port)
        assert said(wire.ask("SET Listen_Port = junk")) in ("SET Listen_Port=junk", "[SET failed]")


def test_several_consoles_at_once_each_get_their_own_answer(pooler):
    """Waiting commands of several consoles end with what they wait for, others are answered meanwhile."""
    with pooler.login("app", "p0") as busy, pooler.login("app", "p1") as free, pooler.console() as one, pooler.console() as two, \
            pooler.console() as three:
        busy.query("BEGIN")
        free.query("SELECT 1")
        one.send(query("PAUSE p0"))
        pooler.wait_log("PAUSE 'p0' command issued")
        assert two.query("RECONNECT p0").tags == ["RECONNECT"]
        three.send(query("WAIT_CLOSE p0"))
        pooler.wait_log("WAIT_CLOSE 'p0' command issued")
        assert one.recv_or_none(0.3) is None and three.recv_or_none(0.1) is None
        for _ in range(3):
            assert two.query("SHOW VERSION").rows
        busy.query("COMMIT")
        assert one.result().tags == ["PAUSE"]
        assert three.result().tags in (["PAUSE"], ["WAIT_CLOSE"])
        two.query("RESUME p0")
        assert busy.query("SELECT 1").value == "1" and free.query("SELECT 2").value == "2"


def test_a_console_that_leaves_while_it_waits_harms_nobody(pooler):
    with pooler.login() as busy, pooler.console() as other:
        busy.query("BEGIN")
        with pooler.console() as waiting:
            waiting.send(query("PAUSE"))
            pooler.wait_log("PAUSE command issued")
        until(lambda: len([c for c in other.query("SHOW CLIENTS").dicts if c["database"] == "pgbouncer"]) == 1)
        busy.query("COMMIT")
        assert other.query("RESUME").tags == ["RESUME"]
        assert busy.query("SELECT 1").value == "1"
