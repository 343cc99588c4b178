#!/bin/sh
# Make the virtual environment $2 with the Python $1, unless it is there and has pip.
set -eu

python=$1
venv=$2

fail() {
    echo "$1" >&2
    exit 1
}

debian_root() {
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null
}

apt_install() {
    echo "Installing $* ..." >&2
    apt-get update -qq > /dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

new_enough='import sys; sys.exit(sys.version_info < (3, 10))'
if "$venv/bin/python" -c "$new_enough" 2> /dev/null &&
    "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    exit 0
fi

if ! command -v "$python" > /dev/null; then
    [ "$python" = python3 ] && debian_root && apt_install python3 python3-venv ||
        fail "There is no $python: install Python 3.10 or newer, or say make PYTHON=<its path>."
fi
if ! "$python" -c "$new_enough"; then
    fail "$("$python" -V 2>&1) is too old: say make PYTHON=<path of a Python 3.10 or newer>."
fi

# without ensurepip (Debian), venv leaves a folder that has no pip
if ! "$python" -m venv --clear "$venv" > /dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if debian_root; then
        apt_install "python$version-venv" || apt_install python3-venv || true
    fi
    "$python" -m venv --clear "$venv" > /dev/null 2>&1 ||
        fail "$python cannot make a virtual environment: install python$version-venv (Debian, Ubuntu: apt-get install python$version-venv) and try again."
fi
