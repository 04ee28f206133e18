"""Command line, start and refusal to start, pidfile, daemon mode, signals, log lines, reload."""

import os
import re
import signal
import socket
import subprocess

import pytest

from support.load import Background, transactions
from support.system import as_daemon_user, holds, run, until
from support.wire import ServerError, Wire, cstr, md5_response, message, query


def test_version_and_help(binary):
    assert re.match(r"PgBouncer \d+\.\d+\.\d+", binary.version_text)
    for option in ("-h", "--help"):
        done = run([binary.path, option])
        assert done.stdout.startswith(f"{binary.path} is a connection pooler for PostgreSQL.\n\nUsage:\n")
        assert f"  {binary.path} [OPTION]... CONFIG_FILE\n\nOptions:\n" in done.stdout
        for line in ("  -d, --daemon ", "  -q, --quiet ", "  -R, --reboot ", "  -u, --user=", "  -v, --verbose ", "  -V, --version ", "  -h, --help "):
            assert line in done.stdout
    assert run([binary.path, "--version"]).stdout == binary.version_text


@pytest.mark.parametrize("arguments, first", [
    ([], ": no configuration file specified"), (["a.ini", "b.ini"], ": no configuration file specified"),
    (["--x"], ": unrecognized option '--x'"), (["-x"], ": invalid option -- 'x'"), (["-u"], ": option requires an argument -- 'u'"),
])
def test_wrong_usage(binary, arguments, first):
    done = run([binary.path, *arguments], check=False)
    assert done.returncode == 1
    assert done.stderr == f'{binary.path}{first}\nTry "{binary.path} --help" for more information.\n'


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_is_refused(make_pooler, binary):
    pooler = make_pooler(start=False)
    done = run([binary.path, pooler.conf], check=False)
    assert done.returncode == 1 and "FATAL PgBouncer should not run as root" in done.stderr
    pooler.ini["logfile"] = pooler.dir / "pgbouncer.log"
    pooler.write()
    run([binary.path, pooler.conf], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_switching_users(make_pooler, binary):
    from support.system import daemon_user

    pooler = make_pooler(start=False)
    process = subprocess.Popen([str(binary.path), "-u", daemon_user().pw_name, str(pooler.conf)], stderr=open(pooler.stderr, "w"),
                               cwd=pooler.dir)
    try:
        pooler.wait_log("process up:")
        status = open(f"/proc/{process.pid}/status").read()
        assert re.search(rf"^Uid:\t{daemon_user().pw_uid}\t", status, re.M)
        assert pooler.login().query("SELECT 1").value == "1"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(10)
    done = run([binary.path, "-u", "no_such_user_here", pooler.conf], check=False)
    assert done.returncode == 1 and "FATAL could not find user 'no_such_user_here' to switch to" in done.stderr


@pytest.mark.parametrize("content, complaint", [
    ("", "main section missing from config file"), ("x = 1\n", "load_init_file: value without section: x"),
    ("[pgbouncer]\nlisten_port = many\n", 'invalid value "many" for parameter listen_port in configuration'),
    ("[pgbouncer]\nnonsense\n", "syntax error in configuration"), ("[nosuch]\n", 'invalid section "nosuch" in configuration'),
    ("[databases]\nx = nokey=1\n[pgbouncer]\n", "unrecognized connection parameter: nokey"),
    ("%include /nonexistent.ini\n", 'could not load file "/nonexistent.ini"'),
])
def test_broken_configuration_prevents_the_start(make_pooler, content, complaint):
    pooler = make_pooler(start=False)
    pooler.conf.write_text(content)
    pooler.start(wait=False)
    assert pooler.wait_end() == 1
    assert complaint in pooler.log() and "FATAL cannot load config file" in pooler.log()


def test_missing_configuration_file(make_pooler):
    pooler = make_pooler(start=False)
    pooler.conf.unlink()
    pooler.start(wait=False)
    assert pooler.wait_end() == 1


def test_good_start_is_logged(pooler):
    log = pooler.log()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \S+ \[%d\] LOG process up: PgBouncer \d" % pooler.process.pid, log, re.M)
    assert f"LOG listening on 127.0.0.1:{pooler.port}\n" in log
    assert f"LOG listening on unix:{pooler.unix_path}\n" in log
    assert re.search(r"LOG kernel file descriptor limit: \d+ \(hard: \d+\); max_client_conn: 100, max expected fd use: \d+", log)


def test_log_of_a_connection(pooler):
    with pooler.login(application_name="x") as wire:
        wire.query("SELECT 1")
        port = wire.sock.getsockname()[1]
    prefix = rf"LOG C-0x[0-9a-f]+: p0/app@127\.0\.0\.1:{port} "
    pooler.wait_log(re.compile(prefix + r"login attempt: db=p0 user=app tls=no"))
    pooler.wait_log(re.compile(prefix + r"closing because: client unexpected eof \(age=\d+s\)"))
    pooler.wait_log(re.compile(rf"LOG S-0x[0-9a-f]+: p0/app@127\.0\.0\.1:{pooler.pg.port} new connection to server \(from 127\.0\.0\.1:\d+\)"))


def test_connection_logging_can_be_switched_off(make_pooler):
    pooler = make_pooler(ini={"log_connections": 0, "log_disconnections": 0, "log_pooler_errors": 0})
    pooler.login().close()
    with pytest.raises(ServerError):
        pooler.login("nosuch")
    pooler.show("VERSION")
    assert not re.search("login attempt|closing because|pooler error|new connection", pooler.log())


def test_stats_line(make_pooler):
    pooler = make_pooler(ini={"stats_period": 1})
    pooler.wait_log(re.compile(r"LOG stats: \d+ xacts/s, \d+ queries/s, .*in \d+ B/s, out \d+ B/s, xact \d+ us, query \d+ us, wait \d+ us"))


def test_logfile_and_quiet(make_pooler):
    pooler = make_pooler(start=False)
    logfile = pooler.dir / "pgbouncer.log"
    pooler.ini["logfile"] = logfile
    pooler.write()
    pooler.start("-q", wait=False)
    until(lambda: logfile.exists() and "process up:" in logfile.read_text())
    assert pooler.log() == ""
    logfile.rename(pooler.dir / "old.log")
    pooler.signal(signal.SIGHUP)
    until(lambda: pooler.login().close() or logfile.exists(), what="the log is reopened after SIGHUP")


@pytest.mark.parametrize("arguments, extra, lines", [
    ([], "nonsense\n", ["ERROR syntax error in configuration", "FATAL cannot load config file"]),
    (["-u", "no_such_user_here"], "", ["FATAL could not find user 'no_such_user_here' to switch to"]),
    ([], "client_tls_sslmode = require\n", ["FATAL TLS setup failed"]),
], ids=["configuration", "user", "tls"])
@pytest.mark.parametrize("quiet", [True, False])
def test_why_a_start_failed_is_in_the_logfile(make_pooler, arguments, extra, lines, quiet):
    """Also if nothing is to be said on stderr."""
    pooler = make_pooler(start=False)
    logfile = pooler.dir / "pgbouncer.log"
    pooler.ini["logfile"] = logfile
    pooler.write(extra)
    pooler.start(*(["-q"] if quiet else []), *arguments, wait=False)
    assert pooler.wait_end() == 1
    for line in lines:
        assert line in logfile.read_text() and (line in pooler.log()) != quiet


def test_what_a_client_asks_for_is_logged_when_verbose(make_pooler):
    pooler = make_pooler(start=False)
    pooler.start("-v")
    with pooler.login(application_name="x", TimeZone="Europe/Berlin") as wire:
        port = wire.sock.getsockname()[1]
    prefix = f"DEBUG C-0x[0-9a-f]+: \\(nodb\\)/\\(nouser\\)@127.0.0.1:{port} "
    for line in ("got var: user=app", "got var: database=p0", "got var: TimeZone=Europe/Berlin", "using application_name: x"):
        assert re.search(f"{prefix}{line}\n", pooler.log())


def test_control_bytes_do_not_forge_log_lines(pooler):
    with pytest.raises(ServerError):
        pooler.login("evil\n2024-01-01 00:00:00.000 UTC [1] FATAL forged")
    pooler.wait_log("no such user: evil")
    assert not re.search("^2024-01-01", pooler.log(), re.M)


@pytest.mark.ours
def test_words_of_clients_stay_in_their_line(pooler):
    for user, database in (("evil\n\u202elive", "p0"), ("app", "evil\n\u202elive")):
        with pytest.raises(ServerError):
            pooler.login(user, database)
    escaped = "evil\\x0a\\xe2\\x80\\xaelive"
    for line in (f": (nodb)/{escaped}@", f"no such user: {escaped}\n", f"login failed: db={escaped} user=app\n"):
        pooler.wait_log(line)
    assert not re.search("^\\s", pooler.log(), re.M)


class TestPidfile:
    @pytest.fixture
    def with_pidfile(self, make_pooler):
        pooler = make_pooler(start=False)
        pooler.pidfile = pooler.dir / "pooler.pid"
        pooler.ini["pidfile"] = pooler.pidfile
        pooler.write()
        return pooler

    def test_written_and_removed(self, with_pidfile):
        with_pidfile.start()
        until(lambda: with_pidfile.pidfile.exists() and with_pidfile.pidfile.read_text())
        assert with_pidfile.pidfile.read_text() == f"{with_pidfile.process.pid}\n"
        with with_pidfile.console() as console:
            console.send(query("SHUTDOWN"))
            assert with_pidfile.wait_end() == 0
        assert not with_pidfile.pidfile.exists() and not os.path.exists(with_pidfile.unix_path)

    @pytest.mark.since("1.25")
    @pytest.mark.parametrize("content", ["", "x\n", f"{os.getpid()}\n"], ids=["empty", "no number", "alive"])
    def test_existing_one_prevents_the_start(self, with_pidfile, content):
        with_pidfile.pidfile.write_text(content)
        with_pidfile.start(wait=False)
        assert with_pidfile.wait_end() == 1
        assert f"FATAL pidfile '{with_pidfile.pidfile}' exists, another instance running?" in with_pidfile.log()

    def test_one_that_cannot_be_written_leaves_no_socket(self, with_pidfile):
        with_pidfile.ini["pidfile"] = with_pidfile.dir / "nowhere" / "pooler.pid"
        with_pidfile.write()
        with_pidfile.start(wait=False)
        assert with_pidfile.wait_end() == 1
        assert f"FATAL could not open pidfile '{with_pidfile.ini['pidfile']}': No such file or directory" in with_pidfile.log()
        assert not os.path.exists(with_pidfile.unix_path)

    def test_stale_one_is_removed(self, with_pidfile):
        gone = subprocess.Popen(["true"])
        gone.wait()
        with_pidfile.pidfile.write_text(f"{gone.pid}\n")
        from support.system import give_to_daemon
        give_to_daemon(with_pidfile.pidfile)
        with_pidfile.start()
        assert "stale pidfile, removing" in with_pidfile.log()
        until(lambda: with_pidfile.pidfile.read_text() == f"{with_pidfile.process.pid}\n")


def test_daemon_mode(make_pooler, binary):
    pooler = make_pooler(start=False)
    pidfile, logfile = pooler.dir / "pooler.pid", pooler.dir / "pooler.log"
    pooler.ini.update(pidfile=pidfile, logfile=logfile)
    pooler.write()
    done = run([binary.path, "-d", pooler.conf], switch_user=True)
    assert done.returncode == 0
    until(lambda: logfile.exists() and "process up:" in logfile.read_text())
    pid = int(until(lambda: pidfile.exists() and pidfile.read_text()))
    try:
        with open(f"/proc/{pid}/stat") as stat:
            parent = int(stat.read().rsplit(")", 1)[1].split()[1])
        assert parent != os.getpid() and os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/fd/0") == os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
        assert pooler.login().query("SELECT 1").value == "1"
    finally:
        os.kill(pid, signal.SIGQUIT)
        until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_daemon_needs_a_pidfile(make_pooler, binary):
    pooler = make_pooler(start=False)
    done = run([binary.path, "-d", pooler.conf], check=False, switch_user=True)
    assert done.returncode == 1 and "FATAL daemon needs pidfile configured" in done.stderr


def test_nowhere_to_listen(make_pooler):
    pooler = make_pooler(start=False, ini={"listen_addr": None, "unix_socket_dir": ""})
    pooler.start(wait=False)
    assert pooler.wait_end() == 1
    assert "FATAL nowhere to listen on" in pooler.log()


@pytest.mark.since("1.19")
def test_port_that_is_taken(make_pooler):
    first = make_pooler()
    second = make_pooler(start=False, ini={"listen_port": first.port})
    second.start(wait=False)
    assert second.wait_end() == 1
    assert "FATAL failed to listen on any address in listen_addr list: 127.0.0.1" in second.log()


def test_unix_socket_in_use(make_pooler):
    first = make_pooler()
    second = make_pooler(start=False, ini={"listen_port": first.port, "unix_socket_dir": first.dir})
    second.start(wait=False)
    assert second.wait_end() == 1
    assert "FATAL unix socket is in use, cannot continue" in second.log()
    assert first.login().query("SELECT 1").value == "1"


def test_sighup_applies_what_changed(make_pooler, pg):
    pooler = make_pooler(ini={"auth_type": "md5"})
    with pooler.login("app") as staying:
        staying.query("BEGIN")
        pooler.ini["query_timeout"] = 33
        pooler.databases["p2"] = pooler.backend("p1")
        pooler.userlist["fresh"] = "fresh-secret"
        pooler.write()
        pooler.reload()
        assert pooler.setting("query_timeout") == "33"
        assert pooler.login("app", "p2").query("SELECT current_database()").value == "p1"
        assert staying.query("COMMIT").status == "I"
        del pooler.databases["p2"]
        leaving = pooler.login("app", "p2")
        pooler.write()
        pooler.reload()
        leaving.expect_fatal("database removed")
        assert staying.query("SELECT 1").value == "1"
        with pytest.raises(ServerError, match="no such database: p2"):
            pooler.login("app", "p2")


def test_sighup_moves_an_entry_to_another_database(make_pooler):
    pooler = make_pooler()
    with pooler.login("app", "p0") as idle, pooler.login("app", "p0") as busy:
        idle.query("SELECT 1")
        busy.query("BEGIN")
        pooler.databases["p0"] = pooler.backend("p1")
        pooler.write()
        pooler.reload()
        assert busy.query("SELECT current_database()").value == "p0", "the open transaction stays where it is"
        busy.query("COMMIT")
        assert idle.query("SELECT current_database()").value == "p1"
        assert busy.query("SELECT current_database()").value == "p1"


def test_many_sighups_under_load(make_pooler):
    pooler = make_pooler()
    with Background(transactions(pooler), threads=8) as load:
        for turn in range(60):
            pooler.ini["default_pool_size"] = 3 + turn % 5
            pooler.write()
            pooler.signal(signal.SIGHUP)
            seen = load.done
            until(lambda: load.done > seen)
    assert load.done > 60


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_at_the_first_moment_is_heeded(make_pooler, number):
    """Whoever reads the pidfile may send a signal at once."""
    for _ in range(3):
        pooler = make_pooler(start=False)
        pidfile = pooler.dir / "pooler.pid"
        pooler.ini["pidfile"] = pidfile
        pooler.write()
        pooler.start(wait=False)
        while not (pidfile.exists() and pidfile.read_text()):
            assert pooler.alive
        pooler.signal(number)
        pooler.wait_log(f"got {number.name}, ")
        pooler.stop()


def test_sigusr1_and_sigusr2(pooler):
    with pooler.login() as wire:
        wire.query("SELECT 1")
        pooler.signal(signal.SIGUSR1)
        pooler.wait_log("got SIGUSR1, pausing all activity")
        wire.send(query("SELECT 'on'"))
        holds(lambda: wire.recv_or_none(0.1) is None, 0.4)
        pooler.signal(signal.SIGUSR2)
        pooler.wait_log("got SIGUSR2, continuing from PAUSE")
        assert wire.result().value == "on"
        pooler.signal(signal.SIGUSR2)
        pooler.wait_log("got SIGUSR2, but not paused/suspended")
        pooler.signal(signal.SIGUSR1)
        pooler.wait_log("got SIGUSR1, pausing all activity", 2)
        pooler.signal(signal.SIGUSR1)
        pooler.wait_log("got SIGUSR1, but already paused/suspended")


def test_a_pause_by_signal_is_logged_before_what_it_closes(pooler):
    with pooler.login() as wire:
        wire.query("SELECT 1")
        pooler.signal(signal.SIGUSR1)
        pooler.wait_log("closing because: pause mode")
    log = pooler.log()
    assert log.index("got SIGUSR1, pausing all activity") < log.index("closing because: pause mode")


@pytest.mark.since("1.23")
def test_sigquit(pooler):
    with pooler.login() as wire:
        wire.query("BEGIN")
        pooler.signal(signal.SIGQUIT)
        assert pooler.wait_end() == 0
        assert wire.at_eof()
    pooler.wait_log("got SIGQUIT, fast exit")
    assert not os.path.exists(pooler.unix_path)


@pytest.mark.since("1.23")
def test_sigterm_waits_for_clients(pooler):
    with pooler.login() as wire:
        pooler.signal(signal.SIGTERM)
        pooler.wait_log("got SIGTERM, shutting down, waiting for all clients disconnect")
        until(pooler.refuses)
        holds(lambda: wire.query("SELECT 1").value == "1", 0.8)
    assert pooler.wait_end() == 0
    pooler.wait_log("client connections dropped, exiting")


@pytest.mark.since("1.23")
@pytest.mark.goal("G11")
def test_sigint_waits_for_servers(pooler):
    with pooler.login() as busy, pooler.login() as idle:
        busy.query("BEGIN")
        pooler.signal(signal.SIGINT)
        pooler.wait_log("got SIGINT, shutting down, waiting for all servers connections to be released")
        until(pooler.refuses)
        idle.send(query("SELECT 1"))
        idle.expect_fatal("server shutting down")
        assert busy.query("SELECT 1").value == "1"
        assert busy.query("COMMIT").tags == ["COMMIT"]
        assert pooler.wait_end() == 0
    pooler.wait_log("server connections dropped, exiting")


@pytest.mark.since("1.23")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_exits_at_once(pooler, number):
    with pooler.login() as wire:
        wire.query("BEGIN")
        pooler.signal(number)
        pooler.wait_log("shutting down, waiting for all")
        pooler.signal(number)
        assert pooler.wait_end() == 0
        assert wire.at_eof()
    pooler.wait_log(f"got {number.name} while shutting down, fast exit")


def test_restart_on_the_same_port(make_pooler):
    pooler = make_pooler()
    wire = pooler.login()
    pooler.process.kill()
    pooler.wait_end()
    assert wire.at_eof()
    pooler.stderr.unlink()
    pooler.expected_to_end = False
    pooler.start()
    assert pooler.login().query("SELECT 1").value == "1"


def test_psql_reads_the_console(pooler, pg):
    done = run([pg.bin / "psql", "-h", "127.0.0.1", "-p", pooler.port, "-U", "admin", "-d", "pgbouncer", "-X", "-At", "-c", "SHOW VERSION"],
               cwd="/", **as_daemon_user())
    assert done.stdout.startswith("PgBouncer 1.")


def test_log_is_reopened_although_the_configuration_is_broken(make_pooler):
    pooler = make_pooler(start=False)
    logfile = pooler.dir / "pgbouncer.log"
    pooler.ini["logfile"] = logfile
    pooler.write()
    pooler.start()
    logfile.rename(pooler.dir / "old.log")
    pooler.write(extra="nonsense\n")
    pooler.signal(signal.SIGHUP)
    pooler.wait_log("config file loading failed")
    pooler.login().close()
    until(logfile.exists, what="the log is reopened")


@pytest.mark.since("1.25")
def test_service_manager_is_told(make_pooler, monkeypatch):
    pooler = make_pooler(start=False, ini={"stats_period": 1, "log_stats": 0})
    path = pooler.dir / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        path.chmod(0o777)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        pooler.start()

        def told(pattern):
            return until(lambda: re.fullmatch(pattern, manager.recv(4096).decode()), what=pattern)

        told("READY=1")
        told(r"STATUS=stats: 0 xacts/s, .*wait 0 \u03bcs")
        pooler.signal(signal.SIGHUP)
        told(r"RELOADING=1\nMONOTONIC_USEC=\d+")
        told("READY=1")
        pooler.signal(signal.SIGTERM)
        told("STOPPING=1")
        assert pooler.wait_end() == 0


STOPS = {
    "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGQUIT": signal.SIGQUIT, "SHUTDOWN": None, "SHUTDOWN WAIT_FOR_SERVERS": None,
    "SHUTDOWN WAIT_FOR_CLIENTS": None}


@pytest.mark.since("1.23")
@pytest.mark.parametrize("how", STOPS)
def test_nothing_is_left_behind(make_pooler, how):
    """Whatever ends the process, its status is 0, and pidfile and socket file are gone."""
    pooler = make_pooler(start=False)
    pidfile = pooler.dir / "pooler.pid"
    pooler.ini["pidfile"] = pidfile
    pooler.write()
    pooler.start()
    until(pidfile.exists)
    assert os.path.exists(pooler.unix_path)
    with pooler.login() as client:
        client.query("SELECT 1")
    if STOPS[how]:
        pooler.signal(STOPS[how])
    else:
        with pooler.console() as console:
            console.send(query(how))
            if "WAIT" in how:
                assert console.result().tags == ["SHUTDOWN"]
            else:
                assert console.at_eof()
    assert pooler.wait_end() == 0
    assert not pidfile.exists() and not os.path.exists(pooler.unix_path)


@pytest.mark.since("1.23")
@pytest.mark.parametrize("number, other", [(signal.SIGTERM, "WAIT_FOR_SERVERS"), (signal.SIGINT, "WAIT_FOR_CLIENTS")])
def test_the_unix_socket_serves_the_console_to_the_end(pooler, number, other):
    with pooler.login() as client:
        client.query("BEGIN")
        pooler.signal(number)
        pooler.wait_log("shutting down, waiting for all")
        until(pooler.refuses)
        with Wire(path=pooler.unix_path) as late:
            late.startup("app", "p0")
            late.expect_fatal("pooler is shutting down")
        with Wire(path=pooler.unix_path) as console:
            console.login("admin", "pgbouncer")
            assert console.query("SHOW VERSION").rows and console.query("SHOW POOLS").rows
            assert console.ask("RESUME").error["M"] in ("pooler is shutting down", "pooler is not paused/suspended")
            pooler.signal(signal.SIGUSR2)
            pooler.wait_log("got SIGUSR2 while shutting down, ignoring")
            # the other mode takes the place of the first
            assert console.query(f"SHUTDOWN {other}").tags == ["SHUTDOWN"]
            pooler.wait_log(f"SHUTDOWN {other} command issued")
            assert client.query("SELECT 1").value == "1" and pooler.alive
            assert client.query("COMMIT").tags == ["COMMIT"]
            client.close()
            if other == "WAIT_FOR_CLIENTS":
                holds(lambda: pooler.alive, 0.7, what="consoles count as clients")
        assert pooler.wait_end() == 0
    assert not os.path.exists(pooler.unix_path)


@pytest.mark.since("1.23")
def test_the_console_forces_what_a_signal_began(pooler):
    with pooler.login() as client:
        client.query("BEGIN")
        pooler.signal(signal.SIGTERM)
        pooler.wait_log("shutting down, waiting for all")
        with Wire(path=pooler.unix_path) as console:
            console.login("admin", "pgbouncer")
            console.send(query("SHUTDOWN"))
            assert console.at_eof()
        assert pooler.wait_end() == 0 and client.at_eof()


@pytest.mark.ours
def test_a_login_in_progress_is_finished_by_a_pooler_that_stops(make_pooler):
    """Who was connected before the listeners were closed is one of the clients that are waited for."""
    pooler = make_pooler(ini={"auth_type": "md5"})
    with pooler.wire() as late:
        late.startup("app", "p0")
        salt = late.recv().body[4:]
        pooler.signal(signal.SIGTERM)
        until(pooler.refuses)
        late.send(message("p", cstr(md5_response("app", pooler.userlist["app"], salt))))
        late.finish_login("app")
        assert late.query("SELECT 1").value == "1"
    assert pooler.wait_end() == 0


@pytest.mark.since("1.25")
def test_names_of_settings_that_wait_for_a_restart_are_logged(pooler):
    pooler.ini.update(listen_port=pooler.port + 1, listen_addr="127.0.0.2", query_timeout=44)
    pooler.write()
    pooler.reload()
    assert pooler.setting("query_timeout") == "44" and pooler.setting("listen_port") == str(pooler.port)
    if pooler.binary.ours:
        for key, old, new in (("listen_port", pooler.port, pooler.port + 1), ("listen_addr", "127.0.0.1", "127.0.0.2")):
            assert f'WARNING setting "{key}" stays "{old}" until a restart; the configuration file has "{new}"\n' in pooler.log()
    assert pooler.login().query("SELECT 1").value == "1"


@pytest.mark.ours
def test_database_names_in_double_quotes(make_pooler):
    """As the manual promises."""
    pooler = make_pooler(start=False)
    pooler.databases = {'"my = db"': pooler.backend(), '"say ""p1"""': pooler.backend("p1"), "'single'": pooler.backend()}
    pooler.write()
    pooler.start()
    for name, dbname in (("my = db", "p0"), ('say "p1"', "p1"), ("single", "p0")):
        assert pooler.login("app", name).query("SELECT current_database()").value == dbname
    assert {d["name"] for d in pooler.show("DATABASES")} == {"my = db", 'say "p1"', "single", "pgbouncer"}
    with pooler.console() as console:
        assert console.query('PAUSE "say ""p1"""').tags == ["PAUSE"]
        assert console.query('RESUME "say ""p1"""').tags == ["RESUME"]


class TestReload:
    """What a reload does to each kind of thing it finds changed."""

    def databases(self, pooler):
        return {d["name"]: d for d in pooler.show("DATABASES")}

    def test_a_dropped_database(self, pooler, pg):
        with pooler.login("app", "p1") as gone, pooler.login("app", "p0") as stays:
            gone.query("SELECT 1")
            pid = int(stays.query("SELECT pg_backend_pid()").value)
            del pooler.databases["p1"]
            pooler.write()
            pooler.reload()
            gone.expect_fatal("database removed")
            assert "WARNING dropping database 'p1' as it does not exist anymore or inactive auto-database\n" in pooler.log()
            pooler.wait_log(re.compile(r"S-0x[0-9a-f]+: p1/app@\S+ closing because: database removed"))
            assert int(stays.query("SELECT pg_backend_pid()").value) == pid, "nobody else is touched"
        assert "p1" not in self.databases(pooler)

    @pytest.mark.parametrize("change, reconnects", [
        ({"connect_query": "SELECT 7"}, True), ({"host": "127.0.0.2"}, True), ({"dbname": "p1"}, True),
        ({"pool_size": 3}, False), ({"pool_mode": "session"}, False), ({"max_db_connections": 5}, False), ({}, False)])
    def test_a_changed_database(self, pooler, change, reconnects):
        with pooler.login() as client:
            old = client.query("SELECT pg_backend_pid()").value
            pooler.databases["p0"].update(change)
            pooler.write()
            pooler.reload()
            new = client.query("SELECT pg_backend_pid()").value
            assert (new != old) == reconnects

    def test_users(self, pooler):
        pooler.users = {"app": {"pool_size": 3, "pool_mode": "session"}, "app2": {"max_user_connections": 7}}
        pooler.write()
        pooler.reload()
        users = {u["name"]: u for u in pooler.show("USERS")}
        assert (users["app"]["pool_mode"], users["app2"]["max_user_connections"]) == ("session", "7")
        pooler.users = {"app": {"pool_size": 4}}
        pooler.write()
        pooler.reload()
        users = {u["name"]: u for u in pooler.show("USERS")}
        assert users["app"]["pool_mode"] is None, "a key removed from a line is unset again"
        assert users["app2"]["max_user_connections"] == "7", "a line removed as a whole keeps what it said"

    def test_a_user_who_left_the_file_stays_known_and_cannot_log_in(self, make_pooler):
        pooler = make_pooler(ini={"auth_type": "md5"})
        with pooler.login("app2") as inside:
            del pooler.userlist["app2"]
            pooler.write()
            pooler.reload()
            assert inside.query("SELECT 1").value == "1"
            with pytest.raises(ServerError, match="password authentication failed"):
                pooler.login("app2", password="app2-secret")
        assert "app2" in {u["name"] for u in pooler.show("USERS")}

    def test_the_star_survives_its_removal_and_changes_for_all(self, make_pooler):
        pooler = make_pooler(start=False)
        pooler.databases = {"*": {"host": "127.0.0.1", "port": pooler.pg.port, "dbname": "p0"}, "own": pooler.backend()}
        pooler.write()
        pooler.start()
        with pooler.login("app", "auto") as client:
            assert client.query("SELECT current_database()").value == "p0"
            assert "registered new auto-database: auto" in pooler.log()
            del pooler.databases["*"]
            pooler.write()
            pooler.reload()
            assert client.query("SELECT current_database()").value == "p0"
            assert pooler.login("app", "another").query("SELECT 1").value == "1"
            pooler.databases["*"] = {"host": "127.0.0.1", "port": pooler.pg.port, "dbname": "p1"}
            pooler.write()
            pooler.reload()
            assert client.query("SELECT current_database()").value == "p1"

    @pytest.mark.since("1.25")
    def test_a_missing_auth_file_is_no_failure(self, pooler):
        (pooler.dir / "userlist.txt").unlink()
        with pooler.console() as console:
            assert console.query("RELOAD").tags == ["RELOAD"]
        pooler.wait_log("ERROR could not open auth_file")

    @pytest.mark.since("1.25")
    def test_a_broken_file_is_reported_and_changes_nothing(self, pooler, binary):
        before = pooler.show("CONFIG"), pooler.show("DATABASES"), pooler.show("USERS")
        with pooler.login() as client, pooler.console() as console:
            client.query("SELECT 1")
            pooler.ini["query_timeout"] = 77
            del pooler.databases["p1"]
            pooler.users = {"app": {"pool_mode": "session"}}
            pooler.userlist["fresh"] = "x"
            pooler.write(extra="nonsense\n")
            failed = console.ask("RELOAD")
            assert failed.error == {"S": "ERROR", "C": "F0000", "M": "RELOAD failed, see logs for additional details"}
            pooler.wait_log("ERROR RELOAD Failed, see logs for more details")
            pooler.wait_log("WARNING config file loading failed")
            pooler.wait_log("ERROR syntax error in configuration")
            if binary.ours:
                unstable = ("current_connections", "current_client_connections")
                after = pooler.show("CONFIG"), pooler.show("DATABASES"), pooler.show("USERS")
                assert [[{k: v for k, v in row.items() if k not in unstable} for row in rows] for rows in after] == [
                    [{k: v for k, v in row.items() if k not in unstable} for row in rows] for rows in before]
            assert client.query("SELECT 1").value == "1"
            pooler.write()
            assert console.query("RELOAD").tags == ["RELOAD"]
            assert pooler.setting("query_timeout") == "77"
