//! Encoding against its Python peers, in one run and in turns: ours, Pillow, ours, diffusers, ..
//!
//!     cargo bench --bench encode -- PYTHON [--vae DIR] [--rounds N] [--limit N]
//!
//! PYTHON has the packages that the peers name (`benches/peers/*.py`). Without --vae, the front end alone: decode and
//! crop. Prints tables in Markdown, of medians over the rounds; the images are made first, in a folder that is removed
//! again.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
    let number = |flag: &str, default: usize| value(flag).and_then(|text| text.parse().ok()).unwrap_or(default);
    let Some(python) = words.first().filter(|word| !word.starts_with('-')) else {
        eprintln!("give the Python of the peers: cargo bench --bench encode -- .venv/bin/python [--vae DIR]");
        std::process::exit(2);
    };
    let (rounds, limit) = (number("--rounds", 3), number("--limit", 32));
    let folder = tempfile::tempdir().expect("the system's temporary folder can be written");
    let bench = Bench { python, rounds };

    for (name, quality, subsampling) in [("quality 75, 4:2:0", "75", "4:2:0"), ("quality 96, 4:4:4", "96", "4:4:4")] {
        let images = folder.path().join(quality);
        bench.peer("make_images.py", &[&text(&images), "--quality", quality, "--subsampling", subsampling]);
        bench.front_end(name, &images);
    }
    if let Some(vae) = value("--vae") {
        bench.whole(&folder.path().join("96"), vae, limit);
    }
}

struct Bench<'a> {
    python: &'a str,
    rounds: usize,
}

impl Bench<'_> {
    /// Decode and crop: medians of ours and of Pillow's, on one core and on two.
    fn front_end(&self, name: &str, images: &Path) {
        let images = text(images);
        let mut rows: Vec<(String, [Vec<f64>; 4])> = Vec::new();
        for _ in 0..self.rounds {
            for resize in ["exact", "fast"] {
                let found = ours(&["--images", &images, "--front-only", "--resize", resize, "--workers", "2"]);
                let front = &found["front_end"];
                let figures =
                    ["decode_ms", "crop_ms", "images_per_s_one_worker", "images_per_s"].map(|key| &front[key]);
                add(&mut rows, &format!("pipeline, --resize {resize}"), figures);
            }
            for decoder in ["pillow", "simplejpeg"] {
                let of = |processes: &str| {
                    self.peer(
                        "pillow_front.py",
                        &[&images, "--processes", processes, "--repeat", "8", "--decoder", decoder],
                    )
                };
                let (one, two) = (of("1"), of("2"));
                let figures = [&one["decode_ms"], &one["crop_ms"], &one["images_per_s"], &two["images_per_s"]];
                add(&mut rows, &format!("Pillow 12, decode by {decoder}"), figures);
            }
        }
        println!("\n500 x 375, {name}, to 256\n");
        println!("| | decode, ms | crop, ms | images/s, 1 core | images/s, 2 cores | scaling |");
        println!("|---|---|---|---|---|---|");
        for (name, figures) in rows {
            let [decode, crop, one, two] = figures.map(median);
            println!("| {name} | {decode:.2} | {crop:.3} | {one:.0} | {two:.0} | {:.0} % |", 50.0 * two / one);
        }
    }

    /// Whole encodes with the same weights.
    fn whole(&self, images: &Path, vae: &str, limit: usize) {
        let (images, limit) = (text(images), limit.to_string());
        let mut rows: Vec<(String, [Vec<f64>; 2])> = Vec::new();
        for _ in 0..self.rounds {
            let found = ours(&["--images", &images, "--vae", vae, "--limit", &limit, "--front-images", "1"]);
            add(&mut rows, "pipeline, f32", [&found["images_per_s"], &found["stages"]["VaeEncode"]["busy"]]);
            for (name, flags) in [
                ("diffusers, one by one, f32", &["--mode", "one"][..]),
                ("diffusers, batches of 8, f32", &["--mode", "batched"]),
                ("diffusers, batches of 8, f32, channels last", &["--mode", "batched", "--channels-last"]),
            ] {
                let found = self.peer("diffusers_encode.py", &[&[&images, vae, "--limit", &limit], flags].concat());
                let busy =
                    found["vae_ms"].as_f64().unwrap_or(f64::NAN) * found["images_per_s"].as_f64().unwrap_or(f64::NAN);
                add(&mut rows, name, [&found["images_per_s"], &Value::from(busy / 1e3)]);
            }
        }
        println!("\nWhole encode of {limit} images\n");
        println!("| | images/s | time in the autoencoder |");
        println!("|---|---|---|");
        for (name, figures) in rows {
            let [rate, busy] = figures.map(median);
            println!("| {name} | {rate:.3} | {:.1} % |", 100.0 * busy);
        }
    }

    fn peer(&self, script: &str, words: &[&str]) -> Value {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(script);
        answer(Command::new(self.python).arg(script).args(words))
    }
}

fn ours(words: &[&str]) -> Value {
    answer(Command::new(env!("CARGO_BIN_EXE_pipeline")).args(["bench", "encode", "--json"]).args(words))
}

/// What a process prints, as JSON; null if it prints nothing.
fn answer(command: &mut Command) -> Value {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn add<const N: usize>(rows: &mut Vec<(String, [Vec<f64>; N])>, name: &str, figures: [&Value; N]) {
    let at = rows.iter().position(|(row, _)| row == name).unwrap_or_else(|| {
        rows.push((name.to_owned(), std::array::from_fn(|_| Vec::new())));
        rows.len() - 1
    });
    for (column, figure) in rows[at].1.iter_mut().zip(figures) {
        column.push(figure.as_f64().unwrap_or(f64::NAN));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
