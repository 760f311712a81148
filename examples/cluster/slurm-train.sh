#!/bin/bash
# Training on several hosts by Slurm: srun starts a process for each GPU, and they find each other.
#
#   sbatch examples/cluster/slurm-train.sh photos/ --recipe srgan --name mine --val Set5/
#
# The processes share every batch of the recipe, so its size must be a multiple of their number.
# The pictures, and the run's folder (--out, runs/NAME by default), lie where all hosts see them.
# Five minutes before its time is up the job saves and ends; submit the same again to go on, also
# with another number of hosts. What a recipe needs is fetched beforehand, where hosts have no way
# out, to a folder that they all see and WAIFU4X_HOME names.
#
#SBATCH --job-name=waifu4x-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=waifu4x-train-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# As many tasks as GPUs on each host. Not --gpus-per-task: each process has to see all of its host's.

set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: sbatch $0 FOLDER [options of waifu4x train]" >&2
    exit 2
fi
# srun does not take it from the job by itself any more.
exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 waifu4x train "$@"
