#!/usr/bin/env bash
# Pin every dependency, with hashes, for each supported Python: tools/update_locks.sh [--upgrade]
# Edit requirements.in or requirements-py3*.in first. No package index is written into the locks: whoever installs
# from them uses their own.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

for minor in 11 12; do
    lock="requirements-py3${minor}.txt"
    UV_CUSTOM_COMPILE_COMMAND=tools/update_locks.sh uv pip compile --quiet \
        --python-version "3.${minor}" --python-platform linux --generate-hashes \
        --no-emit-index-url --no-emit-find-links "$@" \
        --output-file "${lock}" "requirements-py3${minor}.in"
    if grep -nE '^--|[a-z]+://' "${lock}"; then
        echo "error: tools/${lock} names an index or an address (lines above)" >&2
        exit 1
    fi
    echo "tools/${lock}: $(grep -c '==' "${lock}") packages"
done
