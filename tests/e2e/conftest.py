"""Fixtures: one PostgreSQL for the session, one pooler for the test, and a limit on the time of each test."""

import re
import signal

import pytest

from support import figures, system
from support.certs import Authority
from support.pooler import Binary, Pooler
from support.postgres import Postgres

TEST_LIMIT_S = 90

# They take longest and start first, so that no process is alone with one of them at the end.
LONG_FILES = ("test_debian", "test_beside_debian", "test_load", "test_pooling_clauses", "test_hosts", "test_steering", "test_tls_servers")


def pytest_configure(config):
    config.addinivalue_line("markers", "since(version): behaviour of that PgBouncer release or later")
    config.addinivalue_line("markers", "ours: behaviour that PgBouncer does not have")
    config.addinivalue_line("markers", "slow(seconds): may take that long")
    config.addinivalue_line("markers", "fault(what, promise): a line of docs/faults.md")
    config.addinivalue_line("markers", "goal(names): its figures are shown with these goals in docs/goals.md")


def pytest_addoption(parser):
    parser.addoption("--goals", help="only tests of these goals, as in --goals=G1,G7")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)
    if config.getoption("--goals"):
        wanted = set(config.getoption("--goals").split(","))
        items[:] = [item for item in items if wanted & {name for mark in item.iter_markers("goal") for name in mark.args}]


@pytest.fixture(scope="session")
def binary():
    directory = system.fresh_dir("bin")
    yield Binary(directory)
    system.remove_dir(directory)


@pytest.fixture(scope="session")
def pg():
    cluster = Postgres()
    yield cluster
    cluster.remove()


@pytest.fixture(scope="module")
def ca():
    """The authority that certificates of a test are from."""
    authority = Authority()
    yield authority
    authority.remove()


@pytest.fixture(scope="module")
def stranger():
    """Another authority, which the pooler does not know."""
    authority = Authority("stranger")
    yield authority
    authority.remove()


@pytest.fixture(autouse=True)
def _fits(request, binary):
    """Skips what the binary under test is too old for or is not ours for."""
    if binary.ours:
        return
    wanted = request.node.get_closest_marker("since")
    if wanted and binary.version < tuple(int(n) for n in wanted.args[0].split(".")):
        pytest.skip(f"this binary is PgBouncer {'.'.join(map(str, binary.version))}, the behaviour came with {wanted.args[0]}")
    if request.node.get_closest_marker("ours"):
        pytest.skip("a behaviour of our own")


@pytest.fixture(autouse=True)
def _time_limit(request):
    """A test that hangs fails with the place where it hangs."""
    slow = request.node.get_closest_marker("slow")
    seconds = slow.args[0] if slow else TEST_LIMIT_S

    def over(*_):
        raise AssertionError(f"the test took more than {seconds} s")

    old = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def make_pooler(request, binary, pg):
    """Builds poolers that are stopped and looked over when the test ends. `start=False` leaves starting to the test."""
    made = []

    def make(start=True, **what):
        pooler = Pooler(binary, pg, **what)
        made.append(pooler)
        return pooler.start() if start else pooler

    request.node.poolers = made
    pg.no_clients()
    yield make
    complaints = []
    for pooler in made:
        if pooler.process is not None and not pooler.alive and not pooler.expected_to_end:
            complaints.append(f"the pooler ended with {pooler.process.returncode} in the middle of the test")
        pooler.stop()
        log = pooler.log()
        for trouble in re.findall(r".*(?:panicked at|client disconnected with query in progress).*|.*FATAL @.*", log):
            complaints.append(trouble)
        system.remove_dir(pooler.dir)
    assert not complaints, complaints


@pytest.fixture
def pooler(make_pooler):
    """A pooler with trust logins in transaction mode for the databases p0 and p1."""
    return make_pooler()


@pytest.fixture
def measured(request):
    """Takes the figures that a test promises: see support.figures."""
    request.node.figures = figures.Figures()
    return request.node.figures


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.passed:
        figures.keep(item, getattr(item, "figures", None))
    if report.when == "call" and report.failed:
        for pooler in getattr(item, "poolers", []):
            report.sections.append(("end of the pooler's log", pooler.log()[-4000:]))


def pytest_make_parametrize_id(config, val, argname):
    """Short names for cases made of bytes."""
    return f"{val[:8].hex() or 'nothing'}-{len(val)}" if isinstance(val, bytes) else None
