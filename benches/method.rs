//! Whether the method does what the paper says, small: baselines and ablations on procedural images, seeds equal.
//!
//!     cargo bench --bench method -- [--out DIR] [--seeds N] [--steps N] [--only TEXT] [--group compare|collapse]
//!
//! Draws images, encodes them with the built-in autoencoder, trains every row with every seed, and measures each run on
//! images that were held out (`pipeline probe`). A row is written to DIR/rows.jsonl as soon as it is measured, and one that
//! is there is not trained again; so the bench may be stopped and started at will. Prints tables in Markdown from all rows.
//! DIR is `target/bench-method` unless given. Minutes a row: this is no part of any test.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use pipeline::{Flow, Runtime};
use serde_json::{Value, json};
use stages::procedural::{Draw, Portfolio, WriteFiles};

/// Images of each class: trained on, and held out.
const IMAGES: (usize, usize) = (400, 128);
/// Pixels of an image, 8 to a latent's.
const SIZE: &str = "128";
const BATCH: u64 = 16;

/// A run: a name and what it sets, for so many times the steps of the others.
struct Row {
    name: &'static str,
    settings: &'static [&'static str],
    length: u64,
}

const NO_PROJECTOR: &str = "model.projector_hidden=0";
const NO_OUTPUT: &str = "model.projector_out=0";
const ONE_VIEW: &str = "objective.views=1";
const UNALIGNED: &str = "objective.lambda=0";
const SIT: &str = "model.backbone=sit";

/// Table 4's steps from DDT to DUPA, and the ways to spend twice the compute without two views.
const COMPARE: [Row; 7] = [
    Row { name: "SiT", settings: &[SIT, ONE_VIEW, UNALIGNED, NO_PROJECTOR, NO_OUTPUT], length: 1 },
    Row { name: "DDT", settings: &[ONE_VIEW, UNALIGNED, NO_PROJECTOR, NO_OUTPUT], length: 1 },
    Row { name: "SiT, twice the steps", settings: &[SIT, ONE_VIEW, UNALIGNED, NO_PROJECTOR, NO_OUTPUT], length: 2 },
    Row { name: "DDT, twice the steps", settings: &[ONE_VIEW, UNALIGNED, NO_PROJECTOR, NO_OUTPUT], length: 2 },
    Row {
        name: "DDT, twice the batch",
        settings: &[ONE_VIEW, UNALIGNED, NO_PROJECTOR, NO_OUTPUT, "train.batch=32"],
        length: 1,
    },
    Row { name: "DDT + dual path", settings: &[UNALIGNED, NO_PROJECTOR, NO_OUTPUT], length: 1 },
    Row { name: "DUPA", settings: &[], length: 1 },
];

/// What decides whether the projected views collapse.
const COLLAPSE: [Row; 12] = [
    Row { name: "as shipped", settings: &[], length: 1 },
    Row { name: "lr 5e-4", settings: &["optimiser.lr=5e-4"], length: 1 },
    Row { name: "lr 1e-4", settings: &["optimiser.lr=1e-4"], length: 1 },
    Row { name: "lambda 0.1", settings: &["objective.lambda=0.1"], length: 1 },
    Row { name: "lambda 0.02", settings: &["objective.lambda=0.02"], length: 1 },
    Row { name: "projector without biases", settings: &["model.projector_bias=false"], length: 1 },
    Row { name: "labels always dropped", settings: &["objective.label_drop=1.0"], length: 1 },
    Row { name: "centred", settings: &["objective.centre=true"], length: 1 },
    Row {
        name: "centred, labels always dropped",
        settings: &["objective.centre=true", "objective.label_drop=1.0"],
        length: 1,
    },
    Row { name: "NT-Xent", settings: &["objective.similarity=nt-xent"], length: 1 },
    Row {
        name: "NT-Xent of pooled tokens",
        settings: &["objective.similarity=nt-xent", "objective.pool_tokens=true"],
        length: 1,
    },
    Row { name: "one side constant", settings: &["objective.stop_gradient=true"], length: 1 },
];

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
    let number = |flag: &str, default: u64| value(flag).and_then(|text| text.parse().ok()).unwrap_or(default);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = value("--out").map_or_else(|| here.join("target/bench-method"), PathBuf::from);
    let group = value("--group").map_or("compare", String::as_str);
    let rows: &[Row] = if group == "collapse" { &COLLAPSE } else { &COMPARE };
    let bench = Bench { out, steps: number("--steps", 1000) };
    bench.prepare();
    for seed in 0..number("--seeds", 3) {
        for row in rows.iter().filter(|row| row.name.contains(value("--only").map_or("", String::as_str))) {
            bench.measure(group, row, seed);
        }
    }
    bench.tables(group, rows);
}

struct Bench {
    out: PathBuf,
    steps: u64,
}

impl Bench {
    fn data(&self, part: &str) -> String {
        self.out.join(format!("{part}-latents")).display().to_string()
    }

    /// Draws and encodes, once.
    fn prepare(&self) {
        let portfolio =
            Portfolio { dir: self.out.join("images"), per_class: IMAGES.0, held_out_per_class: IMAGES.1, seed: 0 };
        if !portfolio.dir.join("done").exists() {
            let flow = Flow::from(portfolio.commissions().expect("the folder can be made"));
            let drawn = flow.then(|_| Ok(Draw)).workers(2).into(WriteFiles::default()).run(&Runtime::default());
            drawn.expect("images can be drawn and written");
            fs::write(portfolio.dir.join("done"), "").expect("the folder can be written");
        }
        for (part, images) in [("train", portfolio.train()), ("held-out", portfolio.held_out())] {
            let images = images.display().to_string();
            pipeline(&["encode", "--images", &images, "--out", &self.data(part), "--size", SIZE, "--workers", "2"]);
        }
    }

    fn rows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.out.join("rows.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Trains and measures a row, unless that was done.
    fn measure(&self, group: &str, row: &Row, seed: u64) {
        let steps = self.steps * row.length;
        let key = json!([group, row.name, seed, steps]);
        if self.rows().iter().any(|done| done["key"] == key) {
            return;
        }
        let run =
            self.out.join("runs").join(format!("{group}-{}-{seed}-{steps}", row.name.replace([' ', ',', '+'], "_")));
        let (run_dir, steps_text, data) = (run.display().to_string(), steps.to_string(), self.data("train"));
        let mut words =
            vec!["train", "--data", &data, "--run", &run_dir, "--preset", "dupa-demo", "--steps", &steps_text];
        let seed_text = format!("train.seed={seed}");
        let batch = format!("train.batch={BATCH}");
        let fixed = [batch.as_str(), &seed_text, "train.checkpoint_every=1000000", "train.log_every=10"];
        words.extend(fixed.iter().chain(row.settings).flat_map(|setting| ["--set", setting]));
        let begun = std::time::Instant::now();
        pipeline(&words);
        let seconds = begun.elapsed().as_secs_f64();
        let (held_out, fit) = (self.data("held-out"), self.data("train"));
        let probe = ["probe", "--run", &run_dir, "--data", &held_out, "--fit", &fit, "--json"];
        let mut found: Value = serde_json::from_str(&pipeline(&probe)).expect("probe prints JSON");
        let noisy =
            ["probe", "--run", &run_dir, "--data", &held_out, "--fit", &fit, "--t", "0.5", "--samples", "0", "--json"];
        let at_half: Value = serde_json::from_str(&pipeline(&noisy)).expect("probe prints JSON");
        found["linear_probe_half"] = at_half["linear_probe"].clone();
        // The checkpoint's path is that of this machine.
        found.as_object_mut().expect("an object").remove("checkpoint");
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).expect("a run has metrics");
        let features: Vec<Value> = metrics
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(
                |line| json!({"step": line["step"], "features": line["features"], "alignment": line["alignment_loss"]}),
            )
            .filter(|line| !line["features"].is_null())
            .collect();
        let line = json!({"key": key, "train_s": seconds, "probe": found, "features": features});
        let path = self.out.join("rows.jsonl");
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("rows can be written");
        writeln!(file, "{line}").expect("rows can be written");
        eprintln!(
            "{group}, {}, seed {seed}: velocity {}, probe {}",
            row.name, found["velocity_loss"], found["linear_probe"]
        );
    }

    fn tables(&self, group: &str, rows: &[Row]) {
        let mut by_name: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        let all = self.rows();
        for row in rows {
            let of_row = |line: &&Value| {
                line["key"][0] == group && line["key"][1] == row.name && line["key"][3] == self.steps * row.length
            };
            by_name.insert(row.name, all.iter().filter(of_row).cloned().collect());
        }
        if group == "collapse" {
            println!(
                "\n| | cosine before | after | after, other images | rank before | after | velocity loss | linear probe |"
            );
            println!("|---|---|---|---|---|---|---|---|");
        } else {
            println!(
                "\n| | steps | images | velocity loss | t < 0.2 | t > 0.8 | probe, t = 0 | probe, t = 0.5 | latent Frechet | train s |"
            );
            println!("|---|---|---|---|---|---|---|---|---|---|");
        }
        for row in rows {
            let found = &by_name[row.name];
            if found.is_empty() {
                continue;
            }
            let show =
                |of: &dyn Fn(&Value) -> f64, digits: usize| spread(&found.iter().map(of).collect::<Vec<_>>(), digits);
            let at = |line: &Value, pointer: &str| line.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
            let last = |pointer: &'static str| {
                show(
                    &move |line| {
                        line["features"]
                            .as_array()
                            .and_then(|all| all.last())
                            .map_or(f64::NAN, |last| at(last, pointer))
                    },
                    3,
                )
            };
            let velocity = show(&|line| at(line, "/probe/velocity_loss"), 4);
            let probe = show(&|line| 100.0 * at(line, "/probe/linear_probe"), 1);
            if group == "collapse" {
                let figures = [
                    last("/features/condition/cosine"),
                    last("/features/projected/cosine"),
                    last("/features/projected/other_cosine"),
                    last("/features/condition/rank"),
                    last("/features/projected/rank"),
                ];
                println!("| {} | {} | {velocity} | {probe} % |", row.name, figures.join(" | "));
                continue;
            }
            let ends = |from: usize| {
                show(
                    &move |line| {
                        (at(line, &format!("/probe/velocity_loss_by_t/{from}"))
                            + at(line, &format!("/probe/velocity_loss_by_t/{}", from + 1)))
                            / 2.0
                    },
                    4,
                )
            };
            let batch = if row.settings.contains(&"train.batch=32") { 32 } else { BATCH };
            let steps = self.steps * row.length;
            println!(
                "| {} | {steps} | {} | {velocity} | {} | {} | {probe} % | {} % | {} | {} |",
                row.name,
                steps * batch,
                ends(0),
                ends(8),
                show(&|line| 100.0 * at(line, "/probe/linear_probe_half"), 1),
                show(&|line| at(line, "/probe/latent_frechet/samples"), 4),
                show(&|line| line["train_s"].as_f64().unwrap_or(f64::NAN), 0),
            );
        }
    }
}

/// Mean, and half of the distance between the least and the most.
fn spread(values: &[f64], digits: usize) -> String {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    match values.len() {
        1 => format!("{mean:.digits$}"),
        _ => format!("{mean:.digits$} ± {:.digits$}", (most - least) / 2.0),
    }
}

/// Runs the program: what it printed.
fn pipeline(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(words).output().expect("the program can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pipeline {}: {errors}", words.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
