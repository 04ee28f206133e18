"""What logins cost, how many a second there can be, and whether those who run queries feel them."""

import contextlib
import subprocess
import sys

from .contender import certificate, pinned
from .measures import STAR, column, per_transaction, rate
from .tables import Table, middle, ratio, spread


def kinds(yard):
    """How pooler and clients are set up for each kind of login."""
    return {
        "trust": {}, "md5": {"auth": "md5"}, "SCRAM": {"auth": "scram-sha-256"},
        "TLS, RSA 2048": {"tls": certificate(yard.dir, "rsa")}, "TLS, ECDSA P-256": {"tls": certificate(yard.dir, "ecdsa")},
    }


def logins(yard):
    """CPU time of a login with one query and goodbye, 16 at a time: passwords and TLS."""
    table = Table("Logins", ["", "ours, CPU µs", "other, CPU µs", "ratio", "ours, logins/s", "other, logins/s", "ours, p99 ms", "other, p99 ms"])
    for label, start in kinds(yard).items():
        measure = {label: lambda c: yard.load(c, clients=16, relogin=1, tls=int("tls" in start))}
        samples = yard.interleaved(measure, **start)
        ours, other = samples[label, "ours"], samples[label, "other"]
        mine, theirs = per_transaction(ours), per_transaction(other)
        tails = [middle([one["p99_us"] / 1000 for one in seen], 1) for seen in (ours, other)]
        table.row(label, spread(mine, 0), spread(theirs, 0), ratio(mine, theirs), middle(rate(ours), 0), middle(rate(other), 0), *tails)
    table.note(STAR + " Each handshake is a full one.")
    return table


@contextlib.contextmanager
def half_a_core():
    """The pooler's core has something else to do all the time."""
    computing = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=pinned(True))
    try:
        yield
    finally:
        computing.kill()
        computing.wait()


def by_several(yard, contender, generators=2, **options):
    """Logins a second of several generators together."""
    running = [yard.kit.begin(contender, split=False, **yard.timed(options)) for _ in range(generators)]
    return sum(rate([yard.kit.finish(contender, one) for one in running]))


def capacity(yard, clients=128):
    """Logins a second where the pooler is what limits them, and what a second worker makes of them."""
    table = Table("Most logins a second", ["", "ours, logins/s", "other, logins/s", "ratio", "ours, p99 ms", "other, p99 ms",
                                           "1 worker, logins/s", "2 workers, logins/s", "ratio"])
    workers = [yard.contender(f"ours, {count}", yard.ours_program, {"worker_threads": count}) for count in (1, 2)]
    for label, start in kinds(yard).items():
        options = {"clients": clients, "relogin": 1, "tls": int("tls" in start)}
        with half_a_core():
            samples = yard.interleaved({label: lambda c, o=options: yard.load(c, **o)}, **start)
        ours, other = samples[label, "ours"], samples[label, "other"]
        tails = [middle([one["p99_us"] / 1000 for one in seen], 1) for seen in (ours, other)]
        with yard.kit.anywhere():
            samples = yard.interleaved({label: lambda c, o=options: by_several(yard, c, **o | {"clients": 16})}, workers, split=False, **start)
        one, two = (samples[label, contender.name] for contender in workers)
        table.row(label, spread(rate(ours), 0), spread(rate(other), 0), ratio(rate(ours), rate(other)), *tails,
                  middle(one, 0), middle(two, 0), ratio(two, one))
    table.note(f"{STAR} {clients} clients at a time, each handshake is a full one. The pooler's core is shared with a program that computes, "
               "so that backend and generator, which have a core, wait for the pooler. The last columns: no such program, two generators "
               "of 16 clients, and nobody has a core of his own, so that what a second worker gets is what these leave.")
    return table


def storm(yard, running=20, a_second=200):
    """20 clients that run, and whether they feel 200 logins a second with TLS and SCRAM; ours with two workers, nobody pinned."""
    table = Table("A storm of logins", ["", "p99, µs", "with logins, µs", "ratio", "with logins elsewhere", "logins/s", "a login, p50 / p99 ms"])
    contenders = [yard.contender("ours, 2 workers", yard.ours_program, {"worker_threads": 2}), yard.other]
    seconds = max(yard.seconds, 1.2)

    def calm(contender, sql):
        return yard.load(contender, split=False, clients=running, sql=sql, seconds=seconds)

    def stormy(contender, stormed, sql):
        logging_in = yard.kit.begin(stormed, split=False, clients=8, relogin=1, tls=1, rate=a_second, warmup=0.3, seconds=seconds + 0.2)
        seen = yard.load(contender, split=False, clients=running, sql=sql, seconds=seconds, warmup=0.5)
        return seen | {"logins": yard.kit.finish(stormed, logging_in)}

    elsewhere = dict(zip(contenders, reversed(contenders)))
    for kind, what, sql in (("rsa", "SELECT 1", "SELECT 1"), ("rsa", "queries of 1 ms", "delay"), ("ecdsa", "queries of 1 ms", "delay")):
        cases = {"without": lambda c, q=sql: calm(c, q), "with": lambda c, q=sql: stormy(c, c, q),
                 "elsewhere": lambda c, q=sql: stormy(c, elsewhere[c], q)}
        start = {"auth": "scram-sha-256", "tls": certificate(yard.dir, kind), "client_tls_sslmode": "allow", "split": False}
        with yard.kit.anywhere():
            samples = yard.interleaved(cases, contenders, rounds=min(yard.rounds, 6), **start)
        for contender in contenders:
            before, after, aside = (column(samples[label, contender.name], "p99_us") for label in cases)
            logins = column(samples["with", contender.name], "logins")
            took = " / ".join(middle([one[key] / 1000 for one in logins], 1) for key in ("p50_us", "p99_us"))
            table.row(f"{kind.upper()}, {what}: {contender.name}", spread(before, 0), spread(after, 0), ratio(after, before),
                      ratio(aside, before), middle(rate(logins), 0), took)
    table.note(f"{STAR} {running} clients ask all the time; generators and backend have no cores of their own. Elsewhere: the logins go to "
               "the other pooler of the table, which shows what they do to a machine of so few cores, whoever is logged in to.")
    return table
