"""A door before PostgreSQL that the test can shut for connections to come."""

import socket
import threading


class Gate:
    """Passes connections on to a port. While `shut`, new ones are accepted and read, and nothing else happens to them:
    `held` has them with what they said."""

    def __init__(self, port):
        self._target, self.shut, self.held = port, False, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self.shut:
                self.held.append((sock, sock.recv(16, socket.MSG_WAITALL)))
                continue
            other = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((sock, other), (other, sock)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    @staticmethod
    def _pass(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def let_go(self):
        """Closes what was held."""
        for sock, _ in self.held:
            sock.close()
        self.held = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.let_go()
