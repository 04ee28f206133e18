"""The drivers people use, with their default settings, through transaction pooling: twice as many clients as servers, and a
script of typical work for each (in drivers/). The table in docs/drivers.md says what each needs; it is proved here.
"""

import asyncio
import re

import asyncpg
import psycopg
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy

from drivers import asyncpg_work, psycopg2_work, psycopg3_work, sqlalchemy_work
from support import drivers
from support.drivers import CLIENTS, SERVERS
from support.system import REPO, until
from support.wire import ServerError

IGNORED = "ignore_startup_parameters"


@pytest.fixture
def pooler(request, make_pooler, pg):
    """A pooler that ignores the startup parameters that docs/drivers.md says the driver needs, and none else."""
    drivers.prepare(pg)
    needed = NEEDS[request.param] if hasattr(request, "param") else ""
    return make_pooler(ini={"auth_type": "scram-sha-256", "default_pool_size": SERVERS, IGNORED: needed})


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return drivers.compile_java(tmp_path_factory.mktemp("classes"))


def table():
    """Driver to the startup parameters it needs ignored, from the page."""
    text = (REPO / "docs/drivers.md").read_text()
    rows = re.findall(r"^\|([^|]*)\|([^|]*)\|[^|]*\|$", text, re.M)
    return {name.strip(): needs.strip(" `") for name, needs in rows[2:]}


NEEDS = table()


def for_driver(name):
    return pytest.mark.parametrize("pooler", [name], indirect=True, ids=[""])


@pytest.mark.since("1.24")
@for_driver("psycopg 3")
def test_psycopg3(pooler, pg):
    drivers.everybody(lambda number: psycopg3_work.work(pooler, number))
    psycopg3_work.cancel(pooler, pg)
    psycopg3_work.pool(pooler, CLIENTS)
    drivers.check(pooler, pg)


@for_driver("psycopg2")
def test_psycopg2(pooler, pg):
    drivers.everybody(lambda number: psycopg2_work.work(pooler, number))
    psycopg2_work.cancel(pooler, pg)
    psycopg2_work.pool(pooler, CLIENTS)
    drivers.check(pooler, pg, prepares=False)


@pytest.mark.since("1.24")
@for_driver("asyncpg")
def test_asyncpg(pooler, pg):
    asyncpg_work.everybody(pooler, CLIENTS)
    drivers.check(pooler, pg)


@pytest.mark.since("1.24")
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@for_driver("SQLAlchemy")
def test_sqlalchemy(pooler, pg, driver):
    sqlalchemy_work.everybody(pooler, f"postgresql+{driver}", CLIENTS)
    drivers.check(pooler, pg, prepares=driver == "psycopg")


@pytest.mark.since("1.24")
@for_driver("SQLAlchemy")
def test_sqlalchemy_with_asyncpg(pooler, pg):
    sqlalchemy_work.everybody_async(pooler, CLIENTS)
    drivers.check(pooler, pg)


@pytest.mark.since("1.24")
@for_driver("node-postgres")
def test_node_postgres(pooler, pg):
    drivers.node("node_pg.mjs", pooler)
    drivers.check(pooler, pg)


@pytest.mark.since("1.24")
@for_driver("postgres.js")
def test_postgres_js(pooler, pg):
    drivers.node("postgres_js.mjs", pooler)
    drivers.check(pooler, pg)


@pytest.mark.since("1.24")
@for_driver("pgjdbc")
def test_pgjdbc(pooler, pg, classes):
    drivers.java(classes, pooler)
    drivers.check(pooler, pg)


def connect_with(name, pooler, request):
    """One connection by a driver's default settings; an error if that fails."""
    if name == "psycopg 3":
        psycopg.connect(**pooler.dsn()).close()
    elif name == "psycopg2":
        psycopg2.connect(**pooler.dsn()).close()
    elif name == "asyncpg":
        async def connect():
            await (await asyncpg.connect(**asyncpg_work.dsn(pooler))).close()

        asyncio.run(connect())
    elif name == "SQLAlchemy":
        for driver in ("psycopg", "psycopg2"):
            engine = sqlalchemy.create_engine(sqlalchemy_work.url(pooler, f"postgresql+{driver}"))
            engine.connect().close()
            engine.dispose()
    elif name == "node-postgres":
        drivers.node("node_pg.mjs", pooler, clients=1)
    elif name == "postgres.js":
        drivers.node("postgres_js.mjs", pooler, clients=1)
    elif name == "pgjdbc":
        drivers.java(request.getfixturevalue("classes"), pooler, clients=0)
    else:
        raise KeyError(name)


@pytest.mark.parametrize("name", sorted(set(NEEDS) - {"tokio-postgres"}))
def test_the_readme_names_the_startup_parameters_that_must_be_ignored(make_pooler, pg, name, request):
    """Without them the driver is refused, by the first of them."""
    drivers.prepare(pg)
    pooler = make_pooler(ini={IGNORED: ""})
    if not NEEDS[name]:
        connect_with(name, pooler, request)
        return
    with pytest.raises(AssertionError, match=f"unsupported startup parameter: {NEEDS[name]}"):
        connect_with(name, pooler, request)


def test_every_driver_of_the_readme_is_tested():
    assert set(NEEDS) == {"psycopg 3", "psycopg2", "asyncpg", "SQLAlchemy", "node-postgres", "postgres.js", "pgjdbc", "tokio-postgres"}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sqlalchemy_pre_ping_outlives_cut_servers(pooler, pg, driver, binary):
    more = {"connect_args": {"prepare_threshold": None}} if driver == "psycopg" and binary.version < (1, 21) else {}
    engine = sqlalchemy.create_engine(sqlalchemy_work.url(pooler, f"postgresql+{driver}"), pool_pre_ping=True, **more)
    for _ in range(4):
        with engine.begin() as connection:
            assert connection.execute(sqlalchemy.text("SELECT 1 + :n"), {"n": 1}).scalar() == 2
        for pid in pg.backends("p0", "app"):
            pg.sql("SELECT pg_terminate_backend(%s)", pid)
        until(lambda: not pg.backends("p0", "app"))
        until(lambda: pooler.pool()["sv_idle"] == 0)
    engine.dispose()


def test_sqlalchemy_pre_ping_outlives_a_restart_of_the_pooler(pooler):
    engine = sqlalchemy.create_engine(sqlalchemy_work.url(pooler, "postgresql+psycopg2"), pool_pre_ping=True)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    pooler.process.kill()
    pooler.wait_end()
    pooler.stderr.unlink()
    pooler.expected_to_end = False
    pooler.start()
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.text("SELECT 2")).scalar() == 2
    engine.dispose()


def test_psycopg2_reads_the_console(pooler):
    connection = psycopg2.connect(host="127.0.0.1", port=pooler.port, user="admin", password=pooler.userlist["admin"], dbname="pgbouncer")
    connection.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    with connection.cursor() as cursor:
        cursor.execute("SHOW POOLS")
        assert cursor.description[0].name == "database" and cursor.fetchall()
    connection.close()


@pytest.mark.parametrize("threshold", [None, pytest.param(0, marks=pytest.mark.since("1.24"))])
def test_psycopg3_prepares_never_or_always(pooler, threshold):
    connections = [pooler.connect(prepare_threshold=threshold) for _ in range(CLIENTS)]
    for turn in range(12):
        for number, connection in enumerate(connections):
            with connection.transaction():
                assert connection.execute("SELECT %s::int * 1000 + %s::int", (number, turn)).fetchone() == (number * 1000 + turn,)
                assert connection.execute("SELECT %s::text", (f"{number}",)).fetchone() == (str(number),)
    for connection in connections:
        connection.close()


def test_asyncpg_without_prepared_statements(pooler):
    async def client(number):
        connection = await asyncpg.connect(**asyncpg_work.dsn(pooler), statement_cache_size=0)
        for turn in range(10):
            assert await connection.fetchval("SELECT $1::int * 100 + $2::int", number, turn) == number * 100 + turn
        await connection.close()

    asyncio.run(client(1))


def test_a_startup_parameter_that_is_not_ignored_is_refused(pooler):
    with pytest.raises(ServerError, match="unsupported startup parameter: statement_timeout"):
        pooler.login(statement_timeout="1s")
