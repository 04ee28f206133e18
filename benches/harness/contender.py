"""A pooler under test: its directory, its configuration, its process."""

import base64
import hashlib
import hmac
import os
import re
import subprocess
from pathlib import Path

from support import system

USER, PASSWORD = "bench", "bench-secret"


def md5_secret():
    return "md5" + hashlib.md5((PASSWORD + USER).encode()).hexdigest()


def scram_secret(salt=b"a constant salt!", count=4096):
    """What PostgreSQL stores for a user with SCRAM."""
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, count)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${count}:{text[0]}${text[1]}:{text[2]}"


SECRETS = {"trust": "", "md5": md5_secret(), "scram-sha-256": scram_secret()}


def certificate(directory, kind):
    """A self-made certificate and its key; kind is rsa or ecdsa."""
    cert, key = directory / f"{kind}.crt", directory / f"{kind}.key"
    how = ["rsa:2048"] if kind == "rsa" else ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    system.run(["openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=localhost", "-newkey", *how, "-keyout", key, "-out", cert])
    for path in (cert, key):
        system.give_to_daemon(path)
    return cert, key


def pinned(pooler):
    """What children do before they start: the pooler has the first core for itself, all else shares the others."""
    cores = sorted(os.sched_getaffinity(0))
    mine = set(cores[:1]) if pooler or len(cores) < 2 else set(cores[1:])

    def prepare():
        system.limits_for_children()
        os.sched_setaffinity(0, mine)

    return prepare


def cpu_us(pid):
    """Run time of every thread, microseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1000


def rss_bytes(pid):
    return int(re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) * 1024


class Contender:
    """`settings` are in every configuration of this one; `before` is a command that the pooler is started by."""

    def __init__(self, name, program, settings=None):
        self.name, self.settings, self.before = name, settings or {}, []
        self.dir = system.fresh_dir("bench")
        # where the daemon's user may run it, whoever may read the original
        self.program = self.dir / "pgbouncer"
        self.program.write_bytes(program.read_bytes())
        self.program.chmod(0o755)
        said = system.run([self.program, "-V"]).stdout
        self.version = said.splitlines()[0]
        self.numbers = tuple(map(int, re.search(r"(\d+)\.(\d+)", self.version).groups()))

    def tracks_prepared(self):
        """PgBouncer has done so since 1.21."""
        return self.numbers >= (1, 21)

    def start(self, host_port, auth="trust", tls=None, split=True, dbname="bench", user=USER, secret=None, **settings):
        self.port = system.free_port()
        (self.dir / "userlist.txt").write_text(f'"{user}" "{SECRETS[auth] if secret is None else secret}"\n')
        wanted = {
            "listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": "", "auth_type": auth,
            "auth_file": self.dir / "userlist.txt", "admin_users": user, "pool_mode": "transaction", "default_pool_size": 20,
            "max_client_conn": 15000, "listen_backlog": 1024, "log_connections": 0, "log_disconnections": 0, "log_stats": 0,
        }
        if tls:
            wanted.update(client_tls_sslmode="require", client_tls_cert_file=tls[0], client_tls_key_file=tls[1])
        wanted.update(settings)
        wanted.update(self.settings)
        lines = "".join(f"{key} = {value}\n" for key, value in wanted.items())
        ini = self.dir / "pgbouncer.ini"
        ini.write_text(f"[databases]\n{dbname} = host=127.0.0.1 port={host_port}\n[pgbouncer]\n{lines}")
        log = self.dir / "log"
        with open(log, "w") as out:
            prepare = pinned(True) if split else system.limits_for_children
            self.process = subprocess.Popen([*map(str, self.before), str(self.program), str(ini)], cwd=self.dir, stderr=out, stdout=out,
                                            preexec_fn=prepare, **system.as_daemon_user())
        system.until(lambda: "process up" in log.read_text() or self.process.poll() is not None, 30, what=f"{self.name} is up")
        if self.process.poll() is not None:
            raise SystemExit(f"{self.name} does not start:\n{log.read_text()}")
        return self

    @property
    def pid(self):
        return self.process.pid

    def stop(self):
        self.process.kill()
        self.process.wait()

    def remove(self):
        system.remove_dir(self.dir)
