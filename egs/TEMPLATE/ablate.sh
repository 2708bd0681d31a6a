#!/usr/bin/env bash
# An ablation: stages 1 to 4 once, stages 5 and 6 for every cell and seed of a grid file, and one table:
# ./ablate.sh --grid conf/ablation/NAME.yaml [--mini true] ...; see docs/ablations.md
# egs/<corpus>/ablate.sh is a link to this file, which works in that folder; the work is done by i2srf_kd/bin/ablate.py.
set -euo pipefail
cd -- "$(dirname -- "$0")"

repo="$(cd ../.. && pwd)"
if [[ ! -x run.sh || ! -f path.sh ]]; then
    echo "error: no run.sh and path.sh in $(pwd): start a recipe's ablate.sh instead of this file" >&2
    exit 2
fi

python=
previous=
for word in "$@"; do
    [[ "${previous}" != --python ]] || python="${word}"
    [[ "${word}" != --python=* ]] || python="${word#*=}"
    previous="${word}"
done
if [[ -z "${python}" ]]; then
    # shellcheck disable=SC1091
    . ./path.sh
    python=python
fi
export PYTHONPATH="${repo}${PYTHONPATH:+:${PYTHONPATH}}"
RECIPE_COMMAND="./ablate.sh${1:+$(printf " %q" "$@")}" # for the record in the table
export RECIPE_COMMAND
exec "${python}" -m i2srf_kd.bin.ablate --python "${python}" "$@"
