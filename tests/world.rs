//! `pipeline train` in several processes: started in every way, equal to one, refused where they differ.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use stages::native::c10d::{Place, Store};

use crate::program::{images, pipeline, refuse, succeed};

// In f32 whatever the processor would choose: in bf16 the order of summation shows in the fourth digit of a norm.
pub const MODEL: &str = "--preset dupa-demo --devices cpu --precision f32 --set train.batch=8 --set model.hidden=64 --set model.depth=3 \
    --set optimiser.decay_fraction=0 --set train.log_every=1 --set train.checkpoint_every=2 --set train.sample_every=0 --timeout 60";

pub fn data(folder: &Path) -> PathBuf {
    data_of(folder, 12)
}

/// Of two classes, `each` images.
fn data_of(folder: &Path, each: usize) -> PathBuf {
    let images = images(folder, 2, each);
    let data = folder.join("data");
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    data
}

/// A port that nobody has at the moment.
pub fn port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

pub fn train(data: &Path, run: &Path, words: &str) -> Command {
    train_by(pipeline(), data, run, words)
}

pub fn train_by(mut command: Command, data: &Path, run: &Path, words: &str) -> Command {
    command.args(["train", "--data"]).arg(data).arg("--run").arg(run);
    command.args(words.split_whitespace()).env("OMP_NUM_THREADS", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Two processes that are told by flags, the first of which writes `run`, the other a folder that it must not make.
pub fn pair(data: &Path, run: &Path, words: [&str; 2]) -> [Child; 2] {
    let port = port();
    let of = |rank: usize| {
        let run = if rank == 0 { run.to_path_buf() } else { run.with_extension("never") };
        let place = format!("--world 2 --rank {rank} --master 127.0.0.1:{port}");
        train(data, &run, &format!("{} {place}", words[rank])).spawn().unwrap()
    };
    [of(0), of(1)]
}

pub fn end(child: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[track_caller]
pub fn end_well(children: impl IntoIterator<Item = Child>) {
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

pub fn steps(run: &Path) -> f64 {
    // A line may be half written.
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let mut whole = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    whole.next_back().map_or(0.0, |line| line["step"].as_f64().unwrap())
}

pub fn wait_for_step(run: &Path, step: f64) {
    let begun = Instant::now();
    while steps(run) < step {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// What the last checkpoint of a run holds: weights, average and moments, each flat.
fn state(run: &Path, step: u64) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(run.join(format!("checkpoints/step-{step:08}.safetensors"))).unwrap();
    let mut flat: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, tensor) in tensors {
        let group = name.split('.').next().unwrap().to_owned();
        let values = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        flat.entry(group).or_default().extend(values);
    }
    flat
}

/// Every buffer by its flat norm.
#[track_caller]
fn same_state(run: &Path, step: u64, expected: &BTreeMap<String, Vec<f32>>) {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let found = state(run, step);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["count", "ema", "exp_avg", "exp_avg_sq", "model"]);
    for (group, expected) in expected {
        let differences = norm(&mut found[group].iter().zip(expected).map(|(a, b)| a - b));
        let error = differences / norm(&mut expected.iter().copied());
        assert!(found[group].len() == expected.len() && error <= 1e-4, "{}: {group}: {error:e}", run.display());
    }
}

/// 1 x 64, 2 x 32 and 4 x 16, as processes and as threads.
#[test]
fn processes_and_devices_train_as_one_process_does_whoever_started_them() {
    let folder = tempfile::tempdir().unwrap();
    let (data, at) = (data_of(folder.path(), 36), |name: &str| folder.path().join(name));
    let words = format!("{MODEL} --steps 6").replace("train.batch=8", "train.batch=64");
    let of_two = words.replace("--devices cpu", "--devices cpu:2");
    end_well([train(&data, &at("one"), &words).spawn().unwrap()]);
    let (expected, weights) = (curve(&at("one")), state(&at("one"), 6));
    assert_eq!(expected.len(), 6);
    let as_one = |name: &str| {
        same(&at(name), &expected);
        same_state(&at(name), 6, &weights);
    };

    end_well(pair(&data, &at("flags"), [&words, &words]));
    as_one("flags");
    assert!(!at("flags.never").exists());
    // Two ranks in one process.
    end_well([train(&data, &at("threads"), &of_two).spawn().unwrap()]);
    as_one("threads");
    // One rank that is started as a world goes the way of many.
    let alone = format!("{words} --world 1 --rank 0 --master 127.0.0.1:{}", port());
    end_well([train(&data, &at("alone"), &alone).spawn().unwrap()]);
    assert!(state(&at("alone"), 6) == weights);

    let variables = |name: &str, of: &dyn Fn(usize) -> Vec<(&'static str, String)>, processes: usize, words: &str| {
        let start = |process| train(&data, &at(name), words).envs(of(process)).spawn().unwrap();
        end_well((0..processes).map(start).collect::<Vec<_>>());
        as_one(name);
    };
    let torchrun = |rank: usize, port: &str| {
        vec![
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", "2".to_owned()),
            ("MASTER_ADDR", "localhost".to_owned()),
            ("MASTER_PORT", port.to_owned()),
        ]
    };
    let free = port();
    variables("torchrun", &|rank| torchrun(rank, &free), 2, &words);
    // As torchrun's agent does it, which keeps the store itself.
    let place = Place { host: "127.0.0.1".into(), port: 0, prefix: "agent".into() };
    let agent = Store::open(&place, true, Duration::from_secs(60)).unwrap();
    let by_agent = |rank: usize| {
        let own = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "1")];
        let own = own.map(|(name, value)| (name, value.to_owned()));
        torchrun(rank, &agent.port().to_string()).into_iter().chain(own).collect()
    };
    variables("agent", &by_agent, 2, &words);

    let slurm = |process: usize, tasks: usize, job: u64| {
        vec![
            ("SLURM_STEP_NUM_TASKS", tasks.to_string()),
            ("SLURM_PROCID", process.to_string()),
            ("SLURM_LOCALID", process.to_string()),
            ("SLURM_STEP_NODELIST", "localhost".to_owned()),
            ("SLURM_JOB_ID", job.to_string()),
        ]
    };
    // No port is given: it follows from the job, one whose port is free.
    let is_free = |job: &u64| TcpListener::bind(("127.0.0.1", 12_000 + ((job * 7) % 20_000) as u16)).is_ok();
    let job = (u64::from(std::process::id())..).find(is_free).unwrap();
    variables("slurm", &|process| slurm(process, 4, job), 4, &words);
    let free = port();
    let with_port = |process| [slurm(process, 2, 4711), vec![("MASTER_PORT", free.clone())]].concat();
    variables("slurm-of-two", &with_port, 2, &of_two);
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
    let (data, run) = (data(folder.path()), folder.path().join("run"));
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let other_data = data_of(&other, 11);
    // Another build of the same version: the same program, and a byte that nobody reads.
    let program = pipeline().get_program().to_owned();
    let other_build = folder.path().join("pipeline");
    fs::copy(&program, &other_build).unwrap();
    fs::OpenOptions::new().append(true).open(&other_build).unwrap().write_all(b"x").unwrap();

    let ours = format!("{MODEL} --steps 6");
    let refused = |program: &OsStr, theirs: &Path, words: &str, of_first: &str, of_second: &str| {
        let port = port();
        let place = |rank: usize| format!("--world 2 --rank {rank} --master 127.0.0.1:{port}");
        let first = train(&data, &run, &format!("{ours} {}", place(0)));
        let second = train_by(Command::new(program), theirs, &run, &format!("{words} {}", place(1)));
        for child in [first, second].map(|mut command| command.spawn().unwrap()) {
            let (code, stderr) = end(child);
            assert_eq!(code, Some(2), "{stderr}");
            let said =
                stderr.split("the processes are not to do the same: ").nth(1).unwrap_or_else(|| panic!("{stderr}"));
            assert!(said.starts_with(of_first) && said.contains(" on process 0 and "), "{stderr}");
            assert!(said.contains(&format!("{of_second} on process 1; nothing was begun")), "{stderr}");
        }
    };
    thread::scope(|scope| {
        let refused = |words: String, of_first: &'static str, of_second: &'static str| {
            let (refused, program, data) = (&refused, &program, &data);
            scope.spawn(move || refused(program, data, &words, of_first, of_second));
        };
        refused(format!("{ours} --set optimiser.lr=0.5"), "optimiser.lr is 0.002", "0.5");
        refused(ours.replace("f32", "bf16"), "the way of computing is cpu", "BFloat16, 1 threads");
        refused(ours.replace("--devices cpu", "--devices cpu:2"), "devices of a process is 1", "2");
        refused(format!("{ours} --bucket-mib 1"), "values of a bucket is 6553600", "262144");
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            refused(
                other_build.as_os_str(),
                &data,
                &ours,
                concat!("version is ", env!("CARGO_PKG_VERSION"), ", build "),
                "",
            );
        });
        scope.spawn(|| refused(&program, &other_data, &ours, "data.dataset is ", ""));
    });

    // The first fails for a reason of its own: the other is told it, and waits for nothing. So does the second.
    let plain = "--devices cpu --precision f32";
    let wrong = format!("{MODEL} --set train.batch=0");
    for (first, second, said) in [
        (wrong.as_str(), plain, "train.batch must be at least 1"),
        (&ours, "--devices gpu", "device \"gpu\" is not understood"),
        ("--devices gpu", &ours, "device \"gpu\" is not understood"),
    ] {
        let begun = Instant::now();
        for child in pair(&data, &run, [first, second]) {
            let (code, stderr) = end(child);
            assert_eq!(code, Some(2), "{stderr}");
            assert!(stderr.contains(said), "{stderr}");
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    assert!(!run.exists());
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
        // By flags, and by the two variables of torchrun that say it: nobody is asked where to meet.
        let (world, rank) = ("3", rank.to_string());
        match name {
            "three" => command.env("WORLD_SIZE", world).env("RANK", rank),
            _ => command.args(["--world", world, "--rank", &rank]),
        };
        command.env("OMP_NUM_THREADS", "2");
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
    refuse(
        &format!("{line} --world 3 --rank 3"),
        &[&at("run"), &at("none")],
        "rank 3 was given, of a world of 3: ranks are 0 to 2",
    );
}
