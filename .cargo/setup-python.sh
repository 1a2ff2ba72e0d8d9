#!/usr/bin/env bash
# Fills .python/ with numpy and zstandard from PyPI: what a shard is read with in Python, for the test that does it.
#
#   .python/site/    the unpacked wheels; put it on sys.path
#   .python/ready    stamp, written last; it holds the versions, Python's included, since wheels fit one version of it
set -euo pipefail
cd "$(dirname "$0")/.."
dir=.python
packages=("numpy==2.2.6; python_version < '3.11'" "numpy==2.3.5; python_version >= '3.11'" "zstandard==0.25.0")

fail() { echo "setup: $1" >&2; exit 1; }
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or newer is needed (PYTHON=... picks another)"
stamp="$("$python" -c 'import sys, sysconfig; print(sys.version_info[:2], sysconfig.get_platform())') ${packages[*]}"
exec 9<.cargo/setup-python.sh
flock 9 # tests may ask for it at the same time
[ "$(cat "$dir/ready" 2>/dev/null)" = "$stamp" ] && exit 0

"$python" -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to fetch numpy from PyPI (PYTHON=... picks another)"
echo "setup: fetching numpy and zstandard from PyPI into $dir (25 MB, once)" >&2
rm -rf "$dir"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-cache-dir \
  --root-user-action=ignore --only-binary=:all: --target "$dir/site" "${packages[@]}"
echo "$stamp" > "$dir/ready"
