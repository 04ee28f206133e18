"""Session, transaction and statement pooling: when a server is shared and when it is kept."""

import pytest

from support.system import until
from support.wire import SYNC, ServerError, bind, execute, parse, query


def one_server(make_pooler, mode, **ini):
    return make_pooler(ini={"pool_mode": mode, "default_pool_size": 1, **ini})


def pid(wire):
    return wire.query("SELECT pg_backend_pid()").value


def test_transaction_mode_shares_between_transactions(make_pooler):
    pooler = one_server(make_pooler, "transaction")
    with pooler.login() as a, pooler.login() as b:
        assert pid(a) == pid(b) == pid(a)
        a.query("BEGIN")
        b.send(query("SELECT 'b'"))
        assert b.recv_or_none(0.2) is None, "the server is held by the open transaction"
        a.query("SELECT 1")
        assert b.recv_or_none(0.1) is None
        a.query("COMMIT")
        assert b.result().value == "b"


def test_transaction_mode_keeps_the_server_after_an_error_in_a_transaction(make_pooler):
    pooler = one_server(make_pooler, "transaction")
    with pooler.login() as a, pooler.login() as b:
        a.query("BEGIN")
        failed = a.ask("SELECT 1/0")
        assert failed.error["C"] == "22012" and failed.status == "E"
        b.send(query("SELECT 'b'"))
        assert b.recv_or_none(0.2) is None
        assert a.query("ROLLBACK").status == "I"
        assert b.result().value == "b"


def test_multi_statement_query_with_its_own_transaction(make_pooler):
    for mode in ("transaction", "statement"):
        pooler = one_server(make_pooler, mode)
        with pooler.login() as a, pooler.login() as b:
            assert a.query("BEGIN; SELECT 1; COMMIT").tags == ["BEGIN", "SELECT 1", "COMMIT"]
            assert b.query("SELECT 1").value == "1"


def test_session_mode_keeps_the_server_until_the_client_leaves(make_pooler):
    pooler = one_server(make_pooler, "session")
    a, b = pooler.login(), pooler.login()
    first = pid(a)
    a.query("SET work_mem = '123kB'")
    b.send(query("SELECT current_setting('work_mem'), pg_backend_pid()"))
    assert b.recv_or_none(0.2) is None
    a.close()
    work_mem, server = b.result().rows[0]
    assert server == first and work_mem == "4MB", "the reset query ran in between"


@pytest.mark.parametrize("mode, always, leaks", [("session", 0, False), ("transaction", 0, True), ("transaction", 1, False)])
@pytest.mark.goal("G5")
def test_reset_query(make_pooler, mode, always, leaks):
    pooler = one_server(make_pooler, mode, server_reset_query_always=always)
    with pooler.login() as a:
        a.query("SET work_mem = '123kB'")
    until(lambda: pooler.pool()["sv_idle"] == 1)
    with pooler.login() as b:
        assert (b.query("SHOW work_mem").value == "123kB") is leaks


def test_error_of_the_reset_query_is_ignored(make_pooler):
    pooler = one_server(make_pooler, "session", server_reset_query="SELECT no_such_function()")
    with pooler.login() as a:
        first = pid(a)
    with pooler.login() as b:
        assert pid(b) == first


def test_statement_mode_forbids_transactions(make_pooler):
    pooler = one_server(make_pooler, "statement")
    with pooler.login() as a:
        assert a.query("SELECT 1").value == "1"
        a.send(query("BEGIN"))
        a.expect_fatal("transaction blocks not allowed in statement pooling mode")
    with pooler.login() as b:
        assert b.query("SELECT 2").value == "2"


def test_mode_of_the_entry_and_of_the_user(make_pooler):
    pooler = make_pooler(start=False, ini={"default_pool_size": 1, "pool_mode": "session"}, users={"app2": {"pool_mode": "statement"}})
    pooler.databases["p0"] = pooler.backend(pool_mode="transaction")
    pooler.write()
    pooler.start()
    with pooler.login("app") as a, pooler.login("app") as b:
        assert pid(a) == pid(b)
    with pooler.login("app2") as c:
        c.send(query("BEGIN"))
        c.expect_fatal("transaction blocks not allowed in statement pooling mode")
    with pooler.login("app", "p1"):
        pass
    modes = {(p["database"], p["user"]): p["pool_mode"] for p in pooler.show("POOLS")}
    assert modes[("p0", "app")] == "transaction" and modes[("p0", "app2")] == "statement" and modes[("p1", "app")] == "session"


def test_pipelined_batches_keep_one_server(make_pooler):
    """A client that sends several Syncs at once gets all answers from one server, in order."""
    pooler = make_pooler(ini={"default_pool_size": 2})
    with pooler.login() as a, pooler.login() as b:
        b.query("BEGIN")
        batch = b"".join(parse("", f"SELECT {n}, pg_backend_pid()") + bind() + execute() + SYNC for n in range(20))
        a.send(batch)
        rows = [a.recv() for _ in range(20 * 5)]
        answers = [m.body for m in rows if m.type == "D"]
        assert "".join(m.type for m in rows) == "12DCZ" * 20
        assert len({a[-5:] for a in answers}) == 1


@pytest.mark.goal("G14")
def test_waiting_clients_are_served_in_order(make_pooler):
    pooler = one_server(make_pooler, "transaction")
    holder = pooler.login()
    waiters = [pooler.login() for _ in range(8)]
    holder.query("CREATE TABLE IF NOT EXISTS arrivals (n serial, who int); TRUNCATE arrivals RESTART IDENTITY")
    holder.query("BEGIN")
    for number, waiter in enumerate(waiters):
        waiter.send(query(f"INSERT INTO arrivals(who) VALUES ({number})"))
        until(lambda: pooler.pool()["cl_waiting"] == number + 1)
    holder.query("COMMIT")
    for waiter in waiters:
        waiter.result()
    rows = holder.query("SELECT who FROM arrivals ORDER BY n").rows
    assert [int(r[0]) for r in rows] == list(range(8))
    holder.query("DROP TABLE arrivals")


def test_client_that_leaves_in_a_transaction_costs_the_server(make_pooler, pg):
    pooler = one_server(make_pooler, "transaction")
    a = pooler.login()
    a.query("BEGIN")
    first = int(pid(a))
    a.close()
    pooler.wait_log("client disconnect while server was not ready")
    until(lambda: first not in pg.backends("p0"))
    with pooler.login() as b:
        assert int(pid(b)) != first


def test_client_that_leaves_while_its_query_runs_costs_the_server(make_pooler, pg):
    pooler = one_server(make_pooler, "transaction")
    a = pooler.login()
    first = int(pid(a))
    a.send(query("SELECT pg_sleep(3)"))
    until(lambda: pg.sleeping("pg_sleep(3)"))
    a.close()
    pooler.wait_log("client disconnect while server was not ready")
    with pooler.login() as b:
        assert int(pid(b)) != first


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_uncommitted_work_of_a_client_that_leaves_is_rolled_back(make_pooler, mode):
    pooler = one_server(make_pooler, mode)
    with pooler.login() as a:
        a.query("CREATE TABLE IF NOT EXISTS kept (n int); TRUNCATE kept")
    with pooler.login() as b:
        b.query("BEGIN")
        b.query("INSERT INTO kept VALUES (1)")
    with pooler.login() as c:
        assert c.query("SELECT count(*) FROM kept").value == "0"
        c.query("DROP TABLE kept")


def test_no_server_is_lost_when_waiters_leave(make_pooler):
    """A waiter that goes away at the moment a server is handed over must not take it along."""
    pooler = one_server(make_pooler, "transaction")
    for _ in range(30):
        holder, waiter = pooler.login(), pooler.login()
        holder.query("BEGIN")
        waiter.send(query("SELECT 1"))
        holder.send(query("COMMIT"))
        waiter.close()
        holder.result()
        holder.close()
    with pooler.login() as last:
        assert last.query("SELECT 1").value == "1"
    assert pooler.pool()["sv_active"] == 0


@pytest.mark.parametrize("round_robin, distinct", [(0, 1), (1, 3)])
def test_idle_servers_are_taken_last_in_first_out_or_in_turn(make_pooler, round_robin, distinct):
    pooler = make_pooler(ini={"server_round_robin": round_robin})
    clients = [pooler.login() for _ in range(3)]
    for client in clients:
        client.query("BEGIN")
    for client in clients:
        client.query("COMMIT")
    until(lambda: pooler.pool()["sv_idle"] == 3)
    assert len({pid(clients[0]) for _ in range(6)}) == distinct


def test_refused_login_is_not_a_client(make_pooler):
    pooler = make_pooler(ini={"auth_type": "md5"})
    with pytest.raises(ServerError):
        pooler.login("app", password="wrong")
    assert all(c["user"] != "app" for c in pooler.show("CLIENTS"))


def in_use(pooler):
    return [row["state"] for row in pooler.show("SERVERS")] == ["active"]


@pytest.mark.parametrize("how", ["SET", "RELOAD", "RELOAD of the database"])
def test_who_is_linked_goes_on_in_the_new_mode(make_pooler, how):
    """A session pool that is full is relieved at the end of each client's next transaction."""
    pooler = one_server(make_pooler, "session")
    with pooler.login() as a, pooler.login() as b:
        first = pid(a)
        b.send(query("SELECT pg_backend_pid()"))
        assert b.recv_or_none(0.2) is None
        if how == "SET":
            pooler.admin("SET pool_mode = transaction")
        else:
            (pooler.ini if how == "RELOAD" else pooler.databases["p0"])["pool_mode"] = "transaction"
            pooler.write()
            pooler.reload()
        assert b.recv_or_none(0.2) is None, "not before the client has done something"
        assert pid(a) == first and b.result().value == first
        until(lambda: not in_use(pooler))


def test_a_transaction_that_is_open_when_the_mode_changes(make_pooler):
    pooler = one_server(make_pooler, "transaction")
    with pooler.login() as a:
        a.query("BEGIN")
        pooler.admin("SET pool_mode = session")
        a.query("COMMIT")
        assert in_use(pooler), "it is a session now"
    with pooler.login() as b:
        pooler.admin("SET pool_mode = transaction")
        b.query("BEGIN")
        pooler.admin("SET pool_mode = statement")
        b.send(query("SELECT 1"))
        b.expect_fatal("transaction blocks not allowed in statement pooling mode")
