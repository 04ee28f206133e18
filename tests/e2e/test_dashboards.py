"""What etc/ gives to Prometheus and Grafana only names metrics and label values that a running daemon serves."""

import json
import os
import re
import shutil

import pytest
import yaml

from support.scrape import Scrape
from support.system import REPO, free_port, run, until
from support.wire import query

pytestmark = pytest.mark.ours

RULES = REPO / "etc/prometheus/pgusher.rules.yml"
BOARD = REPO / "etc/grafana/pgusher.json"
NAME = r"\b(?:pgbouncer|process)_[a-z0-9_]+\b"


def board_expressions():
    board = json.loads(BOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (variable["definition"] for variable in board["templating"]["list"] if variable["type"] == "query")


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def expressions():
    return [*board_expressions(), *(rule["expr"] for rule in rules())]


@pytest.fixture
def scrape(make_pooler):
    """Metrics of a pooler in which everything has happened once."""
    port = free_port()
    pooler = make_pooler(ini={"metrics_listen": f"127.0.0.1:{port}", "default_pool_size": 1, "max_client_conn": 3, "query_wait_timeout": 1})
    with pooler.login() as holder, pooler.login() as waiter, pooler.login() as third:
        holder.query("SELECT 1")
        third.ask("SELECT nosuch")
        with pooler.wire() as refused:
            refused.startup("app", "p0")
            refused.expect_fatal("no more connections allowed (max_client_conn)")
        holder.query("BEGIN")
        waiter.send(query("SELECT 1"))
        waiter.expect_fatal("query_wait_timeout")
        with pooler.pg.direct("postgres") as direct:
            direct.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'p0' AND usename = 'app'")
        until(lambda: "server conn crashed?" in pooler.log())
        yield Scrape(port)


def test_reasons_that_alerts_watch_are_there_from_the_start(make_pooler):
    """An increase is one of what was there before."""
    port = free_port()
    make_pooler(ini={"metrics_listen": f"127.0.0.1:{port}"})
    closed = {sample.labels["reason"]: sample.value for sample in Scrape(port).samples if sample.name == "pgbouncer_closed_connections_total"}
    watched = [reason for rule in rules() for reason in re.findall(r'reason="([^"]*)"', rule["expr"])]
    assert len(watched) == 3 and {reason: closed.get(reason) for reason in watched} == dict.fromkeys(watched, 0)


def test_every_metric_and_label_is_served(scrape, expressions):
    assert len(expressions) > 50
    labels = {}
    for sample in scrape.samples:
        labels.setdefault(sample.name, set()).update(sample.labels)
    for expression in expressions:
        names = re.findall(NAME, expression)
        for name in names:
            assert name in labels, f"{name} in {expression}"
        for name, matchers in re.findall(rf"({NAME})\{{([^}}]*)\}}", expression):
            for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                assert label in labels[name] | {"instance", "job"}, f"{label} of {name}"
                if not value.startswith("$") and label not in ("instance", "job"):
                    served = {sample.labels[label] for sample in scrape.samples if sample.name == name}
                    assert set(value.split("|")) <= served, f"{label}={value} of {name}; there are {served}"


def test_rules_have_all_their_parts():
    alerts = rules()
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 10
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["annotations"]["summary"].endswith("."), rule["alert"]


def test_prometheus_reads_the_rules():
    """./test gets promtool from Debian's package of Prometheus."""
    promtool = shutil.which("promtool", path=f"{os.environ['PATH']}:{REPO}/target/tools")
    assert promtool, "promtool is missing: ./test gets it, or put it into target/tools"
    done = run([promtool, "check", "rules", RULES])
    assert f"SUCCESS: {len(rules())} rules found" in done.stdout
