"""Where servers are: lists of hosts, sockets, names and what DNS says about them."""

import os
import struct
import time
from contextlib import ExitStack, contextmanager

import pytest

from support.dns import DnsServer
from support.system import holds, until
from support.wire import CANCEL_REQUEST, query

NOBODY = "127.0.0.9"
WHERE = "SELECT host(inet_server_addr())"
# Of a zone that no hosts file and no real server knows.
NAME, OTHER = "db.pooler-test.internal", "other.pooler-test.internal"


@pytest.fixture
def dns():
    if os.geteuid() != 0:
        pytest.skip("port 53 is for root")
    server = DnsServer()
    yield server
    server.stop()


@pytest.fixture
def make(make_pooler, pg):
    """A pooler whose database `p0` is at `host`."""
    def make(host=None, ini=None, start=True, **entry):
        where = {} if host is None else {"host": host}
        entry = {"port": pg.port, "dbname": "p0", **where, **entry}
        return make_pooler(ini=ini, databases={"p0": entry}, start=start)

    return make


@pytest.fixture
def with_dns(make, dns):
    """As `make`, with names from `dns`."""
    def make_with_dns(host=NAME, ini=None, **entry):
        return make(host, ini={"resolv_conf": dns.resolv_conf, **(ini or {})}, **entry)

    return make_with_dns


@contextmanager
def open_servers(pooler, count):
    """That many servers at a time, one after another; gives the addresses they say they have."""
    with ExitStack() as stack:
        seen = []
        for _ in range(count):
            wire = stack.enter_context(pooler.login(timeout=20))
            wire.query("BEGIN")
            seen.append(wire.query(WHERE).value)
        yield seen


def addresses(pooler, count):
    with open_servers(pooler, count) as seen:
        return seen


def shown_host(pooler, name=NAME):
    return next((row for row in pooler.show("DNS_HOSTS") if row["hostname"] == name), None)


def forgotten(pooler, name=NAME):
    """Waits until the next connection asks anew; the time that is shown lacks the fraction of a second."""
    until(lambda: shown_host(pooler, name)["ttl"] == "0")
    holds(lambda: shown_host(pooler, name)["ttl"] == "0", 1.1, every=0.2)


def test_a_list_goes_round(make):
    pooler = make("127.0.0.1,127.0.0.2")
    assert addresses(pooler, 4) == ["127.0.0.1", "127.0.0.2"] * 2
    assert pooler.pool()["load_balance_hosts"] == "round-robin"


def test_without_load_balancing_the_first_host_is_kept(make):
    pooler = make("127.0.0.1,127.0.0.2", load_balance_hosts="disable")
    assert addresses(pooler, 4) == ["127.0.0.1"] * 4


def test_without_load_balancing_a_failure_moves_on(make):
    pooler = make(f"{NOBODY},127.0.0.2", load_balance_hosts="disable")
    assert addresses(pooler, 3) == ["127.0.0.2"] * 3
    assert pooler.log().count("closing because: connect failed") == 1


def test_a_failing_host_costs_a_retry(make):
    pooler = make(f"{NOBODY},127.0.0.2")
    started = time.monotonic()
    with open_servers(pooler, 1) as seen:
        assert seen == ["127.0.0.2"]
        assert 0.9 < time.monotonic() - started < 5
        with pooler.login() as second:
            started = time.monotonic()
            assert second.query(WHERE).value == "127.0.0.2"
            assert 0.9 < time.monotonic() - started < 5
    assert pooler.log().count(f"p0/app@{NOBODY}:{pooler.pg.port} closing because: connect failed") == 2


def test_a_cancel_goes_to_the_host_of_its_server(make, pg):
    """The hosts of a list may be different servers, so the host whose turn it is will not do."""
    pooler = make("127.0.0.1,127.0.0.2")
    with pooler.login() as first, pooler.login() as second:
        first.query("BEGIN")
        second.query("BEGIN")
        for round in range(3):
            for wire, address in ((first, "127.0.0.1"), (second, "127.0.0.2")):
                wire.send(query(f"SELECT pg_sleep(30), '{address}'"))
                until(lambda: pg.sleeping(f"'{address}'"))
                cancel(pooler, wire.key)
                assert wire.result().error["C"] == "57014"
                line = f"@{address}:{pg.port} closing because: successfully sent cancel request"
                pooler.wait_log(line, round + 1)
                wire.query("ROLLBACK")
                wire.query("BEGIN")


def cancel(pooler, key):
    with pooler.wire() as wire:
        wire.send(struct.pack("!II", 16, CANCEL_REQUEST) + key)
        assert wire.at_eof()


@pytest.mark.parametrize("place", ["{}", "{}/second", "@{}"], ids=["directory", "second", "abstract"])
def test_unix_sockets(make, pg, place):
    pooler = make(place.format(pg.dir))
    with pooler.login() as wire:
        assert wire.query(WHERE).value is None
        row = next(r for r in pooler.show("SERVERS"))
        assert (row["addr"], row["port"], row["local_addr"]) == ("unix", str(pg.port), "unix")
        with pooler.login() as sleeper:
            sleeper.send(query("SELECT pg_sleep(30), 'over unix'"))
            until(lambda: pg.sleeping("over unix"))
            cancel(pooler, sleeper.key)
            assert sleeper.result().error["C"] == "57014"


def test_a_list_of_sockets_and_addresses(make, pg):
    pooler = make(f"{pg.dir},127.0.0.2,::1")
    assert addresses(pooler, 4) == [None, "127.0.0.2", "::1", None]


def test_ipv6_literal(make, pg):
    pooler = make("::1")
    with open_servers(pooler, 1) as seen:
        assert seen == ["::1"]
        assert pooler.show("SERVERS")[0]["addr"] == "::1"
    assert f"@[::1]:{pg.port} new connection to server (from [::1]:" in pooler.log()


def test_no_host_is_our_own_socket_directory(make, pg):
    pooler = make(ini={"unix_socket_dir": pg.dir})
    assert addresses(pooler, 1) == [None]


def test_no_host_and_no_socket_directory(make):
    pooler = make(ini={"unix_socket_dir": "", "query_wait_timeout": 2})
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        pooler.wait_log("ERROR unix socket dir not configured: p0")
        pooler.wait_log("closing because: cannot connect")
        wire.expect_fatal("query_wait_timeout")


def test_a_name_is_looked_up(with_dns, dns):
    dns.names[NAME] = ["127.0.0.2"]
    pooler = with_dns()
    assert addresses(pooler, 2) == ["127.0.0.2"] * 2
    assert dns.count(NAME, "A") == dns.count(NAME, "AAAA") == 1, "the answer is kept, whatever its lifetime"
    row = shown_host(pooler)
    assert row["addrs"] == "127.0.0.2:0" and 10 <= int(row["ttl"]) <= 15
    lists = {row["list"]: row["items"] for row in pooler.show("LISTS")}
    assert (lists["dns_names"], lists["dns_zones"], lists["dns_queries"]) == ("1", "1", "0")
    zone = NAME.partition(".")[2]
    assert pooler.show("DNS_ZONES") == [{"zonename": zone, "serial": "0", "count": "1"}], "zones are known, and not checked"
    assert dns.count(zone, "SOA") == 0


def test_ipv6_comes_first_and_alone(with_dns, dns):
    dns.names[NAME] = ["127.0.0.1", "::1", "127.0.0.2"]
    pooler = with_dns()
    assert addresses(pooler, 3) == ["::1"] * 3
    assert shown_host(pooler)["addrs"] == "[::1]:0"


def test_addresses_of_a_name_go_round(with_dns, dns):
    dns.names[NAME] = ["127.0.0.1", "127.0.0.2"]
    assert sorted(addresses(with_dns(), 4)) == ["127.0.0.1"] * 2 + ["127.0.0.2"] * 2


def test_a_name_that_does_not_exist(with_dns, dns):
    """The failure is known at once, and remembered."""
    pooler = with_dns(ini={"dns_nxdomain_ttl": 6})
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        pooler.wait_log(f"WARNING DNS lookup failed: {NAME}: result=0", timeout=4)
        pooler.wait_log("p0/app@(bad-af):0 closing because: server DNS lookup failed", timeout=5)
        pooler.wait_log("closing because: server DNS lookup failed", 2, timeout=5)
        assert pooler.log().count("DNS lookup failed: ") == 1 and dns.count(NAME, "A") == 1
        assert shown_host(pooler)["addrs"] == ""
        dns.names[NAME] = ["127.0.0.1"]
        wire.finish_login("app")
        assert wire.query("SELECT 1").value == "1"
    assert dns.count(NAME, "A") == 2


def test_a_failed_lookup_is_told_to_logged_in_clients(with_dns, dns):
    dns.names[NAME] = ["127.0.0.1"]
    pooler = with_dns(ini={"dns_max_ttl": 1, "server_login_retry": 20})
    with pooler.login() as wire, pooler.login() as late:
        wire.query("SELECT 1")
        del dns.names[NAME]
        pooler.admin("RECONNECT p0")
        until(lambda: pooler.show("SERVERS") == [])
        forgotten(pooler)
        # the reply is gone with RECONNECT, but these two are logged in
        wire.send(query("SELECT 1"))
        pooler.wait_log("server DNS lookup failed")
        late.send(query("SELECT 1"))
        late.expect_fatal("server login has been failing, cached error: server DNS lookup failed (server_login_retry)")


def test_a_server_that_fails_and_one_that_is_silent(with_dns, dns):
    dns.broken.add(NAME)
    pooler = with_dns(ini={"dns_nxdomain_ttl": 1})
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        pooler.wait_log(f"DNS lookup failed: {NAME}", timeout=5)
        dns.silent = True
        dns.broken.clear()
        pooler.wait_log(f"DNS lookup failed: {NAME}", 2, timeout=14)
        dns.names[NAME], dns.silent = ["127.0.0.1"], False
        wire.finish_login("app")


def test_the_hosts_file_needs_no_server(with_dns, dns):
    dns.silent = True
    assert addresses(with_dns("localhost"), 1)[0] in ("127.0.0.1", "::1")
    assert dns.asked == []


def test_resolv_conf_may_change(with_dns, dns):
    dns.names[NAME] = ["127.0.0.2"]
    text = dns.resolv_conf.read_text()
    dns.resolv_conf.write_text(f"nameserver {NOBODY}\n")
    pooler = with_dns(ini={"dns_nxdomain_ttl": 1})
    with pooler.wire() as wire:
        wire.startup("app", "p0")
        pooler.wait_log(f"DNS lookup failed: {NAME}", timeout=14)
        dns.resolv_conf.write_text(text + "# for good\n")
        wire.finish_login("app")
        assert wire.query(WHERE).value == "127.0.0.2"


def test_search_list(with_dns, dns):
    dns.resolv_conf.write_text(dns.resolv_conf.read_text() + "search pooler-test.internal\n")
    dns.names[NAME] = ["127.0.0.2"]
    pooler = with_dns("db")
    assert addresses(pooler, 1) == ["127.0.0.2"]
    assert shown_host(pooler, "db")["addrs"] == "127.0.0.2:0"


def test_servers_at_a_lost_address_are_replaced(with_dns, dns):
    dns.names[NAME] = ["127.0.0.1"]
    pooler = with_dns(ini={"dns_max_ttl": 1})
    with pooler.login() as held, pooler.login() as other:
        held.query("BEGIN")
        assert held.query(WHERE).value == "127.0.0.1"
        other.query("BEGIN")
        other.query("SELECT 1")
        other.query("COMMIT")
        dns.names[NAME] = ["127.0.0.2"]
        forgotten(pooler)
        with open_servers(pooler, 2) as seen:
            assert seen == ["127.0.0.1", "127.0.0.2"], "one was idle, the other is new"
            flags = {row["addr"]: row["close_needed"] for row in pooler.show("SERVERS")}
            assert flags == {"127.0.0.1": "1", "127.0.0.2": "0"}
            assert held.query(WHERE).value == "127.0.0.1", "in the middle of a transaction nothing changes"
            held.query("COMMIT")
            pooler.wait_log("@127.0.0.1:" + f"{pooler.pg.port} closing because: close_needed")
        until(lambda: "127.0.0.1" not in {row["addr"] for row in pooler.show("SERVERS")})


def test_servers_of_lists_keep_lost_addresses(with_dns, dns):
    dns.names.update({NAME: ["127.0.0.1"], OTHER: ["127.0.0.1"]})
    pooler = with_dns(f"{NAME},{OTHER}", ini={"dns_max_ttl": 1})
    with open_servers(pooler, 2):
        dns.names.update({NAME: ["127.0.0.2"], OTHER: ["127.0.0.2"]})
        forgotten(pooler, OTHER)
        with pooler.login() as wire:
            assert wire.query(WHERE).value == "127.0.0.2"
        assert {row["close_needed"] for row in pooler.show("SERVERS")} == {"0"}


def test_a_zone_that_grows_is_asked_again(with_dns, dns):
    zone = NAME.partition(".")[2]
    dns.names[NAME], dns.serials[zone] = ["127.0.0.1"], 2026050801
    pooler = with_dns(ini={"dns_zone_check_period": 1, "dns_max_ttl": 600})
    with pooler.login() as wire:
        assert wire.query(WHERE).value == "127.0.0.1"
    pooler.wait_log(f"LOG zone '{zone}' serial changed: old=0 new=2026050801")
    assert pooler.show("DNS_ZONES") == [{"zonename": zone, "serial": "2026050801", "count": "1"}]
    until(lambda: dns.count(NAME, "A") == 2)
    dns.names[NAME] = ["127.0.0.2"]
    until(lambda: dns.count(zone, "SOA") >= 4)
    assert dns.count(NAME, "A") == 2, "a zone that stays is left alone"
    dns.serials[zone] += 1
    pooler.wait_log(f"LOG zone '{zone}' serial changed: old=2026050801 new=2026050802")
    # nobody asked for a server meanwhile
    pooler.wait_log("closing because: database configuration changed")
    assert addresses(pooler, 1) == ["127.0.0.2"]
    dns.serials[zone] -= 5
    asked = dns.count(zone, "SOA")
    until(lambda: dns.count(zone, "SOA") >= asked + 2)
    assert pooler.show("DNS_ZONES")[0]["serial"] == "2026050802"
    pooler.admin("SET dns_zone_check_period = 0")
    assert len(pooler.show("DNS_ZONES")) == 1
    asked = dns.count(zone, "SOA")
    holds(lambda: dns.count(zone, "SOA") <= asked + 1, 2)
