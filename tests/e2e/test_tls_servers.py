"""TLS towards servers: who is asked, what is checked, and what a server cannot do with its answer."""

import re
import socket
import ssl
import struct
import threading

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from support import system
from support.certs import self_signed, write
from support.load import Background
from support.middle import Middleman
from support.postgres import Postgres
from support.wire import ServerError

INFO = "TLSv1.3/TLS_AES_256_GCM_SHA384"


class SslPostgres(Postgres):
    """A PostgreSQL with TLS, whose certificate the tests may change."""

    def __init__(self, ca):
        super().__init__()
        self.names = ("localhost", "127.0.0.1")
        write(self.data / "root.crt", ca.file.read_bytes())
        self.show(ca.issue("db.example", self.names))
        self.sql("CREATE ROLE certuser LOGIN")
        hba = self.data / "pg_hba.conf"
        hba.write_text("hostssl all certuser 127.0.0.0/8 cert\n" + hba.read_text())
        for name, value in (("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "root.crt"), ("ssl", "on")):
            self.sql(f"ALTER SYSTEM SET {name} = '{value}'")
        self.read_again()

    def show(self, pair):
        write(self.data / "server.crt", pair.cert.read_bytes())
        write(self.data / "server.key", pair.key_file.read_bytes())

    def read_again(self):
        self.sql("SELECT pg_reload_conf()")
        system.until(self._speaks_tls, what="PostgreSQL has read its certificate")

    def _speaks_tls(self):
        """The certificate that it shows is the one in the file."""
        wanted = x509.load_pem_x509_certificate((self.data / "server.crt").read_bytes())
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall(struct.pack("!II", 8, 80877103))
                if sock.recv(1) != b"S":
                    return False
                with context.wrap_socket(sock, server_hostname="x") as tls:
                    return x509.load_der_x509_certificate(tls.getpeercert(True)) == wanted
        except OSError:
            return False


@pytest.fixture(scope="module")
def ssl_pg(ca):
    cluster = SslPostgres(ca)
    yield cluster
    cluster.remove()


@pytest.fixture
def pooler_to(make_pooler, ca):
    """A pooler before a PostgreSQL."""
    def make(cluster, mode, host="127.0.0.1", users=None, **ini):
        database = {"host": host, "port": cluster.port, "dbname": "p0", **(users or {})}
        settings = {"server_tls_sslmode": mode, "server_tls_ca_file": ca.file if mode.startswith("verify") else None,
                    "query_wait_timeout": 4, "server_login_retry": 1, **ini}
        return make_pooler(databases={"p0": database}, ini=settings)

    return make


def server_tls(pooler):
    return [row["tls"] for row in pooler.show("SERVERS")]


def serves(pooler):
    with pooler.login() as wire:
        return wire.query("SELECT 1").value == "1"


def refuses(pooler, line):
    """No server can be had, and the log says why."""
    pooler.admin("SET query_wait_timeout = 1")
    with pytest.raises((ServerError, psycopg.OperationalError)):
        serves(pooler)
    pooler.wait_log(line)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_modes(pooler_to, ssl_pg, mode):
    pooler = pooler_to(ssl_pg, mode)
    with pooler.login() as wire:
        used = wire.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").value
        assert used == ("f" if mode == "disable" else "t")
        assert server_tls(pooler) == ["" if mode == "disable" else INFO]
    established = f"SSL established: {INFO}"
    assert (established in pooler.log()) == (mode != "disable")
    if mode != "disable":
        lines = pooler.log()
        assert lines.index("new connection to server") < lines.index(established)


@pytest.mark.parametrize("mode", ["allow", "prefer"])
def test_a_server_without_tls_is_taken_as_it_is(pooler_to, pg, mode):
    pooler = pooler_to(pg, mode)
    assert serves(pooler)
    assert server_tls(pooler) == [""]


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_a_server_without_tls_is_refused(pooler_to, pg, mode):
    pooler = pooler_to(pg, mode)
    refuses(pooler, "closing because: server refused SSL")


def test_unix_sockets_are_never_encrypted(pooler_to, pg):
    pooler = pooler_to(pg, "verify-full", host=str(pg.dir))
    with pooler.login("trustuser") as wire:
        assert wire.query("SELECT 1").value == "1"
    assert server_tls(pooler) == [""]


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_another_authority(pooler_to, ssl_pg, stranger, mode):
    pooler = pooler_to(ssl_pg, mode, server_tls_ca_file=stranger.file)
    refuses(pooler, re.compile(r"WARNING .*TLS handshake error: .*certificate verify failed"))


def test_without_a_file_the_systems_authorities_count(pooler_to, ssl_pg):
    pooler = pooler_to(ssl_pg, "verify-ca", server_tls_ca_file=None)
    refuses(pooler, re.compile(r"WARNING .*TLS handshake error: .*certificate verify failed"))


@pytest.mark.parametrize("mode", ["allow", "prefer", "require"])
def test_without_verification_the_authority_does_not_matter(pooler_to, ssl_pg, stranger, mode):
    pooler = pooler_to(ssl_pg, mode, server_tls_ca_file=stranger.file)
    assert serves(pooler)
    assert server_tls(pooler) == [INFO]


@pytest.mark.parametrize("host, mode, good", [
    ("localhost", "verify-full", True),
    ("127.0.0.1", "verify-full", True),
    ("127.0.0.2", "verify-full", False),
    ("127.0.0.2", "verify-ca", True),
])
def test_names_and_addresses(pooler_to, ssl_pg, host, mode, good):
    pooler = pooler_to(ssl_pg, mode, host=host)
    if good:
        assert serves(pooler)
    else:
        refuses(pooler, re.compile(r"TLS handshake error: .*not present in server certificate"))


@pytest.mark.since("1.24")
def test_the_item_of_the_list_counts(pooler_to, ssl_pg):
    pooler = pooler_to(ssl_pg, "verify-full", host="127.0.0.2,localhost", users={"load_balance_hosts": "disable"},
                       query_wait_timeout=20)
    assert serves(pooler)
    assert "not present in server certificate" in pooler.log()


@pytest.mark.parametrize("common_name, names, days, mode, good", [
    ("127.0.0.1", (), (-1, 30), "verify-full", True),
    ("*.example", ("127.0.0.1",), (-1, 30), "verify-full", True),
    ("127.0.0.1", ("elsewhere",), (-1, 30), "verify-full", True),
    ("elsewhere", ("elsewhere",), (-1, 30), "verify-full", False),
    ("localhost", ("127.0.0.1",), (-30, -1), "verify-full", False),
    ("localhost", ("127.0.0.1",), (-30, -1), "verify-ca", False),
    ("localhost", ("127.0.0.1",), (-30, -1), "require", True),
    ("localhost", ("127.0.0.1",), (2, 30), "verify-ca", False),
])
def test_certificates_of_servers(pooler_to, ssl_pg, ca, common_name, names, days, mode, good):
    ssl_pg.show(ca.issue(common_name, names, days))
    ssl_pg.read_again()
    pooler = pooler_to(ssl_pg, mode)
    try:
        if good:
            assert serves(pooler)
        else:
            refuses(pooler, re.compile(r"WARNING .*TLS handshake error: "))
            assert "certificate verify failed" in pooler.log() or not pooler.binary.ours
    finally:
        ssl_pg.show(ca.issue("db.example", ssl_pg.names))
        ssl_pg.read_again()


@pytest.mark.parametrize("kind", ["self-signed", "version 1", "may issue others", "rsa"])
@pytest.mark.parametrize("mode", ["prefer", "verify-ca", "verify-full"])
def test_odd_certificates_that_everybody_takes(pooler_to, ssl_pg, ca, mode, kind):
    pairs = {
        "self-signed": lambda: self_signed(ssl_pg.dir, names=ssl_pg.names),
        "version 1": lambda: ca.version1("127.0.0.1"),
        "may issue others": lambda: ca.issue("x", ssl_pg.names, ca=True),
        "rsa": lambda: ca.issue("x", ssl_pg.names, algorithm="rsa"),
    }
    pair = pairs[kind]()
    ssl_pg.show(pair)
    ssl_pg.read_again()
    try:
        more = {"server_tls_ca_file": pair.cert} if kind == "self-signed" else {}
        for protocols in ("tlsv1.3", "tlsv1.2"):
            pooler = pooler_to(ssl_pg, mode, server_tls_protocols=protocols, **more)
            assert serves(pooler), protocols
            assert server_tls(pooler)[0].startswith(protocols.replace("tls", "TLS"))
    finally:
        ssl_pg.show(ca.issue("db.example", ssl_pg.names))
        ssl_pg.read_again()


def test_our_certificate_for_the_server(pooler_to, ssl_pg, ca):
    pair = ca.issue("certuser", usage="client")
    pooler = pooler_to(ssl_pg, "require", users={"user": "certuser"}, server_tls_cert_file=pair.cert, server_tls_key_file=pair.key_file)
    with pooler.login() as wire:
        assert wire.query("SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()").value == "/CN=certuser"
    pooler = pooler_to(ssl_pg, "require", users={"user": "certuser"})
    with pytest.raises(ServerError, match="connection requires a valid client certificate"):
        serves(pooler)


def test_a_server_that_refuses_our_certificate_is_quoted(pooler_to, ssl_pg, stranger):
    """With TLS 1.3 it says so when the handshake is over."""
    pair = stranger.issue("certuser", usage="client")
    pooler = pooler_to(ssl_pg, "require", users={"user": "certuser"}, server_tls_cert_file=pair.cert, server_tls_key_file=pair.key_file)
    pooler.admin("SET query_wait_timeout = 3")
    with pytest.raises(ServerError):
        serves(pooler)
    pooler.wait_log("tlsv1 alert unknown ca")


def test_ciphers_and_versions(pooler_to, ssl_pg):
    pooler = pooler_to(ssl_pg, "require", server_tls_protocols="tlsv1.2", server_tls_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    with pooler.login() as wire:
        assert wire.query("SELECT version || ' ' || cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()").value == \
            "TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256"
        assert server_tls(pooler)[0].startswith("TLSv1.2/ECDHE-ECDSA-AES128-GCM-SHA256/ECDH=")


class FakeServer:
    """Answers an SSLRequest with whatever the test says, and keeps what came."""

    def __init__(self, answer, context=None):
        self.answer, self.context, self.names, self.seen = answer, context, [], []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        if context:
            context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            try:
                self.seen.append(sock.recv(8, socket.MSG_WAITALL))
                sock.sendall(self.answer)
                if self.context:
                    tls = self.context.wrap_socket(sock, server_side=True)
                    self.seen.append((tls.selected_alpn_protocol(), tls.recv(1000)))
                    tls.close()
                else:
                    while sock.recv(1000):
                        pass
            except OSError:
                pass
            sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()


@pytest.mark.parametrize("answer, reason", [
    (b"X", "bad sslreq answer"),
    (b"E", "bad sslreq answer"),
    (b"SR\0\0\0\x08\0\0\0\0", "received unencrypted data after SSL response"),
    (b"NR\0\0\0\x08\0\0\0\0", "received unencrypted data after SSL response"),
])
def test_answers_that_are_none(pooler_to, answer, reason):
    with FakeServer(answer) as fake:
        pooler = pooler_to(fake, "prefer", query_wait_timeout=2)
        refuses(pooler, f"closing because: {reason}")
        assert fake.seen[0] == struct.pack("!II", 8, 80877103)


@pytest.mark.parametrize("mode, host, sent", [
    ("verify-full", "localhost", "localhost"),
    ("verify-full", "127.0.0.1", None),
    ("verify-ca", "localhost", None),
    ("require", "localhost", None),
])
def test_the_name_is_sent_only_to_be_checked(pooler_to, ca, mode, host, sent):
    pair = ca.issue("x", ("localhost", "127.0.0.1"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key_file)
    context.set_alpn_protocols(["postgresql"])
    with FakeServer(b"S", context) as fake:
        pooler = pooler_to(fake, mode, host=host, query_wait_timeout=2)
        with pytest.raises(ServerError):
            serves(pooler)
        assert fake.names[0] == sent
        alpn, startup = fake.seen[1]
        assert alpn is None
        assert b"user\0app\0" in startup


def test_cancels_reach_servers_in_the_clear(pooler_to, ssl_pg):
    pooler = pooler_to(ssl_pg, "require")
    with pooler.connect() as connection:
        def cancel(*_):
            system.until(lambda: ssl_pg.sleeping("pg_sleep(21)"))
            connection.cancel_safe()

        with Background(cancel), pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(21)")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_other_settings_make_servers_anew(pooler_to, ssl_pg, ca):
    pooler = pooler_to(ssl_pg, "require")

    def server():
        with pooler.login() as wire:
            return wire.query("SELECT pg_backend_pid()").value

    first = server()
    pooler.reload()
    assert server() == first, "nothing has changed"
    # the contents of a file alone do not count, its name does
    pooler.ini["server_tls_ca_file"] = ca.file
    pooler.write()
    pooler.reload()
    system.until(lambda: server() != first, what="another CA file, another server")
    second = server()
    pooler.ini["server_tls_sslmode"] = "disable"
    pooler.write()
    pooler.reload()
    system.until(lambda: server() != second)
    system.until(lambda: server_tls(pooler) == [""])
    third = server()
    pooler.admin("SET server_tls_protocols = 'tlsv1.2'")
    system.until(lambda: server() != third)


@pytest.mark.slow(180)
def test_load_with_tls_on_both_sides(pooler_to, ssl_pg, ca):
    pair = ca.issue("localhost", ("localhost", "127.0.0.1"))
    pooler = pooler_to(ssl_pg, "verify-full", client_tls_sslmode="require", client_tls_key_file=pair.key_file,
                       client_tls_cert_file=pair.cert, default_pool_size=4, query_wait_timeout=30)
    def work(background, number):
        with pooler.connect(sslmode="require") as connection:
            n = 0
            while not background.stopping.is_set():
                n += 1
                size = (n * 7919 + number) % 70000
                with connection.transaction():
                    got = connection.execute("SELECT repeat(%s, %s), %s::int", ("ä", size, n)).fetchone()
                assert got == ("ä" * size, n)
                background.count()

    with Background(work, 12) as background:
        for _ in range(12):
            wanted = background.done + 30
            system.until(lambda: background.done >= wanted or background.errors, 30)
            pooler.reload_over_unix()
        for _ in range(5):
            wanted = background.done + 30
            with pooler.unix_console() as console:
                console.query("RECONNECT")
            system.until(lambda: background.done >= wanted or background.errors, 30)
    assert background.done > 400


@pytest.mark.ours
def test_nobody_sits_in_the_middle_of_a_login_to_a_server(pooler_to, ssl_pg, ca, make_pooler):
    """SCRAM towards a server that offers channel binding is bound to its certificate."""
    with Middleman(ssl_pg.port, ca.issue("middle", ("127.0.0.1",))) as middle:
        pooler = pooler_to(middle, "verify-full")
        with pytest.raises(ServerError, match="SCRAM channel binding check failed"):
            serves(pooler)
        # one that checks passwords in another way notices nothing
        with pooler.login("md5user") as wire:
            assert wire.query("SELECT 1").value == "1"


@pytest.mark.ours
@pytest.mark.parametrize("kind", ["ec", "rsa", "ed25519"])
def test_scram_with_servers_of_all_kinds(pooler_to, ssl_pg, ca, kind):
    ssl_pg.show(ca.ed25519("x") if kind == "ed25519" else ca.issue("x", ssl_pg.names, algorithm=kind, hash=hashes.SHA384()))
    ssl_pg.read_again()
    try:
        pooler = pooler_to(ssl_pg, "require")
        assert serves(pooler)
    finally:
        ssl_pg.show(ca.issue("db.example", ssl_pg.names))
        ssl_pg.read_again()


def test_an_attempt_to_stop_in_mid_handshake_leaves_nothing(make_pooler, ca):
    """A server that answers and then says nothing: the attempt ends by its timeout, and clients are told."""
    with FakeServer(b"S") as fake:
        pooler = make_pooler(databases={"p0": {"host": "127.0.0.1", "port": fake.port}},
                             ini={"server_tls_sslmode": "require", "server_connect_timeout": 1, "query_wait_timeout": 3})
        with pytest.raises(ServerError, match="query_wait_timeout"):
            serves(pooler)
        pooler.wait_log("closing because: connect timeout")
