"""Cancel requests at random moments for half of the clients; the other half must never feel one."""

import random
import threading

from .load import Background
from .system import until


def cancel_storm(login, cancel, sleep, at_least, patience):
    """Goes on until so many queries of `sleep` seconds ended well and more than 20 were stopped. `login()` and `cancel(key)` may
    go different ways. Returns how many were stopped, all of them meant, and how many others were not."""
    keys, stopped, lock = {}, [0], threading.Lock()

    def target(background, number):
        rng = random.Random(number)
        with login() as wire:
            with lock:
                keys[number] = wire.key
            while not background.stopping.is_set():
                got = wire.ask(f"SELECT pg_sleep({rng.random() * sleep * 5})")
                if got.error:
                    assert got.error["C"] == "57014", got.error
                    stopped[0] += 1

    def innocent(background, _number):
        with login() as wire:
            while not background.stopping.is_set():
                got = wire.ask(f"SELECT pg_sleep({sleep})")
                assert got.error is None, f"an innocent client was told {got.error}"
                background.count()

    def aim(background, number):
        rng = random.Random(1000 + number)
        while not background.stopping.is_set():
            with lock:
                key = rng.choice(list(keys.values())) if keys else None
            if key:
                cancel(key)
            background.stopping.wait(0.003)

    with Background(target, 6), Background(innocent, 6) as innocents, Background(aim, 2):
        until(lambda: innocents.done > at_least and stopped[0] > 20, patience)
    return stopped[0], innocents.done
