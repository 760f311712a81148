#!/bin/bash
# Training on all GPUs of a host, or of several, by torchrun: a process for each GPU.
#
#   examples/cluster/torchrun.sh photos/ --recipe srgan --name mine --val Set5/
#
# On several hosts the same command on each, with their number and the address of one of them:
#
#   HOSTS=4 MEET_AT=host0:29500 examples/cluster/torchrun.sh photos/ --recipe srgan --name mine
#
# The processes share every batch of the recipe, so its size must be a multiple of their number.
# The pictures, and the run's folder (--out, runs/NAME by default), lie where all hosts see them.
# The same command goes on where it stopped, also with another number of processes.
# PROCESSES=2 starts two on a host; on one without GPUs that is how many.

set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 FOLDER [options of waifu4x train]" >&2
    exit 2
fi
hosts=${HOSTS:-1}
if [ "$hosts" -gt 1 ]; then
    : "${MEET_AT:?give the address of one of the hosts, such as host0:29500}"
    meeting=(--rdzv-backend c10d --rdzv-endpoint "$MEET_AT" --rdzv-id waifu4x)
else
    meeting=(--standalone)
fi

exec torchrun --nnodes "$hosts" --nproc-per-node "${PROCESSES:-gpu}" "${meeting[@]}" \
    -m waifu4x train "$@"
