"""What this build does not have is refused with a clear error, never ignored."""

import pytest

from support.wire import ServerError

pytestmark = pytest.mark.ours

SETTINGS = {
    "auth_type": "ldap",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_is_refused_at_start(make_pooler, name):
    pooler = make_pooler(start=False, ini={name: SETTINGS[name]})
    pooler.write()
    pooler.start(wait=False)
    assert pooler.wait_end() == 1
    assert f'setting "{name}" is set to "{SETTINGS[name]}"' in pooler.log()
    assert "FATAL cannot load config file" in pooler.log()


def test_setting_is_refused_on_the_console(pooler):
    with pytest.raises(ServerError, match="SET failed"):
        pooler.admin("SET server_tls_sslmode = require")
    assert next(r["value"] for r in pooler.show("CONFIG") if r["key"] == "server_tls_sslmode") == "prefer"
