"""Every client method with every form of the stored secret towards every server method: what works, and the exact error
of what does not."""

import unicodedata

import pytest

from support.secrets import md5_secret, scram_secret
from support.wire import ServerError

# server method -> role that PostgreSQL checks that way, its password
SERVERS = {
    "trust": ("trustuser", "trust-secret"),
    "password": ("plainuser", "plain-secret"),
    "md5": ("md5user", "md5-secret"),
    "scram-sha-256": ("app", "app-secret"),
}
METHODS = ["any", "trust", "plain", "md5", "scram-sha-256"]
FORMS = ["plain", "md5", "scram", "server's scram", "wrong", "none"]

WRONG_TYPE = "FATAL 08P01: server login failed: wrong password type"


def stored(pg, form, role, password):
    """What auth_file has about the role."""
    if form == "server's scram":
        (secret,), = pg.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", role)
        # the role with a stored MD5 hash has no such secret
        return secret if secret.startswith("SCRAM") else scram_secret(password)
    return {
        "plain": password,
        "md5": md5_secret(role, password),
        "scram": scram_secret(password),
        "wrong": "not-" + password,
        "none": "",
    }[form]


def client_refusal(method, form):
    """The text for the client, None if it is let in. It gives the right password."""
    if method in ("any", "trust"):
        return None
    if method == "scram-sha-256":
        return "FATAL 08P01: SASL authentication failed" if form in ("md5", "wrong", "none") else None
    return "FATAL 08P01: password authentication failed" if form in ("wrong", "none") else None


def server_refusal(method, form, server, role):
    """The text for the client when it is let in but the server does not let us in; None if that works."""
    denied = f'FATAL 28P01: password authentication failed for user "{role}"'
    scram = form in ("scram", "server's scram")
    if server == "trust" or form == "plain":
        return None
    if server == "password" and form == "none":
        return "FATAL 28P01: empty password returned by client"
    if server == "password" or form in ("wrong", "none"):
        return denied
    if server == "md5":
        return WRONG_TYPE if scram else None
    if form == "md5":
        return WRONG_TYPE
    # a server that asks for SCRAM meets a SCRAM secret: only the keys of the client's own exchange can help
    exchanged = method in ("md5", "scram-sha-256")
    if not exchanged:
        return WRONG_TYPE
    return None if form == "server's scram" else denied


@pytest.mark.since("1.25")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_method_and_secret_towards_every_server(make_pooler, pg, method, form):
    userlist = {role: stored(pg, form, role, password) for role, password in SERVERS.values()} | {"admin": "a"}
    pooler = make_pooler(start=False, ini={"auth_type": method}, userlist=userlist)
    for role, _ in SERVERS.values():
        # auth_type=any has no use for auth_file: the entry says who goes to the server, and with what
        own = {"user": role, "password": userlist[role]} if method == "any" else {}
        pooler.databases[role] = pooler.backend(**{k: v for k, v in own.items() if v})
    pooler.write()
    pooler.start()
    for server, (role, password) in SERVERS.items():
        want = client_refusal(method, form) or server_refusal(method, form, server, role)
        try:
            with pooler.login(role, role, password=password) as wire:
                came = None
                assert wire.query("SELECT current_user").value == role
        except ServerError as error:
            came = str(error)
            assert list(error.fields) == ["S", "C", "M"]
        assert came == want, f"{method}, {form} secret, server asks for {server}"
    log = pooler.log()
    for password in [p for _, p in SERVERS.values()]:
        assert password not in log


@pytest.fixture
def latin1(pg):
    """Roles whose password is not UTF-8, which PostgreSQL keeps as MD5 hash and as SCRAM secret."""
    password = b"p\xe4\xdfword".decode("utf-8", "surrogateescape")
    roles = {"plainuser": scram_secret(password), "md5user": stored(pg, "md5", "md5user", password), "app": scram_secret(password)}
    before = dict(pg.sql("SELECT rolname, rolpassword FROM pg_authid WHERE rolname = ANY(%s)", list(roles)))
    for secrets in (roles, before):
        for role, secret in secrets.items():
            pg.sql(f"ALTER ROLE {role} PASSWORD '{secret}'")
        if secrets is roles:
            yield password, list(roles)


@pytest.mark.parametrize("method", METHODS[2:])
def test_a_password_in_another_encoding_is_its_bytes(make_pooler, latin1, method):
    password, roles = latin1
    pooler = make_pooler(ini={"auth_type": method}, userlist={role: password for role in roles})
    for role in roles:
        with pooler.login(role, password=password) as wire:
            assert wire.query("SELECT current_user").value == role
        with pytest.raises(ServerError, match="SASL authentication failed" if method == "scram-sha-256" else "password authentication failed"):
            pooler.login(role, password="p\u00e4\u00dfword")
    assert "not valid UTF-8" not in pooler.log()


def test_passwords_of_all_scripts(make_pooler, pg):
    """Every letter that Unicode takes apart, as libpq prepares it for SCRAM, and some that must not stand beside each other."""
    letters = [chr(code) for code in range(0x80, 0x20000) if not 0xd800 <= code < 0xe000]
    taken_apart = [letter for letter in letters if unicodedata.normalize("NFKC", letter) != letter]
    passwords = [f"x{letter}" for letter in taken_apart[::12]]
    passwords += ["\u05d0a", "\u2135a", "\u05d0\u00ad\u05d1", "\u05d01", "\u05d01\u05d0", "\u00ad", "\u2003", "\ufdfa", "\u0340", "e\u0301\t"]
    userlist = {f"u{number}": password for number, password in enumerate(passwords)}
    pooler = make_pooler(start=False, ini={"auth_type": "scram-sha-256"}, userlist=userlist)
    pooler.databases = {"p0": pooler.backend(user="app", password="app-secret")}
    pooler.write()
    pooler.start()
    for user in userlist:
        with pooler.connect(user) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_log_says_which_side_failed(make_pooler, pg):
    """Each refusal has a line that tells client from server, and why."""
    userlist = {"md5user": scram_secret("md5-secret"), "app": scram_secret("app-secret"), "plainuser": "plain-secret", "trustuser": ""}
    pooler = make_pooler(ini={"auth_type": "plain"}, userlist=userlist)
    for user, password, lines in [
        ("md5user", "md5-secret", ["cannot do MD5 authentication: wrong password type", "closing because: failed to answer authreq"]),
        ("app", "app-secret", ["cannot do SCRAM authentication: password is SCRAM secret but client authentication did not provide SCRAM keys"]),
        ("plainuser", "wrong", ["pooler error: password authentication failed"]),
        ("trustuser", "", ["closing because: empty password returned by client"]),
    ]:
        with pytest.raises(ServerError):
            pooler.login(user, password=password)
        for line in lines:
            pooler.wait_log(line)


@pytest.mark.since("1.25")
def test_keys_of_a_client_do_not_open_servers_of_a_forced_user(make_pooler, pg):
    (secret,), = pg.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
    pooler = make_pooler(start=False, ini={"auth_type": "scram-sha-256"}, userlist={"app": secret, "app2": secret})
    pooler.databases = {"p0": pooler.backend(user="app")}
    pooler.write()
    pooler.start()
    for user in ("app", "app2"):
        with pytest.raises(ServerError, match=WRONG_TYPE):
            pooler.login(user, password="app-secret")


@pytest.mark.since("1.25.2")
def test_keys_are_kept_for_servers_that_nobody_asked_for(make_pooler, pg):
    """min_pool_size is restored by the janitor with the keys of a login long ago."""
    from support.system import until

    (secret,), = pg.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
    pooler = make_pooler(ini={"auth_type": "scram-sha-256", "min_pool_size": 2}, userlist={"app": secret, "admin": "a"})
    with pooler.login("app", password="app-secret") as wire:
        until(lambda: len(pg.backends("p0", "app")) == 2)
        for pid in pg.backends("p0", "app"):
            pg.sql("SELECT pg_terminate_backend(%s)", pid)
        until(lambda: len(pg.backends("p0", "app")) == 2)
        pooler.admin("RECONNECT p0")
        assert wire.query("SELECT current_user").value == "app"
