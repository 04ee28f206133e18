"""Typical work through transaction pooling: twice as many clients as servers, and what must be left when it is done."""

import re
import shutil

from .load import Background
from .system import REPO, run, until

SERVERS, CLIENTS = 3, 6
ROWS = 100
SCRIPTS = REPO / "tests/e2e/drivers"
JDBC_JAR = "/usr/share/java/postgresql.jar"


def prepare(pg):
    """The table that all drivers write to; each client leaves rows (client, 0..99, 'client-n')."""
    pg.run_psql("p0", "DROP TABLE IF EXISTS driver_work")
    pg.run_psql("p0", "CREATE TABLE driver_work (client int, n int, t text, PRIMARY KEY (client, n))")
    pg.run_psql("p0", "GRANT ALL ON driver_work TO app")


def rows_of(number):
    """What client `number` leaves."""
    return [(number, n, f"{number}-{n}") for n in range(ROWS)]


def everybody(work, clients=CLIENTS):
    """Runs `work(number)` in a thread for each client."""
    Background(lambda _, number: work(number), threads=clients).join(60)


def check(pooler, pg, clients=CLIENTS, prepares=True):
    """The rows are there, nobody is busy, and the pooler had nothing to complain about; whether named statements were used."""
    with pg.direct("p0") as direct:
        left = direct.execute("SELECT client, n, t FROM driver_work ORDER BY client, n").fetchall()
        assert left == [row for number in range(clients) for row in rows_of(number)]
    until(lambda: pooler.pool()["cl_active"] == pooler.pool()["cl_waiting"] == 0, what="all clients have left")
    row = pooler.pool()
    assert row["sv_active"] == row["sv_being_canceled"] == row["sv_login"] == 0
    assert row["sv_idle"] + row["sv_used"] == len(pg.backends("p0", "app")) <= SERVERS
    if pooler.binary.version >= (1, 24):
        stats = next(line for line in pooler.show("STATS") if line["database"] == "p0")
        assert (int(stats["total_client_parse_count"]) > 0) == prepares
    closed = re.findall(r"C-0x\S+: p0/app@\S+ closing because: (.*?) \(age", pooler.log())
    assert set(closed) <= {"client close request", "client unexpected eof"}, closed
    servers = re.findall(r"S-0x\S+: p0/app@\S+ (?:closing because: .*|.*ERROR.*)", pooler.log())
    assert not [line for line in servers if "sent cancel request" not in line], servers


def node(script, pooler, clients=CLIENTS):
    """Runs a script with node; tests/setup.sh has installed its packages."""
    program = shutil.which("node") or REPO / "target/venv/bin/node"
    done = run([program, SCRIPTS / script, pooler.port, clients], check=False, timeout=80)
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr


def compile_java(directory):
    run(["javac", "-cp", JDBC_JAR, "-d", directory, SCRIPTS / "TypicalWork.java"])
    return directory


def java(classes, pooler, clients=CLIENTS):
    """Runs the Java program."""
    options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
    done = run(["java", *options, "-cp", f"{JDBC_JAR}:{classes}", "TypicalWork", pooler.port, clients], check=False, timeout=80)
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr
