"""The container image: what its file says, and the program in a root directory that has as little as the image."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.pooler import source_binary
from support.system import REPO, free_port, fresh_dir, remove_dir, until
from support.wire import Wire

pytestmark = pytest.mark.ours

# the shared objects of distroless/cc: the C library, and libgcc
IN_THE_IMAGE = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
NONROOT = 65532


def instructions():
    """Instruction and arguments, in order."""
    text = (REPO / "etc/container/Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def words(instruction):
    """The exec form of an instruction."""
    (found,) = [rest for name, rest in instructions() if name == instruction]
    assert found.startswith("[") and found.endswith("]"), "a shell form needs a shell"
    return re.findall(r'"([^"]*)"', found)


def test_its_file_is_consistent():
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert len(stages) == 2 and stages[0].endswith(" AS build") and stages[1].endswith(":nonroot")
    source, target = re.search(r"--from=build (\S+) (\S+)", "\n".join(rest for _, rest in instructions())).groups()
    assert source == "/src/target/release/pgbouncer" and words("ENTRYPOINT") == [target]
    assert dict(instructions())["STOPSIGNAL"] == "SIGINT" and dict(instructions())["EXPOSE"] == "6432"
    # what the manifests mount is what the image reads
    assert words("CMD") == ["/etc/pgbouncer/pgbouncer.ini"]
    ignored = (REPO / ".dockerignore").read_text().split()
    assert {"**/target", ".git"} <= set(ignored), "gigabytes that the build does not need"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for chroot")
def test_the_program_needs_nothing_that_the_image_has_not():
    """As in the image: no shell, no user database, a user that has no name, everything but the configuration absent."""
    root, port = fresh_dir("image"), free_port()
    linked = subprocess.run(["ldd", source_binary()], capture_output=True, text=True, check=True).stdout
    libraries = dict(re.findall(r"(\S+) => (/\S+)", linked))
    assert set(libraries) <= IN_THE_IMAGE
    (loader,) = re.findall(r"^\s*(/lib\S*/ld-linux\S+)", linked, re.M)
    program = root / words("ENTRYPOINT")[0].lstrip("/")
    for source, target in [*((path, path) for path in libraries.values()), (loader, loader)]:
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(source).resolve(), place)
    program.parent.mkdir(parents=True)
    shutil.copy(source_binary(), program)
    (ini,) = words("CMD")
    conf = root / ini.lstrip("/")
    conf.parent.mkdir(parents=True)
    conf.write_text(f"[databases]\np = host=127.0.0.1\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
                    "auth_type = trust\nauth_file = /etc/pgbouncer/users\nadmin_users = admin\n")
    (conf.parent / "users").write_text('"admin" ""\n')
    with open(root / "log", "w") as log:
        process = subprocess.Popen(words("ENTRYPOINT") + [ini], stderr=log, cwd="/", env={}, preexec_fn=lambda: enter(root))
    try:
        until(lambda: process.poll() is not None or "process up" in (root / "log").read_text())
        with Wire(port) as wire:
            wire.login("admin", "pgbouncer")
            assert wire.query("SHOW VERSION").value.startswith("PgBouncer ")
        process.send_signal(getattr(signal, dict(instructions())["STOPSIGNAL"]))
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        remove_dir(root)


def enter(root):
    os.chroot(root)
    os.setgroups([])
    os.setgid(NONROOT)
    os.setuid(NONROOT)
