//! Quality against the number of steps (Figure 3b), and what sharing DDT's conditions costs and saves, with the models of
//! `cargo bench --bench method`.
//!
//!     cargo bench --bench inference -- [--out DIR] [--count N]
//!
//! Samples N images (512) by the ODE from the runs of seed 0 in DIR (target/bench-method), and compares them with all held-out images
//! (`pipeline evaluate --features vae`). Prints tables in Markdown: the Frechet distance of latents, which is no FID, and seconds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

const MODELS: [&str; 2] = ["DDT", "DUPA"];
const STEPS: [u64; 6] = [4, 8, 16, 32, 64, 128];
const SHARED: [u64; 5] = [1, 2, 3, 4, 8];
/// Steps of the rows where conditions are shared.
const SHARED_STEPS: u64 = 64;

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = value("--out").map_or_else(|| here.join("target/bench-method"), PathBuf::from);
    let count = value("--count").map_or("512", String::as_str);

    println!("\nFrechet distance of latents (no FID) by steps of the ODE, {count} samples\n");
    println!("| | {} |", STEPS.map(|steps| steps.to_string()).join(" | "));
    println!("|---|{}", "---|".repeat(STEPS.len()));
    let mut halves = f64::NAN;
    for model in MODELS {
        let row = STEPS.map(|steps| {
            let found = sampled(&out, model, steps, 1, count);
            halves = found.halves;
            format!("{:.2}", found.distance)
        });
        println!("| {model} | {} |", row.join(" | "));
    }
    println!("\nTwo halves of the held-out images: {halves:.1}.\n");
    println!("Conditions shared, {SHARED_STEPS} steps\n");
    println!("| | {} |", SHARED.map(|every| format!("every {every}")).join(" | "));
    println!("|---|{}", "---|".repeat(SHARED.len()));
    for model in MODELS {
        let found = SHARED.map(|every| sampled(&out, model, SHARED_STEPS, every, count));
        println!(
            "| {model}, distance | {} |",
            found.each_ref().map(|found| format!("{:.2}", found.distance)).join(" | ")
        );
        println!(
            "| {model}, seconds | {} |",
            found.each_ref().map(|found| format!("{:.1}", found.seconds)).join(" | ")
        );
    }
}

struct Found {
    distance: f64,
    /// Of the whole command that samples, decodes and writes.
    seconds: f64,
    halves: f64,
}

fn sampled(out: &Path, model: &str, steps: u64, every: u64, count: &str) -> Found {
    let run = out.join("runs").join(format!("compare-{model}-0-1000"));
    let folder = tempfile::tempdir().expect("the system's temporary folder can be written");
    let samples = folder.path().join("samples");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("sample").arg("--run").arg(&run).arg("--out").arg(&samples).args(["--count", count, "--format", "npz"]);
    command.args(["--sampler", "ode", "--devices", "cpu", "--precision", "f32"]);
    command.args(["--steps", &steps.to_string(), "--share-encoder", &every.to_string()]);
    let begun = Instant::now();
    printed(&mut command);
    let seconds = begun.elapsed().as_secs_f64();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("evaluate").arg("--samples").arg(samples.join("samples.npz"));
    command.arg("--reference").arg(out.join("images/held-out")).args(["--crop", "64", "--features", "vae", "--json"]);
    let found: Value = serde_json::from_slice(&printed(&mut command)).expect("evaluate prints JSON");
    let number = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
    let (distance, halves) = (number("latent_frechet"), number("latent_frechet_of_reference_halves"));
    Found { distance, seconds, halves }
}

fn printed(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("the program can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
