"""Users, ports, temporary directories and waiting: everything the tests need from the operating system.

PostgreSQL and the pooler refuse to run as root, so as root every daemon is started as an unprivileged user that owns
the temporary directory. Nothing here sleeps for a fixed time: `until` polls.
"""

import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]


def daemon_user():
    """The user that daemons run as: ourselves, or postgres (else nobody) when we are root."""
    if os.geteuid() != 0:
        return None
    for name in filter(None, (os.environ.get("E2E_USER"), "postgres", "nobody")):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("running as root, and there is no user postgres or nobody to start daemons as")


def as_daemon_user():
    """Arguments for subprocess that switch to the daemon user."""
    user = daemon_user()
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def give_to_daemon(path):
    user = daemon_user()
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def fresh_dir(prefix):
    """A new directory that the daemon user owns; short, for Unix socket paths have at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix=f"pgu-{prefix}-", dir=os.environ.get("E2E_TMP", "/tmp")))
    path.chmod(0o755)
    give_to_daemon(path)
    return path


def remove_dir(path):
    if not os.environ.get("E2E_KEEP"):
        shutil.rmtree(path, ignore_errors=True)


_reservations = []
_next_port = [20000 + (os.getpid() * 37) % 8000]


def free_port():
    """A port below the ephemeral range that nobody uses.

    An abstract Unix socket of that number stays bound as long as this process lives, so that test processes running
    side by side never pick the same port.
    """
    while True:
        _next_port[0] += 1
        if _next_port[0] > 31000:
            _next_port[0] = 20000
        port = _next_port[0]
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0pgusher-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _reservations.append(claim)
        return port


def put(path, text):
    """Writes a file at once: a daemon that reads it meanwhile sees the old text or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, errors="surrogateescape")
    if path.exists():
        shutil.copymode(path, fresh)
        shutil.chown(fresh, path.stat().st_uid, path.stat().st_gid)
    fresh.replace(path)


def until(condition, timeout=20.0, every=0.02, what=None):
    """Polls until `condition()` is true and returns its value; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}; last value {value!r}")
        time.sleep(every)


def holds(condition, seconds, every=0.05, what=None):
    """Watches for `seconds` that `condition()` stays true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        assert value, f"stopped being true: {what or condition}"
        time.sleep(every)


def limits_for_children():
    """No core files from daemons that are stopped by SIGQUIT, and room for many sockets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # a shell that started the tests in the background has them ignored
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def run(args, check=True, timeout=60, switch_user=False, **more):
    """Runs a program to its end, output captured as text."""
    if switch_user:
        more.update(as_daemon_user())
        more.setdefault("cwd", "/")
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=timeout, check=False, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"{args} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
