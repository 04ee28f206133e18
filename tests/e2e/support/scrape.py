"""HTTP requests to `metrics_listen`, and expositions read by Prometheus' own parsers."""

import http.client
import socket

from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.text = response.status, response.headers, response.read().decode()


def fetch(where, path="/metrics", method="GET", accept=None, timeout=10):
    """One request. `where` is a port of 127.0.0.1, a (host, port), or the path of a Unix socket."""
    if isinstance(where, int):
        where = ("127.0.0.1", where)
    connection = http.client.HTTPConnection(*where, timeout=timeout) if isinstance(where, tuple) else _UnixConnection(where, timeout)
    try:
        connection.request(method, path, headers={"Accept": accept} if accept else {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Scrape:
    """One exposition: families by name, and values by sample name and labels."""

    def __init__(self, where, accept=None):
        answer = fetch(where, accept=accept)
        assert answer.status == 200, answer.text
        self.content_type, self.text = answer.headers["Content-Type"], answer.text
        read = openmetrics if self.content_type.startswith("application/openmetrics-text") else prometheus
        self.families = {family.name: family for family in read.text_string_to_metric_families(answer.text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    @property
    def names(self):
        return {sample.name for sample in self.samples}

    def values(self, name, /, **labels):
        """The values of all samples that have these labels, and maybe more."""
        wanted = labels.items()
        return [s.value for s in self.samples if s.name == name and wanted <= s.labels.items()]

    def value(self, name, /, **labels):
        found = self.values(name, **labels)
        assert len(found) == 1, f"{len(found)} samples of {name} {labels}"
        return found[0]

    def total(self, name, /, **labels):
        return sum(self.values(name, **labels))
