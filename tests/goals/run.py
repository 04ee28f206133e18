"""Runs what is asked for, keeps the figures, writes the pages. See the script `run` beside it."""

import argparse
import datetime
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "tests/e2e"))

import pages
from goals import GOALS
from support.figures import merge

KEPT = Path(__file__).with_name("figures.json")


def load():
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"tests": {}, "commands": {}}


def store(change):
    """Changes the figures that are kept, and the pages; two that measure at once do not undo each other's."""
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = load()
        change(kept)
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        for name, text in pages.pages(kept).items():
            (REPO / "docs" / name).write_text(text)


def stamp(form, env):
    """When and with what something was measured."""
    made = "release" if "/release/" in os.environ.get("PGBOUNCER_BIN", "") else "debug"
    return {"form": form, "day": datetime.date.today().isoformat(), "build": made, "cores": len(os.sched_getaffinity(0)), "env": env}


def run_tests(form, marks, names, env):
    """End-to-end tests with the marks; with `names`, those of these goals. Whether all passed."""
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory, "figures")
        wanted = [f"--goals={','.join(names)}"] if names else []
        command = [sys.executable, "-m", "pytest", "tests/e2e", "-q", "-m", marks, *wanted]
        passed = subprocess.run(command, cwd=REPO, env={**os.environ, **env, "FIGURES": str(lines)}).returncode in (0, 5)
        fresh = {}
        for line in lines.read_text().splitlines() if lines.exists() else []:
            line = json.loads(line)
            into = fresh.setdefault(line["test"], {**line, "figures": [], "cases": 0})
            into["cases"] += 1
            for figure in line["figures"]:
                merge(into["figures"], figure)

    def change(kept):
        if passed and not names and marks == "fault or goal":
            # everything was run: what is not there any more is forgotten
            kept["tests"] = {test: forms for test, forms in kept["tests"].items() if test in fresh}
        for test, line in fresh.items():
            kept["tests"].setdefault(test, {})[form] = {**line, **stamp(form, env)}

    store(change)
    return passed


def run_command(form, command):
    """One command with a figure in its output. Whether it succeeded."""
    env = command.long if form == "long" else command.short
    if env is None:
        return True
    print(f"== {command.run}", *(f"{k}={v}" for k, v in env.items()), flush=True)
    done = subprocess.run(["bash", "-c", command.run], cwd=REPO, env={**os.environ, **env}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    found = re.findall(command.figure, done.stdout, re.MULTILINE)
    if done.returncode or not found:
        print(done.stdout[-5000:])
        return False
    print(found[-1], flush=True)

    def change(kept):
        forms = kept["commands"].setdefault(command.run, {})
        before = forms.get(form) if command.adds and form == "long" else None
        forms[form] = {"figure": summed(before["figure"], found[-1]) if before else found[-1],
                       "runs": before["runs"] + 1 if before else 1, **stamp(form, env)}

    store(change)
    return True


def summed(one, other):
    """A text with the numbers of both added up."""
    numbers = iter(re.findall(r"\d+", one))
    return re.sub(r"\d+", lambda number: str(int(number[0]) + int(next(numbers))), other)


def tests_of(form, names):
    """What end-to-end tests are run for these names: marks, goals (none: all), environment."""
    goals = [goal for goal in GOALS if not names or goal.name in names]
    if form == "long":
        return [("goal", [goal.name], goal.long) for goal in goals if goal.long]
    if not names:
        return [("fault or goal", [], {})]
    return [("fault", [], {})] * ("faults" in names) + [("goal", [goal.name for goal in goals], {})] * bool(goals)


def main():
    parser = argparse.ArgumentParser(prog="tests/goals/run")
    parser.add_argument("names", nargs="*", help="goals, or `faults`; nothing is all of them")
    parser.add_argument("--long", action="store_true", help="the long forms")
    parser.add_argument("--matching", help="only commands with that word, and no end-to-end tests")
    parser.add_argument("--e2e", action="store_true", help="only end-to-end tests")
    parser.add_argument("--pages", action="store_true", help="nothing is measured")
    given = parser.parse_args()
    unknown = set(given.names) - {goal.name for goal in GOALS} - {"faults"}
    if unknown:
        parser.error(f"not known: {unknown}")
    form, good = "long" if given.long else "short", True
    store(lambda kept: None)
    if given.pages:
        return 0
    commands = [command for goal in GOALS if not given.names or goal.name in given.names for command in goal.commands]
    for command in commands if not given.e2e else []:
        if given.matching is None or given.matching in command.run:
            good &= run_command(form, command)
    for marks, names, env in tests_of(form, given.names) if given.matching is None else []:
        good &= run_tests(form, marks, names, env)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
