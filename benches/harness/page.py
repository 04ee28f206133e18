"""A page with places for tables: what stands between `<!-- compare NAME -->` and `<!-- end -->` is written by the command."""

import os
import platform
import re
import subprocess
import time
from pathlib import Path

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
