"""The Debian package: built, installed, started, upgraded and removed in a copy of this machine that nobody else sees.

The copy is an overlay over / in namespaces of its own (mounts, processes, network); what was written is in its upper directory.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.pooler import source_binary
from support.system import REPO, fresh_dir, remove_dir, run


def can_copy_the_machine():
    if os.geteuid() != 0 or not shutil.which("dpkg-deb") or not shutil.which("ip"):
        return False
    probe = """d=$(mktemp -d); mount -t tmpfs tmpfs $d && mkdir $d/u $d/w $d/m &&
               mount -t overlay overlay -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/m; s=$?; umount $d/m; umount $d; rmdir $d; exit $s"""
    return subprocess.run(["unshare", "-mpn", "--fork", "sh", "-c", probe], capture_output=True, check=False).returncode == 0


pytestmark = [pytest.mark.ours, pytest.mark.slow(240),
              pytest.mark.skipif(not can_copy_the_machine(), reason="needs root, dpkg-deb and overlay mounts")]

# What dpkg and the C library write in the course of any installation.
NOT_OURS = ("var/lib/dpkg/", "var/log/dpkg.log", "var/log/alternatives.log", "var/cache/", "tmp/", "run/utmp", "etc/rc", "proc/", "dev/")


@pytest.fixture(scope="module")
def packages():
    """Two versions of the package."""
    directory = fresh_dir("deb")
    made = []
    for version in ("1.0.0", "1.0.1"):
        done = run([REPO / "etc/debian/build", source_binary(), directory], timeout=200,
                   env={**os.environ, "VERSION": version, "DPKG_DEB_COMPRESSOR_TYPE": "none"})
        made.append(Path(done.stdout.strip()))
    yield made
    remove_dir(directory)


def in_a_copy(script, keep):
    """Runs a shell script as root in a copy of the machine that has `keep` as /packages: what it said, what files it left."""
    directory = fresh_dir("copy")
    copy = f"""set -e
mount -t tmpfs tmpfs {directory}; cd {directory}; mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root
mount -t proc proc root/proc; mount --rbind /dev root/dev; ip link set lo up
rm -f root/usr/sbin/policy-rc.d
mkdir root/packages root/old; mount --bind {keep} root/packages
# not chroot alone, in which invoke-rc.d would do nothing
pivot_root root root/old
cd /; export RUNLEVEL=2 PREVLEVEL=N
status=0; sh -exc "$1" </dev/null >/old{directory}/out 2>&1 || status=$?
cat /old{directory}/out; echo; echo "== left behind"; cd /old{directory}/up; find . -type f -printf '%P\\n'; exit $status"""
    try:
        done = subprocess.run(["unshare", "-mpn", "--fork", "--kill-child", "sh", "-c", copy, "sh", script], capture_output=True,
                              text=True, timeout=200, check=False)
    finally:
        remove_dir(directory)
    said, _, left = done.stdout.partition("\n== left behind\n")
    assert done.returncode == 0, done.stdout + done.stderr
    return said, [path for path in left.splitlines() if not path.startswith(NOT_OURS)]


ASK = "su postgres -s /bin/sh -c \"psql -AtX -h /run/pgbouncer -p 6432 -U pgbouncer pgbouncer -c 'SHOW VERSION'\""


def test_install_start_upgrade_remove(packages):
    old, new = packages
    said, left = in_a_copy(f"""
        dpkg --purge pgbouncer || true
        dpkg -i /packages/{old.name}
        test "$(dpkg-query -W -f '${{Version}}' pgusher)" = 1.0.0
        pgbouncer --check -u postgres /etc/pgbouncer/pgbouncer.ini
        # a first installation starts nothing
        ! /etc/init.d/pgbouncer status
        /etc/init.d/pgbouncer start
        {ASK}
        test "$(stat -c '%U %a' /etc/pgbouncer/userlist.txt)" = "postgres 640"
        pid=$(cat /run/pgbouncer/pgbouncer.pid)
        sed -i 's/^default_pool_size = .*/default_pool_size = 7/' /etc/pgbouncer/pgbouncer.ini
        dpkg -i /packages/{new.name}
        test "$(dpkg-query -W -f '${{Version}}' pgusher)" = 1.0.1
        grep -x 'default_pool_size = 7' /etc/pgbouncer/pgbouncer.ini
        test "$(cat /run/pgbouncer/pgbouncer.pid)" != $pid
        ! kill -0 $pid
        {ASK}
        pid=$(cat /run/pgbouncer/pgbouncer.pid)
        dpkg -r pgusher
        ! kill -0 $pid
        ! test -e /usr/sbin/pgbouncer
        ! test -e /run/pgbouncer
    """, keep=old.parent)
    assert said.count("\nPgBouncer 1.25.2") >= 2 and "pgbouncer started (pid " in said
    assert sorted(left) == ["etc/default/pgbouncer", "etc/init.d/pgbouncer", "etc/logrotate.d/pgbouncer",
                            "etc/pgbouncer/pgbouncer.ini", "etc/pgbouncer/userlist.txt", "var/log/pgbouncer/pgbouncer.log"]


def test_two_lines_and_a_minute(packages, pg):
    """On a machine with a PostgreSQL: install, name the database, name the user, start, be served; then remove."""
    old, _ = packages
    said, left = in_a_copy(f"""
        dpkg --purge pgbouncer || true
        as_postgres() {{ su postgres -s /bin/sh -c "$1"; }}
        echo hush >/tmp/password
        as_postgres '{pg.bin}/initdb -D /tmp/cluster -A scram-sha-256 --pwfile /tmp/password --no-sync >/tmp/initdb'
        as_postgres "{pg.bin}/pg_ctl -D /tmp/cluster -w -o '-c fsync=off -c unix_socket_directories=/tmp' -l /tmp/postgres start"
        begin=$(date +%s%N)
        dpkg -i /packages/{old.name}
        sed -i 's/^enterprisescanner = .*/shop = host=127.0.0.1 dbname=postgres/' /etc/pgbouncer/pgbouncer.ini
        echo '"postgres" "hush"' >>/etc/pgbouncer/userlist.txt
        /etc/init.d/pgbouncer start
        PGPASSWORD=hush {pg.bin}/psql -AtXh 127.0.0.1 -p 6432 -U postgres shop -c "SELECT 'served as ' || current_user"
        echo "it took $((($(date +%s%N) - begin) / 1000000)) ms"
        dpkg -r pgusher
        as_postgres '{pg.bin}/pg_ctl -D /tmp/cluster -m immediate stop'
    """, keep=old.parent)
    took_ms = int(re.search(r"^it took (\d+) ms$", said, re.M)[1])
    assert "\nserved as postgres\n" in said and took_ms < 60_000
    print(f"from the package to a served query: {took_ms} ms")
    assert sorted(left) == ["etc/default/pgbouncer", "etc/init.d/pgbouncer", "etc/logrotate.d/pgbouncer",
                            "etc/pgbouncer/pgbouncer.ini", "etc/pgbouncer/userlist.txt", "var/log/pgbouncer/pgbouncer.log"]


def test_purge_leaves_nothing(packages):
    old, _ = packages
    _, left = in_a_copy(f"""
        dpkg --purge pgbouncer || true
        dpkg -i /packages/{old.name}
        /etc/init.d/pgbouncer start
        dpkg --purge pgusher
        ! test -e /etc/pgbouncer -o -e /var/log/pgbouncer
    """, keep=old.parent)
    assert left == []


@pytest.mark.skipif(not Path("/usr/sbin/pgbouncer").exists(), reason="needs Debian's package of PgBouncer on this machine")
def test_it_takes_the_place_of_debians_package(packages):
    old, _ = packages
    said, _ = in_a_copy(f"""
        sed -i 's/^;*default_pool_size = .*/default_pool_size = 9/' /etc/pgbouncer/pgbouncer.ini
        dpkg --force-confold -i /packages/{old.name}
        test "$(dpkg-query -W -f '${{db:Status-Status}}' pgusher)" = installed
        test "$(dpkg-query -W -f '${{db:Status-Status}}' pgbouncer)" != installed
        pgbouncer -V | head -n 2
        grep -x 'default_pool_size = 9' /etc/pgbouncer/pgbouncer.ini
        /etc/init.d/pgbouncer start
        test -s /run/pgbouncer/pgbouncer.pid || test -s /run/postgresql/pgbouncer.pid
    """, keep=old.parent)
    assert "\npgusher " in said


def test_manual_pages_have_no_faults(packages):
    for page in ("etc/man/pgbouncer.1", "etc/man/pgbouncer.ini.5"):
        done = run(["groff", "-man", "-Tutf8", "-ww", "-z", REPO / page], check=False) if shutil.which("groff") else None
        if done is None:
            pytest.skip("needs groff")
        assert done.returncode == 0 and done.stderr == "", done.stderr
