"""pooling.md 10: what each counter counts, sentence by sentence."""

import time

import pytest

from support.system import holds, until
from support.wire import SYNC, bind, close, execute, message, parse, query


def totals(pooler, database="p0"):
    row = next(r for r in pooler.show("STATS") if r["database"] == database)
    return {k.removeprefix("total_"): int(v) for k, v in row.items() if k.startswith("total_")}


class Counting:
    """What the block between enter and exit added to the counters of p0."""

    def __init__(self, pooler):
        self.pooler = pooler

    def __enter__(self):
        self._before = totals(self.pooler)
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            after = totals(self.pooler)
            self.grown = {k: after[k] - self._before[k] for k in after}

    def __getitem__(self, name):
        return self.grown[name]


@pytest.fixture
def counting(make_pooler):
    def make(**ini):
        pooler = make_pooler(ini=ini)
        wire = pooler.login()
        wire.query("SELECT 1")
        return pooler, wire

    return make


def batch(text):
    return parse("", text) + bind() + execute() + SYNC


def several(wire, data, readies):
    wire.send(data)
    for _ in range(readies):
        wire.result()


@pytest.mark.parametrize("data, readies, queries, transactions", [
    (query("SELECT 1"), 1, 1, 1),
    (query("SELECT 1; SELECT 2; SELECT 3"), 1, 1, 1),
    (query(""), 1, 1, 1),
    (query("SELECT 1/0"), 1, 1, 1),
    (batch("SELECT 1"), 1, 1, 1),
    (SYNC, 1, 1, 1),
    (batch("SELECT 1") * 5, 5, 1, 1),
])
def test_what_one_query_is(counting, data, readies, queries, transactions):
    """A query is open until ReadyForQuery with nothing outstanding; a pipeline of several Syncs is one."""
    pooler, wire = counting()
    with Counting(pooler) as counted:
        several(wire, data, readies)
    assert (counted["query_count"], counted["xact_count"]) == (queries, transactions)


def test_each_statement_of_a_transaction_counts(counting):
    pooler, wire = counting()
    with Counting(pooler) as counted:
        for text in ("BEGIN", "SELECT 1", "", "SELECT 1/0", "ROLLBACK"):
            wire.ask(text)
    assert (counted["query_count"], counted["xact_count"]) == (5, 1)


def test_failed_transactions_count_once(counting):
    pooler, wire = counting()
    with Counting(pooler) as counted:
        for _ in range(3):
            for text in ("BEGIN", "SELECT 1/0", "COMMIT"):
                wire.ask(text)
    assert (counted["query_count"], counted["xact_count"]) == (9, 3)


def test_times_run_from_the_first_message_to_the_last_answer(counting):
    pooler, wire = counting()
    with Counting(pooler) as counted:
        wire.query("SELECT pg_sleep(0.3)")
    assert 300_000 <= counted["query_time"] < 2_000_000 and counted["xact_time"] == counted["query_time"]
    with Counting(pooler) as counted:
        wire.query("BEGIN")
        holds(lambda: True, 0.4)
        wire.query("COMMIT")
    assert counted["xact_time"] >= 400_000 > counted["query_time"]


def test_times_include_the_waiting_for_a_server(counting):
    pooler, wire = counting(default_pool_size=1)
    with pooler.login() as waiter:
        wire.query("BEGIN")
        with Counting(pooler) as counted:
            waiter.send(query("SELECT 1"))
            until(lambda: pooler.pool()["cl_waiting"] == 1)
            holds(lambda: True, 0.4)
            wire.query("COMMIT")
            waiter.result()
        assert counted["wait_time"] >= 400_000
        assert counted["query_time"] >= 400_000


def test_a_query_that_only_waited_counts(counting):
    pooler, wire = counting(default_pool_size=1)
    pooler.admin("SET query_wait_timeout = 1")
    with pooler.login() as waiter:
        wire.query("BEGIN")
        with Counting(pooler) as counted:
            waiter.send(query("SELECT 1"))
            waiter.expect_fatal("query_wait_timeout")
        assert (counted["query_count"], counted["xact_count"]) == (1, 1)
        assert (counted["query_time"], counted["xact_time"], counted["wait_time"]) == (0, 0, 0), "it never got a server"


@pytest.mark.since("1.25")
def test_assignments(counting):
    pooler, wire = counting()
    with Counting(pooler) as counted:
        for _ in range(3):
            wire.query("SELECT 1")
        for text in ("BEGIN", "SELECT 1", "COMMIT"):
            wire.query(text)
        several(wire, batch("SELECT 1") * 4, 4)
    assert counted["server_assignment_count"] == 5


@pytest.mark.since("1.25")
def test_received_are_bytes_of_forwarded_client_messages(counting):
    pooler, wire = counting()
    for data, readies in ((query("SELECT 1 -- " + "x" * 5000), 1), (batch("SELECT 1") * 3, 3), (message("d", b"late") + query("SELECT 1"), 1)):
        with Counting(pooler) as counted:
            several(wire, data, readies)
        late = 9 if data[:1] == b"d" else 0
        assert counted["received"] == len(data) - late


def test_sent_are_bytes_of_server_messages(counting):
    pooler, wire = counting()
    with Counting(pooler) as counted:
        got = wire.query("SELECT repeat('x', 5000)")
    assert counted["sent"] == sum(5 + len(m.body) for m in got.messages)


@pytest.mark.since("1.24")
def test_swallowed_messages_are_sent_ones_too(make_pooler):
    """A SET of ours: its CommandComplete, ParameterStatus and ReadyForQuery never reach the client."""
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login(TimeZone="Asia/Tokyo") as a, pooler.login(TimeZone="UTC") as b:
        a.query("SELECT 1")
        with Counting(pooler) as counted:
            got = b.query("SELECT 1")
        assert counted["sent"] > sum(5 + len(m.body) for m in got.messages) and counted["query_count"] == 1
        assert counted["received"] == len(query("SELECT 1"))


@pytest.mark.since("1.24")
def test_prepared_statement_counters(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 10})
    with pooler.login() as a, pooler.login() as b:
        a.query("SELECT 1")
        with Counting(pooler) as counted:
            a.send(parse("s", "SELECT 1") + bind("", "s") + execute() + SYNC)
            a.result()
            b.send(parse("t", "SELECT 1") + bind("", "t") + execute() + bind("", "t") + execute() + SYNC)
            b.result()
            b.send(parse("", "SELECT 1") + bind() + execute() + SYNC)
            b.result()
        names = ("client_parse_count", "server_parse_count", "bind_count")
        assert [counted[n] for n in names] == [2, 1, 3], "unnamed statements are not tracked"
        with Counting(pooler) as counted:
            a.send(close("S", "s") + SYNC)
            a.result()
        assert counted["received"] == len(close("S", "s")) + (0 if pooler.binary.ours else len(SYNC))


@pytest.mark.since("1.24")
@pytest.mark.parametrize("ini", [{"max_prepared_statements": 0}, {"pool_mode": "session", "max_prepared_statements": 10}])
def test_prepared_statement_counters_rest_without_tracking(make_pooler, ini):
    pooler = make_pooler(ini={"default_pool_size": 1, **ini})
    with pooler.login() as a:
        a.query("SELECT 1")
        with Counting(pooler) as counted:
            a.send(parse("s", "SELECT 1") + bind("", "s") + execute() + SYNC)
            a.result()
        assert [counted[n] for n in ("client_parse_count", "server_parse_count", "bind_count")] == [0, 0, 0]


def test_pools_of_one_entry_are_summed(make_pooler):
    pooler = make_pooler()
    with pooler.login("app") as a, pooler.login("app2") as b:
        for wire in (a, b):
            wire.query("SELECT 1")
        with Counting(pooler) as counted:
            for wire in (a, b):
                wire.query("SELECT 1")
        assert counted["query_count"] == 2
        assert totals(pooler, "p1")["query_count"] == 0 if any(r["database"] == "p1" for r in pooler.show("STATS")) else True


def test_averages_are_those_of_the_last_period(make_pooler):
    """Per second, by integer division, between two snapshots; times divided by what they are times of."""
    pooler = make_pooler(ini={"stats_period": 1})
    with pooler.login() as wire:
        stop, slowest = time.monotonic() + 3.2, 0
        while (began := time.monotonic()) < stop:
            for _ in range(20):
                wire.query("SELECT 1")
            wire.query("SELECT pg_sleep(0.02)")
            slowest = max(slowest, time.monotonic() - began)
        row = next(r for r in pooler.show("STATS") if r["database"] == "p0")
        assert int(row["avg_query_count"]) > 10
        assert int(row["avg_xact_count"]) == int(row["avg_query_count"])
        # no mean is longer than the slowest round of 21 queries; their sum is that of a whole second
        assert 0 < int(row["avg_query_time"]) < min(1e6 * slowest, 500_000)
        assert int(row["avg_recv"]) > 100 and int(row["avg_sent"]) > 100

        def quiet():
            row = next(r for r in pooler.show("STATS") if r["database"] == "p0")
            return row["avg_query_count"] == "0" and row["avg_query_time"] == "0"

        until(quiet, 6, what="averages of a quiet time are zero")
