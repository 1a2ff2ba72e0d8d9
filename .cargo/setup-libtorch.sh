#!/usr/bin/env bash
# Fills .libtorch/ with libtorch 2.11.0 from the PyPI wheel, for the CPU.
#
#   .libtorch/site/      the unpacked wheels: torch itself, and the two small CUDA wheels that
#                        libtorch_cpu.so of the CUDA build names as needed (runtime and cupti)
#   .libtorch/include    -> the wheel's headers
#   .libtorch/lib/       what the linker may see: libtorch_cpu, libc10, libgomp, and an empty libtorch.so.
#                        torch-sys links libtorch_cuda whenever it finds that file, so it is not here.
#   .libtorch/ready      stamp, written last; it holds the version
#
# The libraries of the CUDA side are left out: they cannot be loaded without 2.5 GB more of wheels.
# A run on a GPU takes them from a full torch 2.11.0 instead (DUALPATH_TORCH_LIB).
set -euo pipefail
cd "$(dirname "$0")/.."
version=2.11.0
dir=.libtorch
[ -z "${LIBTORCH:-}" ] || exit 0 # the user's own
[ "$(cat "$dir/ready" 2>/dev/null)" = "$version" ] && exit 0

fail() { echo "setup: $1" >&2; exit 1; }
[ "$(uname -sm)" = "Linux x86_64" ] || fail "libtorch is fetched for Linux on x86-64 only; elsewhere point LIBTORCH at a libtorch $version"
python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to fetch libtorch from PyPI (PYTHON=... picks another)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "torch $version needs Python 3.10 or newer (PYTHON=... picks another)"
for tool in gcc g++; do command -v $tool >/dev/null || fail "$tool is needed to build against libtorch"; done

echo "setup: fetching libtorch $version from PyPI into $dir (540 MB, once)" >&2
rm -rf "$dir"
mkdir -p "$dir/lib"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-cache-dir \
  --root-user-action=ignore --only-binary=:all: --target "$dir/site" \
  "torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85

torch=$dir/site/torch
rm -rf "$torch"/bin "$torch"/lib/libtorch_cuda*.so "$torch"/lib/libtorch_nvshmem.so "$torch"/lib/libtorch_python.so \
  "$dir"/site/nvidia/cu13/lib/libnvperf*.so
ln -s site/torch/include "$dir/include"
for lib in libtorch_cpu.so libc10.so; do ln -s "../site/torch/lib/$lib" "$dir/lib/$lib"; done
gomp=$(cd "$torch/lib" && ls libgomp*.so* | head -n 1)
ln -s "../site/torch/lib/$gomp" "$dir/lib/libgomp.so.1"
echo 'void dualpath_libtorch_stub(void) {}' | gcc -shared -fPIC -x c - -o "$dir/lib/libtorch.so"
echo "$version" > "$dir/ready"
