# shellcheck shell=bash
# Enter the Python environment of the repository, building it on first use. egs/<corpus>/path.sh is a link to this file.
# shellcheck disable=SC1091
. "$(dirname -- "${BASH_SOURCE[0]}")/../../tools/activate_python.sh"
