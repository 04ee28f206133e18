"""pooling.md 1 to 8: clauses that no other module has, by section."""

import re
import time
from datetime import datetime

import pytest

from support.system import free_port, holds, until
from support.wire import SYNC, bind, execute, message, parse, query


def begin(wire):
    wire.query("BEGIN")


def pid(wire):
    return wire.query("SELECT pg_backend_pid()").value


def logged_at(pooler, text):
    """When the lines with `text` were logged, in seconds. The test itself may look late."""
    stamps = [line[:23] for line in pooler.log().splitlines() if text in line]
    return [datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").timestamp() for stamp in stamps]


# --- 1. objects ----------------------------------------------------------------------------------------------------------------


@pytest.mark.since("1.25")
def test_1_auto_entries_are_idle_then_dropped_unless_they_are_used_again(make_pooler, pg):
    pooler = make_pooler(databases={"*": f"host=127.0.0.1 port={pg.port}"}, ini={"autodb_idle_timeout": 1, "server_idle_timeout": 1})

    def shown():
        return "p1" in [d["name"] for d in pooler.show("DATABASES")]

    with pooler.login("app", "p1") as wire:
        wire.query("SELECT 1")
        assert shown()
    until(lambda: not shown(), 5, what="no clients and no servers: hidden")
    pooler.wait_log("dropping database 'p1' as it does not exist anymore or inactive auto-database")
    with pooler.login("app", "p1") as wire:
        assert wire.query("SELECT 1").value == "1"
    assert pooler.log().count("registered new auto-database: p1") == 2


def test_1_a_paused_auto_entry_stays(make_pooler, pg):
    pooler = make_pooler(databases={"*": f"host=127.0.0.1 port={pg.port}"}, ini={"autodb_idle_timeout": 1})
    pooler.login("app", "p1").close()
    pooler.admin("PAUSE p1")
    holds(lambda: "dropping database 'p1'" not in pooler.log(), 2)
    pooler.admin("RESUME p1")
    pooler.wait_log("dropping database 'p1'")


@pytest.mark.ours
def test_1_pools_without_clients_and_servers_are_freed(make_pooler):
    pooler = make_pooler(ini={"pool_idle_timeout": 1, "server_idle_timeout": 1})
    with pooler.login() as wire, pooler.login("app2") as stays:
        wire.query("SELECT 1")
        stays.query("SELECT 1")
        wire.close()
        pooler.wait_log(re.compile(r"LOG cleaning up idle pool for user app on db p0 because: pool idle timeout \(age= \d+s\)"))
        assert pooler.pool() is None and pooler.pool(user="app2") is not None
        assert "for user app2" not in pooler.log()
    with pooler.login() as wire:
        assert wire.query("SELECT 1").value == "1"


@pytest.mark.ours
def test_1_pools_of_a_forced_user_with_a_minimum_are_kept(make_pooler, pg):
    databases = {"p0": {"host": "127.0.0.1", "port": pg.port, "dbname": "p0", "user": "app", "password": "app-secret", "min_pool_size": 1}}
    pooler = make_pooler(databases=databases, ini={"pool_idle_timeout": 1})
    until(lambda: pooler.pool() and pooler.pool()["sv_idle"] == 1)
    holds(lambda: "cleaning up idle pool" not in pooler.log(), 1.5)


@pytest.mark.since("1.25")
def test_1_ids_count_up_and_are_never_reused(make_pooler):
    pooler = make_pooler()
    seen = []
    for _ in range(3):
        with pooler.login() as wire:
            begin(wire)
            seen += [int(r["id"]) for topic in ("CLIENTS", "SERVERS") for r in pooler.show(topic) if r["user"] == "app"]
    assert len(set(seen)) == len(seen) and seen[0] == min(seen)


@pytest.mark.since("1.25")
def test_1_the_forced_users_pool_size_counts_and_not_the_login_users(make_pooler, pg):
    databases = {"p0": {"host": "127.0.0.1", "port": pg.port, "dbname": "p0", "user": "app", "password": "app-secret"}}
    pooler = make_pooler(databases=databases, ini={"default_pool_size": 5}, users={"app": {"pool_mode": "session"}, "app2": {"pool_mode": "statement"}})
    with pooler.login("app2") as wire:
        begin(wire)
        assert pooler.pool()["pool_mode"] == "session"
        wire.query("COMMIT")


# --- 3. logging in -------------------------------------------------------------------------------------------------------------


def test_3_2_with_a_cached_reply_no_server_is_needed(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as holder:
        begin(holder)
        with pooler.login() as wire:
            assert wire.parameters["server_version"].startswith("15")


def test_3_2_a_login_waits_while_the_database_is_paused(make_pooler):
    pooler = make_pooler()
    pooler.login().close()
    pooler.admin("RECONNECT p0")
    pooler.admin("PAUSE p0")
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        assert wire.recv_or_none(0.6) is None
        pooler.admin("RESUME p0")
        wire.finish_login("app")


@pytest.mark.parametrize("setting, text", [("query_wait_timeout", "query_wait_timeout"), ("query_timeout", "query_timeout")])
def test_3_2_timeouts_of_a_login_that_waits(make_pooler, setting, text):
    pooler = make_pooler(databases={"down": {"host": "127.0.0.1", "port": free_port()}}, ini={setting: 1})
    with pooler.wire() as wire:
        wire.startup("app", "down")
        wire.expect_fatal(text)


# --- 4. getting a server -------------------------------------------------------------------------------------------------------


@pytest.mark.since("1.25")
def test_4_1_queueing_while_servers_are_waited_for_at_shutdown(make_pooler):
    pooler = make_pooler()
    with pooler.login() as wire, pooler.login() as holder:
        begin(holder)
        with pooler.console() as console:
            console.send(query("SHUTDOWN WAIT_FOR_SERVERS"))
            pooler.wait_log("SHUTDOWN")
            wire.send(query("SELECT 1"))
            wire.expect_fatal("server shutting down")
            pooler.expected_to_end = True
            holder.query("COMMIT")


def test_4_3_connections_are_opened_one_after_another(make_pooler, pg):
    """Each only after the one before it has finished its login."""
    from support.gate import Gate

    with Gate(pg.port) as gate:
        databases = {"p0": {"host": "127.0.0.1", "port": gate.port, "dbname": "p0"}}
        pooler = make_pooler(databases=databases, ini={"default_pool_size": 5, "server_tls_sslmode": "disable"})
        clients = [pooler.login() for _ in range(4)]
        begin(clients[0])
        gate.shut = True
        for wire in clients[1:]:
            wire.send(query("BEGIN"))
        until(lambda: gate.held)
        holds(lambda: len(gate.held) == 1 and pooler.pool()["sv_login"] == 1, 1)


def test_4_3_server_login_retry_counts_from_the_start_of_the_attempt(make_pooler):
    pooler = make_pooler(databases={"down": {"host": "127.0.0.1", "port": free_port()}}, ini={"server_login_retry": 2})
    with pooler.wire() as wire:
        wire.startup("app", "down")
        pooler.wait_log("closing because: connect failed", 2)
        first, second = logged_at(pooler, "closing because: connect failed")[:2]
        assert 1.5 < second - first < 3.5


@pytest.mark.since("1.25")
def test_4_3_pool_size_of_zero_is_unlimited(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 0})
    clients = [pooler.login() for _ in range(6)]
    for wire in clients:
        begin(wire)
    assert pooler.pool()["sv_active"] == 6


@pytest.mark.since("1.25")
def test_4_3_one_refused_attempt_ends_all_waiting_logins_with_the_servers_words(make_pooler, pg):
    databases = {"absent": {"host": "127.0.0.1", "port": pg.port, "dbname": "absent"}}
    pooler = make_pooler(databases=databases)
    pooler.admin("PAUSE absent")
    wires = [pooler.wire() for _ in range(3)]
    for wire in wires:
        wire.startup("app", "absent")
    until(lambda: (pooler.pool("absent") or {}).get("cl_waiting") == 3)
    pooler.admin("RESUME absent")
    for wire in wires:
        wire.expect_fatal('database "absent" does not exist', "3D000")
    assert pooler.log().count("server login failed: FATAL") == 1


@pytest.mark.since("1.25")
def test_4_3_a_server_that_will_soon_be_ready_is_waited_for(make_pooler):
    """SQLSTATE 57P03 ends nobody."""
    from test_servers import scripted

    said = message("E", b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0")
    with scripted(lambda sock: sock.sendall(said)) as server:
        pooler = make_pooler(databases={"soon": {"host": "127.0.0.1", "port": server.port}}, ini={"query_wait_timeout": 3})
        with pooler.wire() as wire:
            wire.startup("app", "soon")
            pooler.wait_log("WARNING server login failed: FATAL the database system is starting up")
            until(lambda: server.served >= 2, 5, what="another attempt")
            wire.expect_fatal("query_wait_timeout")


def test_4_5_results_of_connect_query_are_dropped(make_pooler, pg):
    databases = {"p0": {"host": "127.0.0.1", "port": pg.port, "dbname": "p0",
                        "connect_query": "SELECT generate_series(1, 1000); SET work_mem = '321kB'; SELECT 'last'"}}
    pooler = make_pooler(databases=databases)
    with pooler.login() as wire:
        got = wire.query("SHOW work_mem")
        assert got.rows == [["321kB"]] and got.tags == ["SHOW"]


def test_4_5_an_error_of_connect_query_is_logged_and_ignored(make_pooler, pg):
    databases = {"p0": {"host": "127.0.0.1", "port": pg.port, "dbname": "p0", "connect_query": "SELECT 1/0"}}
    pooler = make_pooler(databases=databases)
    with pooler.login() as wire:
        assert wire.query("SELECT 1").value == "1"
    pooler.wait_log("S: error while executing exec_on_query: ERROR: division by zero")


# --- 5. releasing a server -----------------------------------------------------------------------------------------------------


def test_5_1_a_multi_statement_query_that_leaves_a_transaction_open_in_statement_mode(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "statement"})
    with pooler.login() as wire:
        wire.send(query("BEGIN; SELECT 1"))
        wire.expect_fatal("transaction blocks not allowed in statement pooling mode")
    pooler.wait_log("closing because: transaction blocks not allowed in statement pooling mode", 2)


@pytest.mark.parametrize("data", [SYNC, message("H")])
def test_5_1_a_sync_or_flush_alone_links_a_server(make_pooler, data):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as holder, pooler.login() as wire:
        begin(holder)
        wire.send(data)
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        holder.query("COMMIT")
        until(lambda: pooler.pool()["cl_waiting"] == 0)
        left = 0 if data == SYNC else 1
        until(lambda: pooler.pool()["sv_active"] == left)
        holds(lambda: pooler.pool()["sv_active"] == left, 0.3)


def test_5_1_idle_transaction_timeout_does_not_see_a_batch_without_sync(make_pooler):
    pooler = make_pooler(ini={"idle_transaction_timeout": 1})
    with pooler.login() as wire:
        wire.send(parse("", "SELECT 1") + message("H"))
        assert wire.recv().type == "1"
        holds(lambda: wire.recv_or_none(0.1) is None, 2)
        wire.send(bind() + execute() + SYNC)
        assert wire.result().rows == [["1"]]


@pytest.mark.since("1.25")
@pytest.mark.parametrize("setting, text", [("query_timeout", "query timeout"), ("transaction_timeout", "transaction timeout")])
def test_5_1_query_timeout_and_transaction_timeout_do(make_pooler, setting, text):
    pooler = make_pooler(ini={setting: 1})
    with pooler.login() as wire:
        wire.send(parse("", "SELECT 1") + message("H"))
        assert wire.recv().type == "1"
        wire.expect_fatal(text)


@pytest.mark.parametrize("how, reason", [
    ("BEGIN", "client disconnect while server was not ready"), ("SELECT pg_sleep(3)", "client disconnect while server was not ready"),
])
def test_5_3_what_is_logged_when_a_client_leaves(make_pooler, how, reason):
    pooler = make_pooler(ini={"default_pool_size": 1})
    wire = pooler.login()
    wire.send(query(how))
    if how == "BEGIN":
        wire.result()
    else:
        until(lambda: pooler.pool()["sv_active"] == 1)
    wire.close()
    pooler.wait_log(re.compile(rf"S-0x\S+: p0/app@\S+ closing because: {reason}"))


def test_5_3_a_client_that_leaves_in_mid_message_costs_the_server(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    wire = pooler.login()
    wire.query("SELECT 1")
    wire.send(query("SELECT 2" + " " * 1000)[:600])
    until(lambda: pooler.pool()["sv_active"] == 1)
    wire.close()
    pooler.wait_log(re.compile(r"S-0x\S+: p0/app@\S+ closing because: client disconnect"))


def test_5_3_a_clean_client_leaves_its_server(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "pool_mode": "session"})
    with pooler.login() as wire:
        first = pid(wire)
        wire.send(message("X"))
    with pooler.login() as wire:
        assert pid(wire) == first


def test_5_4_a_smaller_pool_closes_what_is_too_many(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 4})
    clients = [pooler.login() for _ in range(4)]
    for wire in clients:
        begin(wire)
    for wire in clients:
        wire.query("COMMIT")
    pooler.admin("SET default_pool_size = 2")
    pooler.wait_log("closing because: too many servers in the pool", 2)
    until(lambda: pooler.pool()["sv_idle"] == 2)


def test_5_4_lifetimes_end_one_at_a_time(make_pooler):
    """At least server_lifetime / pool_size apart."""
    pooler = make_pooler(ini={"server_lifetime": 4, "default_pool_size": 4})
    clients = [pooler.login() for _ in range(3)]
    for wire in clients:
        begin(wire)
    for wire in clients:
        wire.query("COMMIT")
    pooler.wait_log("closing because: server lifetime over", 2, timeout=20)
    first, second = logged_at(pooler, "closing because: server lifetime over")[:2]
    assert second - first > 0.6


@pytest.mark.parametrize("fast", [0, 1])
def test_5_4_server_fast_close(make_pooler, fast):
    pooler = make_pooler(ini={"pool_mode": "session", "server_fast_close": fast})
    with pooler.login() as idle, pooler.login() as busy:
        first = pid(idle)
        begin(busy)
        pooler.admin("RECONNECT p0")
        if fast:
            idle.expect_fatal("database configuration changed")
            pooler.wait_log("closing because: database configuration changed", 2)
        else:
            holds(lambda: idle.recv_or_none(0.1) is None, 1)
            assert pid(idle) == first
        holds(lambda: busy.recv_or_none(0.1) is None, 0.5, what="one in a transaction is spared")
        busy.send(query("COMMIT"))
        if fast:
            assert busy.result().tags == ["COMMIT"]
            busy.expect_fatal("database configuration changed")


def test_5_4_minimum_is_kept_one_launch_a_round(make_pooler):
    pooler = make_pooler(ini={"min_pool_size": 3})
    with pooler.login():
        until(lambda: pooler.pool()["sv_idle"] == 3)
        holds(lambda: pooler.pool()["sv_idle"] == 3, 0.7)


# --- 7. timeouts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.since("1.25")
def test_7_transaction_timeout_of_one_user(make_pooler):
    pooler = make_pooler(users={"app2": {"transaction_timeout": 1}})
    with pooler.login("app2") as hit, pooler.login() as spared:
        begin(hit), begin(spared)
        hit.expect_fatal("transaction timeout")
        assert spared.query("COMMIT").tags == ["COMMIT"]


@pytest.mark.since("1.25")
def test_7_query_wait_timeout_of_one_user(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "query_wait_timeout": 60}, users={"app2": {"query_wait_timeout": 1}})
    with pooler.login("app2") as holder, pooler.login("app2") as waiter:
        begin(holder)
        waiter.send(query("SELECT 1"))
        waiter.expect_fatal("query_wait_timeout")


@pytest.mark.ours
def test_7_query_wait_timeout_of_one_user_needs_no_other_limit(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "query_wait_timeout": 0, "query_timeout": 0}, users={"app2": {"query_wait_timeout": 1}})
    with pooler.login("app2") as holder, pooler.login("app2") as waiter:
        begin(holder)
        waiter.send(query("SELECT 1"))
        waiter.expect_fatal("query_wait_timeout")


def test_7_server_connect_timeout_while_connecting(make_pooler):
    """A listener that is full takes no more connections."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        pooler = make_pooler(databases={"full": {"host": "127.0.0.1", "port": port}}, ini={"server_connect_timeout": 1, "query_wait_timeout": 4})
        with pooler.wire() as wire:
            wire.startup("app", "full")
            pooler.wait_log("closing because: connect failed")
            wire.expect_fatal("query_wait_timeout")
        for filler in fillers:
            filler.close()


def test_7_what_timeouts_are_called_in_the_log(make_pooler):
    pooler = make_pooler(ini={"client_idle_timeout": 1})
    with pooler.login() as wire:
        wire.expect_fatal("client_idle_timeout")
    pooler.wait_log("WARNING C-", 1)
    pooler.wait_log("pooler error: client_idle_timeout")
    pooler.wait_log("closing because: client_idle_timeout (age=")


# --- 8. notices ----------------------------------------------------------------------------------------------------------------


@pytest.mark.since("1.25")
def test_8_the_notice_comes_once_per_wait_and_again_for_later_waits(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "query_wait_notify": 1})
    with pooler.login() as holder, pooler.login() as waiter:
        for _ in range(2):
            begin(holder)
            waiter.send(query("SELECT 1"))
            since = time.monotonic()
            notice = waiter.recv()
            assert notice.type == "N" and notice.fields["M"].startswith("No server connection available")
            assert 1.9 < time.monotonic() - since < 4.5, "more than N whole seconds"
            holder.query("COMMIT")
            assert waiter.result().value == "1"


@pytest.mark.since("1.25")
def test_8_no_notice_to_those_who_wait_for_their_login_reply(make_pooler):
    pooler = make_pooler(databases={"down": {"host": "127.0.0.1", "port": free_port()}}, ini={"query_wait_notify": 1})
    with pooler.wire() as wire:
        wire.startup("app", "down")
        assert wire.recv_or_none(3) is None


@pytest.mark.ours
def test_8_login_notify_message(make_pooler):
    """In the login reply, between BackendKeyData and ReadyForQuery; at the console too."""
    pooler = make_pooler(ini={"login_notify_message": "pooled here"})
    for wire in (pooler.login(), pooler.console()):
        assert "".join(m.type for m in wire.login_messages[-3:]) == "KNZ"
        assert wire.login_messages[-2].fields == {"S": "NOTICE", "C": "00000", "M": "pooled here"}
        wire.close()


# --- settings of the protocol --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["parse", "function", "query"])
def test_disable_pqexec_forbids_simple_queries_alone(make_pooler, how):
    from test_protocol_6_copy import INT4PL, call

    pooler = make_pooler(ini={"disable_pqexec": 1})
    with pooler.login() as wire:
        wire.send({"parse": parse("", "SELECT 3") + bind() + execute() + SYNC, "function": call(INT4PL, b"1", b"2"), "query": query("SELECT 3")}[how])
        if how == "query":
            wire.expect_fatal("PQexec disallowed")
        else:
            assert wire.result().error is None


def test_application_name_add_host_without_a_name(make_pooler):
    pooler = make_pooler(ini={"application_name_add_host": 1})
    with pooler.login() as wire:
        assert wire.query("SHOW application_name").value.startswith("app - 127.0.0.1:")


def test_a_name_set_later_has_no_host(make_pooler):
    pooler = make_pooler(ini={"application_name_add_host": 1})
    with pooler.login(application_name="who") as wire:
        wire.query("SET application_name = 'changed'")
        assert wire.query("SHOW application_name").value == "changed"


# --- protocol.md 9 -------------------------------------------------------------------------------------------------------------


def test_what_a_dying_server_said_comes_first(make_pooler, pg):
    pooler = make_pooler()
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(30), 'dying'"))
        (victim,) = until(lambda: pg.sleeping("'dying'"))
        pg.sql("SELECT pg_terminate_backend(%s)", victim)
        while (got := wire.recv()).type != "E":
            pass
        assert (got.fields["S"], got.fields["C"]) == ("FATAL", "57P01") and len(got.fields) > 3
        wire.expect_fatal("server conn crashed?")
