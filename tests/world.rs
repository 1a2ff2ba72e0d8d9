//! `pipeline train` in several processes: started in every way, equal to one, and ended by a rank that is lost.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::program::{images, pipeline, refuse, succeed};

// In f32 whatever the processor would choose: in bf16 the order of summation shows in the fourth digit of a norm.
const MODEL: &str = "--preset dupa-demo --devices cpu --precision f32 --set train.batch=8 --set model.hidden=64 --set model.depth=3 \
    --set optimiser.decay_fraction=0 --set train.log_every=1 --set train.checkpoint_every=2 --set train.sample_every=0 --timeout 60";

fn data(folder: &Path) -> PathBuf {
    let images = images(folder, 2, 12);
    let data = folder.join("data");
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    data
}

/// A port that nobody has at the moment.
fn port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn train(data: &Path, run: &Path, words: &str) -> Command {
    let mut command = pipeline();
    command.args(["train", "--data"]).arg(data).arg("--run").arg(run);
    command.args(words.split_whitespace()).env("OMP_NUM_THREADS", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Two processes that are told by flags, the first of which writes `run`, the other a folder that it must not make.
fn pair(data: &Path, run: &Path, words: [&str; 2]) -> [Child; 2] {
    let port = port();
    let of = |rank: usize| {
        let run = if rank == 0 { run.to_path_buf() } else { run.with_extension("never") };
        let place = format!("--world 2 --rank {rank} --master 127.0.0.1:{port}");
        train(data, &run, &format!("{} {place}", words[rank])).spawn().unwrap()
    };
    [of(0), of(1)]
}

fn end(child: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[track_caller]
fn end_well(children: impl IntoIterator<Item = Child>) {
    for child in children {
        let (code, stderr) = end(child);
        assert_eq!(code, Some(0), "{stderr}");
    }
}

/// Step, velocity loss, alignment loss and gradient norm of every line of metrics.
fn curve(run: &Path) -> Vec<[f64; 4]> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        ["step", "velocity_loss", "alignment_loss", "gradient_norm"].map(|key| line[key].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

#[track_caller]
fn same(run: &Path, expected: &[[f64; 4]]) {
    let found = curve(run);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-4 * b.abs(), "{found:?} for {expected:?}");
        }
    }
}

fn steps(run: &Path) -> f64 {
    // A line may be half written.
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let mut whole = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    whole.next_back().map_or(0.0, |line| line["step"].as_f64().unwrap())
}

fn wait_for_step(run: &Path, step: f64) {
    let begun = Instant::now();
    while steps(run) < step {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn processes_and_devices_train_as_one_process_does_whoever_started_them() {
    let folder = tempfile::tempdir().unwrap();
    let (data, at) = (data(folder.path()), |name: &str| folder.path().join(name));
    let words = format!("{MODEL} --steps 6");
    end_well([train(&data, &at("one"), &words).spawn().unwrap()]);
    let expected = curve(&at("one"));
    assert_eq!(expected.len(), 6);

    end_well(pair(&data, &at("flags"), [&words, &words]));
    same(&at("flags"), &expected);
    assert!(!at("flags.never").exists());
    // Two ranks in one process.
    end_well([train(&data, &at("threads"), &words.replace("--devices cpu", "--devices cpu:2")).spawn().unwrap()]);
    same(&at("threads"), &expected);

    let variables = |name: &str, of: &dyn Fn(usize) -> Vec<(&'static str, String)>, processes: usize, words: &str| {
        let start = |process| train(&data, &at(name), words).envs(of(process)).spawn().unwrap();
        end_well((0..processes).map(start).collect::<Vec<_>>());
        same(&at(name), &expected);
    };
    let torchrun_port = port();
    let torchrun = |rank: usize| {
        vec![
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", "4".to_owned()),
            ("MASTER_ADDR", "localhost".to_owned()),
            ("MASTER_PORT", torchrun_port.clone()),
        ]
    };
    variables("torchrun", &torchrun, 4, &words);
    let slurm_port = port();
    let slurm = |process: usize| {
        vec![
            ("SLURM_STEP_NUM_TASKS", "2".to_owned()),
            ("SLURM_PROCID", process.to_string()),
            ("SLURM_LOCALID", process.to_string()),
            ("SLURM_STEP_NODELIST", "localhost".to_owned()),
            ("SLURM_JOB_ID", "4711".to_owned()),
            ("MASTER_PORT", slurm_port.clone()),
        ]
    };
    variables("slurm", &slurm, 2, &words.replace("--devices cpu", "--devices cpu:2"));
}

#[test]
fn a_run_goes_on_in_another_world() {
    let folder = tempfile::tempdir().unwrap();
    let (data, at) = (data(folder.path()), |name: &str| folder.path().join(name));
    let words = |steps: u64| format!("{MODEL} --steps {steps}");
    end_well([train(&data, &at("one"), &words(9)).spawn().unwrap()]);
    let expected = curve(&at("one"));
    end_well(pair(&data, &at("moved"), [&words(3), &words(3)]));
    end_well([train(&data, &at("moved"), &words(6)).spawn().unwrap()]);
    // The second process says nothing of what is trained, and does what the first does.
    end_well(pair(&data, &at("moved"), [&words(9), "--devices cpu --precision f32"]));
    same(&at("moved"), &expected);
    // Complete: both say so, or nothing.
    end_well(pair(&data, &at("moved"), [&words(9), "--devices cpu --precision f32"]));
}

#[test]
fn processes_that_were_started_differently_refuse_to_begin() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let run = folder.path().join("run");
    let (ours, theirs) = (format!("{MODEL} --steps 6"), format!("{MODEL} --steps 6 --set optimiser.lr=0.5"));
    for child in pair(&data, &run, [&ours, &theirs]) {
        let (code, stderr) = end(child);
        assert_eq!(code, Some(2), "{stderr}");
        let said = "the processes are not to do the same: optimiser.lr is 0.0005 on process 0 and 0.5 on process 1";
        assert!(stderr.contains(said) || stderr.contains("optimiser.lr is "), "{stderr}");
    }
    // The first fails for a reason of its own: the other is told it, and waits for nothing.
    let begun = Instant::now();
    for child in pair(&data, &run, [&format!("{MODEL} --set train.batch=0"), "--devices cpu --precision f32"]) {
        let (code, stderr) = end(child);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("train.batch must be at least 1"), "{stderr}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!(!run.exists());
}

#[test]
fn a_rank_that_is_lost_ends_the_run_with_its_name_and_the_run_goes_on_from_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (data, at) = (data(folder.path()), |name: &str| folder.path().join(name));
    let words = format!("{MODEL} --steps 100000").replace("--timeout 60", "--timeout 6");
    for (lost, how) in [(1, "-KILL"), (1, "-STOP"), (0, "-KILL"), (0, "-STOP")] {
        let run = at(&format!("lost-{lost}{how}"));
        let children = pair(&data, &run, [&words, &words]);
        wait_for_step(&run, 5.0);
        let begun = Instant::now();
        signal(&children[lost], how);
        let [first, second] = children;
        let (mut gone, left) = if lost == 0 { (first, second) } else { (second, first) };
        let (code, stderr) = end(left);
        let took = begun.elapsed();
        gone.kill().unwrap();
        gone.wait().unwrap();
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(&format!("rank {lost} no longer answers")), "{how} {lost}: {stderr}");
        // What docs/examples promises: half a minute after --timeout.
        assert!(took < Duration::from_secs(36), "{how} {lost}: {took:?}");
        let done = steps(&run);
        let words = format!("{MODEL} --steps {}", done as u64 + 2);
        end_well(pair(&data, &run, [&words, &words]));
        assert!(curve(&run).len() as f64 >= done);
    }
}

#[test]
fn of_four_ranks_only_the_lost_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (data, run, port) = (data(folder.path()), folder.path().join("run"), port());
    let start = |rank: usize| {
        let words = format!("{MODEL} --steps 100000 --world 4 --rank {rank} --master 127.0.0.1:{port}");
        train(&data, &run, &words).spawn().unwrap()
    };
    let mut children: Vec<Child> = (0..4).map(start).collect();
    wait_for_step(&run, 3.0);
    let mut gone = children.remove(2);
    gone.kill().unwrap();
    gone.wait().unwrap();
    for child in children {
        let (code, stderr) = end(child);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("rank 2 no longer answers"), "{stderr}");
        let others = ["rank 0 no", "rank 1 no", "rank 3 no", "rank 1, ", "rank 2, "];
        assert!(!others.iter().any(|other| stderr.contains(other)), "{stderr}");
    }
}

#[test]
fn a_signal_to_one_process_stops_all_of_them_at_the_same_step() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    for asked in [0, 1] {
        let run = folder.path().join(format!("run-{asked}"));
        let words = format!("{MODEL} --steps 100000");
        let children = pair(&data, &run, [&words, &words]);
        wait_for_step(&run, 3.0);
        signal(&children[asked], "-TERM");
        let ended = children.map(end);
        assert_eq!(ended[asked].0, Some(143), "{}", ended[asked].1);
        assert_eq!(ended[1 - asked].0, Some(130), "{}", ended[1 - asked].1);
        let done = steps(&run);
        let checkpoint = run.join(format!("checkpoints/step-{:08}.safetensors", done as u64));
        assert!(checkpoint.exists(), "{}", ended[0].1);
        let words = format!("{MODEL} --steps {}", done as u64 + 2);
        end_well(pair(&data, &run, [&words, &words]));
    }
}

#[test]
fn processes_fill_one_folder_of_samples_and_a_share_that_was_lost_is_made_later() {
    let folder = tempfile::tempdir().unwrap();
    let (data, at) = (data(folder.path()), |name: &str| folder.path().join(name));
    end_well([train(&data, &at("run"), &format!("{MODEL} --steps 2")).spawn().unwrap()]);
    let line = "sample --run {} --out {} --count 11 --batch 2 --steps 2 --devices cpu";
    succeed(line, &[&at("run"), &at("one")]);
    let files = |name: &str| -> Vec<_> {
        let mut files: Vec<_> = fs::read_dir(at(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (path.file_name().unwrap().to_owned(), fs::read(path).unwrap())).collect()
    };
    let share = |name: &str, rank: usize| {
        let paths = [at("run"), at(name)];
        let mut paths = paths.iter();
        let mut command = pipeline();
        for word in line.split(' ') {
            let word = if word == "{}" { paths.next().unwrap().as_os_str() } else { word.as_ref() };
            command.arg(word);
        }
        command.args(["--world", "3", "--rank", &rank.to_string()]).env("OMP_NUM_THREADS", "2");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    end_well([0, 1, 2].map(|rank| share("three", rank)));
    assert!(files("three") == files("one"));
    // One after the other, the last of them in place of two that were lost.
    end_well([share("lost", 1)]);
    let made = files("lost").into_iter().map(|(name, _)| name.into_string().unwrap());
    assert_eq!(made.collect::<Vec<_>>(), ["000002.png", "000003.png", "000008.png", "000009.png", "samples.json"]);
    succeed(line, &[&at("run"), &at("lost")]);
    assert!(files("lost") == files("one"));
    refuse(
        &format!("{line} --format npz --world 3 --rank 0"),
        &[&at("run"), &at("npz")],
        "one process writes the file",
    );
    refuse(&format!("{line} --world 3 --rank 3"), &[&at("run"), &at("none")], "ranks of a world of 3 are 0 to 2");
}
