"""A door before PostgreSQL that the test can shut for connections to come, or take away."""

import socket
import threading

from .way import in_background, pump, serve, shut


class Gate:
    """Passes connections on to a port. While `shut`, new ones are accepted and read, and nothing else happens to them:
    `held` has them with what they said."""

    def __init__(self, port):
        self._target, self.shut, self.held, self._joined = port, False, [], []
        # what is accepted while shut is kept in one turn: a connection that `let_go` did not see has found the door open
        self._kept, self._turn = [], threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        serve(self._listener, self._join)

    def _join(self, sock):
        with self._turn:
            keep = self.shut
            if keep:
                self._kept.append(sock)
        if keep:
            if said := sock.recv(16, socket.MSG_WAITALL):
                self.held.append((sock, said))
            return
        other = socket.create_connection(("127.0.0.1", self._target))
        self._joined += [sock, other]
        in_background(pump, sock, other)
        in_background(pump, other, sock)

    def let_go(self):
        """Closes what was held."""
        with self._turn:
            shut(*self._kept)
            self._kept, self.held = [], []

    def refuse(self):
        """From now on connections are refused, and those that there are end."""
        # a thread that waits in accept() keeps the port until it is woken
        shut(self._listener)
        self._listener.close()
        shut(*self._joined)
        self._joined = []

    def reopen(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        serve(self._listener, self._join)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.let_go()
