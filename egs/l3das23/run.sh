#!/usr/bin/env bash
# L3DAS23 Task 1, enhancement of first-order Ambisonics: ./run.sh [--num_mics 1|2] [--mini true] [--stage N] ...
# Folders of data, models and results have a subfolder per number of microphones, mics1 or mics2.

# begin options
## Microphones and corpus
num_mics=          # 1 (A), 2 (A and B) or "1 2" (both in turn, and one table); by default 2, with --mini true both
train_part=train100 # training data: train100, train360 or both
speech_dir=        # make a corpus with the dry speech in this folder, in simulated rooms
noise_dir=         # and with the noise in this one
rooms_args=        # further options for the simulation, such as "--rooms 100" (python -m i2srf_kd.bin.simulate_rooms)
# end options

# shellcheck source=egs/TEMPLATE/recipe.sh
. "$(dirname -- "$0")/../TEMPLATE/recipe.sh"
take_options "$@"

mini="$(pipeline_option mini false)"
prefix="" all_mics=2 default_nj=4
if [[ "${mini}" == true ]]; then
    prefix=mini/ all_mics="1 2" default_nj=2 # so little work that starting processes costs more
fi
: "${num_mics:=${all_mics}}"
[[ "${num_mics}" =~ ^(1|2|1 2)$ ]] || fail "--num_mics ${num_mics}: must be 1, 2 or \"1 2\""
[[ -z "${speech_dir}${noise_dir}" || (-n "${speech_dir}" && -n "${noise_dir}") ]] ||
    fail "--speech_dir and --noise_dir go together: clean speech and noise for simulated rooms"
datadir="$(pipeline_option datadir "${prefix}data")"
dumpdir="$(pipeline_option dumpdir "${prefix}dump")"
expdir="$(pipeline_option expdir "${prefix}exp")"
corpus_dir="$(pipeline_option corpus_dir "")"
nj="$(pipeline_option nj "${default_nj}")"
logdir="$(pipeline_option logdir "")"
python="$(pipeline_option python "")"
force=false # of the common table, which costs little

# A simulated corpus serves both numbers of microphones; one that is complete is kept.
simulate_corpus() {
    local options
    read -r -a options <<<"${rooms_args}"
    if [[ -n "${speech_dir}" ]]; then
        run "${python}" -m i2srf_kd.bin.simulate_rooms --speech_dir "${speech_dir}" --noise_dir "${noise_dir}" \
            --out "${corpus_dir}" --nj "${nj}" "${options[@]}"
    else
        run "${python}" -m i2srf_kd.bin.mini_corpus "${corpus_dir}" --layout l3das23 --nj "${nj}" \
            --train_utts 64 --valid_utts 12 --test_utts 12
    fi
}

# One table of all systems with one and with two microphones.
write_common_table() {
    local mics system label out rows=(--system "noisy=${expdir}/mics1/noisy/scored_test")
    local -A tags=([teacher]="$(pipeline_option teacher_tag teacher)" [student]="$(pipeline_option baseline_tag student)"
        [student_kd]="$(pipeline_option student_tag student_kd)")
    for mics in 1 2; do
        label="$([[ "${mics}" == 1 ]] && echo A || echo AB)"
        for system in teacher student student_kd; do
            out="${expdir}/mics${mics}/${tags[${system}]}"
            [[ ! -d "${out}/scored_test" ]] || rows+=(--system "${system}_${label}=${out}/scored_test:${out}")
        done
        [[ ! -d "${expdir}/mics${mics}/${tags[student]}/scored_test" ]] ||
            rows+=(--compare "student_kd_${label}-student_${label}")
    done
    rows+=(--compare student_kd_AB-student_kd_A --compare teacher_AB-teacher_A)
    step "${expdir}/.done_results" redo "input_title=${title}" "input_mics1@${expdir}/mics1/.done_results" \
        "input_mics2@${expdir}/mics2/.done_results"
    then_run "${python}" -m i2srf_kd.bin.results --title "$(pipeline_option results_title "${title}")" "${rows[@]}" \
        --note "A: the four channels of microphone A; AB: with those of B eight. noisy is channel W of A." \
        --note "${note}" --command "${RECIPE_COMMAND}" --out "${expdir}/RESULTS.md"
    do_step
    cat -- "${expdir}/RESULTS.md"
}

# Whether the command shows something and runs nothing.
looks=false
if [[ "$(pipeline_option status false)$(pipeline_option show_options false)" == *true* ]]; then
    looks=true
fi

if [[ -n "${speech_dir}" || ("${mini}" == true && -z "${corpus_dir}") ]]; then
    [[ -z "${corpus_dir}" ]] || fail "--corpus_dir and --speech_dir: give one of them"
    corpus_dir="${datadir}/corpus"
    if [[ "$(pipeline_option stage 1)" =~ ^0*1$ && "${looks}" == false ]]; then
        run_pipeline "${pipeline_options[@]}" --show_options true >/dev/null # wrong options are refused before any work
        enter_python
        simulate_corpus
    fi
fi

title="L3DAS23 Task 1"
note="Validation: speakers drawn from the training set. Test: the dev set."
if [[ "${mini}" == true ]]; then
    title="Mini corpus in simulated rooms (synthetic; the figures say nothing about real speech)"
elif [[ -n "${speech_dir}" ]]; then
    title="Simulated rooms with the layout of L3DAS23"
fi
for mics in ${num_mics}; do
    run_pipeline \
        --nj "${nj}" \
        --inference_nj "${nj}" \
        --results_title "${title}" \
        --results_note "${note} ${mics} microphone(s); noisy is channel W of A." \
        "${pipeline_options[@]}" \
        --datadir "${datadir}/mics${mics}" \
        --dumpdir "${dumpdir}/mics${mics}" \
        --expdir "${expdir}/mics${mics}" \
        --logdir "${logdir:+${logdir}/mics${mics}}" \
        --corpus_dir "${corpus_dir}" \
        --local_data_opts "--num_mics ${mics} --train_part ${train_part} $(pipeline_option local_data_opts "")" \
        --train_args "--separator_conf num_mics=$((4 * mics)) $(pipeline_option train_args "")"
done

if [[ "${num_mics}" == "1 2" && "${looks}" == false && "$(pipeline_option submit false)" == false && -f "${expdir}/mics1/.done_results" && -f "${expdir}/mics2/.done_results" ]]; then
    enter_python
    write_common_table
    log "table of both: ${expdir}/RESULTS.md"
fi
