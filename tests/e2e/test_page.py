"""The page at `/` of `metrics_listen`, in a browser."""

import os
import re
from pathlib import Path

import pytest

from support.browser import Browser
from support.load import Background, transactions
from support.scrape import fetch
from support.system import free_port, until
from support.wire import query

pytestmark = [pytest.mark.ours, pytest.mark.slow(150)]

ROWS = "[...document.querySelectorAll('#pools tr')].map(row => [...row.cells].map(cell => cell.textContent))"
TILES = "Object.fromEntries([...document.querySelectorAll('.tile')].map(tile => [tile.lastChild.textContent, tile.firstChild.textContent]))"


@pytest.fixture
def make(make_pooler):
    def build(**ini):
        port = free_port()
        pooler = make_pooler(ini={"metrics_listen": f"127.0.0.1:{port}", **ini})
        pooler.url = f"http://127.0.0.1:{port}/"
        pooler.metrics = port
        pooler.wait_log("serving metrics on")
        return pooler

    return build


@pytest.fixture
def browser():
    browser = Browser()
    yield browser
    browser.close()


def test_parts_have_a_strict_policy(make):
    pooler = make()
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = fetch(pooler.metrics, path)
        assert answer.status == 200 and answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';") and "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), "it needs nobody else"


def test_it_shows_pools_and_who_waits_under_load(make, browser):
    pooler = make(default_pool_size=2)
    with Background(transactions(pooler, statement="SELECT pg_sleep(0.003)"), 5) as load, \
            Background(transactions(pooler, "app2", "p1"), 1) as other:
        until(lambda: load.done > 20 and other.done > 20, 30)
        browser.open(pooler.url)
        looks = int(os.environ.get("E2E_PAGE_LOOKS", "4"))
        until(lambda: int(browser.evaluate("document.body.dataset.looks || '0'")) >= looks, 60 + 3 * looks)
        until(lambda: browser.evaluate(TILES)["waiting clients"] != "0", 20)
        rows, tiles = browser.evaluate(ROWS), browser.evaluate(TILES)
        state = browser.evaluate("document.getElementById('state').textContent")
        paths = browser.evaluate("[...document.querySelectorAll('.chart path')].map(path => path.getAttribute('d').length)")
        if where := os.environ.get("E2E_PAGE_PICTURES"):
            Path(where, "light.png").write_bytes(browser.screenshot())
            browser.dark()
            Path(where, "dark.png").write_bytes(browser.screenshot())
    assert state == "serving" and browser.complaints == []
    assert {tuple(row[:2]) for row in rows} == {("p0", "app"), ("p1", "app2")}
    database, user, servers, _, waiting, because, _, queries, wait50, _, wait99, query50, _ = next(row for row in rows if row[0] == "p0")
    assert servers == "2 of 2" and int(waiting) >= 1 and because == "pool full"
    assert float(queries.rstrip(" k")) > 0 and query50 != "–" and wait50 != "–" and wait99.endswith("ms")
    assert float(tiles["queries/s"].rstrip(" k")) > 0 and tiles["servers in use"].split()[0] in ("2", "3")
    assert len(paths) == 11 and all(length > 8 for length in paths)
    assert {url for url in browser.asked if not url.startswith(pooler.url)} <= {"about:blank"}


def test_names_of_strangers_stay_text(make, browser):
    """Database names are anybody's choice where there is a * entry."""
    name = "<img src=x onerror=alert(1)>\"\\"
    pooler = make()
    pooler.databases["*"] = pooler.backend()
    pooler.write()
    pooler.reload()
    with pooler.login("app", name):
        browser.open(pooler.url)
        until(lambda: browser.evaluate(ROWS), 30)
        assert [row[0] for row in browser.evaluate(ROWS)] == [name]
        assert browser.evaluate("document.images.length") == 0 and browser.complaints == []


def test_without_pools_and_with_many_it_says_so(make, browser):
    pooler = make(max_client_conn=200)
    pooler.databases["*"] = pooler.backend()
    pooler.write()
    pooler.reload()
    more = "document.getElementById('more').textContent"
    browser.open(pooler.url)
    until(lambda: browser.evaluate(more) == "No pool yet: it is made when its first client logs in.", 30)
    clients = [pooler.login("app", f"db{n:02}") for n in range(54)]
    clients[-1].query("SELECT 1")
    until(lambda: browser.evaluate(more) == "4 more, with fewer waiting clients and queries, are in /metrics.", 30)
    busiest = ["db53", *(f"db{n:02}" for n in range(49))]
    until(lambda: [row[0] for row in browser.evaluate(ROWS)] == busiest, 20)
    assert browser.complaints == []
    # text of a chart has the size of text, however narrow the window
    browser.resize(400, 800)
    scale = "[...document.querySelectorAll('.chart svg')].map(svg => svg.clientWidth / svg.viewBox.baseVal.width)"
    until(lambda: [round(ratio, 2) for ratio in browser.evaluate(scale)] == [1] * 4, 20)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "only the table scrolls sideways"
    for client in clients:
        client.close()


def test_it_says_when_clients_are_not_served(make, browser):
    pooler = make(default_pool_size=1)
    with pooler.login() as holder, pooler.login() as waiter:
        holder.query("BEGIN")
        waiter.send(query("SELECT 1"))
        pooler.admin("PAUSE p1")
        browser.open(pooler.url)
        state = "document.getElementById('state')"
        until(lambda: browser.evaluate(f"{state}.textContent") == "serving", 30)
        holder.query("COMMIT")
        waiter.result()
        pooler.admin("PAUSE")
        until(lambda: browser.evaluate(f"{state}.textContent + {state}.className") == "pausedbad", 30)
        pooler.stop()
        until(lambda: browser.evaluate(f"{state}.textContent") == "does not answer", 30)
        assert browser.evaluate("document.body.className + document.title") == "stalepgusher: does not answer"
