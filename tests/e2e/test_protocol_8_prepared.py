"""protocol.md 8: named statements that outlive a link, sentence by sentence."""

import pytest

from support.postgres import ROLES
from support.system import until
from support.wire import FLUSH, SYNC, Wire, bind, close, cstr, describe, execute, message, parse, query

pytestmark = pytest.mark.since("1.24")


@pytest.fixture
def one(make_pooler):
    """A pooler with one server that keeps three statements."""
    return make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 3})


def kinds(got):
    return "".join(m.type for m in got.messages)


def send(wire, *messages):
    wire.send(b"".join(messages) + SYNC)
    return wire.result()


def on_server(wire):
    """Names of the statements that the server has, oldest first."""
    return [r[0] for r in wire.query("SELECT name FROM pg_prepared_statements ORDER BY prepare_time").rows]


def prepares(pooler):
    row = next(r for r in pooler.show("STATS") if r["database"] == "p0")
    return int(row["total_server_parse_count"])


def test_server_side_names_count_from_one_and_equal_statements_share_one(one):
    with one.login() as a, one.login() as b:
        send(a, parse("x", "SELECT 1"))
        send(a, parse("y", "SELECT 2"))
        send(b, parse("z", "SELECT 1"))
        assert on_server(a) == ["PGBOUNCER_1", "PGBOUNCER_2"]
        assert prepares(one) == 2


def test_declared_types_make_another_statement(one):
    with one.login() as a:
        send(a, parse("x", "SELECT $1"))
        types = (1).to_bytes(2, "big") + (23).to_bytes(4, "big")
        send(a, message("P", cstr("y") + cstr("SELECT $1") + types))
        assert on_server(a) == ["PGBOUNCER_1", "PGBOUNCER_2"]
        assert send(a, bind("", "y", [7]), execute()).value == "7"


def test_a_known_statement_is_answered_in_its_place(one):
    with one.login() as a:
        send(a, parse("x", "SELECT 1"))
        got = send(a, parse("", "SELECT 0"), bind(), execute(), parse("y", "SELECT 1"), bind("", "y"), execute(), close("S", "y"), parse("", "SELECT 2"),
                   bind(), execute())
        assert kinds(got) == "12DC12DC312DCZ" and [r[0] for r in got.rows] == ["0", "1", "2"]


def test_sql_level_statements_pass(one):
    with one.login() as a:
        a.query("BEGIN")
        a.query("PREPARE mine AS SELECT 'by SQL'")
        assert a.query("EXECUTE mine").value == "by SQL"
        assert on_server(a) == ["mine"]
        a.query("DEALLOCATE mine")
        a.query("COMMIT")


def test_least_recently_used_goes_first_and_a_made_up_parse_is_no_use(one):
    with one.login() as a:
        for n in (1, 2, 3):
            send(a, parse(f"s{n}", f"SELECT {n}"))
        send(a, bind("", "s1"))
        send(a, close("S", "s2"))
        # made up: does not move it
        send(a, parse("s2", "SELECT 2"))
        send(a, parse("s4", "SELECT 4"))
        assert on_server(a) == ["PGBOUNCER_1", "PGBOUNCER_3", "PGBOUNCER_4"]
        send(a, describe("S", "s3"))
        send(a, parse("s5", "SELECT 5"))
        assert on_server(a) == ["PGBOUNCER_3", "PGBOUNCER_4", "PGBOUNCER_5"]
        got = send(a, bind("", "s1"), execute(), bind("", "s2"), execute())
        assert kinds(got) == "2DC2DCZ" and [r[0] for r in got.rows] == ["1", "2"]


def test_a_smaller_limit_counts_at_the_next_insertion(one):
    with one.login() as a:
        for n in (1, 2, 3):
            send(a, parse(f"s{n}", f"SELECT {n}"))
        one.admin("SET max_prepared_statements = 1")
        assert len(on_server(a)) == 3
        send(a, bind("", "s1"), execute())
        assert len(on_server(a)) == 3
        send(a, parse("s4", "SELECT 4"))
        assert on_server(a) == ["PGBOUNCER_4"]


def test_zero_leaves_what_is_there_alone_and_passes_names(one):
    with one.login() as a:
        send(a, parse("s1", "SELECT 1"))
        one.admin("SET max_prepared_statements = 0")
        send(a, parse("mine", "SELECT 2"))
        assert on_server(a) == ["PGBOUNCER_1", "mine"]
        assert send(a, bind("", "s1"), execute()).error["C"] == "26000"


def test_session_mode_passes_names(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "session", "max_prepared_statements": 3})
    with pooler.login() as a:
        send(a, parse("mine", "SELECT 2"))
        assert on_server(a) == ["mine"]


def test_statement_mode_tracks(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "statement", "max_prepared_statements": 3, "default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        send(a, parse("s", "SELECT 'a'"))
        send(b, parse("s", "SELECT 'b'"))
        assert (send(a, bind("", "s"), execute()).value, send(b, bind("", "s"), execute()).value) == ("a", "b")


def test_describe_and_bind_inject_what_the_server_lacks(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 2, "max_prepared_statements": 3})
    with pooler.login() as a, pooler.login() as b:
        send(a, parse("s", "SELECT $1::int"))
        pooler.settle()
        b.query("BEGIN")
        got = send(a, describe("S", "s"), bind("", "s", [5]), describe("P"), execute())
        assert kinds(got) == "tT2TDCZ" and got.value == "5"
        b.query("COMMIT")
    assert prepares(pooler) == 2


def test_several_syncs_in_flight_with_injected_messages(make_pooler):
    """Each batch uses statements that the server has just dropped for the one before."""
    pooler = make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 1})
    with pooler.login() as a:
        for n in range(5):
            send(a, parse(f"s{n}", f"SELECT {n}"))
        a.send(b"".join(bind("", f"s{n}") + execute() + SYNC for n in range(5)) * 10)
        assert [a.result().value for _ in range(50)] == [str(n) for n in range(5)] * 10


def test_flush_without_sync_gets_its_answers(one):
    with one.login() as a:
        a.send(parse("s", "SELECT 1") + FLUSH)
        assert a.recv().type == "1"
        a.send(parse("t", "SELECT 1") + FLUSH)
        assert a.recv().type == "1"
        a.send(bind("", "t") + execute() + FLUSH)
        assert [a.recv().type for _ in range(3)] == ["2", "D", "C"]
        a.send(close("S", "t") + FLUSH)
        assert a.recv().type == "3"
        a.send(SYNC)
        assert a.recv().type == "Z"


def test_a_failed_parse_is_sent_again(one):
    with one.login() as a, one.login() as b:
        assert send(a, parse("s", "SELECT * FROM later8")).error["C"] == "42P01"
        assert on_server(a) == []
        b.query("CREATE TABLE later8 AS SELECT 8 AS n")
        assert send(a, parse("s", "SELECT * FROM later8"), bind("", "s"), execute()).rows == [["8"]]
        b.query("DROP TABLE later8")


def test_what_an_error_skipped_did_not_happen(one):
    """A Parse and a Close behind an error in the same batch: the names mean what they meant before."""
    with one.login() as a:
        send(a, parse("old", "SELECT 'old'"))
        got = send(a, parse("", "SELECT 1/0"), bind(), execute(), parse("new", "SELECT 'new'"), close("S", "old"))
        assert kinds(got) == "1EZ"
        assert send(a, bind("", "new"), execute()).error["C"] == "26000"
        assert send(a, bind("", "old"), execute()).value == "old"
        assert send(a, parse("new", "SELECT 'again'"), bind("", "new"), execute()).value == "again"


@pytest.mark.ours
def test_in_a_failed_transaction_a_parse_is_refused_as_by_postgresql(one, pg):
    """Also of a statement that the server has; ROLLBACK may be prepared."""
    script = [[parse("s", "SELECT 1"), parse("r", "ROLLBACK")], [query("BEGIN")], [parse("", "SELECT 1/0"), bind(), execute()],
              [parse("t", "SELECT 1")], [parse("q", "ROLLBACK"), bind("", "q"), execute()], [bind("", "s"), execute()]]
    seen = []
    with Wire(pg.port).login("app", "p1", ROLES["app"][0]) as direct, one.login() as wire:
        for connection in (direct, wire):
            answers = []
            for batch in script:
                connection.send(b"".join(batch) + (b"" if batch[0][:1] == b"Q" else SYNC))
                got = connection.result()
                answers.append((kinds(got), (got.error or {}).get("C"), got.status))
            seen.append(answers)
    assert seen[0] == seen[1]


@pytest.mark.ours
@pytest.mark.parametrize("text, code", [("SELEC", "42601"), ("SELECT 9", "25P02"), ("ROLLBACK", "42P05")])
def test_a_name_given_twice_in_a_failed_transaction(make_pooler, text, code):
    """The server does not have what the name stands for, and cannot be given it."""
    pooler = make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 1})
    with pooler.login() as a:
        send(a, parse("s", "SELECT 1"))
        send(a, parse("t", "SELECT 2"))
        a.query("BEGIN")
        a.ask("SELECT 1/0")
        for _ in range(2):
            error = send(a, parse("s", text)).error
            assert error["C"] == code
            assert code != "42P05" or error["M"] == 'prepared statement "s" already exists'
        a.query("ROLLBACK")
        assert send(a, bind("", "s"), execute()).value == "1"


@pytest.mark.ours
def test_the_end_of_a_batch_is_told_when_a_parse_of_ours_was_refused(make_pooler):
    """The server lacks the statement, and its transaction has failed."""
    pooler = make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 1})
    with pooler.login() as a:
        send(a, parse("s", "SELECT 1"))
        send(a, parse("t", "SELECT 2"))
        a.query("BEGIN")
        a.ask("SELECT 1/0")
        got = send(a, bind("", "s"), execute())
        assert kinds(got) == "EZ" and got.error["C"] == "25P02" and got.status == "E"
        a.query("ROLLBACK")
        assert send(a, bind("", "s"), execute()).value == "1"


def test_discard_all_of_the_reset_query_clears_the_servers_list(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 3, "server_reset_query_always": 1})
    with pooler.login() as a:
        send(a, parse("s", "SELECT 1"), bind("", "s"), execute())
        until(lambda: pooler.pool()["sv_idle"] == 1)
        assert send(a, bind("", "s"), execute()).value == "1"
        assert prepares(pooler) == 2


def test_deallocate_all_forgets_this_clients_names_alone(one):
    with one.login() as a, one.login() as b:
        send(a, parse("s", "SELECT 'a'"))
        send(b, parse("s", "SELECT 'b'"))
        a.query("DEALLOCATE ALL")
        assert send(b, bind("", "s"), execute()).value == "b"
        assert send(a, parse("s", "SELECT 'new'"), bind("", "s"), execute()).value == "new"


@pytest.mark.parametrize("data, text", [
    (message("P", b"no end"), "failed to parse packet"), (message("B", b"\0no end"), "failed to parse packet"),
    (message("D", b"Sno end"), "failed to parse packet"), (message("C", b"Sno end"), "failed to parse packet"), (message("D", b""), "failed to parse packet"),
    (message("P", b"name\0no end"), "broken Parse packet"),
])
def test_broken_packets(one, data, text):
    with one.login() as a:
        a.send(data)
        a.expect_fatal(text)
    if text.startswith("failed"):
        one.wait_log(f"failed to parse prepared statement packet type '{chr(data[0])}'")


def test_statement_counts_are_shown(one):
    with one.login() as a:
        send(a, parse("s", "SELECT 1"))
        send(a, parse("t", "SELECT 1"))
        (client,) = [r for r in one.show("CLIENTS") if r["user"] == "app"]
        (server,) = [r for r in one.show("SERVERS") if r["user"] == "app"]
        assert (client["prepared_statements"], server["prepared_statements"]) == ("2", "1")
