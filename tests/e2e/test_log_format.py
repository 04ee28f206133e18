"""Log lines as JSON objects, and bursts of lines that are counted instead of written."""

import json
import re

import pytest

from support.system import until
from support.wire import ServerError

pytestmark = pytest.mark.ours


def events(text):
    """Every line is one object; the words of their names are what programs rely on."""
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        assert list(event)[:3] == ["ts", "pid", "level"] and "message" in event, event
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["ts"])
    return found


def one(found, **wanted):
    message = wanted.pop("message")
    hits = [e for e in found if re.search(message, e["message"]) and all(e.get(k) == v for k, v in wanted.items())]
    assert hits, (message, wanted, found)
    return hits[-1]


@pytest.fixture
def json_pooler(make_pooler):
    pooler = make_pooler(start=False, ini={"log_format": "json"})
    pooler.ini["logfile"] = pooler.dir / "p.log"
    pooler.write()
    return pooler.start()


def test_an_event_is_an_object_with_fields(json_pooler):
    with json_pooler.login() as client:
        assert client.query("SELECT 1").value == "1"
        port = client.sock.getsockname()[1]
    until(lambda: "closing because" in json_pooler.log())
    found = events(json_pooler.log())
    login = one(found, message="^login attempt: db=p0 user=app ", side="client", level="LOG", database="p0", user="app",
                addr="127.0.0.1", pid=json_pooler.process.pid)
    assert re.fullmatch(r"0x[0-9a-f]+", login["id"]) and login["port"] == port
    server = one(found, message="^new connection to server", side="server", database="p0", user="app", port=json_pooler.pg.port)
    assert server["id"] != login["id"]
    assert "side" not in one(found, message="^process up:")
    # the same on stderr and in the file, which comes second
    until(lambda: "closing because" in (json_pooler.dir / "p.log").read_text())
    assert events((json_pooler.dir / "p.log").read_text()) == found


def test_the_cause_of_a_crash_is_said(json_pooler):
    with json_pooler.login() as client:
        client.query("BEGIN")
        pid = client.query("SELECT pg_backend_pid()").value
        with json_pooler.login(database="p1") as other:
            other.query(f"SELECT pg_terminate_backend({pid}, 5000)")
        until(lambda: json_pooler.log().count('"cause"') >= 2, what="the client's line and the server's")
    found = events(json_pooler.log())
    for side in ("client", "server"):
        one(found, message=r"^closing because: server conn crashed\?", side=side, cause="the server closed the connection")
    # PgBouncer's words have nothing added in text
    assert not [event for event in found if "the server closed" in event["message"]]


def test_nobody_forges_a_line(json_pooler):
    evil = 'x"}\n{"ts":"1","message":"forged"}\r\x1b[2J\u2028\u0085'
    for name in (evil, evil * 3):
        with json_pooler.wire() as wire:
            with pytest.raises(ServerError):
                wire.login(name, "p0")
    until(lambda: "no such user" in json_pooler.log())
    found = events(json_pooler.log())
    assert not [event for event in found if event["message"] == "forged"]
    assert evil == one(found, message="^login attempt")["user"]


def test_a_reload_changes_the_format(pooler):
    lines = len(pooler.log().splitlines())
    pooler.ini["log_format"] = "json"
    pooler.write()
    pooler.reload()
    pooler.login().close()
    until(lambda: '"message":"login attempt: db=p0' in pooler.log())
    text = pooler.log().splitlines()[lines:]
    first = next(index for index, line in enumerate(text) if line.startswith("{"))
    events("\n".join(text[first:]))
    with pooler.console() as console:
        console.query("SET log_format='text'")
    pooler.login().close()
    until(lambda: re.search(r"\] LOG C-0x\w+: p0/app@127.0.0.1:\d+ login attempt: db=p0", pooler.log()))


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_burst_is_counted(make_pooler, form):
    pooler = make_pooler(ini={"log_format": form, "log_rate_limit": 5})
    for _ in range(60):
        pooler.login().close()
    # whatever was not written is accounted for, by the end of the next second at the latest
    def accounted():
        text = pooler.log()
        written = len(re.findall(r"(?<!: )login attempt: db=p0", text))
        return written + sum(int(n) for n in re.findall(r"repeated (\d+) times: [^\n]*login attempt: db=p0", text)) >= 60

    until(accounted)
    text = pooler.log()
    if form == "json":
        assert one(events(text), message="^repeated .*login attempt")["repeated"] > 0
    else:
        line = re.search(r"LOG repeated \d+ times: C-0x\w+: p0/app@127.0.0.1:\d+ login attempt: db=p0", text)
        assert line, text


def test_without_a_limit_every_line_is_written(pooler):
    for _ in range(60):
        pooler.login().close()
    pooler.wait_log("login attempt: db=p0 user=app", 60)
    assert "repeated" not in pooler.log()
