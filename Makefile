# Every target sets up what it needs; a second run finds it done.
.PHONY: demo test lint setup build clean

DEMO ?= demo/

demo: setup
	cargo run --release -- demo --out "$(DEMO)"

test: setup
	cargo test

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

build: setup
	cargo build --release

# libtorch 2.11.0 from PyPI into .libtorch/, once.
setup:
	@.cargo/setup-libtorch.sh

clean:
	cargo clean
	rm -rf .libtorch
