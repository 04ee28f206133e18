"""Clients in threads, and samples taken while they work."""

import threading
import time

from .system import until


class Background:
    """Runs `work(stop_event)` in threads; `finish` stops them and raises the first error any of them had."""

    def __init__(self, work, threads=1):
        self.stopping = threading.Event()
        self.errors, self.done = [], 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(work, n), daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, work, number):
        try:
            work(self, number)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the test has to see it
            with self._lock:
                self.errors.append(error)

    def count(self, n=1):
        with self._lock:
            self.done += n

    def finish(self, timeout=30):
        self.stopping.set()
        self.join(timeout)

    def join(self, timeout=30):
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a client is stuck"
        if self.errors:
            raise self.errors[0]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.stopping.set()
        if kind is None:
            self.join()


def transactions(pooler, user="app", dbname="p0", statement="SELECT 1"):
    """Work for `Background`: one client that runs transactions until told to stop."""
    def work(background, _number):
        with pooler.login(user, dbname, timeout=30) as wire:
            while not background.stopping.is_set():
                wire.query("BEGIN")
                wire.query(statement)
                assert wire.query("COMMIT").tags == ["COMMIT"]
                background.count()

    return work


class Honest(Background):
    """Clients in good order while others are in trouble: each asks for a word of its own again and again, in a transaction,
    and what it gets and how long that took is looked at."""

    def __init__(self, pooler, threads=4, user="app", dbname="p0", pause=0.005):
        self._pooler, self._as, self._pause = pooler, (user, dbname), pause
        self.seconds = []
        super().__init__(self._work, threads)

    def _work(self, background, number):
        with self._pooler.login(*self._as, timeout=30) as wire:
            while not self.stopping.is_set():
                word, began = f"{number}-{self.done}", time.monotonic()
                wire.query("BEGIN")
                assert wire.query(f"SELECT '{word}'").value == word, "somebody else's answer"
                assert wire.query("COMMIT").tags == ["COMMIT"]
                self.seconds.append(time.monotonic() - began)
                self.count()
                self.stopping.wait(self._pause)

    def slowest_ms(self, share=1.0):
        """Of the fastest `share` of all transactions."""
        return 1000 * sorted(self.seconds)[max(0, int(len(self.seconds) * share) - 1)]

    def goes_on(self, transactions=20, timeout=20):
        """Waits until that many more are done."""
        wanted = self.done + transactions
        until(lambda: self.done >= wanted or self.errors, timeout, what="honest clients go on")


class Sampler:
    """Calls `read` again and again in a thread and keeps the largest value."""

    def __init__(self, read, every=0.02):
        self.largest, self.samples = 0, 0
        self._read, self._every = read, every
        self._background = Background(self._work)

    def _work(self, background, _number):
        while not background.stopping.is_set():
            self.largest = max(self.largest, self._read())
            self.samples += 1
            background.stopping.wait(self._every)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._background.stopping.set()
        if kind is None:
            self._background.join()
