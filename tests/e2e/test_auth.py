"""Logging in: every method with every kind of secret, on both sides, and the exact texts of refusals."""

import base64
import contextlib
import struct
import time

import pytest

from support.gate import Gate
from support.secrets import md5_secret, scram_secret
from support.system import until
from support.wire import ServerError, Wire, cstr, md5_response, message, scram_proof, startup_packet


SECRETS = {"plain": lambda u, p: p, "md5": md5_secret, "scram": lambda u, p: scram_secret(p)}
PASSWORD = {"plain": 3, "md5": 5, "scram-sha-256": 10}


def forced(pooler):
    """An entry whose server login needs nothing of the client: what is tested is the client's side alone."""
    return pooler.backend(user="trustuser")


@pytest.fixture
def strict(make_pooler):
    """A pooler with one kind of login and one stored secret of user `app`."""
    def make(auth_type, secret, **ini):
        pooler = make_pooler(start=False, ini={"auth_type": auth_type, **ini}, userlist={"app": secret})
        pooler.databases = {"p0": forced(pooler)}
        pooler.write()
        return pooler.start()

    return make


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("auth_type", ["trust", "plain", "md5", "scram-sha-256"])
def test_method_with_secret(strict, auth_type, kind):
    pooler = strict(auth_type, SECRETS[kind]("app", "app-secret"))
    if auth_type == "scram-sha-256" and kind == "md5":
        with pytest.raises(ServerError, match="FATAL 08P01: SASL authentication failed"):
            pooler.login("app", password="app-secret")
        return
    with pooler.login("app", password="app-secret") as wire:
        assert wire.query("SELECT current_user").value == "trustuser"
        # a SCRAM secret turns md5 into a SCRAM exchange
        asked = "scram-sha-256" if (auth_type, kind) == ("md5", "scram") else auth_type
        first = [k for k in wire.auth_requests if k][:1]
        assert first == ([] if auth_type == "trust" else [PASSWORD[asked]])


@pytest.mark.parametrize("auth_type, text", [("plain", "password authentication failed"), ("md5", "password authentication failed"),
                                             ("scram-sha-256", "SASL authentication failed")])
@pytest.mark.parametrize("user, password", [("app", "wrong"), ("nosuch", "app-secret"), ("empty", "x")])
def test_wrong_password_and_unknown_user_look_alike(make_pooler, auth_type, text, user, password):
    pooler = make_pooler(ini={"auth_type": auth_type}, userlist={"app": "app-secret", "empty": ""})
    with pytest.raises(ServerError) as refused:
        pooler.login(user, password=password)
    assert list(refused.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", text)]
    if user == "nosuch":
        pooler.wait_log("no such user: nosuch")
    pooler.wait_log(f"pooler error: {text}")
    pooler.wait_log(f"closing because: {text}")


def test_trust_lets_in_known_users_only(make_pooler):
    pooler = make_pooler(userlist={"app": "app-secret", "admin": "a"})
    pooler.login("app").close()
    with pytest.raises(ServerError, match='FATAL 08P01: "trust" authentication failed'):
        pooler.login("nosuch")


def test_unknown_database_is_told_only_after_the_password(strict):
    pooler = strict("md5", "app-secret")
    with pytest.raises(ServerError, match="FATAL 08P01: no such database: nowhere"):
        pooler.login("app", "nowhere")
    with pytest.raises(ServerError, match="FATAL 08P01: password authentication failed"):
        pooler.login("app", "nowhere", password="wrong")
    pooler.wait_log("login failed: db=nowhere user=app")
    assert "(nodb)/app@127.0.0.1:" in pooler.log()


@pytest.mark.parametrize("user", ["plainuser", "md5user", "app", "trustuser"])
def test_server_asks_for(make_pooler, pg, user):
    """PostgreSQL checks these roles by password, md5, scram-sha-256 and trust."""
    pooler = make_pooler(ini={"auth_type": "md5"})
    with pooler.login(user) as wire:
        assert wire.query("SELECT current_user").value == user


def test_md5_secret_serves_an_md5_server(make_pooler):
    pooler = make_pooler(ini={"auth_type": "md5"}, userlist={"md5user": md5_secret("md5user", "md5-secret")})
    with pooler.login("md5user", password="md5-secret") as wire:
        assert wire.query("SELECT current_user").value == "md5user"


@pytest.mark.since("1.23")
def test_scram_secret_is_passed_through(make_pooler, pg):
    """Client and server share one verifier; the keys of the client's login open the server."""
    (secret,), = pg.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
    pooler = make_pooler(ini={"auth_type": "scram-sha-256"}, userlist={"app": secret, "admin": "SecurePass2024!"})
    with pooler.login("app", password="app-secret") as wire:
        assert wire.query("SELECT current_user").value == "app"
        pooler_pid = wire.query("SELECT pg_backend_pid()").value
        pg.sql("SELECT pg_terminate_backend(%s)", int(pooler_pid))
        until(lambda: int(pooler_pid) not in pg.backends("p0"))
        with pooler.login("app", password="app-secret") as later:
            assert later.query("SELECT 1").value == "1"
        # for as long as the process runs, whatever becomes of the record
        del pooler.userlist["app"]
        pooler.write()
        pooler.reload()
        pooler.admin("RECONNECT")
        assert wire.query("SELECT 2").value == "2"


@pytest.mark.since("1.20")
def test_servers_own_refusal_is_relayed(make_pooler):
    pooler = make_pooler(start=False)
    pooler.databases["bad"] = pooler.backend(user="app", password="not-it")
    pooler.databases["absent"] = pooler.backend("absent")
    pooler.write()
    pooler.start()
    with pytest.raises(ServerError, match='FATAL 28P01: password authentication failed for user "app"'):
        pooler.login("app", "bad")
    with pytest.raises(ServerError, match='FATAL 3D000: database "absent" does not exist'):
        pooler.login("app", "absent")
    pooler.wait_log('WARNING server login failed: FATAL database "absent" does not exist')


@pytest.mark.parametrize("role, secret, asked", [("md5user", "scram", "MD5"), ("app", "md5", "SCRAM")])
def test_secret_that_does_not_suit_the_server(make_pooler, role, secret, asked):
    password = {"md5user": "md5-secret", "app": "app-secret"}[role]
    pooler = make_pooler(ini={"auth_type": "plain"}, userlist={role: SECRETS[secret](role, password)})
    with pytest.raises(ServerError, match="server login failed: wrong password type"):
        pooler.login(role, password=password)
    pooler.wait_log(f"cannot do {asked} authentication: wrong password type")


def test_auth_query_fetches_the_secret_at_each_login(make_pooler, pg):
    pg.sql("SET password_encryption = 'scram-sha-256'")
    pg.sql("DROP ROLE IF EXISTS fetched")
    pg.sql("CREATE ROLE fetched LOGIN PASSWORD 'first'")
    pooler = make_pooler(start=False, ini={"auth_type": "md5", "auth_user": "admin"}, userlist={"admin": "SecurePass2024!"})
    pg.sql("SET password_encryption = 'md5'")
    pg.sql("ALTER ROLE admin PASSWORD 'SecurePass2024!'")
    pooler.databases = {"p0": forced(pooler)}
    pooler.write()
    pooler.start()
    pooler.login("fetched", password="first").close()
    pg.sql("SET password_encryption = 'scram-sha-256'")
    pg.sql("ALTER ROLE fetched PASSWORD 'second'")
    pooler.login("fetched", password="second").close()
    with pytest.raises(ServerError, match="authentication failed"):
        pooler.login("fetched", password="first")
    with pytest.raises(ServerError, match="FATAL 08P01: no such user"):
        pooler.login("nosuch", password="x")


@pytest.mark.since("1.24.1")
def test_auth_query_honours_valid_until(make_pooler, pg):
    pg.sql("DROP ROLE IF EXISTS expired")
    pg.sql("CREATE ROLE expired LOGIN PASSWORD 'over' VALID UNTIL '2001-01-01'")
    pooler = make_pooler(start=False, ini={"auth_type": "md5", "auth_user": "admin"}, userlist={"admin": "SecurePass2024!"})
    pooler.databases = {"p0": forced(pooler)}
    pooler.write()
    pooler.start()
    with pytest.raises(ServerError, match="password authentication failed"):
        pooler.login("expired", password="over")


def test_a_file_that_is_gone_changes_nothing(make_pooler):
    pooler = make_pooler(ini={"auth_type": "md5"})
    pooler.ini["auth_file"].rename(pooler.dir / "elsewhere")
    pooler.reload()
    pooler.wait_log("could not open auth_file")
    pooler.login("app", password="app-secret").close()
    with pytest.raises(ServerError, match="password authentication failed"):
        pooler.login("app", password="wrong")


def test_the_name_of_the_console_is_always_known(make_pooler):
    pooler = make_pooler(start=False, ini={"auth_type": "trust"})
    pooler.databases = {"p0": forced(pooler)}
    pooler.write()
    pooler.start()
    with pooler.login("pgbouncer") as wire:
        assert wire.query("SELECT 1").value == "1"


@pytest.mark.parametrize("setting, text", [("query_wait_timeout", "query_wait_timeout"), ("query_timeout", "query_timeout")])
def test_time_passes_from_the_password_on(make_pooler, pg, setting, text):
    with Gate(pg.port) as gate:
        gate.shut = True
        pooler = make_pooler(start=False, ini={"auth_type": "plain", setting: 2})
        pooler.databases = {"p0": pooler.backend(port=gate.port)}
        pooler.write()
        pooler.start()
        with pooler.wire() as wire:
            wire.startup("app", "p0")
            assert wire.recv().type == "R" and wire.recv_or_none(1.5) is None
            began = time.monotonic()
            wire.send(message("p", cstr("app-secret")))
            wire.expect_fatal(text)
            assert time.monotonic() - began > 1.9
        pooler.stop()


def test_any_uses_the_forced_user(make_pooler):
    pooler = make_pooler(start=False, ini={"auth_type": "any", "auth_file": None})
    pooler.databases = {"p0": forced(pooler), "free": pooler.backend()}
    pooler.write()
    pooler.start()
    with pooler.login("whoever", password="") as wire:
        assert wire.query("SELECT current_user").value == "trustuser"
    for times, database in enumerate(("free", "nowhere"), 1):
        with pytest.raises(ServerError, match="bouncer config error"):
            pooler.login("whoever", database)
        pooler.wait_log("auth_type=any requires forced user", times)


def hba(make_pooler, rules, users=None):
    pooler = make_pooler(start=False, ini={"auth_type": "hba"}, userlist=users)
    pooler.ini["auth_hba_file"] = pooler.dir / "hba.conf"
    (pooler.dir / "hba.conf").write_text("local all all trust\nhost pgbouncer admin 127.0.0.1/32 trust\n" + rules)
    pooler.write()
    return pooler.start()


def test_hba_first_rule_wins(make_pooler):
    pooler = hba(make_pooler, "host p0 app 127.0.0.1/32 trust\nhost p0 app2 127.0.0.1/32 reject\nhost all md5user,plainuser 127.0.0.0/8 md5\n")
    assert pooler.login("app").auth_requests == [0]
    with pytest.raises(ServerError, match="FATAL 08P01: login rejected"):
        pooler.login("app2")
    assert pooler.login("md5user", "p1").auth_requests == [5, 0]


@pytest.mark.since("1.25")
@pytest.mark.parametrize("user, database", [("app2", "p0"), ("app", "p1")])
def test_hba_without_a_rule(make_pooler, user, database):
    pooler = hba(make_pooler, "host p0 app 127.0.0.1/32 trust\n")
    with pytest.raises(ServerError, match="FATAL 08P01: no authentication method is found"):
        pooler.login(user, database)


def test_hba_local_rules_are_for_unix_sockets(make_pooler):
    pooler = hba(make_pooler, "host all app2 127.0.0.1/32 trust\n")
    with Wire(path=pooler.unix_path) as wire:
        wire.login("app", "p0")
        assert wire.query("SELECT 1").value == "1"


@pytest.fixture
def asked(strict):
    """A raw connection at the point where the password is asked for."""
    def make(auth_type):
        pooler = strict(auth_type, "app-secret")
        wire = pooler.wire()
        wire.startup("app", "p0")
        assert wire.recv().type == "R"
        return wire

    return make


def test_empty_password(asked):
    wire = asked("md5")
    wire.send(message("p", b"\0"))
    wire.expect_fatal("empty password returned by client")


@pytest.mark.parametrize("auth_type", ["plain", "md5"])
def test_a_password_is_judged_by_what_is_in_force_when_it_comes(make_pooler, auth_type):
    for now in ({"app": "another", "admin": "a"}, {"admin": "a"}):
        pooler = make_pooler(ini={"auth_type": auth_type}, userlist={"app": "app-secret", "admin": "a"})
        with pooler.wire() as wire:
            wire.startup("app", "p0")
            request = wire.recv()
            pooler.userlist = now
            pooler.write()
            with pooler.console() as console:
                console.query("RELOAD")
                pooler.settle(console)
            answer = "app-secret" if auth_type == "plain" else md5_response("app", "app-secret", request.body[4:8])
            wire.send(message("p", cstr(answer)))
            assert wire.recv().fields["M"] == "password authentication failed"


@pytest.mark.parametrize("now, password, good", [
    ({}, "app-secret", False), ({"app": ""}, "app-secret", False), ({"app": "another"}, "app-secret", False),
    ({"app": "another"}, "another", True), ({"app": "scram"}, "another", True), ({"app": "md5"}, "app-secret", False)])
@pytest.mark.parametrize("before", ["plain", "scram"])
def test_scram_goes_by_what_is_in_force_at_its_first_message(make_pooler, before, now, password, good):
    kinds = {"scram": scram_secret("another"), "md5": md5_secret("app", "app-secret")}
    first = "app-secret" if before == "plain" else scram_secret("app-secret")
    pooler = make_pooler(start=False, ini={"auth_type": "scram-sha-256"}, userlist={"app": first, "admin": "a"})
    pooler.databases = {"p0": forced(pooler)}
    pooler.write()
    pooler.start()
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        wire.recv()
        pooler.userlist = {"admin": "a", **{user: kinds.get(secret, secret) for user, secret in now.items()}}
        pooler.write()
        with pooler.console() as console:
            console.query("RELOAD")
            pooler.settle(console)
        wire.send(sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abc"))
        answer = wire.recv()
        # before 1.25 who has an MD5 hash learns so at once
        if answer.type == "R":
            final, _ = scram_proof(password, "abc", "n=,r=abc", answer.body[4:].decode())
            wire.send(message("p", final.encode()))
            answer = wire.recv()
        if good:
            assert answer.body[:4] == b"\0\0\0\x0c"
        else:
            assert answer.fields["M"] == "SASL authentication failed"


@pytest.mark.ours
@pytest.mark.parametrize("size", [65_531, 67_000, 1 << 20])
@pytest.mark.parametrize("auth_type, text", [("plain", "password authentication failed"), ("md5", "password authentication failed"),
                                             ("scram-sha-256", "SASL authentication failed")])
def test_longer_than_any_answer(asked, auth_type, text, size):
    wire = asked(auth_type)
    head = cstr("SCRAM-SHA-256") + size.to_bytes(4, "big") if auth_type == "scram-sha-256" else b""
    # the answer comes before the last of it was sent, and with it the end
    with contextlib.suppress(ConnectionError):
        wire.send(message("p", head + b"x" * size + b"\0"))
    wire.expect_fatal(text)


def test_second_startup_message(asked):
    wire = asked("md5")
    wire.send(startup_packet({"user": "app"}))
    wire.expect_fatal("client re-sent startup pkt")


def test_other_message_while_the_password_is_asked_for_closes_silently(asked):
    wire = asked("md5")
    wire.send(message("Q", b"SELECT 1\0"))
    assert wire.at_eof()


def sasl_initial(mechanism, first):
    return message("p", cstr(mechanism) + struct.pack("!I", len(first)) + first)


@pytest.mark.parametrize("packet, text", [
    (sasl_initial("SCRAM-SHA-1", b"n,,n=,r=abc"), "client selected an invalid SASL authentication mechanism"),
    (sasl_initial("SCRAM-SHA-256", b"p=tls-unique,,n=,r=abc"), "SASL authentication failed"),
    (sasl_initial("SCRAM-SHA-256", b"n,a=other,n=,r=abc"), "SASL authentication failed"),
    (sasl_initial("SCRAM-SHA-256", b"n,,m=x,n=,r=abc"), "SASL authentication failed"),
    (sasl_initial("SCRAM-SHA-256", b""), "SASL authentication failed"),
    (sasl_initial("SCRAM-SHA-256", b"n,,n=,r=a\x01b"), "SASL authentication failed"),
])
def test_broken_scram_first_message(asked, packet, text):
    wire = asked("scram-sha-256")
    wire.send(packet)
    wire.expect_fatal(text)


@pytest.mark.parametrize("final", [b"", b"c=biws", b"c=biws,r=other,p=AAAA", b"c=cA==,r=abc,p=AAAA", b"\xff" * 60])
def test_broken_scram_final_message(asked, final):
    wire = asked("scram-sha-256")
    wire.send(sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abc"))
    assert wire.recv().type == "R"
    wire.send(message("p", final))
    wire.expect_fatal("SASL authentication failed")


@pytest.mark.parametrize("ends", [("", ""), (",", ""), ("", ","), (",x=1,", ",")])
def test_scram_messages_may_end_with_a_comma(asked, ends):
    wire = asked("scram-sha-256")
    bare = "n=,r=abc" + ends[0]
    first = f"n,,{bare}".encode()
    wire.send(message("p", cstr("SCRAM-SHA-256") + len(first).to_bytes(4, "big") + first))
    final, _ = scram_proof("app-secret", "abc", bare, wire.recv().body[4:].decode())
    wire.send(message("p", (final + ends[1]).encode()))
    assert wire.recv().body[:4] == b"\0\0\0\x0c"


def test_scram_without_a_nonce_of_the_client(asked):
    wire = asked("scram-sha-256")
    wire.send(sasl_initial("SCRAM-SHA-256", b"n,,n=,r="))
    final, signature = scram_proof("app-secret", "", "n=,r=", wire.recv().body[4:].decode())
    wire.send(message("p", final.encode()))
    assert wire.recv().body[4:].decode() == f"v={signature}"


@pytest.mark.parametrize("first, log", [
    (b"n", 'comma expected, but found character "0x00"'),
    (b"y,", 'unexpected attribute "0x00" in client-first-message'),
    (b"n,,n=,r=a,x", 'expected character "=" after attribute "x"'),
    (b"n,,n=,r:a", 'expected "=" after attribute "r"'),
])
def test_broken_scram_messages_in_the_log(strict, first, log):
    pooler = strict("scram-sha-256", "app-secret")
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        wire.recv()
        wire.send(sasl_initial("SCRAM-SHA-256", first))
        wire.expect_fatal("SASL authentication failed")
    pooler.wait_log(f"malformed SCRAM message ({log})")


def test_same_salt_for_a_stranger_each_time(strict):
    """The mock exchange must not show that the user does not exist."""
    pooler = strict("scram-sha-256", "app-secret")
    seen = []
    for _ in range(2):
        with pooler.wire() as wire:
            wire.startup("stranger", "p0")
            wire.recv()
            wire.send(sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abc"))
            first = wire.recv().body[4:].decode()
            seen.append(dict(a.split("=", 1) for a in first.split(",")))
    assert seen[0]["s"] == seen[1]["s"] and seen[0]["i"] == seen[1]["i"] == "4096"
    assert seen[0]["r"] != seen[1]["r"]


def shown(pooler, user, password="wrong"):
    """What a login with a wrong password shows: its messages without what is drawn anew, and the salt."""
    with pooler.wire() as wire:
        wire.startup(user, "p0")
        first = wire.recv()
        assert first.type == "R", first
        code, salt, sizes = int.from_bytes(first.body[:4], "big"), None, None
        if code == PASSWORD["scram-sha-256"]:
            wire.send(sasl_initial("SCRAM-SHA-256", b"n,,n=,r=nonce"))
            challenge = wire.recv().body[4:].decode().split(",")
            salt, sizes = challenge[1], ([len(part) for part in challenge], challenge[2])
            wire.send(message("p", f"c=biws,{challenge[0]},p={base64.b64encode(bytes(32)).decode()}".encode()))
        elif code == PASSWORD["md5"]:
            wire.send(message("p", cstr(md5_response(user, password, first.body[4:8]))))
        else:
            wire.send(message("p", cstr(password)))
        return (code, len(first.body), sizes, list(wire.recv().fields.items()), wire.at_eof()), salt


@pytest.mark.ours
@pytest.mark.parametrize("kind", [*SECRETS, "strong scram"])
@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_strangers_are_asked_as_users_are(make_pooler, auth_type, kind):
    """Whatever kind of secret users have, and whatever may have changed meanwhile."""
    make = SECRETS.get(kind, lambda user, password: scram_secret(password, 10_000))
    users = {user: make(user, f"{user}-secret") for user in ("app", "app2", "plainuser")}
    pooler = make_pooler(ini={"auth_type": auth_type}, userlist={**users, "admin": SECRETS["plain"]("admin", "SecurePass2024!")})
    before = {user: shown(pooler, user) for user in ("app", "app2", "nosuch", "nobody")}
    assert len({str(form) for form, _ in before.values()}) == 1, before
    pooler.userlist["another"] = make("another", "x")
    pooler.write()
    pooler.reload()
    assert {user: shown(pooler, user) for user in before} == before, "a salt that changes tells as much"


@pytest.mark.ours
@pytest.mark.parametrize("auth_type, expected", [("md5", ["md5", "md5", "scram"]), ("scram-sha-256", ["i=4096", "i=4096", "i=9000"])])
def test_strangers_are_asked_as_most_users_are(make_pooler, auth_type, expected):
    pooler = make_pooler(ini={"auth_type": auth_type}, userlist={"admin": "SecurePass2024!"})

    def asked():
        (code, _, sizes, _, _), _ = shown(pooler, "nosuch")
        return sizes[1] if auth_type == "scram-sha-256" else {5: "md5", 10: "scram"}[code]

    seen = []
    for user in ("nobody", "app", "app2"):
        if user != "nobody":
            pooler.userlist[user] = scram_secret("x", 9000)
            pooler.write()
            pooler.reload()
        seen.append(asked())
    assert seen == expected


@pytest.mark.since("1.25")
@pytest.mark.parametrize("auth_type", ["plain", "md5"])
def test_password_far_larger_than_pkt_buf(make_pooler, auth_type):
    password = "x" * 40000
    pooler = make_pooler(start=False, ini={"auth_type": auth_type}, userlist={"app": password})
    pooler.databases = {"p0": forced(pooler)}
    pooler.write()
    pooler.start()
    with pooler.login("app", password=password) as wire:
        assert wire.query("SELECT 1").value == "1"
    with pytest.raises(ServerError, match="password authentication failed"):
        pooler.login("app", password=password + "y")


def test_user_name_of_128_bytes_is_refused(pooler):
    with pytest.raises(ServerError, match="(username too long|authentication failed)"):
        pooler.login("u" * 128)


def test_own_uid_reaches_the_console_without_password(make_pooler, pg):
    from support.system import run

    pooler = make_pooler(ini={"auth_type": "md5", "admin_users": None})
    out = run([pg.bin / "psql", "-h", pooler.dir, "-p", pooler.port, "-U", "pgbouncer", "-d", "pgbouncer", "-Atc", "SHOW VERSION"],
              switch_user=True)
    assert out.stdout.startswith("PgBouncer 1.")
    pooler.wait_log("pgbouncer access from unix socket")
    with pytest.raises(ServerError, match="FATAL 08P01: not allowed"):
        pooler.login("pgbouncer", "pgbouncer", password="x")
