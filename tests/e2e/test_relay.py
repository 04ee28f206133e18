"""What passes between a client and its server: every kind of message, any size, any cut."""

import struct

import pytest

from support.wire import FLUSH, SYNC, ServerError, bind, close, cstr, describe, execute, message, parse, query


def test_large_rows_and_large_queries(pooler):
    with pooler.login() as wire:
        assert wire.query("SELECT repeat('x', 5000000)").value == "x" * 5_000_000
        text = "y" * 3_000_000
        assert wire.query(f"SELECT length('{text}')").value == "3000000"
        assert len(wire.query("SELECT n, repeat('z', 100) FROM generate_series(1, 50000) n").rows) == 50000


def test_copy_out(pooler):
    with pooler.connect() as c, c.cursor() as cursor:
        with cursor.copy("COPY (SELECT n, 'row ' || n FROM generate_series(1, 20000) n) TO STDOUT") as copy:
            rows = b"".join(bytes(part) for part in copy).decode().splitlines()
        assert len(rows) == 20000 and rows[-1] == "20000\trow 20000"
        assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_copy_in(pooler):
    with pooler.connect() as c, c.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS copied (n int, t text)")
        cursor.execute("TRUNCATE copied")
        with cursor.copy("COPY copied FROM STDIN") as copy:
            for n in range(20000):
                copy.write_row((n, "text " * 10))
        assert cursor.execute("SELECT count(*), sum(n) FROM copied").fetchone() == (20000, sum(range(20000)))
        cursor.execute("DROP TABLE copied")


@pytest.mark.parametrize("data, error", [(b"1\n", None), (b"not a number\n", "22P02")])
def test_copy_in_ends_well_or_badly_and_the_server_is_free_again(make_pooler, data, error):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        a.query("CREATE TABLE IF NOT EXISTS copied2 (n int)")
        a.send(query("COPY copied2 FROM STDIN"))
        assert a.recv().type == "G"
        a.send(message("d", data) + message("c"))
        got = a.result()
        assert (got.error or {}).get("C") == error and got.status == "I"
        assert b.query("SELECT 1").value == "1"
        assert a.query("SELECT 2").value == "2"
        b.query("DROP TABLE copied2")


def test_copy_fail(pooler):
    with pooler.login() as a:
        a.query("CREATE TABLE IF NOT EXISTS copied3 (n int)")
        a.send(query("COPY copied3 FROM STDIN"))
        assert a.recv().type == "G"
        a.send(message("d", b"1\n") + message("f", cstr("had enough")))
        assert a.result().error["C"] == "57014"
        assert a.query("SELECT count(*) FROM copied3").value == "0"
        a.query("DROP TABLE copied3")


def test_sync_in_the_middle_of_copy_in_gets_no_answer(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        a.query("CREATE TABLE IF NOT EXISTS copied4 (n int)")
        a.send(parse("", "COPY copied4 FROM STDIN") + bind() + execute() + FLUSH)
        assert [a.recv().type for _ in range(3)] == ["1", "2", "G"]
        a.send(message("d", b"1\n") + SYNC + message("d", b"2\n") + message("c") + SYNC)
        assert a.result().tags == ["COPY 2"]
        assert b.query("SELECT count(*) FROM copied4").value == "2"
        b.query("DROP TABLE copied4")


def test_late_copy_messages_are_swallowed(pooler):
    with pooler.login() as a:
        a.send(message("d", b"1\n") + message("c"))
        assert a.query("SELECT 1").value == "1"


def test_extended_query_step_by_step(pooler):
    with pooler.login() as wire:
        wire.send(parse("", "SELECT $1::int + 1 AS n") + describe("S") + FLUSH)
        assert [wire.recv().type for _ in range(3)] == ["1", "t", "T"]
        wire.send(bind(params=[41]) + describe("P") + execute() + SYNC)
        got = wire.result()
        assert (got.names, got.rows, got.status) == (["n"], [["42"]], "I")


def test_portal_in_pieces(pooler):
    with pooler.login() as wire:
        wire.send(parse("", "SELECT generate_series(1, 5)") + bind() + execute("", 2) + FLUSH)
        assert "".join(wire.recv().type for _ in range(5)) == "12DDs"
        wire.send(execute("", 2) + execute("", 2) + SYNC)
        assert "".join(m.type for m in wire.result().messages) == "DDsDCZ"


def test_error_in_a_batch_skips_to_sync(pooler):
    with pooler.login() as wire:
        wire.send(parse("", "SELECT 1/0") + bind() + execute() + parse("", "SELECT 2") + bind() + execute() + SYNC)
        got = wire.result()
        assert got.error["C"] == "22012" and got.rows == [] and got.status == "I"
        wire.send(parse("", "SELECT 3") + bind() + execute() + SYNC)
        assert wire.result().rows == [["3"]]


def test_psycopg_pipeline(pooler):
    with pooler.connect() as c, c.pipeline() as p:
        cursors = [c.execute("SELECT %s::int", (n,)) for n in range(200)]
        p.sync()
        assert [x.fetchone()[0] for x in cursors] == list(range(200))


def test_psycopg_pipeline_with_an_error(pooler):
    import psycopg

    with pooler.connect() as c:
        with pytest.raises(psycopg.errors.DivisionByZero), c.pipeline():
            c.execute("SELECT 1/%s", (0,))
            c.execute("SELECT 2")
        assert c.execute("SELECT 3").fetchone() == (3,)


def test_function_call(pooler, pg):
    """FunctionCall ('F'), as libpq's large objects use it."""
    (oid,), = pg.sql("SELECT 'int4pl'::regproc::oid")
    with pooler.login() as wire:
        arguments = b"".join(struct.pack("!I", len(t)) + t for t in (b"40", b"2"))
        wire.send(message("F", struct.pack("!IHHH", oid, 1, 0, 2) + arguments + struct.pack("!H", 0)))
        answer = wire.recv()
        assert answer.type == "V" and answer.body[4:] == b"42"
        assert wire.recv().type == "Z"
        assert wire.query("SELECT 1").value == "1"


def test_large_object_through_function_calls(pooler):
    import psycopg2

    connection = psycopg2.connect(**pooler.dsn())
    big = connection.lobject(0, "wb")
    big.write(b"z" * 100_000)
    oid = big.oid
    big.close()
    connection.commit()
    again = connection.lobject(oid, "rb")
    assert again.read() == b"z" * 100_000
    again.unlink()
    connection.commit()
    connection.close()


def test_notices_arrive_with_all_fields(pooler):
    with pooler.login() as wire:
        got = wire.query("DO $$ BEGIN RAISE NOTICE 'look %', 7 USING HINT = 'here', DETAIL = 'there'; END $$")
        (notice,) = got.notices
        assert (notice["S"], notice["M"], notice["H"], notice["D"]) == ("NOTICE", "look 7", "here", "there")


def test_errors_are_forwarded_unchanged(pooler, pg):
    with pooler.login() as wire, pg.direct("p0", "app") as direct:
        text = "SELECT nothing_like_this FROM nowhere"
        through = wire.ask(text).error
        try:
            direct.execute(text)
        except Exception as error:  # noqa: BLE001
            there = error.diag
        assert (through["C"], through["M"], through["P"], through["F"], through["L"], through["R"]) == (
            there.sqlstate, there.message_primary, there.statement_position, there.source_file, there.source_line,
            there.source_function)


def test_listen_and_notify_in_session_mode(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "session"})
    with pooler.login() as listener, pooler.login() as sender:
        listener.query("LISTEN bell")
        sender.query("NOTIFY bell, 'ring'")
        got = listener.recv()
        assert got.type == "A" and got.body[4:] == cstr("bell") + cstr("ring")


def test_empty_query(pooler):
    with pooler.login() as wire:
        assert "".join(m.type for m in wire.query("").messages) == "IZ"
        assert "".join(m.type for m in wire.query(";;").messages) == "IZ"


def test_sync_alone_is_answered(pooler):
    with pooler.login() as wire:
        wire.send(SYNC)
        assert [m.type for m in wire.result().messages] == ["Z"]


def test_parse_and_flush_keep_the_server_until_sync(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        a.send(parse("", "SELECT 1") + FLUSH)
        assert a.recv().type == "1"
        b.send(query("SELECT 'b'"))
        assert b.recv_or_none(0.2) is None
        a.send(SYNC)
        assert a.recv().type == "Z"
        assert b.result().value == "b"


@pytest.mark.goal("G4")
def test_messages_cut_into_small_pieces(pooler):
    """Headers and bodies arrive split at every place."""
    data = parse("", "SELECT $1::text") + bind(params=["cut"]) + describe("P") + execute() + SYNC + query("SELECT 'simple'")
    with pooler.login() as wire:
        for size in (1, 2, 3, 5, 7, 11):
            for at in range(0, len(data), size):
                wire.send(data[at : at + size])
            assert wire.result().value == "cut"
            assert wire.result().value == "simple"


def test_client_that_does_not_read_stops_its_server_only(pooler):
    with pooler.login() as slow, pooler.login() as other:
        slow.send(query("SELECT repeat('x', 1000000) FROM generate_series(1, 50)"))
        for n in range(20):
            assert other.query(f"SELECT {n}").value == str(n)
        assert len(slow.result().rows) == 50


prepared = pytest.mark.since("1.24")


@prepared
@pytest.mark.goal("G5")
def test_named_statements_follow_their_client(make_pooler):
    """Two clients use the same name for different statements over one server."""
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        for wire, text in ((a, "SELECT 'a' || $1::text"), (b, "SELECT 'b' || $1::text")):
            wire.send(parse("s", text) + SYNC)
            assert [m.type for m in wire.result().messages] == ["1", "Z"]
        for _ in range(3):
            for wire, want in ((a, "a1"), (b, "b1")):
                wire.send(bind("", "s", [1]) + execute() + SYNC)
                assert wire.result().rows == [[want]]


@prepared
def test_statement_is_prepared_anew_on_another_server(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 2})
    with pooler.login() as a, pooler.login() as b:
        a.send(parse("s", "SELECT 'here', pg_backend_pid()") + SYNC)
        a.result()
        a.send(bind("", "s") + execute() + SYNC)
        first = a.result().rows[0]
        # b is to take the server that has the statement
        pooler.settle()
        b.query("BEGIN")
        a.send(describe("S", "s") + bind("", "s") + execute() + SYNC)
        second = a.result()
        assert "".join(m.type for m in second.messages) == "tT2DCZ", "the injected ParseComplete is not seen"
        assert first[0] == second.rows[0][0] == "here" and first[1] != second.rows[0][1]


@prepared
def test_prepared_name_twice(pooler):
    with pooler.login() as wire:
        wire.send(parse("s", "SELECT 1") + SYNC)
        wire.result()
        wire.send(parse("s", "SELECT 2") + SYNC)
        answer = wire.recv()
        # PgBouncer closes the connection; PostgreSQL's own answer is an error that the connection survives
        assert answer.type == "E" and (answer.fields["S"], answer.fields["C"]) in (("FATAL", "08P01"), ("ERROR", "42P05"))
        if answer.fields["S"] == "FATAL":
            assert answer.fields["M"] == "prepared statement name is already in use" and wire.at_eof()
            pooler.wait_log("prepared statement 's' was already prepared")
        else:
            assert wire.result().status == "I"
            wire.send(bind("", "s") + execute() + SYNC)
            assert wire.result().rows == [["1"]]


@prepared
def test_prepared_name_unknown(pooler):
    """As in PostgreSQL an error inside a living connection; PgBouncer closes it."""
    with pooler.login() as wire:
        wire.send(bind("", "nosuch") + execute() + SYNC)
        error = wire.result().error
        assert (error["C"], error["M"]) == ("26000", 'prepared statement "nosuch" does not exist')
        assert wire.query("SELECT 1").value == "1"
    pooler.wait_log("prepared statement 'nosuch' not found")


@prepared
def test_close_of_a_statement_is_answered_without_a_server(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as holder:
        a.send(parse("s", "SELECT 1") + SYNC)
        a.result()
        holder.query("BEGIN")
        a.send(close("S", "s"))
        assert a.recv().type == "3"
        holder.query("COMMIT")
        a.send(SYNC)
        assert a.result().status == "I"
        a.send(parse("s", "SELECT 2") + bind("", "s") + execute() + SYNC)
        assert a.result().rows == [["2"]]


@prepared
def test_order_of_answers_with_made_up_ones(pooler):
    with pooler.login() as a:
        a.send(parse("s", "SELECT 1") + SYNC)
        a.result()
        a.send(parse("t", "SELECT 1") + bind("", "t") + execute() + close("S", "t") + parse("t", "SELECT 5") + bind("", "t")
               + execute() + SYNC)
        got = a.result()
        assert "".join(m.type for m in got.messages) == "12DC312DCZ" and [r[0] for r in got.rows] == ["1", "5"]


@prepared
def test_server_keeps_at_most_max_prepared_statements(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 3})
    with pooler.login() as a:
        for n in range(10):
            a.send(parse(f"s{n}", f"SELECT {n}") + bind("", f"s{n}") + execute() + SYNC)
            assert a.result().value == str(n)
        assert a.query("SELECT count(*) FROM pg_prepared_statements").value == "3"
        for n in range(10):
            a.send(bind("", f"s{n}") + execute() + SYNC)
            assert a.result().rows == [[str(n)]]


@prepared
def test_discard_all_and_deallocate_all_are_understood(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    for forget in ("DISCARD ALL", "DEALLOCATE ALL"):
        with pooler.login() as a:
            a.send(parse("s", "SELECT 1") + bind("", "s") + execute() + SYNC)
            a.result()
            a.query(forget)
            a.send(parse("s", "SELECT 2") + bind("", "s") + execute() + SYNC)
            assert a.result().rows == [["2"]]


@prepared
@pytest.mark.ours
@pytest.mark.parametrize("forget", ["DISCARD ALL", "DEALLOCATE ALL", "/* anew */ deallocate all ;"])
@pytest.mark.parametrize("size", [1000, 3])
@pytest.mark.parametrize("extended", [False, True])
def test_names_are_free_after_they_were_forgotten_earlier_in_the_pipeline(make_pooler, forget, size, extended):
    """Some pools send DISCARD ALL together with the next user's first command."""
    pooler = make_pooler(ini={"default_pool_size": 1})
    forgetting = parse("", forget) + bind() + execute() + SYNC if extended else query(forget)
    with pooler.login() as a:
        a.send(parse("s", "SELECT 1") + parse("t", "SELECT 'gone'") + SYNC)
        assert "".join(m.type for m in a.result().messages) == "11Z"
        data = forgetting + parse("s", "SELECT 2") + bind("", "s") + execute() + SYNC + bind("", "t") + SYNC
        for at in range(0, len(data), size):
            a.send(data[at:at + size])
        assert a.result().status == "I"
        assert a.result().rows == [["2"]]
        assert a.result().error["C"] == "26000"
        a.send(bind("", "s") + execute() + SYNC)
        assert a.result().rows == [["2"]]


@prepared
def test_failed_parse_leaves_its_name_free(make_pooler):
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        a.send(parse("s", "SELECT * FROM later") + SYNC)
        assert a.result().error["C"] == "42P01"
        b.query("CREATE TABLE later AS SELECT 9 AS n")
        a.send(bind("", "s") + execute() + SYNC)
        assert a.result().error["C"] == "26000"
        a.send(parse("s", "SELECT * FROM later") + bind("", "s") + execute() + SYNC)
        assert a.result().rows == [["9"]]
        b.query("DROP TABLE later")


@prepared
def test_statement_text_larger_than_the_buffers(pooler):
    text = "SELECT '" + "x" * 100_000 + "'"
    with pooler.login() as a:
        a.send(parse("big", text) + bind("", "big") + execute() + SYNC + parse("", "SELECT 1") + bind() + execute() + SYNC)
        assert len(a.result().rows[0][0]) == 100_000
        assert a.result().rows == [["1"]]


def test_tracking_switched_off_passes_names_through(make_pooler, binary):
    ini = {"pool_mode": "session"}
    if binary.version >= (1, 21):
        ini = {"default_pool_size": 1, "max_prepared_statements": 0}
    pooler = make_pooler(ini=ini)
    with pooler.login() as a:
        a.send(parse("mine", "SELECT 1") + SYNC)
        a.result()
        assert a.query("SELECT name FROM pg_prepared_statements").rows == [["mine"]]


def test_error_text_when_a_backend_is_terminated(pooler, pg):
    with pooler.login() as wire:
        wire.query("BEGIN")
        pid = int(wire.query("SELECT pg_backend_pid()").value)
        pg.sql("SELECT pg_terminate_backend(%s)", pid)
        first = wire.recv()
        assert first.type == "E" and first.fields["C"] == "57P01"
        wire.expect_fatal("server conn crashed?")


def test_first_message_split_over_two_reads(make_pooler):
    """The message that links a client may be incomplete when the server is free."""
    pooler = make_pooler(ini={"default_pool_size": 1})
    with pooler.login() as a, pooler.login() as b:
        data = query("SELECT 'whole'")
        a.send(data[:3])
        assert b.query("SELECT 1").value == "1"
        a.send(data[3:])
        assert a.result().value == "whole"


def test_fatal_from_a_raw_login_has_three_fields(make_pooler):
    pooler = make_pooler(userlist={"admin": "x"})
    with pytest.raises(ServerError) as refused:
        pooler.login("nosuch")
    assert list(refused.value.fields) == ["S", "C", "M"]
