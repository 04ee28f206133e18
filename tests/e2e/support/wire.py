"""A small PostgreSQL protocol 3.0 client that shows every message.

Drivers hide what tests of a pooler must see: the fields of an error and their order, what was sent before the socket
was closed, messages nobody asked for. This one also sends whatever bytes it is given.
"""

import base64
import hashlib
import hmac
import os
import socket
import ssl
import struct
from typing import NamedTuple

PROTOCOL_3_0 = 0x30000
CANCEL_REQUEST = 80877102
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104


class Message(NamedTuple):
    type: str
    body: bytes

    @property
    def fields(self):
        """The fields of an error or a notice, in the order they were sent."""
        parts = self.body.rstrip(b"\0").split(b"\0")
        return {chr(p[0]): p[1:].decode(errors="surrogateescape") for p in parts if p}


class Column(NamedTuple):
    name: str
    oid: int
    typlen: int


class ServerError(Exception):
    def __init__(self, fields):
        super().__init__(f"{fields.get('S')} {fields.get('C')}: {fields.get('M')}")
        self.fields = fields
        self.severity, self.code, self.message = fields.get("S"), fields.get("C"), fields.get("M")


class Closed(Exception):
    """The other side closed the connection."""


class Result:
    """What came back up to ReadyForQuery."""

    def __init__(self):
        self.columns, self.rows, self.tags, self.notices, self.messages = [], [], [], [], []
        self.error = None
        self.status = None

    @property
    def names(self):
        return [c.name for c in self.columns]

    @property
    def dicts(self):
        return [dict(zip(self.names, row)) for row in self.rows]

    @property
    def value(self):
        return self.rows[0][0]


def encoded(text):
    """Bytes that are no UTF-8 stand in a text as lone surrogates."""
    return text.encode("utf-8", "surrogateescape")


def cstr(text):
    return (encoded(text) if isinstance(text, str) else text) + b"\0"


def startup_packet(params, code=PROTOCOL_3_0):
    body = struct.pack("!I", code) + b"".join(cstr(k) + cstr(v) for k, v in params.items()) + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def message(kind, body=b""):
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


def query(sql):
    return message("Q", cstr(sql))


def parse(name, sql, types=()):
    return message("P", cstr(name) + cstr(sql) + struct.pack(f"!H{len(types)}I", len(types), *types))


def bind(portal="", statement="", params=()):
    body = cstr(portal) + cstr(statement) + struct.pack("!HH", 0, len(params))
    for p in params:
        raw = str(p).encode()
        body += struct.pack("!I", len(raw)) + raw
    return message("B", body + struct.pack("!H", 0))


def describe(kind, name=""):
    return message("D", kind.encode() + cstr(name))


def execute(portal="", rows=0):
    return message("E", cstr(portal) + struct.pack("!I", rows))


def close(kind, name=""):
    return message("C", kind.encode() + cstr(name))


SYNC = message("S")
FLUSH = message("H")
TERMINATE = message("X")


def scram_proof(password, nonce, bare, server_first):
    """The client's final message and the signature to expect (RFC 5802 with SHA-256)."""
    attributes = dict(a.split("=", 1) for a in server_first.split(","))
    assert attributes["r"].startswith(nonce), "server nonce does not extend ours"
    salted = hashlib.pbkdf2_hmac("sha256", encoded(password), base64.b64decode(attributes["s"]), int(attributes["i"]))

    def mac(key, text):
        return hmac.new(key, text, hashlib.sha256).digest()

    client_key = mac(salted, b"Client Key")
    without_proof = f"c=biws,r={attributes['r']}"
    signed = f"{bare},{server_first},{without_proof}".encode()
    signature = mac(hashlib.sha256(client_key).digest(), signed)
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature))).decode()
    return f"{without_proof},p={proof}", base64.b64encode(mac(mac(salted, b"Server Key"), signed)).decode()


def md5_response(user, password, salt):
    inner = hashlib.md5(encoded(password + user)).hexdigest()
    return "md5" + hashlib.md5(inner.encode() + salt).hexdigest()


class Wire:
    """One connection. `connect` only opens the socket; `login` plays the whole exchange."""

    def __init__(self, port=None, host="127.0.0.1", path=None, timeout=40.0):
        if path is not None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(str(path))
        else:
            self.sock = socket.create_connection((host, port), timeout=timeout)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.parameters = {}
        self.parameter_order = []
        self.key = None
        self.auth_requests = []
        self.login_messages = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def settimeout(self, seconds):
        self.sock.settimeout(seconds)

    def send(self, data):
        self.sock.sendall(data)

    def ask_for_tls(self):
        """Sends SSLRequest; the one byte that comes back."""
        self.send(struct.pack("!II", 8, SSL_REQUEST))
        return self.raw(1)

    def start_tls(self, context, direct=False, name="localhost"):
        """From here on everything goes through TLS."""
        if not direct:
            assert self.ask_for_tls() == b"S"
        self.sock = context.wrap_socket(self.sock, server_hostname=name)
        return self

    def startup(self, user=None, database=None, code=PROTOCOL_3_0, **params):
        named = {k: v for k, v in (("user", user), ("database", database)) if v is not None}
        self.send(startup_packet({**named, **params}, code))

    def _fill(self, size):
        while len(self.buffer) < size:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed(f"closed with {len(self.buffer)} unread bytes {self.buffer[:40]!r}")
            self.buffer += data

    def raw(self, size):
        """The next `size` bytes, for answers that are no messages."""
        self._fill(size)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def recv(self):
        """The next message; `Closed` at the end, the socket's timeout otherwise."""
        self._fill(5)
        size = struct.unpack("!I", self.buffer[1:5])[0] + 1
        self._fill(size)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        got = Message(chr(data[0]), data[5:])
        if got.type == "S":
            name, value, _ = got.body.decode().split("\0")
            self.parameters[name] = value
            self.parameter_order.append(name)
        return got

    def recv_or_none(self, seconds=0.3):
        """A message if one arrives within `seconds`."""
        old = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            return self.recv()
        except TimeoutError:
            return None
        finally:
            self.sock.settimeout(old)

    def at_eof(self):
        """Whether the other side has closed and nothing is left to read."""
        try:
            self._fill(1)
        except Closed:
            return True
        return False

    def login(self, user, database, password=None, **params):
        """Logs in with whatever method is asked for; raises ServerError with the error's fields."""
        self.startup(user, database, **params)
        self.finish_login(user, password)
        return self

    def finish_login(self, user, password=None):
        expected_signature = nonce = None
        while True:
            got = self.recv()
            self.login_messages.append(got)
            if got.type == "E":
                raise ServerError(got.fields)
            if got.type == "K":
                self.key = got.body
            if got.type == "Z":
                return
            if got.type != "R":
                continue
            kind = struct.unpack("!I", got.body[:4])[0]
            self.auth_requests.append(kind)
            if kind == 3:
                self.send(message("p", cstr(password)))
            elif kind == 5:
                self.send(message("p", cstr(md5_response(user, password, got.body[4:8]))))
            elif kind == 10:
                bound = b"SCRAM-SHA-256-PLUS\0" if isinstance(self.sock, ssl.SSLSocket) else b""
                assert got.body[4:] in (b"SCRAM-SHA-256\0\0", bound + b"SCRAM-SHA-256\0\0"), got.body
                nonce = base64.b64encode(os.urandom(18)).decode()
                first = f"n,,n=,r={nonce}".encode()
                self.send(message("p", cstr("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
            elif kind == 11:
                final, expected_signature = scram_proof(password, nonce, f"n=,r={nonce}", got.body[4:].decode())
                self.send(message("p", final.encode()))
            elif kind == 12:
                assert got.body[4:].decode() == "v=" + expected_signature, "the server's signature is wrong"

    def result(self):
        """Everything up to and including ReadyForQuery."""
        out = Result()
        while True:
            got = self.recv()
            out.messages.append(got)
            if got.type == "T":
                out.columns = row_description(got.body)
                out.rows = []
            elif got.type == "D":
                out.rows.append(data_row(got.body))
            elif got.type == "C":
                out.tags.append(got.body[:-1].decode())
            elif got.type == "N":
                out.notices.append(got.fields)
            elif got.type == "E":
                out.error = got.fields
                if got.fields.get("S") == "FATAL":
                    raise ServerError(got.fields)
            elif got.type == "Z":
                out.status = got.body.decode()
                return out

    def ask(self, sql):
        """A simple query; the error, if any, is in the result."""
        self.send(query(sql))
        return self.result()

    def query(self, sql):
        """A simple query that must succeed."""
        got = self.ask(sql)
        if got.error:
            raise ServerError(got.error)
        return got

    def expect_fatal(self, text, code="08P01"):
        """The next error is FATAL with exactly the three fields S, C, M, and then the socket is closed."""
        while True:
            got = self.recv()
            if got.type == "E":
                break
        assert list(got.fields) == ["S", "C", "M"], got.fields
        assert got.fields == {"S": "FATAL", "C": code, "M": text}
        assert self.at_eof(), "the connection stays open after FATAL"


def row_description(body):
    count, at, out = struct.unpack("!H", body[:2])[0], 2, []
    for _ in range(count):
        end = body.index(b"\0", at)
        _table, _number, oid, typlen, _mod, _fmt = struct.unpack("!IHIhih", body[end + 1 : end + 19])
        out.append(Column(body[at:end].decode(), oid, typlen))
        at = end + 19
    return out


def data_row(body):
    count, at, out = struct.unpack("!H", body[:2])[0], 2, []
    for _ in range(count):
        size = struct.unpack("!i", body[at : at + 4])[0]
        at += 4
        if size < 0:
            out.append(None)
        else:
            out.append(body[at : at + size].decode())
            at += size
    return out
