"""Cancel requests among peers: processes that share a port, and what becomes of requests on their way."""

import random
import socket
import struct
import threading
import time

import psycopg
import pytest

from support.storm import cancel_storm
from support.system import free_port, holds, until
from support.wire import CANCEL_REQUEST, Wire, query

pytestmark = pytest.mark.since("1.21")


class Sender:
    """A cancel request whose connection stays open until its end is read."""

    def __init__(self, port, key):
        self.wire = Wire(port)
        self.wire.send(struct.pack("!II", 16, CANCEL_REQUEST) + bytes(key))

    def closed(self):
        self.wire.sock.settimeout(0.01)
        try:
            return self.wire.at_eof()
        except TimeoutError:
            return False
        finally:
            self.wire.sock.settimeout(40)

    def wait(self):
        assert self.wire.at_eof()
        self.wire.close()


def cancel(port, key):
    Sender(port, key).wait()


class Deaf:
    """A peer that takes connections and never answers; `requests` are the messages it was sent."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets, self.requests = [], []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(sock)
            self.requests.append(sock.recv(16, socket.MSG_WAITALL))

    def hang_up(self):
        for sock in self.sockets:
            sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.hang_up()


def console(pooler):
    """The console of this very process, whoever listens on the port."""
    wire = Wire(path=pooler.unix_path)
    return wire.login("admin", "pgbouncer", pooler.userlist["admin"])


def show(pooler, topic):
    with console(pooler) as wire:
        return wire.query(f"SHOW {topic}").dicts


def key_of(peer_id, ttl=3, fill=0x40):
    return bytes([fill, peer_id & 0xFF, peer_id >> 8, fill, fill, fill, fill, fill & 0xFC | ttl])


@pytest.fixture
def shared(make_pooler):
    """Three processes on one port, known to each other by their Unix sockets."""
    port = free_port()
    processes = [make_pooler(start=False) for _ in range(3)]
    for number, pooler in enumerate(processes, 1):
        pooler.port = port
        pooler.ini.update(listen_port=port, peer_id=number, so_reuseport=1, default_pool_size=50)
        pooler.peers = {n: {"host": other.dir, "port": port} for n, other in enumerate(processes, 1)}
        pooler.write()
        pooler.start()
    return processes


def test_processes_on_one_port(shared, pg):
    """Each driver cancels through whatever process its cancel connection comes to, and hits its own query."""
    connections = [shared[0].connect() for _ in range(24)]
    innocents = [shared[0].connect() for _ in range(6)]
    owners = {connection.pgconn.backend_pid >> 16 & 0xFF for connection in connections}
    assert owners == {1, 2, 3}, "byte 1 of the key names the process"
    outcome = {}

    def sleep(number, connection, sql):
        try:
            outcome[number] = connection.execute(sql).fetchone()
        except psycopg.Error as error:
            outcome[number] = error.sqlstate

    work = [(n, c, f"SELECT pg_sleep(60) , 'target {n}'") for n, c in enumerate(connections)]
    work += [(100 + n, c, f"SELECT pg_sleep(60), 'innocent'") for n, c in enumerate(innocents)]
    threads = [threading.Thread(target=sleep, args=args, daemon=True) for args in work]
    for thread in threads:
        thread.start()
    until(lambda: len(pg.sleeping("pg_sleep(60)")) == 30, 30)
    for number, connection in random.sample(list(enumerate(connections)), len(connections)):
        connection.cancel()
        until(lambda: outcome.get(number), what=f"the end of query {number}")
        assert outcome == {n: "57014" for n in outcome}, "nobody else is stopped"
        assert not pg.sleeping(f"'target {number}'")
    assert len(pg.sleeping("'innocent'")) == len(innocents)
    for connection in innocents:
        connection.cancel()
    for thread in threads:
        thread.join(20)
    assert set(outcome.values()) == {"57014"} and len(outcome) == 30
    logs = "".join(pooler.log() for pooler in shared)
    assert logs.count(": peer-") > 0, "with 30 requests some must have come to the wrong process"
    assert "failed cancel request" not in logs and "TTL" not in logs
    for pooler in shared:
        until(lambda: all(row["cl_active_cancel_req"] == row["sv_active_cancel"] == "0" for row in show(pooler, "PEER_POOLS")))


def test_storm_over_three_processes(shared):
    """Random cancels through random processes never stop a query of somebody else."""
    home, through = shared[0], shared[0].port
    cancel_storm(lambda: home.login(timeout=30), lambda key: cancel(through, key), 0.004, 300, 60)


def test_pair_over_tcp(make_pooler, pg):
    a, b = make_pooler(start=False), make_pooler(start=False)
    for own, number in ((a, 1), (b, 0x0302)):
        own.ini["peer_id"] = number
        own.peers = {1: {"host": "127.0.0.1", "port": a.port}, 0x0302: {"host": "localhost", "port": b.port, "pool_size": 7}}
        own.write()
        own.start()
    assert b.show("PEERS") == [
        {"peer_id": "1", "host": "127.0.0.1", "port": str(a.port), "pool_size": "20"},
        {"peer_id": "770", "host": "localhost", "port": str(b.port), "pool_size": "7"},
    ]
    assert a.show("PEER_POOLS") == [], "only after the first forwarded request"
    for home, through in ((a, b), (b, a)):
        with home.login() as wire:
            number = home.ini["peer_id"]
            assert wire.key[1:3] == number.to_bytes(2, "little") and wire.key[7] & 3 == 3 and wire.key[0] < 128
            wire.send(query("SELECT pg_sleep(30) AS via_peer"))
            until(lambda: pg.sleeping("via_peer"))
            cancel(through.port, wire.key)
            assert wire.result().error["C"] == "57014"
        row = {"peer_id": str(number), "cl_active_cancel_req": "0", "cl_waiting_cancel_req": "0", "sv_active_cancel": "0",
               "sv_login": "0"}
        assert through.show("PEER_POOLS") == [row]
        for kind in "CS":
            found = [line for line in through.log().splitlines() if f" {kind}-0x" in line and f": peer-{number}@127.0.0.1:" in line]
            assert found[-1].split(":", 4)[-1].split(" ", 1)[1].startswith("closing because: successfully sent cancel request")
        assert f"S-0x" in through.log() and f"@127.0.0.1:{home.port} new connection to server (from 127.0.0.1:" in through.log()
    lists = {row["list"]: row["items"] for row in a.show("LISTS")}
    assert (lists["peers"], lists["peer_pools"]) == ("2", "1")


def test_the_hop_count(make_pooler):
    with Deaf() as deaf:
        pooler = make_pooler(ini={"peer_id": 1}, peers={2: {"host": "127.0.0.1", "port": deaf.port}})
        for ttl in (3, 2, 1):
            sender = Sender(pooler.port, key_of(2, ttl))
            until(lambda: len(deaf.requests) == 4 - ttl)
            assert deaf.requests[-1] == struct.pack("!II", 16, CANCEL_REQUEST) + key_of(2, ttl - 1)
            deaf.hang_up()
            sender.wait()
        pooler.wait_log("closing because: successfully sent cancel request", 6)
        cancel(pooler.port, key_of(2, 0))
        pooler.wait_log("(nodb)/(nouser)@127.0.0.1:", 1)
        pooler.wait_log("closing because: failed to forward cancel request because its TTL was exhausted")
        cancel(pooler.port, key_of(3))
        pooler.wait_log("closing because: could not find peer to forward request to")
        cancel(pooler.port, key_of(1))
        pooler.wait_log("closing because: failed cancel request")
        assert len(deaf.requests) == 3


def test_the_hop_count_at_home_does_not_matter(make_pooler, pg):
    pooler = make_pooler(ini={"peer_id": 1})
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(30), 'came far'"))
        until(lambda: pg.sleeping("came far"))
        cancel(pooler.port, wire.key[:7] + bytes([wire.key[7] & 0xFC]))
        assert wire.result().error["C"] == "57014"


def test_what_is_shown_of_a_request(make_pooler):
    with Deaf() as deaf:
        peers = {2: {"host": "127.0.0.1", "port": deaf.port, "pool_size": 1}}
        pooler = make_pooler(ini={"peer_id": 1, "cancel_wait_timeout": 3}, peers=peers)
        senders = [Sender(pooler.port, key_of(2, fill=fill)) for fill in (4, 8, 12, 16)]
        until(lambda: len(deaf.requests) == 2, what="twice the pool size is on its way")
        holds(lambda: len(deaf.requests) == 2, 0.7)
        row = pooler.show("PEER_POOLS")[0]
        assert (row["cl_active_cancel_req"], row["cl_waiting_cancel_req"], row["sv_active_cancel"]) == ("2", "2", "2")
        clients = [r for r in pooler.show("CLIENTS") if r["state"] != "idle" and r["database"] != "pgbouncer"]
        assert sorted(r["state"] for r in clients) == ["active_cancel_req"] * 2 + ["waiting_cancel_req"] * 2
        assert {(r["user"], r["database"]) for r in clients} == {("(nouser)", "(nodb)")}
        servers = [(r["user"], r["database"], r["state"], r["port"]) for r in pooler.show("SERVERS")]
        assert servers == [("(nouser)", "(nodb)", "active_cancel", str(deaf.port))] * 2
        assert not any("cancel" in r["state"] for r in pooler.show("SOCKETS"))
        # the limit on waiting is for those that wait
        pooler.wait_log("closing because: cancel_wait_timeout", 2, timeout=6)
        assert sorted(sender.closed() for sender in senders) == [False, False, True, True]
        assert pooler.show("PEER_POOLS")[0]["cl_active_cancel_req"] == "2"
        deaf.hang_up()
        for sender in senders:
            sender.wait()


def test_a_client_that_gives_up(make_pooler):
    with Deaf() as deaf:
        pooler = make_pooler(ini={"peer_id": 1}, peers={2: {"host": "127.0.0.1", "port": deaf.port}})
        sender = Sender(pooler.port, key_of(2))
        until(lambda: deaf.requests)
        sender.wire.close()
        pooler.wait_log("closing because: client gave up on cancel request, so we also give up forwarding to server")
        assert deaf.sockets[0].recv(1) == b""
        until(lambda: pooler.show("PEER_POOLS")[0]["sv_active_cancel"] == "0")


def test_a_peer_that_is_down_is_tried_again(make_pooler):
    port = free_port()
    pooler = make_pooler(ini={"peer_id": 1, "server_login_retry": 1, "cancel_wait_timeout": 3},
                         peers={2: {"host": "127.0.0.1", "port": port}})
    started = time.monotonic()
    cancel(pooler.port, key_of(2))
    assert 2.5 < time.monotonic() - started < 6
    assert "closing because: cancel_wait_timeout" in pooler.log()
    tries = pooler.log().count(f"peer-2@127.0.0.1:{port} closing because: connect failed")
    assert 2 <= tries <= 4, f"one try each second, not {tries}"
    sender = Sender(pooler.port, key_of(2))
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(5)
    taken, _ = listener.accept()
    assert len(taken.recv(16)) == 16
    taken.close()
    sender.wait()
    listener.close()


def test_reload_adds_changes_and_drops_peers(make_pooler):
    with Deaf() as first, Deaf() as second:
        pooler = make_pooler(ini={"peer_id": 1, "cancel_wait_timeout": 30})
        assert pooler.show("PEERS") == []
        pooler.peers = {2: {"host": "127.0.0.1", "port": first.port}}
        pooler.write()
        pooler.reload()
        Sender(pooler.port, key_of(2))
        until(lambda: len(first.requests) == 1)
        pooler.peers[2] = {"host": "127.0.0.1", "port": second.port, "pool_size": 1}
        pooler.write()
        pooler.reload()
        first.hang_up()
        assert pooler.show("PEERS")[0]["port"] == str(second.port)
        senders = [Sender(pooler.port, key_of(2, fill=fill)) for fill in (4, 8, 12)]
        until(lambda: len(second.requests) == 2)
        assert len(first.requests) == 1
        until(lambda: pooler.show("PEER_POOLS")[0]["cl_waiting_cancel_req"] == "1")
        pooler.peers = {}
        pooler.write()
        pooler.reload()
        pooler.wait_log("WARNING dropping peer 2 as it does not exist anymore")
        for sender in senders:
            sender.wait()
        pooler.wait_log("closing because: peer removed")
        assert pooler.show("PEERS") == pooler.show("PEER_POOLS") == []
        assert {row["list"]: row["items"] for row in pooler.show("LISTS")}["peers"] == "0"
        cancel(pooler.port, key_of(2))
        pooler.wait_log("could not find peer to forward request to")


def test_peer_id_may_change(pooler):
    with pooler.login() as wire:
        assert len(wire.key) == 8
    pooler.admin("SET peer_id = 513")
    with pooler.login() as wire:
        assert wire.key[1:3] == b"\x01\x02"
    assert pooler.setting("peer_id") == "513"


def test_peer_by_unix_socket(make_pooler, pg):
    """Where a peer is given as a directory its port is the suffix of the socket."""
    a = make_pooler(ini={"peer_id": 1})
    b = make_pooler(ini={"peer_id": 2}, peers={1: {"host": a.dir, "port": a.port}})
    with a.login() as wire:
        wire.send(query("SELECT pg_sleep(30) AS via_unix"))
        until(lambda: pg.sleeping("via_unix"))
        cancel(b.port, wire.key)
        assert wire.result().error["C"] == "57014"
    assert f": peer-1@unix:{a.port} new connection to server\n" in b.log()


def test_peer_settings_must_make_sense(make_pooler):
    for entry, text in (({0: {"host": "x"}}, "ids of peers must be a number larger than 0 and at most 65536"),
                        ({1: {"port": 1}}, "host was not provided for peer 1")):
        pooler = make_pooler(start=False, peers=entry)
        pooler.start(wait=False)
        assert pooler.wait_end() == 1
        assert text in pooler.log()
