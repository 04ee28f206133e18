"""Names, types and widths of what SHOW returns; monitoring tools depend on them to the letter."""

import json
import time
from contextlib import ExitStack

import pytest

from support.pooler import Pooler
from support.system import REPO, remove_dir, until
from support.wire import Wire, query

FIXTURE = REPO / "tests/fixtures/show_columns.json"
SHAPES = {topic: columns for topic, columns in json.loads(FIXTURE.read_text()).items() if columns}
# Topics whose columns were the same in 1.18.
# settings that PgBouncer does not have
OURS = {"cancel_on_disconnect", "console_probes", "log_format", "log_rate_limit", "metrics_listen", "server_drain_timeout",
        "worker_threads"}
OLD = {"totals", "mem", "dns_hosts", "dns_zones", "fds", "config", "lists", "version"}

TOTALS = ["server_assignment_count", "xact_count", "query_count", "client_bytes", "server_bytes", "xact_time", "query_time",
          "wait_time", "ps_client_parse_count", "ps_server_parse_count", "ps_bind_count"]
LISTS = ["databases", "users", "peers", "pools", "peer_pools", "free_clients", "used_clients", "login_clients", "free_servers",
         "used_servers", "dns_names", "dns_zones", "dns_queries", "dns_pending"]


@pytest.fixture(scope="module", name="shown")
def _shown(binary, pg):
    """One pooler for all topics, with some traffic behind it."""
    pooler = Pooler(binary, pg, ini={"reserve_pool_size": 3}).start()
    client = pooler.login("app", application_name="shapes")
    client.query("SELECT 1")
    yield pooler
    client.close()
    pooler.stop()
    remove_dir(pooler.dir)


@pytest.mark.parametrize("topic", [t if t in OLD else pytest.param(t, marks=pytest.mark.since("1.25")) for t in SHAPES])
def test_columns(shown, topic):
    with shown.console() as console:
        result = console.query(f"SHOW {topic}")
        again = console.query(f"select {topic.upper()} ;")
    assert [[c.name, c.oid, c.typlen] for c in result.columns] == SHAPES[topic]
    assert again.columns == result.columns
    assert result.tags == ["SHOW"]
    assert result.status == "I"


@pytest.mark.since("1.25")
def test_fixed_rows(shown):
    assert [r["name"] for r in shown.show("TOTALS")] == ["total_" + n for n in TOTALS] + ["avg_" + n for n in TOTALS]
    assert shown.show("STATE") == [{"key": "active", "value": "yes"}, {"key": "paused", "value": "no"},
                                   {"key": "suspended", "value": "no"}]
    assert [r["list"] for r in shown.show("LISTS")] == LISTS


@pytest.mark.since("1.25")
def test_version_starts_as_pgbouncer_does(shown, binary):
    (row,) = shown.show("VERSION")
    assert row["version"].startswith("PgBouncer 1.25.2")
    assert binary.version_text.splitlines()[0] == row["version"]


def test_help_is_a_notice(shown):
    with shown.console() as console:
        result = console.query("SHOW HELP")
    assert result.columns == [] and result.tags == ["SHOW"]
    (notice,) = result.notices
    assert notice["S"] == "NOTICE" and notice["C"] == "00000" and notice["M"] == "Console usage"
    assert "SHOW HELP|CONFIG|DATABASES" in notice["D"]


def test_pools_and_databases_list_the_console_too(shown, pg):
    pools = shown.show("POOLS")
    assert ("pgbouncer", "pgbouncer") in [(p["database"], p["user"]) for p in pools]
    assert [(p["database"], p["user"]) for p in pools] == sorted((p["database"], p["user"]) for p in pools)
    databases = {d["name"]: d for d in shown.show("DATABASES")}
    assert databases["p0"]["host"] == "127.0.0.1" and databases["p0"]["port"] == str(pg.port)
    assert databases["p0"]["database"] == "p0" and databases["p0"]["paused"] == "0" and databases["p0"]["disabled"] == "0"
    console = databases["pgbouncer"]
    assert (console["port"], console["pool_mode"]) == (str(shown.port), "statement")
    assert (console["min_pool_size"], console["reserve_pool_size"]) == ("0", "0"), "whatever the settings say"


def test_clients_lists_who_asks_and_who_idles(shown):
    rows = shown.show("CLIENTS")
    app = next(r for r in rows if r["user"] == "app")
    assert app["type"] == "C" and app["database"] == "p0" and app["addr"] == "127.0.0.1"
    assert app["application_name"] == "shapes" and app["link"] == ""
    assert any(r["database"] == "pgbouncer" and r["user"] == "admin" for r in rows)
    stamp = " ".join(app["connect_time"].split(" ")[:2])
    assert abs(time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S")) - time.time()) < 3600


@pytest.mark.parametrize("listen, hosts", [("127.0.0.2", ["127.0.0.2"]), ("127.0.0.1,127.0.0.2", ["127.0.0.1", "127.0.0.2"]),
                                           ("*", ["127.0.0.1", "127.0.0.2"])])
def test_clients_lists_both_ends(make_pooler, listen, hosts):
    pooler = make_pooler(ini={"listen_addr": listen})
    with ExitStack() as stack:
        def come(user, database, **where):
            return stack.enter_context(Wire(**where)).login(user, database, None)

        wires = [come("app", "p0", port=pooler.port, host=host) for host in hosts]
        come("app", "p0", path=pooler.unix_path)
        rows = come("admin", "pgbouncer", path=pooler.unix_path).query("SHOW CLIENTS").dicts
        tcp = [(*wire.sock.getsockname(), *wire.sock.getpeername()) for wire in wires]
    ends = {(r["addr"], int(r["port"]), r["local_addr"], int(r["local_port"])) for r in rows if r["database"] == "p0"}
    assert ends == {*tcp, ("unix", pooler.port, "unix", pooler.port)}


@pytest.mark.since("1.25")
def test_unlinked_client_is_idle_and_ids_are_unique(shown):
    rows = shown.show("CLIENTS")
    assert next(r for r in rows if r["user"] == "app")["state"] == "idle"
    ids = [r["id"] for r in rows + shown.show("SERVERS")]
    assert len(ids) == len(set(ids)) and all(i.isdigit() for i in ids)


def test_servers_links_to_the_client_in_a_transaction(shown):
    with shown.login("app") as busy:
        busy.query("BEGIN")
        pid = busy.query("SELECT pg_backend_pid()").value
        server = next(r for r in shown.show("SERVERS") if r["state"] == "active")
        client = next(r for r in shown.show("CLIENTS") if r["link"])
        assert server["link"] == client["ptr"] and client["link"] == server["ptr"]
        assert server["remote_pid"] == pid and server["type"] == "S"
        busy.query("COMMIT")


def test_stats_count_queries_and_transactions(make_pooler):
    pooler = make_pooler()
    with pooler.login() as wire:
        for text in ("BEGIN", "SELECT 1", "SELECT 2; SELECT 3", "COMMIT", "SELECT 4"):
            wire.query(text)
    row = next(r for r in pooler.show("STATS") if r["database"] == "p0")
    assert (row["total_xact_count"], row["total_query_count"]) == ("2", "5")
    assert int(row["total_received"]) == sum(len(t) + 6 for t in ("BEGIN", "SELECT 1", "SELECT 2; SELECT 3", "COMMIT", "SELECT 4"))
    assert int(row["total_sent"]) > 0 and int(row["total_xact_time"]) >= int(row["total_query_time"]) > 0


@pytest.mark.since("1.25")
def test_stats_count_assignments_and_prepared_statements(make_pooler):
    pooler = make_pooler()
    with pooler.connect(prepare_threshold=0) as connection:
        for n in range(3):
            connection.execute("SELECT %s::int", (n,))
    row = next(r for r in pooler.show("STATS") if r["database"] == "p0")
    assert int(row["total_server_assignment_count"]) >= 3
    assert (row["total_client_parse_count"], row["total_server_parse_count"], row["total_bind_count"]) == ("1", "1", "3")


@pytest.mark.since("1.25")
def test_config_rows_are_the_settings_in_order(shown):
    rows = shown.show("CONFIG")
    settings = json.loads((REPO / "tests/fixtures/show_config.json").read_text())
    assert [[r["key"], r["default"], r["changeable"]] for r in rows[: len(settings)]] == settings
    assert {r["key"] for r in rows[len(settings) :]} == (OURS if shown.binary.ours else set()), "ours come last"
    assert all("secret" not in (r["value"] or "") for r in rows)


@pytest.mark.parametrize("name, value", [("client_encoding", "UTF-8"), ("default_transaction_isolation", "read committed"),
                                         ("standard_conforming_strings", "on"), ("datestyle", "ISO"), ("timezone", "GMT")])
def test_fake_parameters(shown, name, value):
    with shown.console("stats") as console:
        result = console.query(f"SHOW {name}")
        assert (result.names, result.rows, result.tags) == ([name], [[value]], ["SHOW"])
        ignored = console.query(f"SET {name} = 'x'")
        assert ignored.tags == ["SET"] and ignored.notices == [{"S": "NOTICE", "C": "00000", "M": "SET ignored"}]


def test_fds_lists_listeners_and_linked_sockets(shown):
    with shown.login("app", "p0", application_name="fds") as client:
        client.query("BEGIN")
        rows = shown.show("FDS")
        client.query("COMMIT")
    assert [(r["task"], r["addr"], r["port"], r["link"]) for r in rows[:2]] == [
        ("pooler", "127.0.0.1", str(shown.port), "0"), ("pooler", "unix", str(shown.port), "0")]
    assert "pgbouncer" not in {r["database"] for r in rows}, "consoles are not handed over"
    assert {r["password"] for r in rows} == {None}
    ours = next(r for r in rows if r["task"] == "client" and r["port"] == str(client_port(client, rows)))
    server = next(r for r in rows if r["fd"] == ours["link"])
    assert (server["task"], server["link"], server["database"]) == ("server", ours["fd"], "p0")
    assert ours["cancel"] == str(int.from_bytes(client.key, "big"))


def client_port(client, rows):
    """The port of the row with the client's cancel key."""
    return next(r["port"] for r in rows if r["cancel"] == str(int.from_bytes(client.key, "big")))


def test_close_needed_is_shown_of_linked_servers_too(make_pooler):
    pooler = make_pooler()
    with pooler.login() as client:
        client.query("BEGIN")
        pooler.admin("RECONNECT")
        assert [(s["state"], s["close_needed"]) for s in pooler.show("SERVERS")] == [("active", "1")]


def numbers(rows, key):
    """Rows by name, numbers as integers."""
    def value(text):
        return int(text) if text and text.strip().lstrip("-").isdigit() else text

    keys = key if isinstance(key, tuple) else (key,)
    return {tuple(r[k] for k in keys) if len(keys) > 1 else r[key]: {k: value(v) for k, v in r.items()} for r in rows}


class Counting:
    """A client that adds up what it sends and receives."""

    def __init__(self, wire):
        self.wire, self.sent, self.received, self.queries = wire, 0, 0, 0

    def send(self, sql):
        self.wire.send(query(sql))
        self.sent += len(query(sql))
        self.queries += 1

    def result(self):
        result = self.wire.result()
        self.received += sum(5 + len(m.body) for m in result.messages)
        return result

    def ask(self, sql):
        self.send(sql)
        return self.result()


@pytest.mark.since("1.25")
def test_numbers_are_those_of_what_was_done(make_pooler):
    """Four clients of one pool with two servers, one client of another, one that has hardly said a word, one console."""
    pooler = make_pooler(ini={"default_pool_size": 2, "stats_period": 3600})
    console, mute = pooler.console(), pooler.wire()
    # the kernel gives out connections only when they have said something
    mute.send(b"\0")
    # without parameters that servers would have to be told, whose answers count as well
    a, b, c, d = (Counting(pooler.login("app", "p0")) for _ in range(4))
    e = Counting(pooler.login("app2", "p1"))

    def show(topic, key):
        return numbers(console.query(f"SHOW {topic}").dicts, key)

    def pick(row, *keys):
        return tuple(row[k] for k in keys)

    for _ in range(3):
        c.ask("SELECT 1")
    for holder in (a, b):
        holder.ask("BEGIN")
        holder.ask("SELECT 2")
    e.ask("SELECT 3; SELECT 4")
    d.send("SELECT 5")
    until(lambda: show("POOLS", ("database", "user"))["p0", "app"]["cl_waiting"] == 1)

    pools = show("POOLS", ("database", "user"))
    states = ("cl_active", "cl_waiting", "cl_active_cancel_req", "cl_waiting_cancel_req", "sv_active", "sv_active_cancel",
              "sv_being_canceled", "sv_idle", "sv_used", "sv_tested", "sv_login")
    assert {name: pick(row, *states) for name, row in pools.items()} == {
        ("p0", "app"): (3, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0), ("p1", "app2"): (1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0),
        ("pgbouncer", "pgbouncer"): (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)}
    waited = pools["p0", "app"]
    assert waited["maxwait"] * 1_000_000 + waited["maxwait_us"] > 0 and pools["p1", "app2"]["maxwait_us"] == 0

    clients = show("CLIENTS", "port")
    clients = [clients[str(n.wire.sock.getsockname()[1])] for n in (a, b, c, d, e)]
    assert [row["state"] for row in clients] == ["active", "active", "idle", "waiting", "idle"]
    servers = console.query("SHOW SERVERS").dicts
    assert sorted((s["database"], s["state"]) for s in servers) == [("p0", "active"), ("p0", "active"), ("p1", "idle")]
    links = {s["ptr"]: s["link"] for s in servers if s["link"]}
    assert links == {client["link"]: client["ptr"] for client in clients[:2]}
    assert sorted(s["state"] for s in console.query("SHOW SOCKETS").dicts) == sorted(
        ["cl_active"] * 5 + ["cl_waiting", "cl_login", "sv_active", "sv_active", "sv_idle"])

    lists = {k: row["items"] for k, row in show("LISTS", "list").items()}
    wanted = {"databases": 3, "users": len(console.query("SHOW USERS").rows), "pools": 3, "peers": 0, "peer_pools": 0, "used_clients": 7,
              "login_clients": 1, "used_servers": 3, "dns_queries": 0, "dns_pending": 0}
    assert {k: lists[k] for k in wanted} == wanted
    assert {n: pick(row, "current_connections", "current_client_connections", "pool_size")
            for n, row in show("DATABASES", "name").items()} == {"p0": (2, 4, 2), "p1": (1, 1, 2), "pgbouncer": (0, 1, 2)}
    users = show("USERS", "name")
    assert {n: pick(users[n], "current_connections", "current_client_connections") for n in ("app", "app2", "admin", "stats")} == {
        "app": (2, 4), "app2": (1, 1), "admin": (0, 1), "stats": (0, 0)}

    for holder in (a, b):
        holder.ask("COMMIT")
    d.result()
    of_p0 = (a, b, c, d)
    # an answer is counted a moment after it was sent
    until(lambda: show("STATS", "database")["p0"]["total_sent"] == sum(n.received for n in of_p0))
    row = show("STATS", "database")["p0"]
    assert pick(row, "total_server_assignment_count", "total_xact_count", "total_query_count", "total_received", "total_sent") == (
        6, 6, sum(n.queries for n in of_p0), sum(n.sent for n in of_p0), sum(n.received for n in of_p0))
    assert row["total_wait_time"] >= waited["maxwait"] * 1_000_000 + waited["maxwait_us"]
    assert row["total_xact_time"] >= row["total_query_time"] > 0
    assert pick(row, "total_client_parse_count", "total_server_parse_count", "total_bind_count") == (0, 0, 0)
    stats = show("STATS", "database")
    assert pick(stats["p1"], "total_xact_count", "total_query_count") == (1, 1)
    assert pick(stats["pgbouncer"], "total_xact_count", "total_query_count", "total_received", "total_sent") == (1, 1, 0, 0)
    totals = show("TOTALS", "name")
    for total, column in (("query_count", "query_count"), ("xact_count", "xact_count"), ("client_bytes", "received"), ("server_bytes", "sent"),
                          ("server_assignment_count", "server_assignment_count"), ("wait_time", "wait_time"), ("query_time", "query_time")):
        assert totals[f"total_{total}"]["value"] == sum(s[f"total_{column}"] for s in stats.values()), total
    assert {n: {k: v for k, v in r.items() if k != "database"} for n, r in show("STATS_TOTALS", "database").items()} == {
        n: {{"total_received": "bytes_received", "total_sent": "bytes_sent"}.get(k, k.removeprefix("total_")): v
            for k, v in r.items() if k.startswith("total_")} for n, r in stats.items()}
    for wire in (console, mute, *(n.wire for n in (*of_p0, e))):
        wire.close()


def test_a_login_that_has_begun_is_an_active_socket(pooler):
    with pooler.wire() as wire:
        wire.send(b"\0\0\0")
        row = until(lambda: next((row for row in pooler.show("ACTIVE_SOCKETS") if row["state"] == "cl_login"), None))
        assert (row["recv_pos"], row["pkt_avail"]) == ("3", "3"), row
