//! Loading against its peers, in one run and in turns: the same records through this program, Python's loaders, the
//! `webdataset` crate, and two limits.
//!
//!     cargo bench --bench load -- PYTHON [--data DIR] [--count N] [--rounds R] [--only TEXT] [--prepare]
//!
//! PYTHON has the packages of `benches/peers/requirements-load.txt`. DIR (default `target/bench-load`) is for the
//! records, in a folder for each N (default 131,072; 2.1 GB in each of seven formats), made once and kept. Every loader
//! has to give one whole epoch first, each sample once and the right bytes; then R rounds (default 5) go over all
//! settings and loaders. `--only` keeps the loaders whose name contains TEXT; `--prepare` stops after the check. Prints
//! tables in Markdown, of medians over the rounds; all answers are in `results.json` beside the records.

mod arms;
mod limit;
mod measure;
mod records;
mod rounds;
mod tables;
mod webdataset;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use arms::Bench;
use measure::Options;

fn main() -> ExitCode {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let flag = |flag: &str| words.iter().any(|word| word == flag);
    let value = |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
    let number = |flag: &str, default: usize| value(flag).and_then(|text| text.parse().ok()).unwrap_or(default);
    let folder = |default: &Path| value("--data").map_or_else(|| default.to_owned(), PathBuf::from);

    // A loader of this file, started by it again.
    if let Some(arm) = value("--arm") {
        let options = Options {
            data: folder(Path::new(".")),
            workers: number("--workers", 1),
            batch: number("--batch", 256),
            consumer: Duration::from_millis(number("--consumer-ms", 0) as u64),
            batches: number("--batches", 400),
            check: flag("--check"),
        };
        let answer = match arm.as_str() {
            "webdataset" => measure::run(&options, || webdataset::open(&options)),
            _ => limit::run(&options),
        };
        println!("{answer}");
        return ExitCode::SUCCESS;
    }

    let Some(python) = words.first().filter(|word| !word.starts_with('-')) else {
        eprintln!("give the Python of the peers: cargo bench --bench load -- .venv/bin/python [--count N]");
        return ExitCode::from(2);
    };
    let count = number("--count", 131_072);
    // Whole batches, and whole blocks in every shard and in the share of every worker.
    if count == 0 || !count.is_multiple_of(8192) {
        eprintln!("--count is a multiple of 8192, not {count}");
        return ExitCode::from(2);
    }
    let data = folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-load")).join(count.to_string());
    eprintln!("records in {}", data.display());
    if let Err(error) = records::write(&data, count) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/load_formats.py");
    let made = Command::new(python).arg(formats).arg(&data).stdout(std::io::stderr()).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        eprintln!("{python} could not make the formats of the peers: {made:?}");
        return ExitCode::FAILURE;
    }

    let bench = Bench { python: python.clone(), data, count };
    let arms = bench.arms(value("--only").map_or("", String::as_str));
    for arm in &arms {
        bench.check(arm);
    }
    if !flag("--prepare") {
        rounds::run(&bench, &arms, number("--rounds", 5));
    }
    ExitCode::SUCCESS
}
