#!/usr/bin/env bash
# Ablations on VoiceBank-DEMAND: ./ablate.sh --grid conf/ablation/NAME.yaml [--mini true] ...; see docs/ablations.md
set -euo pipefail
cd -- "$(dirname -- "$0")"
exec ../TEMPLATE/ablate.sh "$@"
