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

    def __call__(self, name, issuer=None, ca=False, longest=None, days=(-30, 30), usage=None, permitted=None, basic=True, names=(),
                 purpose=None, key=None, critical=None):
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
        if critical:
            builder = builder.add_extension(critical, critical=True)
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


def below_root(make, name="app", root=None, between=None, between_is="sent", **leaf):
    """A leaf with what its owner sends, and the trusted ones: a root, perhaps with an authority between them."""
    issuer = top = make("root", **{"ca": True, **(root or {})})
    trusted = [top]
    if between is not None:
        issuer = make("between", top, **{"ca": True, **between})
        if "trusted" in between_is:
            trusted.append(issuer)
    end = make(name, issuer, **leaf)
    return (together(end, issuer) if issuer is not top and "sent" in between_is else end), trusted


def itself(make, issuer=None, **leaf):
    """Trusted for itself."""
    end = make("app", issuer and make(issuer), **leaf)
    return end, [end]


def below_trusted_leaf(make):
    bob = make("bob")
    return make("app", bob), [bob]


def below_renewed_root(make):
    old, new = make("root", ca=True, days=(-30, -5)), make("root", ca=True)
    return make("app", new), [old, new]


SERVERS, CLIENTS, ANY = (getattr(ExtendedKeyUsageOID, name) for name in ("SERVER_AUTH", "CLIENT_AUTH", "ANY_EXTENDED_KEY_USAGE"))
EXPIRED = {"days": (-30, -5)}
ELSEWHERE = {"permitted": "good.example"}
UNHEARD_OF = {"critical": x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")}
POLICIES = {"critical": x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)])}

# name -> how it is made, with what, and whether who shows it is let in
CASES = {
    "below a root": (below_root, {}, True),
    "an authority between that is sent": (below_root, {"between": {}}, True),
    "an authority between that is trusted": (below_root, {"between": {}, "between_is": "trusted"}, True),
    "itself": (itself, {}, True),
    "itself, for another purpose": (itself, {"purpose": SERVERS}, False),
    "itself, but of another issuer": (itself, {"issuer": "root"}, False),
    "below one that is trusted for itself": (below_trusted_leaf, {}, False),
    "below a leaf beside its root": (below_root, {"between": {"ca": False}, "between_is": "sent and trusted"}, False),
    "a root that may not sign": (below_root, {"root": {"usage": ["crl_sign"]}}, False),
    "a root that does not say that it is one": (below_root, {"root": {"basic": False}}, False),
    "a root that has expired": (below_root, {"root": EXPIRED}, False),
    "a root that is not valid yet": (below_root, {"root": {"days": (5, 30)}}, False),
    "a root whose renewal is trusted too": (below_renewed_root, {}, True),
    "a root for another purpose": (below_root, {"root": {"purpose": SERVERS}}, False),
    "a root that asks for something unheard of": (below_root, {"root": UNHEARD_OF}, False),
    "a root with policies": (below_root, {"root": POLICIES}, True),
    "an authority that asks for something unheard of": (below_root, {"between": UNHEARD_OF}, False),
    "asking for something unheard of": (below_root, UNHEARD_OF, False),
    "an authority that has expired": (below_root, {"between": EXPIRED}, False),
    "an authority that may not sign": (below_root, {"between": {"usage": ["crl_sign"]}}, False),
    "an authority of a root that has none": (below_root, {"root": {"longest": 0}, "between": {}}, False),
    "a trusted authority of a root that has none": (below_root, {"root": {"longest": 0}, "between": {}, "between_is": "trusted"}, False),
    "a trusted authority of a root that has expired": (below_root, {"root": EXPIRED, "between": {}, "between_is": "trusted"}, False),
    "a trusted authority for another purpose": (below_root, {"between": {"purpose": SERVERS}, "between_is": "trusted"}, False),
    "another name, by the common name": (below_root, {"name": "app.bad.example", "between": ELSEWHERE}, False),
    "another name": (below_root, {"names": ["app.bad.example"], "between": ELSEWHERE}, False),
    "another name, for the root": (below_root, {"name": "app.bad.example", "root": ELSEWHERE, "between": {}, "between_is": "trusted"}, False),
    "a name within": (below_root, {"name": "app.good.example", "between": ELSEWHERE}, True),
    "no name of a host": (below_root, {"between": ELSEWHERE}, True),
    "an authority itself": (below_root, {"ca": True}, True),
    "an authority itself, below one that is sent": (below_root, {"ca": True, "between": {}}, True),
    "an authority itself, for another name": (below_root, {"ca": True, "names": ["app"], "between": ELSEWHERE, "between_is": "trusted"}, False),
    "an authority itself, for another purpose": (below_root, {"ca": True, "purpose": SERVERS}, False),
    "for another purpose": (below_root, {"purpose": SERVERS}, False),
    "for this purpose": (below_root, {"purpose": CLIENTS}, True),
    "for any purpose": (below_root, {"purpose": ANY}, False),
    "to sign with": (below_root, {"usage": ["digital_signature"]}, True),
    "to encipher keys with": (below_root, {"usage": ["key_encipherment"]}, False),
    "to sign lists with": (below_root, {"usage": ["crl_sign"]}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_clients(tls_pooler, ca, make, case):  # noqa: F811
    how, options, good = CASES[case]
    leaf, trusted = how(make, **options)
    bundle = write(ca.dir / "bundle.crt", b"".join(pem(one.certificate) for one in [*trusted, ca]))
    pooler = tls_pooler("verify-full", ini={"client_tls_ca_file": bundle})
    try:
        with pooler.wire().start_tls(trusting(ca, leaf)) as wire:
            assert wire.login("app", "p0").query("SELECT 1").value == "1"
            let_in = True
    except (ssl.SSLError, ConnectionError, Closed):
        let_in = False
        pooler.wait_log("certificate verify failed")
    assert let_in == good


@pytest.mark.parametrize("case", [
    "below a root", "below one that is trusted for itself", "a root that has expired", "an authority that may not sign",
    "another name, by the common name", "to encipher keys with", "to sign lists with"])
def test_servers(pooler_to, ssl_pg, ca, make, case):  # noqa: F811
    how, options, good = CASES[case]
    leaf, trusted = how(make, **options)
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
    top = make("root", ca=True)
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
