//! Compiles the functions of libtorch that tch does not expose (`native/`), and tells every test and
//! example of this crate where libtorch lies.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=native");
    let libtorch = libtorch();
    let mut native = cc::Build::new();
    native
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // Behind libtorch's own: what it brings of Gloo one day comes first.
        .include("native/gloo_declarations")
        .files(["native", "block", "attention", "reads", "c10d", "exchange"].map(|name| format!("native/{name}.cpp")));
    match openmp(&libtorch) {
        Some(library) if !native.get_compiler().is_like_clang() => {
            native.flag("-fopenmp");
            println!("cargo:rustc-link-search=native={}", real_lib(&libtorch).display());
            println!("cargo:rustc-link-lib=dylib:+verbatim={library}");
        }
        _ => {
            println!(
                "cargo:warning=blocks on a CPU will use one thread: that needs GCC, and a libtorch with a libgomp"
            );
        }
    }
    for (level, flags) in levels() {
        native.objects(kernels(level, flags));
    }
    native.compile("dualpath_native");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", real_lib(&libtorch).display());
}

/// Sets of instructions that the loops are compiled for; the program picks one when it runs.
fn levels() -> &'static [(&'static str, &'static [&'static str])] {
    match std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => &[
            ("plain", &[]),
            ("avx2", &["-mavx2", "-mfma"]),
            ("avx512", &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]),
        ],
        _ => &[("plain", &[])],
    }
}

/// Compiles the loops for one set of instructions: optimised in every profile, since a test of ours that trains would
/// take minutes without.
fn kernels(level: &str, flags: &[&str]) -> Vec<PathBuf> {
    // A folder for each: the objects have the same name.
    let out = Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets it")).join(level);
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .out_dir(out)
        .define("LEVEL", level)
        .opt_level(3)
        .flags(["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"])
        .flags(flags)
        .file("native/kernels.cpp");
    if level == "plain" {
        build.define("CHOOSES", None);
    }
    build.compile_intermediates()
}

/// The OpenMP library that libtorch brings and uses itself: both then share their threads. at::parallel_for is inline, and without
/// OpenMP it runs everything on one thread.
fn openmp(libtorch: &Path) -> Option<String> {
    let files = std::fs::read_dir(real_lib(libtorch)).ok()?;
    let mut names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    names.find(|name| name.starts_with("libgomp") && name.contains(".so"))
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
