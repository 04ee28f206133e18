"""10,000 malformed password, SCRAM and startup messages, ident and access rules: a clear error, and nothing else."""

import base64
import os
import random
import re
import struct
import threading

import pytest

from support.wire import Closed, Wire, cstr, message, startup_packet

SEED = int(os.environ.get("E2E_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
PER_THREAD, THREADS = 1500, 4
TEXTS = {
    "password authentication failed", "SASL authentication failed", "empty password returned by client",
    "client selected an invalid SASL authentication mechanism", "client re-sent startup pkt",
}


class Mutations:
    """Messages that are nearly right."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def noise(self, most=80):
        return self.random.randbytes(self.random.randrange(most))

    def spoil(self, data):
        """Changes, drops, doubles or inserts some bytes."""
        data = bytearray(data)
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(data) + 1)
            kind = self.random.randrange(5)
            if kind == 0 and at < len(data):
                data[at] = self.random.randrange(256)
            elif kind == 1:
                del data[at:at + self.random.randrange(1, 8)]
            elif kind == 2:
                data[at:at] = self.noise(12)
            elif kind == 3:
                data[at:at] = self.random.choice([b",", b"=", b"\0", b",,", b"r=", b"p=", b"m=x,", b"\xff" * 9, b"a" * 3000])
            else:
                del data[at:]
        return bytes(data)

    def framed(self, body, tag="p"):
        """A message, now and then with a length that is not its own."""
        if self.random.random() < 0.15:
            length = self.random.choice([0, 3, 4, 5, 70_000, 2**31 - 1, 2**31, 2**32 - 1])
            return tag.encode() + struct.pack("!I", length) + body
        return message(tag, body)

    def password(self):
        return self.framed(self.random.choice([
            self.noise(), b"", b"\0", b"\0\0\0", self.noise() + b"\0", b"md5" + self.noise(40) + b"\0", b"x" * 66_000 + b"\0",
        ]))

    def scram_first(self):
        first = b"n,,n=,r=" + base64.b64encode(self.noise(30))
        if self.random.random() < 0.7:
            first = self.spoil(first)
        mechanism = self.random.choice([b"SCRAM-SHA-256", b"SCRAM-SHA-256", b"SCRAM-SHA-256-PLUS", b"", self.noise(20)])
        length = self.random.choice([len(first), len(first), len(first), 0, -1 & 0xFFFFFFFF, 2**31, len(first) + 1])
        body = mechanism + b"\0" + struct.pack("!I", length) + first
        return self.framed(self.spoil(body) if self.random.random() < 0.3 else body)

    def scram_final(self, nonce):
        final = b"c=biws,r=" + nonce + b",p=" + base64.b64encode(self.random.randbytes(32))
        return self.framed(self.spoil(final) if self.random.random() < 0.8 else final)


def play(pooler, mutations, user):
    """One login that must come to nothing; the text of the error, or None for a silent end."""
    with pooler.wire(timeout=20) as wire:
        wire.startup(user, "p0")
        try:
            got = wire.recv()
            if got.type == "R" and got.body[:4] == b"\0\0\0\x0a":
                good = message("p", cstr("SCRAM-SHA-256") + struct.pack("!I", 11) + b"n,,n=,r=abc")
                if mutations.random.random() < 0.5:
                    wire.send(good)
                    got = wire.recv()
                    nonce = got.body[4:].split(b",")[0][2:]
                    wire.send(mutations.scram_final(nonce))
                else:
                    wire.send(mutations.scram_first())
            elif got.type == "R":
                wire.send(mutations.password())
            wire.sock.shutdown(1)
            while True:
                got = wire.recv()
                if got.type == "E":
                    return got.fields
                assert got.type == "R" and got.body[:4] == b"\0\0\0\x0b", got
        except (Closed, OSError) as error:
            # closed before all of it was read
            assert not isinstance(error, TimeoutError), "no answer at all"
            return None


@pytest.mark.slow(300)
@pytest.mark.since("1.25")
def test_passwords_and_scram(make_pooler):
    from support.system import until

    ini = {"auth_type": "hba", "max_client_conn": 100, "log_connections": 0}
    pooler = make_pooler(start=False, ini=ini, userlist={"app": "app-secret", "admin": "a", "plainuser": "plain-secret"})
    (pooler.dir / "hba.conf").write_text("host pgbouncer all all trust\nhost all plainuser all password\nhost all md5user,trustuser all md5\nhost all all all scram-sha-256\n")
    pooler.ini["auth_hba_file"] = pooler.dir / "hba.conf"
    pooler.write()
    pooler.start()
    strange = []

    def work(number):
        mutations = Mutations(f"{SEED}-{number}")
        try:
            for _ in range(PER_THREAD):
                fields = play(pooler, mutations, mutations.random.choice(["app", "plainuser", "md5user", "nosuch"]))
                if fields is not None:
                    told = fields["M"] in TEXTS or re.fullmatch(r"bad packet header: '[0-9a-f]*'", fields["M"])
                    if not told or list(fields) != ["S", "C", "M"] or (fields["S"], fields["C"]) != ("FATAL", "08P01"):
                        strange.append(fields)
        except BaseException as error:
            strange.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not strange, (SEED, strange[:5])
    with pooler.login("app") as wire:
        assert wire.query("SELECT 1").value == "1"
    rows = {r["list"]: r["items"] for r in pooler.show("LISTS")}
    until(lambda: {r["list"]: r["items"] for r in pooler.show("LISTS")}["login_clients"] == "0", what=rows)
    log = pooler.log()
    assert "panicked" not in log and "a bug ended" not in log
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", log), "control characters in the log"


@pytest.mark.slow(120)
@pytest.mark.since("1.23")
def test_rules_and_maps(make_pooler):
    """4,000 spoilt lines in the two files of access rules; those that are right still count."""
    mutations = Mutations(SEED)
    good = [b"host all app 127.0.0.1/32 md5", b'hostssl "a b",all @names all cert map=m', b"local sameuser all peer map=m",
            b"host all all ::1/128 scram-sha-256", b"hostnossl x,y,replication u 10.0.0.0 255.0.0.0 reject"]
    good_maps = [b'm root postgres', b'm "joe smith" all', b"other x y"]

    def spoilt(lines, number):
        made = (mutations.spoil(mutations.random.choice(lines)).replace(b"\n", b" ") for _ in range(number))
        return b"\n".join(made) + b"\n"

    pooler = make_pooler(start=False, ini={"auth_type": "hba"})
    (pooler.dir / "hba.conf").write_bytes(b"host all app 127.0.0.1/32 trust\nhost pgbouncer admin all trust\n" + spoilt(good, 3000))
    (pooler.dir / "ident.conf").write_bytes(b"m root postgres\n" + spoilt(good_maps, 1000))
    pooler.ini |= {"auth_hba_file": pooler.dir / "hba.conf", "auth_ident_file": pooler.dir / "ident.conf"}
    pooler.write()
    pooler.start()
    pooler.login("app").close()
    log = pooler.log()
    refused = [int(n) for n in re.findall(r"WARNING could not parse hba config line (\d+)", log)]
    assert refused == sorted(set(refused)) and 500 < len(refused) <= 3000, (SEED, len(refused))
    refused = [int(n) for n in re.findall(r"WARNING could not parse ident config line (\d+)", log)]
    assert refused == sorted(set(refused)) and 50 < len(refused) <= 1000, (SEED, len(refused))
    # every warning is one of those that the files can have
    known = re.compile(r"hba line \d+: (unknown type|unsupported method: buf=|failed to parse (address|mask)|invalid mask|did not find (address|mask)"
                       r"|Ident map |unsupported parameters)|ident line \d+: unsupported parameters|could not parse (hba|ident) config line"
                       r"|address does not match mask|(samerole|samegroup|replication) is not supported|could not open file ")
    for line in re.findall(r"WARNING (.*)", log):
        assert known.match(line), (SEED, line)
    assert "panicked" not in log and not re.search(r"[\x00-\x08\x0b-\x1f]", log)
