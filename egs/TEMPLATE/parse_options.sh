# shellcheck shell=bash
# Command-line options from commented variable declarations. Source this, then: parse_options FILE "$@"
#
# FILE declares its options between the lines "# begin options" and "# end options", one per line, as
#     name=default   # what it is for
# with "## Heading" lines between groups. Each becomes "--name value" (or "--name=value"). A default of true or false
# makes a switch that takes just these ("--name" alone means true), a whole number makes an option that takes whole numbers. Names the user gave are
# kept in the associative array option_given. Wrong options end the script with exit code 2.

declare -gA option_given=()

option_error() {
    echo "error: $*" >&2
    exit 2
}

# The declarations of file $1.
option_lines() { sed -n '/^# begin options$/,/^# end options$/p' "$1"; }

# The names declared in file $1.
option_names() { option_lines "$1" | sed -n 's/^\([a-z_][a-z0-9_]*\)=.*/\1/p'; }

# Print the name in file $1 that is closest to $2, if any is close (Levenshtein distance).
option_suggest() {
    option_names "$1" | awk -v wrong="${2//-/_}" '
        function min(a, b) { return a < b ? a : b }
        function distance(a, b,    i, j, row, last, keep) {
            for (j = 0; j <= length(b); j++) row[j] = j
            for (i = 1; i <= length(a); i++) {
                last = row[0]; row[0] = i
                for (j = 1; j <= length(b); j++) {
                    keep = row[j]
                    row[j] = min(min(row[j], row[j - 1]) + 1, last + (substr(a, i, 1) != substr(b, j, 1)))
                    last = keep
                }
            }
            return row[length(b)]
        }
        { d = distance(wrong, $0); if (NR == 1 || d < best) { best = d; name = $0 } }
        END { if (best <= 1 + length(wrong) / 3) print name }'
}

# Print the documented options of file $1 with their defaults.
option_help() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
    option_lines "$1" | awk '
        /^## / { printf "\n%s\n", substr($0, 4); next }
        /^[a-z_][a-z0-9_]*=/ {
            name = $0; sub(/=.*/, "", name)
            value = $0; sub(/^[^=]*=/, "", value); sub(/[ \t]+#.*/, "", value); gsub(/^"|"$/, "", value)
            text = $0; sub(/^[^#]*# */, "", text)
            printf "  --%-18s %s%s\n", name, text, value == "" ? "" : " (default: " value ")"
        }'
}

parse_options() {
    local file="$1" name value default close
    local -A defaults=()
    shift
    for name in $(option_names "${file}"); do
        defaults["${name}"]="${!name}"
    done
    while [[ $# -gt 0 ]]; do
        case "$1" in
            -h | --help)
                option_help "${file}"
                exit 0
                ;;
            --?*) name="${1#--}" ;;
            *) option_error "unexpected argument '$1'; options are written --name value (see --help)" ;;
        esac
        if [[ "${name}" == *=* ]]; then
            value="${name#*=}"
            name="${name%%=*}"
            shift
        elif [[ -z "${defaults[${name}]+known}" ]]; then
            value="" # it is refused below, with or without a value
            shift
        elif [[ "${defaults[${name}]}" =~ ^(true|false)$ && ($# -lt 2 || "${2:-}" == --*) ]]; then
            value=true
            shift
        elif [[ $# -lt 2 ]]; then
            option_error "option --${name} needs a value"
        else
            value="$2"
            shift 2
        fi
        if [[ -z "${defaults[${name}]+known}" ]]; then
            close="$(option_suggest "${file}" "${name}")"
            option_error "unknown option --${name}${close:+; did you mean --${close}?} (see --help)"
        fi
        default="${defaults[${name}]}"
        if [[ "${default}" =~ ^(true|false)$ && ! "${value}" =~ ^(true|false)$ ]]; then
            option_error "--${name} ${value}: must be true or false"
        elif [[ "${default}" =~ ^[0-9]+$ ]]; then
            [[ "${value}" =~ ^[0-9]+$ ]] || option_error "--${name} ${value}: must be a whole number"
            value=$((10#${value})) # bash would take a leading zero for octal
        fi
        printf -v "${name}" '%s' "${value}"
        # shellcheck disable=SC2034  # read by the script that sources this
        option_given["${name}"]=1
    done
}
