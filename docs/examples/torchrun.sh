#!/usr/bin/env bash
# Trains on 4 processes of this machine. torchrun comes with PyTorch 2.x, which is not used otherwise.
#
#   docs/examples/torchrun.sh LATENTS RUN [further words of `pipeline train`]
set -euo pipefail
data=$1 run=$2
shift 2
exec torchrun --standalone --no-python --nproc-per-node "${RANKS:-4}" -- \
  pipeline train --data "$data" --run "$run" --preset dupa-s/2 "$@"
