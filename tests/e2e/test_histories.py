"""A history of lists: clients append to two lists in a transaction and read them, while servers and lines die. What they have
seen must be explained by one order of whole transactions."""

import itertools
import os
import random

import pytest

from support.lines import reset
from support.load import Background
from support.system import until
from support.wire import Closed, ServerError

pytestmark = [pytest.mark.slow(int(os.environ.get("E2E_HISTORY", "300")) // 10 + 120), pytest.mark.ours]

# Transactions of a run, and lists.
TRANSACTIONS = int(os.environ.get("E2E_HISTORY", "300"))
LISTS = 6


class History:
    """What was appended by which transaction, and which state of a list it saw."""

    def __init__(self):
        self.next = itertools.count(1)
        # transaction -> list -> (what stood there before, what it appended)
        self.committed, self.unknown, self.rolled_back = {}, {}, {}


def appends(pooler, history, seed):
    def work(background, number):
        dice, wire = random.Random(seed * 100 + number), pooler.login(timeout=30)
        while not background.stopping.is_set():
            name, seen, book = next(history.next), {}, history.rolled_back
            try:
                wire.query("BEGIN ISOLATION LEVEL SERIALIZABLE")
                for which in sorted(dice.sample(range(LISTS), 2)):
                    row = wire.query(f"UPDATE lists SET said = said || ',{name}' WHERE n = {which} RETURNING said").value
                    before = row.split(",")[1:]
                    assert before.pop() == str(name), "somebody else's answer"
                    seen[which] = before
                if dice.random() < 0.1:
                    wire.query("ROLLBACK")
                elif dice.random() < 0.05:
                    # gone in mid-transaction: what it did must vanish
                    reset(wire)
                    wire = again(pooler, background)
                else:
                    book = history.unknown
                    if wire.query("COMMIT").tags == ["COMMIT"]:
                        book = history.committed
                        background.count()
                    else:
                        book = history.rolled_back
            except ServerError as error:
                if error.code != "40001" or not rolls_back(wire):
                    wire.close()
                    wire = again(pooler, background)
            except (Closed, ConnectionError):
                wire.close()
                wire = again(pooler, background)
            book[name] = seen
        wire.close()

    return work


def rolls_back(wire):
    """Whether a failed transaction could be ended; its server may die in the meantime."""
    try:
        return wire.query("ROLLBACK").status == "I"
    except (ServerError, Closed, ConnectionError):
        return False


def again(pooler, background):
    while True:
        try:
            return pooler.login(timeout=30)
        except (ServerError, Closed, ConnectionError):
            background.stopping.wait(0.02)


def edges(final, committed):
    """Who must come before whom: in a list the one that stands before, and everybody a transaction has seen before itself."""
    after = {name: set() for names in final.values() for name in names}
    for names in final.values():
        for earlier, later in zip(names, names[1:]):
            after[earlier].add(later)
    for name, seen in committed.items():
        for before in seen.values():
            if before:
                after[int(before[-1])].add(name)
    return after


def cycles(after):
    """How many transactions are left when all that can be ordered are."""
    incoming = {name: 0 for name in after}
    for laters in after.values():
        for later in laters:
            incoming[later] += 1
    free = [name for name, count in incoming.items() if count == 0]
    ordered = 0
    while free:
        ordered += 1
        for later in after[free.pop()]:
            incoming[later] -= 1
            if incoming[later] == 0:
                free.append(later)
    return len(after) - ordered


@pytest.mark.goal("G2")
def test_one_order_explains_what_everybody_saw(make_pooler, pg, measured):
    seed = int(os.environ.get("E2E_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    print(f"E2E_SEED={seed}")
    pg.run_psql("p0", "DROP TABLE IF EXISTS lists; CREATE TABLE lists (n int PRIMARY KEY, said text NOT NULL); GRANT ALL ON lists TO app")
    pg.run_psql("p0", f"INSERT INTO lists SELECT n, '' FROM generate_series(0, {LISTS - 1}) n")
    pooler, history, killed = make_pooler(ini={"default_pool_size": 5}), History(), 0
    with Background(appends(pooler, history, seed), threads=10) as load:
        while load.done < TRANSACTIONS and not load.errors:
            seen = load.done
            until(lambda: load.done > seen + 15 or load.errors, 30, what="transactions go on")
            for pid in pg.backends("p0", "app")[:1]:
                killed += pg.sql("SELECT pg_terminate_backend(%s)", pid)[0][0]
    final = {n: [int(word) for word in said.split(",")[1:]] for n, said in pg.direct("p0").execute("SELECT n, said FROM lists").fetchall()}
    there = {name for names in final.values() for name in names}
    twice = sum(len(names) - len(set(names)) for names in final.values())
    half = [name for name in there for book in (history.committed, history.unknown) if name in book
            and any(name not in final[which] for which in book[name])]
    wrong = [name for name, seen in history.committed.items() for which, before in seen.items()
             if [int(word) for word in before] != final[which][:len(before)]]
    measured.exactly("acknowledged commits lost", len(set(history.committed) - there))
    measured.exactly("ghosts", len(there - set(history.committed) - set(history.unknown)))
    measured.exactly("doubled", twice)
    measured.exactly("half transactions", len(half))
    measured.exactly("reads of what never was", len(wrong))
    measured.exactly("cycles", cycles(edges(final, history.committed)))
    measured.least("transactions", len(history.committed), TRANSACTIONS)
    measured.least("backends terminated", killed, 1)
