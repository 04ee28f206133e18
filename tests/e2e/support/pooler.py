"""The pooler under test: one process, one fresh directory, one port."""

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psycopg

from . import system
from .postgres import ROLES
from .wire import Wire

PLAIN_USERLIST = {name: password for name, (password, _, _) in ROLES.items()} | {"stats": "stats-secret"}


def source_binary():
    """The daemon to test: PGBOUNCER_BIN, else our build with assertions, as ./test makes it."""
    return Path(os.environ.get("PGBOUNCER_BIN") or system.REPO / "target/debug/pgbouncer").resolve()


class Binary:
    """The daemon's program, copied to where the unprivileged user can execute it."""

    def __init__(self, directory):
        source = source_binary()
        if not source.exists():
            raise RuntimeError(f"{source} does not exist; build it (cargo build) or set PGBOUNCER_BIN")
        self.path = directory / "pgbouncer"
        shutil.copy(source, self.path)
        self.path.chmod(0o755)
        self.version_text = system.run([self.path, "-V"]).stdout
        first = re.match(r"PgBouncer (\d+)\.(\d+)\.(\d+)", self.version_text)
        assert first, self.version_text
        self.version = tuple(int(n) for n in first.groups())
        self.ours = "pgusher" in self.version_text.lower() or str(source).startswith(str(system.REPO))


def connstr(values):
    """One line of [databases] or [users]."""
    def quoted(value):
        text = str(value)
        return "'" + text.replace("'", "''") + "'" if re.search(r"[ ']", text) or not text else text

    return " ".join(f"{k}={quoted(v)}" for k, v in values.items())


def userlist_text(entries):
    def quoted(text):
        return '"' + text.replace('"', '""') + '"'

    return "".join(f"{quoted(n)} {quoted(s)}\n" for n, s in entries.items())


class Pooler:
    """Starts, configures, asks and stops one daemon.

    `ini`, `databases`, `users` and `userlist` stay dictionaries that a test may change before `write()` and `reload()`.
    """

    def __init__(self, binary, pg, ini=None, databases=None, users=None, userlist=None, peers=None):
        self.binary, self.pg = binary, pg
        self.dir = system.fresh_dir("pb")
        self.port = system.free_port()
        self.ini = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": self.dir,
            "auth_type": "trust",
            "auth_file": self.dir / "userlist.txt",
            "admin_users": "admin",
            "stats_users": "stats",
            "pool_mode": "transaction",
            "server_login_retry": 1,
            **(ini or {}),
        }
        workers = os.environ.get("E2E_WORKERS")
        if workers and binary.ours:
            self.ini.setdefault("worker_threads", workers)
        self.databases = databases if databases is not None else {"p0": self.backend(), "p1": self.backend("p1")}
        self.users = users or {}
        self.peers = peers or {}
        self.userlist = dict(PLAIN_USERLIST if userlist is None else userlist)
        self.process = None
        self.expected_to_end = False
        self.conf = self.dir / "pgbouncer.ini"
        self.stderr = self.dir / "stderr.log"
        self.write()

    def backend(self, dbname="p0", **more):
        """A [databases] value that leads to the test cluster."""
        return {"host": "127.0.0.1", "port": self.pg.port, "dbname": dbname, **more}

    def write(self, extra=""):
        """Writes the three files as the dictionaries say; `extra` is appended to the ini file."""
        lines = ["[databases]"]
        lines += [f"{n} = {v if isinstance(v, str) else connstr(v)}" for n, v in self.databases.items()]
        for section, entries in (("users", self.users), ("peers", self.peers)):
            if entries:
                lines += [f"[{section}]"] + [f"{n} = {connstr(v)}" for n, v in entries.items()]
        lines += ["[pgbouncer]"] + [f"{k} = {v}" for k, v in self.ini.items() if v is not None]
        system.put(self.conf, "\n".join(lines) + "\n" + extra)
        system.put(self.dir / "userlist.txt", userlist_text(self.userlist))

    def start(self, *args, wait=True):
        err = open(self.stderr, "ab")
        self.process = subprocess.Popen([str(self.binary.path), *args, str(self.conf)], stdout=err, stderr=err, cwd=self.dir,
                                        stdin=subprocess.DEVNULL, preexec_fn=system.limits_for_children,
                                        **system.as_daemon_user())
        err.close()
        if wait:
            system.until(self._up, 30, what="the pooler is up")
        return self

    def _up(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the pooler ended with {self.process.returncode}:\n{self.log()[-3000:]}")
        return "process up:" in self.log()

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        os.kill(self.process.pid, number)

    def wait_end(self, timeout=20):
        """The exit status; the test expects the process to end."""
        self.expected_to_end = True
        return self.process.wait(timeout)

    def stop(self):
        self.expected_to_end = True
        if self.alive:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)

    def reload(self):
        """SIGHUP, and waits until it was acted on."""
        seen = self.log().count("got SIGHUP, re-reading config")
        self.signal(signal.SIGHUP)
        self.wait_log("got SIGHUP, re-reading config", seen + 1)
        with self.console() as console:
            self.settle(console)

    def unix_console(self, user="admin"):
        """A console over the Unix socket, which needs no TLS."""
        return Wire(path=self.unix_path).login(user, "pgbouncer", self.userlist.get(user))

    def reload_over_unix(self):
        """RELOAD, for poolers whose TCP clients must use TLS."""
        with self.unix_console() as console:
            console.query("RELOAD")

    def log(self):
        return self.stderr.read_text(errors="replace") if self.stderr.exists() else ""

    def wait_log(self, text, times=1, timeout=20):
        """Waits until `text` (a plain string, or a compiled pattern) was logged that often."""
        def count():
            found = text.findall(self.log()) if isinstance(text, re.Pattern) else [1] * self.log().count(text)
            return len(found) >= times

        try:
            system.until(count, timeout)
        except AssertionError:
            raise AssertionError(f"never logged {times} times: {text!r}\n{self.log()[-3000:]}") from None

    def wire(self, timeout=40.0):
        """A connection that has not said anything yet."""
        return Wire(self.port, timeout=timeout)

    def login(self, user="app", database="p0", password=None, timeout=40.0, **params):
        """A logged-in raw connection."""
        wire = self.wire(timeout)
        try:
            return wire.login(user, database, self.userlist.get(user) if password is None else password, **params)
        except BaseException:
            wire.close()
            raise

    def console(self, user="admin", timeout=40.0):
        return self.login(user, "pgbouncer", timeout=timeout)

    def admin(self, command):
        """Runs one console command that must succeed on a connection of its own."""
        with self.console() as console:
            result = console.query(command)
            if command.startswith("SET "):
                # every worker is told of it, and has it when it answers
                self.settle(console)
            return result

    def settle(self, console=None):
        """Waits until everything is done that belongs to answers already here.

        A client has its answer a moment before the worker gives the server back and counts. SHOW SERVERS asks every worker,
        and they answer between two turns, after all that they were told before.
        """
        if console is None:
            self.admin("SHOW SERVERS")
        else:
            console.query("SHOW SERVERS")

    def show(self, topic):
        """Rows of SHOW as dictionaries, which know of every answer that came before."""
        with self.console() as console:
            self.settle(console)
            return console.query(f"SHOW {topic}").dicts

    def pool(self, database="p0", user="app"):
        """The row of SHOW POOLS, numbers as integers; None when there is no such pool."""
        for row in self.show("POOLS"):
            if (row["database"], row["user"]) == (database, user):
                return {k: int(v) if v and v.isdigit() else v for k, v in row.items()}
        return None

    def setting(self, key):
        return next(r["value"] for r in self.show("CONFIG") if r["key"] == key)

    def dsn(self, user="app", dbname="p0"):
        return dict(host="127.0.0.1", port=self.port, user=user, dbname=dbname, password=self.userlist.get(user))

    def connect(self, user="app", dbname="p0", autocommit=True, **more):
        """A psycopg connection through the pooler."""
        return psycopg.connect(**self.dsn(user, dbname), autocommit=autocommit, **more)

    @property
    def unix_path(self):
        return f"{self.dir}/.s.PGSQL.{self.port}"

    def refuses(self):
        """Whether connecting over TCP is refused."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
            return False
        except (ConnectionRefusedError, ConnectionResetError):
            # the latter at the very moment when the listener goes
            return True
        except TimeoutError:
            # a listener that leaves its port to others begins nothing any more before it goes
            return False
