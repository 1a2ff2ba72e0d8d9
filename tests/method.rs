//! Objectives and backbones through the program, and what a run has learned.

use std::fs;

use serde_json::Value;

use crate::program::{images, refuse, succeed};

const SMALL: &str = "--preset dupa-demo --set train.batch=8 --set model.hidden=64 --set model.depth=3 --set train.log_every=1 --steps 2";

#[test]
fn every_objective_trains_and_writes_down_its_terms() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (images(folder.path(), 3, 8), folder.path().join("data"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    let one_view = "--set objective.views=1 --set objective.lambda=0";
    let cases = [
        ("sit", "--set model.backbone=sit", "features"),
        ("nt-xent", "--set objective.similarity=nt-xent", "features"),
        ("k3", "--set objective.views=3 --set objective.resample_posterior=true", "features"),
        (
            "dual-path",
            "--set objective.lambda=0 --set model.projector_hidden=0 --set model.projector_out=0",
            "features",
        ),
        ("dispersive", &format!("{one_view} --set objective.dispersive=0.5"), "dispersive_loss"),
        ("contrastive", &format!("{one_view} --set objective.contrastive=0.05"), "contrastive_distance"),
    ];
    for (name, settings, key) in cases {
        let run = folder.path().join(name);
        succeed(&format!("train --data {{}} --run {{}} {SMALL} {settings}"), &[&data, &run]);
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{name}");
        assert!(
            lines.iter().all(|line| !line[key].is_null() && line["velocity_loss"].as_f64() > Some(0.0)),
            "{metrics}"
        );
        let has_views = key == "features";
        assert!(lines.iter().all(|line| line["features"].is_null() != has_views), "{metrics}");
    }
    let run = folder.path().join("refused");
    let line = format!("train --data {{}} --run {{}} {SMALL} --set objective.centre=true --set train.micro_batches=2");
    refuse(&line, &[&data, &run], "set train.micro_batches = 1");
}

#[test]
fn a_run_whose_every_step_is_skipped_ends_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (images(folder.path(), 3, 8), folder.path().join("data"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    let run = folder.path().join("run");
    let line = format!("train --data {{}} --run {{}} {SMALL}00 --set optimiser.lr=1e30 --set train.log_every=10");
    refuse(&line, &[&data, &run], "steps were not finite, and none of them was done");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!((10..15).contains(&metrics.lines().count()), "{metrics}");
}

#[test]
fn a_run_is_probed_on_held_out_data_and_says_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (images(folder.path(), 3, 12), folder.path().join("data"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    let run = folder.path().join("run");
    succeed(&format!("train --data {{}} --run {{}} {SMALL}"), &[&data, &run]);
    let probe = |words: &str| -> Value {
        serde_json::from_str(&succeed(&format!("probe --run {{}} --data {{}} --json {words}"), &[&run, &data])).unwrap()
    };
    let found = probe("--samples 8 --steps 2");
    assert_eq!((found["step"].as_u64(), found["count"].as_u64()), (Some(2), Some(32)));
    let by_t: Vec<f64> =
        found["velocity_loss_by_t"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(by_t.len(), 10);
    let mean = by_t.iter().sum::<f64>() / 10.0;
    assert!((found["velocity_loss"].as_f64().unwrap() - mean).abs() < 1e-9 && mean > 0.5, "{found}");
    let share = found["linear_probe"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share) && found["linear_probe_chance"].as_f64() >= Some(1.0 / 3.0), "{found}");
    assert!(found["latent_frechet"]["samples"].as_f64() > found["latent_frechet"]["real_halves"].as_f64(), "{found}");
    assert_eq!(probe("--samples 8 --steps 2"), found, "the same command measures the same");
    let shown = succeed("probe --run {} --data {} --samples 0 --t 0.5", &[&run, &data]);
    assert!(shown.contains("linear probe of the conditions at t = 0.5"), "{shown}");

    refuse("probe --run {} --data {} --t 2", &[&run, &data], "--t 2 must lie in 0..=1");
    refuse("probe --run {} --data {} --count 20", &[&run, &data], "at least 32 are needed");
    refuse("probe --run {} --data {}", &[&data, &data], "holds no run");
}
