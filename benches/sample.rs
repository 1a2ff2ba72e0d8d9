//! Sampling against PyTorch's, in turns: ours, eager, torch.compile, ours, ..
//!
//!     cargo bench --bench sample -- PYTHON [--rounds R] [--batch 8] [--preset dupa-s/2] [--steps 10] [--precision f32]
//!                                   [--device cuda:0]
//!
//! PYTHON has the packages of `benches/peers/requirements-step.txt`. First both sample from the same weights and noise by the
//! ODE, and must agree within 1e-4 (bf16: 5e-2); then the SDE is timed, on the CPU or on the GPU that `--device` names. Prints a
//! table in Markdown, of medians over the rounds; memory is that of the host.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[path = "answers.rs"]
mod answers;

use answers::{answer, column, median};

const MODES: [&str; 2] = ["eager", "compile"];

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |flag: &str, default: &str| {
        let given = words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
        given.cloned().unwrap_or_else(|| default.to_owned())
    };
    let Some(python) = words.first().filter(|word| !word.starts_with('-')) else {
        eprintln!(
            "give the Python of the peer: cargo bench --bench sample -- .venv/bin/python [--rounds R] [--batch N]"
        );
        std::process::exit(2);
    };
    let rounds: usize = value("--rounds", "3").parse().expect("--rounds is a number");
    let [preset, batch, steps, precision] =
        [("--preset", "dupa-s/2"), ("--batch", "8"), ("--steps", "10"), ("--precision", "f32")]
            .map(|(flag, default)| value(flag, default));
    let device = value("--device", "cpu");
    let folder = tempfile::tempdir().expect("the system's temporary folder can be written");
    let record = folder.path().join("samples.safetensors");
    let common = ["--preset", &preset, "--batch", &batch, "--steps", &steps, "--precision", &precision];

    let pipeline = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        answer(command.args(["bench", "sample", "--devices", &device]).args(common).args(words))
    };
    let peer = |mode: &str, words: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/sample_torch.py");
        let device = ["--mode", mode, "--device", &device];
        answer(Command::new(python).arg(script).arg(&record).args(device).args(common).args(words))
    };

    pipeline(&["--sampler", "ode", "--record", &record.to_string_lossy()]);
    let tolerance = if precision == "f32" { 1e-4 } else { 5e-2 };
    for mode in MODES {
        let theirs = peer(mode, &["--check"]);
        eprintln!("{theirs}");
        let error = theirs["error"].as_f64().unwrap_or(f64::NAN);
        assert!(error < tolerance, "{mode} PyTorch samples something else: {error:e} from ours");
    }
    let mut arms: Vec<(&str, Vec<Value>)> =
        ["pipeline", "PyTorch, eager", "PyTorch, torch.compile"].map(|name| (name, Vec::new())).into();
    for round in 1..=rounds {
        for (at, (name, answers)) in arms.iter_mut().enumerate() {
            let found = if at == 0 { pipeline(&["--json"]) } else { peer(MODES[at - 1], &[]) };
            eprintln!("round {round}, {name}: {}", found["images_per_s"]);
            answers.push(found);
        }
    }
    let eager = column(&arms[1].1, "/images_per_s");
    println!("\n{batch} images of {steps} steps, SDE, {preset}, {precision}; medians of {rounds} rounds.\n");
    println!("| | images/s | least to most | of eager | peak memory, MB |");
    println!("|---|---|---|---|---|");
    for (name, answers) in &arms {
        let rates = column(answers, "/images_per_s");
        println!(
            "| {name} | {:.3} | {:.3} to {:.3} | {:.2} x | {:.0} |",
            median(&rates),
            rates[0],
            rates[rates.len() - 1],
            median(&rates) / median(&eager),
            median(&column(answers, "/peak_bytes")) / 1e6,
        );
    }
}
