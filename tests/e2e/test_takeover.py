"""Online restart (-R): a new process takes listeners, clients and servers from the running one, and nobody notices."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support import system
from support.load import Background, transactions
from support.scrape import Scrape
from support.system import until
from support.wire import bind, describe, execute, parse, query, SYNC

DEBIAN = Path("/usr/sbin/pgbouncer")

pytestmark = pytest.mark.slow(120)


class Program:
    """Any pgbouncer, where the daemon user can run it."""

    def __init__(self, path):
        self.path = path


@pytest.fixture(scope="module")
def debian():
    """Debian's PgBouncer, to take over from and to be taken over by."""
    if not DEBIAN.exists():
        pytest.skip("there is no /usr/sbin/pgbouncer")
    directory = system.fresh_dir("deb")
    shutil.copy(DEBIAN, directory / "pgbouncer")
    (directory / "pgbouncer").chmod(0o755)
    yield Program(directory / "pgbouncer")
    system.remove_dir(directory)


def reboot(pooler, program=None, *more):
    """Starts a successor with -R and waits until it runs and its predecessor is gone."""
    old, up = pooler.process, pooler.log().count("process up:")
    pooler.binary = program or pooler.binary
    pooler.start("-R", *more, wait=False)
    new = pooler.process

    def running():
        assert new.poll() is None, pooler.log()[-3000:]
        return pooler.log().count("process up:") > up

    until(running, 20, what="the successor is up")
    assert old.wait(10) == 0
    assert os.path.exists(pooler.unix_path)
    return new


@pytest.fixture
def plain(make_pooler):
    """A configuration that PgBouncer 1.18 reads as well."""
    pooler = make_pooler(start=False)
    pooler.ini.pop("worker_threads", None)
    pooler.ini["pidfile"] = pooler.dir / "pooler.pid"
    pooler.write()
    return pooler


def fresh_connections(pooler):
    def work(background, _number):
        while not background.stopping.is_set():
            with pooler.login(timeout=30) as wire:
                assert wire.query("SELECT 7").value == "7"
            background.count()

    return work


@pytest.mark.ours
@pytest.mark.fault("five online restarts (-R) under load", "no transaction on an old or a new connection fails")
@pytest.mark.goal("G11")
def test_five_times_under_load(plain, measured):
    """Short transactions on old connections and on new ones: none fails."""
    plain.ini["default_pool_size"] = 5
    plain.write()
    plain.start()
    with Background(transactions(plain), threads=12) as old, Background(fresh_connections(plain), threads=2) as new:
        for _ in range(5):
            seen = old.done, new.done
            until(lambda: old.done > seen[0] + 50 and new.done > seen[1] + 5, 20)
            process = reboot(plain)
            assert (plain.dir / "pooler.pid").read_text() == f"{process.pid}\n"
        seen = old.done, new.done
        until(lambda: old.done > seen[0] + 50 and new.done > seen[1] + 5, 20)
    measured.least("transactions on old connections, none failed", old.done, 300)
    measured.least("new connections, none failed", new.done, 30)
    log = plain.log()
    for line in ("WARNING Online restart is deprecated, use so_reuseport instead", "takeover_init: launching connection",
                 "login OK, sending SUSPEND", "SUSPEND finished, sending SHOW FDS", "SHOW FDS finished", "disko over, going background",
                 "sending SHUTDOWN;", "waiting for old pidfile to go away", "old process killed, resuming work",
                 f"got pooler socket: 127.0.0.1:{plain.port}", f"got pooler socket: unix:{plain.port}"):
        assert log.count(line) == 5, line
    assert not re.search("suspend_timeout|server conn crashed|ERROR", log)


@pytest.mark.ours
@pytest.mark.parametrize("listen", ["127.0.0.1:{port}", "{dir}/metrics.sock"])
def test_the_successor_serves_metrics_when_its_predecessor_is_gone(make_pooler, listen):
    pooler = make_pooler(start=False)
    port = system.free_port()
    pooler.ini["metrics_listen"] = listen.format(port=port, dir=pooler.dir)
    where = port if "port" in listen else pooler.dir / "metrics.sock"
    pooler.write()
    pooler.start()
    until(lambda: "serving metrics on" in pooler.log())
    before = Scrape(where).value("process_resident_memory_bytes")
    reboot(pooler)
    pooler.wait_log("serving metrics on", 2)
    scrape = Scrape(where)
    assert before and scrape.value("pgbouncer_ready") == 1 and scrape.total("pgbouncer_stats_queries_pooled_total", database="p0") == 0


def test_a_query_outlives_five_restarts(pooler, pg):
    with pooler.login() as busy, pooler.login() as session, pg.direct("p0") as gate:
        gate.execute("SELECT pg_advisory_lock(5)")
        session.query("BEGIN")
        session.query("CREATE TEMP TABLE t AS SELECT 5 AS n")
        busy.send(query("SELECT pg_advisory_lock(5), 'waited'"))
        until(lambda: pg.sleeping("'waited'"))
        for _ in range(5):
            reboot(pooler)
        assert pg.sleeping("'waited'") and busy.recv_or_none(0.1) is None
        # however long the restarts took, the query ends only now
        gate.execute("SELECT pg_advisory_unlock(5)")
        assert busy.result().rows[0][1] == "waited"
        busy.query("SELECT pg_advisory_unlock_all()")
        assert session.query("SELECT n FROM t").value == "5"
        assert session.query("COMMIT").status == "I"
        until(lambda: pooler.pool()["sv_active"] == 0)


@pytest.mark.ours
def test_what_our_successor_is_told(make_pooler, pg):
    """Parameters, prepared statements, waiting clients, cancel keys, the login reply: as if nothing had happened."""
    pooler = make_pooler(ini={"default_pool_size": 1, "max_prepared_statements": 10})
    with pooler.login(application_name="first", IntervalStyle="iso_8601") as a, pooler.login(application_name="second") as b:
        a.send(parse("s", "SELECT current_setting('application_name') || $1") + SYNC)
        a.result()
        b.query("BEGIN")
        a.send(bind("", "s", ["!"]) + execute() + SYNC)
        until(lambda: pooler.pool()["cl_waiting"] == 1)
        reboot(pooler)
        until(lambda: pooler.pool()["cl_waiting"] == 1, what="it still waits")
        assert b.query("SELECT current_setting('application_name')").value == "second"
        b.query("COMMIT")
        assert a.result().value == "first!"
        assert a.query("SHOW intervalstyle").value == "iso_8601"
        a.send(describe("S", "s") + bind("", "s", ["?"]) + execute() + SYNC)
        assert a.result().value == "first?"
        statements = [r["prepared_statements"] for r in pooler.show("CLIENTS") if r["database"] == "p0"]
        assert sorted(statements) == ["0", "1"]
        b.send(query("SELECT pg_sleep(30)"))
        until(lambda: pg.sleeping("pg_sleep(30)"))
        with pooler.wire() as cancel:
            cancel.send(b"\0\0\0\x10\x04\xd2\x16\x2e" + b.key)
            assert b.result().error["C"] == "57014"
        with pooler.login() as fresh:
            assert fresh.query("SELECT 1").value == "1"
    assert len(pooler.pg.backends("p0")) == 1


@pytest.mark.ours
def test_who_is_asked_for_a_password_holds_nobody_up(make_pooler):
    pooler = make_pooler(ini={"auth_type": "md5", "suspend_timeout": 60})
    with pooler.wire() as stranger, pooler.login() as wire:
        stranger.startup("app", "p0")
        assert stranger.recv().type == "R"
        reboot(pooler)
        stranger.expect_fatal("suspend_timeout")
        assert wire.query("SELECT 1").value == "1"


def test_pipelines_go_on(make_pooler):
    """Requests whose answers are still to come, in a batch with invented answers among them."""
    pooler = make_pooler(ini={"max_prepared_statements": 2})
    with pooler.login() as wire:
        batch = b""
        for n in range(6):
            batch += parse(f"s{n}", f"SELECT {n}, pg_sleep(0.1)") + bind("", f"s{n}") + execute() + SYNC
        wire.send(batch)
        until(lambda: pooler.pool()["sv_active"] == 1)
        reboot(pooler)
        assert [wire.result().rows[0][0] for _ in range(6)] == [str(n) for n in range(6)]
        reboot(pooler)
        wire.send(bind("", "s0") + execute() + SYNC)
        assert wire.result().rows[0][0] == "0"


@pytest.mark.ours
def test_there_and_back_with_pgbouncer(plain, debian):
    """PgBouncer, ours, PgBouncer, ours under a load of short transactions: none fails."""
    ours = plain.binary
    plain.binary = debian
    plain.start()
    with Background(transactions(plain), threads=8) as load, Background(fresh_connections(plain), threads=1) as new:
        for program in (ours, debian, ours, debian):
            seen = load.done, new.done
            until(lambda: load.done > seen[0] + 40 and new.done > seen[1] + 3, 20)
            reboot(plain, program)
        seen = load.done, new.done
        until(lambda: load.done > seen[0] + 40 and new.done > seen[1] + 3, 20)
    assert "suspend_timeout" not in plain.log()


@pytest.mark.ours
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_in_the_middle_of_something_with_pgbouncer(plain, debian, mode):
    ours = plain.binary
    plain.ini["pool_mode"] = mode
    plain.write()
    plain.binary = debian
    plain.start()
    with plain.login() as busy, plain.login() as open_transaction, plain.login() as idle:
        idle.query("SELECT 1")
        open_transaction.query("BEGIN")
        open_transaction.query("CREATE TEMP TABLE t AS SELECT 5 AS n")
        busy.send(query("SELECT pg_sleep(1.5), 'slept'") + query("SELECT 'pipelined'"))
        until(lambda: plain.pool()["sv_active"] >= 2)
        for program in (ours, debian, ours):
            reboot(plain, program)
        assert busy.result().rows[0][1] == "slept"
        assert busy.result().value == "pipelined"
        assert open_transaction.query("SELECT n FROM t").value == "5"
        assert open_transaction.query("COMMIT").tags == ["COMMIT"]
        for wire in (busy, open_transaction, idle):
            assert wire.query("SELECT 'again'").value == "again"
        if mode == "transaction":
            until(lambda: plain.pool()["sv_active"] == 0, what="servers are given back")


def test_scram_keys_are_handed_over(plain, debian, pg):
    """Logged in with SCRAM on both sides, without the pooler knowing the password: new servers can still be opened."""
    secret = pg.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
    if not str(secret).startswith("SCRAM-SHA-256"):
        pg.sql("SET password_encryption = 'scram-sha-256'")
    ours = plain.binary
    plain.ini["auth_type"] = "scram-sha-256"
    plain.write()
    plain.binary = debian
    plain.start()
    with plain.login() as wire:
        wire.query("SELECT 1")
        reboot(plain, ours)
        plain.admin("RECONNECT")
        assert wire.query("SELECT 2").value == "2"
        reboot(plain, debian)
        assert wire.query("SELECT 3").value == "3"


@pytest.mark.ours
def test_a_fetched_user_is_handed_over(make_pooler, pg):
    """No file knows the user: that new servers can log in is due to the keys in the row, and in PgBouncer's columns."""
    pg.sql("SET password_encryption = 'scram-sha-256'")
    pg.sql("DROP ROLE IF EXISTS handedover")
    pg.sql("CREATE ROLE handedover LOGIN PASSWORD 'over'")
    with open(pg.data / "pg_hba.conf", "a") as hba:
        hba.write("host all handedover 127.0.0.0/8 scram-sha-256\n")
    pg.sql("SELECT pg_reload_conf()")
    pooler = make_pooler(ini={"auth_type": "scram-sha-256", "auth_user": "admin"})
    with pooler.login("handedover", password="over") as wire:
        for n in range(3):
            reboot(pooler)
            pooler.admin("RECONNECT")
            until(lambda: pooler.pool("p0", "handedover")["sv_idle"] == 0)
            assert wire.query(f"SELECT current_user || {n}").value == f"handedover{n}"


@pytest.mark.ours
def test_hundreds_of_clients_of_four_workers(make_pooler):
    """Idle ones, waiting ones, and ones in transactions find themselves where they were, whatever worker has them then."""
    pooler = make_pooler(ini={"worker_threads": 4, "max_client_conn": 500, "default_pool_size": 20})
    clients = [pooler.login() for _ in range(300)]
    try:
        busy, waiting, idle = clients[:20], clients[20:60], clients[60:]
        for n, wire in enumerate(busy):
            wire.query("BEGIN")
            wire.query(f"SET LOCAL application_name = 'busy {n}'")
        for n, wire in enumerate(waiting):
            wire.send(query(f"SELECT 'waited {n}'"))
        until(lambda: pooler.pool()["cl_waiting"] == 40)
        for _ in range(2):
            reboot(pooler)
        assert pooler.pool()["cl_waiting"] == 40
        for n, wire in enumerate(busy):
            assert wire.query("SHOW application_name").value == f"busy {n}"
            assert wire.query("COMMIT").status == "I"
        assert [wire.result().value for wire in waiting] == [f"waited {n}" for n in range(40)]
        assert {wire.query(f"SELECT {n}").value for n, wire in enumerate(idle)} == {str(n) for n in range(240)}
        row = until(lambda: (r := pooler.pool()) and r["sv_active"] == 0 and r)
        assert (row["cl_active"], row["sv_idle"]) == (300, 20)
    finally:
        for wire in clients:
            wire.close()
    until(lambda: pooler.pool()["cl_active"] == 0)


@pytest.mark.ours
def test_replication_goes_on(make_pooler, pg):
    """A walsender that streams and one that has only said who it is."""
    pooler = make_pooler(databases={"*": {"host": "127.0.0.1", "port": pg.port}})
    directory = system.fresh_dir("wal")
    receiver = subprocess.Popen([str(pg.bin / "pg_receivewal"), "-d", f"host=127.0.0.1 port={pooler.port} user=app", "-D", str(directory),
                                 "-n", "--synchronous"], **system.as_daemon_user())
    try:
        def position():
            rows = pg.sql("SELECT flush_lsn::text FROM pg_stat_replication WHERE application_name = 'pg_receivewal'")
            return rows and rows[0][0]

        until(position)
        with pooler.login(replication="true") as wire:
            before = wire.query("IDENTIFY_SYSTEM").rows[0]
            for _ in range(3):
                reboot(pooler)
                pg.sql("CREATE TABLE moved AS SELECT generate_series(1, 1000)")
                pg.sql("DROP TABLE moved")
                written = pg.sql("SELECT pg_current_wal_lsn()::text")[0][0]
                until(lambda: pg.sql("SELECT %s::pg_lsn <= %s::pg_lsn", written, position())[0][0], 20, what="the receiver has it")
                assert receiver.poll() is None
            assert wire.query("IDENTIFY_SYSTEM").rows[0][:2] == before[:2]
    finally:
        receiver.terminate()
        receiver.wait(10)
        system.remove_dir(directory)


@pytest.mark.ours
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_successor_that_waits(plain, number):
    """The old process does not answer; the new one is told to stop. The old one goes on when it can."""
    plain.start()
    with plain.login() as wire:
        plain.signal(signal.SIGSTOP)
        second = subprocess.Popen([str(plain.binary.path), "-R", str(plain.conf)], cwd=plain.dir, stderr=subprocess.PIPE, text=True,
                                  **system.as_daemon_user())
        try:
            for line in second.stderr:
                if "takeover_init: launching connection" in line:
                    break
            second.send_signal(number)
            _, rest = second.communicate(timeout=10)
        finally:
            second.kill()
            plain.signal(signal.SIGCONT)
        assert second.returncode == 1
        assert re.search(rf"LOG got {number.name}, shutting down, .*\n.* FATAL takeover was in progress, going down immediately", rest)
        assert wire.query("SELECT 1").value == "1"


@pytest.mark.ours
def test_a_reload_in_the_middle_of_it_waits(plain):
    """Who rotates logs does not know of the restart: the successor, whose predecessor is about to end, reloads when it runs."""
    plain.start()
    with plain.login() as wire:
        plain.start("-R", wait=False)
        while "sending SHUTDOWN;" not in plain.log():
            assert plain.alive
        plain.signal(signal.SIGHUP)
        plain.wait_log("got SIGHUP, re-reading config")
        assert wire.query("SELECT 1").value == "1"


def test_nobody_to_take_over_from(plain):
    plain.start("-R")
    assert "LOG old process not found, try to continue normally" in plain.log()
    assert plain.login().query("SELECT 1").value == "1"


@pytest.mark.ours
def test_abstract_socket_is_refused(make_pooler):
    pooler = make_pooler(ini={"unix_socket_dir": f"@pgu-takeover-{os.getpid()}"})
    second = make_pooler(start=False, ini={"unix_socket_dir": pooler.ini["unix_socket_dir"], "listen_port": pooler.port})
    second.start("-R", wait=False)
    assert second.wait_end() == 1
    assert "FATAL cannot reboot with abstract Unix socket" in second.log()
    assert pooler.login().query("SELECT 1").value == "1"


@pytest.mark.ours
def test_a_successor_that_fails_hurts_nobody(plain):
    """It dies after SUSPEND: the old process goes on."""
    plain.start()
    with plain.login() as wire:
        with plain.console() as console:
            console.query("PAUSE p1")
            second = subprocess.run([str(plain.binary.path), "-R", str(plain.conf)], cwd=plain.dir, capture_output=True, text=True,
                                    timeout=20, check=False, **system.as_daemon_user())
            assert second.returncode == 1
            assert "ERROR old bouncer sent: ERROR: cannot suspend with paused databases" in second.stderr
            assert "FATAL something failed" in second.stderr
        assert wire.query("SELECT 1").value == "1"


@pytest.mark.ours
def test_daemon_takes_over_from_daemon(plain):
    logfile, pidfile = plain.dir / "pooler.log", plain.dir / "pooler.pid"
    plain.ini["logfile"] = logfile
    plain.write()

    def launch(*args):
        done = system.run([plain.binary.path, "-d", *args, plain.conf], switch_user=True)
        assert done.returncode == 0

    def pid():
        try:
            return int(pidfile.read_text())
        except (FileNotFoundError, ValueError):
            return None

    launch()
    first = until(pid)
    until(lambda: "process up:" in logfile.read_text())
    try:
        with plain.login() as wire:
            wire.query("BEGIN")
            launch("-R")
            second = until(lambda: pid() not in (None, first) and pid(), what="the successor's pidfile")
            until(lambda: not os.path.exists(f"/proc/{first}"))
            assert wire.query("COMMIT").tags == ["COMMIT"]
            assert plain.login().query("SELECT 1").value == "1"
        assert second != first
    finally:
        os.kill(pid(), signal.SIGQUIT)
        until(lambda: pid() is None)


def test_entries_made_from_the_wildcard_are_no_news(plain):
    """PgBouncer says nothing about an auto-database whose sockets it takes over: its predecessor has."""
    plain.databases = {"*": f"host=127.0.0.1 port={plain.pg.port}"}
    plain.write()
    plain.start()
    with plain.login("app", "p1") as kept:
        kept.query("SELECT 1")
        with plain.login("app", "p0") as gone:
            gone.query("SELECT 1")
        reboot(plain)
        assert kept.query("SELECT 1").value == "1"
        assert {row["database"] for row in plain.show("SERVERS")} == {"p0", "p1"}
    said = [line for line in plain.log().splitlines() if "registered new auto-database" in line]
    assert len(said) == 2 and all(" (nodb)/(nouser)@" in line for line in said), said


def test_entries_made_from_the_wildcard_count_among_the_expected_descriptors(plain):
    """They are there before PgBouncer counts."""
    plain.databases = {"*": f"host=127.0.0.1 port={plain.pg.port} pool_size=7"}
    plain.write()
    plain.start()
    with plain.login("app", "p0") as first, plain.login("app", "p1") as second:
        first.query("SELECT 1")
        second.query("SELECT 1")
        reboot(plain)
    before, after = (int(number) for number in re.findall(r"max expected fd use: (\d+)", plain.log()))
    users = len(plain.userlist) + 1
    assert after == before + 2 * 7 * users


def test_a_pidfile_that_nobody_will_remove_is_not_waited_for(plain):
    """The old process did not come to remove it: killed at the wrong moment, or somebody had put another file there."""
    plain.start()
    gone = subprocess.Popen(["true"])
    gone.wait()
    system.put(plain.ini["pidfile"], f"{gone.pid}\n")
    with plain.login() as wire:
        wire.query("SELECT 1")
        reboot(plain)
        assert wire.query("SELECT 1").value == "1"
    assert plain.ini["pidfile"].read_text() == f"{plain.process.pid}\n"
