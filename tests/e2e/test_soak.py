"""Ordinary life for a long time: load with pauses, clients that come and go, reloads, lines that are cut. Memory and descriptors
stay what they are. E2E_SOAK_SECONDS says how long (3); memory is compared from 60 s on."""

import os
import random
import signal
import time

import pytest

from support.footprint import Footprint
from support.lines import reset
from support.load import Background, Honest
from support.system import until
from support.wire import query

SECONDS = int(os.environ.get("E2E_SOAK_SECONDS", "3"))

pytestmark = [pytest.mark.slow(SECONDS + 120), pytest.mark.ours]


def churn(pooler):
    """Clients that stay for a few queries, and one in ten that is cut in the middle of the last."""
    def work(background, number):
        dice = random.Random(number)
        while not background.stopping.is_set():
            wire = pooler.login(dice.choice(["app", "app2"]), dice.choice(["p0", "p1"]), timeout=30)
            for _ in range(dice.randrange(1, 10)):
                word = str(dice.random())
                assert wire.query(f"SELECT '{word}'").value == word
                background.count()
            if dice.random() < 0.1:
                wire.send(query("SELECT pg_sleep(0.01)"))
                reset(wire)
            wire.close()
            background.stopping.wait(0.01)

    return work


@pytest.mark.goal("G16")
def test_soak(make_pooler, measured):
    pooler = make_pooler(ini={"default_pool_size": 5, "server_lifetime": 20, "log_connections": 0, "log_disconnections": 0})
    samples = []
    with Honest(pooler, threads=4, pause=0.01) as steady, Background(churn(pooler), threads=4) as fleeting:
        steady.goes_on(100)
        print_ = Footprint(pooler)
        began = time.monotonic()
        while (age := time.monotonic() - began) < SECONDS and not steady.errors and not fleeting.errors:
            pooler.signal(signal.SIGHUP)
            samples.append((age, print_.kilobytes))
            # a reload every second, by the clock
            fleeting.stopping.wait(1)
        until(lambda: print_.more_descriptors <= 40, what="descriptors are in bounds")
    until(lambda: all(row["sv_active"] == 0 == row["cl_active"] for row in [pooler.pool("p0"), pooler.pool("p1", "app2")]))
    measured.least("seconds", round(time.monotonic() - began), SECONDS)
    measured.least("reloads", len(samples), SECONDS // 2)
    measured.least("transactions, none failed", steady.done + fleeting.done, 100)
    measured.most("descriptors more at rest", print_.more_descriptors, 25)
    tenth = max(1, len(samples) // 10)
    mean = [sum(kilobytes for _, kilobytes in part) / len(part) for part in (samples[tenth:2 * tenth] or samples, samples[-tenth:])]
    measured.most("memory of the last tenth against that of the second", 100 * (mean[1] / mean[0] - 1), 5 if SECONDS > 60 else 50, "% more")
    measured.most("memory", print_.kilobytes / 1024, 100, "MB")
