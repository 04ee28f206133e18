"""Answers of the console that are longer than what it sends in one go."""

import pytest

from support.wire import SYNC, bind, describe, execute, parse, query

pytestmark = pytest.mark.ours

CLIENTS = 1200


@pytest.fixture
def crowded(make_pooler):
    pooler = make_pooler(ini={"max_client_conn": 2000})
    clients = [pooler.login() for _ in range(CLIENTS)]
    yield pooler
    for client in clients:
        client.close()


def ids(result):
    return [row[result.names.index("id")] for row in result.rows]


def test_who_asks_ahead_and_reads_late_gets_everything_in_order(crowded):
    with crowded.console() as console, crowded.login() as other:
        console.send(query("SHOW CLIENTS") * 30 + query("SHOW VERSION"))
        for _ in range(50):
            assert other.query("SELECT 1").value == "1"
        lists = [console.result() for _ in range(30)]
        assert console.result().names == ["version"]
    for shown in lists:
        assert shown.tags == ["SHOW"] and len(set(ids(shown))) == CLIENTS + 2
    assert sum(len(message.body) for shown in lists for message in shown.messages) > 4_000_000, "nor did it fit into the sockets"


@pytest.mark.parametrize("portions", [[0], [500, 500, 0], [CLIENTS + 1, 0], [CLIENTS + 2]])
def test_extended_protocol(crowded, portions):
    with crowded.console() as console:
        simple = console.query("SHOW CLIENTS")
        console.send(parse("", "SHOW CLIENTS") + bind() + describe("P") + b"".join(execute("", rows) for rows in portions) + SYNC)
        extended = console.result()
    assert extended.columns == simple.columns and sorted(ids(extended)) == sorted(ids(simple))
    assert extended.tags == ["SHOW"] and extended.status == "I"
    assert len(simple.rows) == CLIENTS + 1
