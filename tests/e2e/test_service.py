"""The machine around the daemon: syslog, the journal, sockets passed by a service manager."""

import json
import os
import re
import signal
import socket
import subprocess

import pytest

from support import system
from support.system import as_daemon_user, fresh_dir, remove_dir, run, until
from support.wire import Wire

pytestmark = pytest.mark.ours

PRIORITY = {"FATAL": 2, "ERROR": 3, "WARNING": 4, "LOG": 6}


def can_unshare():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


needs_namespace = pytest.mark.skipif(not can_unshare(), reason="needs root, for a /dev and a /run of the daemon's own")


class Collector:
    def __init__(self, sock, path):
        self.recv, self.path = sock.recv, path


@pytest.fixture
def collector():
    """A datagram socket in place of syslog's or the journal's, in a directory of its own."""
    directory = fresh_dir("log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(directory / "socket"))
        os.chmod(directory / "socket", 0o777)
        sock.settimeout(10)
        yield Collector(sock, directory / "socket")
    remove_dir(directory)


def in_namespace(pooler, setup, **popen):
    """Starts the daemon in a mount namespace that `setup` (shell) has changed; the process is the daemon's own."""
    who = as_daemon_user()
    script = f"""set -e
{setup}
exec setpriv --reuid={who['user']} --regid={who['group']} --clear-groups {pooler.binary.path} {pooler.conf}"""
    pooler.process = subprocess.Popen(["unshare", "-m", "sh", "-c", script], cwd=pooler.dir, stdin=subprocess.DEVNULL, **popen)


def own_dev(collector):
    dev = collector.path.parent / "dev"
    return f"""mkdir {dev}
for f in null zero random urandom; do touch {dev}/$f; mount --bind /dev/$f {dev}/$f; done
ln -s {collector.path} {dev}/log
mount --rbind {dev} /dev"""


def texts(collector, until_text):
    """Everything that was sent until a text comes that contains `until_text`."""
    got = []
    while not got or until_text not in got[-1]:
        got.append(collector.recv(65536).decode())
    return got


@needs_namespace
def test_syslog(make_pooler, collector):
    pooler = make_pooler(start=False, ini={"syslog": 1, "syslog_facility": "local3", "syslog_ident": "pooler-1", "verbose": 1})
    with open(pooler.stderr, "ab") as err:
        in_namespace(pooler, own_dev(collector), stderr=err)
    head = rf"<(\d+)>[A-Z][a-z][a-z] [ 0-9]\d \d\d:\d\d:\d\d pooler-1\[{pooler.process.pid}\]: "
    packets = texts(collector, "process up:")
    parsed = [re.fullmatch(head + "(.*)", p, re.S) for p in packets]
    assert all(parsed), packets
    assert {int(m[1]) for m in parsed} == {19 * 8 + 6}
    assert parsed[-1][2].startswith("process up: PgBouncer 1.")
    # the same lines as on stderr, without DEBUG
    pooler.admin("SHOW VERSION")
    with pytest.raises(Exception, match="no such database"):
        pooler.login("app", "nosuch")
    until(lambda: "pooler error: no such database" in pooler.log())
    packets = texts(collector, "pooler error: no such database: nosuch")
    warning = packets[-1]
    assert warning.startswith(f"<{19 * 8 + 4}>")
    pooler.admin("SET syslog = 0")
    pooler.login().close()
    pooler.ini.update(syslog_facility="auth", syslog_ident="pooler-2")
    pooler.write()
    pooler.reload()
    packets = texts(collector, "pooler-2")
    assert re.match(rf"<38>.{{15}} pooler-2\[{pooler.process.pid}\]: C-0x", packets[-1])
    assert not any("db=p0 user=app" in p for p in packets[1:]), "it was off"


@needs_namespace
@pytest.mark.ours
def test_syslog_gets_objects_too(make_pooler, collector):
    pooler = make_pooler(start=False, ini={"syslog": 1, "log_format": "json"})
    with open(pooler.stderr, "ab") as err:
        in_namespace(pooler, own_dev(collector), stderr=err)
    for packet in texts(collector, "process up:"):
        event = json.loads(packet.split("]: ", 1)[1])
        assert list(event) == ["ts", "pid", "level", "message"] and event["pid"] == pooler.process.pid


@needs_namespace
def test_fatal_reaches_syslog(make_pooler, collector):
    pooler = make_pooler(start=False, ini={"syslog": 1, "listen_addr": None, "unix_socket_dir": ""})
    with open(pooler.stderr, "ab") as err:
        in_namespace(pooler, own_dev(collector), stderr=err)
    packets = texts(collector, "nowhere to listen on")
    assert re.fullmatch(rf"<26>.{{15}} pgbouncer\[\d+\]: nowhere to listen on", packets[-1])
    assert pooler.wait_end() == 1


def test_syslog_that_is_not_there(make_pooler):
    pooler = make_pooler(ini={"syslog": 1})
    assert pooler.login().query("SELECT 1").value == "1"


@needs_namespace
def test_journal(make_pooler, collector):
    """stderr is the journal's stream: records with a priority go to it instead of lines."""
    pooler = make_pooler(start=False)
    pooler.databases["talks"] = {**pooler.backend(), "dbname": "p0", "connect_query": "DO $$ BEGIN RAISE E'two\\nlines'; END $$"}
    pooler.write()
    with open(pooler.stderr, "ab") as err:
        stat = os.fstat(err.fileno())
        setup = f"""mkdir -p {collector.path.parent}/run/systemd/journal
ln -s {collector.path} {collector.path.parent}/run/systemd/journal/socket
mount --rbind {collector.path.parent}/run /run
export JOURNAL_STREAM={stat.st_dev}:{stat.st_ino}"""
        in_namespace(pooler, setup, stderr=err)
    records = texts(collector, "process up:")
    assert all(r.startswith("PRIORITY=6\nSYSLOG_IDENTIFIER=pgbouncer\nMESSAGE=") and r.endswith("\n") for r in records)
    assert records[-1].split("MESSAGE=")[1].startswith("process up: PgBouncer 1.")
    with pytest.raises(Exception, match="no such database"):
        pooler.login("app", "nosuch\nforged")
    error = texts(collector, "pooler error")[-1]
    assert error.startswith("PRIORITY=4\nSYSLOG_IDENTIFIER=pgbouncer\nMESSAGE=C-0x")
    assert error.endswith("no such database: nosuch\\x0aforged\n")
    with pooler.wire() as wire:
        wire.startup("app", "talks")
        error = texts(collector, "exec_on_query")[-1]
    assert error.startswith("PRIORITY=3\nSYSLOG_IDENTIFIER=pgbouncer\nMESSAGE\n")
    assert "two\n\tlines" in error
    assert pooler.log() == "", "no lines on stderr"


def test_no_journal_if_stderr_is_something_else(make_pooler, monkeypatch):
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    pooler = make_pooler()
    assert "LOG process up:" in pooler.log()


@pytest.fixture
def activated(make_pooler):
    """Starts the daemon as systemd does: sockets from descriptor 3 on."""
    def start(sockets, *args, **ini):
        pooler = make_pooler(start=False, ini=ini)

        def become(fds=tuple(s.fileno() for s in sockets)):
            system.limits_for_children()
            copies = [os.dup(fd) for fd in fds]
            for number, copy in enumerate(copies, 3):
                os.dup2(copy, number, inheritable=True)
            for copy in copies:
                if copy >= 3 + len(copies):
                    os.close(copy)

        command = f"LISTEN_PID=$$ LISTEN_FDS={len(sockets)} exec {pooler.binary.path} {' '.join(args)} {pooler.conf}"
        with open(pooler.stderr, "ab") as err:
            pooler.process = subprocess.Popen(["sh", "-c", command], cwd=pooler.dir, stdin=subprocess.DEVNULL, stderr=err, stdout=err,
                                              close_fds=False, preexec_fn=become, **as_daemon_user())
        return pooler

    return start


def listening():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(16)
    return sock


def test_socket_activation(activated):
    directory = fresh_dir("act")
    path = directory / ".s.PGSQL.4711"
    with listening() as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        path.chmod(0o777)
        unix.listen(16)
        early = Wire(tcp.getsockname()[1])
        pooler = activated([tcp, unix])
        pooler.wait_log("process up:")
        log = pooler.log()
        for line in ("LOG socket passed from service manager (fd 3)", "LOG socket passed from service manager (fd 4)",
                     "WARNING sockets passed from service manager, cf_listen_addr ignored",
                     "WARNING sockets passed from service manager, cf_unix_socket_dir ignored"):
            assert line in log
        assert "listening on" not in log
        # who connected before there was a process is served
        assert early.login("app", "p0").query("SELECT 1").value == "1"
        with Wire(path=path) as wire:
            assert wire.login("app", "p0").query("SELECT 2").value == "2"
        assert pooler.refuses(), "nothing but the passed sockets is listened on"
        assert not os.path.exists(pooler.unix_path)
        pooler.signal(signal.SIGQUIT)
        assert pooler.wait_end() == 0
        assert path.exists(), "the socket is the service manager's"
    remove_dir(directory)


def test_activation_with_several_sockets(activated):
    """Two of each kind, in any order; when TCP is closed by a shutdown both Unix sockets still lead to the console."""
    directory = fresh_dir("act")
    paths = [directory / name for name in (".s.PGSQL.4711", "other")]
    with listening() as tcp, listening() as more, socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as second:
        for sock, path in zip((unix, second), paths, strict=True):
            sock.bind(str(path))
            path.chmod(0o777)
            sock.listen(16)
        pooler = activated([tcp, unix, more, second])
        pooler.wait_log("process up:")
        holder = Wire(tcp.getsockname()[1]).login("app", "p0")
        for wire in (Wire(more.getsockname()[1]), *(Wire(path=path) for path in paths)):
            with wire:
                assert wire.login("app", "p0").query("SELECT 1").value == "1"
        pooler.signal(signal.SIGTERM)
        pooler.wait_log("got SIGTERM, shutting down")
        for path in paths:
            with Wire(path=path) as wire:
                assert wire.login("admin", "pgbouncer").query("SHOW VERSION").value.startswith("PgBouncer 1.25.2")
        holder.close()
        assert pooler.wait_end() == 0
    remove_dir(directory)


def test_activation_without_settings_of_our_own(activated):
    with listening() as tcp:
        pooler = activated([tcp], listen_addr=None, unix_socket_dir="/tmp")
        pooler.wait_log("process up:")
        assert "WARNING sockets passed" not in pooler.log()
        with Wire(tcp.getsockname()[1]) as wire:
            assert wire.login("app", "p0").query("SELECT 1").value == "1"


def test_activation_with_something_that_is_no_listener(activated):
    with socket.socket() as unbound:
        pooler = activated([unbound])
        assert pooler.wait_end() == 1
        assert "FATAL failed to set up socket passed from service manager (fd 3)" in pooler.log()


def test_sockets_for_another_process_are_not_ours(make_pooler, monkeypatch):
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    pooler = make_pooler()
    assert f"listening on 127.0.0.1:{pooler.port}" in pooler.log()


def test_no_online_restart_under_a_service_manager(activated, make_pooler):
    running = make_pooler()
    with listening() as tcp:
        pooler = activated([tcp], "-R", listen_port=running.port, unix_socket_dir=running.dir)
        assert pooler.wait_end() == 1
        assert "FATAL cannot reboot under service manager" in pooler.log()
    assert running.login().query("SELECT 1").value == "1"


def test_units_are_valid():
    """As far as systemd can tell without running them."""
    if not os.path.exists("/usr/bin/systemd-analyze"):
        pytest.skip("no systemd-analyze")
    units = system.REPO / "etc/systemd"
    done = run(["systemd-analyze", "verify", units / "pgbouncer.service", units / "pgbouncer.socket"], check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines()
                  if "pgbouncer" in line and "not executable" not in line and "Command" not in line and "notify-reload" not in line]
    assert not complaints, complaints
