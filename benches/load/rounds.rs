//! The measured runs, in turns.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::arms::{Arm, BATCH, Bench, Kind};
use crate::tables;

/// Numbers of workers that are compared.
pub const WORKERS: [usize; 2] = [1, 2];
/// What the consumer sleeps after a batch, in milliseconds.
pub const CONSUMERS: [u32; 2] = [0, 5];

/// Batches of a run with a consumer that sleeps: two seconds of sleep, and never more than an epoch.
const BATCHES: usize = 400;
/// How long a run without sleep is meant to take.
const SECONDS: f64 = 4.0;
/// Rounds in which resuming is timed.
const RESUMES: usize = 3;
/// Batches of the run that finds out how many those are.
const CALIBRATION: usize = 100;

/// The answers of one loader in one setting, one a round.
pub type Answers = BTreeMap<(&'static str, usize, u32), Vec<Value>>;

/// Runs all loaders in all settings, prints the tables and keeps the answers.
pub fn run(bench: &Bench, arms: &[Arm], rounds: usize) {
    let mut batches = BTreeMap::new();
    let mut bytes = BTreeMap::new();
    for arm in arms {
        bytes.insert(arm.name, bench.warm(arm));
        for workers in WORKERS {
            let found = bench.run(arm, workers, &["--batches", &CALIBRATION.to_string()]);
            let rate = found["samples_per_s"].as_f64().unwrap_or(0.0);
            // An epoch of these records is short: loaders that start anew at its end would pay for that too often.
            let most = if arm.kind == Kind::Ours { usize::MAX } else { bench.count / BATCH };
            batches.insert((arm.name, workers), ((SECONDS * rate) as usize / BATCH).max(CALIBRATION).min(most));
        }
    }
    let mut answers = Answers::new();
    let mut resumes = Answers::new();
    for round in 1..=rounds {
        for workers in WORKERS {
            for consumer in CONSUMERS {
                for arm in arms {
                    let limit = matches!(arm.kind, Kind::Gather | Kind::Threads);
                    if limit && consumer > 0 || arm.kind == Kind::Gather && workers > 1 {
                        continue;
                    }
                    let batches =
                        if consumer > 0 { BATCHES.min(bench.count / BATCH) } else { batches[&(arm.name, workers)] };
                    bench.warm(arm);
                    let words = ["--consumer-ms", &consumer.to_string(), "--batches", &batches.to_string()];
                    let found = bench.run(arm, workers, &words);
                    eprintln!(
                        "round {round}, {workers} workers, {consumer} ms, {}: {}",
                        arm.name, found["samples_per_s"]
                    );
                    answers.entry((arm.name, workers, consumer)).or_default().push(found);
                }
            }
        }
        for arm in arms.iter().filter(|_| round <= RESUMES) {
            if let Some(found) = resume(bench, arm, round) {
                resumes.entry((arm.name, 1, 0)).or_default().push(found);
            }
        }
    }
    let keep = |answers: &Answers| -> Value {
        let mut all = Vec::new();
        for (&(arm, workers, consumer), found) in answers {
            all.push(json!({"arm": arm, "workers": workers, "consumer_ms": consumer, "answers": found}));
        }
        all.into()
    };
    let file = bench.data.join("results.json");
    let all = json!({"loads": keep(&answers), "resumes": keep(&resumes), "bytes": bytes});
    if let Err(error) = std::fs::write(&file, all.to_string()) {
        eprintln!("{}: {error}", file.display());
    }
    tables::print(bench, arms, &answers, &resumes, &bytes);
}

/// Time to the first batch, fresh and in the middle of the epoch: `kind`, `fresh_ms`, `resumed_ms`, and in the first
/// round `ids` and `distinct` of what a peer gives before and after together.
fn resume(bench: &Bench, arm: &Arm, round: usize) -> Option<Value> {
    let middle = (bench.count / BATCH / 2).to_string();
    match arm.kind {
        Kind::Ours => {
            let at =
                |start: &str| bench.run(arm, 1, &["--batches", "20", "--start-batch", start])["first_batch_ms"].clone();
            Some(json!({"kind": "state", "fresh_ms": at("0"), "resumed_ms": at(&middle)}))
        }
        Kind::Python => {
            let check: &[&str] = if round == 1 { &["--check"] } else { &[] };
            let found = bench.run(arm, 1, &[&["--resume-at", &middle], check].concat());
            Some(found["resume"].clone())
        }
        Kind::Rust | Kind::Gather | Kind::Threads => None,
    }
}
