"""Where the pooler's instructions go, counted by valgrind's callgrind, and how much of its time is the kernel's."""

import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from .contender import certificate
from .tables import Table, middle

# Column and what its files have in their path, first match first. Crates of TLS and its crypto are one, and so is all that is left.
PLACES = [("relay, wire", ("src/relay/", "src/wire/")), ("pool, broker", ("src/pool/", "src/broker.rs")), ("worker", ("src/worker/", "src/shared")),
          ("net, sys", ("src/net/", "src/sys/", "src/clock.rs")), ("other rooms", ("src/",)), ("TLS", ("/rustls", "aws-lc", "aws_lc")),
          ("libraries", ("",))]
NAMED = re.compile(r"^(c?(?:fl|fi|fe|ob|fn))=\((\d+)\)(?: (.*))?$")
COST = re.compile(r"^[+\-*]?\d* (\d+)$")


def instructions(out, root):
    """Self cost by place of a callgrind.out file: what is inlined counts for the file that it was written in."""
    names, here, counts, skip = {}, {"fl": "", "ob": "", "fn": ""}, Counter(), False
    text = out.read_text(errors="replace")
    for line in text.splitlines():
        if named := NAMED.match(line):
            kind = "fl" if named[1][-2:] in ("fl", "fi", "fe") else named[1][-2:]
            name = names.setdefault((kind, named[2]), named[3] or "")
            # a line that begins with c is about the function that is called
            if not named[1].startswith("c"):
                here[kind] = name
        elif line.startswith("calls="):
            skip = True
        elif cost := COST.match(line):
            if not skip:
                counts[place(here, root)] += int(cost[1])
            skip = False
    total = int(re.search(r"^totals: (\d+)", text, re.M)[1])
    assert counts.total() == total, f"{counts.total()} instructions were found in {out} and {total} counted"
    return counts


def place(here, root):
    path = here["fl"].removeprefix(f"{root}/")
    if path.startswith("/") or path in ("", "???"):
        # another crate, the standard library, or assembly without lines: then its function's name says whose it is
        path = f"/{path}{here['ob']}{here['fn']}".replace("src/", "")
    return next(column for column, parts in PLACES if any(part in path for part in parts))


def user_and_system(pid):
    """Clock ticks in the program and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]), int(fields[12])


class Workload:
    """How it is driven; `per` is what its instructions are divided by."""

    def __init__(self, name, per, options, start=None):
        self.name, self.per, self.options, self.start = name, per, options, start or {}

    def drive(self, yard, contender, seconds):
        """Runs it for so long; how many units of `per` that were."""
        if self.options is None:
            # so little happens that the logins before, which are never quite alike, would hide it in a short time
            seconds *= 8
            holding = yard.kit.hold(contender, 1000)
            time.sleep(seconds)
            yard.kit.abandon(holding)
            return 1000 * seconds
        return yard.kit.load(contender, warmup=0, seconds=seconds, **self.options)["transactions"]


def under_callgrind(yard, workload, seconds, root):
    """Instructions by place and the units done, from start to end of a pooler."""
    contender, out = yard.ours, yard.dir / f"callgrind.{seconds}"
    dump = contender.dir / "callgrind.out"
    contender.before = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={dump}"]
    contender.start(yard.kit.port, **workload.start)
    contender.before = []
    try:
        units = workload.drive(yard, contender, seconds)
        contender.process.send_signal(signal.SIGQUIT)
        contender.process.wait(60)
    finally:
        contender.stop()
    shutil.move(dump, out)
    return instructions(out, root), units


def kernel_share(yard, workload):
    """Of the pooler's processor time in a run without valgrind, percent; `None` when there was too little to tell."""
    contender = yard.ours.start(yard.kit.port, **workload.start)
    try:
        before = user_and_system(contender.pid)
        workload.drive(yard, contender, max(2.0, yard.seconds))
        user, system = (after - first for after, first in zip(user_and_system(contender.pid), before))
    finally:
        contender.stop()
    return 100 * system / (user + system) if user + system >= 20 else None


def profile(yard):
    """Where our instructions go, by workload and room (valgrind), and the kernel's share of the time."""
    columns = [name for name, _ in PLACES]
    table = Table("Profile", ["", "instructions", *columns, "kernel, % of CPU time"])
    if not shutil.which("valgrind"):
        table.note("Not measured: valgrind is not installed.")
        return table
    root = Path(__file__).resolve().parents[2]
    tls = {"tls": certificate(yard.dir, "ecdsa")}
    busy = {"clients": 64}
    workloads = [Workload("simple", "transaction", busy), Workload("extended", "transaction", {**busy, "mode": "extended"}),
                 Workload("prepared", "transaction", {**busy, "mode": "prepared"}), Workload("simple, TLS", "transaction", {**busy, "tls": 1}, tls),
                 Workload("idle", "client and second", None)]
    for workload in workloads:
        (least, few), (most, many) = (under_callgrind(yard, workload, seconds, root) for seconds in (1, 1 + 4 * min(1, yard.seconds)))
        # what one run has more of by chance is no negative share
        each = {name: max(0, most[name] - least[name]) / (many - few) for name in columns}
        total, kernel = sum(each.values()), kernel_share(yard, workload)
        table.row(f"{workload.name}, per {workload.per}", middle([total], 0), *[f"{100 * count / total:.0f} %" for count in each.values()],
                  "too little" if kernel is None else f"{kernel:.0f} %")
    table.note("Instructions of the program alone, without the kernel's: the difference of two runs of unlike length, so that start and logins "
               "are not in it. 64 clients over 20 servers, or 1,000 that are idle. Inlined code counts for the file that it is from, "
               "`libraries` is the standard library, libc, mio and whatever else. Under valgrind crypto may choose other instructions.")
    return table
