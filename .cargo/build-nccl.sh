#!/usr/bin/env bash
# Builds libdualpath_nccl.so, by which ranks on several GPUs sum gradients, beside the program.
#
# It needs headers of CUDA and NCCL. Those of a full torch 2.11.0 are taken (DUALPATH_TORCH_LIB, or the torch of `python3`), and
# two wheels of headers that torch does not ask for are fetched from PyPI into target/nccl/.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/release}

fail() { echo "nccl: $1" >&2; exit 1; }
python=${PYTHON:-python3}
lib=${DUALPATH_TORCH_LIB:-$("$python" -I -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0] + '/lib')" 2>/dev/null)} ||
  fail "no full torch was found: pip install torch==2.11.0, or set DUALPATH_TORCH_LIB to its lib folder"
torch=$(cd "$lib/.." && pwd)
site=$(dirname "$torch")
grep -q "^__version__ = '2\.11\.0" "$torch/version.py" || fail "$torch is not torch 2.11.0"
[ -f "$site/nvidia/nccl/include/nccl.h" ] || fail "$site/nvidia/nccl/include/nccl.h is not there: install torch 2.11.0 with the wheels it asks for"

headers=target/nccl
if [ ! -f "$headers/ready" ]; then
  "$python" -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to fetch headers (PYTHON=... picks another; DUALPATH_TORCH_LIB says where torch is)"
  echo "nccl: fetching headers of CUDA from PyPI into $headers" >&2
  rm -rf "$headers"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-cache-dir --root-user-action=ignore \
    --only-binary=:all: --target "$headers" nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
  touch "$headers/ready"
fi
mkdir -p "$out"
g++ -std=c++17 -O2 -fPIC -shared -w -I"$torch/include" -I"$torch/include/torch/csrc/api/include" -I"$site/nvidia/cu13/include" \
  -I"$site/nvidia/nccl/include" -I"$headers/nvidia/cu13/include" stages/native/nccl/nccl.cpp -o "$out/libdualpath_nccl.so"
echo "nccl: $out/libdualpath_nccl.so" >&2
