"""A throwaway directory: OpenLDAP's slapd with a handful of entries, plain, with StartTLS and with ldaps."""

import subprocess
from pathlib import Path

from . import system

SLAPD = Path("/usr/sbin/slapd")
BASE = "dc=example,dc=org"
ROOT, ROOT_PASSWORD = f"cn=root,{BASE}", "root-secret"

CONFIG = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {dir}/slapd.pid
TLSCACertificateFile {dir}/ca.pem
TLSCertificateFile {dir}/server.pem
TLSCertificateKeyFile {dir}/server.key
TLSVerifyClient never
database mdb
suffix "{base}"
rootdn "{root}"
rootpw {root_password}
directory {dir}/db
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=closed,{base}" by anonymous auth by * none
access to * by * read
"""

# uid -> (where, password)
PEOPLE = [
    ("app", "people", "app-secret"), ("app2", "people", "app2-secret"), ("plainuser", "people", "plain-secret"),
    ("admin", "people", "SecurePass2024!"), ("twin", "people", "twin"), ("twin", "others", "twin"), ("hidden", "closed", "hidden"),
]


def entries():
    yield f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: x\ndc: example\n"
    for unit in ("people", "others", "closed"):
        yield f"dn: ou={unit},{BASE}\nobjectClass: organizationalUnit\nou: {unit}\n"
    for uid, unit, password in PEOPLE:
        yield (f"dn: uid={uid},ou={unit},{BASE}\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}\n"
               f"mail: {uid}@example.org\nuserPassword: {password}\n")


class Slapd:
    def __init__(self):
        self.dir = system.fresh_dir("ldap")
        self.port, self.tls_port = system.free_port(), system.free_port()
        (self.dir / "db").mkdir()
        self._certificates()
        (self.dir / "slapd.conf").write_text(CONFIG.format(dir=self.dir, base=BASE, root=ROOT, root_password=ROOT_PASSWORD))
        (self.dir / "people.ldif").write_text("\n".join(entries()))
        for path in (self.dir / "db", self.dir / "server.key"):
            system.give_to_daemon(path)
        system.run([SLAPD, "-Tadd", "-q", "-f", self.dir / "slapd.conf", "-l", self.dir / "people.ldif"], switch_user=True)
        self.process = subprocess.Popen(
            [str(SLAPD), "-d", "0", "-f", str(self.dir / "slapd.conf"), "-h",
             f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/"],
            stdout=subprocess.DEVNULL, stderr=open(self.dir / "log", "ab"), cwd="/", **system.as_daemon_user())
        system.until(self._answers, 20, what="slapd answers")

    def _answers(self):
        import socket

        if self.process.poll() is not None:
            raise AssertionError("slapd ended: " + (self.dir / "log").read_text()[-2000:])
        try:
            for port in (self.port, self.tls_port):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            return False

    def _certificates(self):
        """One authority for the server, and one that has nothing to do with it."""
        def openssl(*args):
            system.run(["openssl", *args], cwd=self.dir)

        for name in ("ca", "other-ca"):
            openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
                    "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=directory",
                "-keyout", "server.key", "-out", "server.csr")
        (self.dir / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30",
                "-extfile", "san", "-out", "server.pem")

    def trust(self, ca="ca", reqcert=None):
        """The machine's LDAP configuration for programs that are started with LDAPCONF."""
        lines = [f"TLS_CACERT {self.dir}/{ca}.pem"] + ([f"TLS_REQCERT {reqcert}"] if reqcert else [])
        (self.dir / "ldap.conf").write_text("\n".join(lines) + "\n")
        return self.dir / "ldap.conf"

    def remove(self):
        self.process.terminate()
        self.process.wait(20)
        system.remove_dir(self.dir)
