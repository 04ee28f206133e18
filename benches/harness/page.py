"""A page with places for tables: what stands between `<!-- compare NAME -->` and `<!-- end -->` is written by the command."""

import os
import platform
import re
import resource
import subprocess
import time
from pathlib import Path

from .contender import cpu_us

PLACE = re.compile(r"<!-- compare (\w+) -->\n.*?<!-- end -->", re.S)


def places(path):
    return PLACE.findall(path.read_text())


def fill(path, name, text):
    """Puts `text` into the place called `name`, and leaves everything else as it is."""
    if name not in places(path):
        raise SystemExit(f"{path} has no place for {name}")

    def filled(match):
        return f"<!-- compare {name} -->\n{text}<!-- end -->" if match[1] == name else match[0]

    path.write_text(PLACE.sub(filled, path.read_text()))


class Others:
    """What programs that have no part in a measurement use of the processors meanwhile."""

    def __init__(self, backend):
        self.backend = backend
        self.since, self.all, self.mine = time.monotonic(), self._all(), self._mine()

    def cores(self):
        """On the average since the beginning; processes that a measurement started must have ended."""
        used = self._all() - self.all - (self._mine() - self.mine)
        return max(0, used / (time.monotonic() - self.since))

    @staticmethod
    def _all():
        """Seconds that all processors have spent in programs: user, nice and system time."""
        fields = Path("/proc/stat").read_text().split()[1:4]
        return sum(map(int, fields)) / os.sysconf("SC_CLK_TCK")

    def _mine(self):
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime + cpu_us(self.backend) / 1e6


def revision(repo):
    """The last commit that changed the daemon, with a `+` if it was changed since; empty outside of git."""
    sources = ["--", "src", "Cargo.toml", "Cargo.lock"]
    last = subprocess.run(["git", "log", "-1", "--format=%h", *sources], cwd=repo, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", *sources], cwd=repo, check=False).returncode == 1
    return last.stdout.strip() + "+" * changed


def machine(yard, ours):
    """When, where and what was measured, one line of Markdown. It belongs to a table, for tables may be of different days."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    cores = len(os.sched_getaffinity(0))
    return (f"{time.strftime('%Y-%m-%d', time.gmtime())}; {cores} cores of {model[1] if model else platform.machine()}, Linux "
            f"{platform.release()}; ours {ours or yard.ours_program}, the other {yard.other.version}; {yard.rounds} times {yard.seconds:g} s.")
