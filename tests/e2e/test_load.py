"""Load: pgbench with 64 clients in every protocol mode, and each count of worker threads."""

import os
import re

import pytest

from support.load import Background, Sampler, transactions
from support.system import as_daemon_user, run, until

# Seconds of each pgbench run; raise it for a longer soak.
PGBENCH_SECONDS = os.environ.get("E2E_PGBENCH_SECONDS", "2")


@pytest.fixture(scope="module")
def accounts(pg):
    run([pg.bin / "pgbench", "-i", "-q", "-s", "2", "-h", pg.dir, "-p", pg.port, "-U", "app", "p0"], cwd="/", **as_daemon_user())


def pgbench(pg, pooler, mode, *more, clients=64, length=("-T", PGBENCH_SECONDS)):
    done = run([pg.bin / "pgbench", "-n", "-M", mode, "-c", clients, "-j", "2", *length, *more, "-h", "127.0.0.1", "-p",
                pooler.port, "-U", "app", "p0"], timeout=80, check=False, cwd="/", **as_daemon_user())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aborted" not in done.stderr
    assert "number of failed transactions: 0 " in done.stdout, done.stdout
    return int(re.search(r"actually processed: (\d+)", done.stdout)[1])


MODES = ["simple", "extended", pytest.param("prepared", marks=pytest.mark.since("1.24"))]


# pgbench prepares inside a transaction and waits for it, all clients of a thread with it: -N needs as many servers as clients
@pytest.mark.parametrize("mode, script", [(mode, "-S") for mode in ["simple", "extended"]] + [
    ("simple", "-N"), ("extended", "-N"), pytest.param("prepared", "-S", marks=pytest.mark.since("1.24"))])
def test_pgbench_with_64_clients(make_pooler, pg, accounts, mode, script):
    pooler = make_pooler(ini={"default_pool_size": 10, "max_client_conn": 200})
    with Sampler(lambda: len(pg.backends("p0")), every=0.1) as servers:
        assert pgbench(pg, pooler, mode, script) > 100
    assert servers.largest <= 10
    until(lambda: pooler.pool()["cl_active"] == 0)
    assert pooler.pool()["sv_active"] == 0


# Scripts that use one statement for each step, and the number of their statements.
STEPS = ["SELECT abalance FROM pgbench_accounts WHERE aid = :aid;", "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;",
         "SELECT :aid + 1;"]
TRANSACTION = ["BEGIN;", *STEPS, "END;"]
SCRIPTS = {
    "one by one": (STEPS, len(STEPS)),
    "pipeline": (["\\startpipeline", *STEPS, "\\endpipeline"], len(STEPS)),
    "transaction in a pipeline": (["\\startpipeline", *TRANSACTION, "\\endpipeline"], len(TRANSACTION)),
    "several pipelines": (["\\startpipeline", *STEPS, "\\endpipeline", "\\startpipeline", *TRANSACTION, "\\endpipeline"],
                          len(STEPS + TRANSACTION)),
}


@pytest.fixture
def script(request, pg):
    """A pgbench script, and how many statements it prepares for each client."""
    lines, statements = SCRIPTS[request.param]
    path = pg.dir / "script.sql"
    path.write_text("\n".join(["\\set aid random(1, 200000)", *lines]) + "\n")
    return path, statements


@pytest.mark.since("1.24")
@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_pgbench_prepared_and_pipelined(make_pooler, pg, accounts, script):
    """A server has each statement once, however many clients prepare it."""
    path, statements = script
    pooler = make_pooler(ini={"default_pool_size": 5, "max_client_conn": 200})
    # in a number of seconds some of the clients may not get to their first transaction
    each = 10 * int(PGBENCH_SECONDS)
    assert pgbench(pg, pooler, "prepared", "-f", path, length=("-t", each)) == 64 * each
    until(lambda: pooler.pool()["sv_active"] == 0)
    assert len(pg.backends("p0", "app")) <= 5
    row = next(r for r in pooler.show("STATS") if r["database"] == "p0")
    distinct = len({line for line in path.read_text().splitlines() if not line.startswith("\\")})
    assert int(row["total_client_parse_count"]) == 64 * statements
    assert distinct <= int(row["total_server_parse_count"]) <= distinct * 5
    assert int(row["total_bind_count"]) >= int(row["total_client_parse_count"])


@pytest.mark.since("1.24")
def test_postgresql_sees_each_statement_parsed_once_for_each_server(make_pooler, pg, accounts, request):
    """PostgreSQL's own log is the witness."""
    pg.sql("ALTER ROLE app SET log_min_duration_statement = 0")
    request.addfinalizer(lambda: pg.sql("ALTER ROLE app RESET log_min_duration_statement"))
    before = len(pg.log())
    pooler = make_pooler(ini={"default_pool_size": 5, "max_client_conn": 200})
    path = pg.dir / "script.sql"
    path.write_text("\n".join(["\\set aid random(1, 200000)", "\\startpipeline", *STEPS, "\\endpipeline"]) + "\n")
    pgbench(pg, pooler, "prepared", "-f", path, length=("-t", 20))
    parsed = re.findall(r"\[(\d+)\] app@p0 .*?  parse (PGBOUNCER_\d+): ", pg.log()[before:])
    assert len(parsed) == len(set(parsed)), "a server got a statement twice"
    assert len({name for _, name in parsed}) == len(STEPS) and len({pid for pid, _ in parsed}) <= 5


@pytest.mark.parametrize("mode", MODES)
def test_pgbench_in_session_mode(make_pooler, pg, accounts, mode):
    pooler = make_pooler(ini={"pool_mode": "session", "default_pool_size": 16})
    assert pgbench(pg, pooler, mode, "-S", clients=16) > 100


def test_pgbench_connects_for_each_transaction(make_pooler, pg, accounts):
    pooler = make_pooler(ini={"default_pool_size": 10})
    assert pgbench(pg, pooler, "simple", "-S", "-C", clients=8) > 50
    until(lambda: len(pooler.show("CLIENTS")) == 1)


def test_books_balance_after_concurrent_updates(make_pooler, pg, accounts):
    pooler = make_pooler(ini={"default_pool_size": 10, "max_client_conn": 200})
    with pg.direct("p0", "app") as direct:
        direct.execute("TRUNCATE pgbench_history")
        direct.execute("UPDATE pgbench_accounts SET abalance = 0")
        direct.execute("UPDATE pgbench_tellers SET tbalance = 0")
        direct.execute("UPDATE pgbench_branches SET bbalance = 0")
        done = pgbench(pg, pooler, "extended")
        sums = [direct.execute(f"SELECT coalesce(sum({column}), 0) FROM {table}").fetchone()[0] for column, table in (
            ("abalance", "pgbench_accounts"), ("tbalance", "pgbench_tellers"), ("bbalance", "pgbench_branches"),
            ("delta", "pgbench_history"))]
        assert len(set(sums)) == 1
        assert direct.execute("SELECT count(*) FROM pgbench_history").fetchone()[0] == done


@pytest.mark.ours
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_limits_hold_over_all_workers(make_pooler, pg, accounts, workers):
    pooler = make_pooler(ini={"worker_threads": workers, "default_pool_size": 5, "max_client_conn": 200})
    assert pooler.setting("worker_threads") == str(workers)
    with Sampler(lambda: len(pg.backends("p0"))) as servers:
        for mode in ("simple", "extended", "prepared"):
            assert pgbench(pg, pooler, mode, "-S") > 100
    assert servers.largest == 5
    row = until(lambda: pooler.pool())
    assert row["cl_waiting"] == 0 and row["sv_active"] == 0


@pytest.mark.ours
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_clients_of_all_workers_are_seen_paused_and_killed(make_pooler, workers):
    pooler = make_pooler(ini={"worker_threads": workers, "default_pool_size": 3})
    clients = [pooler.login() for _ in range(12)]
    for number, client in enumerate(clients):
        assert client.query(f"SELECT {number}").value == str(number)
    assert len([c for c in pooler.show("CLIENTS") if c["user"] == "app"]) == 12
    pooler.admin("PAUSE")
    until(lambda: not [s for s in pooler.show("SERVERS") if s["database"] == "p0"])
    pooler.admin("RESUME")
    with Background(transactions(pooler), threads=8) as load:
        until(lambda: load.done > 100)
    row = next(r for r in pooler.show("STATS") if r["database"] == "p0")
    assert int(row["total_query_count"]) >= 12 + 3 * 100
    pooler.admin("KILL p0")
    for client in clients:
        client.expect_fatal("database removed")
