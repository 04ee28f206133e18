"""Cuts what goes over a connection into pieces, so that the reader sees each of them by itself."""

import fcntl
import random
import socket
import struct
import termios
import time

from . import system
from .way import in_background, pump, serve

# Of long data only this much at both ends is cut small; the middle goes as one piece.
END = 1000


def unread(sock):
    """Bytes that the other end of a Unix socket has not read yet."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, struct.pack("i", 0)))[0]


def wait_read(sock, seconds=0.05):
    """Waits until the other end has read everything, or is obviously not going to for now."""
    deadline = time.monotonic() + seconds
    while unread(sock) and time.monotonic() < deadline:
        time.sleep(0)


def send_cut(sock, data, dice, largest=50):
    """Sends `data` in pieces of 1 to `largest` bytes. On a Unix socket each piece is read before the next one is sent."""
    middle = max(0, len(data) - 2 * END)
    local, at = sock.family == socket.AF_UNIX, 0
    while at < len(data):
        size = middle if middle and END <= at < END + middle else dice.randint(1, largest)
        sock.sendall(data[at:at + size])
        at += size
        if local:
            wait_read(sock)


class Slicer:
    """A way to PostgreSQL through a Unix socket on which both directions are cut: `host` and `port` lead here."""

    def __init__(self, target_port, seed, largest=50):
        self._target, self._dice, self._largest = target_port, random.Random(seed), largest
        self.dir = system.fresh_dir("cut")
        self.host, self.port = str(self.dir), 5432
        self._listener = socket.socket(socket.AF_UNIX)
        path = self.dir / f".s.PGSQL.{self.port}"
        self._listener.bind(str(path))
        path.chmod(0o777)
        self._listener.listen(16)
        serve(self._listener, self._join)

    def _join(self, near):
        far = socket.create_connection(("127.0.0.1", self._target))
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pair in ((near, far), (far, near)):
            in_background(self._pass, *pair, random.Random(self._dice.random()))

    def _pass(self, source, sink, dice):
        pump(source, sink, lambda data: send_cut(sink, data, dice, self._largest))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()
        system.remove_dir(self.dir)
