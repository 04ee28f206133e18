"""Random protocol batches, sent to PostgreSQL directly and through the pooler: every reply must be the same, byte for byte.

Statement and portal names collide, statements fail to parse, transactions fail in the middle, batches are pipelined, copies
end well or badly. What the client and PostgreSQL send to the pooler is cut into pieces of 1 to 50 bytes, each of which is
read by itself. E2E_BATCHES sets the number of batches, E2E_SEED the seed, which a failure shows.
"""

import os
import random
import re
import struct
import time

import pytest

from support.postgres import ROLES
from support.slicer import Slicer, send_cut
from support.wire import FLUSH, SYNC, Closed, Wire, bind, close, cstr, describe, execute, message, parse, query

pytestmark = pytest.mark.ours

BATCHES = int(os.environ.get("E2E_BATCHES", 400))
SEED = int(os.environ.get("E2E_SEED", time.time_ns() % 1_000_000))

# Where in PostgreSQL's source an error was raised: in a failed transaction a statement prepared anew for a Bind is refused
# a few lines from where the Bind itself would have been.
SOURCE_LINE = re.compile(rb"L\d+\0R\w+\0|(?<=\0)L\d+\0")

NAMES = ["a", "b", "c"]
STATEMENTS = [
    "SELECT 1", "SELECT 1 AS one", "SELECT generate_series(1, 4)", "SELECT 'x'::text, NULL", "SELECT 1 / 0",
    "SELECT nonsense", "SELEC", "SELECT * FROM nowhere", "INSERT INTO diff VALUES (1)", "SELECT count(*) FROM diff",
    "UPDATE diff SET n = n + 1", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO s", "", "SET LOCAL work_mem = '1MB'",
    "SELECT repeat('long ', 5000)", "VALUES (1), (2), (3)",
]
SIMPLE = STATEMENTS + ["SELECT 1; SELECT 2", "SELECT 1; SELECT 1 / 0; SELECT 3", "BEGIN; SELECT 1", "SELECT 1; COMMIT", "; ;"]
COPY_TEXT = [b"1\n2\n3\n", b"7\n" * 2000, b"", b"no number\n"]


ABS_OF_INT4 = 1397


def batch(dice):
    """Messages that end with one ReadyForQuery."""
    kind = dice.random()
    end = message("f", cstr("given up")) if dice.random() < 0.3 else message("c")
    rows = [message("d", dice.choice(COPY_TEXT)) for _ in range(dice.randrange(3))]
    if kind < 0.25:
        return [query(dice.choice(SIMPLE))]
    if kind < 0.33:
        return [query("COPY diff FROM STDIN"), *rows, end]
    if kind < 0.36:
        return [query(dice.choice(["COPY (SELECT generate_series(1, 50)) TO STDOUT", "COPY nowhere TO STDOUT"]))]
    if kind < 0.40:
        return [parse("", "COPY diff FROM STDIN"), bind(), execute(), *rows, end, SYNC]
    if kind < 0.42:
        function = dice.choice([ABS_OF_INT4, 999999])
        return [message("F", struct.pack("!IhhI", function, 0, 1, 2) + b"-5" + struct.pack("!h", 0))]
    return [*extended(dice), SYNC]


def extended(dice):
    for _ in range(dice.randrange(7)):
        what = dice.randrange(9)
        name = dice.choice(NAMES)
        portal = dice.choice(["", "p"])
        if what <= 1:
            yield parse(name, dice.choice(STATEMENTS))
        elif what == 2:
            yield parse("", dice.choice(STATEMENTS))
            yield bind()
            yield execute("", dice.choice([0, 0, 2]))
        elif what <= 4:
            yield bind(portal, name)
            if dice.random() < 0.5:
                yield describe("P", portal)
            yield execute(portal, dice.choice([0, 0, 2]))
        elif what == 5:
            yield describe("S", name)
        elif what == 6:
            yield close("S", name)
        elif what == 7:
            yield close("P", portal)
        else:
            yield FLUSH


def readies(wire, count):
    """All messages up to and including the `count`th ReadyForQuery, or the end."""
    got = []
    while count:
        try:
            answer = wire.recv()
        except (Closed, TimeoutError) as error:
            return [*got, ("end", repr(error).encode())]
        body = SOURCE_LINE.sub(b"", answer.body) if answer.type == "E" else answer.body
        got.append((answer.type, body))
        count -= answer.type == "Z"
    return got


def is_known_difference(expected, got):
    """A Describe in a failed transaction of a statement that this server does not have: it cannot be prepared there any
    more, so that the client is told of the transaction and not of the statement (docs/differences.md)."""
    first = next(((e, g) for e, g in zip(expected, got) if e != g), None)
    return first is not None and first[0][0] == "t" and first[1][0] == "E" and b"C25P02" in first[1][1]


def shown(messages):
    return [(kind, body[:120]) for kind, body in messages]


@pytest.mark.parametrize("clients, servers", [(1, 1), (3, 2)])
@pytest.mark.slow(1200)
@pytest.mark.goal("G3", "G4")
def test_replies_equal_postgresql(make_pooler, pg, clients, servers, measured):
    """Each client has a twin that talks to PostgreSQL directly, in a database of its own with the same table."""
    with Slicer(pg.port, SEED) as slicer:
        pooler = make_pooler(ini={"default_pool_size": servers, "max_prepared_statements": 2},
                             databases={"p0": {"host": slicer.host, "port": slicer.port, "dbname": "p0"}})
        known = compare(pooler, pg, clients)
    measured.least("batches, cut into pieces of 1 to 50 bytes on both sides", BATCHES, 400)
    measured.exactly("replies unlike PostgreSQL's", 0)
    measured.most("Describes in a failed transaction (docs/differences.md)", known, 1 + BATCHES // 500)


def compare(pooler, pg, clients):
    dice = random.Random(SEED + clients)
    pairs = [(Wire(pg.port, timeout=30).login("app", "p1", ROLES["app"][0]),
              Wire(path=pooler.unix_path, timeout=30).login("app", "p0")) for _ in range(clients)]
    for wire in pairs[0]:
        wire.query("DROP TABLE IF EXISTS diff")
        wire.query("CREATE TABLE diff (n int)")
    known = 0
    for turn in range(BATCHES):
        direct, pooled = dice.choice(pairs)
        # a transaction must not outlive its turn: the next client may need the server
        group = [*(batch(dice) for _ in range(dice.choice([1, 1, 1, 2, 3]))), [query("ROLLBACK")]]
        data = b"".join(b"".join(messages) for messages in group)
        direct.send(data)
        expected = readies(direct, len(group))
        send_cut(pooled.sock, data, dice)
        got = readies(pooled, len(group))
        if is_known_difference(expected, got):
            known += 1
            for wire in (direct, pooled):
                # what the batch did after that is not the same
                wire.query("DEALLOCATE ALL")
            continue
        assert shown(got) == shown(expected), f"E2E_SEED={SEED} turn {turn}: {group}"
        assert got == expected, f"E2E_SEED={SEED} turn {turn}"
    for wire in pairs[0]:
        wire.query("DROP TABLE diff")
    return known
