#!/usr/bin/env bash
# Fuzzes each target for so many seconds, one after the other, with the stable compiler:
#
#   run.sh SECONDS [TARGET..]
#
# corpus/TARGET/ is kept and grows from run to run. An input that breaks something stops the run and is in artifacts/;
# `target/*/release/TARGET artifacts/..` repeats it.
set -euo pipefail
cd "$(dirname "$0")"
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || { echo "usage: run.sh SECONDS [TARGET..]" >&2; exit 2; }
seconds=$1
shift
targets=("$@")
[ $# -gt 0 ] || targets=(shard_reader manifest tar_index)

# What cargo-fuzz passes, less the sanitizers, which need a nightly compiler.
flags=(--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module)
for option in -sanitizer-coverage-level=4 -sanitizer-coverage-inline-8bit-counters -sanitizer-coverage-pc-table \
  -sanitizer-coverage-trace-compares -simplifycfg-branch-fold-threshold=0; do
  flags+=("-Cllvm-args=$option")
done
# With --target the flags are not used for build scripts and procedural macros, which link without libFuzzer.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="${flags[*]}" cargo build --release --locked --target "$host"

# Files of the targets, in memory.
TMPDIR=$(mktemp -d /dev/shm/fuzz.XXXXXX)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
mkdir -p artifacts
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target"
  echo "fuzz: $target for $seconds s" >&2
  options=(-max_len=65536 -timeout=20 -rss_limit_mb=2048 -max_total_time="$seconds" -print_final_stats=1
    -artifact_prefix="artifacts/$target-")
  [ "$target" = tar_index ] || options+=(-dict=json.dict)
  FUZZ_SEEDS=corpus/$target "target/$host/release/$target" "corpus/$target" "${options[@]}"
done
