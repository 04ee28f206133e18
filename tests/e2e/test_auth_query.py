"""auth_query: users that auth_file does not have are looked up on a server, at each login."""

import re

import psycopg
import pytest

from support.system import until
from support.wire import ServerError, startup_packet

ADMIN = {"admin": "SecurePass2024!"}
FETCHED = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname=$1"


@pytest.fixture(scope="module", autouse=True)
def fetched_roles(pg):
    """Roles that no auth_file has: PostgreSQL checks them like the tests' other roles of that kind."""
    pg.sql("SET password_encryption = 'scram-sha-256'")
    pg.sql("DROP ROLE IF EXISTS fetched, expired, nopassword")
    pg.sql("CREATE ROLE fetched LOGIN PASSWORD 'fetched-secret'")
    pg.sql("CREATE ROLE expired LOGIN PASSWORD 'over' VALID UNTIL '2001-01-01'")
    pg.sql("CREATE ROLE nopassword LOGIN")
    with open(pg.data / "pg_hba.conf", "a") as hba:
        hba.write("host all fetched 127.0.0.0/8 scram-sha-256\n")
    pg.sql("SELECT pg_reload_conf()")


@pytest.fixture
def asking(make_pooler):
    """A pooler that looks users up as `admin`; `p0` has a forced user, so that only the client's side is tested."""
    def make(auth_type="md5", databases=None, userlist=ADMIN, **ini):
        pooler = make_pooler(start=False, ini={"auth_type": auth_type, "auth_user": "admin", **ini}, userlist=userlist)
        pooler.databases = {"p0": pooler.backend(user="trustuser"), "p1": pooler.backend("p1")}
        if databases:
            pooler.databases.update(databases(pooler))
        pooler.write()
        return pooler.start()

    return make


def refused(pooler, text, user="fetched", database="p0", password="fetched-secret"):
    """A login that must fail with `text` and nothing else."""
    with pytest.raises(ServerError) as error:
        pooler.login(user, database, password=password)
    assert list(error.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", text)]


def test_what_a_lookup_leaves_behind_is_reset_in_session_pooling(asking):
    query = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND set_config('work_mem', '123kB', false) <> ''"
    pooler = asking("md5", databases=lambda p: {"p0": p.backend()}, auth_query=query, pool_mode="session", default_pool_size=1)
    pooler.login("fetched", password="fetched-secret").close()
    with pooler.login("admin", password=ADMIN["admin"]) as wire:
        assert wire.query("SHOW work_mem").value != "123kB"


def test_query_timeout_ends_a_lookup(asking):
    query = "SELECT rolname, rolpassword FROM pg_authid, pg_sleep(30) WHERE rolname = $1"
    pooler = asking("md5", auth_query=query, query_timeout=1)
    refused(pooler, "bouncer config error")
    pooler.wait_log("closing because: query timeout")


@pytest.mark.parametrize("auth_type", ["plain", "scram-sha-256"])
def test_another_name_goes_by_the_secret_that_came_with_it(asking, auth_type):
    query = "SELECT 'app2'::text, 'from-query'::text WHERE $1 = 'alias'"
    pooler = asking(auth_type, userlist={**ADMIN, "app2": "from-file"}, auth_query=query)
    refused(pooler, f"{'SASL' if auth_type == 'scram-sha-256' else 'password'} authentication failed", "alias", password="from-file")
    with pooler.login("alias", password="from-query") as wire:
        assert wire.query("SELECT 1").value == "1"


@pytest.mark.parametrize("auth_type", ["trust", "plain", "md5", "scram-sha-256"])
def test_every_method_asks(asking, auth_type):
    pooler = asking(auth_type)
    with pooler.login("fetched", password="fetched-secret") as wire:
        assert wire.query("SELECT current_user").value == "trustuser"
    refused(pooler, "no such user", user="nosuch")
    pooler.wait_log("login failed: db=p0")
    if auth_type != "trust":
        wrong = "password authentication failed" if auth_type == "plain" else "SASL authentication failed"
        refused(pooler, wrong, password="wrong")
    # the lookups went over an ordinary pool
    assert pooler.pool("p0", "admin")["sv_idle"] == 1


@pytest.mark.since("1.24.1")
@pytest.mark.parametrize("user", ["expired", "nopassword"])
def test_secret_that_is_null_matches_nothing(asking, user):
    pooler = asking("md5")
    with pytest.raises(ServerError, match="FATAL 08P01: password authentication failed"):
        pooler.login(user, password="over")


def test_changes_act_at_once(asking, pg):
    pooler = asking("scram-sha-256")
    pooler.login("fetched", password="fetched-secret").close()
    pg.sql("ALTER ROLE fetched PASSWORD 'changed'")
    try:
        pooler.login("fetched", password="changed").close()
        refused(pooler, "SASL authentication failed")
        pg.sql("ALTER ROLE fetched NOLOGIN")
        refused(pooler, "no such user", password="changed")
    finally:
        pg.sql("ALTER ROLE fetched LOGIN PASSWORD 'fetched-secret'")


@pytest.mark.parametrize("name", ["only-in-users", "trustuser"])
def test_names_without_an_auth_file_record_are_fetched(asking, pg, name):
    """[users] and forced users make a name known, but not its secret."""
    pooler = asking("md5", auth_query="SELECT $1::text, 'from-query'")
    pooler.users = {"only-in-users": {"pool_mode": "session"}}
    pooler.write()
    pooler.reload()
    pooler.login(name, password="from-query").close()


def test_auth_file_counts_before_the_query(asking):
    pooler = asking("md5", userlist={**ADMIN, "fetched": "from-file", "empty": ""})
    pooler.login("fetched", password="from-file").close()
    refused(pooler, "password authentication failed")
    refused(pooler, "password authentication failed", user="empty", password="x")


def test_waits_in_the_pool_of_the_auth_user(asking):
    pooler = asking("md5", databases=lambda p: {"lookups": p.backend("p1")}, auth_dbname="lookups",
                    userlist={**ADMIN, "app": "app-secret"})
    with pooler.console() as console, pooler.wire() as wire:
        console.query("PAUSE lookups")
        wire.startup("fetched", "p0")
        row = until(lambda: (r := pooler.pool("lookups", "admin")) and r["cl_waiting"] == 1 and r)
        assert row["sv_active"] == row["sv_idle"] == 0
        (client,) = [r for r in pooler.show("CLIENTS") if r["state"] == "waiting"]
        assert client["database"] == "lookups"
        assert wire.recv_or_none(0.1) is None
        console.query("RESUME lookups")
        wire.finish_login("fetched", "fetched-secret")
        assert wire.query("SELECT 1").value == "1"
        row = pooler.pool("lookups", "admin")
        assert (row["cl_waiting"], row["sv_idle"]) == (0, 1)


@pytest.mark.parametrize("sql, reason", [
    ("SELECT $1::text", "expected 2 columns from auth_query, not 1"),
    ("SELECT $1::text, 'a', 'b'", "expected 2 columns from auth_query, not 3"),
    ("SELECT NULL::text, $1::text", "auth_query response contained null user name"),
    ("SELECT a, b FROM nowhere WHERE a = $1", "error response from auth_query"),
    ("SELECT $1::text, (1/0)::text", "error response from auth_query"),
    ("SET work_mem = '1MB'", "error response from auth_query"),
    ("DO $$BEGIN PERFORM 1; END$$", "error response from auth_query"),
])
def test_answers_that_are_none(asking, sql, reason):
    pooler = asking("md5", auth_query=sql)
    refused(pooler, "bouncer config error")
    pooler.wait_log(f"closing because: {reason} (age=")
    pooler.wait_log("closing because: bouncer config error")
    if reason.startswith("error response"):
        pooler.wait_log(re.compile(r"ERROR S: error in auth_query: ERROR: \S"))
    assert pooler.pool("p0", "admin")["sv_idle"] == 0
    # the next one gets a new connection, and the same answer
    refused(pooler, "bouncer config error")


def test_last_row_and_its_name_count(asking):
    """The name of the row is the name from then on."""
    pooler = asking("plain", auth_query="SELECT * FROM (VALUES ('x', 'one'), ('trustuser', $1)) v", databases=lambda p: {"p1": p.backend()})
    with pooler.login("two", "p1", password="two") as wire:
        assert wire.query("SELECT current_user").value == "trustuser"
        assert [r["user"] for r in pooler.show("CLIENTS") if r["database"] == "p1"] == ["trustuser"]
    refused(pooler, "password authentication failed", user="two", database="p1", password="one")


def test_names_are_parameters(asking):
    pooler = asking("md5")
    for name in ("' OR 1=1 --", "$1", "fetched' --", "fetched\\"):
        refused(pooler, "no such user", user=name)


def test_nothing_of_the_client_reaches_the_lookup(asking):
    """The secret is the server's own application_name: the client's must not be applied there."""
    pooler = asking("plain", databases=lambda p: {"p0": p.backend(user="trustuser"), "lookups": p.backend(application_name="fixed")},
                    auth_dbname="lookups", auth_query="SELECT $1::text, current_setting('application_name')")
    for name in ("mine", "fixed"):
        with pooler.login("fetched", password="fixed", application_name=name, datestyle="German") as wire:
            assert wire.query("SHOW application_name").value == name


@pytest.mark.parametrize("where", ["setting", "entry"])
def test_auth_dbname(asking, where):
    named = {"auth_dbname": "nowhere"}
    pooler = asking("md5", **(named if where == "setting" else {}),
                    databases=lambda p: {"p0": p.backend(user="trustuser", **(named if where == "entry" else {})), "lookups": p.backend("p1")})
    refused(pooler, "bouncer config error")
    pooler.wait_log('authentication database "nowhere" is not configured.')
    named["auth_dbname"] = "lookups"
    if where == "setting":
        pooler.ini.update(named)
    else:
        pooler.databases["p0"].update(named)
    pooler.write()
    pooler.reload()
    pooler.login("fetched", password="fetched-secret").close()
    pooler.wait_log("lookups/admin@127.0.0.1")


def test_auth_dbname_that_is_disabled(asking):
    pooler = asking("md5", databases=lambda p: {"lookups": p.backend("p1")}, auth_dbname="lookups", userlist=ADMIN)
    pooler.admin("DISABLE lookups")
    refused(pooler, 'authentication database "lookups" is disabled')
    pooler.admin("ENABLE lookups")
    pooler.login("fetched", password="fetched-secret").close()


def test_auth_dbname_made_from_the_wildcard(asking):
    pooler = asking("md5", databases=lambda p: {"*": {"host": "127.0.0.1", "port": p.pg.port}}, auth_dbname="postgres")
    pooler.login("fetched", password="fetched-secret").close()
    pooler.wait_log("registered new auto-database: postgres")


def test_console_is_no_auth_database(asking):
    pooler = asking("md5", databases=lambda p: {"p0": p.backend(user="trustuser", auth_dbname="pgbouncer")})
    refused(pooler, "bouncer config error")
    pooler.wait_log('cannot use the reserved "pgbouncer" database as an auth_dbname')


def test_entry_has_its_own_query_and_user(asking):
    def databases(pooler):
        return {"own": pooler.backend(user="trustuser", auth_user="plainuser", auth_query="SELECT $1::text, 'of entry ' || current_user")}

    pooler = asking("plain", databases=databases, userlist={**ADMIN, "plainuser": "plain-secret"})
    pooler.login("fetched", "own", password="of entry plainuser").close()
    pooler.wait_log("own/plainuser@127.0.0.1")


@pytest.fixture
def asking_as(asking):
    """A pooler that asks as whom its global auth_user says, and a function that tells as whom it asked for a database."""
    def make(auth_user="admin", databases=("p0", "p1", "*"), **ini):
        pooler = asking("plain", auth_user=auth_user, auth_query="SELECT $1::text, 'asked by ' || current_user",
                        databases=lambda p: {name: p.backend(user="trustuser") for name in databases},
                        userlist={**ADMIN, "plainuser": "plain-secret"}, **ini)

        def asked_by(database):
            for name in ("admin", "plainuser"):
                try:
                    pooler.login("fetched", database, password=f"asked by {name}").close()
                    return name
                except ServerError as error:
                    if "password authentication failed" not in str(error):
                        raise
            raise AssertionError(f"nobody asked for {database}")

        return pooler, asked_by

    return make


def test_entry_keeps_the_global_auth_user_until_it_is_read_again(asking_as):
    pooler, asked_by = asking_as()
    assert [asked_by("p0"), asked_by("made")] == ["admin", "admin"]
    pooler.admin("SET auth_user = 'plainuser'")
    assert pooler.setting("auth_user") == "plainuser"
    # several logins, for all workers keep the same
    assert [asked_by("p0") for _ in range(6)] == ["admin"] * 6
    assert [asked_by(name) for name in ("made", "p1", "other")] == ["admin", "plainuser", "plainuser"]
    # SET lasts until RELOAD, which concerns entries of the file
    pooler.reload()
    assert pooler.setting("auth_user") == "admin"
    assert [asked_by(name) for name in ("p0", "p1", "made", "other")] == ["admin", "admin", "admin", "plainuser"]
    pooler.ini["auth_user"] = "plainuser"
    pooler.write()
    pooler.reload()
    assert [asked_by(name) for name in ("p0", "p1", "made")] == ["plainuser", "plainuser", "admin"]
    # entries made from * are read again when that has changed
    pooler.databases["*"]["pool_size"] = 7
    pooler.write()
    pooler.reload()
    assert asked_by("made") == "plainuser"


def test_entry_without_auth_user_takes_the_one_that_is_set(asking_as):
    pooler, asked_by = asking_as(auth_user=None)
    refused(pooler, "password authentication failed")
    pooler.admin("SET auth_user = 'plainuser'")
    assert asked_by("p0") == "plainuser"


@pytest.mark.since("1.23")
def test_entry_keeps_the_global_auth_user_for_lookups_elsewhere(asking_as):
    pooler, asked_by = asking_as(auth_dbname="p1", stats_users="fetched")
    assert [asked_by("p0"), asked_by("pgbouncer")] == ["admin", "admin"]
    pooler.admin("SET auth_user = 'plainuser'")
    assert [asked_by(name) for name in ("p0", "pgbouncer", "p1")] == ["admin", "admin", "plainuser"]
    # the console is no entry of the file
    pooler.ini["auth_user"] = "plainuser"
    pooler.write()
    pooler.reload()
    assert [asked_by("p0"), asked_by("pgbouncer")] == ["plainuser", "admin"]


def test_limit_of_the_user_counts_after_the_row(asking):
    pooler = asking("md5", max_user_client_connections=1)
    with pooler.login("fetched", password="fetched-secret"):
        refused(pooler, "client connections exceeded (max_user_client_connections)")
        (row,) = [r for r in pooler.show("USERS") if r["name"] == "fetched"]
        assert row["current_client_connections"] == "1"
    until(lambda: [r["current_client_connections"] for r in pooler.show("USERS") if r["name"] == "fetched"] == ["0"])
    pooler.login("fetched", password="fetched-secret").close()


@pytest.mark.since("1.25.2")
def test_one_negotiation(asking):
    pooler = asking("md5")
    with pooler.wire() as wire:
        wire.send(startup_packet({"user": "fetched", "database": "p0", "_pq_.x": "1"}, 0x30002))
        wire.finish_login("fetched", "fetched-secret")
        assert [m.type for m in wire.login_messages].count("v") == 1


@pytest.mark.since("1.25.2")
def test_startup_packet_larger_than_pkt_buf(asking):
    pooler = asking("md5", pkt_buf=2048, ignore_startup_parameters="ignored")
    with pooler.wire() as wire:
        wire.startup("fetched", "p0", ignored="x" * 30_000, application_name="n" * 4000)
        wire.finish_login("fetched", "fetched-secret")
        assert wire.query("SELECT 1").value == "1"


def test_client_that_leaves_takes_the_lookup_with_it(asking, pg):
    pooler = asking("md5", auth_query="SELECT $1::text, pg_sleep(60)::text")
    wire = pooler.wire()
    wire.startup("fetched", "p0")
    until(lambda: pg.sleeping("pg_sleep(60)"))
    wire.close()
    until(lambda: "closing because: client disconnect" in pooler.log())
    pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(60)%%' AND pid <> pg_backend_pid()")
    assert pooler.pool("p0", "admin")["sv_active"] == 0


@pytest.mark.ours
def test_lookup_that_hangs_ends_with_the_login_timeout(asking, pg):
    pooler = asking("md5", auth_query="SELECT $1::text, pg_sleep(60)::text", client_login_timeout=3)
    refused(pooler, "client_login_timeout")
    pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(60)%%' AND pid <> pg_backend_pid()")


def test_lookup_whose_server_dies(asking, pg):
    pooler = asking("md5", auth_query="SELECT $1::text, pg_sleep(60)::text")
    with pooler.wire() as wire:
        wire.startup("fetched", "p0")
        pid, = until(lambda: pg.sleeping("pg_sleep(60)"))
        pg.sql("SELECT pg_terminate_backend(%s)", pid)
        wire.expect_fatal("bouncer config error")


def test_lookups_that_cannot_log_in(asking):
    """All that wait are told what the server said; later ones hear the cached error until the next attempt."""
    pooler = asking("md5", userlist={"admin": "wrong", "app": "app-secret"}, server_login_retry=30)
    with pytest.raises(ServerError, match='FATAL 28P01: password authentication failed for user "admin"'):
        pooler.login("fetched", password="x")
    with pytest.raises(ServerError, match='FATAL 08P01: server login has been failing, cached error: password authentication failed'):
        pooler.login("fetched", password="x")


def test_servers_of_a_fetched_user(asking, pg):
    """The fetched SCRAM secret and the keys of the client's login open servers, later ones as well."""
    pooler = asking("scram-sha-256", pool_mode="transaction")
    with pooler.login("fetched", "p1", password="fetched-secret") as wire:
        pid = int(wire.query("SELECT pg_backend_pid()").value)
        pg.sql("SELECT pg_terminate_backend(%s)", pid)
        until(lambda: pid not in pg.backends("p1"))
        until(lambda: pooler.pool("p1", "fetched")["sv_idle"] == 0)
        assert wire.query("SELECT current_user").value == "fetched"


def test_console_users_are_fetched_too(asking):
    pooler = asking("md5", databases=lambda p: {"lookups": p.backend("p1")}, auth_dbname="lookups", admin_users="fetched",
                    stats_users="nopassword", userlist=ADMIN)
    with pooler.login("fetched", "pgbouncer", password="fetched-secret") as console:
        assert console.query("SHOW VERSION").value.startswith("PgBouncer")
    refused(pooler, "password authentication failed", user="nopassword", database="pgbouncer", password="x")
    refused(pooler, "not allowed", user="expired", database="pgbouncer")
    refused(pooler, "not allowed", user="admin", database="pgbouncer", password="x")
    refused(pooler, "no such user", user="nosuch", database="pgbouncer")


def test_console_without_auth_dbname(asking):
    pooler = asking("md5")
    refused(pooler, "bouncer config error", database="pgbouncer")
    pooler.wait_log('cannot use the reserved "pgbouncer" database as an auth_dbname')


def test_many_at_once(asking, pg):
    """Lookups share the connections of their pool, and every one gets its own answer."""
    pooler = asking("plain", default_pool_size=2, max_client_conn=200, auth_query="SELECT $1::text, 'of ' || $1")
    wires = [pooler.wire() for _ in range(60)]
    for number, wire in enumerate(wires):
        wire.startup(f"user{number}", "p0")
    for number, wire in enumerate(wires):
        wire.finish_login(f"user{number}", f"of user{number}")
    assert len(pg.backends("p0", "admin")) <= 2
    for wire in wires:
        wire.close()


def test_psycopg_logs_in(asking):
    pooler = asking("scram-sha-256")
    with psycopg.connect(host="127.0.0.1", port=pooler.port, user="fetched", password="fetched-secret", dbname="p1") as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("fetched",)
