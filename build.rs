//! Tells the program and its tests where libtorch lies, by an absolute rpath.
//!
//! An rpath in `.cargo/config.toml` would be lost whenever RUSTFLAGS is set, and breaks doc tests.
//! On another machine the program runs with LD_LIBRARY_PATH=<its torch>/lib.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(std::env::var_os("LIBTORCH").unwrap_or_else(|| ".libtorch".into()));
    let lib = libtorch.join("lib/libtorch_cpu.so");
    // The real folder, not the links to it: the wheel's own $ORIGIN search path starts there.
    let real = lib.canonicalize().unwrap_or_else(|e| panic!("{}: {e}: run `make setup` once", lib.display()));
    let folder = real.parent().expect("a file lies in a folder");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
}
