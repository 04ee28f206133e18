"""The fast parts: null backend and load generator, a Rust program of their own in benches/kit."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

from support import system

from .contender import pinned

REPO = Path(__file__).resolve().parents[2]


class Kit:
    def __init__(self, program=None):
        self.program = program or self.built()
        self.port = system.free_port()
        self.backend = subprocess.Popen([str(self.program), "backend", "--port", str(self.port)], preexec_fn=pinned(False))

    @staticmethod
    def built():
        target = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
        subprocess.run(["cargo", "build", "--release", "--quiet", "--locked", "--target-dir", target, "--manifest-path",
                        REPO / "benches/kit/Cargo.toml"], check=True)
        return target / "release/pgusher-bench-kit"

    def _popen(self, what, options, split=True):
        words = [str(self.program), what]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                preexec_fn=pinned(False) if split else system.limits_for_children)

    def load(self, contender, split=True, **options):
        """Runs closed-loop clients; what they counted, and the pooler's processor time, as a dict."""
        return self.finish(contender, self.begin(contender, split, **options))

    def begin(self, contender, split=True, **options):
        """The same in the background, until `finish`."""
        return self._popen("load", {"port": contender.port, "watch": contender.pid, "backend": self.backend.pid, **options}, split)

    def load_under(self, contender, counter, **options):
        """The same, while something counts: `counter()` is called when all clients are there."""
        load = self._popen("load", {"port": contender.port, "gate": 1, "warmup": 0, **options})
        if load.stdout.readline() != "ready\n":
            return self.finish(contender, load)
        stop = counter()
        seen = self.finish(contender, load)
        return seen, stop()

    def ask(self, contender, sql, times, every_ms):
        """Begins to ask the console, with as little claim on the processor as can be."""
        return self._popen("ask", {"port": contender.port, "database": "pgbouncer", "sql": sql, "times": times, "every-ms": every_ms})

    def hold(self, contender, clients, **options):
        """Clients that are logged in and idle, until `let_go`."""
        holding = self._popen("hold", {"port": contender.port, "clients": clients, **options})
        if holding.stdout.readline() != "ready\n":
            self.finish(contender, holding)
        return holding

    def let_go(self, holding):
        holding.communicate("\n", timeout=60)

    def abandon(self, holding):
        holding.kill()
        holding.communicate()

    def finish(self, contender, process):
        """What it says at its end."""
        out, errors = process.communicate("\n", timeout=120)
        if process.returncode != 0:
            log = (contender.dir / "log").read_text()[-2000:]
            raise SystemExit(f"{contender.name}: {errors.strip()}\nits log ends with\n{log}")
        return json.loads(out.splitlines()[-1])

    @contextlib.contextmanager
    def anywhere(self):
        """Lets the backend run on every core for a while."""
        before = os.sched_getaffinity(self.backend.pid)
        os.sched_setaffinity(self.backend.pid, os.sched_getaffinity(0))
        yield
        os.sched_setaffinity(self.backend.pid, before)

    def stop(self):
        self.backend.kill()
        self.backend.wait()


def counts_of_calls():
    """How system calls can be counted here: `perf`, `strace`, or None."""
    tries = {"perf": ["perf", "stat", "-e", "raw_syscalls:sys_enter", "true"], "strace": ["strace", "-c", "-U", "calls,name", "true"]}
    for name, command in tries.items():
        try:
            if subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0:
                return name
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


def open_files(pid):
    """What the descriptors of a process are, as one text."""
    names = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # descriptors come and go meanwhile
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(link))
    return " ".join(names)


def counting_calls(how, pid, directory):
    """Begins to count the system calls of a process; the function returned ends that and says how many there were."""
    out = directory / f"{how}.out"
    command = {
        "perf": ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-o", out, "-p", pid],
        "strace": ["strace", "-c", "-f", "-U", "calls,name", "-o", out, "-p", pid],
    }[how]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    if how == "strace":
        process.stderr.readline()
    else:
        # perf says nothing when it is ready; its counters are open then
        system.until(lambda: "perf_event" in open_files(process.pid), what="perf counts")

    def stop():
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        lines = out.read_text().splitlines()
        if how == "perf":
            return int(next(line for line in lines if "raw_syscalls" in line).split(",")[0])
        return int(next(line for line in lines if line.endswith("total")).split()[0])

    return stop
