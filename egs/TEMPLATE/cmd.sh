# shellcheck shell=bash
# shellcheck disable=SC2034
# How the commands of all recipes are run; egs/<corpus>/cmd.sh is a link to this file, and a file of its own in that
# place sets it for one recipe alone. Options of i2srf_kd.bin.run_jobs, one array per kind of work. All --mem and --time
# are what one job needs; a backend for a cluster reserves them, the local one runs everything on this machine.
# For Slurm: --cmd_backend slurm, or cmd_backend=slurm here, and conf/slurm.yaml (docs/cluster.md).
cmd_backend=local

data_cmd=(--backend "${cmd_backend}" --kind data --mem 4G --time 4:00:00)
train_cmd=(--backend "${cmd_backend}" --kind train --mem 32G --time 48:00:00)
decode_cmd=(--backend "${cmd_backend}" --kind decode --mem 8G --time 8:00:00)
score_cmd=(--backend "${cmd_backend}" --kind score --mem 4G --time 4:00:00)
