# shellcheck shell=bash
# Enter the Python environment, building it on first use: . tools/activate_python.sh   (bash or zsh, any directory)
# I2SRF_VENV and I2SRF_PYTHON choose another place and interpreter, see setup_env.sh.

if [ -n "${ZSH_VERSION:-}" ]; then
    # shellcheck disable=SC2296
    eval '_i2srf_repo="${(%):-%x}"' # bash cannot parse this
else
    _i2srf_repo="${BASH_SOURCE[0]}"
fi
if [ -z "${ZSH_VERSION:-}" ] && [ "${_i2srf_repo}" = "$0" ]; then
    echo "error: this file is to be sourced: . $0" >&2
    exit 2
fi
_i2srf_repo="$(cd -- "$(dirname -- "${_i2srf_repo}")/.." && pwd)"

if bash "${_i2srf_repo}/tools/setup_env.sh"; then
    # shellcheck disable=SC1091
    . "${I2SRF_VENV:-${_i2srf_repo}/.venv}/bin/activate"
    case ":${PYTHONPATH:-}:" in
        *":${_i2srf_repo}:"*) ;;
        *) export PYTHONPATH="${_i2srf_repo}${PYTHONPATH:+:${PYTHONPATH}}" ;;
    esac
    unset _i2srf_repo
else
    unset _i2srf_repo
    return 2
fi
