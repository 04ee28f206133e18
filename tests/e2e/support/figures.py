"""Figures that tests measure. Each is held against its bound at once and kept for docs/faults.md and docs/goals.md.

A test says what it is about by marks: `fault(what, promise)` makes it a line of docs/faults.md, `goal("G7")` adds its figures
to that goal. The fixture `measured` takes the figures. With FIGURES=FILE every test that passed appends one line of JSON.
"""

import json
import os


class Figures:
    """What one test has measured, in the order it did."""

    def __init__(self):
        self.taken = []

    def _take(self, what, value, sign, bound, unit):
        value = round(value, 3) if isinstance(value, float) else value
        merge(self.taken, {"what": what, "value": value, "sign": sign, "bound": bound, "unit": unit})
        kept = {"<=": value <= bound, ">=": value >= bound, "=": value == bound}[sign]
        assert kept, f"{what}: {value} {unit}, promised {sign} {bound}"

    def most(self, what, value, bound, unit=""):
        """`value` may be `bound` at most."""
        self._take(what, value, "<=", bound, unit)

    def least(self, what, value, bound, unit=""):
        """`value` must be `bound` at least."""
        self._take(what, value, ">=", bound, unit)

    def exactly(self, what, value, bound=0, unit=""):
        """`value` must be `bound`."""
        self._take(what, value, "=", bound, unit)

    def memory(self, footprint, most_kb):
        """Growth of the daemon's memory since the footprint was taken, in megabytes."""
        self.most("memory", footprint.growth_kb / 1024, most_kb / 1024, "MB more")


def merge(taken, figure):
    """Of two figures for the same thing the worse one counts."""
    same = [other for other in taken if other["what"] == figure["what"]]
    if not same:
        taken.append(figure)
    elif (figure["value"] > same[0]["value"]) == (figure["sign"] == "<="):
        same[0].update(figure)


def name_of(item):
    """A test without its parameters: the worst figure of all of them is the one to show."""
    return item.nodeid.split("[")[0].removeprefix("tests/e2e/")


def keep(item, figures):
    """Appends what a test that passed has measured to the file FIGURES names. One write, for several processes do it."""
    path = os.environ.get("FIGURES")
    fault = item.get_closest_marker("fault")
    goals = [name for mark in item.iter_markers("goal") for name in mark.args]
    if not path or not (fault or goals):
        return
    line = {"test": name_of(item), "fault": fault and fault.args[0], "promise": fault and fault.args[1], "goals": goals,
            "figures": figures.taken if figures else []}
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")
