#!/bin/bash
# A folder of pictures on a Slurm cluster: a job array, each task of which does its part of the files.
#
#   sbatch examples/cluster/slurm-array.sh photos/ big/ -m waifu4x-clean -s 4
#
# What follows the two folders goes to `waifu4x upscale`. Both lie where all hosts see them. Another
# number of tasks: `sbatch --array=1-100 …`; it must begin with 1, because --shard counts so.
#
# Submit the same again to go on, after a time limit or a host that died: only what is missing is
# done, also with another number of tasks. (Not `--array=3,7`: these would be two tasks of two.)
# Nothing else is needed; to have one journal, and to see which tasks never ran:
#
#   job=$(sbatch --parsable examples/cluster/slurm-array.sh photos/ big/)
#   sbatch --dependency=afterany:$job --wrap 'waifu4x batch merge big/'
#
# Where hosts have no way out, fetch the model first: `waifu4x models download NAME`, and let
# WAIFU4X_HOME name a folder that they all see. Without Slurm, by cron or on a few hosts by hand:
# `waifu4x upscale photos/ -o big/ -r --shard 1/4` on the first of four, and so on.
#
#SBATCH --job-name=waifu4x
#SBATCH --array=1-16
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --output=waifu4x-%A-%a.log
#SBATCH --signal=B:TERM@60
# A GPU for each task: take one # away.
##SBATCH --gpus-per-task=1

set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: sbatch $0 INPUT OUTPUT [options of waifu4x upscale]" >&2
    exit 2
fi
input=$1
output=$2
shift 2

# A task may have a part of the host's cores only.
cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$cores

# In the place of the shell, which would keep the signal to itself.
exec waifu4x upscale "$input" -o "$output" -r --quiet -j "$cores" "$@" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
