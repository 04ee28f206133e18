"""Access rules (auth_type=hba): which rule decides, by which method, and the texts of refusals."""

import os
import pwd
import signal
import stat

import pytest

from support import system
from support.wire import ServerError, Wire

LOCAL = "local all all trust\nhost pgbouncer admin 127.0.0.1/32 trust\n"
DAEMON = system.daemon_user() or pwd.getpwuid(os.geteuid())


@pytest.fixture
def hba(make_pooler):
    """A pooler with these rules, and user name maps if any."""
    def make(rules, maps=None, before=LOCAL, forced=False, **what):
        pooler = make_pooler(start=False, **{"ini": {"auth_type": "hba"}, **what})
        if forced:
            pooler.databases = {name: pooler.backend(user="trustuser") for name in pooler.databases}
        pooler.ini["auth_hba_file"] = pooler.dir / "hba.conf"
        (pooler.dir / "hba.conf").write_text(before + rules)
        if maps is not None:
            pooler.ini["auth_ident_file"] = pooler.dir / "ident.conf"
            (pooler.dir / "ident.conf").write_text(maps)
        pooler.write()
        return pooler.start()

    return make


def hang_up(pooler, line):
    """SIGHUP for a pooler whose rules let nobody look; `line` is logged by it."""
    pooler.signal(signal.SIGHUP)
    pooler.wait_log(line)


def refused(pooler, text, user="app", database="p0", **more):
    with pytest.raises(ServerError) as error:
        pooler.login(user, database, **more)
    assert list(error.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", text)]


@pytest.mark.parametrize("method, asked", [("trust", []), ("password", [3]), ("md5", [5]), ("scram-sha-256", [10, 11, 12])])
def test_methods(hba, method, asked):
    pooler = hba(f"host all all all {method}\n")
    with pooler.login("app") as wire:
        assert wire.auth_requests == [*asked, 0]
        assert wire.query("SELECT current_user").value == "app"
    text = {"trust": '"trust" authentication failed', "scram-sha-256": "SASL authentication failed"}
    refused(pooler, text.get(method, "password authentication failed"), user="nosuch", password="x")
    pooler.wait_log("no such user: nosuch")


def test_rules_are_matched_in_order(hba):
    pooler = hba('host p0 app,app2 127.0.0.1/32 reject\nhost "p0" "md5user" 127.0.0.0 255.0.0.0 md5\n'
                 "hostssl all all all trust\nhostnossl all plainuser all password\nhost p1 all 10.0.0.0/8 trust\n"
                 "host sameuser all ::/0 trust\n")
    refused(pooler, "login rejected")
    refused(pooler, "login rejected", user="app2")
    refused(pooler, "login rejected", user="app2", password="wrong")
    assert pooler.login("md5user").auth_requests == [5, 0]
    assert pooler.login("plainuser").auth_requests == [3, 0]
    refused(pooler, "no authentication method is found", user="app", database="p1")
    refused(pooler, "no authentication method is found", user="nosuch")
    pooler.wait_log("closing because: no authentication method is found")


def test_unknown_database_is_told_after_the_rule(hba):
    pooler = hba("host p0,nowhere app all md5\n")
    refused(pooler, "no such database: nowhere", database="nowhere")
    refused(pooler, "password authentication failed", database="nowhere", password="wrong")
    refused(pooler, "no authentication method is found", database="elsewhere")


def test_names_from_files(hba):
    pooler = hba("host @names/databases @users all trust\n")
    refused(pooler, "no authentication method is found")
    pooler.wait_log("could not parse hba config line 3")
    (pooler.dir / "names").mkdir(mode=0o755)
    (pooler.dir / "names").chmod(0o755)
    (pooler.dir / "names/databases").write_text("# databases\np1\n\"p0\" # and another one\n")
    (pooler.dir / "users").write_text("app, app2\nmd5user\n")
    pooler.reload()
    for user in ("app", "app2", "md5user"):
        pooler.login(user).close()
    refused(pooler, "no authentication method is found", user="plainuser")


def test_lines_of_files_end_with_their_list(hba):
    """What stands behind the list is not looked at, not even for mistakes."""
    pooler = hba("host all @users 127.0.0.0/8 trust\n", before="host pgbouncer admin 127.0.0.1/32 trust\n")
    (pooler.dir / "users").write_text('app app2\n"md5user", @more "x\n')
    (pooler.dir / "more").write_text("plainuser trustuser,\n")
    pooler.reload()
    for user in ("app", "md5user", "plainuser"):
        pooler.login(user).close()
    for user in ("app2", "x", "trustuser"):
        with pytest.raises(ServerError):
            pooler.login(user)


def test_masks_as_numbers_are_read(hba):
    pooler = hba("host p0 app 127.0.0.0/+8 trust\nhost p0 app2 127.0.0.0/8x trust\nhost p0 app2 127.0.0.0/8\n",
                 before="host pgbouncer admin 127.0.0.1/32 trust\n")
    pooler.login("app").close()
    pooler.wait_log("WARNING hba line 3: invalid mask")
    pooler.wait_log("WARNING hba line 4: unsupported method: buf=127.0.0.0\n")


def test_keywords_in_the_place_of_users(hba):
    pooler = hba("host all sameuser 127.0.0.1/32 trust\nhost all samerole,app 127.0.0.1/32 trust\n"
                 "host all samegroup 127.0.0.1/32 trust\nhost all replication 127.0.0.1/32 trust\n",
                 userlist={"app": "", "sameuser": "", "samerole": "", "replication": "", "admin": "SecurePass2024!"})
    for line, word in ((4, "samerole"), (5, "samegroup"), (6, "replication")):
        pooler.wait_log(f"WARNING {word} is not supported")
        pooler.wait_log(f"WARNING could not parse hba config line {line}")
    refused(pooler, "no such database: app", database="app")
    for user in ("app", "sameuser", "samerole", "replication"):
        refused(pooler, "no authentication method is found", user=user)


def test_bad_lines_are_left_out_with_warnings(hba):
    pooler = hba("hosts all all all trust\nhost all all all krb5\nhost all all 10.0.0.1/8 trust\nhost all samegroup all trust\n"
                 "host samerole all all trust\nhost all app all trust map=none\nhost all app all trust\n", before="")
    directory = pooler.dir
    for line in ("hba line 1: unknown type", "could not parse hba config line 1",
                 "hba line 2: unsupported method: buf=krb5", "could not parse hba config line 2",
                 f"address does not match mask in {directory}/hba.conf line #3: 10.0.0.1 / 255.0.0.0",
                 "samerole is not supported", "could not parse hba config line 5"):
        pooler.wait_log(f"WARNING {line}")
    if pooler.binary.version >= (1, 23):
        pooler.wait_log("WARNING hba line 6: Ident map none is not found in ident config file")
    pooler.login("app").close()


def test_reload_changes_the_rules(hba):
    pooler = hba("host all app all reject\n")
    refused(pooler, "login rejected")
    (pooler.dir / "hba.conf").write_text(LOCAL + "host all app all trust\n")
    refused(pooler, "login rejected")
    pooler.reload()
    with pooler.login("app") as kept:
        (pooler.dir / "hba.conf").unlink()
        hang_up(pooler, f"ERROR could not open hba config file {pooler.dir}/hba.conf: No such file or directory")
        assert kept.query("SELECT 1").value == "1"
    refused(pooler, "no authentication method is found")


@pytest.mark.since("1.25")
def test_rules_that_were_never_read(make_pooler):
    pooler = make_pooler()
    pooler.admin("SET auth_type = 'hba'")
    refused(pooler, "no authentication method is found")
    refused(pooler, "no authentication method is found", user="admin", database="pgbouncer")


def test_console_goes_by_the_rules_too(hba):
    pooler = hba("host pgbouncer stats all md5\n", before="", ini={"auth_type": "hba"})
    pooler.login("stats", "pgbouncer").close()
    refused(pooler, "password authentication failed", user="stats", database="pgbouncer", password="wrong")
    refused(pooler, "no authentication method is found", user="admin", database="pgbouncer")
    out = system.run([pooler.pg.bin / "psql", "-h", pooler.dir, "-p", pooler.port, "-U", "pgbouncer", "-d", "pgbouncer", "-Atc", "SHOW VERSION"],
                     switch_user=True)
    assert out.stdout.startswith("PgBouncer 1.")


@pytest.mark.since("1.23")
def test_certificates_need_tls(hba):
    pooler = hba("host all all all cert\n")
    refused(pooler, "certificate authentication failed")
    pooler.wait_log("TLS connection required")


def as_daemon(pooler, user, database="p0"):
    """psql over the Unix socket, run as the daemon's user of the operating system."""
    return system.run([pooler.pg.bin / "psql", "-h", pooler.dir, "-p", pooler.port, "-U", user, "-d", database, "-Atc", "SELECT current_user"],
                      switch_user=True, check=False)


def test_peer_is_the_systems_user(hba):
    pooler = hba("", before="local all all peer\nhost pgbouncer admin all trust\nhost all all all peer\n",
                 userlist={DAEMON.pw_name: "", "app": "app-secret", "admin": "a"}, forced=True)
    assert as_daemon(pooler, DAEMON.pw_name).stdout == "trustuser\n"
    assert "FATAL:  unix socket login rejected" in as_daemon(pooler, "app").stderr
    refused(pooler, "unix socket login rejected")
    with Wire(path=pooler.unix_path) as wire, pytest.raises(ServerError, match="FATAL 08P01: unix socket login rejected"):
        wire.login("nosuch", "p0")


@pytest.mark.since("1.23")
def test_peer_with_a_map(hba):
    maps = f'# system user, database user\nm "{DAEMON.pw_name}" app # yes\nm nobody all\nother {DAEMON.pw_name} all\n'
    pooler = hba("", maps=maps, before="local p0 all peer map=m\nlocal p1 all peer map=other\n", userlist={"app": "app-secret", "app2": ""},
                 forced=True)
    assert as_daemon(pooler, "app").stdout == "trustuser\n"
    assert "FATAL:  unix socket login rejected" in as_daemon(pooler, "app2").stderr
    pooler.wait_log("ERROR C-")
    pooler.wait_log("ident map m cannot be matched")
    assert as_daemon(pooler, "app2", "p1").stdout == "trustuser\n"
    # users must be known, whatever the map says
    assert "FATAL:  unix socket login rejected" in as_daemon(pooler, "nosuch", "p1").stderr


@pytest.mark.since("1.23")
def test_bad_maps_are_left_out_with_warnings(hba):
    pooler = hba("", maps="m\nm a b c\nm a b\n", before="local all all trust\n")
    for line in ("could not parse ident config line 1", "ident line 2: unsupported parameters", "could not parse ident config line 2"):
        pooler.wait_log(f"WARNING {line}")
    (pooler.dir / "ident.conf").unlink()
    hang_up(pooler, f"ERROR could not open ident config file {pooler.dir}/ident.conf: No such file or directory")


def test_users_of_rules_may_be_looked_up(hba):
    pooler = hba("host p0 all all md5\nhost p1 all all reject\n", userlist={"admin": "SecurePass2024!"},
                 ini={"auth_type": "hba", "auth_user": "admin", "auth_query": "SELECT $1::text, 'from-query'"}, forced=True)
    pooler.login("whoever", password="from-query").close()
    refused(pooler, "login rejected", user="whoever", database="p1", password="from-query")


def test_files_need_not_be_regular(hba):
    """A rules file behind a symbolic link is as good as any."""
    pooler = hba("host all app all trust\n")
    (pooler.dir / "hba.conf").rename(pooler.dir / "real.conf")
    (pooler.dir / "hba.conf").symlink_to("real.conf")
    assert stat.S_ISLNK(os.lstat(pooler.dir / "hba.conf").st_mode)
    pooler.reload()
    pooler.login("app").close()


@pytest.mark.since("1.23")
def test_physical_replication_needs_its_keyword(hba):
    pooler = hba("host all all all trust\nhost replication app all trust\n")
    pooler.login("app", replication="true").close()
    refused(pooler, "no authentication method is found", user="app2", replication="true")
    # logical replication goes by the name of its database
    pooler.login("app2", replication="database").close()
