"""A page with places for tables: what stands between `<!-- compare NAME -->` and `<!-- end -->` is written by the command."""

import os
import platform
import re
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


def machine(yard):
    """When, where and what was measured, as Markdown."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    cores = len(os.sched_getaffinity(0))
    return (f"{time.strftime('%Y-%m-%d', time.gmtime())}: {cores} cores of {model[1] if model else platform.machine()}, Linux {platform.release()}. "
            f"Ours: {yard.ours.version}, one worker unless said otherwise. The other: {yard.other.version}. "
            f"{yard.rounds} rounds of {yard.seconds:g} s.\n")
