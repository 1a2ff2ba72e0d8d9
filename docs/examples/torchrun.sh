#!/usr/bin/env bash
# Trains on 4 processes of this machine. torchrun comes with PyTorch 2.x, which is not used otherwise.
#
#   docs/examples/torchrun.sh LATENTS RUN [further words of `pipeline train`]
set -euo pipefail
data=$1 run=$2
shift 2
# torchrun itself would give each process one thread.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / ${RANKS:-4} > 0 ? $(nproc) / ${RANKS:-4} : 1))}
exec torchrun --standalone --no-python --nproc-per-node "${RANKS:-4}" -- \
  pipeline train --data "$data" --run "$run" --preset dupa-s/2 "$@"
