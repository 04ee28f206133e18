"""`--check` and `--dump-config`: what the daemon says about a configuration without serving anybody."""

import os
import re

import pytest

from support.pooler import connstr
from support.system import give_to_daemon, run

pytestmark = pytest.mark.ours


@pytest.fixture
def ask(binary, make_pooler):
    """Runs the daemon with these words and the file of a pooler that does not run."""
    pooler = make_pooler(start=False)

    def ask(*words, status=0):
        done = run([binary.path, *words, pooler.conf], check=False, switch_user=True, cwd=pooler.dir)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    ask.pooler = pooler
    secrets = pooler.dir / "userlist.txt"
    secrets.chmod(0o600)
    give_to_daemon(secrets)
    return ask


# Twelve different faults and one more. Each: its line, in the file or in the file that is named, its severity, what is said, what to do.
FAULTS = """\
[databases]
p0 = host=127.0.0.1 prot=5432
p1 = host=127.0.0.1 pool_size=4 min_pool_size=9
p2 = host=127.0.0.1
p2 = host=127.0.0.2
[users]
app = pool_mode=transactional
[pgbouncer]
listen_addr = 127.0.0.1
max_client_con = 50
default_pool_size = 30
min_pool_size = 40
log_stats = yes
auth_type = scram-sha-256
auth_file = userlist.txt
client_tls_sslmode = require
client_tls_key_file = nosuch.key
client_tls_cert_file = nosuch.crt
job_name = pooler
%include nosuch.ini
this is no setting
"""

FOUND = [
    ("bad.ini", 2, "error", 'unrecognized connection parameter: prot; did you mean "port"?'),
    ("bad.ini", 3, "warning", 'database "p1" has min_pool_size=9, more than its pool_size=4; lower min_pool_size or raise pool_size'),
    ("bad.ini", 5, "warning", 'database "p2" is already there in bad.ini:4; the last one counts, whole: remove the other'),
    ("bad.ini", 7, "error", "invalid pool mode: transactional; write one of: session transaction statement"),
    ("bad.ini", 10, "error", 'unknown setting "max_client_con"; did you mean "max_client_conn"?'),
    ("bad.ini", 12, "warning", "min_pool_size=40 is more than default_pool_size=30, and no pool can have as many; "
                               "lower min_pool_size or raise default_pool_size"),
    ("bad.ini", 13, "error", 'invalid value "yes" for log_stats; write 1'),
    ("bad.ini", 15, "warning", "everybody can read auth_file (userlist.txt, mode 0644); chmod o-rwx userlist.txt"),
    ("bad.ini", 18, "error", 'TLS setup failed: failed to load certificate file "nosuch.crt": No such file or directory; '
                             "mend client_tls_cert_file or what it names; the daemon does not start so"),
    ("bad.ini", 19, "warning", "job_name has no effect; it named a service of Windows: leave it out"),
    ("bad.ini", 20, "error", 'could not load file "nosuch.ini": No such file or directory; '
                             "relative names count from the working directory of the daemon"),
    ("bad.ini", 21, "error", "syntax error; a line is `[section]`, `key = value`, `%include file`, or a comment behind `;` or `#`"),
    ("userlist.txt", 2, "warning", 'the password of user "app" is kept in plain text, which SCRAM does not need; '
                                   "put the secret from pg_authid.rolpassword there (SCRAM-SHA-256$...)"),
]


def test_twelve_faults_are_named_with_line_and_remedy(binary, ask):
    directory = ask.pooler.dir
    (directory / "bad.ini").write_text(FAULTS)
    (directory / "userlist.txt").write_text('; users\n"app" "plain"\n')
    (directory / "userlist.txt").chmod(0o644)
    done = run([binary.path, "--check", "bad.ini"], check=False, switch_user=True, cwd=directory)
    found = [re.fullmatch(r"(.*?):(\d+): (error|warning): (.*)", line).groups() for line in done.stdout.splitlines()]
    wanted = [(file, str(line), severity, text) for file, line, severity, text in FOUND]
    assert found == wanted and len(found) > 12
    assert done.returncode == 1 and done.stderr == "bad.ini: 7 errors, 6 warnings\n"
    quiet = run([binary.path, "--check", "-q", "bad.ini"], check=False, switch_user=True, cwd=directory)
    assert quiet.stdout.splitlines() == [line for line in done.stdout.splitlines() if ": error: " in line] and quiet.stderr == ""


def test_what_starts_has_no_errors_and_nothing_is_touched(ask):
    pooler = ask.pooler
    pooler.ini.update(pidfile=pooler.dir / "run.pid", logfile=pooler.dir / "run.log")
    pooler.write()
    before = sorted(os.listdir(pooler.dir))
    done = ask("--check")
    assert done.stderr.endswith(": 0 errors, 0 warnings\n") and done.stdout == ""
    assert sorted(os.listdir(pooler.dir)) == before
    pooler.start()
    # a running daemon is no reason not to check
    assert ask("--check").stdout == ""
    assert pooler.login().query("SELECT 1").value == "1"


def test_warnings_alone_are_no_failure(ask):
    ask.pooler.ini["reserve_pool_size"], ask.pooler.ini["reserve_pool_timeout"] = 3, 0
    ask.pooler.write()
    line = ask.pooler.conf.read_text().splitlines().index("reserve_pool_timeout = 0") + 1
    done = ask("--check")
    assert done.stdout.startswith(f"{ask.pooler.conf}:{line}: warning: reserve_pool_timeout=0 turns reserve_pool_size off; ")
    assert done.stderr.endswith(": 0 errors, 1 warning\n")


def test_options_are_part_of_the_question(ask):
    assert ": error: -d needs a pidfile; set pidfile" in ask("--check", "-d", status=1).stdout
    assert ': error: there is no user "ghost"' in ask("--check", "-u", "ghost", status=1).stdout
    assert ": error: " not in ask("--check", "-R").stdout
    ask.pooler.ini["unix_socket_dir"] = ""
    ask.pooler.write()
    assert "-R reaches the old process by its Unix socket" in ask("--check", "-R", status=1).stdout


def test_a_dump_loads_again_to_the_same(ask):
    pooler = ask.pooler
    pooler.databases["it's \"one\""] = pooler.backend(password="hu sh", connect_query="select 'a'")
    pooler.databases["*"] = connstr(pooler.backend(user="app", password="hush"))
    pooler.users["app"] = {"pool_mode": "session", "query_wait_timeout": 7}
    pooler.ini.update(query_timeout="1234567.891234", unix_socket_mode="0700", auth_ldap_options='ldapbindpasswd="hush"')
    pooler.write()
    # names with both kinds of quotes need the double ones
    pooler.conf.write_text(pooler.conf.read_text().replace("it's \"one\" =", '"it\'s ""one""" ='))
    first = ask("--dump-config", "-v").stdout
    assert "hu sh" not in first and "hush" not in first and "verbose = 1" in first
    assert "query_timeout = 1234567.8912345\n" in first and "unix_socket_mode = 0700\n" in first
    with_passwords = first.replace("password=...", "password=hush")
    pooler.conf.write_text(with_passwords)
    assert ask("--dump-config").stdout == first
    pooler.start()
    shown = {row["key"]: row["value"] for row in pooler.show("CONFIG")}
    assert shown["conffile"] == str(pooler.conf) and shown["pool_mode"] == "transaction" and shown["unix_socket_mode"] == "448"
    assert pooler.login().query("SELECT 1").value == "1"
    assert {"p0", "p1", "it's \"one\""} <= {row["name"] for row in pooler.show("DATABASES")}


def test_a_dump_of_a_broken_file_says_why(ask):
    ask.pooler.write(extra="nonsense = 1\n")
    done = ask("--dump-config", status=1)
    assert done.stdout == "" and "unknown parameter: pgbouncer/nonsense\n" in done.stderr
    assert done.stderr.endswith("cannot load config file\n")


def test_help_names_them_behind_what_pgbouncer_says(binary):
    text = run([binary.path, "--help"]).stdout
    compatible, own = text.split("PgBouncer home page: <https://www.pgbouncer.org/>\n")
    assert "--check" not in compatible and "--check" in own and "--dump-config" in own
