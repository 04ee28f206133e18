"""The pages docs/faults.md and docs/goals.md, made from the figures that are kept."""

from goals import GOALS

FAULTS = """# Faults and what they cost

Made by `tests/goals/run faults`: every line is a test that makes the fault happen to the daemon and a real PostgreSQL, holds what it
measures against the promise, and fails when it is broken. ./test runs them all. Of a test with several cases the worst figure is
shown; behind each stands the bound that is asserted. {machine}

| fault | promise | measured (bound) | test |
| --- | --- | --- | --- |
{rows}
"""

GOALS_PAGE = """# Goals

What this pooler promises about correctness, faults and hostile peers; the command that shows it; the figure reached, with the bound
that is asserted. Made by `tests/goals/run`. End-to-end tests carry the name of their goal as a mark; one of them alone is run by
`target/venv/bin/pytest tests/e2e/TEST`. Of a test with several cases the worst figure is shown. Where a long form was run, its
figure stands beside that of the short form, which ./test runs. {machine}

{sections}
"""


def text_of(figure):
    sign = {"<=": "≤", ">=": "≥", "=": "="}[figure["sign"]]
    value, unit = figure["value"], " " + figure["unit"] if figure["unit"] else ""
    shown = f"{value:,.1f}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"
    bound = f"{figure['bound']:,g}" if isinstance(figure["bound"], float) else f"{figure['bound']:,}"
    return f"{figure['what']} {shown}{unit} ({sign} {bound})"


def texts(line):
    if not line["figures"]:
        return "passed" if line["cases"] == 1 else f"passed in {line['cases']} cases"
    return "; ".join(text_of(figure) for figure in line["figures"])


def machine(kept):
    """When, on what, and which build."""
    runs = [line for forms in kept["tests"].values() for line in forms.values() if line["form"] == "short"]
    if not runs:
        return ""
    last = max(runs, key=lambda line: line["day"])
    build = {"debug": "the build with assertions", "release": "the release build"}[last["build"]]
    return f"Measured last on {last['day']}, {last['cores']} cores, {build}."


def faults(kept):
    rows = []
    for test, forms in sorted(kept["tests"].items()):
        line = forms.get("short")
        if line and line["fault"]:
            rows.append(f"| {line['fault']} | {line['promise']} | {texts(line)} | `{test}` |")
    return FAULTS.format(rows="\n".join(rows), machine=machine(kept))


def with_env(run, env):
    return " ".join([*(f"{key}={value}" for key, value in env.items()), run])


def section(goal, kept):
    longer = f", or for longer `tests/goals/run --long {goal.name}`" if goal.long or any(c.long for c in goal.commands) else ""
    out = [f"## {goal.name} {goal.title}", "", f"{goal.promise} Shown by `tests/goals/run {goal.name}`{longer}:", ""]
    for command in goal.commands:
        for form, line in sorted(kept["commands"].get(command.run, {}).items(), reverse=True):
            if getattr(command, form) is None:
                continue
            runs = f"{line['runs']} runs, " if line["runs"] > 1 else ""
            out.append(f"- `{with_env(command.run, line['env'])}`: {line['figure']} ({runs}{line['day']})")
    for test, forms in sorted(kept["tests"].items()):
        for form, line in sorted(forms.items(), reverse=True):
            if goal.name in line["goals"]:
                longer = f" with `{with_env('', line['env']).strip()}` ({line['day']})" if form == "long" else ""
                out.append(f"- `{test}`{longer}: {texts(line)}")
    if goal.short_of:
        out += ["", f"Falls short: {goal.short_of}"]
    return "\n".join(out)


def pages(kept):
    return {"faults.md": faults(kept),
            "goals.md": GOALS_PAGE.format(sections="\n\n".join(section(goal, kept) for goal in GOALS), machine=machine(kept))}
