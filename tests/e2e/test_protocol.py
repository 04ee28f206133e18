"""Startup packets, refusals and malformed bytes, looked at message by message."""

import random
import re
import struct

import pytest

from support.system import until
from support.wire import (CANCEL_REQUEST, GSSENC_REQUEST, SSL_REQUEST, Message, ServerError, cstr, message, query, startup_packet)


def packet(code, body=b"", length=None):
    return struct.pack("!II", 8 + len(body) if length is None else length, code) + body


@pytest.mark.parametrize("data, text", [
    (packet(0x20000), "old V2 protocol not supported"),
    (packet(0x40000, b"\0\0"), "bad packet header: '0000000a00040000'"),
    (packet(0x40000, b"", 0x22) + b"x" * 26, "bad packet header: '0000002200040000'"),
    (packet(0x30000, b"", 4), "bad packet header: '0000000400030000'"),
    (b"\0\1\0\x20\0\3\0\0", "bad packet header: '0001002000030000'"),
    (b"p\0\0\0\x06x\0", "client password pkt before startup packet"),
    (packet(0x30000, cstr("database") + cstr("p0") + b"\0"), "no username supplied"),
    (packet(0x30000, cstr("user") + cstr("") + b"\0"), "no username supplied"),
    (packet(0x30000, cstr("user") + cstr("app") + cstr("nosuch_key") + cstr("1") + b"\0"),
     "unsupported startup parameter: nosuch_key"),
])
def test_refused_before_login(pooler, data, text):
    with pooler.wire() as wire:
        wire.send(data)
        wire.expect_fatal(text)
    pooler.wait_log(f"pooler error: {text}")


@pytest.mark.since("1.25")
@pytest.mark.parametrize("body", [
    cstr("user") + cstr("app"),
    cstr("user") + cstr("app") + b"\0\0",
    cstr("user") + b"app",
    cstr("user") + cstr("app") + b"\0more",
])
def test_startup_layout(pooler, body):
    with pooler.wire() as wire:
        wire.send(packet(0x30000, body))
        wire.expect_fatal("invalid startup packet layout: expected terminator as last byte")


def test_regular_message_first_closes_silently(pooler):
    with pooler.wire() as wire:
        wire.send(query("SELECT 1"))
        assert wire.at_eof()


@pytest.mark.parametrize("request_code", [SSL_REQUEST, GSSENC_REQUEST])
def test_encryption_requests_are_declined(pooler, request_code):
    with pooler.wire() as wire:
        wire.send(packet(request_code))
        assert wire.raw(1) == b"N"
        wire.login("app", "p0")
        assert wire.query("SELECT 1").value == "1"


def test_both_encryption_requests_then_login(pooler):
    with pooler.wire() as wire:
        for code in (GSSENC_REQUEST, SSL_REQUEST):
            wire.send(packet(code))
            assert wire.raw(1) == b"N"
        wire.login("app", "p0")


@pytest.mark.since("1.25")
def test_startup_split_into_single_bytes(pooler):
    with pooler.wire() as wire:
        for byte in startup_packet({"user": "app", "database": "p0"}):
            wire.send(bytes([byte]))
        wire.finish_login("app")
        for byte in query("SELECT 12"):
            wire.send(bytes([byte]))
        assert wire.result().value == "12"


def test_database_defaults_to_the_user_name(make_pooler):
    pooler = make_pooler(start=False)
    pooler.databases["app"] = pooler.backend("p1")
    pooler.write()
    pooler.start()
    with pooler.wire() as wire:
        wire.startup("app")
        wire.finish_login("app")
        assert wire.query("SELECT current_database()").value == "p1"


def test_ignored_and_unknown_startup_parameters(make_pooler):
    pooler = make_pooler(ini={"ignore_startup_parameters": "extra_float_digits, search_path"})
    pooler.login("app", extra_float_digits="3", search_path="x").close()
    with pytest.raises(ServerError, match="FATAL 08P01: unsupported startup parameter: geqo"):
        pooler.login("app", geqo="off")
    pooler.wait_log("unsupported startup parameter: geqo=off")


@pytest.mark.since("1.20")
@pytest.mark.parametrize("options, name, value", [
    ("-c datestyle=German", "DateStyle", "German, DMY"), ("--timezone=Asia/Tokyo", "TimeZone", "Asia/Tokyo"),
    ("-ctimezone=UTC -c application_name=with\\ blank", "application_name", "with blank"),
])
def test_options_carry_tracked_parameters(pooler, options, name, value):
    with pooler.login("app", options=options) as wire:
        assert wire.query(f"SHOW {name}").value == value


@pytest.mark.since("1.20")
@pytest.mark.parametrize("options, text", [
    ("-c geqo=off", "unsupported startup parameter in options: geqo"),
    ("-B 7", "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"),
    ("-c geqo", "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"),
])
def test_options_that_are_refused(pooler, options, text):
    with pytest.raises(ServerError) as refused:
        pooler.login("app", options=options)
    assert refused.value.message == text


@pytest.mark.since("1.23")
@pytest.mark.parametrize("code, extra, unknown", [(0x30002, {}, []), (0x30000, {"_pq_.command": "1"}, ["_pq_.command"]),
                                                  (0x3270F, {"_pq_.a": "1", "_pq_.b": "2"}, ["_pq_.a", "_pq_.b"])])
def test_protocol_negotiation_comes_first_and_once(pooler, code, extra, unknown):
    with pooler.wire() as wire:
        wire.startup("app", "p0", code=code, **extra)
        wire.finish_login("app")
        first, *others = wire.login_messages
        assert first == Message("v", struct.pack("!II", 0x30000, len(unknown)) + b"".join(cstr(n) for n in unknown))
        assert "v" not in [m.type for m in others]
        assert len(wire.key) == 8
        assert wire.query("SELECT 1").value == "1"


@pytest.mark.since("1.25")
def test_login_reply_order(pooler):
    with pooler.login("app", application_name="x", TimeZone="Asia/Tokyo") as wire:
        types = "".join(m.type for m in wire.login_messages)
        assert types[0] == "R" and types.endswith("KZ") and set(types[1:-2]) == {"S"}
        tracked = ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name"]
        assert [n for n in wire.parameter_order if n in tracked] == tracked
        assert wire.parameters["TimeZone"] == "Asia/Tokyo" and wire.parameters["application_name"] == "x"
        assert wire.parameters["server_version"].startswith("15") and wire.parameters["integer_datetimes"] == "on"


def test_max_client_conn(make_pooler):
    pooler = make_pooler(ini={"max_client_conn": 3})
    clients = [pooler.login() for _ in range(3)]
    with pytest.raises(ServerError) as refused:
        pooler.login()
    assert list(refused.value.fields.items()) == [("S", "FATAL"), ("C", "08P01"), ("M", "no more connections allowed (max_client_conn)")]
    with pooler.console() as console:
        assert console.query("SHOW VERSION").rows
    clients.pop().close()

    def admitted():
        try:
            return pooler.login()
        except ServerError:
            return None

    until(admitted, what="the place of the one that left is free")


@pytest.mark.parametrize("kind", ["\x01", "z", "T", "A"])
def test_unknown_type_from_a_logged_in_client(pooler, kind):
    with pooler.login() as wire:
        wire.send(message(kind, b"abcd"))
        wire.expect_fatal("unknown pkt")
    pooler.wait_log(f"unknown pkt from client: {ord(kind)}/0x{ord(kind):x}")


@pytest.mark.parametrize("data, shown", [(b"Q\0\0\0\3", "5100000003"), (b"Q\xff\xff\xff\xff", "51ffffffff"), (b"P\0\0\0\0", "5000000000")])
def test_bad_length_from_a_logged_in_client(pooler, data, shown):
    with pooler.login() as wire:
        wire.send(data)
        wire.expect_fatal(f"bad packet header: '{shown}'")


def test_max_packet_size(make_pooler):
    pooler = make_pooler(ini={"max_packet_size": 1000})
    with pooler.login() as wire:
        assert wire.query("SELECT 1 --" + "x" * 900).value == "1"
        wire.send(query("SELECT 1 --" + "x" * 1000)[:5])
        wire.expect_fatal(f"bad packet header: '51{1016:08x}'")


def test_disable_pqexec(make_pooler):
    pooler = make_pooler(ini={"disable_pqexec": 1})
    with pooler.login() as wire:
        wire.send(query("SELECT 1"))
        wire.expect_fatal("PQexec disallowed")
    pooler.wait_log(re.compile("client used .* packet type"))


@pytest.mark.parametrize("body", [b"", b"\0\0\0\1", b"\0" * 7, b"\0" * 9])
def test_cancel_request_of_wrong_length_is_closed_silently(pooler, body):
    with pooler.wire() as wire:
        wire.send(packet(CANCEL_REQUEST, body))
        assert wire.at_eof()


def test_terminate_is_logged(pooler):
    with pooler.login() as wire:
        wire.send(message("X"))
        assert wire.at_eof()
    pooler.wait_log("closing because: client close request")


@pytest.mark.slow(180)
def test_a_thousand_random_connections(pooler):
    """Whatever strangers send, nobody else notices and nothing stays behind."""
    random.seed(20240607)
    honest = pooler.login()
    for turn in range(1000):
        with pooler.wire(timeout=5) as wire:
            junk = random.randbytes(random.randint(1, 200))
            if turn % 3 == 0:
                junk = packet(0x30000, junk[:60])
            elif turn % 3 == 1:
                junk = startup_packet({"user": "app", "database": "p0"}) + random.choice("QPBDECSHFdcfp").encode() + junk
            wire.send(junk)
        if turn % 50 == 0:
            assert honest.query(f"SELECT {turn}").value == str(turn)
    assert pooler.alive
    assert honest.query("SELECT 1").value == "1"
    until(lambda: len(pooler.show("CLIENTS")) == 2, 10, what="only the honest client and the console are left")
    pooler.login().close()
