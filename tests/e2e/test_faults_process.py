"""What happens to the process itself: a full disk, signals in storms, its sudden death.

Each test is a line of docs/faults.md."""

import os
import signal
import subprocess
import threading
import time

import pytest

from support import system
from support.footprint import Footprint
from support.load import Background, Honest
from support.system import until
from support.wire import Closed, ServerError

pytestmark = [pytest.mark.slow(120), pytest.mark.ours]
GROWTH_KB = 4096


@pytest.fixture
def small_disk():
    """A disk of 64 kB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    directory = system.fresh_dir("disk")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "small", str(directory)], capture_output=True, text=True)
    if mount.returncode:
        system.remove_dir(directory)
        pytest.skip(f"no right to mount a small disk: {mount.stderr.strip()}")
    yield directory
    # the pooler has the log open until it ends
    subprocess.run(["umount", "-l", str(directory)], check=True)
    system.remove_dir(directory)


@pytest.mark.fault("disk full under the log", "all transactions go on, at less than half a core; the log goes on by itself when there is "
                   "room again")
@pytest.mark.goal("G12")
def test_a_full_disk_under_the_log(make_pooler, small_disk, measured):
    pooler = make_pooler(start=False)
    log = small_disk / "pgbouncer.log"
    pooler.ini["logfile"] = log
    pooler.write()
    pooler.start()
    (small_disk / "ballast").write_bytes(bytes(40_000))

    def come_and_go(background, _number):
        while not background.stopping.is_set():
            pooler.login(timeout=30).close()
            background.count()
            background.stopping.wait(0.005)

    with Honest(pooler) as clients, Background(come_and_go, 2) as newcomers:
        until(lambda: os.statvfs(small_disk).f_bavail == 0, 20, what="the disk is full")
        size, seen = log.stat().st_size, newcomers.done
        print_ = Footprint(pooler)
        until(lambda: newcomers.done > seen + 100, 20, what="newcomers are let in")
        clients.goes_on()
        assert log.stat().st_size <= size + 4096
        measured.most("processor", print_.cpu_percent, 50, "% of a core")
        measured.most("descriptors more", print_.more_descriptors, 8)
        measured.memory(print_, GROWTH_KB)
        (small_disk / "ballast").unlink()
        size = log.stat().st_size
        until(lambda: log.stat().st_size > size + 500, what="the log goes on")
    measured.most("slowest transaction", clients.slowest_ms(), 1000, "ms")
    measured.least("transactions, none failed", clients.done, 20)


@pytest.mark.fault("150 SIGHUPs in a row, each with other pool sizes, under load", "no transaction fails; the slowest takes less than "
                   "250 ms")
@pytest.mark.goal("G8")
def test_a_storm_of_sighups(make_pooler, measured):
    pooler = make_pooler(ini={"default_pool_size": 6, "server_lifetime": 1})
    with Honest(pooler, threads=8) as clients:
        clients.goes_on(50)
        print_ = Footprint(pooler)
        began = time.monotonic()
        for turn in range(150):
            pooler.ini["default_pool_size"] = 3 + turn % 5
            pooler.write()
            pooler.signal(signal.SIGHUP)
            # 150 in 2.3 s is a rate, not something to wait for
            time.sleep(max(0, began + (turn + 1) * 2.3 / 150 - time.monotonic()))
        pooler.wait_log("got SIGHUP, re-reading config")
        clients.goes_on(50)
        measured.most("150 signals in", time.monotonic() - began, 10, "s")
        measured.most("slowest transaction", clients.slowest_ms(), 250 * SLACK, "ms")
        measured.most("descriptors more", print_.more_descriptors, 6)
        measured.memory(print_, GROWTH_KB)
    measured.least("transactions, none failed", clients.done, 100)
    assert pooler.log().count("got SIGHUP, re-reading config") >= 10


# A machine that runs other tests meanwhile makes everybody wait; who measures for docs/faults.md runs nothing else.
SLACK = 1 if os.environ.get("FIGURES") else 10


@pytest.mark.fault("the pooler killed (kill -9) under load, five times", "no acknowledged commit is lost, none is made twice; the next "
                   "process starts at once")
@pytest.mark.goal("G11", "G2")
def test_a_killed_pooler_loses_no_commit(make_pooler, pg, measured):
    pg.run_psql("p0", "DROP TABLE IF EXISTS killed; CREATE TABLE killed (client int, seq int); GRANT ALL ON killed TO app")
    pooler = make_pooler()
    up = threading.Event()
    up.set()
    acknowledged, unknown = set(), set()

    def work(background, number):
        wire, seq = pooler.login(), 0
        while not background.stopping.is_set():
            seq += 1
            try:
                wire.query("BEGIN")
                wire.query(f"INSERT INTO killed VALUES ({number}, {seq})")
                unknown.add((number, seq))
                wire.query("COMMIT")
                acknowledged.add((number, seq))
                background.count()
            except (ServerError, Closed, ConnectionError):
                wire.close()
                up.wait(20)
                wire = pooler.login()
        wire.close()

    starts = []
    with Background(work, threads=8) as load:
        for _ in range(5):
            seen = load.done
            until(lambda: load.done > seen + 40 or load.errors, 20)
            up.clear()
            pooler.process.kill()
            pooler.process.wait()
            began = time.monotonic()
            # the line that says it is up must be a new one
            pooler.stderr.write_text("")
            pooler.start()
            starts.append(time.monotonic() - began)
            up.set()
        seen = load.done
        until(lambda: load.done > seen + 40 or load.errors, 20)
    rows = pg.direct("p0").execute("SELECT client, seq, count(*) FROM killed GROUP BY 1, 2").fetchall()
    found = {(client, seq): count for client, seq, count in rows}
    measured.exactly("acknowledged commits lost", len(acknowledged - set(found)))
    measured.exactly("commits made twice", len([key for key, count in found.items() if count > 1]))
    measured.exactly("ghosts", len(set(found) - acknowledged - unknown))
    measured.least("commits", len(acknowledged), 200)
    measured.most("up again after", max(starts), 2, "s")
