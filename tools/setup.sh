#!/usr/bin/env bash
# Make or refresh the virtual environment from the hashed locks. Usage: tools/setup.sh VENV
#
# Called by every Makefile target that needs the environment. A stamp named by the digest of the
# locks and of pyproject.toml makes a second call return at once, without the network.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

digest=$(cat requirements/*.txt pyproject.toml tools/setup.sh | sha256sum | cut -c1-16)
stamp=$venv/.sssflow-$digest
if [ -e "$stamp" ] && [ -x "$venv/bin/python" ]; then
    exit 0
fi

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 69; }

find_python() {
    # A version manager may leave a shim that is on the PATH and cannot run: try it, do not just see it.
    local name
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || fail "no Python 3.11 to 3.13 found on the PATH." \
        "next: install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11 ..."
    say "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv" || fail "$python cannot make a virtual environment." \
        "next: install its venv module (Debian: apt-get install python3-venv), then run the same command again."
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# sam2 tries to compile an optional CUDA kernel, which sssflow does not use.
export SAM2_BUILD_CUDA=0
pip() { "$venv/bin/python" -m pip "$@"; }

# The builders come first, so that no later build fetches anything that no lock names.
say "installing (the first time this fetches about 3 GB and takes minutes)"
pip install --quiet --require-hashes --no-deps -r requirements/build.txt \
    || fail "the package index cannot be reached or does not hold a locked version." \
        "next: check the network or pip's index setting, then run the same command again."

installed=no
if pip install --quiet --require-hashes --no-deps --only-binary :all: -r requirements/bootstrap.txt; then
    index=$(pip config get global.index-url 2>/dev/null || true)
    if [ -z "${UV_DEFAULT_INDEX:-}" ] && [ -n "${PIP_INDEX_URL:-$index}" ]; then
        export UV_DEFAULT_INDEX=${PIP_INDEX_URL:-$index}
    fi
    if "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --require-hashes --no-deps \
        --no-build-isolation -r requirements/dev.txt; then
        installed=yes
    fi
fi
if [ $installed = no ]; then
    say "uv could not install the locks here; trying pip, which is slower"
    pip install --quiet --require-hashes --no-deps --no-build-isolation -r requirements/dev.txt \
        || fail "the locked packages could not be installed." \
            "next: read the message above; check the network and the space left, then run the same command again."
fi
pip install --quiet --no-deps --no-build-isolation --no-index --editable .

rm -f "$venv"/.sssflow-*
touch "$stamp"
say "ready in $venv"
