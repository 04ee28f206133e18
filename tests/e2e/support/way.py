"""What all ways between two ports are made of."""

import socket
import threading


def in_background(call, *args):
    threading.Thread(target=call, args=args, daemon=True).start()


def serve(listener, handle):
    """Calls `handle(sock)` for each connection until the listener is closed, in a thread of its own."""
    def loop():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            handle(sock)

    in_background(loop)


def shut(*socks):
    for sock in socks:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def pump(source, sink, send=None):
    """Passes on what comes, by `send(data)` if it is given; the end of one side is the end of both."""
    try:
        while data := source.recv(65536):
            (send or sink.sendall)(data)
    except OSError:
        pass
    shut(source, sink)
