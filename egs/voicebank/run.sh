#!/usr/bin/env bash
# VoiceBank-DEMAND: ./run.sh [--mini true] [--stage N] ...; all options: ./run.sh --help
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

RECIPE_COMMAND="./run.sh${1:+$(printf " %q" "$@")}" # for the record in RESULTS.md
export RECIPE_COMMAND
exec ../TEMPLATE/enh_kd.sh \
    --train_set train \
    --valid_set valid \
    --test_sets test \
    --fs 16000 \
    --results_note "Validation: speakers p226 and p287, held out of the training set. Composite measures at int16 scale." \
    "$@"
