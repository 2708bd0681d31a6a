#!/usr/bin/env bash
# Knowledge distillation for speech enhancement, from a corpus to an exported student, in stages:
#   1 data       the corpus becomes data/<set>             5 student    distilled, and undistilled to compare with
#   2 format     one sampling rate and audio format        6 enhance    enhance and score the test sets: RESULTS.md
#   3 statistics lengths and a report of the corpus        7 export     a folder that works without this repository
#   4 teacher    train the teacher                         8 pack       for ESPnet's model zoo, with --pack true only
#
# Called by egs/<corpus>/run.sh, which sets the names; every option below can be given to run.sh. A stage that is
# finished is skipped, and one that was interrupted continues: run the same command again. Exit code 75 says that a
# training saved its state on a signal. Relative paths are relative to the recipe's folder.

# Options are read by name, and cmd.sh of the recipe brings cmd_backend and the *_cmd arrays.
# shellcheck disable=SC2034,SC2154,SC2209,SC2329
set -euo pipefail

# begin options
## Stages
stage=1                  # first stage to run
stop_stage=7             # last stage to run
pack=false               # also stage 8: pack the student for ESPnet's model zoo, and show how to upload it
force=false              # run stages again although they are finished; trained models are moved aside, never deleted
mini=false               # a small synthetic corpus and small models, to see everything run (folder mini/)

## Resources
nj=4                     # parts into which formatting is split
inference_nj=4           # parts into which enhancement and scoring are split
ngpu=                    # GPUs for training; by default 1 where there is one, else 0
num_nodes=1              # machines for training
num_threads=             # CPU threads for training; by default all
python=                  # Python to use; by default the environment of tools/, built on first use
cmd_backend=             # how commands are run, see run_jobs --help; by default as cmd.sh of the recipe says
scratch=                 # folder on the disk of the machine that trains, such as '$TMPDIR': it reads a copy of the data there
train_tasks=             # processes of a training on each machine under Slurm; by default one per GPU
submit=false             # leave the stages to Slurm, as jobs that wait for each other, and return
status=false             # show how far each stage is, and run nothing
show_options=false       # print what every option comes to, one name=value a line, and run nothing

## Folders
datadir=data             # data folders in Kaldi style
dumpdir=dump             # formatted audio
expdir=exp               # models, results and logs
logdir=                  # logs; by default logs in expdir
corpus_dir=              # where the corpus lies; by default it is downloaded

## Data
train_set=train          # name of the training set
valid_set=valid          # name of the validation set
test_sets=test           # names of the test sets, separated by blanks
fs=16000                 # sampling rate in Hz
audio_format=flac        # format of the formatted audio: flac, wav, or in few large files flac.ark, wav.ark
check_md5=true           # verify downloaded archives
check_counts=true        # verify the number of utterances
local_data_opts=         # further options for local/data.py or local/data.sh

## Models
teacher_config=conf/train_teacher.yaml # configuration of the teacher
student_config=conf/train_student.yaml # configuration of the student, with and without distillation
distill_config=conf/distill/i2srf_tfckd.yaml # configuration of the distillation; none: train without a teacher
teacher_tag=teacher      # folder of the teacher in expdir
student_tag=student_kd   # folder of the distilled student in expdir
baseline_tag=student     # folder of the undistilled student in expdir
teacher_exp=             # a teacher that is already trained, its folder or the name of a model of the package; stage 4 is skipped
with_baseline=false      # also train the student without distillation (true with --mini true)
seed=0                   # seed of all trainings
train_args=              # further options for all trainings, such as "--max_epoch 10"
teacher_args=            # further options for the training of the teacher
student_args=            # further options for the trainings of the student

## Enhancement and results
inference_model=         # name of the checkpoint to enhance with; by default the command's own choice
inference_args=          # further options for enhancement
score_args=              # further options for scoring
score_systems=           # score these alone (of noisy teacher student student_kd) and write no table; by default all
results_title=           # title of RESULTS.md
results_note=            # remark below the table, such as which speakers validate
# end options

template="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: bash 4.4 or newer is needed, this is ${BASH_VERSION}" >&2
    exit 2
fi
# shellcheck source=egs/TEMPLATE/parse_options.sh
. "${template}/parse_options.sh"
# shellcheck source=egs/TEMPLATE/stage_tools.sh
. "${template}/stage_tools.sh"

arguments=("$@")
parse_options "${BASH_SOURCE[0]}" "$@"
invocation="${RECIPE_COMMAND:-enh_kd.sh $*}" # for the record in RESULTS.md

# ---------------------------------------------------------------------------------------------------------------------
# Defaults that depend on other options, and checks, before anything runs

# Set option $1 to $2 unless the user gave it.
set_default() { [[ -n "${option_given[$1]:-}" ]] || printf -v "$1" '%s' "$2"; }

if [[ "${mini}" == true ]]; then
    set_default datadir mini/data
    set_default dumpdir mini/dump
    set_default expdir mini/exp
    set_default teacher_config conf/mini/train_teacher.yaml
    set_default student_config conf/mini/train_student.yaml
    [[ ! -f conf/mini/distill.yaml ]] || set_default distill_config conf/mini/distill.yaml
    set_default with_baseline true
    set_default check_counts false
    set_default nj 2 # so little work that starting processes costs more
    set_default inference_nj 1
    set_default results_title "Mini corpus (synthetic; the figures say nothing about real speech)"
fi

[[ "${pack}" == false ]] || set_default stop_stage 8
if [[ ! -f path.sh || ! -f cmd.sh ]]; then
    fail "no path.sh and cmd.sh in $(pwd): start a recipe's run.sh instead of this file"
fi
((stage >= 1 && stop_stage <= 8 && stage <= stop_stage)) ||
    fail "--stage ${stage} --stop_stage ${stop_stage}: stages are 1 to 8, the first not after the last"
((nj >= 1 && inference_nj >= 1 && num_nodes >= 1)) || fail "--nj, --inference_nj and --num_nodes must be at least 1"
[[ "${ngpu:-0}" =~ ^[0-9]+$ ]] || fail "--ngpu ${ngpu}: must be a whole number"
[[ "${num_threads:-1}" =~ ^[1-9][0-9]*$ ]] || fail "--num_threads ${num_threads}: must be 1 or more"
[[ "${train_tasks:-1}" =~ ^[1-9][0-9]*$ ]] || fail "--train_tasks ${train_tasks}: must be 1 or more"
# ESPnet's data options are triples separated by commas, which have no way to quote one.
[[ "${dumpdir}${expdir}" != *,* ]] || fail "--dumpdir and --expdir must not contain commas"
[[ -n "${test_sets// /}" ]] || fail "--test_sets is empty"
[[ "$(printf '%s\n' "${teacher_tag}" "${student_tag}" "${baseline_tag}" noisy stats logs | sort -u | wc -l)" == 6 ]] ||
    fail "--teacher_tag, --student_tag and --baseline_tag must differ, and none may be noisy, stats or logs"

backend_given="${cmd_backend}"
# shellcheck disable=SC1091
. ./cmd.sh
if [[ -n "${backend_given}" ]]; then
    cmd_backend="${backend_given}"
    for kind in data_cmd train_cmd decode_cmd score_cmd; do
        declare -n kind_options="${kind}"
        kind_options+=(--backend "${cmd_backend}") # the last one counts
    done
fi
enter_python
command -v "${python}" >/dev/null || fail "--python ${python}: no such program"

if [[ "${submit}" == true ]]; then
    cmd_backend=slurm
fi
# Whether Slurm starts the processes of a training: here, or in the job that this pipeline itself is.
by_srun="$([[ "${cmd_backend}" == slurm || -n "${I2SRF_STAGE_JOB:-}" ]] && echo true || echo false)"
if [[ "${cmd_backend}" == local ]]; then
    gpus="$(count_gpus)"
    : "${ngpu:=$((gpus > 0 ? 1 : 0))}"
    ((ngpu <= gpus)) || [[ "${submit}${status}" == *true* ]] || fail "--ngpu ${ngpu}: this machine has ${gpus} usable GPU(s); give --ngpu ${gpus}" \
        "(is CUDA_VISIBLE_DEVICES set, does nvidia-smi -L list them?)"
    ((num_nodes == 1)) || [[ "${by_srun}" == true || "${status}" == true ]] ||
        fail "--num_nodes ${num_nodes}: cmd.sh runs everything on this machine (cmd_backend=local)"
else
    # This machine says nothing about those that the jobs will run on.
    : "${ngpu:=$([[ "${mini}" == true ]] && echo 0 || echo 1)}" "${num_threads:=4}"
fi
: "${ngpu:=0}" "${num_threads:=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}"

read -r -a test_set_names <<<"${test_sets}"
all_sets=("${train_set}" "${valid_set}")
for set in "${test_set_names[@]}"; do
    [[ "${set}" == "${train_set}" || "${set}" == "${valid_set}" ]] || all_sets+=("${set}") # it may be scored as well
done
read -r -a train_options <<<"${train_args}"
read -r -a teacher_options <<<"${teacher_args}"
read -r -a student_options <<<"${student_args}"
read -r -a local_data_options <<<"${local_data_opts}"
read -r -a inference_options <<<"${inference_args}"
read -r -a score_options <<<"${score_args}"

rawdir="${dumpdir}/raw"
statsdir="${expdir}/stats"
: "${logdir:=${expdir}/logs}"
shipped="${template}/../../i2srf_kd/models/${teacher_exp}"
[[ -z "${teacher_exp}" || -e "${teacher_exp}" || ! -f "${shipped}/config.yaml" ]] || teacher_exp="${shipped}"
teacher_dir="${teacher_exp:-${expdir}/${teacher_tag}}"
I2SRF_MODELS="$(printf '%s\n' "${teacher_tag##*/}" "${student_tag##*/}" "${baseline_tag##*/}")"
export I2SRF_MODELS # so that a section of conf/slurm.yaml for one of them is known

[[ -z "${score_systems}" || " ${score_systems} " =~ ^(\ +(noisy|teacher|student|student_kd))+\ +$ ]] ||
    fail "--score_systems ${score_systems}: choose among noisy, teacher, student and student_kd"
if [[ "${show_options}" == true ]]; then
    for name in $(option_names "${BASH_SOURCE[0]}") teacher_dir rawdir; do
        echo "${name}=${!name}"
    done
    echo "pipeline=${template}/enh_kd.sh"
    echo "train_cmd=${train_cmd[*]@Q}"
    exit 0
fi

# ---------------------------------------------------------------------------------------------------------------------
# Stages

stage_1_data() {
    local script=local/data.py interpreter="${python}" corpus="${corpus_dir}" names=()
    local options=(--data_dir "${datadir}" --check_md5 "${check_md5}" --check_counts "${check_counts}")
    if [[ -f local/data.sh ]]; then
        script=local/data.sh interpreter=bash
    fi
    # Usual names are not given: a script of one's own need not know these options.
    [[ "${train_set}" == train ]] || names+=(--train_set "${train_set}")
    [[ "${valid_set}" == valid ]] || names+=(--valid_set "${valid_set}")
    [[ -f "${script}" ]] || fail "this recipe has neither local/data.py nor local/data.sh"
    # A generated corpus says in its marker what it was made from.
    step "${datadir}/.done_data" redo "corpus_dir=${corpus_dir}" "mini=${mini}" "local_data_opts=${local_data_opts}" \
        "set_names=${names[*]}" "input_corpus@${corpus_dir}/.mini_corpus.json"
    if [[ "${mini}" == true && -z "${corpus}" ]]; then
        corpus="${datadir}/corpus"
        then_run "${python}" -m i2srf_kd.bin.mini_corpus "${corpus}"
    fi
    [[ -z "${corpus}" ]] || options+=(--corpus_dir "${corpus}")
    then_run "${interpreter}" "${script}" "${options[@]}" "${names[@]}" "${local_data_options[@]}"
    do_step
}

stage_2_format() {
    local set table tables dropped
    for set in "${all_sets[@]}"; do
        [[ -s "${datadir}/${set}/wav.scp" ]] || need_stage 1 "${datadir}/${set}/wav.scp"
        tables=()
        for table in "${datadir}/${set}"/{wav,spk1}.scp "${datadir}/${set}"/wav_[0-9]*.scp; do
            tables+=("input_data@${table}")
        done
        step "${rawdir}/.done_${set}" redo "fs=${fs}" "audio_format=${audio_format}" "${tables[@]}" \
            "input_corpus=$(sed -n 's/^input_corpus=//p' "${datadir}/.done_data" 2>/dev/null || true)"
        then_run_parts data_cmd "format ${set}" "format_${set}" "$(parts_of "${nj}" "${datadir}/${set}/wav.scp")" \
            format_data "${datadir}/${set}" "${rawdir}/${set}" --fs "${fs}" --audio_format "${audio_format}"
        do_step
        dropped="${rawdir}/${set}/dropped.tsv"
        [[ ! -s "${dropped}" ]] ||
            warn "$(wc -l <"${dropped}") utterances of ${set} are silent or empty and were left out: ${dropped}"
    done
}

stage_3_statistics() {
    local set inputs=()
    for set in "${all_sets[@]}"; do
        [[ -f "${rawdir}/.done_${set}" ]] || need_stage 2 "${rawdir}/${set}"
        inputs+=("input_${set}@${rawdir}/.done_${set}")
    done
    step "${statsdir}/.done" redo "input_sets=${all_sets[*]}" "${inputs[@]}"
    then_run_job data_cmd statistics "${logdir}/statistics.log" "${python}" -m i2srf_kd.bin.corpus_stats \
        --dump_dir "${rawdir}" --sets "${all_sets[@]}" --out_dir "${statsdir}"
    then_run cat -- "${statsdir}/corpus_report.md"
    do_step
}

# Set train_resources to the options of run_jobs that reserve what a training needs.
set_train_resources() {
    if [[ "${by_srun}" == true ]]; then
        : "${train_tasks:=$((ngpu > 1 ? ngpu : 1))}"
        ((ngpu <= 1 || train_tasks == ngpu)) || fail "--train_tasks ${train_tasks}: one process per GPU, and --ngpu is ${ngpu}"
    else
        train_tasks=1 # ESPnet starts the processes
    fi
    train_resources=(--nodes "${num_nodes}" --tasks "${train_tasks}" --gpu "${ngpu}" --num_threads "${num_threads}")
}

# The step that trains into folder $1 with configuration $2: train_model FOLDER CONFIG [OPTION ...]
# One process per GPU, started by ESPnet itself or by Slurm. GPUs and machines do not change what is recorded in the done
# file.
train_model() {
    local output_dir="$1" config="$2" name command
    shift 2
    name="$(basename -- "${output_dir}")"
    command=("${python}" -m i2srf_kd.bin.train --config "${config}" --output_dir "${output_dir}")
    command+=(--train_data_path_and_name_and_type "${rawdir}/${train_set}/wav.scp,speech_mix,sound")
    command+=(--train_data_path_and_name_and_type "${rawdir}/${train_set}/spk1.scp,speech_ref1,sound")
    command+=(--valid_data_path_and_name_and_type "${rawdir}/${valid_set}/wav.scp,speech_mix,sound")
    command+=(--valid_data_path_and_name_and_type "${rawdir}/${valid_set}/spk1.scp,speech_ref1,sound")
    command+=(--train_shape_file "${statsdir}/${train_set}/speech_shape")
    command+=(--valid_shape_file "${statsdir}/${valid_set}/speech_shape")
    command+=(--seed "${seed}" --sample_rate "${fs}")
    set_train_resources
    if [[ "${by_srun}" == true ]] && ((num_nodes * train_tasks > 1)); then
        command+=(--ngpu $((ngpu > 0)) --multiprocessing_distributed false)
        command+=(--dist_backend "$( ((ngpu > 0)) && echo nccl || echo gloo)")
    else
        command+=(--ngpu "${ngpu}")
        ((ngpu <= 1)) || command+=(--multiprocessing_distributed true)
    fi
    [[ "${force}" == false ]] || command+=(--overwrite true)
    command+=("$@")
    if ((ngpu == 0)); then
        # Keep freed memory: giving it back and faulting it in again would take a third of a CPU training step.
        # Spin shortly only: threads that wait in a loop for one that lost its core stall the step several times over.
        command=(env MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 MALLOC_TOP_PAD_=536870912 \
            GOMP_SPINCOUNT=10000 "${command[@]}")
    fi
    if [[ -n "${scratch}" ]]; then
        command=("${python}" -m i2srf_kd.bin.with_scratch --scratch "${scratch}" \
            --sets "${rawdir}/${train_set}" "${rawdir}/${valid_set}" -- "${command[@]}")
    fi
    then_run_job train_cmd "${name}" --follow "${train_resources[@]}" "${logdir}/train_${name}.log" "${command[@]}"
    do_step
}

# What a training depends on beside its own options, as settings of a step in the array training_inputs. Files count by
# their content: folders may be moved.
collect_training_inputs() {
    [[ -f "${statsdir}/.done" ]] || need_stage 3 "${statsdir}"
    training_inputs=("train_set=${train_set}" "valid_set=${valid_set}" "seed=${seed}" "train_args=${train_args}")
    # Not the statistics as a whole: a test set that is added later changes nothing for a training.
    training_inputs+=("input_data@${rawdir}/.done_${train_set}" "input_data@${rawdir}/.done_${valid_set}")
}

stage_4_teacher() {
    if [[ -n "${teacher_exp}" ]]; then
        need_teacher
        log "using the trained teacher ${teacher_exp}"
        return
    fi
    need_file --teacher_config "${teacher_config}"
    collect_training_inputs
    step "${teacher_dir}/.done_train" keep "${training_inputs[@]}" "teacher_config_contents@${teacher_config}" \
        "teacher_args=${teacher_args}"
    train_model "${teacher_dir}" "${teacher_config}" "${train_options[@]}" "${teacher_options[@]}"
}

stage_5_student() {
    local distillation=()
    need_file --student_config "${student_config}"
    if [[ "${distill_config}" != none ]]; then
        need_file --distill_config "${distill_config}"
        need_teacher
    fi
    collect_training_inputs
    training_inputs+=("student_config_contents@${student_config}" "student_args=${student_args}")
    if [[ "${with_baseline}" == true ]]; then
        step "${expdir}/${baseline_tag}/.done_train" keep "${training_inputs[@]}"
        train_model "${expdir}/${baseline_tag}" "${student_config}" "${train_options[@]}" "${student_options[@]}"
    fi
    if [[ "${distill_config}" == none ]]; then
        training_inputs+=("distill_config=none")
    else
        training_inputs+=("distill_config_contents@${distill_config}" "distill_import_contents@@${distill_config}")
        training_inputs+=("input_teacher@${teacher_dir}/.done_train" "input_teacher@${teacher_dir}/config.yaml")
        distillation=(--distill_config "${distill_config}" --teacher_exp "${teacher_dir}")
    fi
    step "${expdir}/${student_tag}/.done_train" keep "${training_inputs[@]}"
    train_model "${expdir}/${student_tag}" "${student_config}" "${distillation[@]}" \
        "${train_options[@]}" "${student_options[@]}"
}

need_teacher() {
    if [[ -n "${teacher_exp}" ]]; then
        [[ -f "${teacher_exp}/config.yaml" || -f "${teacher_exp}/meta.yaml" || "${teacher_exp}" == *.zip && -f "${teacher_exp}" ]] ||
            fail "--teacher_exp ${teacher_exp}: no trained model, config.yaml missing; or a model packed by ESPnet, as zip or folder"
    else
        [[ -f "${teacher_dir}/.done_train" ]] || need_stage 4 "${teacher_dir}"
    fi
}

# Add to the step: enhance test set $2 with the model in folder $1, into folder $3.
then_enhance() {
    local model="$1" set="$2" out="$3" options=("${inference_options[@]}")
    [[ -z "${inference_model}" ]] || options+=(--model_file "${model}/${inference_model}")
    then_run_parts decode_cmd "enhance ${set}, $(basename -- "${out}")" "enhance_$(basename -- "${out}")_${set}" \
        "$(parts_of "${inference_nj}" "${rawdir}/${set}/wav.scp")" enhance_set \
        "${model}" "${rawdir}/${set}" "${out}/enhanced_${set}" "${options[@]}"
}

# Add to the step: score the estimates in SCP $2 of test set $1, into folder $3.
then_score() {
    local set="$1" scp="$2" out="$3"
    then_run_parts score_cmd "score ${set}, $(basename -- "${out}")" "score_$(basename -- "${out}")_${set}" \
        "$(parts_of "${inference_nj}" "${rawdir}/${set}/wav.scp")" score \
        "${rawdir}/${set}" "${scp}" "${out}/scored_${set}" "${score_options[@]}"
}

# Whether stage 6 scores system $1.
is_scored() { [[ -z "${score_systems}" || " ${score_systems} " == *" $1 "* ]]; }

stage_6_results() {
    local set system name model out inputs=()
    local systems=() # name=folder of the model
    is_scored teacher && systems+=("teacher=${teacher_dir}")
    if is_scored student && [[ "${with_baseline}" == true || -f "${expdir}/${baseline_tag}/.done_train" ]]; then
        systems+=("student=${expdir}/${baseline_tag}")
    fi
    is_scored student_kd && systems+=("student_kd=${expdir}/${student_tag}")
    for set in "${test_set_names[@]}"; do
        [[ -f "${rawdir}/.done_${set}" ]] || need_stage 2 "${rawdir}/${set}"
        is_scored noisy || continue
        step "${expdir}/noisy/.done_${set}" redo "score_args=${score_args}" "input_data@${rawdir}/.done_${set}"
        then_score "${set}" "${rawdir}/${set}/wav.scp" "${expdir}/noisy"
        do_step
        inputs+=("input_noisy_${set}@${expdir}/noisy/.done_${set}")
    done
    for system in "${systems[@]}"; do
        name="${system%%=*}" model="${system#*=}"
        out="${model}"
        if [[ "${name}" == teacher ]]; then
            need_teacher
            out="${expdir}/${teacher_tag}" # a teacher from elsewhere is read, never written to
        else
            [[ -f "${model}/.done_train" ]] || need_stage 5 "${model}"
        fi
        for set in "${test_set_names[@]}"; do
            step "${out}/.done_${set}" redo "inference_model=${inference_model}" "inference_args=${inference_args}" \
                "score_args=${score_args}" "input_data@${rawdir}/.done_${set}" \
                "input_model@${model}/.done_train" "input_model@${model}/config.yaml"
            then_enhance "${model}" "${set}" "${out}"
            then_score "${set}" "${out}/enhanced_${set}/wav.scp" "${out}"
            do_step
            inputs+=("input_${name}_${set}@${out}/.done_${set}")
        done
    done
    [[ -z "${score_systems}" ]] || return 0
    # Table and examples cost little: with other systems or another title they are made anew.
    step "${expdir}/.done_results" redo "${inputs[@]}" \
        "input_systems=${systems[*]%%=*}" "input_title=${results_title}" "input_note=${results_note}"
    for set in "${test_set_names[@]}"; do
        then_write_results "${set}"
    done
    do_step
}

# Name of the table of test set $1.
table_of() { ((${#test_set_names[@]} > 1)) && echo "RESULTS_$1.md" || echo RESULTS.md; }

# Add to the step: write the table and the examples of test set $1, for the systems that stage 6 found.
then_write_results() {
    local set="$1" title="${results_title:-$(basename -- "$(pwd)")}" system name out
    local rows=(--system "noisy=${expdir}/noisy/scored_${set}") shown=()
    for system in "${systems[@]}"; do
        name="${system%%=*}" out="${system#*=}"
        [[ "${name}" != teacher ]] || out="${expdir}/${teacher_tag}"
        rows+=(--system "${name}=${out}/scored_${set}:${out}")
        shown+=(--system "${name}=${out}/enhanced_${set}/spk1.scp")
        [[ "${name}" != student ]] || rows+=(--baseline student)
    done
    [[ -z "${results_note}" ]] || rows+=(--note "${results_note}")
    then_run_job score_cmd examples "${logdir}/examples_${set}.log" \
        "${python}" -m i2srf_kd.bin.examples "${rawdir}/${set}" -o "${expdir}/examples_${set}" "${shown[@]}"
    then_run_job score_cmd results "${logdir}/results_${set}.log" \
        "${python}" -m i2srf_kd.bin.results "${rows[@]}" --title "${title}" --command "${invocation}" \
        --pictures "${expdir}/examples_${set}" --out "${expdir}/$(table_of "${set}")"
}

stage_7_export() {
    local model="${expdir}/${student_tag}" set="${test_set_names[0]}" options=() inputs=()
    [[ -f "${model}/.done_train" ]] || need_stage 5 "${model}"
    if [[ -f "${model}/.done_${set}" ]]; then # the card shows the scores
        options+=(--scored "${model}/scored_${set}")
        inputs+=("input_scores@${model}/.done_${set}")
    fi
    [[ -z "${inference_model}" ]] || options+=(--model_file "${inference_model}")
    step "${model}/.done_export" redo "inference_model=${inference_model}" "input_model@${model}/.done_train" \
        "${inputs[@]}"
    then_run_job score_cmd export "${logdir}/export.log" \
        "${python}" -m i2srf_kd.bin.export "${model}" -o "${model}/export" "${options[@]}"
    do_step
}

stage_8_pack() {
    local model="${expdir}/${student_tag}" options=() set
    [[ -z "${inference_model}" ]] || options+=(--model_file "${inference_model}")
    [[ -f "${model}/.done_train" ]] || need_stage 5 "${model}"
    for set in "${test_set_names[@]}"; do
        [[ ! -f "${expdir}/$(table_of "${set}")" ]] || options+=(--extra "${expdir}/$(table_of "${set}")")
    done
    step "${model}/.done_pack" redo "inference_model=${inference_model}" "input_model@${model}/.done_train" \
        "input_results@${expdir}/.done_results"
    then_run_job score_cmd pack "${logdir}/pack.log" \
        "${python}" -m i2srf_kd.bin.pack "${model}" -o "${model}/${student_tag##*/}.zip" "${options[@]}"
    then_run cat -- "${logdir}/pack.log"
    do_step
}

# ---------------------------------------------------------------------------------------------------------------------

show_results() {
    local set results
    for set in "${test_set_names[@]}"; do
        results="${expdir}/$(table_of "${set}")"
        [[ ! -f "${results}" ]] || { cat -- "${results}" && log "table:    ${results}"; }
    done
    # Folders that --force moved aside are called *.bak-<time>.
    find "${expdir}" -name '*.bak-*' -prune -o -name '*.png' -printf '%h\n' | sort -u | while IFS= read -r folder; do
        log "pictures: ${folder}"
    done
    find "${expdir}" -name '*.bak-*' -prune -o -type d -name 'enhanced_*' -print | sort | while IFS= read -r folder; do
        log "audio:    ${folder}"
    done
    [[ ! -d "${expdir}/${student_tag}/export" ]] || log "export:   ${expdir}/${student_tag}/export"
}

show_status() {
    local models=(--teacher "${teacher_dir}" --student "${expdir}/${student_tag}")
    if [[ "${with_baseline}" == true || -d "${expdir}/${baseline_tag}" ]]; then
        models+=(--baseline "${expdir}/${baseline_tag}")
    fi
    "${python}" -m i2srf_kd.bin.status --recipe "$(basename -- "$(pwd)")" --stages "${stages[@]#stage_?_}" --datadir "${datadir}" --rawdir "${rawdir}" \
        --expdir "${expdir}" --logdir "${logdir}" --sets "${all_sets[@]}" "${models[@]}"
}

# All stages as Slurm jobs, each of which waits for the one before; a stage runs inside of its job.
submit_stages() {
    local number job before="" jobs=() name options machines
    for ((number = stage; number <= stop_stage; number++)); do
        name="${stages[number - 1]}"
        stage_job_options "${number}"
        options+=(--backend slurm --name "${name#stage_?_}" --start_once --detach ${before:+--after "${before}"})
        export I2SRF_STAGE="stage${number}"
        job="$("${python}" -m i2srf_kd.bin.run_jobs "${options[@]}" "${logdir}/${name}.log" env I2SRF_STAGE_JOB=1 "${template}/enh_kd.sh" \
            "${arguments[@]}" --submit false --cmd_backend local --python "${python}" --num_threads "${num_threads}" \
            "${machines[@]}" --stage "${number}" --stop_stage "${number}")" || {
            ((${#jobs[@]} == 0)) || scancel "${jobs[@]}"
            fail "stage ${number} could not be submitted${jobs[*]:+; cancelled the jobs before it: ${jobs[*]}}"
        }
        before="${job}"
        jobs+=("${job}")
        log "stage ${number} (${name#stage_?_}): Slurm job ${job}, log ${logdir}/${name}.log"
    done
    log "watch them: squeue --jobs=$(IFS=, && echo "${jobs[*]}")    progress: ./run.sh --status    cancel: scancel ${jobs[*]}"
}

# Set options to what the job of stage $1 reserves (all parts of a stage run at a time), and machines to what the pipeline
# inside of it is to know about that.
stage_job_options() {
    local parts=1 place
    machines=(--ngpu 0 --num_nodes 1)
    case "$1" in
        2) options=("${data_cmd[@]}") parts="${nj}" ;;
        4 | 5)
            set_train_resources
            options=("${train_cmd[@]}" "${train_resources[@]}")
            machines=(--ngpu "${ngpu}" --num_nodes "${num_nodes}")
            return
            ;;
        6) options=("${decode_cmd[@]}") parts="${inference_nj}" ;;
        7 | 8) options=("${score_cmd[@]}") ;;
        *) options=("${data_cmd[@]}") ;;
    esac
    options+=(--num_threads "${parts}")
    for ((place = 0; place < ${#options[@]}; place++)); do
        if [[ "${options[place]}" == --mem && "${options[place + 1]}" =~ ^([0-9]+)([KMGT]?)$ ]]; then
            options[place + 1]="$((BASH_REMATCH[1] * parts))${BASH_REMATCH[2]}"
        fi
    done
}

# What later stages would refuse is refused before the trainings of days.
check_later_stages() {
    local set
    if ((stage < 5 && stop_stage >= 5)); then
        need_file --student_config "${student_config}"
        [[ "${distill_config}" == none ]] || need_file --distill_config "${distill_config}"
    fi
    ((stage < 6 && stop_stage >= 6)) || return 0
    if ((stage > 2)) && [[ -f "${statsdir}/.done" ]]; then # else more is missing
        for set in "${test_set_names[@]}"; do
            [[ -f "${rawdir}/.done_${set}" ]] || need_stage 2 "${rawdir}/${set}"
        done
    fi
    [[ -z "${inference_args}" ]] ||
        "${python}" -m i2srf_kd.bin.enhance_set - - - "${inference_options[@]}" --check_only ||
        fail "--inference_args ${inference_args}: stage 6 would end with this"
    [[ -z "${score_args}" ]] || "${python}" -m i2srf_kd.bin.score - - - "${score_options[@]}" --check_only "${fs}" ||
        fail "--score_args ${score_args}: stage 6 would end with this"
}

running_stage=""
say_what_failed() {
    local status=$?
    [[ -z "${running_stage}" || "${status}" == 0 || "${status}" == 75 ]] ||
        echo "error: ${running_stage} ended with exit code ${status}" >&2
}
trap say_what_failed EXIT

# Bash reads a script as it runs it; inside a function, an edit of this file does not reach a pipeline that is running.
main() {
    local number name
    local stages
    mapfile -t stages < <(compgen -A function | grep '^stage_[0-9]_')
    export I2SRF_STAGES="${stages[*]#stage_?_}" # so that sections of conf/slurm.yaml for them are known
    if [[ "${status}" == true ]]; then
        show_status
        exit
    fi
    check_later_stages
    if [[ "${submit}" == true ]]; then
        submit_stages
        exit
    fi
    for ((number = stage; number <= stop_stage; number++)); do
        name="${stages[number - 1]}"
        running_stage="stage ${number} (${name#stage_?_})"
        export I2SRF_STAGE="stage${number}" # part of the names of jobs
        log "${running_stage}"
        "${name}"
    done
    running_stage=""
    [[ -n "${score_systems}" ]] || ((stop_stage < 6)) || show_results
    log "finished"
    exit
}
main
