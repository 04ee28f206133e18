"""Somebody in the middle: ends TLS on one side with a certificate of his own and begins it anew on the other."""

import socket
import ssl
import struct

from .way import in_background, pump, serve
from .wire import SSL_REQUEST

SSL_PACKET = struct.pack("!II", 8, SSL_REQUEST)


class Middleman:
    """Listens on a port of its own and passes everything on to `port`, through two TLS connections."""

    def __init__(self, port, pair):
        self._target = port
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(pair.cert, pair.key_file)
        self._near.set_alpn_protocols(["postgresql"])
        self._far = ssl.create_default_context()
        self._far.check_hostname, self._far.verify_mode = False, ssl.CERT_NONE
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        serve(self._listener, lambda sock: in_background(self._join, sock))

    def _join(self, sock):
        try:
            assert sock.recv(8, socket.MSG_WAITALL) == SSL_PACKET
            sock.sendall(b"S")
            near = self._near.wrap_socket(sock, server_side=True)
            other = socket.create_connection(("127.0.0.1", self._target))
            other.sendall(SSL_PACKET)
            assert other.recv(1) == b"S"
            far = self._far.wrap_socket(other, server_hostname="x")
        except (OSError, AssertionError):
            sock.close()
            return
        in_background(pump, near, far)
        in_background(pump, far, near)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()
