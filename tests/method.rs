//! Objectives and backbones through the program.

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
