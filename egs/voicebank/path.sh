# shellcheck shell=bash
# Enter the Python environment of the repository, building it on first use.
# shellcheck disable=SC1091
. "$(dirname -- "${BASH_SOURCE[0]}")/../../tools/activate_python.sh"
