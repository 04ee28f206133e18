"""Tracked parameters follow their client from server to server; nobody gets another client's."""

import pytest

from support.system import until
from support.wire import query

VALUES = {
    "application_name": ("alpha", "beta"),
    "TimeZone": ("Asia/Tokyo", "America/New_York"),
    "client_encoding": ("LATIN1", "UTF8"),
    "DateStyle": ("German, DMY", "ISO, MDY"),
    "standard_conforming_strings": ("off", "on"),
    "IntervalStyle": ("iso_8601", "postgres"),
}
TRACKED = [pytest.param(n, marks=pytest.mark.since("1.20")) if n == "IntervalStyle" else n for n in VALUES]


@pytest.fixture
def pooler(make_pooler):
    """One server for all clients, so that each transaction finds what the one before it left."""
    return make_pooler(ini={"default_pool_size": 1})


@pytest.mark.parametrize("name", TRACKED)
@pytest.mark.goal("G5")
def test_set_by_the_client_survives_the_change_of_servers(pooler, name):
    ours, theirs = VALUES[name]
    with pooler.login() as a, pooler.login() as b:
        a.query(f"SET {name} = '{ours}'")
        b.query(f"SET {name} = '{theirs}'")
        for _ in range(3):
            assert a.query(f"SHOW {name}").value == ours
            assert b.query(f"SHOW {name}").value == theirs


@pytest.mark.parametrize("name", TRACKED)
def test_given_at_startup(pooler, name):
    ours, theirs = VALUES[name]
    with pooler.login(**{name: ours}) as a, pooler.login(**{name: theirs}) as b:
        assert a.parameters[name] == ours
        for _ in range(2):
            assert a.query(f"SHOW {name}").value == ours
            assert b.query(f"SHOW {name}").value == theirs


def test_change_is_reported_to_the_client(pooler):
    with pooler.login() as a:
        got = a.query("SET TimeZone = 'Europe/Berlin'")
        assert "".join(m.type for m in got.messages) in ("CSZ", "SCZ")
        assert a.parameters["TimeZone"] == "Europe/Berlin"


def test_set_in_a_transaction_that_is_rolled_back(pooler):
    with pooler.login(TimeZone="UTC") as a, pooler.login(TimeZone="Asia/Tokyo") as b:
        a.query("BEGIN")
        a.query("SET TimeZone = 'Europe/Berlin'")
        a.query("ROLLBACK")
        assert b.query("SHOW TimeZone").value == "Asia/Tokyo"
        assert a.query("SHOW TimeZone").value == "UTC"


@pytest.mark.parametrize("value", ["it's", "back\\slash", "a\\'b", "\"double\"", "with blank", "ümlaut; SELECT 1", "--comment"])
def test_values_are_quoted(pooler, value):
    with pooler.login(application_name=value) as a, pooler.login(application_name="other") as b:
        b.query("SELECT 1")
        # PostgreSQL shows bytes outside ASCII as escapes or question marks
        shown = a.query("SHOW application_name").value
        if value.isascii():
            assert shown == value
        assert b.query("SHOW application_name").value == "other"


@pytest.mark.since("1.25")
def test_assignments_are_made_only_when_needed(make_pooler, pg):
    """No SET goes to the server while the same client comes again and again."""
    pooler = make_pooler(ini={"default_pool_size": 1, "verbose": 1})
    with pooler.login(TimeZone="Asia/Tokyo", datestyle="iso") as a:
        for _ in range(5):
            a.query("SELECT 1")
        assert pooler.log().count("varcache_apply: ") <= 2
        with pooler.login(TimeZone="UTC") as b:
            b.query("SELECT 1")
        before = pooler.log().count("varcache_apply: ")
        a.query("SELECT 1")
        until(lambda: pooler.log().count("varcache_apply: ") == before + 1)


def test_invalid_value_fails_at_the_first_query(make_pooler):
    pooler = make_pooler()
    with pooler.login(TimeZone="Nowhere/At_All") as a, pooler.login() as b:
        a.send(query("SELECT 1"))
        a.expect_fatal("invalid server parameter")
        assert b.query("SELECT 1").value == "1"
    pooler.wait_log("ERROR varcache_apply failed: ERROR: invalid value for parameter")


def test_reset_and_discard_are_reported(make_pooler):
    pooler = make_pooler(ini={"pool_mode": "session"})
    with pooler.login() as a:
        a.query("SET TimeZone = 'Asia/Tokyo'")
        a.query("RESET TimeZone")
        assert a.parameters["TimeZone"] == "UTC"
        a.query("SET DateStyle = 'German'")
        a.query("DISCARD ALL")
        assert a.parameters["DateStyle"] == "ISO, MDY"


def test_application_name_add_host(make_pooler):
    pooler = make_pooler(ini={"application_name_add_host": 1})
    with pooler.login(application_name="who") as a:
        assert a.query("SHOW application_name").value.startswith("who - 127.0.0.1:")


def test_parameters_of_the_entry(make_pooler):
    pooler = make_pooler(start=False)
    pooler.databases["p0"] = pooler.backend(client_encoding="LATIN1", datestyle="SQL", timezone="Asia/Tokyo")
    pooler.write()
    pooler.start()
    with pooler.login() as a:
        assert a.parameters["TimeZone"] == "Asia/Tokyo" and a.parameters["client_encoding"] == "LATIN1"
        assert a.query("SHOW TimeZone").value == "Asia/Tokyo"
        assert a.query("SHOW DateStyle").value == "SQL, MDY"


@pytest.mark.since("1.20")
def test_extra_tracked_parameter(make_pooler):
    """default_transaction_read_only is reported by PostgreSQL 14 and later."""
    pooler = make_pooler(ini={"default_pool_size": 1, "track_extra_parameters": "IntervalStyle, default_transaction_read_only"})
    with pooler.login() as a, pooler.login() as b:
        a.query("SET default_transaction_read_only = on")
        assert b.query("SHOW default_transaction_read_only").value == "off"
        assert a.query("SHOW default_transaction_read_only").value == "on"


def test_psycopg_reads_dates_whatever_others_set(pooler):
    import datetime

    with pooler.connect() as a, pooler.login(DateStyle="German") as b:
        for _ in range(3):
            assert b.query("SELECT DATE '2024-02-01'").value == "01.02.2024"
            assert a.execute("SELECT DATE '2024-02-01'").fetchone() == (datetime.date(2024, 2, 1),)
