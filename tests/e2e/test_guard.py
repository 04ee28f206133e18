"""What cannot be, if it is: it costs the connections that it concerns, is logged once and counted, and hurts nobody else."""

import contextlib
import socket
import threading

import pytest

from support.scrape import Scrape, fetch
from support.secrets import scram_secret
from support.system import free_port, until
from support.way import in_background, pump, serve
from support.wire import Closed, message, query, startup_packet

pytestmark = pytest.mark.ours
BUG = "a bug ended one connection: "


class Slip:
    """A way to PostgreSQL that slips in bytes of its own behind what the server says next."""

    def __init__(self, port):
        self._target, self.more = port, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        serve(self._listener, self._join)

    def _join(self, near):
        far = socket.create_connection(("127.0.0.1", self._target))

        def send(data):
            more, self.more = self.more, b""
            near.sendall(data + more)

        in_background(pump, near, far)
        threading.Thread(target=pump, args=(far, near, send), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()


@pytest.mark.parametrize("slipped", [message("C", b"SELECT 1\0"), message("Z", b"I"), message("1"), message("D", b"\0\0")])
@pytest.mark.fault("a server says what nobody asked for", "its client and itself are closed, once logged and counted; others do not notice")
@pytest.mark.goal("G19")
def test_an_answer_without_an_owner_ends_both_and_is_logged_once(make_pooler, pg, slipped):
    with Slip(pg.port) as way:
        pooler = make_pooler(start=False, ini={"default_pool_size": 2, "worker_threads": 1})
        pooler.databases["p0"]["port"] = way.port
        pooler.write()
        pooler.start()
        for round in (1, 2):
            with pooler.login() as victim, pooler.login() as other:
                other.query("BEGIN")
                assert victim.query("SELECT 1").value == "1"
                way.more = slipped
                victim.send(query("SELECT 2"))
                assert victim.result().value == "2"
                victim.expect_fatal("server sent an answer that nobody waits for")
                assert other.query("SELECT 3").value == "3"
                other.query("COMMIT")
            pooler.wait_log("answers owed", round)
            assert f"; {round} so far)" in pooler.log()
        assert pooler.log().count("answers owed") == 2
        until(lambda: pooler.pool()["sv_active"] == 0 and pooler.pool()["cl_active"] == 0)


@contextlib.contextmanager
def planted(make_pooler, binary, monkeypatch, bug, userlist=None, **ini):
    monkeypatch.setenv("PGUSHER_PLANTED_BUG", bug)
    pooler = make_pooler(ini={"default_pool_size": 1, "worker_threads": 2, **ini}, userlist=userlist)
    if b"PGUSHER_PLANTED_BUG" not in binary.path.read_bytes():
        pytest.skip("bugs are planted in builds with assertions")
    yield pooler
    # what was to be seen was seen
    pooler.stderr.write_text("")


@pytest.mark.fault("a bug (planted) in the turn of a client", "its connections end, once logged and counted; others do not notice")
@pytest.mark.goal("G19")
def test_a_panic_in_the_turn_of_a_client_costs_its_connections(make_pooler, binary, monkeypatch):
    with planted(make_pooler, binary, monkeypatch, "client") as pooler, pooler.login() as other:
        for round in (1, 2, 3):
            with pooler.login() as victim:
                assert victim.query("BEGIN").tags == ["BEGIN"]
                victim.send(query("SELECT 1 /* planted bug */"))
                with pytest.raises((Closed, ConnectionError)):
                    victim.recv()
            pooler.wait_log(BUG, round)
            # the only server of the pool was the victim's
            assert other.query("SELECT 4").value == "4"
        assert pooler.log().count("planted bug at src/worker/plant.rs") == 3 and "(3 so far)" in pooler.log()
        until(lambda: pooler.pool()["cl_active"] == 1 and pooler.pool()["sv_active"] == 0)
        assert pooler.show("lists") is not None


@pytest.mark.goal("G19")
def test_a_panic_while_a_server_is_opened_is_survived_by_those_who_wait(make_pooler, binary, monkeypatch):
    with planted(make_pooler, binary, monkeypatch, "opening") as pooler, pooler.login() as wire:
        assert wire.query("SELECT 5").value == "5"
        assert pooler.log().count(BUG) == 1
        until(lambda: pooler.pool()["sv_login"] == 0 and pooler.pool()["sv_idle"] == 1)


@pytest.mark.goal("G19")
@pytest.mark.parametrize("place, auth_type, database", [
    ("attached", "md5", "p0"), ("attached", "scram-sha-256", "p0"),
    # the work for it is done elsewhere, and the login goes on outside of its turn
    ("attached", "plain", "p0"), ("at the console", "md5", "pgbouncer"), ("at the console", "plain", "pgbouncer")])
def test_a_panic_in_a_login_leaves_no_counts_behind(make_pooler, binary, monkeypatch, place, auth_type, database):
    limits = {"max_user_client_connections": 1, "max_db_client_connections": 1}
    user = "trustuser" if database == "p0" else "stats"
    userlist = {user: scram_secret("secret") if auth_type == "plain" else "secret", "admin": "SecurePass2024!"}
    with planted(make_pooler, binary, monkeypatch, place, auth_type=auth_type, userlist=userlist, **limits) as pooler:
        for once in (True, False):
            with contextlib.ExitStack() as stack:
                if once:
                    stack.enter_context(pytest.raises((Closed, ConnectionError)))
                wire = pooler.login(user, database, password="secret")
                wire.close()
        assert pooler.log().count(BUG) == 1
        (users,) = [row for row in pooler.show("USERS") if row["name"] == user]
        assert users["current_client_connections"] == "0"


@pytest.mark.goal("G19")
def test_a_panic_in_the_turn_of_a_login_leaves_no_counts_behind(make_pooler, binary, monkeypatch):
    with planted(make_pooler, binary, monkeypatch, "client") as pooler:
        pooler.login().close()
        for round in (1, 2, 3):
            with pooler.wire() as wire:
                # all in one turn: a login for which the pool has a reply, and the query
                wire.send(startup_packet({"user": "app", "database": "p0"}) + query("SELECT 1 /* planted bug */"))
                with pytest.raises((Closed, ConnectionError)):
                    while True:
                        wire.recv()
            pooler.wait_log(BUG, round)
        until(lambda: pooler.pool()["cl_active"] == 0)
        lists = {row["list"]: row["items"] for row in pooler.show("LISTS")}
        assert (lists["login_clients"], lists["used_clients"]) == ("0", "1")
        assert {row["current_client_connections"] for row in pooler.show("USERS") if row["name"] == "app"} == {"0"}


def bugs(port):
    return Scrape(port).total("pgbouncer_bugs_total")


def test_a_panic_in_the_supervisor_costs_what_it_was_about_and_is_counted(make_pooler, binary, monkeypatch):
    port = free_port()
    with planted(make_pooler, binary, monkeypatch, "console", metrics_listen=f"127.0.0.1:{port}") as pooler:
        pooler.wait_log("serving metrics on")
        with pooler.login() as other, pooler.console() as console:
            assert bugs(port) == 0
            console.send(query("SHOW VERSION"))
            console.expect_fatal("internal error")
            assert other.query("SELECT 6").value == "6"
            assert pooler.show("version") is not None and bugs(port) == 1
        assert pooler.log().count("a bug ended a console command: a planted bug at") == 1 and "(1 so far)" in pooler.log()


def test_a_panic_in_a_scrape_costs_one_answer(make_pooler, binary, monkeypatch):
    port = free_port()
    with planted(make_pooler, binary, monkeypatch, "scrape", metrics_listen=f"127.0.0.1:{port}") as pooler:
        pooler.wait_log("serving metrics on")
        assert fetch(port, "/metrics").status == 503
        assert bugs(port) == 1 and pooler.log().count("a bug ended a scrape: ") == 1


def test_a_panic_in_a_job_costs_one_login(make_pooler, binary, monkeypatch):
    """The first login to PostgreSQL, which wants SCRAM, needs a key; the client waits for the second one."""
    with planted(make_pooler, binary, monkeypatch, "job") as pooler, pooler.login() as wire:
        assert wire.query("SELECT 7").value == "7"
        assert pooler.log().count("a bug ended the login to server") == 1
        until(lambda: pooler.pool()["sv_login"] == 0 and pooler.pool()["sv_idle"] == 1)
