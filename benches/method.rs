//! Whether the method does what the paper says, small: baselines and ablations on procedural images, seeds equal.
//!
//!     cargo bench --bench method -- [--out DIR] [--seeds N] [--steps N] [--only TEXT] [--group compare|collapse]
//!                                   [--jobs N] [--rows FILE]
//!
//! Draws images of 64 classes (every shape in every texture, in any hue), encodes them with the built-in autoencoder,
//! trains every row with every seed, and measures each run on images that were held out (`pipeline probe`). `--jobs` runs
//! go on at once, on one thread each. A row is written to FILE (DIR/rows.jsonl) as soon as it is measured, and one that is
//! there is not trained again; so the bench may be stopped and started at will. Prints tables in Markdown from all rows.
//! DIR is `target/bench-method` unless given. Minutes a row: this is no part of any test.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pipeline::{BoxError, End, Flow, Runtime, Sink, Source, Stage, Stop};
use serde_json::{Value, json};
use stages::method::cost::ForwardMacs;
use stages::procedural::{Classes, Draw, Portfolio, WriteFiles};

/// Images of each class: trained on, and held out.
const IMAGES: (usize, usize) = (50, 16);
/// Pixels of an image, 8 to a latent's.
const SIZE: &str = "64";
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
const COLLAPSE: [Row; 14] = [
    Row { name: "as shipped", settings: &[], length: 1 },
    Row { name: "lr 5e-4", settings: &["optimiser.lr=5e-4"], length: 1 },
    Row { name: "lr 1e-4", settings: &["optimiser.lr=1e-4"], length: 1 },
    Row { name: "lambda 0.1", settings: &["objective.lambda=0.1"], length: 1 },
    Row { name: "lambda 0.02", settings: &["objective.lambda=0.02"], length: 1 },
    Row { name: "projector without biases", settings: &["model.projector_bias=false"], length: 1 },
    Row { name: "labels always dropped", settings: &["objective.label_drop=1.0"], length: 1 },
    Row { name: "encoder without position", settings: &["model.encoder_position=false"], length: 1 },
    Row {
        name: "encoder without position, labels always dropped",
        settings: &["model.encoder_position=false", "objective.label_drop=1.0"],
        length: 1,
    },
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
    let rows_file = value("--rows").map_or_else(|| out.join("rows.jsonl"), PathBuf::from);
    let bench = Arc::new(Bench { out, rows_file, group: group.to_owned(), steps: number("--steps", 1000) });
    bench.prepare();
    let only = value("--only").map_or("", String::as_str);
    let jobs: Vec<Job> = (0..number("--seeds", 3)).flat_map(|seed| rows.iter().map(move |row| (row, seed))).collect();
    let done = bench.rows();
    let to_do = jobs
        .into_iter()
        .filter(|(row, seed)| row.name.contains(only) && !done.iter().any(|line| line["key"] == bench.key(row, *seed)));
    let measure = Arc::clone(&bench);
    Flow::from(Jobs(to_do.collect::<Vec<_>>().into_iter())) // -> Job
        .then(move |_| Ok(Measure(Arc::clone(&measure)))) //           -> Value   what was found
        .workers(number("--jobs", 2) as usize)
        .into(Report)
        .run(&Runtime::default())
        .expect("every row can be trained and measured");
    bench.tables(rows);
}

struct Bench {
    out: PathBuf,
    rows_file: PathBuf,
    group: String,
    steps: u64,
}

/// A row and a seed.
type Job = (&'static Row, u64);

struct Jobs(std::vec::IntoIter<Job>);

impl Source for Jobs {
    type Item = Job;

    fn next(&mut self, _: &Stop) -> Result<Option<Job>, BoxError> {
        Ok(self.0.next())
    }
}

/// Trains and measures a row, and keeps what was found.
struct Measure(Arc<Bench>);

impl Stage for Measure {
    type In = Job;
    type Out = Value;

    fn process(&mut self, (row, seed): Job) -> Result<Value, BoxError> {
        let line = self.0.measure(row, seed);
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0.rows_file)?;
        // In one call, so that lines of two workers do not mix.
        file.write_all(format!("{line}\n").as_bytes())?;
        Ok(line)
    }
}

struct Report;

impl Sink for Report {
    type In = Value;
    type Output = ();

    fn consume(&mut self, line: Value) -> Result<ControlFlow<()>, BoxError> {
        eprintln!(
            "{}: velocity {}, probe {}",
            line["key"], line["probe"]["velocity_loss"], line["probe"]["linear_probe"]
        );
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<(), BoxError> {
        Ok(())
    }
}

impl Bench {
    fn data(&self, part: &str) -> String {
        self.out.join(format!("{part}-latents")).display().to_string()
    }

    /// Draws and encodes, once.
    fn prepare(&self) {
        let portfolio = Portfolio {
            dir: self.out.join("images"),
            classes: Classes::Crossed,
            per_class: IMAGES.0,
            held_out_per_class: IMAGES.1,
            seed: 0,
        };
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
        let text = fs::read_to_string(&self.rows_file).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn key(&self, row: &Row, seed: u64) -> Value {
        json!([self.group, row.name, seed, self.steps * row.length])
    }

    fn measure(&self, row: &Row, seed: u64) -> Value {
        let steps = self.steps * row.length;
        let name = format!("{}-{}-{seed}-{steps}", self.group, row.name.replace([' ', ',', '+'], "_"));
        let run = self.out.join("runs").join(name);
        let (run_dir, steps_text, data) = (run.display().to_string(), steps.to_string(), self.data("train"));
        let mut words =
            vec!["train", "--data", &data, "--run", &run_dir, "--preset", "dupa-demo", "--steps", &steps_text];
        let seed_text = format!("train.seed={seed}");
        let batch = format!("train.batch={BATCH}");
        let fixed =
            [&batch, &seed_text, "train.checkpoint_every=1000000", "train.log_every=10", "train.sample_every=1000000"];
        // On every processor what the tables were made with.
        words.extend(["--precision", "f32"]);
        words.extend(fixed.iter().chain(row.settings).flat_map(|setting| ["--set", setting]));
        pipeline(&words);

        let (held_out, fit) = (self.data("held-out"), self.data("train"));
        // Samples are not what the second table is about.
        let samples = if self.group == "collapse" { "0" } else { "512" };
        let words = ["probe", "--run", &run_dir, "--data", &held_out, "--fit", &fit, "--count", "4096", "--json"];
        let words = [&words[..], &["--samples", samples, "--precision", "f32"]].concat();
        let mut found: Value = serde_json::from_str(&pipeline(&words)).expect("probe prints JSON");
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
        let flop = flop(&fs::read_to_string(run.join("config.toml")).expect("a run has a configuration"));
        json!({"key": self.key(row, seed), "train_flop": flop, "probe": found, "features": features})
    }

    fn tables(&self, rows: &[Row]) {
        let group = self.group.as_str();
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
                "\n| | steps | images | velocity loss | t < 0.2 | t > 0.8 | linear probe | latent Frechet | TFLOP |"
            );
            println!("|---|---|---|---|---|---|---|---|---|");
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
                "| {} | {steps} | {} | {velocity} | {} | {} | {probe} % | {} | {} |",
                row.name,
                steps * batch,
                ends(0),
                ends(8),
                show(&|line| at(line, "/probe/latent_frechet/samples"), 4),
                show(&|line| at(line, "/train_flop") / 1e12, 1),
            );
        }
    }
}

/// What a run took to train, by formula.
fn flop(config: &str) -> f64 {
    let config: toml::Table = config.parse().expect("a configuration is TOML");
    let part = |name: &str| config[name].clone();
    let objective = part("objective").try_into().expect("an objective");
    let (model, data) = (part("model").try_into().expect("a model"), part("data")["latent"].clone());
    let macs = ForwardMacs::of(&model, &data.try_into().expect("a latent's shape"), &objective);
    let images = ["steps", "batch"].map(|key| part("train")[key].as_integer().expect("an integer"));
    macs.training_flop(objective.views) as f64 * (images[0] * images[1]) as f64
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
    let program = Path::new(env!("CARGO_BIN_EXE_pipeline"));
    let output = Command::new(program).args(words).env("OMP_NUM_THREADS", "1").output();
    let output = output.expect("the program can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pipeline {}: {errors}", words.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
