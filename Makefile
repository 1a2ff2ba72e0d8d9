# Every target sets up what it needs; a second run finds it done.
.PHONY: demo test test-libjpeg test-interop test-nccl lint setup build nccl fuzz soak clean

DEMO ?= demo/
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 1200

demo: setup
	cargo run --release -- demo --out "$(DEMO)"

test: setup
	cargo test

# The decoder of the feature `libjpeg`, which builds the crate once more.
test-libjpeg: setup
	cargo clippy -p stages --all-targets --features libjpeg -- -D warnings
	cargo test -p stages --features libjpeg --lib decode

# Exported weights in PyTorch: strict loading and the same forward pass. Wants the Python of stages/golden/README.md.
GOLDEN_PYTHON ?= stages/golden/venv/bin/python
test-interop: setup
	rm -rf target/interop
	cargo run --example interop -- target/interop
	$(GOLDEN_PYTHON) stages/golden/interop.py target/interop

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

build: setup
	cargo build --release

# What several GPUs sum gradients by, beside the program; wants a full torch 2.11.0.
nccl:
	@.cargo/build-nccl.sh target/release

# That it loads and says what it lacks without a GPU, or sums on the one that is there.
test-nccl: setup nccl
	DUALPATH_NCCL=$(CURDIR)/target/release/libdualpath_nccl.so cargo test -p stages --lib nccl -- --ignored

# Every parser of untrusted bytes, this long each; a crash stops it and leaves its input in shards/fuzz/artifacts/.
fuzz:
	shards/fuzz/run.sh $(FUZZ_SECONDS)

# The loader with faults injected, so long: streams that stop and go on elsewhere, slow disks, damage. Any sample lost,
# repeated or out of place ends it; `cargo test` does the same for 3 seconds.
soak: setup
	SOAK_SECONDS=$(SOAK_SECONDS) cargo test --lib load::faults::soak -- --nocapture

# libtorch 2.11.0 into .libtorch/, numpy and zstandard into .python/, from PyPI, once.
setup:
	@.cargo/setup-libtorch.sh
	@.cargo/setup-python.sh

clean:
	cargo clean
	rm -rf .libtorch .python
