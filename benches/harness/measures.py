"""What is measured. Each function takes the yard and returns a table; each takes less than about three minutes."""

import os
import statistics
import subprocess

from support import system

from . import kit as kits
from .contender import Contender, certificate, cpu_us, rss_bytes
from .tables import Table, middle, ratio, spread

STAR = ("Median (least to most). A ratio is the median of those of pairs, which were measured right after each other, with the middle half "
        "of them in brackets, and a star where nine of ten are on one side of 1.")


class Yard:
    """Options, the kit, and the two poolers: ours with one worker, and the other one."""

    def __init__(self, options, ours, other):
        self.rounds, self.seconds = options.rounds, options.seconds
        self.modes, self.clients = options.modes.split(","), [int(count) for count in options.clients.split(",")]
        self.ours_program, self.other_program = ours, other
        self.kit = kits.Kit(options.kit)
        self.made = []
        self.ours = self.contender("ours", ours, {"worker_threads": 1} if "worker_threads" not in options.settings else {})
        self.ours.settings.update(options.settings)
        self.other = self.contender("other", other)
        self.dir = system.fresh_dir("bench")

    def contender(self, name, program, settings=None):
        self.made.append(Contender(name, program, settings))
        return self.made[-1]

    def remove(self):
        self.kit.stop()
        for contender in self.made:
            contender.remove()
        system.remove_dir(self.dir)

    def interleaved(self, cases, contenders=None, rounds=None, **start):
        """Samples of every case and contender: each round starts every pooler anew and takes them in turning order. `cases` maps
        labels to functions of a running contender."""
        contenders = contenders or [self.ours, self.other]
        samples = {(label, c.name): [] for label in cases for c in contenders}
        for turn in range(rounds or self.rounds):
            for contender in contenders:
                contender.start(self.kit.port, **start)
            try:
                for label, measure in cases.items():
                    for contender in contenders[turn % 2:] + contenders[:turn % 2]:
                        samples[label, contender.name].append(measure(contender))
            finally:
                for contender in contenders:
                    contender.stop()
        return samples

    def timed(self, options):
        """Options of a load with the time that it takes, unless they say otherwise."""
        return {"warmup": min(0.3, self.seconds / 2), "seconds": self.seconds, **options}

    def load(self, contender, **options):
        seen = self.kit.load(contender, **self.timed(options))
        if not seen["transactions"] and not seen["bytes"]:
            raise SystemExit(f"{contender.name} has done nothing in {self.seconds} s ({options}): more --seconds?")
        return seen


def per_transaction(seen):
    return [one["cpu_us"] / one["transactions"] for one in seen]


def column(seen, key):
    return [one[key] for one in seen]


def latency(seen):
    return f"{middle(column(seen, 'p50_us'), 0)} / {middle(column(seen, 'p99_us'), 0)}" if seen else "-"


def rate(seen):
    return [one["transactions"] / one["seconds"] for one in seen]


def transactions(yard):
    """CPU time and latency of a transaction, null backend, 20 servers: simple, extended and prepared statements."""
    table = Table("Transactions", ["clients", "ours, CPU µs", "other, CPU µs", "ratio", "ours, p50 / p99 µs", "other, p50 / p99 µs"])
    wanted = [(mode, clients) for mode in yard.modes for clients in yard.clients]

    def case(mode, clients):
        def measure(contender):
            able = mode != "prepared" or contender.tracks_prepared()
            return yard.load(contender, mode=mode if able else "simple", clients=clients)
        return measure

    again = yard.contender("other again", yard.other_program)
    samples = yard.interleaved({f"{mode}, {clients}": case(mode, clients) for mode, clients in wanted})
    for mode, clients in wanted:
        ours, other = (samples[f"{mode}, {clients}", name] for name in ("ours", "other"))
        mark = " (its simple)" if mode == "prepared" and not yard.other.tracks_prepared() else ""
        mine, theirs = per_transaction(ours), per_transaction(other)
        table.row(f"{mode}, {clients}", spread(mine), spread(theirs) + mark, ratio(mine, theirs), latency(ours), latency(other))
    noise = yard.interleaved({"simple, 16": case("simple", 16)}, [again, yard.other])
    first, second = (noise["simple, 16", name] for name in ("other again", "other"))
    mine, theirs = per_transaction(first), per_transaction(second)
    table.row("noise: other twice, simple, 16", spread(mine), spread(theirs), ratio(mine, theirs), latency(first), latency(second))
    kit_us = [one["kit_us"] / one["transactions"] for seen in noise.values() for one in seen]
    table.note(f"{STAR} Backend and generator together take {middle(kit_us)} µs for a simple query of 16 clients.")
    if not yard.other.tracks_prepared():
        table.note(f"The other one ({yard.other.version}) does not track prepared statements in transaction mode: ours is compared with "
                   "what a simple query costs it.")
    return table


def calls(yard):
    """System calls for a transaction; needs perf or strace."""
    table = Table("System calls for a transaction", ["clients", "ours", "other", "ratio"])
    how = kits.counts_of_calls()
    if how is None:
        table.note("Not measured: neither perf (with its tracepoints) nor strace can be used here.")
        return table

    def case(mode, clients):
        def measure(contender):
            options = {"mode": mode, "clients": clients, "seconds": min(yard.seconds, 0.7)}
            seen, count = yard.kit.load_under(contender, lambda: kits.counting_calls(how, contender.pid, yard.dir), **options)
            return count / seen["transactions"]
        return measure

    cases = {f"{mode}, {clients}": case(mode, clients) for mode in ("simple", "extended") for clients in (1, 16, 64, 256)}
    samples = yard.interleaved(cases, rounds=min(yard.rounds, 3))
    for label in cases:
        ours, other = samples[label, "ours"], samples[label, "other"]
        table.row(label, spread(ours), spread(other), ratio(ours, other))
    table.note(STAR + f" Counted with {how}." + (" It slows the pooler, so that more clients queue up than otherwise." if how == "strace" else ""))
    return table


def streams(yard):
    """CPU time for a gigabyte: long and short rows, copies in both directions and through TLS."""
    table = Table("Streams", ["", "ours, CPU s/GB", "other, CPU s/GB", "ratio", "ours, MB/s", "other, MB/s"])
    plain = {
        "rows of 1 MB": {"sql": "rows 300 1000000"},
        "rows of 100 bytes": {"sql": "rows 1000000 100"},
        "COPY out, 100 bytes": {"sql": "copy out 1000000 100"},
        "COPY in, 100 bytes": {"sql": "copy in", "rows": 1_000_000, "row-bytes": 100},
    }
    samples = yard.interleaved({label: lambda c, o=options: yard.load(c, clients=1, **o) for label, options in plain.items()})
    label = "COPY out, 100 bytes, TLS"
    over_tls = {label: lambda c: yard.load(c, clients=1, tls=1, sql="copy out 1000000 100")}
    samples |= yard.interleaved(over_tls, tls=certificate(yard.dir, "ecdsa"))
    for label in [*plain, label]:
        ours, other = samples[label, "ours"], samples[label, "other"]
        costs = [[one["cpu_us"] * 1e3 / one["bytes"] for one in seen] for seen in (ours, other)]
        speeds = [[one["bytes"] / one["seconds"] / 1e6 for one in seen] for seen in (ours, other)]
        table.row(label, spread(costs[0], 3), spread(costs[1], 3), ratio(*costs), middle(speeds[0], 0), middle(speeds[1], 0))
    table.note(STAR)
    return table


def fairness(yard):
    """200 clients over 10 servers, each transaction holds its server for a millisecond: the longest wait against the median."""
    table = Table("Fairness", ["", "in turns, longest / median", "in time, longest / median", "in time, p99 / median", "least / most served"])
    two = yard.contender("ours, 2 workers", yard.ours_program, {"worker_threads": 2})
    contenders = [yard.ours, two, yard.other]
    cases = {"one query": "delay", "BEGIN, query, COMMIT": "BEGIN|delay|COMMIT"}
    samples = yard.interleaved({label: lambda c, s=sql: yard.load(c, clients=200, sql=s) for label, sql in cases.items()}, contenders,
                               default_pool_size=10)
    for label in cases:
        for contender in contenders:
            seen = samples[label, contender.name]
            shares = [[one[over] / one[under] for one in seen] for over, under in (
                ("most_turns", "p50_turns"), ("longest_us", "p50_us"), ("p99_us", "p50_us"), ("least", "most"))]
            table.row(f"{label}: {contender.name}", *map(spread, shares))
    table.note("Median (least to most). A wait is a whole transaction, queueing included. In turns it is how many transactions of all clients "
               "were finished meanwhile: what overtakes shows there, but not what the machine holds up for all.")
    return table


def crowd(yard, active=100, total=10_000):
    """100 busy clients alone, among 10,000, and while the console is asked about 10,000 clients."""
    table = Table("A crowd of clients", ["", "ours, CPU µs", "other, CPU µs", "ratio", "ours, p99 µs", "other, p99 µs", "ours, longest ms",
                                         "other, longest ms", "ours, command ms", "other, command ms"])
    ways = {f"{active} clients alone": (0, None), f"{active} of {total:,}": (total - active, None)}
    ways |= {f"{active} of {total:,}, {command}": (total - active, command) for command in ("SHOW CLIENTS", "SHOW POOLS")}
    holding = {}

    def case(idle, command):
        def measure(contender):
            if idle and contender.pid not in holding:
                holding[contender.pid] = yard.kit.hold(contender, idle)
                # the machine has work left of ten thousand logins
                yard.load(contender, clients=active)
            warmup = min(0.3, yard.seconds / 2)
            asking = yard.kit.ask(contender, command, max(2, int((warmup + yard.seconds) * 5)), 200) if command else None
            seen = yard.load(contender, clients=active)
            if asking:
                seen["command_us"] = yard.kit.finish(contender, asking)["p50_us"]
            return seen
        return measure

    samples = yard.interleaved({label: case(*way) for label, way in ways.items()})
    for process in holding.values():
        yard.kit.abandon(process)
    for label, (_, command) in ways.items():
        ours, other = samples[label, "ours"], samples[label, "other"]
        mine, theirs = per_transaction(ours), per_transaction(other)
        longest = [middle([one["longest_us"] / 1000 for one in seen], 1) for seen in (ours, other)]
        took = [middle([one["command_us"] / 1000 for one in seen], 1) if command else "" for seen in (ours, other)]
        table.row(label, spread(mine), spread(theirs), ratio(mine, theirs), middle(column(ours, "p99_us"), 0), middle(column(other, "p99_us"), 0),
                  *longest, *took)
    table.note(STAR + " The command is asked five times a second by a client of its own; its CPU time is in the pooler's. The longest "
               "transaction of a round is what a command can hold up.")
    return table


def workers(yard, counts=(1, 2, 4, 8)):
    """Throughput with several workers, 64 clients, nobody pinned to a core."""
    table = Table("Workers", ["", "CPU µs", "to one worker's", "transactions/s", "to one worker's", "p50 / p99 µs"])
    several = [yard.contender(f"ours, {count} worker{'s' * (count > 1)}", yard.ours_program, {"worker_threads": count}) for count in counts]
    contenders = [yard.other, *several]
    with yard.kit.anywhere():
        samples = yard.interleaved({"": lambda c: yard.load(c, split=False, clients=64)}, contenders, split=False)
    one = samples["", several[0].name]
    for contender in contenders:
        seen = samples["", contender.name]
        cells = [cell for of, digits in ((per_transaction, 2), (rate, 0)) for cell in (spread(of(seen), digits), ratio(of(seen), of(one)))]
        table.row(contender.name, *cells, latency(seen))
    table.note(f"{STAR} The machine has {len(os.sched_getaffinity(0))} cores, and backend and generator want one each: "
               "more workers than remain share what there is.")
    return table


def memory(yard, few=1000, many=5000):
    """Resident memory of one more idle client."""
    table = Table("Memory of an idle client", ["", "ours, bytes", "other, bytes", "ratio"])

    def measure(contender, tls):
        sizes, held = [], []
        for count in (few, many - few):
            held.append(yard.kit.hold(contender, count, tls=tls))
            sizes.append(rss_bytes(contender.pid))
        for holding in held:
            yard.kit.let_go(holding)
        return (sizes[1] - sizes[0]) / (many - few)

    for label, start in (("plain", {}), ("TLS", {"tls": certificate(yard.dir, "ecdsa")})):
        samples = yard.interleaved({label: lambda c: measure(c, int("tls" in start))}, rounds=min(yard.rounds, 3), **start)
        ours, other = samples[label, "ours"], samples[label, "other"]
        table.row(label, spread(ours, 0), spread(other, 0), ratio(ours, other))
    table.note(STAR + f" The slope of RSS from {few:,} to {many:,} clients.")
    return table


def pgbench(yard):
    """CPU time of a transaction of pgbench -S through each pooler on a real PostgreSQL."""
    from support.postgres import Postgres

    table = Table("pgbench -S", ["clients", "ours, CPU µs", "other, CPU µs", "ratio", "ours, transactions/s", "other, transactions/s"])
    pg = Postgres()
    try:
        system.run([pg.bin / "pgbench", "-i", "-q", "-s", 5, "-h", pg.dir, "-p", pg.port, "-U", "app", "p0"], switch_user=True)

        def measure(contender, clients):
            contender.start(pg.port, dbname="p0", user="app", secret="app-secret")
            before = cpu_us(contender.pid)
            command = [pg.bin / "pgbench", "-n", "-S", "-c", clients, "-j", 1, "-T", max(1, round(yard.seconds)), "-h", "127.0.0.1", "-p",
                       contender.port, "-U", "app", "p0"]
            done = system.run(command, switch_user=True, timeout=yard.seconds + 60).stdout
            after = cpu_us(contender.pid)
            contender.stop()
            count, speed = (float(word.split()[0]) for word in (done.split("actually processed: ")[1], done.split("tps = ")[1]))
            return (after - before) / count, speed

        for clients in (16, 64):
            samples = {yard.ours: [], yard.other: []}
            for turn in range(yard.rounds):
                for contender in list(samples)[::1 if turn % 2 == 0 else -1]:
                    samples[contender].append(measure(contender, clients))
            costs, speeds = ([[one[at] for one in samples[c]] for c in samples] for at in (0, 1))
            table.row(clients, *map(spread, costs), ratio(*costs), *[middle(speed, 0) for speed in speeds])
    finally:
        pg.remove()
    table.note(STAR)
    return table
