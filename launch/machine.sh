#!/usr/bin/env bash
# Trains on all GPUs of this machine, and starts again where a start may help:
#
#   launch/machine.sh configs/ms1mv3_r50.py [section.key=value ...]
#
# Ctrl-C saves and stops. Exit codes: docs/runs.md.
set -u
usage="expected a configuration: launch/machine.sh configs/ms1mv3_r50.py [section.key=value ...]"
[ $# -ge 1 ] || { echo "$usage" >&2; exit 2; }
config=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
[ -f .venv/bin/activate ] && source .venv/bin/activate
gpus=$(python -c 'import torch; print(torch.cuda.device_count() or 1)')
# One thread a rank for what is not in a library: ranks share the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --standalone --nproc_per_node="$gpus" --max-restarts=3 train_dist.py "$config" "$@"
