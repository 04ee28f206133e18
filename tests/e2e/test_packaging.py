"""The init script and the systemd unit that come with the daemon, tried for real."""

import getpass
import os
import re
import shutil
import signal
import subprocess
import threading

import pytest

from support.system import REPO, daemon_user, run, until
from support.wire import ServerError

SCRIPT = REPO / "etc/init.d/pgbouncer"
UNIT = REPO / "etc/systemd/pgbouncer.service"

pytestmark = pytest.mark.ours


class Service:
    """The init script with a configuration of its own."""

    def __init__(self, pooler):
        self.pooler = pooler
        self.pidfile, self.logfile = pooler.dir / "run/pgbouncer.pid", pooler.dir / "pgbouncer.log"
        pooler.ini.update(pidfile=self.pidfile, logfile=self.logfile)
        pooler.write()
        user = daemon_user()
        self._env = {**os.environ, "DAEMON": str(pooler.binary.path), "CONFIG": str(pooler.conf), "STOP_SECONDS": "4",
                     "RUNAS": user.pw_name if user else getpass.getuser()}

    def __call__(self, word):
        # files, not pipes: the daemon would keep a pipe open
        out = self.pooler.dir / "service.out"
        with open(out, "w") as file:
            status = subprocess.run(["sh", str(SCRIPT), word], stdout=file, stderr=file, env=self._env, timeout=60, check=False,
                                    cwd=self.pooler.dir).returncode
        return status, out.read_text().strip()

    @property
    def pid(self):
        return int(self.pidfile.read_text())


@pytest.fixture
def service(make_pooler):
    service = Service(make_pooler(start=False))
    yield service
    if service.pidfile.exists():
        os.kill(service.pid, signal.SIGQUIT)


def gone(pid):
    return not os.path.exists(f"/proc/{pid}")


def test_start_status_reload_restart_stop(service):
    pooler = service.pooler
    assert service("status") == (3, "pgbouncer is not running")
    assert service("stop") == (0, "pgbouncer is not running")
    assert service("reload") == (7, "pgbouncer is not running")
    status, said = service("start")
    assert (status, said) == (0, f"pgbouncer started (pid {service.pid})")
    first = service.pid
    if daemon_user():
        assert re.search(rf"^Uid:\t{daemon_user().pw_uid}\t", open(f"/proc/{first}/status").read(), re.M)
    assert service("status") == (0, f"pgbouncer is running (pid {first})")
    assert service("start") == (0, f"pgbouncer is already running (pid {first})")
    with pooler.login() as client:
        assert client.query("SELECT 1").value == "1"
        pooler.ini["default_pool_size"] = 7
        pooler.write()
        assert service("reload") == (0, "")
        until(lambda: pooler.setting("default_pool_size") == "7")
        assert client.query("SELECT 2").value == "2" and service.pid == first
    status, said = service("restart")
    assert status == 0 and said == f"pgbouncer stopped\npgbouncer started (pid {service.pid})"
    second = service.pid
    assert second != first and gone(first)
    assert pooler.login().query("SELECT 3").value == "3"
    assert service("stop") == (0, "pgbouncer stopped")
    assert gone(second) and not service.pidfile.exists() and pooler.refuses()


def test_stop_waits_for_transactions(service):
    assert service("start")[0] == 0
    pid = service.pid
    with service.pooler.login() as client:
        client.query("BEGIN")
        stopped = []
        stopping = threading.Thread(target=lambda: stopped.append(service("stop")))
        stopping.start()
        until(service.pooler.refuses)
        assert client.query("SELECT 1").value == "1" and not gone(pid)
        assert client.query("COMMIT").tags == ["COMMIT"]
        stopping.join(30)
    assert stopped == [(0, "pgbouncer stopped")] and gone(pid)


def test_stop_does_not_wait_for_ever(service):
    assert service("start")[0] == 0
    pid = service.pid
    with service.pooler.login() as client:
        client.query("BEGIN")
        assert service("stop") == (0, "transactions still run after 4 s: stopping at once\npgbouncer stopped")
        assert client.at_eof() and gone(pid)


def test_wrong_words_and_broken_files(service):
    status, said = service("dance")
    assert status == 2 and said.startswith("usage: ")
    service.pooler.write(extra="nonsense\n")
    status, said = service("start")
    assert status == 1 and "FATAL cannot load config file" in said and not service.pidfile.exists()
    service.pooler.ini["pidfile"] = None
    service.pooler.write()
    assert service("start") == (1, f"no pidfile is set in {service.pooler.conf}")


def test_a_reload_of_a_broken_file_leaves_the_old_one_running(service):
    assert service("start")[0] == 0
    pid = service.pid
    service.pooler.write(extra="nonsense\n")
    assert service("reload")[0] == 0
    until(lambda: "config file loading failed" in service.logfile.read_text())
    assert not gone(pid) and service.pooler.login().query("SELECT 1").value == "1"
    with pytest.raises(ServerError, match="no such database"):
        service.pooler.login("app", "nosuch")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(binary, tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/sbin/pgbouncer", str(binary.path)))
    done = run(["systemd-analyze", "verify", "--man=no", unit], check=False, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"})
    version = int(re.search(r"systemd (\d+)", run(["systemd-analyze", "--version"]).stdout)[1])
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line
                  and not (version < 253 and line.endswith("ignoring: notify-reload"))]
    assert done.returncode == 0 and not complaints, done.stderr
