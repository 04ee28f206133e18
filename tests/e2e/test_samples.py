"""The samples for HAProxy and for several processes on one port."""

import re
import shutil
import signal
import socket
import subprocess

import pytest

from support.load import Background
from support.system import REPO, free_port, fresh_dir, give_to_daemon, remove_dir, run, until
from support.wire import Closed, Wire

pytestmark = pytest.mark.ours

SAMPLE = REPO / "etc/haproxy/haproxy.cfg"
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")

with_haproxy = pytest.mark.skipif(not HAPROXY, reason="haproxy is missing: ./test installs it where no init system would start it")


def test_haproxy_asks_what_a_pooler_answers(pooler):
    text = SAMPLE.read_text()
    question = bytes.fromhex(re.search(r"send-binary (\w+)", text)[1])
    with pooler.wire() as wire:
        wire.sock.sendall(question)
        answer = wire.sock.recv(1)
    assert answer in (b"S", b"N")
    assert re.search(re.search(r"expect rbinary (\S+)", text)[1], answer.hex().upper())


@with_haproxy
def test_haproxy_takes_the_sample():
    run([HAPROXY, "-c", "-f", SAMPLE])


@pytest.fixture
def haproxy(make_pooler):
    """The sample in front of two poolers, smaller, at another port and in more haste: its port, its log and the poolers."""
    poolers = [make_pooler(), make_pooler()]
    directory, port = fresh_dir("haproxy"), free_port()
    text = SAMPLE.read_text().replace("bind :5432", f"bind 127.0.0.1:{port}").replace("inter 2s", "inter 200ms").replace("maxconn 20000", "maxconn 100")
    for address, pooler in zip(("10.0.0.11:6432", "10.0.0.12:6432"), poolers):
        text = text.replace(address, f"127.0.0.1:{pooler.port}")
    (directory / "haproxy.cfg").write_text(text)
    log = directory / "log"
    with open(log, "w") as file:
        process = subprocess.Popen([HAPROXY, "-db", "-f", directory / "haproxy.cfg"], stdout=file, stderr=file)
    try:
        until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, log.read_text()
        for name in ("a", "b"):
            until(lambda: f"Health check for server poolers/pooler-{name} succeeded" in log.read_text(), 20)
        yield port, log, poolers
    finally:
        process.kill()
        process.wait()
        remove_dir(directory)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connect(port):
    wire = Wire(port, timeout=20)
    wire.login("app", "p0")
    return wire


@with_haproxy
def test_behind_haproxy_a_pooler_can_be_replaced(haproxy):
    """New clients are let in, and those of the pooler that ends stay until they leave."""
    port, log, (first, second) = haproxy
    wires = [connect(port) for _ in range(6)]
    assert 0 < first.pool()["cl_active"] < 6

    cut = []

    def fresh(background, number):
        while not background.stopping.is_set():
            try:
                with connect(port) as wire:
                    assert wire.query("SELECT 7").value == "7"
            except Closed:
                # connected by the kernel at the very moment when the port was closed
                cut.append(number)
            background.count()

    with Background(fresh, threads=2) as load:
        until(lambda: load.done > 20, 20)
        first.signal(signal.SIGTERM)
        until(lambda: "poolers/pooler-a is DOWN" in log.read_text(), 20)
        seen = load.done
        until(lambda: load.done > seen + 20, 20)
    assert len(cut) <= 2, "one for each of those who connect all the time"
    assert all(wire.query("SELECT 8").value == "8" for wire in wires)
    for wire in wires:
        wire.close()
    assert first.wait_end() == 0 and second.alive
    assert "poolers/pooler-b is DOWN" not in log.read_text()


def test_the_processes_of_the_scaling_page_have_good_files(binary, make_pooler):
    """The file that the page shows, with directories of the test in the place of /run and /etc."""
    directory = make_pooler(start=False).dir
    text = (REPO / "docs/scaling.md").read_text()
    shown = re.search(r"one port, several processes\n\n((?:    .*\n)+)", text)[1]
    ini = "\n".join(line[4:] for line in shown.splitlines())
    for name in ("a", "b"):
        (directory / f"pgbouncer-{name}").mkdir()
    files = {"a.ini": ini.replace("/run/", f"{directory}/").replace("/etc/pgbouncer/", ""),
             "common.ini": "auth_file = users\n[databases]\np0 = host=127.0.0.1\n", "users": '"u" "md50123456789abcdef0123456789abcdef"\n'}
    for name, content in files.items():
        (directory / name).write_text(content)
        (directory / name).chmod(0o600)
        give_to_daemon(directory / name)
    done = run([binary.path, "--check", "a.ini"], check=False, switch_user=True, cwd=directory)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_the_two_lines_of_the_readme_can_be_copied(binary, make_pooler):
    directory = make_pooler(start=False).dir
    ini, users = re.search(r"    (; pgbouncer\.ini.*\n    .*)\n    (; userlist.*\n    .*)\n", (REPO / "README.md").read_text()).groups()
    for name, head, lines in (("copied.ini", "[pgbouncer]\nlisten_addr = 127.0.0.1\nauth_file = copied.txt\n[databases]\n", ini), ("copied.txt", "", users)):
        (directory / name).write_text(head + "".join(f"{line.strip()}\n" for line in lines.splitlines()))
        (directory / name).chmod(0o600)
        give_to_daemon(directory / name)
    done = run([binary.path, "--check", "copied.ini"], check=False, switch_user=True, cwd=directory)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
