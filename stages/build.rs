//! Compiles the functions of libtorch that tch does not expose (`native/`), and tells every test and
//! example of this crate where libtorch lies.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=native");
    let libtorch = libtorch();
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file("native/native.cpp")
        .compile("dualpath_native");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", real_lib(&libtorch).display());
}

/// The folder that LIBTORCH names. `.cargo/config.toml` sets it; `make setup` fills it.
fn libtorch() -> PathBuf {
    let path = PathBuf::from(std::env::var_os("LIBTORCH").unwrap_or_else(|| "../.libtorch".into()));
    assert!(path.join("include/torch").is_dir(), "libtorch is not at {}: run `make setup` once", path.display());
    path
}

/// Where the shared libraries really lie. The loader must be given that folder and not the links to it,
/// or the wheel's own $ORIGIN search path no longer finds the CUDA runtime that libtorch_cpu.so asks for.
fn real_lib(libtorch: &Path) -> PathBuf {
    let lib = libtorch.join("lib/libtorch_cpu.so");
    let real = lib.canonicalize().unwrap_or_else(|e| panic!("{}: {e}: run `make setup` once", lib.display()));
    real.parent().expect("a file lies in a folder").to_path_buf()
}
