"""protocol.md 1, 3, 4 and 5: clauses that no other module has, by section."""

import struct

import pytest

from support.system import until
from support.wire import ServerError, cstr, message, query
from test_servers import scripted

pytestmark = pytest.mark.since("1.25")


# --- 1. errors of our own ------------------------------------------------------------------------------------------------------


def refusing(text):
    """A server that refuses every login with this message."""
    return scripted(lambda sock: sock.sendall(message("E", b"SFATAL\0VFATAL\0C28000\0M" + text + b"\0\0")))


def test_1_a_relayed_error_has_three_fields_and_the_servers_code(make_pooler):
    with refusing(b"not you") as server:
        pooler = make_pooler(databases={"no": {"host": "127.0.0.1", "port": server.port}})
        with pooler.wire() as wire:
            wire.startup("app", "no")
            wire.expect_fatal("not you", "28000")


@pytest.mark.parametrize("length, told", [(400, True), (600, False)])
def test_1_an_error_packet_above_512_bytes_is_not_sent(make_pooler, length, told):
    with refusing(b"x" * length) as server:
        pooler = make_pooler(databases={"no": {"host": "127.0.0.1", "port": server.port}})
        with pooler.wire() as wire:
            wire.startup("app", "no")
            if told:
                assert wire.recv().fields == {"S": "FATAL", "C": "28000", "M": "x" * length}
            assert wire.at_eof()


@pytest.mark.since("1.25")
def test_1_texts_of_variable_parts_are_cut_at_127_bytes(pooler):
    with pytest.raises(ServerError) as refused:
        pooler.login(**{"k" * 300: "v"})
    assert refused.value.message == ("unsupported startup parameter: " + "k" * 300)[:127]


# --- 3. startup ----------------------------------------------------------------------------------------------------------------


def test_3_a_later_duplicate_of_a_key_wins(pooler):
    body = struct.pack("!I", 0x30000) + b"".join(map(cstr, ["user", "nosuch", "database", "p1", "user", "app", "database", "p0"])) + b"\0"
    with pooler.wire() as wire:
        wire.send(struct.pack("!I", len(body) + 4) + body)
        wire.finish_login("app")
        assert wire.query("SELECT current_user, current_database()").rows == [["app", "p0"]]


def test_3_keys_are_judged_before_the_limit_of_clients_and_the_user(make_pooler):
    """In packet order, then the layout, then the missing user, then the limit."""
    pooler = make_pooler(ini={"max_client_conn": 1})
    with pooler.login():
        with pytest.raises(ServerError, match="unsupported startup parameter: nosuch_key"):
            pooler.login(nosuch_key="1")
        with pooler.wire() as wire:
            wire.startup(None, "p0")
            wire.expect_fatal("no username supplied")
        with pytest.raises(ServerError, match="no more connections allowed"):
            pooler.login("nosuch")


def test_3_tracked_parameters_compare_without_regard_to_case(pooler):
    with pooler.login(DATESTYLE="German", timezone="Asia/Tokyo", CLIENT_encoding="LATIN1") as wire:
        assert [wire.query(f"SHOW {name}").value for name in ("DateStyle", "TimeZone", "client_encoding")] == ["German, DMY", "Asia/Tokyo", "LATIN1"]


# --- 4. parameters -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def one(make_pooler):
    return make_pooler(ini={"default_pool_size": 1, "verbose": 2})


def test_4_all_assignments_are_one_query_in_the_order_of_the_list(one):
    with one.login() as other, one.login(application_name="it's", TimeZone="Asia/Tokyo", DateStyle="German", client_encoding="LATIN1") as wire:
        other.query("SELECT 1")
        wire.query("SELECT 1")
        one.wait_log("varcache_apply: SET DateStyle='German';SET client_encoding='LATIN1';SET TimeZone='Asia/Tokyo';SET application_name='it''s';")


def test_4_quoted_text_above_127_bytes_is_passed_over(one):
    long = "n" * 60 + "'" * 40
    with one.login() as other, one.login(application_name=long, TimeZone="Asia/Tokyo") as wire:
        other.query("SELECT 1")
        assert wire.query("SHOW TimeZone").value == "Asia/Tokyo"
        assert wire.query("SHOW application_name").value == ""


def test_6_copy_data_that_comes_too_late_is_noted(one):
    with one.login() as wire:
        wire.send(message("d", b"1\n"))
        assert wire.query("SELECT 1").value == "1"
    one.wait_log("discarding late CopyData, server not linked")


def test_4_values_that_differ_in_case_alone_are_equal(one):
    with one.login() as other, one.login(client_encoding="utf8", TimeZone="utc") as wire:
        other.query("SELECT 1")
        wire.query("SELECT 1")
        assert "varcache_apply: " not in one.log()


def test_4_the_servers_own_spelling_replaces_the_clients(one):
    with one.login() as other, one.login(DateStyle="german") as wire:
        for _ in range(3):
            other.query("SELECT 1")
            assert wire.query("SHOW DateStyle").value == "German, DMY"
        one.wait_log("varcache_set_canonical: setting DateStyle to its canonical version german -> German, DMY")
        wire.query("SELECT 1")
        before = one.log().count("varcache_apply: ")
        for _ in range(3):
            wire.query("SELECT 1")
        assert one.log().count("varcache_apply: ") == before


def test_4_a_change_by_another_statement_is_noticed(one):
    """set_config and SET LOCAL report as SET does."""
    with one.login() as a, one.login() as b:
        a.query("SELECT set_config('TimeZone', 'Asia/Tokyo', false)")
        assert a.parameters["TimeZone"] == "Asia/Tokyo"
        assert b.query("SHOW TimeZone").value == "UTC"
        a.query("BEGIN; SET LOCAL TimeZone = 'Europe/Berlin'")
        a.query("COMMIT")
        assert a.parameters["TimeZone"] == "Asia/Tokyo" and a.query("SHOW TimeZone").value == "Asia/Tokyo"


def test_4_session_pools_apply_them_once_a_session(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "session", "default_pool_size": 1, "verbose": 2, "server_reset_query": ""})
    with pooler.login(TimeZone="Asia/Tokyo") as wire:
        for _ in range(3):
            assert wire.query("SHOW TimeZone").value == "Asia/Tokyo"
    with pooler.login(TimeZone="Europe/Berlin") as wire:
        for _ in range(3):
            assert wire.query("SHOW TimeZone").value == "Europe/Berlin"
    assert pooler.log().count("varcache_apply: ") <= 2


def test_4_an_invalid_value_costs_server_and_client(one):
    with one.login() as other, one.login(IntervalStyle="nonsense") as wire:
        other.query("SELECT 1")
        wire.send(query("SELECT 1"))
        wire.expect_fatal("invalid server parameter")
        one.wait_log("closing because: invalid server parameter", 2)
        assert other.query("SELECT 1").value == "1"


# --- 5. login reply ------------------------------------------------------------------------------------------------------------

UNTRACKED = ["default_transaction_read_only", "in_hot_standby", "integer_datetimes", "is_superuser", "server_encoding", "server_version",
             "session_authorization"]
TRACKED = ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name", "IntervalStyle"]


@pytest.mark.since("1.25")
@pytest.mark.parametrize("login", ["first", "later"])
def test_5_order_of_the_login_reply(pooler, login):
    if login == "later":
        pooler.login().close()
    with pooler.login() as wire:
        assert wire.parameter_order == UNTRACKED + TRACKED
        assert wire.parameters["application_name"] == ""
        assert "".join(m.type for m in wire.login_messages) == "R" + "S" * 13 + "KZ"
        assert wire.login_messages[-1].body == b"I"


def test_5_a_requested_value_is_echoed_as_it_is(pooler):
    with pooler.login(DateStyle="german", TimeZone="Nowhere/At_All") as wire:
        assert (wire.parameters["DateStyle"], wire.parameters["TimeZone"]) == ("german", "Nowhere/At_All")


def test_5_the_cache_is_that_of_the_first_server_until_reconnect(make_pooler, pg):
    pooler = make_pooler()
    pooler.login().close()
    pg.sql("ALTER ROLE app SET IntervalStyle = 'iso_8601'")
    try:
        with pooler.login() as wire:
            assert wire.parameters["IntervalStyle"] == "postgres"
        pooler.admin("RECONNECT p0")
        until(lambda: pooler.pool()["sv_idle"] == 0)
        with pooler.login() as wire:
            assert wire.parameters["IntervalStyle"] == "iso_8601"
    finally:
        pg.sql("ALTER ROLE app RESET IntervalStyle")
