"""What changes while somebody logs in: it counts for those who have a password, and tells nothing to those who have none."""

import re

import pytest

from support.secrets import md5_secret, scram_secret
from support.wire import ServerError, cstr, message
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


@METHODS
@pytest.mark.parametrize("how", ["KILL", "reload"])
def test_a_database_that_goes_does_not_tell_who_waits_for_it(make_pooler, auth_type, how):
    pooler = make_pooler(ini={"auth_type": auth_type}, userlist=users(lambda user: f"{user}-secret"))
    with Pending(pooler) as pending, pooler.console() as console:
        if how == "KILL":
            console.query("KILL p0")
        else:
            del pooler.databases["p0"]
            pooler.write()
            pooler.reload()
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


@METHODS
@pytest.mark.parametrize("kind", ["md5", "scram"])
def test_another_process_shows_the_same(make_pooler, auth_type, kind):
    """After a restart, say, or one beside the other on one port."""
    secrets = users(lambda user: md5_secret(user, "x") if kind == "md5" else scram_secret("x"))
    first, second = (make_pooler(ini={"auth_type": auth_type}, userlist=secrets) for _ in range(2))
    seen = [{user: shown(pooler, user) for user in KNOWN + UNKNOWN} for pooler in (first, second)]
    if (auth_type, kind) == ("scram-sha-256", "md5"):
        # nobody has a salt of his own
        assert all(seen[0][user] != seen[1][user] for user in KNOWN + UNKNOWN)
    else:
        assert seen[0] == seen[1]


def test_a_full_database_does_not_ask_auth_query(make_pooler):
    pooler = make_pooler(ini={"auth_type": "md5", "auth_user": "admin", "max_db_client_connections": 1}, userlist={"app": "app-secret", **ADMIN})
    with pooler.login("app"):
        for user in ("app2", "nosuch"):
            with pytest.raises(ServerError, match=re.escape("client connections exceeded (max_db_client_connections)")):
                pooler.login(user, password="x")
