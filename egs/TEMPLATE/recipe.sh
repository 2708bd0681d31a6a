# shellcheck shell=bash
# What every egs/<corpus>/run.sh begins with: . "$(dirname -- "$0")/../TEMPLATE/recipe.sh"
# A script in local/ begins alike, one folder further up.
#
# Enters the recipe's folder and offers run_pipeline OPTION ... (enh_kd.sh), take_options for options of a recipe's own,
# and what parse_options.sh and stage_tools.sh define.
set -euo pipefail
recipe_file="$(basename -- "$0")"
cd -- "$(dirname -- "$0")"
if [[ "$(basename -- "$(pwd)")" == local ]]; then
    cd ..
    recipe_file="local/${recipe_file}"
fi
template=../TEMPLATE
# shellcheck source=egs/TEMPLATE/parse_options.sh
. "${template}/parse_options.sh"
# shellcheck source=egs/TEMPLATE/stage_tools.sh
. "${template}/stage_tools.sh"

RECIPE_COMMAND="./${recipe_file}${1:+$(printf " %q" "$@")}" # for the record in RESULTS.md
export RECIPE_COMMAND

run_pipeline() { run "${template}/enh_kd.sh" "$@"; }

# take_options "$@": set the options that run.sh declares (see parse_options.sh), keep the pipeline's own in the array
# pipeline_options. --help shows both.
take_options() {
    local names own=() name
    names=" $(option_names "${recipe_file}" | tr '\n' ' ')"
    pipeline_options=()
    while [[ $# -gt 0 ]]; do
        name="${1#--}"
        if [[ "$1" == --help || "$1" == -h ]]; then
            option_help "${recipe_file}"
            run_pipeline --help
            exit
        elif [[ "$1" != --* || "${names}" != *" ${name%%=*} "* ]]; then
            pipeline_options+=("$1")
        elif [[ "${name}" == *=* || $# -lt 2 ]]; then
            own+=("$1")
        else
            own+=("$1" "$2")
            shift
        fi
        shift
    done
    parse_options "${recipe_file}" "${own[@]}"
}

# pipeline_option NAME DEFAULT: the value of --NAME among pipeline_options.
pipeline_option() {
    local name="$1" value="$2" place
    for ((place = 0; place < ${#pipeline_options[@]}; place++)); do
        case "${pipeline_options[place]}" in
            "--${name}")
                value="${pipeline_options[place + 1]:-}"
                # A switch may stand alone.
                [[ ! "$2" =~ ^(true|false)$ || (-n "${value}" && "${value}" != --*) ]] || value=true
                ;;
            "--${name}="*) value="${pipeline_options[place]#*=}" ;;
        esac
    done
    printf '%s\n' "${value}"
}
