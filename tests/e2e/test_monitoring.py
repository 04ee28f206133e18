"""The statements that exporters and agents send, answered in the shape that they parse."""

import re
from decimal import Decimal

import psycopg2
import psycopg2.extensions
import pytest

from support.system import as_daemon_user, run, until
from support.wire import query

pytestmark = pytest.mark.since("1.25")


@pytest.fixture
def pooler(make_pooler):
    """One pool with a client in a transaction, one client that waits, and an idle database."""
    pooler = make_pooler(ini={"default_pool_size": 1, "ignore_startup_parameters": "extra_float_digits"})
    holder, waiter = pooler.login(application_name="holder"), pooler.login(application_name="waiter")
    holder.query("BEGIN")
    waiter.send(query("SELECT 1"))
    until(lambda: pooler.pool()["cl_waiting"] == 1)
    yield pooler
    holder.close()
    waiter.close()


@pytest.fixture
def console(pooler):
    with pooler.console("stats") as wire:
        yield wire


def test_pgbouncer_exporter(console):
    """It opens a connection for each scrape, reads most columns by name and the rest by count."""
    assert console.query("SHOW STATS").rows
    version = console.query("SHOW VERSION;")
    assert version.names == ["version"] and re.fullmatch(r"PgBouncer \d+\.\d+\.\d+.*", version.value)
    lists = {row["list"]: int(row["items"]) for row in console.query("SHOW LISTS;").dicts}
    assert {"databases", "users", "pools", "free_clients", "used_clients", "login_clients", "free_servers", "used_servers", "dns_names",
            "dns_zones", "dns_queries"} <= set(lists)
    assert (lists["used_clients"], lists["used_servers"], lists["databases"], lists["pools"]) == (3, 1, 3, 2)
    config = console.query("SHOW CONFIG;")
    assert len(config.columns) == 4
    values = {row["key"]: row["value"] for row in config.dicts}
    assert float(values["max_client_conn"]) == 100 and float(values["max_user_connections"]) == 0
    clients = console.query("SHOW CLIENTS;").dicts
    counted = {(c["database"], c["user"], c["application_name"], c["state"]) for c in clients}
    assert {("p0", "app", "holder", "active"), ("p0", "app", "waiter", "waiting")} <= counted
    databases = {d["name"]: d for d in console.query("SHOW DATABASES;").dicts}
    row = databases["p0"]
    assert {k: row[k] for k in ("database", "force_user", "pool_mode")} == {"database": "p0", "force_user": None, "pool_mode": None}
    assert [float(row[k]) for k in ("pool_size", "reserve_pool_size", "max_connections", "current_connections", "paused", "disabled")] == [
        1, 0, 0, 1, 0, 0]
    totals = {t["database"]: t for t in console.query("SHOW STATS_TOTALS;").dicts}
    assert {"query_count", "query_time", "xact_count", "xact_time", "wait_time", "bytes_received", "bytes_sent", "client_parse_count",
            "server_parse_count", "bind_count", "server_assignment_count"} <= set(totals["p0"])
    assert all(float(v) >= 0 for k, v in totals["p0"].items() if k != "database")
    pools = {(p["database"], p["user"]): p for p in console.query("SHOW POOLS;").dicts}
    pool = pools["p0", "app"]
    numbers = ("cl_active", "cl_waiting", "cl_active_cancel_req", "cl_waiting_cancel_req", "sv_active", "sv_idle", "sv_used", "sv_tested",
               "sv_login", "sv_active_cancel", "sv_being_canceled", "maxwait")
    assert [float(pool[k]) for k in numbers][:11] == [1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_cloudnativepg_scans_by_the_number_of_columns(console):
    pools, stats, lists = (console.query(f"SHOW {topic};") for topic in ("POOLS", "STATS", "LISTS"))
    assert len(pools.columns) == 17 and len(stats.columns) == 23 and len(lists.columns) == 2
    for database, user, *numbers, mode, balance in pools.rows:
        assert database and user and mode in ("session", "transaction", "statement") and balance is None
        assert [int(n) for n in numbers]
    for row in stats.rows:
        assert [int(n) for n in row[1:]]
    assert [row[0] for row in lists.rows] == ["databases", "users", "peers", "pools", "peer_pools", "free_clients", "used_clients",
                                              "login_clients", "free_servers", "used_servers", "dns_names", "dns_zones", "dns_queries",
                                              "dns_pending"]


def test_telegraf_wants_integers(console):
    for topic in ("STATS", "POOLS"):
        result = console.query(f"SHOW {topic}")
        for row in result.dicts:
            assert all(re.fullmatch(r"-?\d+", v) for k, v in row.items()
                       if k not in ("database", "user", "pool_mode", "load_balance_hosts")), row


def test_datadog(pooler):
    connection = psycopg2.connect(host="127.0.0.1", port=pooler.port, user="stats", password=pooler.userlist["stats"], dbname="pgbouncer")
    connection.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)

    def ask(statement):
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return [dict(zip([c.name for c in cursor.description], row)) for row in cursor.fetchall()]

    assert re.search(r"\d+\.\d+\.\d+", ask("SHOW VERSION;")[0]["version"]) and not connection.notices
    stats = {r["database"]: r for r in ask("SHOW STATS;")}
    assert isinstance(stats["p0"]["avg_query_time"], Decimal) and isinstance(stats["p0"]["total_wait_time"], Decimal)
    pools = {(r["database"], r["user"]): r for r in ask("SHOW POOLS;")}
    assert (pools["p0", "app"]["cl_waiting"], pools["p0", "app"]["sv_active"]) == (1, 1)
    assert {r["name"]: r["pool_size"] for r in ask("SHOW DATABASES;")}["p0"] == 1
    assert {r["key"]: r["value"] for r in ask("SHOW CONFIG;")}["default_pool_size"] == "1"
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( \S+)?"
    for topic in ("CLIENTS", "SERVERS"):
        rows = ask(f"SHOW {topic};")
        assert rows and all(re.fullmatch(stamp, r["connect_time"]) and re.fullmatch(stamp, r["request_time"]) for r in rows)
    connection.close()


def test_check_postgres(pooler, pg):
    def psql(statement):
        return run([pg.bin / "psql", "-X", "-q", "-At", "-h", "127.0.0.1", "-p", pooler.port, "-U", "stats", "-d", "pgbouncer", "-x", "-c",
                    statement], cwd="/", **as_daemon_user()).stdout

    pools = psql("SHOW POOLS")
    for column in ("cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait"):
        assert re.search(rf"^{column}\|\d+$", pools, re.M)
    config = psql("SHOW CONFIG")
    assert "log_pooler_errors" in config and re.search(r"^key\|max_client_conn\nvalue\|100$", config, re.M)
    assert psql("SHOW CONFIG") == config, "the checksum of all settings is stable"


def test_foreign_views_know_every_topic_by_name(pooler, pg):
    """dblink and pgbouncer_fdw declare fixed lists of columns for these topics, in small letters."""
    with pg.direct("p0") as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS dblink")
        address = f"host=127.0.0.1 port={pooler.port} user=stats dbname=pgbouncer password={pooler.userlist['stats']}"
        for topic, columns in (
            ("version", "version text"), ("lists", "list text, items int"), ("dns_hosts", "hostname text, ttl bigint, addrs text"),
            ("config", "key text, value text, \"default\" text, changeable text"), ("totals", "name text, value numeric"),
            ("users", "name text, pool_size text, reserve_pool_size text, pool_mode text, max_user_connections int, current_connections int,"
                      " max_user_client_connections int, current_client_connections int")):
            connection.execute(f"SELECT * FROM dblink(%s, %s) AS x({columns})", (address, f"show {topic}")).fetchall()


def test_operators_steer_by_simple_queries_over_the_unix_socket(pooler, pg):
    """CloudNativePG sends PAUSE, RESUME and RELOAD as user pgbouncer."""
    for command in ("RELOAD", "PAUSE p1", "RESUME p1"):
        done = run([pg.bin / "psql", "-X", "-q", "-h", pooler.dir, "-p", pooler.port, "-U", "pgbouncer", "-d", "pgbouncer", "-c", command],
                   cwd="/", **as_daemon_user())
        assert done.stderr == ""
