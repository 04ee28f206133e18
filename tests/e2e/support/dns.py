"""A DNS server for a few names, whose answers the test changes while it runs."""

import ipaddress
import os
import random
import socket
import struct
import threading

from . import system

TYPES = {"A": 1, "SOA": 6, "AAAA": 28, "SRV": 33}
NXDOMAIN, SERVFAIL = 3, 2


class DnsServer:
    """Answers over UDP on port 53 of a loopback address of its own. resolv.conf has no place for another port, so this
    needs root.

    `names` maps a name to its addresses of both families, `serials` a zone to its serial number, `services` a name to
    lists of priority, weight, port and host; what is in none of them does not exist. `broken` names get SERVFAIL, and nobody gets an answer while `silent` is set.
    """

    def __init__(self):
        self.names, self.serials, self.services, self.broken, self.silent = {}, {}, {}, set(), False
        self.asked = []
        self._lock = threading.Lock()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = self._bind()
        self.dir = system.fresh_dir("dns")
        self.resolv_conf = self.dir / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {self.address}\n")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _bind(self):
        """Test processes side by side each find an address that is free."""
        rng = random.Random(os.getpid())
        for _ in range(50):
            address = f"127.{rng.randrange(10, 250)}.{rng.randrange(250)}.{rng.randrange(2, 250)}"
            try:
                self._sock.bind((address, 53))
                return address
            except PermissionError:
                raise
            except OSError:
                continue
        raise RuntimeError("no loopback address with a free port 53")

    def stop(self):
        self._sock.close()
        system.remove_dir(self.dir)

    def count(self, name, kind):
        with self._lock:
            return self.asked.count((name, kind))

    def _serve(self):
        while True:
            try:
                packet, sender = self._sock.recvfrom(4096)
            except OSError:
                return
            name, kind, end = question(packet)
            with self._lock:
                self.asked.append((name, kind))
            if not self.silent:
                self._sock.sendto(self._answer(packet, name, kind, end), sender)

    def _answer(self, packet, name, kind, end):
        records = [record(TYPES[kind], data) for data in self._data(name, kind)] if kind in TYPES else []
        exists = name in self.names or name in self.serials or name in self.services
        code = SERVFAIL if name in self.broken else 0 if exists else NXDOMAIN
        # response, recursion desired and available
        return packet[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0) + packet[12:end] + b"".join(records)

    def _data(self, name, kind):
        if name in self.broken:
            return
        if kind == "SOA" and name in self.serials:
            yield b"\0\0" + struct.pack("!IIIII", self.serials[name], 60, 60, 60, 60)
        if kind == "SRV":
            for priority, weight, port, host in self.services.get(name, []):
                labels = b"".join(bytes([len(label)]) + label.encode() for label in host.split("."))
                yield struct.pack("!HHH", priority, weight, port) + labels + b"\0"
        for address in map(ipaddress.ip_address, self.names.get(name, [])):
            if kind == ("A" if address.version == 4 else "AAAA"):
                yield address.packed


def question(packet):
    """Name and type asked for, and where the question ends."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode().lower())
        at += 1 + packet[at]
    number = struct.unpack("!H", packet[at + 1 : at + 3])[0]
    kind = next((kind for kind, n in TYPES.items() if n == number), str(number))
    return ".".join(labels), kind, at + 5


def record(kind, data):
    # the name is that of the question; the lifetime is a long one, which the pooler must not go by
    return struct.pack("!HHHIH", 0xC00C, kind, 1, 3600, len(data)) + data
