# shellcheck shell=bash
# shellcheck disable=SC2034
# How commands are run: options of i2srf_kd.bin.run_jobs, one array per kind of work. All --mem and --time are what one
# job needs; a backend for a cluster reserves them, the local one runs everything on this machine.
# For Slurm: set cmd_backend=slurm once run_jobs lists it (run_jobs --help), and adapt --mem and --time.
cmd_backend=local

data_cmd=(--backend "${cmd_backend}" --mem 4G --time 4:00:00)
train_cmd=(--backend "${cmd_backend}" --mem 32G --time 48:00:00)
decode_cmd=(--backend "${cmd_backend}" --mem 8G --time 8:00:00)
score_cmd=(--backend "${cmd_backend}" --mem 4G --time 4:00:00)
