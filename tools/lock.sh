#!/usr/bin/env bash
# Resolve all locks again: one resolution for everything, the others are parts of it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

# One version per package for every supported Python, and nothing in the files that names the
# index or the machine they were made with.
compile() {
    "$venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate "$@"
}
compile pyproject.toml requirements/build.in \
    --extra cpu --extra kfp --extra serving --extra test --extra lint -o requirements/dev.txt
compile pyproject.toml --extra cpu --extra kfp --extra serving \
    -c requirements/dev.txt -o requirements/runtime.txt
compile requirements/build.in -c requirements/dev.txt -o requirements/build.txt
compile requirements/bootstrap.in -o requirements/bootstrap.txt
# Triton's server for CPU stands apart: it wants another numpy, and only this much of its own list.
compile requirements/triton.in --no-deps -o requirements/triton.txt
# A tool of the images' build alone.
compile requirements/sbom.in -o requirements/sbom.txt
