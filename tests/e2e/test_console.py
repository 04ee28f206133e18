"""The console: grammar, rights, errors, and every command that changes something."""

import re
import signal
import struct
import time

import pytest

from support.system import holds, until
from support.wire import CANCEL_REQUEST, Closed, ServerError, message, query

ADMIN_COMMANDS = ["SET default_pool_size = 5", "RELOAD", "PAUSE", "RESUME", "DISABLE p0", "ENABLE p0", "RECONNECT", "KILL p0",
                  "SUSPEND", "SHUTDOWN", "WAIT_CLOSE p0", "SHOW FDS",
                  pytest.param("KILL_CLIENT 1", marks=pytest.mark.since("1.24"))]
READ_COMMANDS = ["SHOW HELP", "SHOW CONFIG", "SHOW DATABASES", "SHOW POOLS", "SHOW CLIENTS", "SHOW SERVERS", "SHOW SOCKETS",
                 "SHOW ACTIVE_SOCKETS", "SHOW LISTS", "SHOW MEM", "SHOW USERS", "SHOW VERSION", "SHOW STATS", "SHOW STATS_TOTALS",
                 "SHOW STATS_AVERAGES", "SHOW TOTALS", "SHOW DNS_HOSTS", "SHOW DNS_ZONES"]


@pytest.fixture
def console(pooler):
    with pooler.console() as wire:
        yield wire


def refuse(console, command, text, code="08P01"):
    got = console.ask(command)
    assert got.error == {"S": "ERROR", "C": code, "M": text} and list(got.error) == ["S", "C", "M"]
    assert got.status == "I"


@pytest.mark.parametrize("command", ADMIN_COMMANDS)
def test_stats_users_may_not(pooler, command):
    with pooler.console("stats") as console:
        refuse(console, command, "admin access needed")
        assert console.query("SHOW VERSION").rows
    assert pooler.alive and pooler.setting("default_pool_size") == "20"


@pytest.mark.parametrize("command", READ_COMMANDS)
def test_stats_users_may(pooler, command):
    with pooler.console("stats") as console:
        assert console.query(command).tags == ["SHOW"]


def test_others_are_not_let_in(make_pooler):
    pooler = make_pooler(ini={"auth_type": "md5"})
    with pooler.wire() as wire:
        wire.startup("app", "pgbouncer")
        wire.expect_fatal("not allowed")


@pytest.mark.parametrize("command", ["show version", "  SHOW\t VERSION\r\n ;  \n", "SELECT version", "sElEcT VeRsIoN;", 'SHOW "version"'])
def test_grammar(console, command):
    assert console.query(command).names == ["version"]


@pytest.mark.parametrize("command", ["", "BEGIN", "SELECT 1", "SHOW", "SHOW nothing", "SHOW VERSION; SHOW VERSION", "DISCARD ALL",
                                     "nonsense", "SET x", "SET x = -1", "RELOAD x", "SUSPEND x", "SHUTDOWN x", "SHOW VERSION now"])
def test_invalid_commands(console, command):
    refuse(console, command, f"invalid command '{command}', use SHOW HELP;")
    assert console.query("SHOW VERSION").rows, "the connection survives"


def test_login_reply(pooler):
    with pooler.console() as console:
        wanted = ["server_version", "client_encoding", "server_encoding", "DateStyle", "TimeZone", "standard_conforming_strings",
                  "is_superuser"]
        assert [n for n in console.parameter_order if n in wanted][:7] == wanted
        assert console.parameters["server_version"].endswith("/bouncer") and console.parameters["is_superuser"] == "on"


@pytest.mark.parametrize("command, tag", [
    ("SET default_pool_size = 7", "SET default_pool_size=7"), ("set default_pool_size to 7 ;", "SET default_pool_size=7"),
    ("SET default_pool_size='7'", "SET default_pool_size=7"), ("SET query_timeout = '0.5'", "SET query_timeout=0.5"),
    ("SET server_check_query = 'select ''x'''", "SET server_check_query=select 'x'"), ("SET pool_mode=statement", "SET pool_mode=statement"),
])
def test_set(pooler, console, command, tag):
    assert console.query(command).tags == [tag]
    key, value = tag.removeprefix("SET ").split("=", 1)
    assert pooler.setting(key) == value


@pytest.mark.parametrize("command", ["SET nosuch = 1", "SET default_pool_size = many", "SET pool_mode = sometimes", "SET auth_type = magic"])
def test_set_refuses(pooler, console, command):
    before = pooler.show("CONFIG")
    refuse(console, command, "SET failed")
    assert pooler.show("CONFIG") == before


@pytest.mark.parametrize("command, text", [
    ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"), ("RECONNECT pgbouncer", "cannot reconnect admin db: pgbouncer"),
    ("KILL pgbouncer", "cannot kill admin db: pgbouncer"), ("DISABLE pgbouncer", "cannot disable admin db: pgbouncer"),
    ("WAIT_CLOSE pgbouncer", "cannot wait in admin db: pgbouncer"), ("DISABLE", "a database is required"),
    ("PAUSE nosuch", "no such database: nosuch"), ("RESUME nosuch", "no such database: nosuch"), ("KILL nosuch", "no such database: nosuch"),
    ("RECONNECT nosuch", "no such database: nosuch"), ("DISABLE nosuch", "no such database: nosuch"), ("ENABLE nosuch", "no such database: nosuch"),
    ("WAIT_CLOSE nosuch", "no such database: nosuch"), ("RESUME p0", "database p0 is not paused"),
    ("RESUME", "pooler is not paused/suspended"), ("ENABLE", "a database is required"),
    pytest.param("ENABLE pgbouncer", "cannot enable admin db: pgbouncer", marks=pytest.mark.since("1.25")),
    pytest.param("KILL_CLIENT 999999", "client not found", marks=pytest.mark.since("1.24")),
    pytest.param("KILL_CLIENT x", "invalid client pointer supplied", marks=pytest.mark.since("1.24")),
])
def test_command_errors(console, command, text):
    refuse(console, command, text)


def test_pause_and_resume(pooler, console, pg):
    with pooler.login() as a, pooler.login() as b:
        a.query("BEGIN")
        console.send(query("PAUSE"))
        assert console.recv_or_none(0.4) is None, "a transaction is still open"
        b.send(query("SELECT 'after'"))
        a.query("SELECT 1")
        a.query("COMMIT")
        assert console.result().tags == ["PAUSE"]
        until(lambda: not [s for s in pooler.show("SERVERS") if s["database"] == "p0"])
        refuse(console, "PAUSE", "already suspended/paused")
        assert b.recv_or_none(0.2) is None
        assert console.query("RESUME").tags == ["RESUME"]
        assert b.result().value == "after" and a.query("SELECT 2").value == "2"
    pooler.wait_log("PAUSE command issued")
    pooler.wait_log("RESUME command issued")


@pytest.mark.since("1.25")
def test_state_shows_pause_and_suspend(pooler, console):
    for command, state in (("PAUSE", "paused"), ("RESUME", "active"), ("SUSPEND", "suspended"), ("RESUME", "active")):
        console.query(command)
        assert [r["key"] for r in console.query("SHOW STATE").dicts if r["value"] == "yes"] == [state]


def test_pause_of_one_database(pooler, console):
    with pooler.login("app", "p0") as a, pooler.login("app", "p1") as b:
        a.query("SELECT 1")
        assert console.query("PAUSE p0").tags == ["PAUSE"]
        a.send(query("SELECT 'resumed'"))
        assert a.recv_or_none(0.3) is None
        assert b.query("SELECT 1").value == "1"
        assert next(d for d in pooler.show("DATABASES") if d["name"] == "p0")["paused"] == "1"
        console.query("RESUME p0")
        assert a.result().value == "resumed"


def test_pause_waits_for_sessions_in_session_mode(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "session"})
    a = pooler.login()
    a.query("SELECT 1")
    with pooler.console() as console:
        console.send(query("PAUSE"))
        assert console.recv_or_none(0.5) is None
        a.close()
        assert console.result().tags == ["PAUSE"]
        console.query("RESUME")


def test_a_console_that_waits_is_read_on(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "session"})
    with pooler.login() as a:
        a.query("SELECT 1")
        with pooler.console() as console:
            console.send(query("PAUSE") + query("SHOW STATE") + query("RESUME"))
            assert console.result().rows, "the answer to SHOW"
            assert console.result().tags == ["RESUME"]
            assert a.query("SELECT 2").value == "2"
            assert console.recv_or_none(0.2) is None, "the cancelled PAUSE is answered with the next one that ends"
            console.send(message("X"))
            assert console.at_eof()
    until(lambda: len([row for row in pooler.show("CLIENTS") if row["database"] == "pgbouncer"]) == 1)


def test_what_a_console_waits_for_is_answered_among_its_other_commands(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "session"})
    a = pooler.login()
    a.query("SELECT 1")
    with pooler.console() as console:
        console.send(query("PAUSE"))
        assert console.query("SHOW VERSION").rows
        a.close()
        assert console.result().tags == ["PAUSE"]
        assert console.query("RESUME").tags == ["RESUME"]


def test_clients_connect_while_paused(pooler, console):
    with pooler.login() as warm:
        warm.query("SELECT 1")
    console.query("PAUSE")
    with pooler.login() as fresh:
        fresh.send(query("SELECT 'late'"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        console.query("RESUME")
        assert fresh.result().value == "late"


def test_suspend_and_resume(pooler, console):
    with pooler.login() as a:
        a.query("SELECT 1")
        assert console.query("SUSPEND").tags == ["SUSPEND"]
        a.send(query("SELECT 'thawed'"))
        assert a.recv_or_none(0.5) is None
        refuse(console, "SUSPEND", "already suspended/paused")
        console.query("RESUME")
        assert a.result().value == "thawed"
    with pooler.login() as again:
        assert again.query("SELECT 1").value == "1"


def test_suspend_ends_when_its_console_leaves(pooler):
    with pooler.login() as a:
        console = pooler.console()
        console.query("SUSPEND")
        console.close()
        pooler.wait_log("admin disappeared when suspended, doing RESUME")
        assert a.query("SELECT 1").value == "1"


def test_reconnect(pooler, console):
    with pooler.login() as idle, pooler.login() as busy:
        busy.query("BEGIN")
        old = busy.query("SELECT pg_backend_pid()").value
        idle_pid = idle.query("SELECT pg_backend_pid()").value
        assert console.query("RECONNECT").tags == ["RECONNECT"]
        assert busy.query("SELECT pg_backend_pid()").value == old, "the transaction ends on its server"
        busy.query("COMMIT")
        pids = {idle.query("SELECT pg_backend_pid()").value, busy.query("SELECT pg_backend_pid()").value}
        assert not pids & {old, idle_pid}


def test_wait_close(pooler, console):
    with pooler.login() as busy:
        busy.query("BEGIN")
        console.query("RECONNECT p0")
        console.send(query("WAIT_CLOSE p0"))
        assert console.recv_or_none(0.5) is None
        busy.query("COMMIT")
        assert console.result().tags == ["WAIT_CLOSE"]


@pytest.mark.ours
def test_everybody_waits_for_his_own(pooler, console):
    """PgBouncer answers all consoles when whatever was waited for is closed, also those that wait for PAUSE."""
    with pooler.login() as one, pooler.login("app", "p1") as other, pooler.console() as second, pooler.console() as third:
        one.query("BEGIN")
        other.query("BEGIN")
        console.query("RECONNECT")
        console.send(query("WAIT_CLOSE p0"))
        second.send(query("WAIT_CLOSE"))
        third.send(query("PAUSE p1"))
        pooler.wait_log("PAUSE 'p1' command issued")
        one.query("COMMIT")
        assert console.result().tags == ["WAIT_CLOSE"]
        holds(lambda: second.recv_or_none(0.1) is None and third.recv_or_none(0.1) is None, 0.5)
        other.query("COMMIT")
        assert second.result().tags in (["PAUSE"], ["WAIT_CLOSE"]) and third.result().tags == ["PAUSE"]


def test_a_pause_by_signal_answers_who_waits(pooler, console):
    """As PAUSE at a console does, and with its tag."""
    with pooler.login() as busy:
        busy.query("BEGIN")
        console.query("RECONNECT p0")
        console.send(query("WAIT_CLOSE p0"))
        pooler.wait_log("WAIT_CLOSE 'p0' command issued")
        pooler.signal(signal.SIGUSR1)
        pooler.wait_log("got SIGUSR1, pausing all activity")
        busy.query("COMMIT")
        assert console.result().tags == ["PAUSE"]


def test_who_waits_is_answered_before_a_shutdown_is_complete(pooler, console):
    with pooler.login() as busy:
        busy.query("BEGIN")
        console.send(query("PAUSE p0"))
        pooler.wait_log("PAUSE 'p0' command issued")
        pooler.signal(signal.SIGINT)
        pooler.wait_log("got SIGINT, shutting down")
        assert busy.query("COMMIT").tags == ["COMMIT"]
        assert console.result().tags == ["PAUSE"]
        assert pooler.wait_end() == 0


def test_disable_and_enable(pooler, console):
    with pooler.login() as a:
        assert console.query("DISABLE p0").tags == ["DISABLE"]
        with pytest.raises(ServerError):
            pooler.login()
        assert a.query("SELECT 1").value == "1", "who is in goes on"
        assert next(d for d in pooler.show("DATABASES") if d["name"] == "p0")["disabled"] == "1"
        assert console.query("ENABLE p0").tags == ["ENABLE"]
        pooler.login().close()


@pytest.mark.since("1.19")
def test_disabled_database_is_named(pooler, console):
    console.query("DISABLE p0")
    with pytest.raises(ServerError) as refused:
        pooler.login()
    assert list(refused.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", 'database "p0" is disabled')]


def test_kill(pooler, console, pg):
    with pooler.login("app", "p0") as a, pooler.login("app", "p1") as b:
        a.query("SELECT 1")
        assert console.query("KILL p0").tags == ["KILL"]
        with pytest.raises((ServerError, Closed), match="database removed|closed"):
            a.query("SELECT 1")
        assert b.query("SELECT 1").value == "1"
        waiting = pooler.wire()
        waiting.startup("app", "p0")
        assert waiting.recv_or_none(0.4) is None, "new clients wait"
        console.query("RESUME p0")
        waiting.finish_login("app")
        assert waiting.query("SELECT 1").value == "1"


@pytest.mark.since("1.25")
def test_kill_without_a_name(pooler, console):
    with pooler.login("app", "p0") as a, pooler.login("app", "p1") as b:
        assert console.query("KILL").tags == ["KILL"]
        a.expect_fatal("database removed")
        b.expect_fatal("database removed")
    assert {d["name"]: d["paused"] for d in pooler.show("DATABASES")}["p0"] == "1"
    for name in ("p0", "p1"):
        console.query(f"RESUME {name}")
        pooler.login("app", name).close()


@pytest.mark.since("1.24")
def test_kill_client(pooler, console, pg):
    with pooler.login() as idle, pooler.login() as busy, pooler.login() as spared:
        busy.query("BEGIN")
        pid = int(busy.query("SELECT pg_backend_pid()").value)
        ids = {c["port"]: c["id"] for c in pooler.show("CLIENTS")}
        for wire in (idle, busy):
            port = str(wire.sock.getsockname()[1])
            assert console.query(f"KILL_CLIENT {ids[port]}").tags == ["KILL_CLIENT"]
            wire.expect_fatal("admin forced disconnect")
        until(lambda: pid not in pg.backends("p0"))
        assert spared.query("SELECT 1").value == "1"


def test_reload_command(pooler, console):
    pooler.ini["default_pool_size"] = 9
    pooler.write()
    assert console.query("RELOAD").tags == ["RELOAD"]
    assert pooler.setting("default_pool_size") == "9"
    pooler.wait_log("RELOAD command issued")


@pytest.mark.since("1.25")
def test_reload_command_with_a_broken_file(pooler, console):
    pooler.write(extra="nonsense\n")
    refuse(console, "RELOAD", "RELOAD failed, see logs for additional details", "F0000")


def test_shutdown(pooler, pg):
    with pooler.login() as a, pooler.console() as console:
        a.query("SELECT 1")
        console.send(query("SHUTDOWN"))
        assert console.at_eof() and a.at_eof()
    assert pooler.wait_end() == 0
    assert pooler.refuses()


@pytest.mark.since("1.23")
def test_shutdown_wait_for_clients(pooler):
    with pooler.login() as a, pooler.console() as console:
        assert console.query("SHUTDOWN WAIT_FOR_CLIENTS").tags == ["SHUTDOWN"]
        until(pooler.refuses)
        assert a.query("SELECT 1").value == "1", "clients that are in go on as ever"
        console.close()
        holds(lambda: pooler.alive, 0.6)
    assert pooler.wait_end() == 0
    pooler.wait_log("client connections dropped, exiting")


@pytest.mark.since("1.23")
def test_shutdown_wait_for_servers(pooler):
    with pooler.login() as busy, pooler.login() as idle, pooler.console() as console:
        busy.query("BEGIN")
        assert console.query("SHUTDOWN WAIT_FOR_SERVERS").tags == ["SHUTDOWN"]
        idle.send(query("SELECT 1"))
        idle.expect_fatal("server shutting down")
        assert busy.query("SELECT 1").value == "1"
        holds(lambda: pooler.alive, 0.6)
        assert busy.query("COMMIT").tags == ["COMMIT"]
        assert pooler.wait_end() == 0
    pooler.wait_log("server connections dropped, exiting")


def test_unknown_message_type(pooler):
    with pooler.console() as console:
        console.send(message("z"))
        console.expect_fatal("unknown pkt")


def test_console_works_while_all_servers_are_busy(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        a.query("BEGIN")
        b.send(query("SELECT 1"))
        started = time.monotonic()
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        until(lambda: pooler.pool()["maxwait_us"] > 0 or pooler.pool()["maxwait"] > 0)
        assert time.monotonic() - started < 5
        a.query("COMMIT")
        b.result()


def test_fake_set_is_answered_once(console):
    assert console.query("SET client_encoding = 'UTF8'").notices[0]["M"] == "SET ignored"
    assert console.recv_or_none(0.2) is None
    assert console.query("SHOW client_encoding").value == "UTF-8"


def test_errors_are_logged_with_and_without_prefix(pooler, console):
    refuse(console, "BEGIN", "invalid command 'BEGIN', use SHOW HELP;")
    port = console.sock.getsockname()[1]
    text = re.escape("invalid command 'BEGIN', use SHOW HELP;")
    pooler.wait_log(re.compile(rf"\] ERROR {text}\n"))
    pooler.wait_log(re.compile(rf"\] WARNING C-0x[0-9a-f]+: pgbouncer/admin@127\.0\.0\.1:{port} pooler error: {text}\n"))
    console.send(message("F", b"\0" * 8))
    pooler.wait_log(re.compile(r"\] ERROR unsupported packet type for admin console: 70\n"))
    pooler.wait_log(re.compile(r"pgbouncer/admin@\S+ pooler error: unsupported packet type for admin console: 70\n"))


def test_what_is_refused_in_a_pause_is_not_logged_as_issued(pooler, console):
    console.query("PAUSE")
    for command in ("PAUSE", "PAUSE p0", "PAUSE pgbouncer", "KILL p0", "SUSPEND"):
        refuse(console, command, "already suspended/paused")
    console.query("RESUME")
    refuse(console, "RESUME pgbouncer", "database pgbouncer is not paused")
    issued = re.findall(r"LOG (.*) command issued", pooler.log())
    assert issued == ["PAUSE", "RESUME", "RESUME 'pgbouncer'"]


def test_unknown_message_type_is_logged(pooler, console):
    console.send(message("!"))
    pooler.wait_log(re.compile(r"\] ERROR C-0x[0-9a-f]+: pgbouncer/admin@\S+ unknown pkt from client: 33/0x21\n"))


def test_refused_users_are_logged_at_the_console(pooler):
    with pytest.raises(ServerError, match="not allowed"):
        pooler.console("app")
    pooler.wait_log(re.compile(r"LOG C-0x[0-9a-f]+: pgbouncer/app@\S+ login attempt: db=pgbouncer user=app tls=no"))
    pooler.wait_log(re.compile(r"WARNING C-0x[0-9a-f]+: pgbouncer/app@\S+ pooler error: not allowed"))


@pytest.mark.ours
@pytest.mark.parametrize("auth_type, text", [("md5", "password authentication failed"), ("scram-sha-256", "SASL authentication failed"),
                                             ("plain", "password authentication failed")])
def test_the_console_does_not_tell_who_is_known(make_pooler, auth_type, text):
    pooler = make_pooler(ini={"auth_type": auth_type, "admin_users": "admin, ghost"})
    expected = {"ghost": text, "admin": text, "nosuch": "not allowed", "app": "not allowed"}
    for user, answer in expected.items():
        with pytest.raises(ServerError) as refused:
            pooler.login(user, "pgbouncer", password="guess")
        assert refused.value.message == answer, user
    for stranger in ("ghost", "nosuch"):
        pooler.wait_log(re.compile(rf"LOG C-0x[0-9a-f]+: \(nodb\)/\(nouser\)@\S+ no such user: {stranger}\n"))
    assert pooler.show("VERSION")


def test_strangers_at_a_console_that_trusts(make_pooler):
    pooler = make_pooler(ini={"auth_type": "trust", "admin_users": "admin, ghost"})
    for stranger in ("ghost", "nosuch"):
        with pytest.raises(ServerError, match='"trust" authentication failed'):
            pooler.login(stranger, "pgbouncer")


def test_one_pause_answers_every_waiting_console(pooler, console):
    with pooler.login() as client, pooler.console() as second, pooler.console() as third:
        client.query("BEGIN")
        second.send(query("PAUSE p0"))
        pooler.wait_log("PAUSE 'p0' command issued")
        third.send(query("PAUSE"))
        pooler.wait_log("PAUSE command issued")
        assert second.recv_or_none(0.5) is None and third.recv_or_none(0.1) is None
        client.query("COMMIT")
        assert second.result().tags == ["PAUSE"] and third.result().tags == ["PAUSE"]
        console.query("RESUME")
        console.query("RESUME p0")
        assert client.query("SELECT 1").value == "1"


def test_a_pause_that_was_called_off_is_not_reported_as_done(pooler, console):
    with pooler.login() as client, pooler.console() as waiting:
        client.query("BEGIN")
        waiting.send(query("PAUSE"))
        pooler.wait_log("PAUSE command issued")
        console.query("RESUME")
        client.query("COMMIT")
        client.close()
        console.query("RECONNECT")
        until(lambda: not pooler.show("SERVERS"))
        assert waiting.recv_or_none(1) is None
        assert console.query("PAUSE").tags == ["PAUSE"]
        assert waiting.result().tags == ["PAUSE"], "the next pause that completes answers it"
        console.query("RESUME")


def test_cancelling_a_waiting_pause_resumes(pooler):
    with pooler.login() as client, pooler.login() as other, pooler.console() as waiting:
        client.query("BEGIN")
        waiting.send(query("PAUSE"))
        pooler.wait_log("PAUSE command issued")
        other.send(query("SELECT 1"))
        assert other.recv_or_none(0.3) is None
        with pooler.wire() as wire:
            wire.send(struct.pack("!II", 16, CANCEL_REQUEST) + waiting.key)
            assert wire.at_eof()
        assert other.result().value == "1"
        assert waiting.recv_or_none(0.3) is None, "the cancelled command itself is not answered"
    pooler.wait_log("cancel request for console client")


def test_too_long_an_error_closes_the_connection(pooler):
    with pooler.console() as console:
        console.send(query("? " * 300))
        console.expect_fatal("failure")
    pooler.wait_log(re.compile(r"closing because: failure \(age=0s\)"))


@pytest.mark.ours
def test_commands_may_come_in_pieces(console):
    for byte in query("SHOW VERSION"):
        console.send(bytes([byte]))
    assert console.result().rows


def cancel(pooler, key):
    with pooler.wire() as wire:
        wire.send(struct.pack("!II", 16, CANCEL_REQUEST) + key)
        assert wire.at_eof()


def test_cancelling_an_idle_console_resumes_too(pooler, console):
    with pooler.console() as other, pooler.login() as client:
        client.query("SELECT 1")
        console.query("PAUSE")
        client.send(query("SELECT 2"))
        assert client.recv_or_none(0.3) is None
        cancel(pooler, other.key)
        assert client.result().value == "2"
        assert console.query("SHOW STATE").rows[0] == ["active", "yes"] if pooler.binary.version >= (1, 25) else True
    pooler.wait_log(re.compile(r"WARNING C-0x[0-9a-f]+: pgbouncer/\w+@\S+ admin cancel request for non-waiting client\?"))


def test_odd_messages(pooler):
    with pooler.console() as console:
        console.send(message("d", b"data") + message("c") + message("f", b"no\0") + query("SHOW VERSION"))
        assert console.result().rows, "copy messages are passed over"
        console.send(message("X"))
        assert console.at_eof()
    pooler.wait_log(re.compile(r"pgbouncer/admin@\S+ closing because: close req \(age="))
    with pooler.console() as console:
        console.send(message("Q", b"SHOW VERSION"))
        console.expect_fatal("incomplete query")


@pytest.mark.since("1.24")
def test_kill_client_reaches_waiting_clients_and_consoles(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.console() as console, pooler.console("stats") as other, pooler.login() as busy, pooler.login() as waiting:
        busy.query("BEGIN")
        waiting.send(query("SELECT 1"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        ids = {c["port"]: c["id"] for c in console.query("SHOW CLIENTS").dicts}
        for wire in (waiting, other):
            assert console.query(f"KILL_CLIENT {ids[str(wire.sock.getsockname()[1])]}abc").tags == ["KILL_CLIENT"]
            wire.expect_fatal("admin forced disconnect")
        until(lambda: pooler.pool()["cl_waiting"] == 0)
        assert busy.query("COMMIT").tags == ["COMMIT"]


def test_reasons_of_closed_servers_are_logged(pooler, console):
    with pooler.login("app", "p0") as idle, pooler.login("app", "p1") as busy:
        idle.query("SELECT 1")
        busy.query("BEGIN")
        # the client has its answer a moment before the pool has its server
        until(lambda: [r["sv_idle"] for r in console.query("SHOW POOLS").dicts if r["database"] == "p0"] == ["1"])
        console.query("RECONNECT")
        pooler.wait_log(re.compile(r"S-0x[0-9a-f]+: p0/app@\S+ closing because: (obsolete connection|database configuration changed) "))
        busy.query("COMMIT")
        pooler.wait_log(re.compile(r"S-0x[0-9a-f]+: p1/app@\S+ closing because: close_needed "))
        idle.query("SELECT 1")
        console.query("PAUSE p0")
        pooler.wait_log(re.compile(r"S-0x[0-9a-f]+: p0/app@\S+ closing because: pause mode "))
        console.query("RESUME p0")


@pytest.mark.since("1.25")
def test_kill_forgets_statistics(pooler, console):
    with pooler.login() as client:
        client.query("SELECT 1")
        assert [r for r in console.query("SHOW STATS").dicts if r["database"] == "p0"]
        console.query("KILL p0")
        assert not [r for r in console.query("SHOW STATS").dicts if r["database"] == "p0"]
        assert not [r for r in console.query("SHOW POOLS").dicts if r["database"] == "p0"]
        client.expect_fatal("database removed")
    console.query("RESUME p0")


@pytest.mark.since("1.24")
def test_limits_of_clients_hold_for_stats_users_but_not_for_admins(make_pooler):
    pooler = make_pooler(ini={"max_user_client_connections": 1})
    with pooler.console("stats"), pooler.console() as first, pooler.console() as second:
        with pytest.raises(ServerError, match="max_user_client_connections"):
            pooler.console("stats")
        assert first.query("SHOW VERSION").rows
        users = {u["name"]: u for u in second.query("SHOW USERS").dicts}
        if pooler.binary.version >= (1, 25):
            assert users["admin"]["current_client_connections"] == "2"


def test_auto_databases_are_made_by_some_commands(make_pooler):
    pooler = make_pooler(start=False)
    pooler.databases = {"*": pooler.backend()}
    pooler.write()
    pooler.start()
    with pooler.console() as console:
        for command in ("ENABLE auto1", "RESUME auto2"):
            refuse(console, command, f"no such database: {command.split()[1]}")
        for command in ("RECONNECT auto3", "WAIT_CLOSE auto4", "DISABLE auto5", "PAUSE auto6"):
            assert console.query(command).tags == [command.split()[0]]
            pooler.wait_log(f"registered new auto-database: {command.split()[1]}")


@pytest.mark.parametrize("command", ["PAUSE", "KILL"])
def test_auto_databases_asleep_do_not_keep_it_from_suspending(make_pooler, pg, command):
    pooler = make_pooler(databases={"*": f"host=127.0.0.1 port={pg.port}"})

    def shown():
        return [row["name"] for row in pooler.show("DATABASES")]

    def counted():
        return next(row for row in pooler.show("LISTS") if row["list"] == "databases")["items"]

    with pooler.console() as console:
        console.query("DISABLE yy")
        console.query(f"{command} zz")
        until(lambda: shown() == ["pgbouncer"], what="both sleep")
        assert counted() == "1"
        assert console.query("SUSPEND").tags == ["SUSPEND"]
        assert console.query("RESUME").tags == ["RESUME"]
        # both in one piece, for an entry that nobody uses falls asleep at the next tick
        for waking, name in (("ENABLE yy", "yy"), ("RESUME zz", "zz")):
            console.send(query(waking) + query("SHOW DATABASES"))
            assert console.result().error is None
            assert name in [row["name"] for row in console.result().dicts]


@pytest.mark.since("1.25")
def test_auto_databases_are_logged_with_who_asked_for_them(make_pooler, pg):
    pooler = make_pooler(databases={"*": f"host=127.0.0.1 port={pg.port}"})
    with pooler.login("app", "p1") as wire, pooler.console() as console:
        port = wire.sock.getsockname()[1]
        pooler.wait_log(re.compile(rf"LOG C-0x[0-9a-f]+: \(nodb\)/\(nouser\)@127\.0\.0\.1:{port} registered new auto-database: p1"))
        console.query("PAUSE zz")
        pooler.wait_log(re.compile(r"LOG C-0x[0-9a-f]+: pgbouncer/admin@\S+ registered new auto-database: zz"))


def test_the_wildcard_is_no_database(make_pooler, pg):
    pooler = make_pooler(databases={"*": f"host=127.0.0.1 port={pg.port}"})
    with pooler.console() as console:
        for _ in range(2):
            with pytest.raises(ServerError, match=r"no such database: \*"):
                pooler.login("app", "*")
            for command in ('PAUSE "*"', 'DISABLE "*"', 'RESUME "*"'):
                refuse(console, command, "no such database: *")
    assert "login failed: db=* user=app" in pooler.log()
    assert "registered new auto-database" not in pooler.log()
