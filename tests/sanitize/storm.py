"""Everything at once, for a daemon that is watched by a sanitizer: load from pgbench, clients that leave, and the console."""

import contextlib
import os
import random
import subprocess
import threading
import time

from support import system
from support.pooler import Binary, Pooler
from support.postgres import Postgres
from support.wire import Closed, query

SECONDS = int(os.environ.get("STORM_SECONDS", "60"))
COMMANDS = ["SHOW POOLS", "SHOW CLIENTS", "SHOW SERVERS", "SHOW SOCKETS", "SHOW STATS", "SHOW WAITS", "SHOW LATENCY", "SHOW ADVICE",
            "SHOW LISTS", "SHOW MEM", "SHOW DATABASES", "RELOAD", "RECONNECT", "RECONNECT p0"]


def pgbench(pg, pooler, mode):
    """One run with many short connections and one with lasting ones."""
    base = [str(pg.bin / "pgbench"), "-n", "-M", mode, "-c", "12", "-j", "2", "-S", "-h", "127.0.0.1", "-p", str(pooler.port), "-U", "app", "p0"]
    env = {**os.environ, "PGPASSWORD": pooler.userlist["app"]}
    runs = [[*base, "-T", str(SECONDS)], [*base, "-C", "-T", str(SECONDS)]]
    return [subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd="/", text=True) for run in runs]


def leave(pooler, until):
    """Clients that go in the middle of a query."""
    while time.monotonic() < until:
        with contextlib.suppress(Closed, ConnectionError), pooler.login() as wire:
            wire.send(query(f"SELECT pg_sleep({random.random() / 50})"))
            time.sleep(random.random() / 50)


def command(pooler, until):
    """The console, until the time is over; each sort of hold is lifted again."""
    done = 0
    while time.monotonic() < until:
        with pooler.console(timeout=60) as console:
            for _ in range(20):
                text = random.choice(COMMANDS)
                assert console.query(text).error is None, text
                done += 1
            hold, release = random.choice([("PAUSE", "RESUME"), ("PAUSE p0", "RESUME p0"), ("SUSPEND", "RESUME")])
            console.query(hold)
            time.sleep(0.05)
            console.query(release)
    return done


def storm(pg, pooler):
    until = time.monotonic() + SECONDS
    loads = [load for mode in ("simple", "extended", "prepared") for load in pgbench(pg, pooler, mode)]
    leavers = [threading.Thread(target=leave, args=(pooler, until)) for _ in range(2)]
    for leaver in leavers:
        leaver.start()
    commands = command(pooler, until)
    for leaver in leavers:
        leaver.join()
    for load in loads:
        text, _ = load.communicate(timeout=120)
        assert load.returncode == 0, text
        print(next(line for line in text.splitlines() if line.startswith("number of transactions")), flush=True)
    print(f"{commands} console commands", flush=True)
    assert pooler.alive


def main():
    directory = system.fresh_dir("bin")
    binary, pg = Binary(directory), Postgres()
    try:
        system.run([pg.bin / "pgbench", "-i", "-q", "-s", "1", "-h", pg.dir, "-p", pg.port, "-U", "app", "p0"], cwd="/",
                   **system.as_daemon_user())
        pooler = Pooler(binary, pg, ini={"worker_threads": 4, "default_pool_size": 5, "max_client_conn": 500, "auth_type": "scram-sha-256",
                                         "cancel_on_disconnect": 1, "suspend_timeout": 60, "metrics_listen": f"127.0.0.1:{system.free_port()}"})
        pooler.start()
        try:
            storm(pg, pooler)
        finally:
            pooler.stop()
    finally:
        pg.remove()
        system.remove_dir(directory)


if __name__ == "__main__":
    main()
