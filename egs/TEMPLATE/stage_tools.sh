# shellcheck shell=bash
# shellcheck disable=SC2154  # python, force, run_jobs, logdir ... belong to enh_kd.sh
# What the stages of enh_kd.sh are built from: messages, running with signals passed on, done files.

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*"; }

fail() {
    echo "error: $*" >&2
    exit 2
}

# warn TEXT ...
warn() { echo "warning: $*" >&2; }

# need_stage NUMBER PATH: PATH, made by stage NUMBER, is missing.
need_stage() { fail "$2 is missing or unfinished; run stage $1 first (--stage $1)"; }

# need_file OPTION PATH
need_file() { [[ -f "$2" ]] || fail "$1 $2: no such file"; }

# One checksum of the files that exist among the arguments.
checksum() { { cat -- "$@" 2>/dev/null || true; } | cksum | cut -d ' ' -f 1; }

# imported_files CONFIG: the existing .py files that a distillation file imports, one a line, looked for where the
# training looks: beside CONFIG.
imported_files() {
    local entry
    sed -e 's/#.*//' -e 's/^[[:blank:]]*import:/,/' "$1" | tr ',[]' '\n' |
        sed -e "s/^[-[:blank:]\"']*//" -e "s/[[:blank:]\"']*$//" |
        while IFS= read -r entry; do
            [[ "${entry}" == *.py ]] || continue
            [[ "${entry}" == /* ]] || entry="$(dirname -- "$1")/${entry}"
            [[ ! -f "${entry}" ]] || printf '%s\n' "${entry}"
        done
}

# Number of GPUs that a training could use here.
count_gpus() {
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" && -z "${CUDA_VISIBLE_DEVICES}" ]] || ! command -v nvidia-smi >/dev/null; then
        echo 0
    elif [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        tr ',' '\n' <<<"${CUDA_VISIBLE_DEVICES}" | grep -c .
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    fi
}

# run COMMAND ...: run a program, pass signals on to it and wait for it, whatever happens. Plain bash would die of
# SIGTERM or SIGUSR1 at once and leave a training behind that has no time to save its state.
run_child=""
run_interrupted=false
# Where the system offers it, the program gets SIGTERM when this script itself is killed.
run_prefix=()
! setpriv --pdeathsig TERM true 2>/dev/null || run_prefix=(setpriv --pdeathsig TERM)
for run_signal in INT TERM HUP USR1; do
    # shellcheck disable=SC2064
    trap "pass_on ${run_signal}" "${run_signal}"
done
pass_on() {
    run_interrupted=true
    if [[ -n "${run_child}" ]]; then
        kill -s "$1" "${run_child}" 2>/dev/null || true
    else
        exit $((128 + $(kill -l "$1")))
    fi
}
run() {
    local status
    set -m # a process group of its own, or Ctrl-C would reach it twice
    "${run_prefix[@]}" "$@" </dev/null &
    run_child=$!
    set +m
    while true; do
        run_interrupted=false
        status=0
        wait "${run_child}" || status=$?
        [[ "${run_interrupted}" == true ]] || break # the signal, not the program, ended this wait
    done
    run_child=""
    return "${status}"
}

# hold_lock FILE: wait until no other run works on what FILE stands for, and keep others from it until release_lock.
# Programs that this script starts hold it as well: after a pipeline that was killed, the next one waits for its end.
stage_lock=""
stage_lock_fd=""
hold_lock() {
    local status
    release_lock
    command -v flock >/dev/null || return 0
    mkdir -p -- "$(dirname -- "$1")"
    while true; do
        exec {stage_lock_fd}>>"$1"
        status=0
        flock --nonblock "${stage_lock_fd}" || status=$?
        if ((status == 1)); then
            log "in use, waiting for $(cat -- "$1" 2>/dev/null) or what it started: ${1%.lock}"
            run flock "${stage_lock_fd}" || exit $?
        elif ((status > 1)); then
            warn "$1 cannot be locked: make sure that only one run works there"
        fi
        # A lock is removed by its last holder; that of a file without a name keeps nobody out.
        [[ ! "$1" -ef "/dev/fd/${stage_lock_fd}" ]] || break
        exec {stage_lock_fd}>&-
    done
    stage_lock="$1"
    echo "process $$ on $(uname -n) since $(date '+%Y-%m-%d %H:%M:%S')" 2>/dev/null >"$1" || true # a full disk
}

release_lock() {
    [[ -n "${stage_lock}" ]] || return 0
    exec {stage_lock_fd}>&-
    # Without its file only if nobody else holds it: neither a run that waited nor a program of this one.
    if [[ -f "${stage_lock}" ]]; then
        exec {stage_lock_fd}<"${stage_lock}"
        ! flock --nonblock "${stage_lock_fd}" 2>/dev/null || rm -f -- "${stage_lock}"
        exec {stage_lock_fd}<&-
    fi
    stage_lock=""
}

# parts_of NJ SCP: into how many parts the work is split, no more than there are utterances.
parts_of() {
    local lines
    lines="$(wc -l <"$2")"
    echo $((lines < 1 ? 1 : lines < $1 ? lines : $1))
}

# run_parts TITLE LOG PARTS CMD MODULE ARGUMENT ...: run a command in PARTS parts, then let it merge them.
run_parts() {
    local title="$1" name="$2" parts="$3" module="$5" key
    local -n cmd_options="$4"
    shift 5
    # The key stands for what the parts read: those that succeeded are not run again because of one that did not.
    key="$(printf '%s\n' "${done_settings[@]}" | cksum | cut -d ' ' -f 1)"
    [[ "${force}" == false ]] || key=""
    run "${run_jobs[@]}" "${cmd_options[@]}" --name "${title}" --resume_key "${key}" \
        "JOB=1:${parts}" "${logdir}/${name}.JOB.log" \
        "${python}" -m "i2srf_kd.bin.${module}" "$@" --shard "JOB/${parts}"
    run "${run_jobs[@]}" "${cmd_options[@]}" --name "${title}, collect" "${logdir}/${name}.collect.log" \
        "${python}" -m "i2srf_kd.bin.${module}" "$@" --collect "${parts}"
}

# done_by_this_job FILE: whether Slurm has queued this job again, and FILE is what it wrote when it ran before.
done_by_this_job() {
    [[ "${SLURM_RESTART_COUNT:-0}" != 0 && -n "${SLURM_JOB_ID:-}" && -f "$1" ]] &&
        grep --quiet --line-regexp --fixed-strings "slurm_job=${SLURM_JOB_ID}" -- "$1"
}

# skip_if_done FILE redo|keep KEY=VALUE ...: succeed when the work that FILE stands for is done with these settings.
#
# Fails (so that the stage runs) when it is not, and ends the script when it was done with other options. Keys called
# input_... stand for what was read: when just these differ, the work is out of date, and "redo" runs it again, while
# "keep" (a training, too dear to repeat unasked) ends the script. With --force the work is done anew, once: not again
# when Slurm queues the job again.
skip_if_done() {
    local file="$1" mode="$2" anew="${force}" line key old new only_inputs=true changes=()
    shift 2
    ! done_by_this_job "${file}" || anew=false
    done_file="${file}"
    done_settings=("$@")
    [[ -f "${file}" && "${anew}" == false ]] || hold_lock "${file}.lock"
    if [[ ! -f "${file}" || "${anew}" == true ]]; then
        [[ "${mode}" == keep ]] || rm -f -- "${file}" # a trained model keeps its own until it is moved aside
        return 1
    fi
    for line in "$@"; do
        key="${line%%=*}"
        new="${line#*=}"
        old="$(sed -n "s/^${key}=//p" "${file}")"
        if [[ "${old}" != "${new}" ]]; then
            changes+=("  ${key}: ${old:-(empty)} -> ${new:-(empty)}")
            [[ "${key}" == input_* ]] || only_inputs=false
        fi
    done
    if ((${#changes[@]} == 0)); then
        log "already finished, skipped: ${file%/*} (${file})"
        release_lock
        return 0
    fi
    if [[ "${only_inputs}" == true && "${mode}" == redo ]]; then
        log "what it was made from has changed, running again: ${file%/*}"
        hold_lock "${file}.lock"
        rm -f -- "${file}" # an interruption from here on must not leave what looks finished
        return 1
    fi
    {
        echo "error: ${file%/*} was finished with other settings:"
        printf '%s\n' "${changes[@]}"
        echo "Give the old settings, choose another tag or folder for the new ones, or run it again with --force true."
    } >&2
    exit 2
}

# Record that what the last skip_if_done asked about is now done. The lock keeps others from the temporary name.
mark_done() {
    local temporary="${done_file}.tmp"
    mkdir -p -- "$(dirname -- "${done_file}")"
    {
        printf '%s\n' "${done_settings[@]}"
        [[ "${force}" == false || -z "${SLURM_JOB_ID:-}" ]] || echo "slurm_job=${SLURM_JOB_ID}"
        echo "finished=$(date '+%Y-%m-%dT%H:%M:%S.%N%z')"
    } >"${temporary}" && mv -- "${temporary}" "${done_file}" ||
        fail "cannot write ${done_file} ($(df --output=avail -BM -- "${done_file%/*}" | tail -n 1 | tr -d 'M ') MB left);" \
            "free space and run the same command again"
    release_lock
}
