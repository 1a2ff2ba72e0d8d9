//! The tables, in Markdown: medians over the rounds.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::arms::{Arm, Bench, Kind};
use crate::rounds::{Answers, CONSUMERS, WORKERS};

/// Prints all of them.
pub fn print(bench: &Bench, arms: &[Arm], answers: &Answers, resumes: &Answers, bytes: &BTreeMap<&str, u64>) {
    println!("{} records of 16 KiB and a label, batches of 256.", bench.count);
    for workers in WORKERS {
        throughput(arms, workers, answers);
    }
    for workers in WORKERS {
        waits(arms, workers, answers);
    }
    cost(arms, answers, resumes, bytes);
}

fn throughput(arms: &[Arm], workers: usize, answers: &Answers) {
    let rate = |arm: &Arm| answers.get(&(arm.name, workers, 0)).map(|found| median(found, "/samples_per_s"));
    let best = |kind| arms.iter().filter(|arm| arm.kind == kind).filter_map(rate).fold(f64::NAN, f64::max);
    let (peer, limit) = (best(Kind::Python), best(Kind::Threads));
    println!("\nWorkers: {workers}. A consumer that takes no time.\n");
    println!(
        "| | samples/s | least to most | to the fastest Python peer | of the zstd limit | first batch, ms \
         | CPU s for a million | peak memory, MB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for arm in arms {
        let Some(found) = answers.get(&(arm.name, workers, 0)) else { continue };
        let rates = column(found, "/samples_per_s");
        let [of_peer, of_limit] =
            [(peer, 1.0), (limit, 100.0)].map(|(to, scale)| scale * median(found, "/samples_per_s") / to);
        println!(
            "| {} | {:.0} | {:.0} to {:.0} | {} | {} | {} | {:.1} | {:.0} |",
            arm.name,
            median(found, "/samples_per_s"),
            rates[0],
            rates[rates.len() - 1],
            shown(of_peer, 2, " x"),
            shown(of_limit, 0, " %"),
            shown(median(found, "/first_batch_ms"), 0, ""),
            median(found, "/cpu_s_per_million"),
            median(found, "/peak_rss_bytes") / 1e6,
        );
    }
}

fn waits(arms: &[Arm], workers: usize, answers: &Answers) {
    let consumer = CONSUMERS[1];
    println!("\nWorkers: {workers}. A consumer of {consumer} ms; milliseconds a step waits for its batch.\n");
    println!("| | p50 | p99 | p99.9 | worst of all rounds | of the time | CPU s for a million |");
    println!("|---|---|---|---|---|---|---|");
    for arm in arms {
        let Some(found) = answers.get(&(arm.name, workers, consumer)) else { continue };
        let worst = column(found, "/wait_ms/max").last().copied().unwrap_or(f64::NAN);
        let [p50, p99, p999] = ["p50", "p99", "p999"].map(|key| median(found, &format!("/wait_ms/{key}")));
        println!(
            "| {} | {p50:.3} | {p99:.3} | {p999:.3} | {worst:.3} | {:.2} % | {:.1} |",
            arm.name,
            100.0 * median(found, "/wait_ms/share"),
            median(found, "/cpu_s_per_million"),
        );
    }
}

fn cost(arms: &[Arm], answers: &Answers, resumes: &Answers, bytes: &BTreeMap<&str, u64>) {
    println!("\nOn the disk, and the first batch: fresh, and resumed in the middle of an epoch; 1 worker.\n");
    println!("| | on the disk, MB | fresh, ms | resumed, ms | by | nothing lost or repeated |");
    println!("|---|---|---|---|---|---|");
    for arm in arms {
        let size = bytes.get(arm.name).map_or(f64::NAN, |&bytes| bytes as f64 / 1e6);
        print!("| {} | {size:.0} ", arm.name);
        let Some(found) = resumes.get(&(arm.name, 1, 0)) else {
            let fresh = answers.get(&(arm.name, 1, 0)).map_or(f64::NAN, |found| median(found, "/first_batch_ms"));
            println!("| {} | | | |", shown(fresh, 1, ""));
            continue;
        };
        let kind = found[0]["kind"].as_str().unwrap_or_default();
        let exact = match (&found[0]["ids"], &found[0]["distinct"]) {
            (Value::Null, _) => String::new(),
            (ids, distinct) if ids == distinct => format!("{ids} samples, each once"),
            (ids, distinct) => format!("no: {ids} samples, {distinct} different"),
        };
        let [fresh, resumed] = ["/fresh_ms", "/resumed_ms"].map(|key| median(found, key));
        println!("| {} | {} | {kind} | {exact} |", shown(fresh, 1, ""), shown(resumed, 1, ""));
    }
}

/// What the answers say at a JSON pointer, sorted; an answer without it counts as not a number.
fn column(answers: &[Value], pointer: &str) -> Vec<f64> {
    let mut values: Vec<f64> =
        answers.iter().map(|answer| answer.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(answers: &[Value], pointer: &str) -> f64 {
    let values = column(answers, pointer);
    values[values.len() / 2]
}

/// Nothing where there is no number.
fn shown(value: f64, digits: usize, unit: &str) -> String {
    if value.is_nan() { String::new() } else { format!("{value:.digits$}{unit}") }
}
