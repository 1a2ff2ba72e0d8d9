//! The loaders that are compared, and how each is started.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::records;

/// Samples in a batch, everywhere.
pub const BATCH: usize = 256;

/// What all runs have in common.
pub struct Bench {
    /// The peers' Python.
    pub python: String,
    /// Folder of the records.
    pub data: PathBuf,
    /// Samples.
    pub count: usize,
}

/// A loader.
pub struct Arm {
    /// As in the tables.
    pub name: &'static str,
    /// What it is measured as.
    pub kind: Kind,
    /// Its files, below the bench's folder.
    pub folder: &'static str,
    start: Start,
    extra: Vec<String>,
}

/// What a loader is measured as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This program.
    Ours,
    /// A loader in Python: the fastest one is what ours is compared with.
    Python,
    /// A loader in Rust.
    Rust,
    /// One process, whatever the workers; only with a consumer that takes no time.
    Gather,
    /// Threads without a consumer.
    Threads,
}

enum Start {
    /// `pipeline bench load` over the arm's folder.
    Pipeline,
    /// A file of `benches/peers`.
    Script(&'static str),
    /// This binary again.
    Again(&'static str),
}

impl Bench {
    /// All loaders whose name contains `only`, in the order of the tables.
    pub fn arms(&self, only: &str) -> Vec<Arm> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let arm = |name, kind, folder, start, extra: &str| Arm { name, kind, folder, start, extra: words(extra) };
        // The memory of a shuffle pool is new to the system in the first two epochs, and slow.
        let warm = "--warm-epochs 2";
        let in_memory = format!("--pool-blocks {} {warm}", self.count / records::BLOCK);
        let all = [
            arm("pipeline, compressed shards", Kind::Ours, "shards-zstd", Start::Pipeline, warm),
            arm("pipeline, codec none", Kind::Ours, "shards-none", Start::Pipeline, warm),
            arm("pipeline, in memory", Kind::Ours, "shards-zstd", Start::Pipeline, &in_memory),
            arm("torch DataLoader, .npy files", Kind::Python, "npy", Start::Script("load_torch.py"), ""),
            arm(
                "the same, 8 batches ahead",
                Kind::Python,
                "npy",
                Start::Script("load_torch.py"),
                "--prefetch-factor 8",
            ),
            arm("webdataset (Python)", Kind::Python, "tar", Start::Script("load_webdataset.py"), ""),
            arm("litdata", Kind::Python, "litdata", Start::Script("load_litdata.py"), ""),
            arm("mosaicml-streaming", Kind::Python, "mds", Start::Script("load_mosaic.py"), ""),
            arm("webdataset (Rust crate)", Kind::Rust, "tar", Start::Again("webdataset"), ""),
            arm("limit: numpy gather from a memmap", Kind::Gather, "memmap", Start::Script("load_memmap.py"), ""),
            arm("limit: xxh3 + zstd + unshuffle", Kind::Threads, "shards-zstd", Start::Again("limit"), ""),
        ];
        all.into_iter().filter(|arm| arm.name.contains(only)).collect()
    }

    /// Asserts that a loader gives a whole epoch, with one worker and with two.
    pub fn check(&self, arm: &Arm) {
        if arm.kind == Kind::Threads {
            return; // it asserts every frame's checksum in every pass
        }
        for workers in [1, 2] {
            let found = self.run(arm, workers, &["--check", "--batches", &(self.count / BATCH).to_string()]);
            let expected = records::expected(&self.data);
            assert_eq!(found["check"], expected, "{} with {workers} workers does not give the records", arm.name);
            eprintln!("{}, {workers} workers: every sample once, the right bytes", arm.name);
        }
    }

    /// Runs a loader in a process of its own: what it prints last, as JSON.
    pub fn run(&self, arm: &Arm, workers: usize, words: &[&str]) -> Value {
        let mut command = match arm.start {
            Start::Pipeline => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
                command.args(["bench", "load", "--json"]).arg(self.data.join(arm.folder));
                command
            }
            Start::Script(script) => {
                let mut command = Command::new(&self.python);
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(script));
                command.arg("--data").arg(&self.data);
                command
            }
            Start::Again(which) => {
                let mut command = Command::new(std::env::current_exe().expect("this file has a path"));
                command.args(["--arm", which, "--data"]).arg(&self.data);
                command
            }
        };
        command.args(&arm.extra).args(["--workers", &workers.to_string(), "--batch", &BATCH.to_string()]).args(words);
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}");
        let printed = String::from_utf8_lossy(&output.stdout);
        let last = printed.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{command:?} printed {last:?}: {error}; {errors}"))
    }

    /// Reads a loader's files, so that the page cache holds them: their bytes.
    pub fn warm(&self, arm: &Arm) -> u64 {
        let folder = self.data.join(arm.folder);
        read(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    }
}

/// Bytes of a file, or of all files below a folder, read once.
fn read(path: &Path) -> io::Result<u64> {
    if path.is_dir() {
        return fs::read_dir(path)?.map(|entry| read(&entry?.path())).sum();
    }
    io::copy(&mut fs::File::open(path)?, &mut io::sink())
}
