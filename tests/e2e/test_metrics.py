"""`metrics_listen`: what is served, to whom, and what it says."""

import socket
import stat
import time

import pytest

from support.load import Background, transactions
from support.scrape import OPENMETRICS, Scrape, fetch
from support.system import free_port, until
from support.wire import query

pytestmark = pytest.mark.ours

POOL = dict(database="p0", user="app")

# The metrics of pgbouncer_exporter with their labels; counters as the text format names them.
EXPORTER = {
    "up": [], "version_info": ["version"], "config_max_client_connections": [], "config_max_user_connections": [],
    **{name: [] for name in ("databases", "users", "pools", "free_clients", "used_clients", "login_clients", "free_servers", "used_servers",
                             "cached_dns_names", "cached_dns_zones", "in_flight_dns_queries")},
    "client_connections": ["database", "user", "application_name", "state"],
    **{f"databases_{name}": ["name", "host", "port", "database", "force_user", "pool_mode"]
       for name in ("pool_size", "reserve_pool", "max_connections", "current_connections", "paused", "disabled")},
    **{f"pools_{name}": ["database", "user"]
       for name in ("client_active_connections", "client_waiting_connections", "client_active_cancel_connections",
                    "client_waiting_cancel_connections", "server_active_connections", "server_idle_connections", "server_used_connections",
                    "server_testing_connections", "server_login_connections", "server_active_cancel_connections",
                    "server_being_canceled_connections", "client_maxwait_seconds")},
    **{f"{prefix}_{name}_total": ["database"]
       for prefix in ("stats", "stats_totals")
       for name in ("queries_pooled", "queries_duration_seconds", "sql_transactions_pooled", "server_in_transaction_seconds",
                    "client_wait_seconds", "received_bytes", "sent_bytes", "client_parses", "server_parses", "binds",
                    "server_assignments")},
}
HISTOGRAMS = ["client_wait", "query", "transaction", "server_login", "client_login"]
OURS = {"pgbouncer_ready", "pgbouncer_pools_size", "pgbouncer_pools_client_longest_wait_seconds", "pgbouncer_pools_client_waiting_by_cause",
        "pgbouncer_closed_connections_total", "pgbouncer_errors_total", "pgbouncer_errors_count", "pgbouncer_worker_clients",
        "pgbouncer_worker_turns_total", "pgbouncer_bugs_total", "pgbouncer_worker_busy_seconds_total", "process_cpu_seconds_total", "process_resident_memory_bytes",
        "process_virtual_memory_bytes", "process_open_fds", "process_max_fds", "process_start_time_seconds"}
CAUSES = {"pool_full", "database_limit", "user_limit", "server_login", "server_login_failing", "server_check", "paused", "database_paused",
          "suspended"}


@pytest.fixture
def make(make_pooler):
    """Poolers with metrics on a free port of 127.0.0.1, `pooler.metrics`, that is served already."""
    def build(ini=None, **more):
        port = free_port()
        pooler = make_pooler(ini={"metrics_listen": f"127.0.0.1:{port}", **(ini or {})}, **more)
        pooler.metrics = port
        pooler.wait_log("serving metrics on")
        return pooler

    return build


@pytest.fixture
def served(make):
    return make()


def some_work(pooler):
    with pooler.login(application_name="worker") as wire:
        wire.query("SELECT pg_sleep(0.01)")
        assert wire.ask("SELECT nosuch").error["C"] == "42703"


@pytest.mark.parametrize("accept", [None, OPENMETRICS])
def test_every_metric_of_the_exporter_and_ours(served, accept):
    some_work(served)
    with pytest.raises(Exception):
        served.login("nobody-known")
    with served.login(application_name="idle"):
        scrape = Scrape(served.metrics, accept)
    labels = {}
    for sample in scrape.samples:
        labels.setdefault(sample.name, set(sample.labels))
    for name, wanted in EXPORTER.items():
        assert labels.get(f"pgbouncer_{name}") == set(wanted), name
    for name in HISTOGRAMS:
        for part, more in (("bucket", {"le"}), ("sum", set()), ("count", set())):
            assert labels[f"pgbouncer_{name}_seconds_{part}"] == {"database", "user"} | more
    known = {f"pgbouncer_{name}" for name in EXPORTER} | OURS | {
        f"pgbouncer_{name}_seconds_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    assert scrape.names == known
    kinds = {family.type for family in scrape.families.values()}
    assert kinds == {"gauge", "counter", "histogram", "unknown"}


def test_the_format_that_was_asked_for(served):
    plain, of_prometheus = Scrape(served.metrics), Scrape(served.metrics, f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert plain.content_type == "text/plain; version=0.0.4; charset=utf-8" and "# EOF" not in plain.text
    assert of_prometheus.content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert of_prometheus.text.endswith("# EOF\n")


def test_figures_are_those_of_the_console(make):
    pooler = make({"default_pool_size": 1})
    some_work(pooler)
    with pooler.login(application_name="holder") as holder, pooler.login(application_name="waiter") as waiter, pooler.console() as console:
        holder.query("BEGIN")
        waiter.send(query("SELECT 1"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        time.sleep(0.05)
        scrape = Scrape(pooler.metrics)
        totals = next(r for r in console.query("SHOW STATS_TOTALS").dicts if r["database"] == "p0")
        row = pooler.pool()
        holder.query("COMMIT")
        assert waiter.result().rows == [["1"]]
    assert scrape.value("pgbouncer_version_info", version="PgBouncer 1.25.2") == 1
    for prefix in ("pgbouncer_stats", "pgbouncer_stats_totals"):
        assert scrape.value(f"{prefix}_queries_pooled_total", database="p0") == int(totals["query_count"])
        assert scrape.value(f"{prefix}_queries_duration_seconds_total", database="p0") == int(totals["query_time"]) / 1e6 > 0.01
    assert scrape.value("pgbouncer_pools_client_waiting_connections", **POOL) == row["cl_waiting"] == 1
    assert scrape.value("pgbouncer_pools_server_active_connections", **POOL) == row["sv_active"] == 1
    assert 0.04 < scrape.value("pgbouncer_pools_client_longest_wait_seconds", **POOL) < 5
    causes = {s.labels["cause"]: s.value for s in scrape.samples
              if s.name == "pgbouncer_pools_client_waiting_by_cause" and s.labels["database"] == "p0"}
    assert set(causes) == CAUSES and {c for c, n in causes.items() if n} == {"pool_full"} and causes["pool_full"] == 1
    for name, state in (("holder", "active"), ("waiter", "waiting")):
        assert scrape.value("pgbouncer_client_connections", **POOL, application_name=name, state=state) == 1
    assert scrape.value("pgbouncer_client_connections", database="pgbouncer", user="admin", application_name="", state="active") == 1
    assert scrape.value("pgbouncer_databases_pool_size", name="p0") == scrape.value("pgbouncer_pools_size", **POOL) == 1


def bucket_of(scrape, name, seconds):
    """How many times were longer than `seconds`."""
    buckets = [(float(s.labels["le"]), s.value) for s in scrape.samples
               if s.name == f"pgbouncer_{name}_seconds_bucket" and s.labels["database"] == "p0"]
    assert buckets == sorted(buckets) and buckets[-1][0] == float("inf")
    assert [n for _, n in buckets] == sorted(n for _, n in buckets), "cumulative"
    return buckets[-1][1] - max(n for le, n in buckets if le <= seconds)


def test_histograms_know_how_long_things_took(make):
    pooler = make({"default_pool_size": 1})
    with pooler.login() as one, pooler.login() as two:
        one.query("SELECT 1")
        one.query("BEGIN")
        two.send(query("SELECT 2"))
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        one.query("SELECT pg_sleep(1.2)")
        one.query("COMMIT")
        two.result()
        scrape = Scrape(pooler.metrics)
    count = {name: scrape.value(f"pgbouncer_{name}_seconds_count", **POOL) for name in HISTOGRAMS}
    assert count == {"client_wait": 3, "query": 5, "transaction": 3, "server_login": 1, "client_login": 2}
    assert bucket_of(scrape, "query", 1) == 2, "the sleeper, and who waited for it"
    assert bucket_of(scrape, "transaction", 1) == 2
    assert bucket_of(scrape, "client_wait", 1) == 1
    assert bucket_of(scrape, "query", 20) == 0
    assert 1.2 < scrape.value("pgbouncer_client_wait_seconds_sum", **POOL) < 20
    waited, taken = scrape.value("pgbouncer_stats_client_wait_seconds_total", database="p0"), scrape.value("pgbouncer_query_seconds_sum", **POOL)
    assert waited >= scrape.value("pgbouncer_client_wait_seconds_sum", **POOL)
    assert taken == scrape.value("pgbouncer_stats_queries_duration_seconds_total", database="p0")


def test_histograms_are_there_before_their_first_event(make):
    """What appears with the value 1 has never increased, for Prometheus."""
    pooler = make()
    with pooler.login():
        scrape = Scrape(pooler.metrics)
    count = {name: scrape.value(f"pgbouncer_{name}_seconds_count", **POOL) for name in HISTOGRAMS}
    assert count["query"] == count["transaction"] == 0 and count["client_login"] == 1
    assert scrape.values("pgbouncer_query_seconds_count", database="pgbouncer") == []


def test_ends_and_errors_are_counted(make):
    pooler = make({"max_client_conn": 3})
    some_work(pooler)
    until(lambda: Scrape(pooler.metrics).value("pgbouncer_used_clients") == 0)
    with pooler.login(), pooler.login(), pooler.login():
        refused = pooler.wire()
        refused.startup("app", "p0")
        refused.expect_fatal("no more connections allowed (max_client_conn)")
        refused.close()
        until(lambda: Scrape(pooler.metrics).total("pgbouncer_errors_count") == 1)
    pooler.admin("RECONNECT")
    until(lambda: Scrape(pooler.metrics).total("pgbouncer_closed_connections_total", side="server") >= 1)
    scrape = Scrape(pooler.metrics)
    full = "no more connections allowed (max_client_conn)"
    assert scrape.value("pgbouncer_errors_count", errmsg=full) == 1
    assert scrape.value("pgbouncer_errors_total", origin="pooler", sqlstate="08P01") == 1
    assert scrape.value("pgbouncer_errors_total", origin="server", sqlstate="42703") == 1
    assert scrape.value("pgbouncer_closed_connections_total", side="client", reason=full) == 1


def test_workers_and_the_process(make):
    pooler = make({"worker_threads": 2})
    with Background(transactions(pooler), 4) as load:
        until(lambda: load.done > 200, 30)
        scrape = Scrape(pooler.metrics)
        assert scrape.total("pgbouncer_worker_clients") == scrape.value("pgbouncer_used_clients") >= 4
    workers = {s.labels["worker"] for s in scrape.samples if s.name == "pgbouncer_worker_turns_total"}
    assert workers == {"0", "1"} and scrape.total("pgbouncer_worker_turns_total") > 600
    cpu = scrape.value("process_cpu_seconds_total")
    assert 0 < scrape.total("pgbouncer_worker_busy_seconds_total") < 60 and 0 < cpu < 60
    assert abs(scrape.value("process_start_time_seconds") - time.time()) < 60
    assert 10 < scrape.value("process_open_fds") < scrape.value("process_max_fds")
    assert scrape.value("process_resident_memory_bytes") > 1e6
    later = Scrape(pooler.metrics)
    assert later.value("process_start_time_seconds") == scrape.value("process_start_time_seconds")


def test_label_values_are_bounded(make):
    pooler = make({"max_client_conn": 400})
    wires = [pooler.login(application_name=f"app{n:03}") for n in range(130)]
    try:
        scrape = Scrape(pooler.metrics)
    finally:
        for wire in wires:
            wire.close()
    names = {s.labels["application_name"] for s in scrape.samples if s.name == "pgbouncer_client_connections"}
    assert len(names) == 101 and "other" in names
    assert scrape.total("pgbouncer_client_connections", database="p0") == 130
    assert scrape.value("pgbouncer_client_connections", **POOL, application_name="other", state="active") == 30


def test_health_and_readiness(served):
    def ready():
        answer = fetch(served.metrics, "/readyz")
        return answer.status, answer.text

    assert ready() == (200, "ok\n") and Scrape(served.metrics).value("pgbouncer_ready") == 1
    served.admin("PAUSE")
    assert ready() == (503, "paused\n") and Scrape(served.metrics).value("pgbouncer_ready") == 0
    assert fetch(served.metrics, "/healthz").status == 200
    served.admin("RESUME")
    with served.console() as console:
        console.query("SUSPEND")
        assert ready() == (503, "suspended\n")
        console.query("RESUME")
    assert ready() == (200, "ok\n")


def test_it_answers_until_the_last_moment_of_a_shutdown(served):
    with served.login() as client:
        client.query("SELECT 1")
        served.admin("SHUTDOWN WAIT_FOR_CLIENTS")
        until(served.refuses)
        assert fetch(served.metrics, "/readyz").text == "shutting down\n"
        assert fetch(served.metrics, "/healthz").status == 200
        assert Scrape(served.metrics).value("pgbouncer_pools_client_active_connections", **POOL) == 1
    assert served.wait_end() == 0


@pytest.mark.parametrize("method, path, status, allow", [
    ("POST", "/metrics", 405, "GET, HEAD"), ("DELETE", "/healthz", 405, "GET, HEAD"), ("GET", "/nosuch", 404, None),
    ("POST", "/nosuch", 404, None), ("GET", "/metrics/", 404, None), ("HEAD", "/metrics", 200, None), ("GET", "/healthz?x=1", 200, None)])
def test_methods_and_paths(served, method, path, status, allow):
    answer = fetch(served.metrics, path, method)
    assert (answer.status, answer.headers["Allow"]) == (status, allow)
    assert answer.headers["Cache-Control"] == "no-store" and bool(answer.text) == (method != "HEAD")


@pytest.mark.parametrize("what", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01\x02\0garbage\r\n\r\n", b"GET /" + b"x" * 100_000])
def test_broken_and_slow_clients_hold_nothing_up(served, what):
    sockets = [socket.create_connection(("127.0.0.1", served.metrics)) for _ in range(12)]
    for one in sockets:
        try:
            one.sendall(what)
        except ConnectionError:
            pass  # it had seen enough
    begin = time.monotonic()
    assert fetch(served.metrics, "/healthz").status == 200 and time.monotonic() - begin < 2
    with served.login() as client:
        assert client.query("SELECT 1").value == "1"
    for one in sockets:
        one.settimeout(9)
        try:
            while one.recv(4096):
                pass
        except ConnectionResetError:
            pass
        one.close()
    assert time.monotonic() - begin < 8, "they are closed"


@pytest.mark.slow(60)
def test_who_comes_on_top_waits_for_a_place(served):
    sockets = [socket.create_connection(("127.0.0.1", served.metrics)) for _ in range(40)]
    assert fetch(served.metrics, "/healthz", timeout=30).status == 200, "when those before have run into their limit"
    assert served.login().query("SELECT 1").value == "1"
    for one in sockets:
        one.close()


def test_a_unix_socket(make_pooler):
    pooler = make_pooler(start=False)
    path = pooler.dir / "metrics.sock"
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(path))
    left_over.close()
    path.chmod(0o777)  # the daemon runs as another user
    pooler.ini |= {"metrics_listen": path, "unix_socket_mode": "0707"}
    pooler.write()
    pooler.start()
    pooler.wait_log(f"serving metrics on {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o707
    assert Scrape(path).value("pgbouncer_up") == 1
    pooler.stop()
    assert not path.exists()


@pytest.mark.parametrize("listen, host", [("*:{}", "127.0.0.1"), ("[::1]:{}", "::1")])
def test_addresses(make_pooler, listen, host):
    port = free_port()
    pooler = make_pooler(ini={"metrics_listen": listen.format(port)})
    pooler.wait_log(f"serving metrics on {listen.format(port)}")
    assert fetch((host, port), "/healthz").status == 200


def test_an_address_in_use_is_asked_for_again(make_pooler):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        pooler = make_pooler(ini={"metrics_listen": f"127.0.0.1:{port}"})
        pooler.wait_log(f"WARNING cannot serve metrics on 127.0.0.1:{port}: Address already in use; trying again")
        assert pooler.login().query("SELECT 1").value == "1"
    until(lambda: "serving metrics on" in pooler.log())
    assert fetch(port, "/healthz").status == 200
    assert pooler.log().count("cannot serve metrics") == 1


def test_off_by_default_and_changed_by_a_restart_only(pooler):
    row = next(r for r in pooler.show("CONFIG") if r["key"] == "metrics_listen")
    assert row == {"key": "metrics_listen", "value": "", "default": "", "changeable": "no"}
    port = free_port()
    pooler.ini["metrics_listen"] = f"127.0.0.1:{port}"
    pooler.write()
    pooler.reload()
    assert "metrics_listen" in pooler.log() and "serving metrics" not in pooler.log()
    with pytest.raises(ConnectionRefusedError):
        fetch(port)


def test_a_value_that_is_no_address_stops_the_start(make_pooler):
    pooler = make_pooler(start=False, ini={"metrics_listen": "9127"})
    pooler.start(wait=False)
    assert pooler.wait_end() == 1
    assert 'invalid value "9127" for parameter metrics_listen' in pooler.log()


@pytest.mark.slow(120)
def test_a_scrape_with_many_clients_is_quick(make):
    pooler = make({"max_client_conn": 4000})
    wires = [pooler.login(application_name=f"a{n % 7}") for n in range(3000)]
    try:
        # the build with assertions is several times slower than the one for operators, and other tests run meanwhile
        until(lambda: timed(lambda: fetch(pooler.metrics)) < 0.15, 30, what="a scrape within 150 ms")
        scrape = Scrape(pooler.metrics)
    finally:
        for wire in wires:
            wire.close()
    assert scrape.total("pgbouncer_client_connections", **POOL) == 3000


def timed(call):
    begin = time.monotonic()
    call()
    return time.monotonic() - begin
