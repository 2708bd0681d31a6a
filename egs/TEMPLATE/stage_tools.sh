# shellcheck shell=bash
# shellcheck disable=SC2154  # python, force, logdir ... belong to the script that sources this
# What the stages of enh_kd.sh are built from: messages, running with signals passed on, steps.

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

# enter_python: set python, where it is empty, to that of the recipe's environment, and let it find the package.
enter_python() {
    if [[ -z "${python}" ]]; then
        # shellcheck disable=SC1091
        . ./path.sh
        python=python
    fi
    PYTHONPATH="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)${PYTHONPATH:+:${PYTHONPATH}}"
    export PYTHONPATH
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

# A step is work that one done file stands for. It is described first, then carried out, unless it is done:
#     step DONE_FILE redo|keep SETTING ...    begins it; for the settings see i2srf_kd/bin/step.py
#     then_run COMMAND ...                    adds a command
#     do_step                                 runs the commands under a lock and writes the done file
step() { step_words=("$@") step_commands=(); }
then_run() { step_commands+=("$#" "$@"); }
do_step() { run "${python}" -m i2srf_kd.bin.step "${force}" "${step_words[@]}" -- "${step_commands[@]}"; }

# parts_of NJ SCP: into how many parts the work is split, no more than there are utterances.
parts_of() {
    local lines
    lines="$({ wc -l <"$2"; } 2>/dev/null || echo 1)" # the command names a file that cannot be read
    echo $((lines < 1 ? 1 : lines < $1 ? lines : $1))
}

# then_run_job CMD NAME [JOB=1:N] LOG COMMAND ...: add a command with a log of its own, run with the options CMD of cmd.sh.
then_run_job() {
    local -n cmd_options="$1"
    then_run "${python}" -m i2srf_kd.bin.run_jobs "${cmd_options[@]}" --name "$2" "${@:3}"
}

# then_run_parts CMD NAME LOG PARTS MODULE ARGUMENT ...: add a command in PARTS parts, and that which merges them.
then_run_parts() {
    local command=("${python}" -m "i2srf_kd.bin.$5" "${@:6}")
    if (($4 == 1)); then
        then_run_job "$1" "$2" "${logdir}/$3.log" "${command[@]}"
        return
    fi
    then_run_job "$1" "$2" "JOB=1:$4" "${logdir}/$3.JOB.log" "${command[@]}" --shard "JOB/$4"
    then_run_job "$1" "$2, collect" "${logdir}/$3.collect.log" "${command[@]}" --collect "$4"
}
