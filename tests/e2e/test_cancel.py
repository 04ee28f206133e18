"""Cancel requests hit the query they are meant for, or nothing."""

import os
import signal
import socket
import struct
import subprocess
import threading

import psycopg
import pytest

from support.gate import Gate
from support.storm import cancel_storm
from support.system import as_daemon_user, holds, until
from support.wire import CANCEL_REQUEST, query


def cancel(pooler, key):
    """Sends a cancel request and waits until its connection is closed."""
    with pooler.wire() as wire:
        wire.send(struct.pack("!II", 16, CANCEL_REQUEST) + key)
        assert wire.at_eof()


def start_cancel(pooler, key):
    """A cancel request whose connection stays open."""
    wire = pooler.wire()
    wire.send(struct.pack("!II", 16, CANCEL_REQUEST) + key)
    return wire


@pytest.fixture
def gated(make_pooler, pg):
    """A pooler with one server in its pool, and the gate it goes through."""
    with Gate(pg.port) as gate:
        yield make_pooler(ini={"default_pool_size": 1, "cancel_wait_timeout": 4},
                          databases={"p0": {"host": "127.0.0.1", "port": gate.port, "dbname": "p0"}}), gate


def states(pooler):
    """States of cancel requests and servers."""
    return (sorted((r["state"], r["user"], r["database"]) for r in pooler.show("CLIENTS") if "cancel" in r["state"]),
            sorted(r["state"] for r in pooler.show("SERVERS")))


def test_what_is_shown_of_a_cancel(gated, pg):
    """One request is on its way; the next one waits, for there are twice pool_size connections already."""
    pooler, gate = gated
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(30), 'shown'"))
        until(lambda: pg.sleeping("'shown'"))
        gate.shut = True
        first = start_cancel(pooler, wire.key)
        until(lambda: gate.held)
        second = start_cancel(pooler, wire.key)
        until(lambda: pooler.pool()["cl_waiting_cancel_req"] == 1)
        clients = [("active_cancel_req", "(nouser)", "p0"), ("waiting_cancel_req", "(nouser)", "p0")]
        assert states(pooler) == (clients, ["active", "active_cancel"])
        row = pooler.pool()
        assert (row["cl_active_cancel_req"], row["sv_active_cancel"], row["sv_login"]) == (1, 1, 0)
        assert second.at_eof(), "it waited too long"
        pooler.wait_log("p0/(nouser)@127.0.0.1:", 1)
        pooler.wait_log("closing because: cancel_wait_timeout")
        assert pooler.log().count("cancel_wait_timeout") == 1
        assert len(gate.held) == 1 and gate.held[0][1] == struct.pack("!II", 16, CANCEL_REQUEST) + gate.held[0][1][8:]
        gate.let_go()
        assert first.at_eof()
        pooler.wait_log("closing because: successfully sent cancel request", 2)
        gate.shut = False
        cancel(pooler, wire.key)
        assert wire.result().error["C"] == "57014"


def test_a_server_rests_while_a_cancel_is_on_its_way(gated, pg):
    """Whoever is next in line must not get the server before the cancel is over."""
    pooler, gate = gated
    with pooler.login() as wire, pooler.login() as other:
        wire.send(query("SELECT pg_sleep(3), 'ends by itself'"))
        until(lambda: pg.sleeping("ends by itself"))
        gate.shut = True
        late = start_cancel(pooler, wire.key)
        until(lambda: gate.held)
        other.send(query("SELECT 'not mine'"))
        assert wire.result().error is None
        until(lambda: pooler.pool()["sv_being_canceled"] == 1)
        assert states(pooler)[1] == ["active_cancel", "being_canceled"]
        assert other.recv_or_none(0.5) is None
        gate.let_go()
        assert other.result().value == "not mine"
        assert late.at_eof()
        until(lambda: states(pooler) == ([], ["idle"]))


def test_a_cancel_that_is_given_up(gated, pg):
    pooler, gate = gated
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(30), 'given up'"))
        until(lambda: pg.sleeping("given up"))
        gate.shut = True
        given_up = start_cancel(pooler, wire.key)
        until(lambda: gate.held)
        given_up.close()
        pooler.wait_log("closing because: client gave up on cancel request, so we also give up forwarding to server")
        until(lambda: states(pooler) == ([], ["active"]))
        gate.shut = False
        cancel(pooler, wire.key)
        assert wire.result().error["C"] == "57014"


def test_a_cancel_outlives_its_connection(gated, pg):
    """Drivers that close the connection at once count on the request all the same."""
    pooler, gate = gated
    with pooler.login() as wire:
        for on_its_way in (False, True):
            wire.send(query("SELECT pg_sleep(30), 'sent and left'"))
            until(lambda: pg.sleeping("sent and left"))
            gate.shut = True
            left = start_cancel(pooler, wire.key)
            if on_its_way:
                until(lambda: gate.held)
            left.close()
            until(lambda: gate.held)
            with socket.create_connection(("127.0.0.1", pg.port)) as through:
                through.sendall(gate.held[0][1])
                assert through.recv(1) == b""
            gate.shut = False
            gate.let_go()
            assert wire.result().error["C"] == "57014"
            until(lambda: states(pooler) == ([], ["idle"]))
    pooler.wait_log("closing because: successfully sent cancel request", 2)


def test_a_cancel_waits_no_longer_than_its_query(gated, pg):
    """A request that was not sent goes when its server is released, so it can hit nobody else."""
    pooler, gate = gated
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(3), 'short'"))
        until(lambda: pg.sleeping("'short'"))
        gate.shut = True
        first, second = start_cancel(pooler, wire.key), start_cancel(pooler, wire.key)
        until(lambda: pooler.pool()["cl_waiting_cancel_req"] == 1)
        assert wire.result().error is None
        pooler.wait_log("closing because: not sending cancel request for client that is now idle")
        holds(lambda: len(gate.held) == 1, 0.5)
        gate.let_go()
        assert first.at_eof() and second.at_eof()


def test_running_query_is_cancelled(pooler, pg):
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(30), 'cancel me'"))
        until(lambda: pg.sleeping("cancel me"))
        cancel(pooler, wire.key)
        assert wire.result().error["C"] == "57014"
        assert wire.query("SELECT 1").value == "1"


def test_psycopg_cancel(pooler, pg):
    with pooler.connect() as connection:
        timer = threading.Thread(target=lambda: (until(lambda: pg.sleeping("from_psycopg")), connection.cancel()))
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(30) AS from_psycopg")
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_psql_cancel(pooler, pg):
    """Ctrl-C in psql."""
    psql = subprocess.Popen([str(pg.bin / "psql"), "-h", "127.0.0.1", "-p", str(pooler.port), "-U", "app", "-d", "p0", "-X",
                             "-c", "SELECT pg_sleep(30) AS from_psql"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd="/", **as_daemon_user())
    until(lambda: pg.sleeping("from_psql"))
    os.kill(psql.pid, signal.SIGINT)
    _, err = psql.communicate(timeout=10)
    assert "canceling statement due to user request" in err


def test_wrong_key_cancels_nothing(pooler, pg):
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(2), 'stays'"))
        until(lambda: pg.sleeping("'stays'"))
        for position in range(8):
            wrong = bytearray(wire.key)
            wrong[position] ^= 1
            cancel(pooler, bytes(wrong))
        assert wire.result().rows[0][1] == "stays"
    pooler.wait_log("failed cancel request", 8)


def test_cancel_of_an_idle_client(pooler, pg):
    """A late cancel must not hit whoever has the server now."""
    pooler.admin("SET default_pool_size = 1")
    with pooler.login() as late, pooler.login() as other:
        late.query("SELECT 1")
        other.send(query("SELECT pg_sleep(2), 'not mine'"))
        until(lambda: pg.sleeping("not mine"))
        cancel(pooler, late.key)
        pooler.wait_log("cancel request for idle client")
        assert other.result().rows[0][1] == "not mine"


def test_cancel_of_a_waiting_client_does_not_stop_the_running_one(pooler, pg):
    pooler.admin("SET default_pool_size = 1")
    with pooler.login() as running, pooler.login() as waiting:
        running.send(query("SELECT pg_sleep(2), 'running'"))
        until(lambda: pg.sleeping("'running'"))
        waiting.send(query("SELECT 'waited'"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        cancel(pooler, waiting.key)
        assert running.result().rows[0][1] == "running"
        assert waiting.result().value == "waited"


def test_cancel_is_let_in_when_max_client_conn_is_reached(make_pooler, pg):
    pooler = make_pooler(ini={"max_client_conn": 1})
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(30), 'full house'"))
        until(lambda: pg.sleeping("full house"))
        cancel(pooler, wire.key)
        assert wire.result().error["C"] == "57014"


def test_cancel_goes_through_a_full_pool(make_pooler, pg):
    pooler = make_pooler(ini={"default_pool_size": 2, "max_db_connections": 2})
    with pooler.login() as a, pooler.login() as b:
        for wire, name in ((a, "first"), (b, "second")):
            wire.send(query(f"SELECT pg_sleep(30) AS {name}_sleeper"))
            until(lambda name=name: pg.sleeping(f"{name}_sleeper"))
        cancel(pooler, a.key)
        assert a.result().error["C"] == "57014"
        assert pg.sleeping("second_sleeper")
        cancel(pooler, b.key)
        assert b.result().error["C"] == "57014"


@pytest.mark.since("1.21")
def test_keys_are_random_and_positive(pooler):
    keys = []
    for _ in range(50):
        with pooler.login() as wire:
            keys.append(wire.key)
    assert len(set(keys)) == 50 and all(len(k) == 8 and k[0] < 128 for k in keys)
    assert all(len({k[i] for k in keys}) > 10 for i in range(8))


@pytest.mark.slow(120)
@pytest.mark.fault("a storm of cancel requests", "no query of anybody else is stopped")
@pytest.mark.goal("G6")
def test_storm_of_cancels_never_hits_another_client(make_pooler, measured):
    """Half the clients are cancelled at random moments; the others must never see a cancelled query."""
    pooler = make_pooler(ini={"default_pool_size": 3})
    stopped, others = cancel_storm(lambda: pooler.login(timeout=30), lambda key: cancel(pooler, key), 0.002, 500, 40)
    measured.least("queries stopped, all of them meant", stopped, 20)
    measured.least("queries of others, none stopped", others, 500)
    until(lambda: (pooler.pool()["sv_being_canceled"], pooler.pool()["sv_active"], pooler.pool()["cl_waiting_cancel_req"]) == (0, 0, 0))


@pytest.mark.since("1.19")
def test_cancel_is_forwarded_to_a_peer(make_pooler, pg):
    a, b = make_pooler(start=False), make_pooler(start=False)
    for own, other, number in ((a, b, 1), (b, a, 2)):
        own.ini["peer_id"] = number
        own.peers = {1: {"host": "127.0.0.1", "port": a.port}, 2: {"host": "127.0.0.1", "port": b.port}}
        own.write()
        own.start()
    with a.login() as wire:
        assert wire.key[1:3] == b"\x01\x00" and wire.key[7] & 3 == 3
        wire.send(query("SELECT pg_sleep(30) AS via_peer"))
        until(lambda: pg.sleeping("via_peer"))
        cancel(b, wire.key)
        assert wire.result().error["C"] == "57014"
    assert [r["peer_id"] for r in b.show("PEERS")] == ["1", "2"]


def test_cancel_after_the_client_left(pooler):
    with pooler.login() as wire:
        wire.query("SELECT 1")
        key = wire.key
    until(lambda: all(c["user"] != "app" for c in pooler.show("CLIENTS")))
    cancel(pooler, key)
    pooler.wait_log("failed cancel request")
