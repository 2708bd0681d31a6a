#!/usr/bin/env bash
# This project's students beside the enhancement networks that ESPnet ships: local/side_by_side.sh [options of run.sh]
# Every network gets the same short training, by default on the mini corpus; one table (SIDE_BY_SIDE.md in expdir) shows
# parameters, MACs, real-time factor on one and two threads, peak memory and scores. What is finished is skipped.

# begin options
## Side by side
systems="dpdcrn_tiny dccrn_tiny bsrnn_tiny dprnn_tiny tfgridnet_tiny dpdcrn_student" # files of conf/side_by_side that are trained and scored; may be empty
cost_only="dccrn_student bsrnn_student dprnn_student tfgridnet_student" # files whose cost alone is measured; may be empty
bench_utterances=4       # utterances of the test set that are timed
bench_repeats=5          # turns that are timed
# end options

# shellcheck disable=SC2034,SC2154  # options are read by name
# shellcheck source=egs/TEMPLATE/recipe.sh
. "$(dirname -- "$0")/../../TEMPLATE/recipe.sh"
take_options "$@"

set_pipeline_default() { # --NAME VALUE unless the user gave it
    local value
    value="$(pipeline_option "$1" "")"
    [[ -n "${value}" ]] || pipeline_options+=("--$1" "$2")
}
set_pipeline_default mini true
mini="$(pipeline_option mini true)"
set_pipeline_default expdir "$([[ "${mini}" == true ]] && echo mini/exp_side_by_side || echo exp/side_by_side)"
pipeline_options+=(--with_baseline false --distill_config none)

for name in ${systems} ${cost_only}; do
    need_file "--systems or --cost_only ${name}:" "conf/side_by_side/${name}.yaml"
done
declare -A resolved=()
while IFS='=' read -r name value; do
    resolved["${name}"]="${value}"
done < <(./run.sh "${pipeline_options[@]}" --show_options true)
[[ -n "${resolved[rawdir]:-}" ]] || exit 2 # run.sh has said why
expdir="${resolved[expdir]}" rawdir="${resolved[rawdir]}" force="${resolved[force]}"
logdir="${resolved[logdir]}"
repo="$(cd ../.. && pwd)"
python="$(pipeline_option python "")"
enter_python

run_recipe() { run ./run.sh "${pipeline_options[@]}" "$@"; }

# Train, enhance and score the network of conf/side_by_side/$1.yaml.
train_and_score() {
    run_recipe --stage 5 --stop_stage 6 --score_systems student_kd \
        --student_config "conf/side_by_side/$1.yaml" --student_tag "$1"
}

# Parameters, MACs, time and memory of all networks, in turns.
measure_costs() {
    local name set="$1" models=() configs=()
    for name in ${systems}; do models+=("${name}=${expdir}/${name}"); done
    for name in ${cost_only}; do models+=("${name}=conf/side_by_side/${name}.yaml"); done
    ((${#models[@]} > 0)) || return 0
    for name in ${systems} ${cost_only}; do configs+=("conf/side_by_side/${name}.yaml"); done
    step "${expdir}/.done_cost" redo "input_models=${models[*]}" "${configs[@]/#/input_configs@}" \
        "input_data@${rawdir}/.done_${set}" "input_bench=${bench_utterances} ${bench_repeats}"
    then_run "${python}" "${repo}/tools/bench" models "${models[@]}" --data_dir "${rawdir}/${set}" \
        --utterances "${bench_utterances}" --repeats "${bench_repeats}" --json "${expdir}/cost.json"
    do_step
}

write_table() {
    local set="$1" name rows table=SIDE_BY_SIDE.md
    local training_note="Networks: the same short training, batches and loss (compressed spectrum) for all; see conf/side_by_side."
    rows=(--system "noisy=${expdir}/noisy/scored_${set}")
    ((${#test_set_names[@]} == 1)) || table="SIDE_BY_SIDE_${set}.md"
    for name in ${systems}; do
        rows+=(--system "${name}=${expdir}/${name}/scored_${set}")
    done
    if [[ -n "${systems// /}" ]]; then
        rows+=(--baseline "${systems%% *}" --note "${training_note}")
    fi
    [[ -z "${systems// /}${cost_only// /}" ]] || rows+=(--cost "${expdir}/cost.json")
    run "${python}" -m i2srf_kd.bin.results "${rows[@]}" --out "${expdir}/${table}" \
        --title "Side by side: $(basename -- "$(pwd)")$([[ "${mini}" != true ]] || echo ", mini corpus"), ${set}" \
        --command "${RECIPE_COMMAND}"
    cat -- "${expdir}/${table}"
    log "table: ${expdir}/${table}"
}

read -r -a test_set_names <<<"${resolved[test_sets]}"
run_recipe --stage 1 --stop_stage 3
for name in ${systems}; do
    train_and_score "${name}"
done
run_recipe --stage 6 --stop_stage 6 --score_systems noisy
measure_costs "${test_set_names[0]}"
for set in "${test_set_names[@]}"; do
    write_table "${set}"
done
