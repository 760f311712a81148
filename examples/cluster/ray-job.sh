#!/bin/sh
# A folder of pictures on a Ray cluster.
#
#     ray start --head                            on one machine
#     ray start --address=HEAD:6379               on every other one
#     sh ray-job.sh /shared/photos /shared/big -m waifu4x-art
#
# It works on the cluster that this machine is one of, or that RAY_ADDRESS names. From elsewhere:
#
#     ray job submit --address=http://HEAD:8265 --working-dir=examples/cluster -- \
#         sh ray-job.sh /shared/photos /shared/big
#
# Folders may be URLs of a store. For a line about every file add `--report FILE`, with a FILE on the
# machine that this runs on. Started again, it does only what is missing.
set -eu

if [ $# -lt 2 ]; then
    echo "usage: ray-job.sh PHOTOS BIG [options of waifu4x upscale]" >&2
    exit 2
fi
photos=$1
big=$2
shift 2

code=0
waifu4x upscale "$photos" -r -o "$big" --ray auto "$@" || code=$?
if [ "$code" -eq 3 ]; then
    echo "some files failed, for the reasons above; --retry-failed tries them again" >&2
fi
exit "$code"
