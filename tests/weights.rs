//! Weights come from PyTorch and go back to it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::program::{images, refuse, run as run_program, succeed};

/// Files that PyTorch wrote; `stages/golden/README.md` says how.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("stages/golden").join(name)
}

/// Name, shape and bytes.
type Named = (String, Vec<usize>, Vec<u8>);

/// Every tensor of a safetensors file, and its metadata.
fn tensors(path: &Path) -> (Vec<Named>, HashMap<String, String>) {
    let bytes = fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> =
        file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec())).collect();
    all.sort();
    (all, header.metadata().clone().unwrap())
}

fn trained(folder: &Path, settings: &str) -> (PathBuf, PathBuf) {
    let images = images(folder, 3, 4);
    let (data, run) = (folder.join("data"), folder.join("run"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    let small = "--preset dupa-demo --set train.batch=4 --set model.hidden=32 --set model.depth=3 --steps 3";
    succeed(&format!("train --data {{}} --run {{}} {small} {settings}"), &[&data, &run]);
    (data, run)
}

#[test]
fn weights_of_sit_and_repa_are_imported_and_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, samples) = (folder.path().join("w.safetensors"), folder.path().join("samples"));
    let shown = succeed("import-weights {} --out {} --heads 2", &[&golden("weights_sit.pt"), &weights]);
    assert!(shown.starts_with("imported ema of a sit of 5144 values in f32: 2 blocks, width 8, 2 heads"), "{shown}");
    assert!(shown.contains("patch 2, 5 classes, latents 4 x 8 x 8 from "), "{shown}");
    let (all, metadata) = tensors(&weights);
    assert_eq!(metadata["format"], "dualpath-weights-1");
    assert!(all.iter().all(|(name, _, _)| name != "pos_embed"));
    let output = all.iter().find(|(name, _, _)| name == "final_layer.linear.weight").unwrap();
    assert_eq!(output.1, [16, 8]);

    let sample = "sample --weights {} --out {} --vae tiny --count 3 --steps 2";
    refuse(&format!("{sample} --share-encoder 2"), &[&weights, &samples], "only a DDT has an encoder of its own");
    succeed(sample, &[&weights, &samples]);
    let record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(samples.join("samples.json")).unwrap()).unwrap();
    assert!(record["step"].is_null() && record["class_names"][4] == "4", "{record}");
    let preset = "--preset sit-s/2 --set model.hidden=8 --set model.heads=2";
    succeed(&format!("{sample} {preset} --set model.depth=2"), &[&weights, &samples]);
    refuse(&format!("{sample} {preset}"), &[&weights, &samples], "model.depth is 2, and 12 by --preset sit-s/2");
    refuse(&format!("{sample} --classes 5"), &[&weights, &samples], "classes 0 to 4");

    // The raw weights and the averaged ones differ, and time is turned unless it is told otherwise.
    let bias = |line: &str| {
        let out = folder.path().join("other.safetensors");
        succeed(&format!("import-weights {{}} --out {{}} --heads 2 {line}"), &[&golden("weights_sit.pt"), &out]);
        let (all, _) = tensors(&out);
        all.into_iter().find(|(name, _, _)| name == "final_layer.linear.bias").unwrap().2
    };
    let (averaged, raw, as_is) = (bias("--ema"), bias("--raw"), bias("--time repa"));
    assert_ne!(averaged, raw);
    let value = |bytes: &[u8]| f32::from_le_bytes(bytes[..4].try_into().unwrap());
    assert_eq!(value(&averaged), -value(&as_is));
    assert_eq!(bias("--time reversed"), averaged);

    let output = run_program("import-weights {} --out {} --heads 3", &[&golden("weights_repa.pt"), &weights]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("left out 6 tensors of further projectors"), "{said}");
    assert!(!said.contains("time"), "REPA's time is ours: {said}");
}

#[test]
fn a_run_is_exported_and_imported_again_with_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (_, run) = trained(folder.path(), "");
    let at = |name: &str| folder.path().join(name);
    let checkpoint = run.join("checkpoints/step-00000003.safetensors");
    let (stored, _) = tensors(&checkpoint);
    for (flag, prefix) in [("--ema", "ema."), ("--raw", "model."), ("", "ema.")] {
        let line = format!("export-weights {{}} --out {{}} {flag}");
        let shown = succeed(&line, &[&run, &at("exported.safetensors")]);
        assert!(shown.contains("of a ddt of") && shown.contains("3 blocks (2 of them encode), width 32"), "{shown}");
        let (exported, metadata) = tensors(&at("exported.safetensors"));
        let expected: Vec<_> = stored
            .iter()
            .filter_map(|(name, shape, bytes)| {
                Some((name.strip_prefix(prefix)?.to_owned(), shape.clone(), bytes.clone()))
            })
            .collect();
        let (position, own): (Vec<_>, Vec<_>) = exported.into_iter().partition(|(name, _, _)| name == "pos_embed");
        assert_eq!(own, expected, "{flag}");
        assert_eq!(position[0].1, [1, 16, 32]);
        let model: serde_json::Value = serde_json::from_str(&metadata["model"]).unwrap();
        assert_eq!((&model["heads"], &model["encoder_depth"]), (&4.into(), &2.into()));

        // The checkpoint itself, the way over .pt, and back.
        succeed(&line, &[&checkpoint, &at("from-checkpoint.safetensors")]);
        assert_eq!(tensors(&at("from-checkpoint.safetensors")).0.len(), own.len() + 1);
        succeed(&line, &[&run, &at("exported.pt")]);
        succeed("import-weights {} --out {}", &[&at("exported.safetensors"), &at("again.safetensors")]);
        assert_eq!(tensors(&at("again.safetensors")).0, own, "{flag}");
        let hints = "--heads 4 --encoder-depth 2";
        succeed(&format!("import-weights {{}} --out {{}} {hints}"), &[&at("exported.pt"), &at("again.safetensors")]);
        assert_eq!(tensors(&at("again.safetensors")).0, own, "{flag} .pt");
    }

    // The same pictures from the run and from what was exported of it.
    let picture = |line: &str, source: &Path| {
        let out = at(&format!("samples{line}"));
        succeed(&format!("sample {line} {{}} --out {{}} --vae tiny --count 2 --steps 3"), &[source, &out]);
        fs::read(out.join("000001.png")).unwrap()
    };
    succeed("export-weights {} --out {}", &[&run, &at("exported.safetensors")]);
    assert_eq!(picture("--run", &run), picture("--weights", &at("exported.safetensors")));
}

/// A run exports its newest readable weights, and a checkpoint that was copied elsewhere says itself what it is.
#[test]
fn a_damaged_checkpoint_is_passed_over_and_a_copied_one_needs_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let (_, run) = trained(folder.path(), "--set train.checkpoint_every=1 --set model.decoder_label=true");
    let at = |name: &str| folder.path().join(name);
    let [second, third] = [2, 3].map(|step| run.join(format!("checkpoints/step-{step:08}.safetensors")));
    let (copy, out) = (at("copy.safetensors"), at("out.safetensors"));
    fs::copy(&second, &copy).unwrap();
    let averaged = |path: &Path| {
        let mut all = tensors(path).0;
        all.retain_mut(|(name, _, _)| name.strip_prefix("ema.").map(str::to_owned).map(|own| *name = own).is_some());
        all
    };
    let expected = averaged(&second);
    let exported = |path: &Path| -> Vec<Named> {
        tensors(path).0.into_iter().filter(|(name, _, _)| name != "pos_embed").collect()
    };
    for command in ["import-weights", "export-weights"] {
        let shown = succeed(&format!("{command} {{}} --out {{}}"), &[&copy, &out]);
        assert!(shown.contains("3 blocks (2 of them encode), width 32, 4 heads"), "{shown}");
        assert_eq!(exported(&out), expected);
        let model: serde_json::Value = serde_json::from_str(&tensors(&out).1["model"]).unwrap();
        assert_eq!(model["decoder_label"], true);
    }
    refuse("export-weights {} --out {}", &[&copy, &at("out.pt")], "model.decoder_label = true, which no tensor");
    assert!(!at("out.pt").exists());

    let whole = fs::read(&third).unwrap();
    let place = whole.windows(21).position(|window| window == b"dualpath-checkpoint-1").unwrap();
    let newer: Vec<u8> = [&whole[..place + 20], b"7", &whole[place + 21..]].concat();
    // The last value of the average; moments are behind it.
    let mut flipped = whole.clone();
    let data = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    flipped[data + (whole.len() - data - 4) / 2 + 3] ^= 1;
    for (bytes, told) in
        [(&newer[..], "dualpath-checkpoint-7"), (&flipped, "of ema are not"), (&whole[..5000], "step-00000003")]
    {
        fs::write(&third, bytes).unwrap();
        let output = run_program("export-weights {} --out {}", &[&run, &out]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.contains("warning: ") && said.contains(told), "{said}");
        assert!(said.contains("the one of step 2 is used"), "{said}");
        assert_eq!(exported(&out), expected, "{told}");
        assert_eq!(fs::read(&third).unwrap(), bytes, "{told}");
    }
    // Asked for itself, it is refused.
    fs::write(&third, &newer).unwrap();
    refuse("export-weights {} --out {}", &[&third, &out], "dualpath-checkpoint-7");
    refuse("import-weights {} --out {}", &[&third, &out], "use the program that wrote it");
    fs::write(&third, &flipped).unwrap();
    refuse("export-weights {} --out {}", &[&third, &out], "the values of ema are not those that were written");
    // The weights as the optimiser left them are whole.
    succeed("export-weights {} --out {} --raw", &[&third, &out]);
}

#[test]
fn what_cannot_be_imported_or_exported_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let out = at("out.safetensors");
    refuse("import-weights {} --out {}", &[&at("missing.pt"), &out], "missing.pt: No such file");
    refuse("import-weights {} --out {}", &[&golden("weights_sit.pt"), &out], "--heads");
    refuse("import-weights {} --out {} --heads 3", &[&golden("weights_sit.pt"), &out], "model.heads");
    refuse("import-weights {} --out {}", &[&golden("README.md"), &out], "neither a file of torch.save nor");
    refuse("import-weights {} --out {}", &[&golden("vae.safetensors"), &out], "holds no SiT");
    for torch in ["out.pt", "out.pth"] {
        refuse("import-weights {} --out {}", &[&golden("weights_sit.pt"), &at(torch)], "export-weights");
    }
    refuse("import-weights {} --out {} --heads 3 --latent 0", &[&golden("weights_repa.pt"), &out], "--latent 0 must");
    let cut = at("cut.pt");
    let bytes = fs::read(golden("weights_sit.pt")).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    refuse("import-weights {} --out {} --heads 2", &[&cut, &out], "cut.pt: the zip archive has no end record");
    refuse("export-weights {} --out {}", &[folder.path(), &out], "holds no run");
    let sample = "sample --weights {} --out {} --vae tiny";
    refuse(sample, &[&golden("weights_sit.pt"), &at("samples")], "pipeline import-weights");
    assert!(!out.exists() && !at("samples").exists());
}
