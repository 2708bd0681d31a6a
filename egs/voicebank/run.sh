#!/usr/bin/env bash
# VoiceBank-DEMAND: ./run.sh [--mini true] [--stage N] ...; all options: ./run.sh --help
# shellcheck source=egs/TEMPLATE/recipe.sh
. "$(dirname -- "$0")/../TEMPLATE/recipe.sh"

run_pipeline \
    --train_set train \
    --valid_set valid \
    --test_sets test \
    --fs 16000 \
    --results_note "Validation: speakers p226 and p287, held out of the training set. Composite measures at int16 scale." \
    "$@"
