"""What a client leaves running at the server when it goes: `cancel_on_disconnect`."""

import pytest

from support.system import until
from support.wire import query

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
