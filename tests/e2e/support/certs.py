"""Certificate authorities and certificates for the tests, written as PEM files that the daemons can read."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from . import system

DAY = datetime.timedelta(days=1)


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def write(path, data):
    """A file of the daemon user; PostgreSQL wants its keys to be nobody else's."""
    path.write_bytes(data)
    path.chmod(0o600)
    system.give_to_daemon(path)
    return path


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def alternative(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Pair:
    """A certificate with its key, and the files of both."""

    def __init__(self, certificate, key, cert_path, key_path):
        self.certificate, self.key = certificate, key
        self.cert, self.key_file = cert_path, key_path


class Authority:
    """A certificate authority with a directory of its own."""

    def __init__(self, name="test authority"):
        self.dir = system.fresh_dir("ca")
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder().subject_name(self.name).issuer_name(self.name).public_key(self.key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now() - 400 * DAY).not_valid_after(now() + 400 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256()))
        self.file = write(self.dir / "ca.crt", pem(self.certificate))
        self.file.chmod(0o644)
        self._count = 0

    def remove(self):
        system.remove_dir(self.dir)

    def issue(self, common_name="localhost", names=(), days=(-1, 300), algorithm="ec", hash=hashes.SHA256(), usage=None, ca=False,
              encoding=None):
        """A certificate valid between two days counted from today. `encoding` is the string type of the common name."""
        key = ec.generate_private_key(ec.SECP256R1()) if algorithm == "ec" else rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name, _type=encoding and _ASN1Type[encoding])] if common_name else [])
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() + days[0] * DAY).not_valid_after(now() + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative(n) for n in names]), critical=False)
        if usage:
            oid = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}[usage]
            builder = builder.add_extension(x509.ExtendedKeyUsage([oid]), critical=False)
        certificate = builder.sign(self.key, hash)
        self._count += 1
        cert_path = write(self.dir / f"{self._count}.crt", pem(certificate))
        cert_path.chmod(0o644)
        return Pair(certificate, key, cert_path, write(self.dir / f"{self._count}.key", key_pem(key)))

    def ed25519(self, common_name):
        """Signed by itself with an algorithm that has no hash of its own."""
        key = ed25519.Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now() - DAY).not_valid_after(now() + DAY)
            .sign(key, None))
        cert_path = write(self.dir / "ed.crt", pem(certificate))
        cert_path.chmod(0o644)
        return Pair(certificate, key, cert_path, write(self.dir / "ed.key", key_pem(key)))

    def version1(self, common_name):
        """As `openssl x509 -req` makes it, and as many handbooks tell: without extensions."""
        pair = self.issue(common_name)
        request = self.dir / "v1.csr"
        ca_key = write(self.dir / "ca.key", key_pem(self.key))
        system.run(["openssl", "req", "-new", "-key", pair.key_file, "-subj", f"/CN={common_name}", "-out", request])
        version = ["-x509v1"] if "-x509v1" in system.run(["openssl", "x509", "-help"]).stderr else []
        system.run(["openssl", "x509", "-req", *version, "-in", request, "-CA", self.file, "-CAkey", ca_key, "-set_serial", "7",
                    "-days", "30", "-sha256", "-out", pair.cert])
        system.give_to_daemon(pair.cert)
        return pair


def self_signed(directory, common_name="localhost", names=("localhost", "127.0.0.1")):
    """A certificate that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now() - DAY).not_valid_after(now() + 30 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([alternative(n) for n in names]), critical=False)
        .sign(key, hashes.SHA256()))
    cert = write(directory / "self.crt", pem(certificate))
    cert.chmod(0o644)
    return Pair(certificate, key, cert, write(directory / "self.key", key_pem(key)))
