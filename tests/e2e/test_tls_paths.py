"""Paths of certificates: who may issue whom, as OpenSSL and with it PgBouncer has it, for clients and for servers."""

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.certs import Pair, key_pem, now, pem, write
from support.wire import Closed
from test_tls import tls_pooler, trusting, server_pair  # noqa: F401
from test_tls_servers import pooler_to, refuses, serves, ssl_pg  # noqa: F401

USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
          "encipher_only", "decipher_only")


class Maker:
    """Makes certificates in all ways, `issuer` being one made before or None for the certificate itself."""

    def __init__(self, directory):
        self.dir, self.made = directory, 0

    def __call__(self, name, issuer=None, ca=False, longest=None, days=(-30, 30), usage=None, permitted=None, basic=True, names=(), purpose=None, key=None):
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now() + datetime.timedelta(days[0])).not_valid_after(now() + datetime.timedelta(days[1])))
        if basic:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=longest), critical=True)
        if usage:
            builder = builder.add_extension(x509.KeyUsage(**{one: one in usage for one in USAGES}), critical=True)
        if permitted:
            builder = builder.add_extension(x509.NameConstraints([x509.DNSName(permitted)], None), critical=True)
        if purpose:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False)
        self.made += 1
        paths = self.dir / f"path-{self.made}.crt", self.dir / f"path-{self.made}.key"
        certificate = builder.sign((issuer.key if issuer else key), hashes.SHA256())
        return Pair(certificate, key, write(paths[0], pem(certificate)), write(paths[1], key_pem(key)))


@pytest.fixture
def make(ca):
    return Maker(ca.dir)


def together(pair, *others):
    """The first one's file with the others behind it."""
    write(pair.cert, b"".join(pem(one.certificate) for one in (pair, *others)))
    pair.cert.chmod(0o644)
    return pair


def root(make, **more):
    return make("root", ca=True, **more)


SERVERS, CLIENTS = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH

# name -> what makes (the leaf with what it sends, the trusted ones), whether it is let in
CASES = {
    "issued by a root": (lambda make: (lambda r: (make("app", r), [r]))(root(make)), True),
    "an intermediate that is sent": (lambda make: (lambda r: (lambda i: (together(make("app", i), i), [r]))(
        make("between", r, ca=True)))(root(make)), True),
    "an intermediate that is trusted too": (lambda make: (lambda r: (lambda i: (make("app", i), [r, i]))(
        make("between", r, ca=True)))(root(make)), True),
    "itself": (lambda make: (lambda one: (one, [one]))(make("app")), True),
    "by one that is trusted for itself": (lambda make: (lambda bob: (make("app", bob), [bob]))(make("bob")), False),
    "by a leaf beside its own root": (lambda make: (lambda r: (lambda bob: (together(make("app", bob), bob), [r, bob]))(
        make("bob", r)))(root(make)), False),
    "by a root that may not sign": (lambda make: (lambda r: (make("app", r), [r]))(root(make, usage=["crl_sign"])), False),
    "by a root that does not say that it is one": (lambda make: (lambda r: (make("app", r), [r]))(make("root", basic=False)), False),
    "by a root that has expired": (lambda make: (lambda r: (make("app", r), [r]))(root(make, days=(-30, -5))), False),
    "by a root that is not valid yet": (lambda make: (lambda r: (make("app", r), [r]))(root(make, days=(5, 30))), False),
    "by a root whose renewal is trusted too": (lambda make: (lambda old, new: (make("app", new), [old, new]))(
        root(make, days=(-30, -5)), root(make)), True),
    "by an intermediate that has expired": (lambda make: (lambda r: (lambda i: (together(make("app", i), i), [r]))(
        make("between", r, ca=True, days=(-30, -5))))(root(make)), False),
    "by an intermediate that may not sign": (lambda make: (lambda r: (lambda i: (together(make("app", i), i), [r]))(
        make("between", r, ca=True, usage=["crl_sign"])))(root(make)), False),
    "by an intermediate of a root that has none": (lambda make: (lambda r: (lambda i: (together(make("app", i), i), [r]))(
        make("between", r, ca=True)))(root(make, longest=0)), False),
    "for another name, by the common name": (lambda make: (lambda r: (lambda i: (together(make("app.bad.example", i), i), [r]))(
        make("between", r, ca=True, permitted="good.example")))(root(make)), False),
    "for another name": (lambda make: (lambda r: (lambda i: (together(make("app", i, names=["app.bad.example"]), i), [r]))(
        make("between", r, ca=True, permitted="good.example")))(root(make)), False),
    "for a name within": (lambda make: (lambda r: (lambda i: (together(make("app.good.example", i), i), [r]))(
        make("between", r, ca=True, permitted="good.example")))(root(make)), True),
    "for no name of a host": (lambda make: (lambda r: (lambda i: (together(make("app", i), i), [r]))(
        make("between", r, ca=True, permitted="good.example")))(root(make)), True),
    "an authority itself": (lambda make: (lambda r: (make("app", r, ca=True), [r]))(root(make)), True),
    "an authority itself, below one that is sent": (lambda make: (lambda r: (lambda i: (together(make("app", i, ca=True), i), [r]))(
        make("between", r, ca=True)))(root(make)), True),
    "an authority itself, for another name": (lambda make: (lambda r: (lambda i: (make("app", i, ca=True, names=["app"]), [r, i]))(
        make("between", r, ca=True, permitted="good.example")))(root(make)), False),
    "an authority itself, for another purpose": (lambda make: (lambda r: (make("app", r, ca=True, purpose=SERVERS), [r]))(root(make)), False),
    "for another purpose": (lambda make: (lambda r: (make("app", r, purpose=SERVERS), [r]))(root(make)), False),
    "for this purpose": (lambda make: (lambda r: (make("app", r, purpose=CLIENTS), [r]))(root(make)), True),
    "for any purpose": (lambda make: (lambda r: (make("app", r, purpose=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE), [r]))(root(make)), False),
    "by a root for another purpose": (lambda make: (lambda r: (make("app", r), [r]))(root(make, purpose=SERVERS)), False),
    "by a trusted intermediate for another purpose": (lambda make: (lambda r: (lambda i: (make("app", i), [r, i]))(
        make("between", r, ca=True, purpose=SERVERS)))(root(make)), False),
    "itself for another purpose": (lambda make: (lambda one: (one, [one]))(make("app", purpose=SERVERS)), False),
    "itself, but of another issuer": (lambda make: (lambda one: (one, [one]))(make("app", root(make))), False),
    "by a trusted intermediate of a root that has none": (lambda make: (lambda r: (lambda i: (make("app", i), [r, i]))(
        make("between", r, ca=True)))(root(make, longest=0)), False),
    "by a trusted intermediate of a root for other names": (lambda make: (lambda r: (lambda i: (make("x.bad.example", i), [r, i]))(
        make("between", r, ca=True)))(root(make, permitted="good.example")), False),
    "by a trusted intermediate of a root that has expired": (lambda make: (lambda r: (lambda i: (make("app", i), [r, i]))(
        make("between", r, ca=True)))(root(make, days=(-30, -5))), False),
    "to sign with": (lambda make: (lambda r: (make("app", r, usage=["digital_signature"]), [r]))(root(make)), True),
    "to encipher keys with": (lambda make: (lambda r: (make("app", r, usage=["key_encipherment"]), [r]))(root(make)), False),
    "to sign lists with": (lambda make: (lambda r: (make("app", r, usage=["crl_sign"]), [r]))(root(make)), False),
}


@pytest.mark.parametrize("case", CASES)
def test_clients(tls_pooler, ca, make, case):  # noqa: F811
    of, good = CASES[case]
    leaf, trusted = of(make)
    bundle = write(ca.dir / "bundle.crt", b"".join(pem(one.certificate) for one in trusted))
    pooler = tls_pooler("verify-full", ini={"client_tls_ca_file": bundle})
    try:
        with pooler.wire().start_tls(trusting(ca, leaf)) as wire:
            assert wire.login("app", "p0").query("SELECT 1").value == "1"
            let_in = True
    except (ssl.SSLError, ConnectionError, Closed):
        let_in = False
        pooler.wait_log("certificate verify failed")
    assert let_in == good


@pytest.mark.parametrize("case", ["issued by a root", "by one that is trusted for itself", "by a root that has expired",
                                  "by an intermediate that may not sign", "for another name, by the common name", "to encipher keys with",
                                  "to sign lists with"])
def test_servers(pooler_to, ssl_pg, ca, make, case):  # noqa: F811
    of, good = CASES[case]
    leaf, trusted = of(make)
    bundle = write(ca.dir / "bundle.crt", b"".join(pem(one.certificate) for one in trusted))
    shown = ssl_pg.data / "server.crt", ssl_pg.data / "server.key"
    before = [path.read_bytes() for path in shown]
    try:
        ssl_pg.show(leaf)
        ssl_pg.read_again()
        pooler = pooler_to(ssl_pg, "verify-ca", server_tls_ca_file=bundle)
        # a server's key may encipher
        if good or case == "to encipher keys with":
            assert serves(pooler)
        else:
            refuses(pooler, "certificate verify failed")
    finally:
        for path, data in zip(shown, before):
            write(path, data)
        ssl_pg.read_again()


def test_a_certificate_alone_is_sent_with_its_issuers(tls_pooler, pooler_to, ssl_pg, ca, make):  # noqa: F811
    """Towards clients, and towards a server that knows the root alone."""
    top = root(make)
    between = make("between", top, ca=True)
    old = make("between", top, ca=True, days=(-30, -5), key=between.key)
    mine = make("localhost", between, names=["localhost"])
    bundle = write(ca.dir / "bundle.crt", pem(old.certificate) + pem(between.certificate) + pem(top.certificate) + pem(ca.certificate))
    pooler = tls_pooler("require", ini={"client_tls_cert_file": mine.cert, "client_tls_key_file": mine.key_file, "client_tls_ca_file": bundle})
    context = ssl.create_default_context(cadata=pem(top.certificate).decode())
    with pooler.wire().start_tls(context) as wire:
        assert wire.login("app", "p0").query("SELECT 1").value == "1"

    theirs = make("certuser", between)
    roots = ssl_pg.data / "root.crt"
    before = roots.read_bytes()
    try:
        write(roots, pem(top.certificate))
        ssl_pg.read_again()
        pooler = pooler_to(ssl_pg, "verify-ca", users={"user": "certuser"}, server_tls_ca_file=bundle,
                           server_tls_cert_file=theirs.cert, server_tls_key_file=theirs.key_file)
        with pooler.login() as wire:
            assert wire.query("SELECT current_user").value == "certuser"
    finally:
        write(roots, before)
        ssl_pg.read_again()


def test_a_chain_that_cannot_be_read_is_refused(tls_pooler, ca, server_pair):  # noqa: F811
    broken = write(ca.dir / "chain.crt", server_pair.cert.read_bytes() + b"-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n")
    pooler = tls_pooler("allow")
    pooler.ini["client_tls_cert_file"] = broken
    pooler.write()
    with pooler.console() as console:
        console.ask("RELOAD")
    pooler.wait_log(f'failed to load certificate file "{broken}"')
    with pooler.connect(sslmode="require") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
