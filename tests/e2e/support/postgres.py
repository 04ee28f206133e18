"""A throwaway PostgreSQL: own directory, own port, no durability, one role for each way to log in."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg

from . import system

# Role -> (password, how pg_hba.conf checks it over TCP, how the secret is stored).
ROLES = {
    "app": ("app-secret", "scram-sha-256", "scram-sha-256"),
    "app2": ("app2-secret", "scram-sha-256", "scram-sha-256"),
    "admin": ("SecurePass2024!", "md5", "md5"),
    "scanner": ("scanner-secret", "md5", "scram-sha-256"),
    "md5user": ("md5-secret", "md5", "md5"),
    "plainuser": ("plain-secret", "password", "scram-sha-256"),
    "trustuser": ("trust-secret", "trust", "scram-sha-256"),
}
# Where the cluster listens; the last one is IPv6.
ADDRESSES = ("127.0.0.1", "127.0.0.2", "::1")
DATABASES = ("p0", "p1", "enterprisescanner")

SETTINGS = """
listen_addresses = '{addresses}'
port = {port}
unix_socket_directories = '{dir},{dir}/second,@{dir}'
max_connections = 200
superuser_reserved_connections = 5
fsync = off
synchronous_commit = off
full_page_writes = off
shared_buffers = 64MB
wal_level = logical
max_wal_senders = 10
log_line_prefix = '%m [%p] %u@%d '
log_min_messages = warning
lc_messages = 'C'
timezone = 'UTC'
"""


def bindir():
    """Where initdb and postgres are: PG_BIN, pg_config, or the newest under /usr/lib/postgresql."""
    candidates = [os.environ.get("PG_BIN")]
    if shutil.which("pg_config"):
        candidates.append(subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True).stdout.strip())
    versions = Path("/usr/lib/postgresql")
    if versions.is_dir():
        candidates += [str(v / "bin") for v in sorted(versions.iterdir(), key=lambda p: float(p.name), reverse=True)]
    for candidate in filter(None, candidates):
        if (Path(candidate) / "initdb").exists():
            return Path(candidate)
    raise RuntimeError("no PostgreSQL server binaries found; set PG_BIN")


class Postgres:
    def __init__(self):
        self.bin = bindir()
        self.dir = system.fresh_dir("pg")
        self.data = self.dir / "data"
        self.port = system.free_port()
        (self.dir / "second").mkdir()
        system.give_to_daemon(self.dir / "second")
        self.process = None
        self._admin = None
        system.run([self.bin / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C",
                    "--no-sync", "--no-instructions"], switch_user=True)
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(SETTINGS.format(port=self.port, dir=self.dir, addresses=",".join(ADDRESSES)))
        hba = ["local all all trust", "local replication all trust"]
        hba += [f"host {what} {role} {where} {check}" for role, (_, check, _) in ROLES.items()
                for what in ("all", "replication") for where in ("127.0.0.0/8", "::1/128")]
        (self.data / "pg_hba.conf").write_text("\n".join(hba) + "\n")
        self.start()
        for role, (password, _, stored) in ROLES.items():
            self.sql(f"SET password_encryption = '{stored}'")
            self.sql(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{password}'")
        self.sql("ALTER ROLE admin SUPERUSER")
        for name in DATABASES:
            self.sql(f"CREATE DATABASE {name}")
            self.sql(f"GRANT ALL ON DATABASE {name} TO PUBLIC")
            self.run_psql(name, "GRANT ALL ON SCHEMA public TO PUBLIC")

    def start(self):
        log = open(self.dir / "postgres.log", "ab")
        self.process = subprocess.Popen([str(self.bin / "postgres"), "-D", str(self.data)], stdout=log, stderr=log, cwd="/",
                                        preexec_fn=system.limits_for_children, **system.as_daemon_user())
        log.close()
        system.until(self._answers, 30, what="PostgreSQL accepts connections")

    def _answers(self):
        if self.process.poll() is not None:
            raise AssertionError("PostgreSQL ended: " + (self.dir / "postgres.log").read_text()[-2000:])
        try:
            self.direct().close()
            return True
        except psycopg.OperationalError:
            return False

    def stop(self, how=signal.SIGINT):
        """SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def log(self):
        return (self.dir / "postgres.log").read_text(errors="replace")

    def remove(self):
        self.stop(signal.SIGQUIT)
        system.remove_dir(self.dir)

    def direct(self, dbname="postgres", user="postgres", **more):
        """A connection past the pooler, as superuser over the Unix socket."""
        return psycopg.connect(host=str(self.dir), port=self.port, dbname=dbname, user=user, autocommit=True, **more)

    def sql(self, text, *args):
        """Rows of a statement run as superuser in database postgres."""
        for last in (False, True):
            if self._admin is None or self._admin.closed or self._admin.broken:
                self._admin = self.direct()
            try:
                cursor = self._admin.execute(text, args or None)
                return cursor.fetchall() if cursor.description else []
            except (psycopg.OperationalError, psycopg.errors.AdminShutdown):
                # the server was restarted by a test since the last statement
                if last:
                    raise
                self._admin.close()

    def run_psql(self, dbname, text):
        with self.direct(dbname) as connection:
            connection.execute(text)

    def backends(self, dbname=None, user=None):
        """Pids of client backends, those of this class's own connection left out."""
        rows = self.sql(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            " AND (%s::text IS NULL OR datname = %s) AND (%s::text IS NULL OR usename = %s) ORDER BY pid",
            dbname, dbname, user, user)
        return [r[0] for r in rows]

    def sleeping(self, text):
        """Pids of backends whose running statement contains `text`."""
        rows = self.sql("SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
                        " AND pid <> pg_backend_pid()", f"%{text}%")
        return [r[0] for r in rows]

    def no_clients(self):
        """Ends what earlier tests left running (PostgreSQL notices a client that is gone only after its statement)."""
        # one of them may have left PostgreSQL in its recovery
        system.until(self._answers, 20)
        theirs = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = ANY(%s)"
        self.sql(f"SELECT pg_terminate_backend(pid) {theirs}", list(DATABASES))
        system.until(lambda: not self.sql(f"SELECT pid {theirs}", list(DATABASES)), what="no backend left from before")
