"""The harness of benches/compare, as far as it can be tested without measuring: its page, its tables, its arithmetic."""

import sys

import pytest
from support import system

sys.path.append(str(system.REPO / "benches"))

from harness import page, profile, tables  # noqa: E402

PAGE = system.REPO / "docs/performance.md"


def test_every_table_has_its_place_on_the_page():
    listed = system.run([system.REPO / "benches/compare", "--list"]).stdout
    assert sorted(page.places(PAGE)) == sorted(line.split()[0] for line in listed.splitlines())


def test_a_table_is_filled_in_and_the_rest_stays(tmp_path):
    copy = tmp_path / "page.md"
    before = PAGE.read_text()
    copy.write_text(before)
    page.fill(copy, "streams", "| new |\n")
    page.fill(copy, "streams", "| newer |\n")
    after = copy.read_text()
    assert "<!-- compare streams -->\n| newer |\n<!-- end -->" in after and "| new |" not in after
    assert after.split("<!-- compare streams -->")[0] == before.split("<!-- compare streams -->")[0]
    assert after.split("## Logins")[1] == before.split("## Logins")[1]
    with pytest.raises(SystemExit):
        page.fill(copy, "nothing", "")


def test_a_star_means_that_nearly_all_pairs_agree():
    assert tables.ratio([1.0, 3.0, 1.0], [2.0, 4.0, 2.0]) == "0.50 (0.50 to 0.75)*", "what slows both says nothing"
    assert tables.ratio([1.0, 2.1], [2.0, 2.0]) == "0.78 (0.50 to 1.05) "
    assert tables.ratio([1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 2.0, 2.0]) == "0.50 (0.50 to 0.50) "
    assert tables.ratio([9.0] + [1.0] * 9, [2.0] * 10) == "0.50 (0.50 to 0.50)*"
    assert tables.ratio([1.0], [2.0]) == "0.50 (0.50 to 0.50) ", "one pair can be chance"
    assert tables.ratio([], [2.0]) == "-"
    with pytest.raises(ValueError):
        tables.ratio([1.0, 1.0], [2.0])


def test_instructions_count_for_the_file_they_were_written_in(tmp_path):
    out = tmp_path / "callgrind.out"
    out.write_text(
        "ob=(1) /x/pgbouncer\nfl=(1) /repo/src/worker/mod.rs\nfn=(1) turn\n10 5\n"
        "fi=(2) /repo/src/relay/link.rs\n+3 7\nfe=(1)\ncfi=(3) /rust/core/src/slice.rs\ncfn=(2) len\ncalls=2 4\n* 100\n-1 1\n\n"
        "fl=(4) ???\nfn=(3) aws_lc_0_1_sha256\n0 20\n\nfl=(3)\nfn=(2)\n4 100\n\ntotals: 133\n")
    counts = profile.instructions(out, "/repo")
    assert counts == {"worker": 6, "relay, wire": 7, "TLS": 20, "libraries": 100}
    out.write_text(out.read_text().replace("totals: 133", "totals: 134"))
    with pytest.raises(AssertionError):
        profile.instructions(out, "/repo")
