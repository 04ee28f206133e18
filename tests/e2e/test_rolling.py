"""Replacing a process by the next one without a gap: the shared port, and what the kernel had already accepted."""

import signal
import socket

import pytest

from support.load import Background
from support.system import until
from support.wire import Wire


def one_after_the_other(make_pooler, port, count):
    """Poolers for one port, each with a directory of its own, to be started by the test."""
    return [make_pooler(start=False, ini={"listen_port": port, "so_reuseport": 1}) for _ in range(count)]


@pytest.mark.since("1.23")
@pytest.mark.fault("four rolling restarts on a shared port, under load", "no query fails, no login is refused")
@pytest.mark.goal("G11")
def test_rolling_restart(make_pooler, measured):
    """New connections all the time, and connections that stay as long as their process: no query fails, no login is refused."""
    first = make_pooler(start=False, ini={"so_reuseport": 1})
    poolers = [first, *one_after_the_other(make_pooler, first.port, 4)]
    first.start()

    def fresh(background, _number):
        while not background.stopping.is_set():
            with Wire(first.port, timeout=20) as wire:
                wire.login("app", "p0")
                for _ in range(3):
                    assert wire.query("SELECT 7").value == "7"
            background.count()

    with Background(fresh, threads=8) as load:
        for old, new in zip(poolers, poolers[1:]):
            new.start()
            seen = load.done
            until(lambda: load.done > seen + 60, 20)
            old.signal(signal.SIGTERM)
            assert old.wait_end() == 0
            seen = load.done
            until(lambda: load.done > seen + 60, 20)
    measured.least("logins, none refused", load.done, 480)


@pytest.mark.ours
@pytest.mark.goal("G11")
def test_what_the_kernel_had_accepted_is_served(make_pooler):
    """The process is stopped while connections queue up at its port; then it is told to go, and goes on."""
    pooler = make_pooler()
    pooler.signal(signal.SIGSTOP)
    queued = [Wire(pooler.port) for _ in range(10)]
    for wire in queued:
        wire.startup("app", "p0")
    pooler.signal(signal.SIGTERM)
    pooler.signal(signal.SIGCONT)
    for wire in queued:
        wire.finish_login("app")
        assert wire.query("SELECT 1").value == "1"
    until(pooler.refuses)
    for wire in queued:
        wire.close()
    assert pooler.wait_end() == 0


@pytest.mark.ours
def test_a_shared_port_is_left_to_the_others_first(make_pooler):
    pooler = make_pooler(ini={"so_reuseport": 1})
    with pooler.login() as wire:
        pooler.signal(signal.SIGTERM)
        pooler.wait_log("shutting down, waiting for all clients disconnect")
        until(lambda: pooler.refuses() if wire.query("SELECT 1").value == "1" else None)
    assert pooler.wait_end() == 0


def test_two_without_reuseport_do_not_share(make_pooler):
    first = make_pooler()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError):
            other.bind(("127.0.0.1", first.port))
