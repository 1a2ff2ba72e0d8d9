//! Streaming a dataset: through the bench of the loader, and into training.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::program::{images, refuse, run, succeed};

const SMALL: &str =
    "--preset dupa-demo --set train.batch=8 --set model.hidden=64 --set model.depth=3 --set train.log_every=1";

/// 72 samples in shards of 64 and 8.
fn dataset(folder: &Path) -> PathBuf {
    let (images, data) = (images(folder, 3, 24), folder.join("data"));
    succeed("encode --images {} --out {} --size 64 --shard-size 64", &[&images, &data]);
    data
}

fn bench(flags: &str, data: &Path) -> Value {
    serde_json::from_str(&succeed(&format!("bench load {{}} --batch 8 --json {flags}"), &[data])).unwrap()
}

/// Flips a bit of block 0: the payload begins after the header, at a multiple of 4096 bytes.
fn damage(shard: &Path) {
    let mut bytes = fs::read(shard).unwrap();
    let header = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    bytes[32 + header] ^= 1;
    fs::write(shard, bytes).unwrap();
}

#[test]
fn every_way_of_reading_brings_each_sample_once_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let expected = bench("--batches 9 --check", &data)["check"].clone();
    assert_eq!((&expected["ids"], &expected["distinct"]), (&json!(72), &json!(72)));
    for flags in ["--io pread", "--io ram --workers 1", "--devices cpu:2", "--pool-blocks 1 --prefetch 3 --seed 7"] {
        assert_eq!(bench(&format!("--batches 9 --check {flags}"), &data)["check"], expected, "{flags}");
    }
    let two = bench("--batches 6 --start-batch 4 --devices cpu:2 --consumer-ms 1 --slow-reads 2:1", &data);
    assert_eq!((&two["devices"], &two["samples"]), (&json!(2), &json!(5 * 8)));
    for key in ["p50", "p99", "p999", "max", "total", "share"] {
        assert!(two["wait_ms"][key].is_number() && two["wait_ms_of_devices"][1][key].is_number(), "{two}");
    }
    for key in ["samples_per_s", "first_batch_ms", "cpu_s_per_million", "peak_rss_bytes", "memory_bytes"] {
        assert!(two[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {two}");
    }
    assert!(two["kernel_waits_per_1000"]["process"].is_number() && two["bottleneck"].is_string());
    let synthetic = bench("--batches 20", Path::new("synthetic"));
    assert_eq!((&synthetic["samples"], &synthetic["memory_bytes"]), (&json!(19 * 8), &Value::Null));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    refuse("bench load {} --batch 8 --devices cpu:3", &[&data], "a batch of 8 cannot be cut into 3 equal slices");
    refuse("bench load {} --batch 73", &[&data], "the dataset has 72 samples, less than one batch of 73");
    refuse("bench load {} --batch 8 --batches 1", &[&data], "--batches 1 must be at least 2");
    refuse("bench load {} --batch 0", &[&data], "the batch size is 0");
}

#[test]
fn the_shuffle_report_stands_beside_a_permutation() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let line = "inspect {} --json --shuffle-report --batch 8 --pool-blocks 2";
    let found: Value = serde_json::from_str(&succeed(line, &[&data])).unwrap();
    for order in ["planned", "permutation"] {
        assert!(
            found["shuffle"][order]["distance"].as_f64().is_some_and(|share| (0.2..0.5).contains(&share)),
            "{found}"
        );
    }
    let text = succeed("inspect {} --shuffle-report --batch 8", &[&data]);
    assert!(text.contains("entropy of the classes in a batch, bits"), "{text}");
}

#[test]
fn training_on_noise_shows_what_loading_costs() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    succeed(&format!("train --data synthetic --run {{}} --steps 3 {SMALL}"), &[&run]);
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["first_batch_s"].is_number() && lines[2]["wait_ms"]["p99"].is_number(), "{text}");
    assert_eq!(lines[2]["run_wait"]["count"], 2);
}

#[test]
fn a_damaged_block_ends_training_or_is_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    damage(&data.join("shard-00001.lat"));
    let (strict, lenient) = (folder.path().join("strict"), folder.path().join("lenient"));
    let output = run(&format!("train --data {{}} --run {{}} --steps 9 {SMALL}"), &[&data, &strict]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("shard 1, block 0: ") && stderr.contains("shard-00001.lat"), "{stderr}");

    let line = format!("train --data {{}} --run {{}} --steps 9 --on-bad-block skip {SMALL}");
    let output = run(&line, &[&data, &lenient]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("skipped") && stderr.contains("shard-00001.lat"), "{stderr}");
    let text = fs::read_to_string(lenient.join("metrics.jsonl")).unwrap();
    let bad: u64 =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["bad_samples"].as_u64().unwrap()).sum();
    assert_eq!(bad, 8, "an epoch of nine batches holds each sample once");
}
