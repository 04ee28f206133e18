"""What must not hurt a running pooler: a log that cannot be opened, a wall clock that jumps, a start as root."""

import ctypes
import mmap
import os
import shutil
import signal
import subprocess

import pytest

from support.footprint import Footprint
from support.system import fresh_dir, give_to_daemon, holds, remove_dir, run, until
from support.wire import query

pytestmark = pytest.mark.ours

# Adds what stands in a shared file to the wall clock, and to nothing else.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long *offset(void) {
    static volatile long *at;
    if (!at) {
        int fd = open(getenv("CLOCK_OFFSET_FILE"), O_RDONLY);
        at = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
    }
    return at;
}
int clock_gettime(clockid_t clock, struct timespec *ts) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, ts);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) ts->tv_sec += *offset();
    return done;
}
int gettimeofday(struct timeval *tv, void *tz) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (out) *out = ts.tv_sec;
    return ts.tv_sec;
}
"""


@pytest.fixture
def clock(monkeypatch):
    """Sets the wall clock of daemons started from now on forward by so many seconds."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    directory = fresh_dir("clock")
    library, offset = directory / "clock.so", directory / "offset"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), "-x", "c", "-", "-ldl"], input=SHIM, text=True, check=True)
    offset.write_bytes(bytes(8))
    shared = open(offset, "r+b")
    seconds = ctypes.c_long.from_buffer(mmap.mmap(shared.fileno(), 8))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_OFFSET_FILE", str(offset))

    def jump(by):
        seconds.value += by

    yield jump
    remove_dir(directory)


@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.fault("the wall clock jumps by an hour, either way", "no timeout fires, whatever it is for")
@pytest.mark.goal("G15")
def test_a_jump_of_the_wall_clock_ends_nothing(make_pooler, clock, hours, measured):
    pooler = make_pooler(ini={"client_idle_timeout": 30, "server_idle_timeout": 30, "server_lifetime": 600, "query_timeout": 30,
                              "idle_transaction_timeout": 30, "client_login_timeout": 30, "query_wait_timeout": 30,
                              "default_pool_size": 2})
    with pooler.login() as idle, pooler.login() as open_transaction, pooler.login() as busy, pooler.wire() as stranger:
        idle.query("SELECT 1")
        open_transaction.query("BEGIN")
        server = open_transaction.query("SELECT pg_backend_pid()").value
        stranger.send(b"\0\0")
        busy.send(query("SELECT pg_sleep(4)"))
        until(lambda: pooler.pool()["sv_active"] == 2)
        before = pooler.show("CLIENTS")[0]["connect_time"]
        clock(hours * 3600)
        pooler.admin("SHOW VERSION")
        after = pooler.show("CLIENTS")[0]["connect_time"]
        assert before != after, "the clock did jump"
        footprint = Footprint(pooler)
        ended = lambda: [line for line in pooler.log().splitlines() if "timeout" in line or "lifetime" in line]  # noqa: E731
        holds(lambda: not ended(), 1.5)
        measured.exactly("connections ended", len(ended()))
        measured.memory(footprint, 1024)
        assert busy.result().error is None
        assert open_transaction.query("SELECT pg_backend_pid()").value == server
        assert open_transaction.query("COMMIT").tags == ["COMMIT"]
        assert idle.query("SELECT 2").value == "2"
        assert stranger.recv_or_none(0.1) is None


@pytest.mark.parametrize("obstacle", ["directory", "no rights"])
@pytest.mark.fault("the log cannot be opened at a reload", "the old file stays in use, an error says why, nobody notices; a later reload "
                   "opens it")
@pytest.mark.goal("G12")
def test_a_log_that_cannot_be_opened_at_a_reload(make_pooler, obstacle):
    pooler = make_pooler(start=False)
    logfile = pooler.dir / "pgbouncer.log"
    pooler.ini["logfile"] = logfile
    pooler.write()
    pooler.start()
    with pooler.login() as wire:
        old = pooler.dir / "old.log"
        logfile.rename(old)
        if obstacle == "directory":
            logfile.mkdir()
        else:
            logfile.touch(0o400)
            if os.geteuid() == 0:
                os.chown(logfile, 0, 0)
        pooler.signal(signal.SIGHUP)
        pooler.wait_log("ERROR Cannot open logfile:")
        assert wire.query("SELECT 1").value == "1"
        pooler.login().close()
        until(lambda: old.read_text().count("login attempt: db=p0") == 2, what="the old file is written to")
        logfile.rmdir() if obstacle == "directory" else logfile.unlink()
        pooler.signal(signal.SIGHUP)
        until(logfile.exists, what="the log is opened when it can be")
        assert wire.query("SELECT 2").value == "2"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_refused_start_as_root_leaves_no_file(make_pooler, binary):
    pooler = make_pooler(start=False)
    logfile, pidfile = pooler.dir / "pgbouncer.log", pooler.dir / "pgbouncer.pid"
    pooler.ini.update(logfile=logfile, pidfile=pidfile)
    pooler.write()
    assert run([binary.path, pooler.conf], check=False).returncode == 1
    assert not logfile.exists() and not pidfile.exists() and not os.path.exists(pooler.unix_path)
    give_to_daemon(pooler.dir)
    pooler.start()
    until(lambda: "process up:" in logfile.read_text())
