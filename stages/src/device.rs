//! Which devices a run uses, and in which precision.
//!
//! The program links the CPU side of libtorch only. When a run asks for CUDA, the CUDA side is loaded from a full
//! torch of the same version: `DUALPATH_TORCH_LIB`, or the one that `python3` imports. What several GPUs exchange gradients by is built
//! against that torch too ([`nccl_library`]).

use std::path::{Path, PathBuf};
use std::process::Command;

use tch::Cuda;
pub use tch::{Device, Kind};

use crate::native::open_library;

/// Why the devices of a run cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// Not of the form `auto`, `cpu`, `cpu:2` or `cuda:0,cuda:1`.
    #[error("device {0:?} is not understood; write auto, cpu, cpu:2, cuda:0 or cuda:0,cuda:1")]
    Unknown(String),
    /// Processor and GPU, or one GPU twice.
    #[error("devices {0:?}: the ranks of a process are all on its processor or each on a GPU of its own")]
    Mixed(String),
    /// CUDA was asked for and the CUDA side of libtorch cannot be loaded.
    #[error(
        "CUDA needs a full torch 2.11.0: install it (pip install torch==2.11.0) and set DUALPATH_TORCH_LIB to its \
         torch/lib folder ({0})"
    )]
    NoCudaLibrary(String),
    /// A device number that the machine does not have.
    #[error("cuda:{asked} was asked for, and {found} CUDA devices were found")]
    NoSuchDevice {
        /// Number asked for.
        asked: usize,
        /// Number of devices.
        found: i64,
    },
    /// Several GPUs were asked for, and what they exchange gradients by was not built.
    #[error(
        "several GPUs exchange gradients by NCCL, and {0} is not there: `make nccl` builds it beside the program, or \
         DUALPATH_NCCL names it"
    )]
    NoNccl(String),
    /// Not `auto`, `f32` or `bf16`.
    #[error("precision {0:?} is not understood; write auto, f32 or bf16")]
    UnknownPrecision(String),
}

/// Threads that this machine runs at once, at least 1: how many workers a stage gets that is bound by the CPU.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Makes libtorch compute each operation with an `n`-th of its threads: for as many ranks of one process on the CPU.
pub fn share_cpu(n: usize) {
    tch::set_num_threads((tch::get_num_threads() / n as i32).max(1));
}

/// The devices that `--devices` names: `cpu:2` is the CPU twice. `auto` is the first GPU if the CUDA side of
/// libtorch can be loaded and finds one, else the CPU.
pub fn parse_devices(text: &str) -> Result<Vec<Device>, DeviceError> {
    parse_local_devices(text, 0)
}

/// [`parse_devices`] for the `local`-th process of a machine: `auto` is then the GPU of its number. Where a launcher shows each
/// process one GPU, it is that one.
pub fn parse_local_devices(text: &str, local: usize) -> Result<Vec<Device>, DeviceError> {
    let unknown = || DeviceError::Unknown(text.to_owned());
    if text == "auto" {
        let found = if load_cuda().is_ok() { Cuda::device_count() } else { 0 };
        return match found {
            0 => Ok(vec![Device::Cpu]),
            1 => Ok(vec![Device::Cuda(0)]),
            _ if (local as i64) < found => Ok(vec![Device::Cuda(local)]),
            _ => Err(DeviceError::NoSuchDevice { asked: local, found }),
        };
    }
    let mut devices = Vec::new();
    for part in text.split(',') {
        match part.trim().split_once(':') {
            None if part.trim() == "cpu" => devices.push(Device::Cpu),
            None if part.trim() == "cuda" => devices.push(Device::Cuda(0)),
            Some(("cpu", count)) => {
                let count: usize = count.parse().ok().filter(|n| (1..=64).contains(n)).ok_or_else(unknown)?;
                devices.extend(std::iter::repeat_n(Device::Cpu, count));
            }
            Some(("cuda", index)) => devices.push(Device::Cuda(index.parse().map_err(|_| unknown())?)),
            _ => return Err(unknown()),
        }
    }
    let twice = |(index, device): (usize, &Device)| device.is_cuda() && devices[..index].contains(device);
    if devices.iter().any(|device| device.is_cuda() != devices[0].is_cuda()) || devices.iter().enumerate().any(twice) {
        return Err(DeviceError::Mixed(text.to_owned()));
    }
    let highest = devices.iter().filter_map(|d| if let Device::Cuda(index) = d { Some(*index) } else { None }).max();
    if let Some(asked) = highest {
        load_cuda()?;
        let found = Cuda::device_count();
        if asked as i64 >= found {
            return Err(DeviceError::NoSuchDevice { asked, found });
        }
    }
    Ok(devices)
}

/// The dtype that `--precision` names on a device. `auto` is bf16 where the hardware multiplies it (every GPU that
/// torch 2.11 supports well, CPUs with AVX512-BF16), else f32.
pub fn parse_precision(text: &str, device: Device) -> Result<Kind, DeviceError> {
    match text {
        "f32" => Ok(Kind::Float),
        "bf16" => Ok(Kind::BFloat16),
        "auto" if device.is_cuda() || multiplies_bf16() => Ok(Kind::BFloat16),
        "auto" => Ok(Kind::Float),
        other => Err(DeviceError::UnknownPrecision(other.to_owned())),
    }
}

/// A dtype as [`parse_precision`] takes it: `f32` or `bf16`.
pub fn precision_name(kind: Kind) -> &'static str {
    if kind == Kind::BFloat16 { "bf16" } else { "f32" }
}

#[cfg(target_arch = "x86_64")]
fn multiplies_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn multiplies_bf16() -> bool {
    false
}

/// The kind of processor that computes in `kind`, as far as it decides roundings: `cuda` (which does not name the
/// model), or the CPU's widest vector instructions, for bf16 those that multiply it.
pub fn arithmetic(device: Device, kind: Kind) -> String {
    if device != Device::Cpu {
        return "cuda".to_owned();
    }
    #[cfg(target_arch = "x86_64")]
    let vectors = match () {
        // AMX comes with these; which of the two oneDNN takes is the processor's affair.
        () if kind == Kind::BFloat16 && std::arch::is_x86_feature_detected!("avx512bf16") => "avx512-bf16",
        () if std::arch::is_x86_feature_detected!("avx512f") => "avx512",
        () if std::arch::is_x86_feature_detected!("avx2") => "avx2",
        () => "sse",
    };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = "native";
    format!("cpu {} {vectors}", std::env::consts::ARCH)
}

/// What decides the bits of a training run besides its configuration: processor, dtype and intra-op threads.
pub fn training_arithmetic(device: Device, kind: Kind) -> String {
    let threads = if device.is_cuda() { String::new() } else { format!(", {} threads", tch::get_num_threads()) };
    format!("{}, {kind:?}{threads}", arithmetic(device, kind))
}

fn load_cuda() -> Result<(), DeviceError> {
    let folder = torch_lib().ok_or_else(|| DeviceError::NoCudaLibrary("no torch was found".to_owned()))?;
    // The two sides of libtorch share structures: another version would corrupt memory, not fail.
    let version = std::fs::read_to_string(folder.join("../version.py")).unwrap_or_default();
    if !version.lines().any(|line| line.starts_with("__version__") && line.contains("2.11.0")) {
        return Err(DeviceError::NoCudaLibrary(format!("{} is not the lib folder of torch 2.11.0", folder.display())));
    }
    open_library(&folder.join("libtorch_cuda.so")).map_err(|e| DeviceError::NoCudaLibrary(e.to_string()))
}

/// The shared object of NCCL groups (`native/nccl/`): `DUALPATH_NCCL`, or `libdualpath_nccl.so` beside the program.
///
/// # Errors
/// [`DeviceError::NoNccl`].
pub fn nccl_library() -> Result<PathBuf, DeviceError> {
    let path = match std::env::var_os("DUALPATH_NCCL") {
        Some(path) => path.into(),
        None => std::env::current_exe().unwrap_or_default().with_file_name("libdualpath_nccl.so"),
    };
    if path.is_file() { Ok(path) } else { Err(DeviceError::NoNccl(path.display().to_string())) }
}

fn torch_lib() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("DUALPATH_TORCH_LIB") {
        return Some(folder.into());
    }
    // Finds the package without importing it, which would take seconds.
    let script = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    // Isolated: a folder `torch` that happens to lie in the current one is no package.
    let output = Command::new("python3").args(["-I", "-c", script]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let folder = Path::new(text.trim()).join("lib");
    (output.status.success() && folder.is_dir()).then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_or_refused_with_the_forms_that_are_understood() {
        assert_eq!(parse_devices("cpu"), Ok(vec![Device::Cpu]));
        assert_eq!(parse_devices("cpu:2"), Ok(vec![Device::Cpu; 2]));
        for wrong in ["gpu", "cpu:0", "cuda:x", ""] {
            assert_eq!(parse_devices(wrong), Err(DeviceError::Unknown(wrong.to_owned())));
        }
        for wrong in ["cpu,cuda:0", "cuda:1,cpu", "cuda:0,cuda:0", "cuda,cuda:1,cuda:0"] {
            assert_eq!(parse_devices(wrong), Err(DeviceError::Mixed(wrong.to_owned())));
        }
    }

    #[test]
    fn precision_can_be_forced() {
        assert_eq!(parse_precision("bf16", Device::Cpu), Ok(Kind::BFloat16));
        assert_eq!(parse_precision("f32", Device::Cpu), Ok(Kind::Float));
        assert!(parse_precision("fp16", Device::Cpu).is_err());
    }
}
