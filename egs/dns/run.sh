#!/usr/bin/env bash
# Any folders of speech and noise, or of pairs; also the DNS Challenge's: ./run.sh --speech_dir DIR --noise_dir DIR ...
# The training's mixtures are made while it runs; those of validation and test are made once, in stage 1.

# begin options
## Folders, searched at any depth
speech_dir=        # clean speech
noise_dir=         # noise
rir_dir=           # responses of rooms: a third of the training's mixtures are then in a room
pairs_dir=         # in place of speech_dir: recorded pairs to train with (folders noisy and clean, or wav.scp and spk1.scp)
test_dir=          # pairs to test with (default: speakers and noise that are held out)
speaker_regex=     # its first group, in a file's path, is the speaker, such as 'reader_([0-9]+)' (default: its folder)
# end options

# shellcheck source=egs/TEMPLATE/recipe.sh
. "$(dirname -- "$0")/../TEMPLATE/recipe.sh"
take_options "$@"

mini="$(pipeline_option mini false)"
prefix=""
[[ "${mini}" == false ]] || prefix=mini/
datadir="$(pipeline_option datadir "${prefix}data")"
corpus_dir="$(pipeline_option corpus_dir "")"
fs="$(pipeline_option fs 16000)"
python="$(pipeline_option python "")"
note="Validation and test: speakers and noise that are held out of the training."
[[ -z "${test_dir}" ]] || note="Test: the pairs of --test_dir."
recipe_defaults=(--fs "${fs}" --results_note "${note}")

# The DNS Challenge's folders, by any of the names that its years have given them.
first_folder() {
    local name
    for name in "${@:2}"; do
        [[ ! -d "$1/${name}" ]] || { echo "$1/${name}" && return; }
    done
}
if [[ -n "${corpus_dir}" ]]; then
    [[ -z "${speech_dir}${noise_dir}${pairs_dir}" ]] || fail "--corpus_dir and folders of one's own: give one of them"
    speech_dir="$(first_folder "${corpus_dir}" {,datasets/,datasets_fullband/}{clean,clean_fullband})"
    noise_dir="$(first_folder "${corpus_dir}" {,datasets/,datasets_fullband/}{noise,noise_fullband})"
    : "${rir_dir:=$(first_folder "${corpus_dir}" {,datasets/,datasets_fullband/}impulse_responses)}"
    [[ -n "${speech_dir}" && -n "${noise_dir}" ]] ||
        fail "--corpus_dir ${corpus_dir}: no folders clean and noise in it, in datasets or in datasets_fullband"
elif [[ "${mini}" == true && -z "${speech_dir}${pairs_dir}" ]]; then
    speech_dir="${datadir}/sources/speech" noise_dir="${datadir}/sources/noise"
    # shellcheck disable=SC2034  # read by its name below
    speaker_regex="([0-9]+)-"
    corpus_dir="${datadir}/sources"
    if [[ "$(pipeline_option stage 1)" =~ ^0*1$ && "$(pipeline_option status false)$(pipeline_option show_options false)" != *true* ]]; then
        run_pipeline "${pipeline_options[@]}" --show_options true >/dev/null # wrong options are refused before any work
        enter_python
        run "${python}" -m i2srf_kd.bin.mini_corpus "${datadir}/sources" --layout sources --fs "${fs}"
    fi
    recipe_defaults+=(--results_title "Mini corpus (synthetic; the figures say nothing about real speech)")
fi

local_data_opts="--fs ${fs}"
[[ "${mini}" == false ]] || local_data_opts+=" --mixtures 24 --held_out 0.17"
train_args=""
for name in speech_dir noise_dir rir_dir pairs_dir test_dir speaker_regex; do
    [[ "${!name}" != *[[:space:]]* ]] || fail "--${name} '${!name}': holds white space; give a link to it without"
    [[ -z "${!name}" ]] || local_data_opts+=" --${name} ${!name}"
done
[[ -z "${noise_dir}" ]] || train_args+=" --mixing noise=[${datadir}/noise.scp]"
[[ -z "${rir_dir}" ]] || train_args+=" --mixing responses=[${datadir}/rir.scp] --mixing reverberation=0.3"
if [[ "${fs}" != 16000 ]]; then # windows of 32 ms every 16 ms and chunks of 2 s, at any rate
    ((fs % 1000 == 0)) || fail "--fs ${fs}: must be a multiple of 1000 Hz, for windows of whole samples"
    for part in encoder decoder; do
        train_args+=" --${part}_conf n_fft=$((fs * 32 / 1000)) --${part}_conf hop_length=$((fs * 16 / 1000))"
    done
    train_args+=" --chunk_length $((2 * fs))"
    [[ "${mini}" == false ]] || recipe_defaults+=(--teacher_config conf/mini/train_teacher_from_nothing.yaml)
fi

run_pipeline \
    "${recipe_defaults[@]}" \
    "${pipeline_options[@]}" \
    --corpus_dir "${corpus_dir:-${speech_dir:-${pairs_dir}}}" \
    --datadir "${datadir}" \
    --local_data_opts "${local_data_opts} $(pipeline_option local_data_opts "")" \
    --train_args "${train_args} $(pipeline_option train_args "")"
