"""docs/faults.md and docs/goals.md are what tests/goals/run made of its figures, and no test with a promise is missing."""

import ast
import sys

import pytest

from support.system import REPO

sys.path.append(str(REPO / "tests/goals"))

import pages  # noqa: E402
import run  # noqa: E402
from goals import GOALS  # noqa: E402


def marked(kind):
    """Names of tests with a mark, as figures.json has them."""
    for path in sorted((REPO / "tests/e2e").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == f"pytest.mark.{kind}":
                    yield f"{path.name}::{node.name}", [ast.literal_eval(arg) for arg in mark.args if isinstance(arg, ast.Constant)]


@pytest.mark.parametrize("page", ["faults.md", "goals.md"])
def test_pages_are_made_of_the_figures(page):
    assert (REPO / "docs" / page).read_text() == pages.pages(run.load())[page], "tests/goals/run --pages"


@pytest.mark.parametrize("kind", ["fault", "goal"])
def test_every_promise_has_its_figures(kind):
    kept = {name for name, forms in run.load()["tests"].items() if any(line["fault"] if kind == "fault" else line["goals"] for line in forms.values())}
    assert kept == {name for name, _ in marked(kind)}, "tests/goals/run"


def test_every_goal_of_a_mark_is_known():
    known = {goal.name for goal in GOALS}
    assert {name for _, names in marked("goal") for name in names} <= known
