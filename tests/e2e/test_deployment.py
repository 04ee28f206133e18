"""The first deployment: md5 logins, transaction pooling, 100 clients over at most 25 servers, warm servers, a reserve."""
import signal

import pytest

from support.load import Background, Sampler
from support.system import holds, until
from support.wire import ServerError, query

DB = "enterprisescanner"


@pytest.fixture(params=["md5", "scram-sha-256"])
def deployment(request, make_pooler, pg):
    """The deployment's own configuration; PostgreSQL keeps the password as md5 or as SCRAM secret."""
    pg.sql(f"SET password_encryption = '{request.param}'")
    pg.sql("ALTER ROLE admin PASSWORD 'SecurePass2024!'")
    pg.sql("ALTER ROLE scanner PASSWORD 'scanner-secret'")
    pooler = make_pooler(start=False, userlist={"admin": "SecurePass2024!"}, databases={}, ini=dict(
        auth_type="md5", admin_users="admin", stats_users=None, pool_mode="transaction", max_client_conn=100,
        default_pool_size=25, min_pool_size=5, reserve_pool_size=5, reserve_pool_timeout=3, max_db_connections=50,
        log_connections=1, log_disconnections=1))
    pooler.ini["pidfile"] = pooler.dir / "pgbouncer.pid"
    pooler.databases = {DB: pooler.backend(DB)}
    pooler.write()
    return pooler.start()


def admin(pooler):
    return pooler.login("admin", DB, timeout=30)


def test_hundred_clients_share_25_servers_and_the_101st_is_refused(deployment, pg):
    clients = [admin(deployment) for _ in range(100)]
    with pytest.raises(ServerError) as refused:
        admin(deployment)
    assert refused.value.fields == {"S": "FATAL", "C": "08P01", "M": "no more connections allowed (max_client_conn)"}

    def work(background, number):
        for turn in range(20):
            wire = clients[number]
            wire.query("BEGIN")
            assert wire.query(f"SELECT {number} * 1000 + {turn}").value == str(number * 1000 + turn)
            wire.query("COMMIT")
            background.count()

    with Sampler(lambda: len(pg.backends(DB))) as servers:
        background = Background(work, threads=100)
        background.join(60)
    assert background.done == 2000
    assert servers.samples > 0 and 5 <= servers.largest <= 25
    for client in clients:
        client.close()
    until(lambda: len(pg.backends(DB)) <= 25)
    until(lambda: deployment.show("VERSION"), what="a console login after clients have left")


def test_five_servers_stay_warm_after_the_first_login(deployment, pg):
    assert pg.backends(DB) == []
    with admin(deployment):
        until(lambda: len(pg.backends(DB)) == 5, what="five warm servers")
        holds(lambda: len(pg.backends(DB)) == 5, 1.0)


def test_reserve_opens_when_all_25_are_held(deployment, pg):
    clients = [admin(deployment) for _ in range(35)]
    # nobody waits yet: the time until the reserve is opened begins when all servers are there
    for client in clients[:25]:
        client.send(query("BEGIN"))
    until(lambda: len(pg.backends(DB)) == 25)
    until(lambda: deployment.pool(DB, "admin")["sv_active"] == 25)
    for client in clients[25:]:
        client.send(query("BEGIN"))
    until(lambda: deployment.pool(DB, "admin")["cl_waiting"] == 10)
    until(lambda: len(pg.backends(DB)) == 30, 8, what="the reserve")
    holds(lambda: len(pg.backends(DB)) == 30, 1.0)
    assert "taking connection from reserve_pool" in deployment.log()
    assert deployment.pool(DB, "admin")["cl_waiting"] == 5
    waiting = list(clients)
    while waiting:
        for client in list(waiting):
            if client.recv_or_none(0.02) is not None:
                client.result()
                client.query("COMMIT")
                waiting.remove(client)
    until(lambda: len(pg.backends(DB)) <= 30)


def test_two_users_never_have_more_than_50_servers(deployment, pg):
    deployment.userlist["scanner"] = "scanner-secret"
    deployment.ini["reserve_pool_timeout"] = 1
    deployment.write()
    deployment.reload()
    clients = [deployment.login(u, DB, timeout=30) for u in ("admin", "scanner") for _ in range(35)]
    with Sampler(lambda: len(pg.backends(DB))) as servers:
        for client in clients:
            client.send(query("BEGIN"))
        until(lambda: len(pg.backends(DB)) == 50, 30, what="both pools and what the limit leaves of the reserve")
        holds(lambda: len(pg.backends(DB)) == 50, 2.0)
    assert servers.largest == 50
    assert len(pg.backends(DB, "admin")) <= 30 and len(pg.backends(DB, "scanner")) <= 30


def test_reload_applies_sizes_passwords_and_databases_and_drops_nobody(deployment, pg):
    staying = admin(deployment)
    staying.query("BEGIN")
    staying.query("CREATE TEMP TABLE mine AS SELECT 7 AS n")
    idle = admin(deployment)
    deployment.ini["default_pool_size"] = 3
    deployment.ini["min_pool_size"] = 1
    deployment.databases["second"] = deployment.backend("p1")
    deployment.userlist["scanner"] = "scanner-secret"
    deployment.write()
    deployment.reload()
    assert deployment.setting("default_pool_size") == "3"
    assert staying.query("SELECT n FROM mine").value == "7", "the open transaction goes on"
    staying.query("COMMIT")
    assert idle.query("SELECT 1").value == "1"
    with deployment.login("scanner", "second") as wire:
        assert wire.query("SELECT current_database()").value == "p1"

    deployment.userlist["scanner"] = "another"
    del deployment.databases["second"]
    deployment.write()
    deployment.reload()
    with pytest.raises(ServerError, match="password authentication failed"):
        deployment.login("scanner", DB, password="scanner-secret")
    with pytest.raises(ServerError, match="no such database: second"):
        deployment.login("admin", "second")
    assert staying.query("SELECT 2").value == "2" and idle.query("SELECT 3").value == "3"


def test_smaller_pool_closes_surplus_servers(deployment, pg):
    clients = [admin(deployment) for _ in range(20)]
    for client in clients:
        client.send(query("BEGIN"))
    for client in clients:
        client.result()
    for client in clients:
        client.query("COMMIT")
    assert len(pg.backends(DB)) == 20
    deployment.ini.update(default_pool_size=4, min_pool_size=0, reserve_pool_size=0)
    deployment.write()
    deployment.reload()
    until(lambda: len(pg.backends(DB)) == 4, what="the surplus is closed")
    assert all(c.query("SELECT 1").value == "1" for c in clients)


@pytest.mark.parametrize("broken", ["this is no setting\n", "default_pool_size = many\n", "[nosuch]\nx = 1\n",
                                    "%include /nonexistent/file.ini\n", "unknown_setting = 1\n"])
@pytest.mark.fault("a broken configuration file at a reload, of five kinds", "an error is logged, the old settings stay in force as a "
                   "whole, nobody is dropped")
@pytest.mark.goal("G9")
def test_broken_file_at_reload_changes_nothing(deployment, broken):
    client = admin(deployment)
    client.query("BEGIN")
    before = deployment.show("CONFIG"), deployment.show("DATABASES")
    deployment.write(extra=broken)
    deployment.reload()
    deployment.wait_log("WARNING config file loading failed")
    client.query("COMMIT")
    assert client.query("SELECT 5").value == "5"
    config, databases = deployment.show("CONFIG"), deployment.show("DATABASES")
    assert config == before[0]
    assert [d["name"] for d in databases] == [d["name"] for d in before[1]]
    with admin(deployment) as fresh:
        assert fresh.query("SELECT 6").value == "6"


@pytest.mark.ours
@pytest.mark.goal("G9")
def test_broken_file_at_reload_applies_nothing_of_what_stands_before_the_error(deployment):
    deployment.ini["default_pool_size"] = 11
    deployment.userlist["admin"] = "changed"
    deployment.write(extra="nonsense\n")
    deployment.signal(signal.SIGHUP)
    deployment.wait_log("config file loading failed")
    with deployment.login("admin", "pgbouncer", password="SecurePass2024!") as console:
        rows = {r["key"]: r["value"] for r in console.query("SHOW CONFIG").dicts}
    assert rows["default_pool_size"] == "25"


def test_pidfile_and_log_of_the_deployment(deployment):
    assert (deployment.dir / "pgbouncer.pid").read_text() == f"{deployment.process.pid}\n"
    with admin(deployment):
        pass
    deployment.wait_log("closing because: client unexpected eof")
    assert f"{DB}/admin@127.0.0.1:" in deployment.log()
    assert "login attempt: db=enterprisescanner user=admin tls=no" in deployment.log()
