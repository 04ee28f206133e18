"""auth_type=pam: the operating system's modules judge the password. Needs root, for the stack of modules."""

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from support import system
from support.wire import ServerError
from test_takeover import debian, reboot  # noqa: F401 - a fixture

STACK = Path("/etc/pam.d/pgbouncer")
EXEC = next(iter(Path("/lib").glob("*/security/pam_exec.so")), None) or next(iter(Path("/usr/lib").glob("*/security/pam_exec.so")), None)

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or EXEC is None, reason="needs root and pam_exec")

CHECK = """#!/bin/sh
password=$(tr -d '\\000')
[ "$PAM_TYPE" = auth ] && [ "$PAM_SERVICE" = pgbouncer ] && [ "$PAM_RHOST" = 127.0.0.1 ] || exit 1
case "$PAM_USER:$password" in
    app:app-secret | plainuser:plain-secret | md5user:md5-secret | admin:SecurePass2024! | other:other) exit 0 ;;
    slow:slow) sleep 3 ;;
    *) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def stack():
    """Sets the lines of the service's stack; one test process at a time has it."""
    directory = system.fresh_dir("pam")
    check = directory / "check"
    check.write_text(CHECK)
    check.chmod(0o755)
    with open("/tmp/pgusher-pam.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = STACK.read_bytes() if STACK.exists() else None

        def write(auth=f"required pam_exec.so expose_authtok quiet {check}", account="required pam_permit.so"):
            STACK.write_text(f"auth {auth}\naccount {account}\n")

        yield write
        if old is None:
            STACK.unlink(missing_ok=True)
        else:
            STACK.write_bytes(old)
    shutil.rmtree(directory)


@pytest.fixture
def pam(make_pooler, stack):
    def make(**ini):
        stack()
        pooler = make_pooler(start=False, ini={"auth_type": "pam", "auth_file": None, **ini})
        pooler.databases["forced"] = pooler.backend(user="trustuser")
        if pooler.ini["auth_type"] != "pam":
            pooler.ini["auth_file"] = pooler.dir / "userlist.txt"
        pooler.write()
        return pooler.start()

    return make


def refused(pooler, text, user, password, database="p0"):
    with pytest.raises(ServerError) as error:
        pooler.login(user, database, password=password)
    assert list(error.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", text)]


def test_right_and_wrong_passwords(pam):
    """The password that was accepted opens the servers as well, whatever they ask for."""
    pooler = pam()
    for user, password in (("app", "app-secret"), ("plainuser", "plain-secret"), ("md5user", "md5-secret")):
        with pooler.login(user, password=password) as wire:
            assert wire.auth_requests == [3, 0]
            assert wire.query("SELECT current_user").value == user
    refused(pooler, "PAM authentication failed", "app", "wrong")
    refused(pooler, "PAM authentication failed", "nosuch", "app-secret")
    refused(pooler, "empty password returned by client", "app", "")
    pooler.wait_log("pam_authenticate() failed: ")
    with pooler.login("other", "forced", password="other") as wire:
        assert wire.query("SELECT current_user").value == "trustuser"
    assert "app-secret" not in pooler.log()


def test_unknown_database_is_told_after_the_password(pam):
    pooler = pam()
    refused(pooler, "PAM authentication failed", "app", "wrong", "nowhere")
    refused(pooler, "no such database: nowhere", "app", "app-secret", "nowhere")


def test_console(pam):
    pooler = pam()
    pooler.login("admin", "pgbouncer", password="SecurePass2024!").close()
    refused(pooler, "PAM authentication failed", "admin", "wrong", "pgbouncer")
    refused(pooler, "not allowed", "app", "app-secret", "pgbouncer")


def test_not_together_with_an_entry_that_looks_users_up(pam):
    """The global auth_user counts for entries for which somebody was looked up, until they are read again."""
    pooler = pam(auth_type="plain", auth_user="admin", auth_query="SELECT $1::text, 'x'")
    pooler.databases["own"] = pooler.backend(auth_user="admin")
    pooler.write()
    pooler.reload()
    pooler.login("stranger", "forced", password="x").close()
    pooler.admin("SET auth_type = 'pam'")
    pooler.login("app", password="app-secret").close()
    for name in ("own", "forced"):
        refused(pooler, "bouncer config error", "other", "other", name)
    pooler.wait_log("ERROR C-")
    pooler.wait_log("PAM can't be used together with database authentication", 2)
    pooler.ini["auth_type"] = "pam"
    pooler.write()
    pooler.reload()
    pooler.login("other", "forced", password="other").close()


def test_stacks_that_permit_or_deny_everybody(pam, stack):
    pooler = pam()
    stack(auth="required pam_permit.so")
    pooler.login("whoever", "forced", password="whatever").close()
    stack(auth="required pam_deny.so")
    refused(pooler, "PAM authentication failed", "app", "app-secret")
    stack(account="required pam_deny.so")
    refused(pooler, "PAM authentication failed", "app", "app-secret")
    pooler.wait_log("pam_acct_mgmt() failed: ")


@pytest.mark.ours
def test_slow_modules_hold_up_nobody_else(pam):
    pooler = pam()
    done = []

    def log_in():
        pooler.login("slow", "forced", password="slow").close()
        done.append(time.monotonic())

    with pooler.login("app", password="app-secret") as wire:
        thread = threading.Thread(target=log_in)
        thread.start()
        slowest = 0.0
        while not done:
            start = time.monotonic()
            assert wire.query("SELECT 1").value == "1"
            slowest = max(slowest, time.monotonic() - start)
        thread.join()
    assert slowest < 1.0


@pytest.mark.ours
def test_client_that_leaves_while_it_is_judged(pam):
    pooler = pam(client_login_timeout=1)
    refused(pooler, "client_login_timeout", "slow", "slow", "forced")

    def served():
        try:
            pooler.login("app", password="app-secret").close()
            return True
        except ServerError as error:
            # the modules are still busy with the one who left, or have left too little of the second for the first server
            assert error.message in ("client_login_timeout", "client_login_timeout (server down)")
            return False

    system.until(served, 20)


@pytest.mark.ours
@pytest.mark.parametrize("through", ["ours", "debian"])
def test_users_are_handed_over(pam, request, through):
    """No file knows them: that new servers can log in is due to the password that the modules accepted."""
    pooler = pam()
    pooler.ini.pop("worker_threads", None)
    pooler.write()
    ours = pooler.binary
    between = request.getfixturevalue("debian") if through == "debian" else ours
    with pooler.login("app", password="app-secret") as scram, pooler.login("md5user", password="md5-secret") as md5:
        scram.query("BEGIN")
        md5.query("SELECT 1")
        for turn, program in enumerate((between, ours)):
            reboot(pooler, program)
            assert scram.query("COMMIT; BEGIN").tags == ["COMMIT", "BEGIN"]
            with pooler.login("admin", "pgbouncer", password="SecurePass2024!") as console:
                console.query("RECONNECT")
                system.until(lambda: not [s for s in console.query("SHOW SERVERS").dicts if s["user"] == "md5user"])
            assert md5.query(f"SELECT current_user || {turn}").value == f"md5user{turn}"
            with pooler.login("md5user", password="md5-secret") as late:
                assert late.query("SELECT current_user").value == "md5user"
            refused(pooler, "PAM authentication failed", "app", "wrong")
        assert scram.query("COMMIT; SELECT current_user").rows == [["app"]]
