"""What a process costs: memory, file descriptors and processor time, as the kernel counts them."""

import os
import time
from pathlib import Path


class Footprint:
    """Of the pooler's process, and how they have changed since this was made."""

    def __init__(self, pooler):
        self._proc = Path(f"/proc/{pooler.process.pid}")
        self._first_kb, self._first_descriptors = self.kilobytes, self.descriptors
        self._first_cpu, self._since = self.cpu_s, time.monotonic()

    @property
    def descriptors(self):
        return len(os.listdir(self._proc / "fd"))

    @property
    def kilobytes(self):
        """Resident memory."""
        status = (self._proc / "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    @property
    def cpu_s(self):
        fields = (self._proc / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def growth_kb(self):
        return self.kilobytes - self._first_kb

    @property
    def more_descriptors(self):
        return self.descriptors - self._first_descriptors

    @property
    def more_cpu_s(self):
        return self.cpu_s - self._first_cpu

    @property
    def cpu_percent(self):
        """Of one core."""
        return 100 * self.more_cpu_s / (time.monotonic() - self._since)
