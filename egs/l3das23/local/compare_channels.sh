#!/usr/bin/env bash
# What do channels bring, what does distillation? local/compare_channels.sh [options of ablate.sh but --num_mics]
# The grid conf/ablation/compare.yaml on channel W of microphone A alone (exp/w), on A (exp/mics1) and on A and B
# (exp/mics2), all tested on the same utterances, then one table of all seeds: exp/CHANNELS.md.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."

grid=conf/ablation/compare.yaml
./ablate.sh --grid "${grid}" "$@" --num_mics 2
./ablate.sh --grid "${grid}" "$@" --num_mics 1
./ablate.sh --grid "${grid}" "$@" --num_mics 1 --train_args "--separator_conf num_mics=1" --expdir exp/w

# shellcheck disable=SC1091
. ./path.sh
rows=(--system noisy=exp/mics1/noisy/scored_test)
for arm in W:exp/w/mics1 A:exp/mics1 AB:exp/mics2; do
    name="${arm%%:*}" folder="${arm#*:}"
    rows+=(--system "teacher_${name}=${folder}/teacher/scored_test:${folder}/teacher")
    for cell in undistilled i2srf_tfckd; do
        runs="${folder}/ablation/compare/${cell}"
        rows+=(--system "${cell}_${name}=${runs}/seed*/scored_test:${runs}/seed0")
    done
    rows+=(--compare "i2srf_tfckd_${name}-undistilled_${name}" --compare "teacher_${name}-undistilled_${name}")
done
for cell in undistilled i2srf_tfckd; do
    rows+=(--compare "${cell}_A-${cell}_W" --compare "${cell}_AB-${cell}_W" --compare "${cell}_AB-${cell}_A")
done
python -m i2srf_kd.bin.results "${rows[@]}" --title "Channels and distillation: Ambisonics in simulated rooms" \
    --note "W: the first channel of microphone A; A: its four channels; AB: with those of B eight. noisy is W of A." \
    --note "Trained on simulated rooms; the speakers, rooms and noises of the test set are not among them." \
    --command "local/compare_channels.sh${1:+$(printf " %q" "$@")}" --out exp/CHANNELS.md
cat exp/CHANNELS.md
