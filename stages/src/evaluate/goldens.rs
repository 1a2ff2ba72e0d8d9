//! The five numbers from given features, against torch-fidelity and the ADM evaluator's arithmetic
//! (`stages/golden/evaluation.py`).

use std::collections::BTreeMap;

use tch::Tensor;

use super::frechet::Gaussian;
use super::inception_score::InceptionScore;
use super::moments::Moments;
use super::precision_recall::{Arithmetic, PrecisionRecall};

fn golden() -> BTreeMap<String, Tensor> {
    let path = format!("{}/golden/metrics.safetensors", env!("CARGO_MANIFEST_DIR"));
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

#[test]
fn the_frechet_distance_is_torch_fidelitys_with_more_and_with_fewer_samples_than_features() {
    let golden = golden();
    let gaussian = |name: &str| {
        let mut moments = Moments::new(24);
        moments.push(&golden[name]);
        moments.finish().unwrap()
    };
    for (name, tolerance) in [("samples", 1e-9), ("few", 1e-6)] {
        let found = gaussian(name).distance(&gaussian("reference")).unwrap();
        let exact = golden[&format!("fid.{name}")].double_value(&[]);
        assert!((found / exact - 1.0).abs() < tolerance, "{name}: {found} for {exact}");
        let direct = Gaussian::of(&golden[name]).distance(&Gaussian::of(&golden["reference"])).unwrap();
        assert!((direct / exact - 1.0).abs() < tolerance, "{name}: {direct} for {exact}");
    }
}

#[test]
fn the_inception_score_is_torch_fidelitys_in_one_part_and_in_three() {
    let golden = golden();
    for (parts, split) in [(1, 5000), (3, 100)] {
        let mut score = InceptionScore::in_parts_of(split);
        for batch in golden["logits"].split(64, 0) {
            score.push(&batch);
        }
        let (found, of) = score.finish().unwrap();
        let exact = golden[&format!("is.{parts}")].double_value(&[]);
        assert_eq!(of, parts);
        assert!((found / exact - 1.0).abs() < 1e-9, "{parts} parts: {found} for {exact}");
    }
}

#[test]
fn precision_and_recall_are_torch_fidelitys_in_f32_and_the_adm_evaluators_in_f16() {
    let golden = golden();
    for (arithmetic, name) in [(Arithmetic::Single, "pr.f32"), (Arithmetic::Half, "pr.f16")] {
        let [samples, reference] = ["samples", "reference"].map(|key| &golden[key] + 2.5);
        let found = PrecisionRecall::of(&samples, &reference, arithmetic);
        let exact = Vec::<f64>::try_from(&golden[name]).unwrap();
        assert!(
            (found.precision - exact[0]).abs() < 1e-7 && (found.recall - exact[1]).abs() < 1e-7,
            "{name}: {found:?} for {exact:?}"
        );
    }
}
