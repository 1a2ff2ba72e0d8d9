//! The training step against PyTorch's, in turns: ours, eager, torch.compile, ours, ..
//!
//!     cargo bench --bench step -- PYTHON [--rounds R] [--batch 8] [--preset dupa-s/2] [--steps 5] [--precision f32]
//!                                 [--device cuda:0 [--peak-tflops X]]
//!
//! PYTHON has the packages of `benches/peers/requirements-step.txt`. First both compute the losses and the norm of the
//! gradients from the same weights and draws, and must agree within 1e-4 (bf16: 2e-2); only then is anything timed. Prints a
//! table in Markdown, of medians over the rounds. Both compute on the CPU, or on the GPU that `--device` names; `--peak-tflops` is
//! what its maker says that it can do at this precision, for the share of it that was used (MFU). Memory is that of the host; what
//! PyTorch's allocator gave away on a GPU is told beside the table.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[path = "answers.rs"]
mod answers;

use answers::{answer, column, median};

/// Largest relative difference of losses and gradient norm: roundings of f32, and of bf16.
fn tolerance(precision: &str) -> f64 {
    if precision == "f32" { 1e-4 } else { 2e-2 }
}

const MODES: [&str; 2] = ["eager", "compile"];

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |flag: &str, default: &str| {
        let given = words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
        given.cloned().unwrap_or_else(|| default.to_owned())
    };
    let Some(python) = words.first().filter(|word| !word.starts_with('-')) else {
        eprintln!("give the Python of the peer: cargo bench --bench step -- .venv/bin/python [--rounds R] [--batch N]");
        std::process::exit(2);
    };
    let rounds: usize = value("--rounds", "3").parse().expect("--rounds is a number");
    let [preset, batch, steps, precision] =
        [("--preset", "dupa-s/2"), ("--batch", "8"), ("--steps", "5"), ("--precision", "f32")]
            .map(|(f, d)| value(f, d));
    let (device, peak) = (value("--device", "cpu"), value("--peak-tflops", ""));
    let folder = tempfile::tempdir().expect("the system's temporary folder can be written");
    let record = folder.path().join("step.safetensors");
    let common = ["--preset", &preset, "--batch", &batch];

    let pipeline = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        answer(command.args(["bench", "step", "--devices", &device]).args(common).args(words))
    };
    let peer = |mode: &str, words: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/step_torch.py");
        let mut command = Command::new(python);
        answer(command.arg(script).arg(&record).args(["--mode", mode, "--device", &device]).args(common).args(words))
    };

    let ours = pipeline(&["--precision", &precision, "--record", &record.to_string_lossy()]);
    for mode in MODES {
        let theirs = peer(mode, &["--precision", &precision, "--check"]);
        let error = theirs["error"].as_f64().unwrap_or(f64::NAN);
        eprintln!("ours {ours}\n{mode} {theirs}");
        assert!(error < tolerance(&precision), "{mode} PyTorch computes another step: {error:e} from ours");
    }

    let timed = ["--precision", &precision, "--steps", &steps];
    let mut arms: Vec<(String, Vec<Value>)> =
        ["pipeline", "PyTorch, eager", "PyTorch, torch.compile"].map(|name| (name.to_owned(), Vec::new())).into();
    for round in 1..=rounds {
        for (at, (name, answers)) in arms.iter_mut().enumerate() {
            let found =
                if at == 0 { pipeline(&[&timed[..], &["--json"]].concat()) } else { peer(MODES[at - 1], &timed) };
            eprintln!("round {round}, {name}: {}", found["images_per_s"]);
            answers.push(found);
        }
    }
    let eager = column(&arms[1].1, "/images_per_s");
    // Each takes its own default; figures of unlike ones say nothing.
    let (arithmetic, threads) = (arms[0].1[0]["arithmetic"].as_str().unwrap_or_default(), &arms[1].1[0]["threads"]);
    let alike = device != "cpu" || arithmetic.ends_with(&format!(" {threads} threads"));
    assert!(alike, "{arithmetic}, and PyTorch has {threads} threads");
    println!(
        "\nA training step of {preset}, {batch} images, {arithmetic}; medians of {rounds} rounds of {steps} steps.\n"
    );
    println!("| | images/s | least to most | ms a step | of eager | peak memory, MB | before the network, MB |");
    println!("|---|---|---|---|---|---|---|");
    for (name, answers) in &arms {
        let rates = column(answers, "/images_per_s");
        println!(
            "| {name} | {:.3} | {:.3} to {:.3} | {:.0} | {:.2} x | {:.0} | {:.0} |",
            median(&rates),
            rates[0],
            rates[rates.len() - 1],
            median(&column(answers, "/ms_per_step/median")),
            median(&rates) / median(&eager),
            median(&column(answers, "/peak_bytes")) / 1e6,
            median(&column(answers, "/start_bytes")) / 1e6,
        );
    }
    // Of all arms by the count of ours, which is the same network.
    let flops = arms[0].1[0]["flops_per_image"].as_f64().unwrap_or(f64::NAN);
    for (name, answers) in &arms {
        if let Ok(peak) = peak.parse::<f64>() {
            let rate = flops * median(&column(answers, "/images_per_s"));
            println!("\n{name}: MFU {:.1} % of {peak} TFLOP/s", 100.0 * rate / (peak * 1e12));
        }
        let memory = median(&column(answers, "/device_peak_bytes"));
        if memory.is_finite() {
            println!("\n{name}: {:.0} MB on the device", memory / 1e6);
        }
    }
}
