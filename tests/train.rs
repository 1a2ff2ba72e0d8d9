//! `pipeline train` as a whole program: stopped in every way, out of disk, with damaged checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::program::{images, killed_when, random, refuse, run, start, succeed};

/// A training that may also be made longer: its learning rate does not depend on the length.
const TRAIN: &str = "train --data {} --run {} --preset dupa-demo --set train.batch=8 --set model.hidden=64 \
    --set model.depth=3 --set optimiser.decay_fraction=0 --set train.log_every=1 --set train.checkpoint_every=5";

fn data(folder: &Path) -> PathBuf {
    let images = images(folder, 2, 12);
    let data = folder.join("data");
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    data
}

/// Every file of the checkpoints with its bytes.
fn checkpoints(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn names(run: &Path) -> Vec<String> {
    checkpoints(run).into_keys().collect()
}

/// Step, loss and gradient norm of every line of metrics: what does not depend on the clock.
fn curve(run: &Path) -> Vec<[String; 3]> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        ["step", "velocity_loss", "gradient_norm"].map(|key| line[key].to_string())
    });
    lines.collect()
}

#[test]
fn killed_at_random_points_and_run_again_gives_the_same_checkpoints_and_curves() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let line = format!("{TRAIN} --steps 40 --set train.keep_every=15");
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    succeed(&line, &[&data, &whole]);
    let (expected, took) = (checkpoints(&whole), begun.elapsed());
    assert_eq!(names(&whole), [15, 30, 35, 40].map(|step| format!("step-{step:08}.safetensors")));

    let (mut kills, mut state, mut left) = (0, 2026, Vec::new());
    while kills < 12 {
        let run = folder.path().join(format!("killed-{kills}"));
        // Killed again and again in one run, until it gets to its end.
        while kills < 12 {
            let deadline = Instant::now() + took.mul_f64(random(&mut state));
            if !killed_when(&mut start(&line, &[&data, &run]), || Instant::now() >= deadline) {
                break;
            }
            kills += 1;
            left.push(fs::read_dir(run.join("checkpoints")).map_or(0, Iterator::count));
        }
        succeed(&line, &[&data, &run]);
        assert!(checkpoints(&run) == expected, "{:?} after {kills} kills, which left {left:?}", names(&run));
        assert_eq!(curve(&run), curve(&whole));
    }
    assert!(left.iter().any(|files| *files > 0), "no kill fell behind a checkpoint: {left:?}");
}

/// A signal in the middle of training: a checkpoint is saved, the message says how to continue, the exit code is that of
/// the signal, and the same command ends with the very bytes of a run that was never stopped, with another number of
/// workers too.
#[test]
fn a_run_stopped_by_a_signal_says_so_and_continues_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let whole = folder.path().join("whole");
    // Enough that the signal arrives long before the end.
    let line = format!("{TRAIN} --steps 150 --set train.checkpoint_every=1000");
    succeed(&format!("{line} --workers 1"), &[&data, &whole]);

    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let run = folder.path().join(signal);
        let mut child = start(&format!("{line} --workers 3"), &[&data, &run]).stderr(Stdio::piped()).spawn().unwrap();
        // The first lines of progress say that the run is under way.
        let mut stderr = child.stderr.take().unwrap();
        let (mut byte, mut text) = ([0], Vec::new());
        while !text.ends_with(b"step 2/") {
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&text));
            text.push(byte[0]);
        }
        let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{rest}");
        assert!(rest.contains("run the same command to continue"), "{rest}");

        let steps = curve(&run).len();
        assert!(steps < 150, "{steps}");
        assert_eq!(names(&run), [format!("step-{steps:08}.safetensors")]);
        succeed(&format!("{line} --workers 2"), &[&data, &run]);
        let last = "step-00000150.safetensors";
        assert!(checkpoints(&run)[last] == checkpoints(&whole)[last], "{signal}");
        assert_eq!(curve(&run), curve(&whole));
    }
}

#[test]
fn a_full_disk_is_one_clear_error_and_the_checkpoints_before_it_stay() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let (whole, run) = (folder.path().join("whole"), folder.path().join("run"));
    let line = |steps: u64| format!("{TRAIN} --steps {steps}");
    succeed(&line(20), &[&data, &whole]);
    succeed(&line(10), &[&data, &run]);
    let before = checkpoints(&run);
    let size = before.values().map(Vec::len).max().unwrap();

    // What a full disk is to a process: a write that fails half way. Signal 25 is SIGXFSZ; blocks are of 512 bytes.
    let shell = format!(
        "trap '' 25; ulimit -f {}; exec '{}' {}",
        size / 1024,
        env!("CARGO_BIN_EXE_pipeline"),
        line(20).replacen("{}", &data.display().to_string(), 1).replacen("{}", &run.display().to_string(), 1)
    );
    let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("step-00000015.safetensors"), "{stderr}");
    assert!(errors[0].contains("too large"), "{stderr}");
    assert!(checkpoints(&run) == before, "{:?}", names(&run));
    succeed(&line(20), &[&data, &run]);
    assert!(checkpoints(&run) == checkpoints(&whole));
}

#[test]
fn a_checkpoint_that_is_damaged_or_newer_costs_the_steps_since_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let (whole, begun) = (folder.path().join("whole"), folder.path().join("begun"));
    let line = |steps: u64| format!("{TRAIN} --steps {steps}");
    succeed(&line(15), &[&data, &whole]);
    succeed(&line(10), &[&data, &begun]);
    let good = fs::read(begun.join("checkpoints/step-00000010.safetensors")).unwrap();
    let place = good.windows(21).position(|window| window == b"dualpath-checkpoint-1").unwrap();
    let mut newer = good.clone();
    newer[place + 20] = b'2';
    let half = &good[..good.len() / 2];
    for (bytes, told, aside) in
        [(half, "step-00000010.safetensors is not", "bad"), (&newer, "\"dualpath-checkpoint-2\"", "newer-1")]
    {
        let training = folder.path().join(aside);
        fs::create_dir_all(training.join("checkpoints")).unwrap();
        for file in ["config.toml", "metrics.jsonl", "checkpoints/step-00000005.safetensors"] {
            fs::copy(begun.join(file), training.join(file)).unwrap();
        }
        let newest = training.join("checkpoints/step-00000010.safetensors");
        fs::write(&newest, bytes).unwrap();
        let sampled = run(
            "sample --run {} --out {} --count 1 --steps 2",
            &[&training, &folder.path().join(format!("samples-{aside}"))],
        );
        assert!(String::from_utf8_lossy(&sampled.stderr).contains("the one of step 5 is used"));
        assert_eq!(fs::read(&newest).unwrap(), bytes, "{aside}");
        let output = run(&line(15), &[&data, &training]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        let warnings: Vec<_> = stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(told), "{stderr}");
        assert!(warnings[0].contains(&format!(".{aside}")) && stderr.contains("at step 5"), "{stderr}");
        assert_eq!(curve(&training), curve(&whole));
        let mut expected = checkpoints(&whole);
        expected.insert(format!("step-00000010.safetensors.{aside}"), bytes.to_vec());
        assert!(checkpoints(&training) == expected, "{:?}", names(&training));
    }
    // One of a newer version alone is refused.
    fs::remove_file(begun.join("checkpoints/step-00000005.safetensors")).unwrap();
    fs::write(begun.join("checkpoints/step-00000010.safetensors"), newer).unwrap();
    refuse(&line(15), &[&data, &begun], "\"dualpath-checkpoint-2\"");
}
