"""What a client leaves running at the server when it goes: `cancel_on_disconnect`."""

import pytest

from support.system import until
from support.wire import bind, execute, message, parse, query

pytestmark = pytest.mark.ours


@pytest.fixture
def make(make_pooler):
    """Poolers that cancel what is left running."""
    def build(**ini):
        return make_pooler(ini={"default_pool_size": 1, "worker_threads": 2, "cancel_on_disconnect": 1, **ini})

    return build


def leave_asleep(pooler, pg, mark, *before):
    """A client that runs some statements, sleeps in a last one and leaves; the process id of its server."""
    with pooler.login() as wire:
        for statement in before:
            wire.query(statement)
        pid = wire.query("SELECT pg_backend_pid()").value
        wire.send(query(f"SELECT pg_sleep(100), '{mark}'"))
        until(lambda: pg.sleeping(f"'{mark}'"))
    return pid


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_query_ends_with_its_client(make, pg, mode):
    pooler = make(pool_mode=mode)
    pid = leave_asleep(pooler, pg, "left")
    # by itself it would end after 100 s, and PostgreSQL would see only then that its client has gone
    until(lambda: not pg.sleeping("'left'"))
    until(lambda: int(pid) not in pg.backends("p0"))
    pooler.wait_log("closing because: client disconnect while server was not ready")
    pooler.wait_log("closing because: successfully sent cancel request")
    with pooler.login() as other:
        assert other.query("SELECT pg_backend_pid()").value != pid
    until(lambda: pooler.pool()["sv_active_cancel"] == 0 and pooler.pool()["sv_active"] == 0)


def test_its_transaction_is_rolled_back(make, pg):
    pooler = make()
    pg.run_psql("p0", "DROP TABLE IF EXISTS leaving; CREATE TABLE leaving (n int); GRANT ALL ON leaving TO PUBLIC")
    leave_asleep(pooler, pg, "rolled", "BEGIN", "INSERT INTO leaving VALUES (1)", "LOCK TABLE leaving")
    with pooler.login() as other:
        other.query("SET lock_timeout = '10s'")
        assert other.query("SELECT count(*) FROM leaving").value == "0"


def test_the_cancel_never_hits_the_next_client(make, pg):
    """Queries of all lengths are left behind, some of which end by themselves while the cancel is on its way."""
    pooler = make(default_pool_size=2)
    pids = set()
    for round in range(40):
        with pooler.login() as leaving:
            leaving.send(query(f"SELECT pg_sleep({round % 5 / 1000})"))
        with pooler.login() as other:
            answer = other.query("SELECT pg_backend_pid(), pg_sleep(0.01)")
            assert answer.error is None and answer.rows, answer.error
            pids.add(answer.value)
    assert len(pids) > 5


def test_a_query_that_takes_too_long_is_canceled(make, pg):
    pooler = make(query_timeout=1)
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(100), 'too long'"))
        wire.expect_fatal("query timeout")
    until(lambda: not pg.sleeping("'too long'"))


def test_nothing_is_canceled_unless_asked_for(make, pg):
    pooler = make(cancel_on_disconnect=0)
    leave_asleep(pooler, pg, "goes on")
    pooler.wait_log("closing because: client disconnect while server was not ready")
    with pooler.login() as other:
        assert other.query("SELECT 1").value == "1"
    assert pg.sleeping("'goes on'") and "cancel request" not in pooler.log()
    pg.no_clients()
    # who leaves nothing running has nothing canceled
    pooler = make()
    with pooler.login() as wire:
        wire.query("BEGIN")
    pooler.wait_log("closing because: client disconnect while server was not ready")
    with pooler.login() as wire:
        wire.query("SELECT 1")
    assert "cancel request" not in pooler.log()


@pytest.fixture
def make_keeper(make):
    """Poolers that use what was left running again, if it comes to an end."""
    def build(**ini):
        return make(server_drain_timeout=20, **ini)

    return build


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_its_server_is_used_again(make_keeper, pg, mode):
    pooler = make_keeper(pool_mode=mode)
    pid = leave_asleep(pooler, pg, "kept", *["SET work_mem = '77MB'"] if mode == "session" else [])
    until(lambda: not pg.sleeping("'kept'"))
    with pooler.login() as other:
        assert other.query("SELECT pg_backend_pid()").value == pid
        assert other.query("SHOW work_mem").value != "77MB"
    until(lambda: pooler.pool()["sv_active_cancel"] == 0 and pooler.pool()["sv_active"] == 0)
    assert "client disconnect while server was not ready" not in pooler.log()


def test_a_query_may_end_by_itself(make_keeper, pg):
    pooler = make_keeper(cancel_on_disconnect=0)
    with pooler.login() as wire:
        pid = wire.query("SELECT pg_backend_pid()").value
        wire.send(query("SELECT pg_sleep(0.5), 'by itself', repeat('x', 3000000) FROM generate_series(1, 3)"))
        until(lambda: pg.sleeping("'by itself'"))
    until(lambda: pooler.pool()["cl_active"] == 0)
    row = pooler.pool()
    assert (row["sv_active"], row["sv_idle"]) == (1, 0)
    server, = pooler.show("SERVERS")
    assert server["state"] == "active" and not server["link"]
    with pooler.login() as other:
        answer = other.query("SELECT pg_backend_pid()")
        assert answer.value == pid and len(answer.rows) == 1
    assert "cancel request" not in pooler.log()


def left_behind(make_keeper, pg, say, **ini):
    """Whether a server was used again whose client left after saying something."""
    pooler = make_keeper(**ini)
    with pooler.login() as wire:
        pid = wire.query("SELECT pg_backend_pid()").value
        say(wire)
    with pooler.login() as other:
        other.query("SET lock_timeout = '10s'")
        again = other.query("SELECT pg_backend_pid()").value == pid
    if not again:
        pooler.wait_log("closing because: client disconnect while server was not ready")
    return again


@pytest.mark.parametrize("before", [["BEGIN"], ["BEGIN", "SELECT 1/0"]])
def test_a_transaction_that_was_left_is_not_waited_for(make_keeper, pg, before):
    def say(wire):
        for statement in before:
            wire.ask(statement)
        wire.send(query("SELECT pg_sleep(0.1)"))

    assert not left_behind(make_keeper, pg, say)


def test_a_transaction_that_was_begun_and_left_is_not_used_again(make_keeper, pg):
    assert not left_behind(make_keeper, pg, lambda wire: wire.send(query("BEGIN; SELECT pg_sleep(0.1)")))


def test_what_waits_for_its_client_is_not_waited_for(make_keeper, pg):
    pg.run_psql("p0", "CREATE TABLE IF NOT EXISTS left_copy (n int); GRANT ALL ON left_copy TO PUBLIC")
    copy = query("COPY left_copy FROM STDIN")
    # with a Flush or cut there is no end to wait for; a copy waits for data
    cut = query("SELECT pg_sleep(0.1)" + " " * 100_000)[:50_000]
    unfinished = parse("", "SELECT pg_sleep(0.1)") + bind("", "") + execute("") + message("H")
    for say in (copy, query("SELECT pg_sleep(0.1)") + copy, cut, unfinished):
        assert not left_behind(make_keeper, pg, lambda wire, say=say: wire.send(say), cancel_on_disconnect=0), say[:40]


def test_a_pipeline_is_heard_out(make_keeper, pg):
    batch = parse("", "SELECT pg_sleep(0.1)") + bind("", "") + execute("") + message("S")
    failing = parse("", "SELECT 1/0") + bind("", "") + execute("") + message("S")
    whole = batch + failing + query("SELECT 1") + batch
    assert left_behind(make_keeper, pg, lambda wire: wire.send(whole), cancel_on_disconnect=0)


def test_nobody_waits_longer_than_he_was_told_to(make, pg):
    pooler = make(cancel_on_disconnect=0, server_drain_timeout=1)
    pid = leave_asleep(pooler, pg, "endless")
    with pooler.login() as other:
        assert other.query("SELECT pg_backend_pid()").value != pid
    pooler.wait_log("closing because: client disconnect while server was not ready")
    assert pooler.pool()["sv_active"] == 0


@pytest.mark.fault("clients leave in mid-query, and their connections are used again (server_drain_timeout)",
                   "the next one gets his own answer alone, and his query is not cancelled")
@pytest.mark.goal("G1", "G6")
def test_a_kept_server_is_clean_when_the_next_client_gets_it(make_keeper, pg, measured):
    """Queries of all lengths are left behind, some of which end by themselves while the cancel is on its way."""
    pooler = make_keeper(default_pool_size=2)
    pids, foreign, cancelled, rounds = set(), 0, 0, 60
    for round in range(rounds):
        with pooler.login() as leaving:
            leaving.send(query(f"SELECT pg_sleep({round % 5 / 1000}), repeat('foreign', {round % 3 * 100_000})"))
        with pooler.login() as other:
            answer = other.ask(f"SELECT pg_backend_pid(), pg_sleep(0.01), {round}")
            cancelled += answer.error is not None
            foreign += answer.error is None and [row[2] for row in answer.rows] != [str(round)]
            pids.update(row[0] for row in answer.rows)
    measured.exactly("foreign answers", foreign)
    measured.exactly("queries of others cancelled", cancelled)
    measured.most(f"connections for {2 * rounds} clients", len(pids), 10)


def test_pause_waits_for_a_kept_server_and_suspend_closes_it(make_keeper, pg):
    pooler = make_keeper(cancel_on_disconnect=0)
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(0.7), 'paused'"))
        until(lambda: pg.sleeping("'paused'"))
    pooler.admin("PAUSE")
    assert not pg.sleeping("'paused'") and pooler.pool()["sv_active"] == 0
    pooler.admin("RESUME")
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(0.7), 'suspended'"))
        until(lambda: pg.sleeping("'suspended'"))
    pooler.admin("SUSPEND")
    pooler.wait_log("closing because: client disconnect while server was not ready")
    assert pooler.pool()["sv_active"] == 0
