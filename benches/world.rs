//! What exchanging gradients costs: two processes of one thread each that train together, against two that train alone, side by
//! side on the same processor, in turns.
//!
//!     cargo bench --bench world -- [--rounds R] [--batch 8] [--preset dupa-s/2] [--steps 4] [--buckets all]
//!
//! `--batch` is that of a process. `--buckets all` trains together once for each size of a bucket: 1, 5, 25 and 100 MiB, and one bucket of
//! everything, which is sent when the backward pass is over. Prints a table in Markdown, of medians over the rounds; the rate is that
//! of both processes, of all steps but the first.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// MiB that no network's gradients fill: 1 TiB.
const ONE_BUCKET: u64 = 1 << 20;

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |flag: &str, default: &str| {
        let given = words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
        given.map_or(default.to_owned(), Clone::clone)
    };
    let number = |flag: &str, default: &str| -> u64 { value(flag, default).parse().expect("a number") };
    let (rounds, batch, steps) = (number("--rounds", "3"), number("--batch", "8"), number("--steps", "4"));
    let preset = value("--preset", "dupa-s/2");
    let folder = tempfile::tempdir().expect("the system's temporary folder can be written");

    // Alone, and together in buckets of so many MiB.
    let mut ways: Vec<(String, Option<u64>)> = vec![("two that exchange nothing".to_owned(), None)];
    if value("--buckets", "25") == "all" {
        let of = |mib: u64| (format!("two that train together, buckets of {mib} MiB"), Some(mib));
        ways.extend([1, 5, 25, 100].map(of));
        ways.push(("two that train together, one bucket, nothing overlaps".to_owned(), Some(ONE_BUCKET)));
    } else {
        ways.push(("two that train together".to_owned(), Some(number("--buckets", "25"))));
    }
    let mut rates = vec![Vec::new(); ways.len()];
    for round in 1..=rounds {
        for (rates, (name, together)) in rates.iter_mut().zip(&ways) {
            let port = free_port();
            let start = |process: u64| {
                let run = folder.path().join(format!("run-{process}"));
                let _ = fs::remove_dir_all(&run);
                let batch = if together.is_some() { 2 * batch } else { batch };
                let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
                command.args(["train", "--data", "synthetic", "--devices", "cpu", "--precision", "f32", "--run"]);
                command.arg(&run).args(["--preset", &preset, "--steps", &(steps + 1).to_string()]);
                for setting in [format!("batch={batch}"), format!("log_every={}", steps + 1), "sample_every=0".into()] {
                    command.args(["--set", &format!("train.{setting}")]);
                }
                if let Some(bucket) = together {
                    let place = format!("--world 2 --rank {process} --master 127.0.0.1:{port} --bucket-mib {bucket}");
                    command.args(place.split(' '));
                }
                command.env("OMP_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::null());
                command.spawn().expect("the program was built for this bench")
            };
            let children: Vec<Child> = [0, 1].map(start).into();
            for mut child in children {
                assert!(child.wait().expect("a child can be waited for").success(), "a training failed");
            }
            let rate = match together {
                Some(_) => rate(&folder.path().join("run-0")),
                None => (0..2).map(|process| rate(&folder.path().join(format!("run-{process}")))).sum(),
            };
            eprintln!("round {round}, {name}: {rate}");
            rates.push(rate);
        }
    }
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    let median = |rates: &[f64]| rates[rates.len() / 2];
    println!(
        "\n{preset}, {batch} images a process, f32, one thread each; medians of {rounds} rounds of {steps} steps.\n"
    );
    let alone = median(&rates[0]);
    println!("| | images/s of both | least to most | of alone |\n|---|---|---|---|");
    for (rates, (name, _)) in rates.iter().zip(&ways) {
        let (least, most) = (rates[0], rates[rates.len() - 1]);
        let part = 100.0 * median(rates) / alone;
        println!("| {name} | {:.3} | {least:.3} to {most:.3} | {part:.0} % |", median(rates));
    }
}

/// images/s of the last line of metrics: that of all steps but the first.
fn rate(run: &Path) -> f64 {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("the run wrote metrics");
    let line: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    line["images_per_s"].as_f64().expect("a number")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback device is there");
    listener.local_addr().expect("it is bound").port()
}
