//! `pipeline probe` as a whole program.

use serde_json::Value;

use crate::program::{images, refuse, succeed};

const SMALL: &str = "--preset dupa-demo --set train.batch=8 --set model.hidden=64 --set model.depth=3 --set train.log_every=1 --steps 2";

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

    let sweep = probe("--samples 0 --layers all --t 0,0.5");
    let layers: Vec<_> =
        sweep["layers"].as_array().unwrap().iter().map(|l| (l["t"].as_f64(), l["layer"].as_u64())).collect();
    let expected: Vec<_> = [0.0, 0.5].iter().flat_map(|t| (1..=3).map(|layer| (Some(*t), Some(layer)))).collect();
    assert_eq!(layers, expected);
    let aligned = sweep["aligned_layer"].as_u64().unwrap() as usize;
    assert_eq!(
        sweep["layers"][aligned - 1]["linear_probe"],
        found["linear_probe"],
        "one pass gives what another gives"
    );
    assert_eq!(sweep["linear_probe"], found["linear_probe"]);
    let shown = succeed("probe --run {} --data {} --samples 0 --layers 3,1", &[&run, &data]);
    assert!(shown.contains("linear probe by layer") && !shown.contains("\n      2 "), "{shown}");
    refuse("probe --run {} --data {} --layers 4", &[&run, &data], "--layers 4: the network has the blocks 1 to 3");

    refuse("probe --run {} --data {} --t 2", &[&run, &data], "--t 2 must lie in 0..=1");
    refuse("probe --run {} --data {} --count 20", &[&run, &data], "at least 32 are needed");
    refuse("probe --run {} --data {}", &[&data, &data], "holds no run");
}
