use safetensors::SafeTensors;
use tch::{Device, Kind};

use super::*;
use crate::method::parameters::views;
use crate::train::equality::{DATA, config, save, trainer};

fn steps(folder: &Path) -> Vec<u64> {
    list(folder).unwrap().into_iter().map(|(step, _)| step).collect()
}

/// A folder with the checkpoints of steps 3 and 12, and the trainer that wrote them.
fn two() -> (tempfile::TempDir, Trainer, [PathBuf; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(1, Kind::Float);
    let paths = [3, 12].map(|step| {
        trainer.step = step;
        save(&trainer, folder.path())
    });
    (folder, trainer, paths)
}

/// Where the tensors of a file begin.
fn data_at(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn the_newest_are_kept_and_half_a_file_is_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(1, Kind::Float);
    std::fs::create_dir_all(folder.path()).unwrap();
    std::fs::write(folder.path().join("step-00000002.tmp"), "half").unwrap();
    for step in [3, 12, 5] {
        trainer.step = step;
        save(&trainer, folder.path());
    }
    assert_eq!(steps(folder.path()), [5, 12]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_checkpoint_is_a_safetensors_file_that_alone_says_what_it_is() {
    let (_folder, trainer, [_, path]) = two();
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let specs = trainer.parameters.specs();
    assert_eq!(file.len(), 4 * specs.len() + 1);
    let weight = views(specs, &trainer.average)["blocks.0.attn.qkv.weight"].flatten(0, -1);
    let expected: Vec<u8> = Vec::<f32>::try_from(weight).unwrap().into_iter().flat_map(f32::to_le_bytes).collect();
    let stored = file.tensor("ema.blocks.0.attn.qkv.weight").unwrap();
    assert_eq!((stored.shape(), stored.data()), (&[96, 32][..], &expected[..]));
    assert_eq!(super::config(&path).unwrap().as_deref(), Some("batch = 8"));
    assert_eq!(data_at(&bytes) % 8, 0);
}

#[test]
fn what_is_of_another_machine_dataset_or_model_is_said_or_refused() {
    let (folder, mut trainer, [_, path]) = two();
    let elsewhere = load(&mut trainer, &path, "data", "gpu").unwrap();
    assert_eq!(elsewhere.as_deref(), Some("cpu"));
    let message = restore(&mut trainer, folder.path(), "other", "cpu").unwrap_err().to_string();
    assert!(message.contains("step-00000012") && message.contains("was trained on dataset data"), "{message}");

    let mut other = config(1);
    other.model.hidden = 16;
    let mut other = Trainer::new(other, DATA, Device::Cpu, Kind::Float).unwrap();
    let message = restore(&mut other, folder.path(), "data", "cpu").unwrap_err().to_string();
    assert!(message.contains("step-00000012") && message.contains("this model needs"), "{message}");
    assert_eq!(steps(folder.path()), [3, 12]);
}

/// Every way in which a file can be broken: the one before it is used, and the broken one is set aside.
#[test]
fn a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used() {
    type Damage = fn(&mut Vec<u8>);
    let forms: [(&str, Damage); 7] = [
        ("it has 0 bytes", Vec::clear),
        ("cut short in its header", |bytes| bytes.truncate(100)),
        ("its header says", |bytes| bytes.truncate(bytes.len() - 1)),
        ("its header says", |bytes| bytes.push(0)),
        ("its header is damaged", |bytes| bytes[20] = b'}'),
        ("of count are not those", |bytes| {
            let at = data_at(bytes);
            bytes[at] ^= 1;
        }),
        ("of exp_avg_sq are not those", |bytes| *bytes.last_mut().unwrap() ^= 1),
    ];
    for (what, damage) in forms {
        let (folder, mut trainer, [_, path]) = two();
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let found = restore(&mut trainer, folder.path(), "data", "cpu").unwrap().unwrap();
        assert_eq!((found.step, trainer.step, found.content), (3, 3, None), "{what}");
        let told: Vec<_> = found.passed_over.iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains("step-00000012") && told[0].contains(what), "{what}: {told:?}");
        assert_eq!(steps(folder.path()), [3]);
        let aside = folder.path().join("step-00000012.safetensors.bad");
        assert_eq!(std::fs::read(aside).unwrap(), bytes, "{what}");
    }
}

#[test]
fn where_none_is_readable_nothing_is_touched_and_the_newest_is_named() {
    let (folder, mut trainer, paths) = two();
    paths.iter().for_each(|path| std::fs::write(path, "no checkpoint").unwrap());
    let message = restore(&mut trainer, folder.path(), "data", "cpu").unwrap_err().to_string();
    assert!(message.contains("step-00000012.safetensors is not a readable checkpoint"), "{message}");
    assert!(message.contains("there is no older one"), "{message}");
    assert_eq!(steps(folder.path()), [3, 12]);
    let empty = folder.path().join("empty");
    assert!(restore(&mut trainer, &empty, "data", "cpu").unwrap().is_none());
}

/// Gives a checkpoint the format of another number; its bytes then.
fn renumber(path: &Path, number: u8) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    let place = bytes.windows(20).position(|window| window == b"dualpath-checkpoint-").unwrap();
    bytes[place + 20] = number;
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn one_of_a_newer_program_is_passed_over_by_both_names_and_stays() {
    let (folder, mut trainer, [_, second]) = two();
    let newer = renumber(&second, b'7');
    let found = restore(&mut trainer, folder.path(), "data", "cpu").unwrap().unwrap();
    assert_eq!((found.step, trainer.step), (3, 3));
    let told: Vec<_> = found.passed_over.iter().map(ToString::to_string).collect();
    let names = ["step-00000012", "\"dualpath-checkpoint-7\"", "\"dualpath-checkpoint-1\""];
    assert!(told.len() == 1 && names.iter().all(|name| told[0].contains(name)), "{told:?}");

    // It neither counts among the two that are kept nor goes, though the run gets behind it.
    for step in [5, 9, 14, 16] {
        trainer.step = step;
        save(&trainer, folder.path());
    }
    assert_eq!(steps(folder.path()), [12, 14, 16]);
    assert_eq!(std::fs::read(&second).unwrap(), newer);
    // It gives its name to the checkpoint of the same step, and keeps its bytes.
    for aside in ["step-00000012.safetensors.newer-1", "step-00000012.safetensors.newer-2"] {
        std::fs::write(&second, &newer).unwrap();
        trainer.step = 12;
        save(&trainer, folder.path());
        assert_eq!(std::fs::read(folder.path().join(aside)).unwrap(), newer);
    }

    // No number is no version.
    let (folder, mut trainer, [_, second]) = two();
    renumber(&second, b'x');
    assert_eq!(restore(&mut trainer, folder.path(), "data", "cpu").unwrap().unwrap().step, 3);
    assert!(!second.exists());
}

#[test]
fn where_all_are_of_newer_programs_or_damaged_that_is_said_and_none_is_touched() {
    for damaged in [false, true] {
        let (folder, mut trainer, [first, second]) = two();
        renumber(&first, b'7');
        match damaged {
            true => std::fs::write(&second, "no checkpoint").unwrap(),
            false => drop(renumber(&second, b'8')),
        }
        let message = restore(&mut trainer, folder.path(), "data", "cpu").unwrap_err().to_string();
        let expected = if damaged { "dualpath-checkpoint-7" } else { "dualpath-checkpoint-8" };
        assert!(message.contains(expected) && message.contains("use the program that wrote it"), "{message}");
        assert_eq!(steps(folder.path()), [3, 12]);
        assert!(first.exists() && second.exists());
    }
}

#[test]
fn the_average_is_read_without_the_rest_of_the_file() {
    let (_folder, trainer, [_, path]) = two();
    let specs = trainer.parameters.specs();
    let whole = std::fs::read(&path).unwrap();
    let range = |group: &str| {
        let file = SafeTensors::deserialize(&whole).unwrap();
        let of_group = file.iter().filter(|(name, _)| name.starts_with(&format!("{group}.")));
        let places = of_group.map(|(_, view)| view.data().as_ptr() as usize - whole.as_ptr() as usize);
        places.min().unwrap()
    };
    let damage = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at + 2] ^= 8;
        std::fs::write(&path, bytes).unwrap();
    };
    for other in ["model", "exp_avg", "exp_avg_sq"] {
        damage(range(other));
        assert!(load_average(&path, specs).unwrap().equal(&trainer.average), "{other}");
    }
    damage(range("ema"));
    let message = load_average(&path, specs).unwrap_err().to_string();
    assert!(message.contains("the values of ema"), "{message}");
}

/// As earlier programs wrote them: tensors in another order, neither checksums nor a configuration.
#[test]
fn a_file_without_checksums_and_in_another_order_is_read() {
    let (folder, trainer, [_, path]) = two();
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut marks = header.metadata().clone().unwrap();
    marks.retain(|key, _| key != "config" && !key.starts_with("xxh3."));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let folder = folder.path().join("old");
    std::fs::create_dir(&folder).unwrap();
    let old = folder.join("step-00000012.safetensors");
    std::fs::write(&old, safetensors::serialize(tensors.iter(), Some(marks)).unwrap()).unwrap();
    let mut other = Trainer::new(config(1), DATA, Device::Cpu, Kind::Float).unwrap();
    assert_eq!(restore(&mut other, &folder, "data", "cpu").unwrap().unwrap().path, old);
    assert!(other.parameters.master.equal(&trainer.parameters.master) && other.step == 12);
    assert_eq!(super::config(&old).unwrap(), None);
}
