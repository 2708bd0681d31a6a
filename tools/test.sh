#!/usr/bin/env bash
# Run the tests, building the environment on first use: tools/test.sh [--all] [pytest arguments]
# By default the fast ones; --all runs everything, and a -m expression replaces the selection (tools/test.sh -m slow).
# They run on all processors, 8 at most, with one thread each; -n 0 runs them in one process and shows what they print.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
. tools/activate_python.sh

selection=(-m "not slow and not cluster")
arguments=()
for argument in "$@"; do
    case "${argument}" in
        --all) selection=() ;;
        -m | -m?* | --markexpr | --markexpr=*)
            selection=()
            arguments+=("${argument}")
            ;;
        *) arguments+=("${argument}") ;;
    esac
done
unset PYTHONDONTWRITEBYTECODE # the tests start hundreds of processes, which would each compile the package anew
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n logical --maxprocesses 8 --dist worksteal "${selection[@]}" "${arguments[@]}"
