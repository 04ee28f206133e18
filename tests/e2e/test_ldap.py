"""auth_type=ldap and ldap access rules against a real directory: simple and search modes, plain, ldaps and StartTLS."""

import os
import socket
import threading
import time

import pytest

from support import slapd, system
from support.dns import DnsServer
from support.slapd import BASE, ROOT, ROOT_PASSWORD
from support.wire import ServerError

pytestmark = [pytest.mark.skipif(not slapd.SLAPD.exists(), reason="no slapd on this machine"), pytest.mark.since("1.25")]

PEOPLE = f'ldapprefix=uid= ldapsuffix=",ou=people,{BASE}"'
SEARCH = f'ldapbasedn="{BASE}"'


@pytest.fixture(scope="module")
def directory():
    server = slapd.Slapd()
    yield server
    server.remove()


@pytest.fixture
def ldap(make_pooler, directory, monkeypatch):
    """A pooler with these options; `{server}`, `{port}` and `{tls_port}` are the directory's."""
    monkeypatch.setenv("LDAPCONF", str(directory.trust()))

    def make(options, auth_type="ldap", rules=None, **what):
        filled = options.replace("{server}", "ldapserver=127.0.0.1").replace("{port}", f"ldapport={directory.port}")
        filled = filled.replace("{tls_port}", f"ldapport={directory.tls_port}")
        ini = {"auth_type": auth_type, "auth_ldap_options": filled or None, **what.pop("ini", {})}
        pooler = make_pooler(start=False, ini=ini, **{"userlist": {}, **what})
        pooler.databases["forced"] = pooler.backend(user="trustuser")
        if rules is not None:
            (pooler.dir / "hba.conf").write_text(rules.replace("LDAP", "ldap " + filled))
            pooler.ini |= {"auth_type": "hba", "auth_hba_file": pooler.dir / "hba.conf", "auth_ldap_options": None}
        pooler.write()
        return pooler.start()

    return make


def refused(pooler, user, password, log=None, text="LDAP authentication failed", database="p0"):
    with pytest.raises(ServerError) as error:
        pooler.login(user, database, password=password)
    assert list(error.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", text)]
    if log:
        pooler.wait_log(log)


@pytest.mark.ours
def test_names_that_are_made_up_leave_nothing_behind(ldap):
    pooler = ldap("{server} {port} " + PEOPLE, auth_type="hba", rules="host pgbouncer all all trust\nhost all all all LDAP\n",
                  userlist={"admin": ""})
    for number in range(5):
        refused(pooler, f"madeup{number}", "guess")
    assert not [row for show in ("USERS", "POOLS") for row in pooler.show(show) if "madeup" in str(row)]


def test_simple_mode(ldap):
    """The password that was accepted opens the servers as well."""
    pooler = ldap("{server} {port} " + PEOPLE)
    for user, password in (("app", "app-secret"), ("plainuser", "plain-secret")):
        with pooler.login(user, password=password) as wire:
            assert wire.auth_requests == [3, 0]
            assert wire.query("SELECT current_user").value == user
    dn = f"uid=app,ou=people,{BASE}"
    refused(pooler, "app", "wrong", f"WARNING LDAP login failed for user {dn} on server 127.0.0.1: Invalid credentials")
    refused(pooler, "nosuch", "app-secret", "Invalid credentials")
    refused(pooler, "app", "", text="empty password returned by client")
    refused(pooler, "app", "x" * 65_531)
    refused(pooler, "app", "x" * 70_000)
    refused(pooler, "app", "wrong", database="nowhere")
    refused(pooler, "app", "app-secret", database="nowhere", text="no such database: nowhere")
    with pooler.login("app2", "forced", password="app2-secret") as wire:
        assert wire.query("SELECT current_user").value == "trustuser"
    assert "app-secret" not in pooler.log()


def test_search_mode(ldap):
    pooler = ldap("{server}, {port}, " + SEARCH)
    with pooler.login("app", password="app-secret") as wire:
        assert wire.query("SELECT current_user").value == "app"
    refused(pooler, "app", "wrong", f"LDAP login failed for user uid=app,ou=people,{BASE} on server 127.0.0.1: Invalid credentials")
    refused(pooler, "nosuch", "x", 'WARNING LDAP user "nosuch" does not exist')
    refused(pooler, "twin", "twin", 'LDAP user "twin" is not unique')
    refused(pooler, "hidden", "hidden", 'LDAP user "hidden" does not exist')
    for name in ("*", "a*", "(uid=app)", "app)(cn=*", "a\\2a", "a/b"):
        refused(pooler, name, "app-secret", "invalid character in user name for LDAP authentication")


def test_search_by_a_user_of_its_own(ldap):
    pooler = ldap(f"{{server}} {{port}} {SEARCH} ldapbinddn=\"{ROOT}\" ldapbindpasswd={ROOT_PASSWORD} ldapsearchattribute=cn")
    pooler.login("hidden", "forced", password="hidden").close()
    assert ROOT_PASSWORD not in pooler.log()


@pytest.mark.ours
def test_password_of_the_search_is_not_shown(ldap):
    pooler = ldap(f"{{server}} {{port}} {SEARCH} ldapbinddn=\"{ROOT}\" ldapbindpasswd={ROOT_PASSWORD}",
                  rules="host all all all trust\n", userlist={"admin": "x"})
    pooler.admin(f"SET auth_ldap_options = 'ldapbindpasswd={ROOT_PASSWORD} ldapserver=x'")
    assert pooler.setting("auth_ldap_options") == "ldapbindpasswd=... ldapserver=x"
    assert ROOT_PASSWORD not in pooler.log()


def test_search_by_a_user_that_is_refused(ldap):
    pooler = ldap(f"{{server}} {{port}} {SEARCH} ldapbinddn=\"{ROOT}\" ldapbindpasswd=wrong")
    refused(pooler, "app", "app-secret", f'could not perform initial LDAP bind for ldapbinddn "{ROOT}"')


@pytest.mark.parametrize("options, user", [
    ('ldapsearchfilter="(|(uid=$username)(mail=$username))" ' + SEARCH, "app@example.org"),
    ("ldapsearchattribute=mail " + SEARCH, "app@example.org"),
    (f'ldapurl="ldap://127.0.0.1:{{number}}/ou=people,{BASE}?mail?one"', "app@example.org"),
    (f'ldapurl="ldap://127.0.0.1:{{number}}/ou=people,{BASE}???(uid=$username)"', "twin"),
    (SEARCH + " " + "ldapsearchfilter=\"(|(uid=$username)" + "".join(f"(cn=nobody-{n:04d})" for n in range(40)) + ')"', "app"),
])
def test_filters_attributes_and_urls(ldap, directory, options, user):
    pooler = ldap("{server} {port} " + options.replace("{number}", str(directory.port)))
    pooler.login(user, "forced", password="twin" if user == "twin" else "app-secret").close()


def test_bad_search(ldap):
    pooler = ldap('{server} {port} ldapbasedn="dc=nowhere,dc=org"')
    refused(pooler, "app", "app-secret", 'could not search LDAP for filter "(uid=app)" on server "127.0.0.1": No such object')


@pytest.mark.parametrize("security", ["ldapscheme=ldaps {tls_port}", "ldaptls=1 {port}"])
def test_encrypted(ldap, directory, security):
    pooler = ldap("{server} " + security + " " + SEARCH)
    pooler.login("app", password="app-secret").close()
    refused(pooler, "app", "wrong", "Invalid credentials")


@pytest.mark.ours
@pytest.mark.parametrize("security, log", [
    ("ldapscheme=ldaps {tls_port}", "on server \"127.0.0.1\": Can't contact LDAP server"),
    ("ldaptls=1 {port}", "could not start LDAP TLS session: "),
])
def test_certificates_of_directories(ldap, directory, security, log):
    """What the machine's own LDAP configuration says counts."""
    pooler = ldap("{server} " + security + " " + SEARCH)
    pooler.login("app", "forced", password="app-secret").close()
    directory.trust(ca="other-ca")
    refused(pooler, "app", "app-secret", log)
    pooler.wait_log("UnknownIssuer")
    directory.trust(ca="other-ca", reqcert="never")
    pooler.login("app", "forced", password="app-secret").close()


def test_comments_behind_rules(ldap):
    pooler = ldap("{server} {port} " + PEOPLE, auth_type="hba", rules="host all all all LDAP # people\n", userlist={})
    pooler.login("app", password="app-secret").close()


def test_next_server_is_tried(ldap):
    pooler = ldap('ldapserver="127.0.0.2 127.0.0.1" {port} ' + PEOPLE)
    pooler.login("app", password="app-secret").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a DNS server needs port 53")
def test_servers_from_dns(ldap, directory):
    """Without a server the directory's own records name them, the preferred ones first."""
    server = DnsServer()
    try:
        server.services["_ldap._tcp.example.org"] = [(20, 0, directory.port, "localhost"), (10, 0, system.free_port(), "localhost")]
        pooler = ldap(SEARCH, ini={"resolv_conf": server.resolv_conf})
        pooler.login("app", password="app-secret").close()
        assert server.count("_ldap._tcp.example.org", "SRV") == 1
        server.services.clear()
        refused(pooler, "app", "app-secret", "no LDAP server is found in DNS: _ldap._tcp.example.org.")
    finally:
        server.stop()


def test_no_server_at_all(ldap):
    pooler = ldap(f"ldapserver=127.0.0.1 ldapport={system.free_port()} " + PEOPLE)
    refused(pooler, "app", "app-secret", f"LDAP login failed for user uid=app,ou=people,{BASE} on server 127.0.0.1: Can't contact LDAP server")


@pytest.mark.parametrize("options, log", [
    ("", "auth_ldap_options is null"),
    ("nonsense=1", 'invalid LDAP option: "nonsense"'),
    ("ldapserver=x", "LDAP authentication needs ldapbasedn, ldapprefix, or ldapsuffix"),
    ("ldapprefix=x ldapbasedn=y", "together with ldapprefix"),
    ("ldapbasedn=x ldapsearchattribute=a ldapsearchfilter=b", "cannot use ldapsearchattribute together with ldapsearchfilter"),
])
def test_options_that_make_no_sense(ldap, options, log):
    pooler = ldap(options)
    refused(pooler, "app", "app-secret", f"WARNING {log}" if not log.startswith("together") else log)


def test_rules(ldap):
    """Users of such rules need no record in auth_file."""
    pooler = ldap("{server} {port} " + PEOPLE, userlist={"md5user": "md5-secret"},
                  rules="local all all trust\nhost all app,app2,admin,nosuch all LDAP\nhost all all all md5\n")
    pooler.login("app", password="app-secret").close()
    pooler.login("md5user", password="md5-secret").close()
    refused(pooler, "nosuch", "x")
    refused(pooler, "other", "x", text="password authentication failed")
    assert "no such user: nosuch" not in pooler.log()
    pooler.login("admin", "pgbouncer", password="SecurePass2024!").close()
    refused(pooler, "app", "app-secret", database="pgbouncer", text="not allowed")


def test_rules_for_replication(ldap):
    """Their users need a record, for such rules are not looked up before the user is."""
    pooler = ldap("{server} {port} " + PEOPLE, userlist={"app": ""}, rules="local all all trust\nhost replication all all LDAP\n")
    pooler.login("app", password="app-secret", replication="true").close()
    with pytest.raises(ServerError, match="LDAP authentication failed"):
        pooler.login("app", password="wrong", replication="true")


def test_not_together_with_an_entry_that_looks_users_up(ldap):
    """The global auth_user counts for entries for which somebody was looked up."""
    pooler = ldap("{server} {port} " + PEOPLE, rules="host all app,admin all LDAP\nhost all all all md5\n",
                  ini={"auth_user": "admin", "auth_query": "SELECT $1::text, 'x'"}, userlist={"admin": "SecurePass2024!"})
    pooler.login("app", password="app-secret").close()
    pooler.login("stranger", "forced", password="x").close()
    pooler.login("app", password="app-secret").close()
    refused(pooler, "app", "app-secret", "LDAP can't be used together with database authentication", text="bouncer config error",
            database="forced")


@pytest.mark.ours
def test_mute_directory_holds_up_nobody_else(ldap):
    """Clients in the middle of queries do not notice that others wait for a directory."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", system.free_port()))
        mute.listen(64)
        options = f"ldapserver=127.0.0.1 ldapport={mute.getsockname()[1]} {PEOPLE}"
        pooler = ldap(options, userlist={"trustuser": "x"}, rules="host all trustuser all trust\nhost all all all LDAP\n")
        ended = []

        def log_in():
            with pytest.raises(ServerError, match="LDAP authentication failed"):
                pooler.login("app", password="app-secret")
            ended.append(True)

        with pooler.login("trustuser") as wire:
            threads = [threading.Thread(target=log_in) for _ in range(10)]
            for thread in threads:
                thread.start()
            slowest = 0.0
            while len(ended) < 10 and any(t.is_alive() for t in threads):
                start = time.monotonic()
                wire.query("SELECT 1")
                slowest = max(slowest, time.monotonic() - start)
            for thread in threads:
                thread.join()
        assert len(ended) == 10 and slowest < 1.0
        pooler.wait_log("timed out")
