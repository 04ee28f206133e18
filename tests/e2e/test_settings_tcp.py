"""The TCP settings, as the sockets themselves have them."""

import socket

import pytest

from support.sockets import backlog, is_listening, sockets_of
from support.system import until

KEEPALIVE = {"tcp_keepcnt": (socket.TCP_KEEPCNT, 7), "tcp_keepidle": (socket.TCP_KEEPIDLE, 61), "tcp_keepintvl": (socket.TCP_KEEPINTVL, 13)}


def option(sock, name, level=socket.IPPROTO_TCP):
    return sock.getsockopt(level, name)


@pytest.fixture
def sockets(make_pooler):
    """Listener, client socket and server socket of a pooler with these settings."""
    opened = []

    def make(pooler=None, **ini):
        pooler = pooler or make_pooler(ini=ini)
        with pooler.login() as wire:
            wire.query("BEGIN")
            mine = sockets_of(pooler.process.pid)
            opened.extend(mine)
            listener = next(s for s in mine if is_listening(s))
            client = next(s for s in mine if not is_listening(s) and s.getsockname()[1] == pooler.port)
            servers = [s for s in mine if not is_listening(s) and s.getpeername()[1] == pooler.pg.port]
            assert len(servers) == 1, [(s.getsockname(), option(s, socket.TCP_KEEPIDLE)) for s in servers]
            server = servers[0]
            wire.query("COMMIT")
        return pooler, listener, client, server

    yield make
    for sock in opened:
        sock.close()


def test_defaults(sockets):
    _, listener, client, server = sockets()
    assert option(listener, socket.TCP_DEFER_ACCEPT) > 0 and backlog(listener) == 128
    for sock in (client, server):
        assert option(sock, socket.SO_KEEPALIVE, socket.SOL_SOCKET) == 1
        assert option(sock, socket.TCP_NODELAY) != 0
        assert option(sock, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize("setting", KEEPALIVE)
def test_keepalive_values(sockets, setting):
    name, value = KEEPALIVE[setting]
    _, _, client, server = sockets(**{setting: value})
    assert (option(client, name), option(server, name)) == (value, value)


def test_keepalive_off(sockets):
    _, _, client, server = sockets(tcp_keepalive=0, tcp_keepidle=61)
    assert [option(s, socket.SO_KEEPALIVE, socket.SOL_SOCKET) for s in (client, server)] == [0, 0]


def test_user_timeout(sockets):
    _, _, client, server = sockets(tcp_user_timeout=12345)
    assert [option(s, socket.TCP_USER_TIMEOUT) for s in (client, server)] == [12345, 12345]


def test_socket_buffer(sockets):
    """Linux gives twice what is asked for."""
    _, _, client, server = sockets(tcp_socket_buffer=40000)
    for sock in (client, server):
        assert [option(sock, which, socket.SOL_SOCKET) for which in (socket.SO_SNDBUF, socket.SO_RCVBUF)] == [80000, 80000]


def test_listen_backlog_and_defer_accept(sockets):
    _, listener, _, _ = sockets(listen_backlog=17, tcp_defer_accept=0)
    assert backlog(listener) == 17 and option(listener, socket.TCP_DEFER_ACCEPT) == 0


@pytest.mark.since("1.25")
def test_defer_accept_changes_the_listener_that_is_there(sockets):
    pooler, listener, _, _ = sockets()
    pooler.admin("SET tcp_defer_accept = 0")
    until(lambda: option(listener, socket.TCP_DEFER_ACCEPT) == 0)
    pooler.admin("SET tcp_defer_accept = 1")
    until(lambda: option(listener, socket.TCP_DEFER_ACCEPT) > 0)


def test_changed_values_are_for_sockets_to_come(sockets):
    pooler, _, client, server = sockets(tcp_keepidle=61)
    pooler.admin("SET tcp_keepidle = 77")
    assert [option(s, socket.TCP_KEEPIDLE) for s in (client, server)] == [61, 61]
    pooler.admin("RECONNECT p0")
    until(lambda: not pooler.show("SERVERS"))
    _, _, client, server = sockets(pooler)
    assert [option(s, socket.TCP_KEEPIDLE) for s in (client, server)] == [77, 77]


def test_so_reuseport(sockets):
    _, listener, _, _ = sockets(so_reuseport=1)
    assert option(listener, socket.SO_REUSEPORT, socket.SOL_SOCKET) == 1
