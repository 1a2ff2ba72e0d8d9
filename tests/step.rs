//! The bench of the training step.

use serde_json::Value;

use crate::program::{pipeline, refuse, succeed};

const SMALL: &str = "--preset dupa-demo --set model.depth=3 --batch 1 --devices cpu --precision f32";

#[test]
fn a_step_is_timed_and_recorded() {
    let found = succeed(&format!("bench step {SMALL} --steps 3 --warmup 1 --json"), &[]);
    let found: Value = serde_json::from_str(&found).unwrap();
    let number = |pointer: &str| found.pointer(pointer).and_then(Value::as_f64).unwrap();
    let [low, middle, high] = ["p10", "median", "p90"].map(|key| number(&format!("/ms_per_step/{key}")));
    assert!(0.0 < low && low <= middle && middle <= high, "{found}");
    assert!((number("/images_per_s") * middle - 1e3).abs() < 1e-6, "{found}");
    assert!(number("/peak_bytes") > number("/start_bytes"), "{found}");
    assert_eq!(number("/reads_per_step"), 1.0, "{found}");
    let rate = number("/flops_per_image") * number("/images_per_s") / 1e9;
    assert!((number("/gflops_per_s") / rate - 1.0).abs() < 1e-9, "{found}");
    assert!(found["mfu"].is_null(), "{found}");
    let found = succeed(&format!("bench step {SMALL} --steps 1 --warmup 0 --peak-tflops 0.5 --json"), &[]);
    let found: Value = serde_json::from_str(&found).unwrap();
    let number = |key: &str| found[key].as_f64().unwrap();
    assert!((number("mfu") * 500.0 / number("gflops_per_s") - 1.0).abs() < 1e-9, "{found}");

    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record.safetensors");
    let said: Value = serde_json::from_str(&succeed(&format!("bench step {SMALL} --record {{}}"), &[&record])).unwrap();
    assert!(said["gradient_norm"].as_f64().unwrap() > 0.0);
    let bytes = std::fs::read(&record).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let norm = stored.tensor("gradient_norm").unwrap().data().try_into().map(f64::from_le_bytes).unwrap();
    assert_eq!(said["gradient_norm"], norm);
    assert_eq!(stored.tensor("noise").unwrap().shape(), [2, 1, 4, 32, 32]);
}

#[test]
fn what_cannot_be_timed_is_refused_in_one_sentence() {
    refuse(&format!("bench step {SMALL} --steps 0"), &[], "--steps 0 measures nothing");
    refuse("bench step --devices cpu:2", &[], "names 2 devices; a step is timed on one");
    refuse("bench step --devices cpu --batch 2 --set train.batch=4", &[], "say the same thing");
    refuse(&format!("bench step {SMALL} --peak-tflops 0"), &[], "--peak-tflops 0 must be above 0");
    refuse("bench step --batch 0 --devices cpu", &[], "train.batch must be at least 1");
    for part in ["step", "sample"] {
        refuse(&format!("bench {part} --batch {} --devices cpu", u64::MAX), &[], "is more than any device holds");
    }
}

/// jemalloc prints its settings when the program ends: the kernel does not get memory back between two steps.
#[test]
fn settings_of_the_allocator_are_in_force() {
    let output = pipeline().arg("--version").env("MALLOC_CONF", "stats_print:true").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    for setting in ["dirty_decay_ms: -1", "muzzy_decay_ms: -1", "oversize_threshold: 0"] {
        assert!(said.contains(&format!("opt.{setting}")), "{setting} in\n{said}");
    }
}
