//! The metrics of `pipeline evaluate --inception` against torch-fidelity's, in turns and as whole processes.
//!
//!     cargo bench --bench evaluate -- PYTHON [--rounds R] [--count 500]
//!
//! PYTHON has the packages of `benches/peers/requirements-evaluate.txt`. Draws COUNT pictures of 256 x 256 for samples and as many
//! for the reference, and random weights; both programs measure them, and must agree within 1e-3 (fewer pictures than features
//! make the distance sensitive to rounding), precision and recall within one picture. Prints a table in Markdown.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use stages::procedural::Classes;

#[path = "answers.rs"]
mod answers;

use answers::{answer, column, median};

const SIDE: u32 = 256;

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |flag: &str, default: u64| {
        let given = words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
        given.map_or(default, |text| text.parse().expect("a number"))
    };
    let Some(python) = words.first().filter(|word| !word.starts_with('-')) else {
        eprintln!(
            "give the Python of the peer: cargo bench --bench evaluate -- .venv/bin/python [--rounds R] [--count N]"
        );
        std::process::exit(2);
    };
    let (rounds, count) = (number("--rounds", 3), number("--count", 500));
    let folder = tempfile::tempdir().expect("the system's temporary folder can be written");
    let draw = |name: &str, seed: u64| {
        let dir = folder.path().join(name);
        fs::create_dir(&dir).expect("a temporary folder can be written");
        for i in 0..count {
            let rgb = Classes::Crossed.image(i as usize, seed + i, SIDE as usize, SIDE as usize);
            let picture = image::RgbImage::from_raw(SIDE, SIDE, rgb).expect("the picture has that size");
            picture.save(dir.join(format!("{i:05}.png"))).expect("a temporary folder can be written");
        }
        dir
    };
    let (samples, reference) = (draw("samples", 0), draw("reference", count));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/evaluate_torch_fidelity.py");
    let drawn = Command::new(python).arg(&script).arg("--draw").arg(folder.path()).status();
    assert!(drawn.expect("the peer can be started").success(), "the peer draws weights");
    let inception = folder.path().join("inception.safetensors");

    let ours = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.arg("evaluate").arg("--samples").arg(&samples).arg("--reference").arg(&reference);
        command.arg("--inception").arg(&inception).args(["--distances", "f32", "--devices", "cpu", "--json"]);
        timed(&mut command)
    };
    let theirs = || timed(Command::new(python).arg(&script).args([&samples, &reference]).arg(folder.path()));
    let mut arms: [(&str, Vec<Value>); 2] = [("pipeline", Vec::new()), ("torch-fidelity 0.4.0", Vec::new())];
    for round in 1..=rounds {
        for (at, (name, answers)) in arms.iter_mut().enumerate() {
            let found = if at == 0 { ours() } else { theirs() };
            eprintln!("round {round}, {name}: {found}");
            answers.push(found);
        }
    }
    let one = 1.0 / count as f64;
    for (key, tolerance) in [("fid", 1e-3), ("is", 1e-3), ("precision", one), ("recall", one)] {
        let [ours, theirs] = [0, 1].map(|arm| arms[arm].1[0][key].as_f64().unwrap_or(f64::NAN));
        let error = if tolerance == one { (ours - theirs).abs() } else { (ours / theirs - 1.0).abs() };
        assert!(error <= tolerance * 1.001, "{key}: {ours} of ours, {theirs} of torch-fidelity");
    }
    println!("\n{count} samples and {count} reference pictures of {SIDE} x {SIDE}; medians of {rounds} rounds.\n");
    println!("| | seconds | least to most | FID | IS | precision | recall | sFID |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, answers) in &arms {
        let seconds = column(answers, "/seconds");
        let shown = |key: &str| answers[0][key].as_f64().map_or("none".to_owned(), |value| format!("{value:.6}"));
        let numbers = ["fid", "is", "precision", "recall", "sfid"].map(shown).join(" | ");
        println!(
            "| {name} | {:.1} | {:.1} to {:.1} | {numbers} |",
            median(&seconds),
            seconds[0],
            seconds[seconds.len() - 1]
        );
    }
}

fn timed(command: &mut Command) -> Value {
    let begun = Instant::now();
    let mut found = answer(command);
    found["seconds"] = begun.elapsed().as_secs_f64().into();
    found
}
