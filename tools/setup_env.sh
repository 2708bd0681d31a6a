#!/usr/bin/env bash
# Build the Python environment of this repository from the pinned locks: tools/setup_env.sh [--force | --find]
#
# --force builds again; --find prints the version and the place of the Python that would be used.
# An environment that is up to date is left alone (well under a second), so every entry point may call this first.
#   I2SRF_VENV    where it lives (default: <repository>/.venv)
#   I2SRF_PYTHON  the Python to build it with, a command or one of 3.12, 3.11 and 3.13 (default: the first of these that
#                 is on the PATH or that pyenv or uv has; an environment that exists keeps its version)
set -euo pipefail

repo="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${I2SRF_VENV:-${repo}/.venv}"
stamp="${venv}/.i2srf_stamp" # written last: an environment without it is half built and never used

say() { echo "setup_env: $*" >&2; }
fail() {
    echo "error: $*" >&2
    exit 2
}

force=false find=false
case "${1:-}" in
    "") ;;
    --force) force=true ;;
    --find) find=true ;;
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) fail "unknown option $1; usage: tools/setup_env.sh [--force | --find]" ;;
esac

versions=(3.12 3.11 3.13) # in the order of preference

# Python 3.13 resolves to the packages of 3.12.
lock_of() {
    local version="${1/3.13/3.12}"
    echo "${repo}/tools/requirements-py${version/./}.txt"
}

# What an environment of Python $1 must have been built from. The folder counts too: scripts in it hold its path.
key_of() {
    local sum=(sha256sum)
    command -v sha256sum >/dev/null || sum=(shasum -a 256)
    { cat -- "$(lock_of "$1")" && echo "$1 ${venv}"; } | "${sum[@]}" | cut -d ' ' -f 1
}

# Print "<version> <base interpreter>" of command $1 when it runs and is supported. The base interpreter, because $1
# may belong to the very environment that is about to be replaced.
probe() {
    "$1" -c 'import sys
version = "%d.%d" % sys.version_info[:2]
if version not in sys.argv[1:]:
    sys.exit(1)
print(version, getattr(sys, "_base_executable", sys.executable))' "${versions[@]}" 2>/dev/null
}

# Probe what may be Python $1. The commands of pyenv fail on the PATH for versions that it has and that are not chosen.
find_version() {
    local candidate found
    for candidate in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/"python$1"; do
        found="$(probe "${candidate}")" && [[ "${found%% *}" == "$1" ]] && echo "${found}" && return
    done
    command -v uv >/dev/null && found="$(uv python find --no-project "$1" 2>/dev/null)" && probe "${found}"
}

# Probe the Python that I2SRF_PYTHON names.
find_named() {
    if [[ "${I2SRF_PYTHON}" =~ ^3\.[0-9]+$ ]]; then
        find_version "${I2SRF_PYTHON}"
    else
        probe "${I2SRF_PYTHON}"
    fi
}

is_current() {
    [[ -f "${stamp}" && -x "${venv}/bin/python" ]] || return 1
    local version key wanted
    read -r version key <"${stamp}" || return 1
    [[ -f "$(lock_of "${version}")" && "${key}" == "$(key_of "${version}")" ]] || return 1
    if [[ -n "${I2SRF_PYTHON:-}" ]]; then
        wanted="$(find_named)" || return 1
        [[ "${wanted%% *}" == "${version}" ]] || return 1
    fi
}

find_python() {
    local candidate
    if [[ -n "${I2SRF_PYTHON:-}" ]]; then
        find_named || fail "I2SRF_PYTHON=${I2SRF_PYTHON} is not a working Python 3.11, 3.12 or 3.13"
        return
    fi
    if [[ -f "${stamp}" ]]; then # keep the version: results must not change with what is first on the PATH
        read -r candidate _ <"${stamp}" || true
        [[ -z "${candidate}" ]] || ! find_version "${candidate}" || return 0
    fi
    for candidate in "${versions[@]}"; do
        find_version "${candidate}" && return
    done
    for candidate in python3 python; do
        probe "${candidate}" && return
    done
    fail "no Python 3.11, 3.12 or 3.13 found (tried python3.12, python3.11, python3.13, python3, pyenv and uv); older and" \
        "newer ones have no lock. Install one, for example with 'uv python install 3.12' or 'pyenv install 3.12', or" \
        "name it: I2SRF_PYTHON=/path/to/python3.12 tools/setup_env.sh"
}

# Print the path of uv; without one on the PATH it is installed beside the environment's own files.
find_uv() {
    local private="${venv}/.uv"
    if command -v uv; then
        return
    fi
    if [[ ! -x "${private}/bin/uv" ]]; then
        say "uv is not on the PATH; installing it into ${private}"
        "$1" -m venv --clear "${private}" >&2 || fail "'$1 -m venv' failed; install uv or the venv module (python3-venv)"
        "${private}/bin/python" -m pip install --quiet uv >&2 || fail "pip could not install uv; see the lines above"
    fi
    echo "${private}/bin/uv"
}

build() {
    local found version python uv
    found="$(find_python)"
    version="${found%% *}"
    python="${found#* }"
    uv="$(find_uv "${python}")"
    say "building ${venv} with Python ${version} (${python}); this downloads several GB the first time"
    rm -f -- "${stamp}"
    find "${venv}" -mindepth 1 -maxdepth 1 ! -name .i2srf_lock ! -name .uv -exec rm -rf -- {} +
    "${uv}" venv --quiet --no-project --allow-existing --prompt i2srf_kd --python "${python}" "${venv}"
    # Compiled now: two processes that begin at the same time would both do it, and where PYTHONDONTWRITEBYTECODE is set
    # every one would, which doubles the 12 s that ESPnet takes to import.
    "${uv}" pip sync --compile-bytecode --require-hashes --python "${venv}/bin/python" \
        "$(lock_of "${version}")" || fail "installing $(lock_of "${version}") failed (see above). Package pesq is" \
        "compiled on installation: it needs a C compiler and Python's headers"
    # The package stays where it is; activate_python.sh also puts it first, for checkouts that share an environment.
    echo "${repo}" >"$("${venv}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/i2srf_kd.pth"
    "${venv}/bin/python" -c 'import torch, torchaudio, soundfile, pesq, yaml' ||
        fail "the new environment cannot import its main packages; see above"
    echo "${version} $(key_of "${version}")" >"${stamp}.new"
    mv -- "${stamp}.new" "${stamp}"
    say "ready; enter it with '. tools/activate_python.sh'"
}

if [[ "${find}" == true ]]; then
    find_python
    exit
fi
if [[ "${force}" == false ]] && is_current; then
    exit 0
fi
# Look into the folder before looking for the lock: another process may begin to build at any moment, lock first.
contents="$(ls -A -- "${venv}" 2>/dev/null || true)"
if [[ -n "${contents}" && ! -e "${venv}/.i2srf_lock" && ! -e "${venv}/pyvenv.cfg" ]]; then
    fail "${venv} has files in it and is no Python environment; set I2SRF_VENV to a new folder"
fi
if ! mkdir -p -- "${venv}" 2>/dev/null || [[ ! -w "${venv}" ]] || ! { : >>"${venv}/.i2srf_lock"; } 2>/dev/null; then
    fail "${venv} cannot be written; set I2SRF_VENV to a folder that can, for example I2SRF_VENV=~/i2srf_kd_venv"
fi
# Not ".lock": that one is uv's own.
exec 9>"${venv}/.i2srf_lock"
if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "another process is building ${venv}; waiting for it"
    flock 9
fi
if [[ "${force}" == true ]] || ! is_current; then # it may have been built while this one waited
    build 9>&-
fi
