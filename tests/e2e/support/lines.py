"""Clients that end as no driver would: with a reset, or without a word."""

import ctypes
import resource
import socket
import struct

SO_ATTACH_FILTER = 26
# the classic BPF program "return 0": nothing that arrives is taken, or acknowledged
DROP_ALL = struct.pack("HBBI", 6, 0, 0, 0)


def reset(wire):
    """Ends the connection with RST, whatever is still on its way."""
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


def vanish(wire):
    """The client's host is gone: nothing comes from it any more, not even an answer of its kernel."""
    program = ctypes.create_string_buffer(DROP_ALL)
    wire.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))


def room_for(sockets):
    """Raises the soft limit of descriptors of this process as far as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sockets + 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        assert hard == resource.RLIM_INFINITY or hard >= wanted, f"the hard limit of descriptors is {hard}, needed are {wanted}"
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
