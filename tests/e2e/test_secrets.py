"""Passwords stay inside: not in the log, not in SHOW, not in a core dump, and not in memory when they have been replaced."""

import os
import re
import signal
from pathlib import Path

import pytest

from support import system
from support.postgres import ROLES
from support.wire import ServerError

pytestmark = [pytest.mark.ours, pytest.mark.slow(120)]

OLD, NEW = "Old-Secret-4711-hgzftr", "New-Secret-0815-wqayxs"
SHOWS = ["ACTIVE_SOCKETS", "CLIENTS", "CONFIG", "DATABASES", "FDS", "LISTS", "MEM", "PEERS", "POOLS", "SERVERS", "SOCKETS", "USERS",
         "WAITS", "ADVICE"]


def in_memory(pooler, word):
    """How often a word stands in the memory that the process can write to."""
    found, proc = 0, Path(f"/proc/{pooler.process.pid}")
    with open(proc / "mem", "rb", buffering=0) as memory:
        for line in (proc / "maps").read_text().splitlines():
            bounds, rights = line.split()[:2]
            if "w" not in rights or "[v" in line:
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            memory.seek(start)
            try:
                found += memory.read(end - start).count(word.encode())
            except OSError:
                continue
    return found


@pytest.mark.goal("G22")
@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_a_password_that_was_replaced_is_nowhere(make_pooler, auth_type, measured):
    pooler = make_pooler(start=False, ini={"auth_type": auth_type, "verbose": 2}, userlist={"app": OLD, "admin": "SecurePass2024!"})
    # PostgreSQL has another one
    pooler.databases["p0"].update(user="app", password=ROLES["app"][0])
    pooler.write()
    pooler.start()
    for _ in range(5):
        with pooler.login(password=OLD) as wire:
            assert wire.query("SELECT 1").value == "1"
        with pytest.raises(ServerError, match="authentication failed"):
            pooler.login(password="not-this-one")
    pooler.userlist["app"] = NEW
    pooler.write()
    pooler.reload()
    with pytest.raises(ServerError, match="authentication failed"):
        pooler.login(password=OLD)
    shown = "".join(str(pooler.show(topic)) for topic in SHOWS)
    for word in (OLD, NEW, "SecurePass2024!"):
        measured.exactly("passwords in the log", pooler.log().count(word))
        measured.exactly("passwords in SHOW", shown.count(word))
    limits = Path(f"/proc/{pooler.process.pid}/limits").read_text()
    measured.exactly("largest core dump", int(re.search(r"Max core file size +(\d+)", limits)[1]), 0, "bytes")
    if os.geteuid() == 0 or os.access(f"/proc/{pooler.process.pid}/mem", os.R_OK):
        assert in_memory(pooler, NEW) > 0, "the one in force is there: the search works"
        measured.exactly("old passwords in memory", in_memory(pooler, OLD))


LINES = ["p9 = host=x password=my {}", "p9 = host=x password='x' '{}'", "p9 = host=x PASSWORD={}", "p9 = host=x passwd={}",
         "p9 = host=x pasword='{}'", "p9 = host=x port= password={}", "p9 = postgres://u:{}@h/db?a=b", "password={}"]


def ask(binary, pooler, question):
    return system.run([binary.path, question, pooler.conf], check=False, switch_user=True, cwd=pooler.dir)


def test_passwords_in_lines_that_are_refused_are_not_logged(make_pooler, binary):
    pooler = make_pooler()
    good = pooler.conf.read_text()
    for line in LINES:
        pooler.conf.write_text(good.replace("[databases]\n", f"[databases]\n{line.format(OLD)}\n"))
        before = pooler.log().count("ERROR invalid value ")
        pooler.signal(signal.SIGHUP)
        system.until(lambda: pooler.log().count("ERROR invalid value ") > before, what=line)
        checked = ask(binary, pooler, "--check")
        assert checked.returncode == 1
        assert OLD not in checked.stdout + checked.stderr, line
        assert OLD not in pooler.log(), line


@pytest.mark.parametrize("option", ["ldapbindpasswd=my {}", "ldapbindpasswd= {}", "ldapbindpassword={}", "LDAPBINDPASSWD={}"])
def test_passwords_in_options_that_cannot_be_read_are_not_shown(make_pooler, binary, option):
    options = f"ldapserver=127.0.0.1 ldapbasedn=x {option.format(OLD)}"
    pooler = make_pooler(ini={"auth_ldap_options": options})
    shown = pooler.setting("auth_ldap_options") + ask(binary, pooler, "--dump-config").stdout
    assert shown.count("ldapbasedn=x") == 2 and OLD not in shown
    pooler.admin("SET auth_type = 'ldap'")
    with pytest.raises(ServerError, match="LDAP authentication failed"):
        pooler.login(password="anything")
    pooler.wait_log("WARNING invalid LDAP option: ")
    assert OLD not in pooler.log()
