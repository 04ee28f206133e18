"""What changes while somebody logs in: it counts for those who have a password, and tells nothing to those who have none."""

import contextlib
import re
import time

import pytest

from support.gate import Gate
from support.secrets import scram_secret
from support.system import until
from support.wire import ServerError, cstr, message, scram_proof
from test_auth import sasl_initial, shown

pytestmark = pytest.mark.ours

ADMIN = {"admin": "SecurePass2024!"}
KNOWN, UNKNOWN = ("app", "app2"), ("nosuch", "nobody")
METHODS = pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])


def users(make):
    return {**{user: make(user) for user in KNOWN}, **ADMIN}


class Pending:
    """Logins of known and unknown users at the point where the password is asked for."""

    def __init__(self, pooler, database="p0"):
        self.wires = {user: pooler.wire() for user in KNOWN + UNKNOWN}
        for user, wire in self.wires.items():
            wire.startup(user, database)
            assert wire.recv().type == "R"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for wire in self.wires.values():
            wire.close()

    def are_left_alone(self):
        for user, wire in self.wires.items():
            assert wire.recv_or_none(0.2) is None, user

    def hear(self, said, what):
        """What each is told when it says this."""
        answers = {}
        for user, wire in self.wires.items():
            wire.send(said)
            answers[user] = what(wire.recv())
        return answers


def change(pooler, **userlist):
    pooler.userlist.update(userlist)
    pooler.write()
    pooler.reload()
    with pooler.console() as console:
        pooler.settle(console)


def take_away(pooler, console, how):
    """p0 goes: by a command, or out of the configuration."""
    if how == "KILL":
        console.query("KILL p0")
    else:
        del pooler.databases["p0"]
        pooler.write()
        pooler.reload()


@METHODS
@pytest.mark.parametrize("how", ["KILL", "reload"])
def test_a_database_that_goes_does_not_tell_who_waits_for_it(make_pooler, auth_type, how):
    pooler = make_pooler(ini={"auth_type": auth_type}, userlist=users(lambda user: f"{user}-secret"))
    with Pending(pooler) as pending, pooler.console() as console:
        take_away(pooler, console, how)
        pending.are_left_alone()
        if how == "KILL":
            console.query("RESUME p0")
            pending.wires["app"].close()
            with pooler.login("app") as wire:
                assert wire.query("SELECT 1").value == "1"


def test_a_login_outlives_the_pool_that_it_began_with(make_pooler):
    pooler = make_pooler(ini={"auth_type": "plain"}, userlist={"app": "app-secret", **ADMIN})
    with pooler.wire() as killed, pooler.wire() as removed, pooler.console() as console:
        killed.startup("app", "p0")
        removed.startup("app", "p1")
        assert killed.recv().type == removed.recv().type == "R"
        console.query("KILL p0")
        del pooler.databases["p1"]
        pooler.write()
        pooler.reload()
        removed.send(message("p", cstr("app-secret")))
        removed.expect_fatal("no such database: p1")
        killed.send(message("p", cstr("app-secret")))
        assert killed.recv_or_none(0.3) is None, "a killed database waits"
        console.query("RESUME p0")
        while killed.recv().type != "Z":
            pass
        assert killed.query("SELECT current_user").value == "app"


@pytest.mark.parametrize("after", ["stronger", "plain"])
def test_secrets_that_change_while_they_are_asked_for(make_pooler, after):
    """Whoever has seen the question before the change is asked the rest as after it, known or not."""
    pooler = make_pooler(ini={"auth_type": "scram-sha-256"}, userlist=users(lambda user: scram_secret("x", 5000)))
    with Pending(pooler) as pending:
        new = {user: scram_secret("x", 9000) if after == "stronger" else "plain" for user in KNOWN}
        change(pooler, **new)

        def iterations(got):
            return got.body.decode().rsplit(",", 1)[1]

        asked = pending.hear(sasl_initial("SCRAM-SHA-256", b"n,,n=,r=nonce"), iterations)
        assert set(asked.values()) == {"i=9000" if after == "stronger" else "i=4096"}


@pytest.mark.parametrize("who", ["wrong", "right"])
def test_an_old_password_does_not_come_back(make_pooler, who):
    """A login that has begun before the password was changed must leave nothing of the old one behind."""
    pooler = make_pooler(start=False, ini={"auth_type": "hba"}, userlist={"app": "old", "strong": scram_secret("x"), **ADMIN})
    pooler.databases = {name: pooler.backend(user="trustuser") for name in ("p0", "p1")}
    pooler.ini["auth_hba_file"] = pooler.dir / "hba.conf"
    (pooler.dir / "hba.conf").write_text("host p0 all all password\nhost all all all scram-sha-256\n")
    pooler.write()
    pooler.start()
    pooler.login("app", "p1", password="old").close()
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        assert wire.recv().type == "R"
        change(pooler, app="new")
        wire.send(message("p", cstr("new" if who == "right" else "guess")))
        assert wire.recv().type == ("R" if who == "right" else "E")
    for database in ("p0", "p1"):
        pooler.login("app", database, password="new").close()
        with pytest.raises(ServerError, match="authentication failed"):
            pooler.login("app", database, password="old")


@pytest.mark.parametrize("before", ["plain", "scram"])
@pytest.mark.parametrize("after", ["another", "none", "the same"])
def test_scram_with_a_password_that_is_changed_in_its_middle(make_pooler, before, after):
    secret = "old" if before == "plain" else scram_secret("old")
    pooler = make_pooler(start=False, ini={"auth_type": "scram-sha-256"}, userlist={"app": secret, **ADMIN})
    pooler.databases = {"p0": pooler.backend(user="trustuser")}
    pooler.write()
    pooler.start()
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        wire.recv()
        first = "n,,n=,r=nonce"
        wire.send(sasl_initial("SCRAM-SHA-256", first.encode()))
        challenge = wire.recv().body[4:].decode()
        if after == "none":
            del pooler.userlist["app"]
        change(pooler, **({"app": "new"} if after == "another" else {"more": "x"}))
        final, _ = scram_proof("old", "nonce", first[3:], challenge)
        wire.send(message("p", final.encode()))
        if after == "the same":
            assert wire.recv().body[:4] == b"\0\0\0\x0c"
        else:
            wire.expect_fatal("SASL authentication failed")


def test_one_odd_secret_does_not_make_work(make_pooler):
    """Nobody can log in with it, and no wrong password costs as much as it would."""
    odd = scram_secret("x").replace("$4096:", "$400000000:")
    pooler = make_pooler(ini={"auth_type": "plain"}, userlist={"app": odd, **ADMIN})
    for user in ("app", "nosuch"):
        with pytest.raises(ServerError, match="password authentication failed"):
            pooler.login(user, password="guess", timeout=5)


def test_a_full_database_does_not_ask_auth_query(make_pooler):
    pooler = make_pooler(ini={"auth_type": "md5", "auth_user": "admin", "max_db_client_connections": 1}, userlist={"app": "app-secret", **ADMIN})
    with pooler.login("app"):
        for user in ("app2", "nosuch"):
            with pytest.raises(ServerError, match=re.escape("client connections exceeded (max_db_client_connections)")):
                pooler.login(user, password="x")


@pytest.mark.parametrize("how", ["KILL", "reload"])
def test_a_lookup_whose_server_has_to_go(make_pooler, how):
    query = "SELECT $1::text, pg_sleep(30)::text"
    pooler = make_pooler(ini={"auth_type": "md5", "auth_user": "admin", "auth_query": query}, userlist=ADMIN)
    with pooler.wire() as wire, pooler.console() as console:
        wire.startup("fetched", "p0")
        until(lambda: pooler.pool(user="admin")["sv_active"] == 1)
        take_away(pooler, console, how)
        wire.expect_fatal("bouncer config error")
    pooler.wait_log(re.compile(r"S-0x\S+: p0/admin@\S+ closing because: database removed"))


def test_clients_that_wait_for_a_server_are_no_strangers(make_pooler, pg):
    with Gate(pg.port) as gate:
        gate.shut = True
        pooler = make_pooler(start=False, ini={"auth_type": "plain", "max_client_conn": 13, "worker_threads": 2})
        pooler.databases = {"p0": pooler.backend(port=gate.port)}
        pooler.write()
        pooler.start()
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(pooler.wire()) for _ in range(11)]
            for wire in waiting:
                wire.startup("app", "p0")
                assert wire.recv().type == "R"
                wire.send(message("p", cstr("app-secret")))
            # the console stays, for nobody knows when one that leaves is no longer counted
            console = stack.enter_context(pooler.console())
            until(lambda: console.query("SHOW POOLS").dicts[0]["cl_waiting"] == "11")
            lists = {row["list"]: row["items"] for row in console.query("SHOW LISTS").dicts}
            assert lists["login_clients"] == "0"
            stranger = stack.enter_context(pooler.wire())
            stranger.startup("app", "p0")
            assert stranger.recv().type == "R"

            def let_in():
                with pooler.wire() as wire:
                    wire.startup("app", "p0")
                    return wire.recv().type == "R"

            assert not let_in(), "the stranger has just come"
            until(let_in)
            stranger.expect_fatal("no more connections allowed (max_client_conn)")
            assert all(wire.recv_or_none(0.01) is None for wire in waiting)
        pooler.stop()


@pytest.mark.fault("wrong passwords of strangers who hang up at once", "no work is left behind for those who log in")
@pytest.mark.goal("G18")
def test_work_for_those_who_have_gone_is_not_done(make_pooler):
    """Wrong passwords of strangers who do not wait for the answer."""
    pooler = make_pooler(ini={"auth_type": "plain", "max_client_conn": 1000}, userlist={"trustuser": scram_secret("x", 50_000), **ADMIN})
    began = time.monotonic()
    with pytest.raises(ServerError, match="password authentication failed"):
        pooler.login("nosuch", password="guess")
    one = time.monotonic() - began
    strangers = 200
    for _ in range(strangers):
        with pooler.wire() as wire:
            wire.startup("nosuch", "p0")
            wire.recv()
            wire.send(message("p", cstr("guess")))
    began = time.monotonic()
    with pooler.login("trustuser", password="x") as wire:
        assert wire.query("SELECT 1").value == "1"
    assert time.monotonic() - began < one * strangers / 8, "all of it takes half as long as one after the other"
