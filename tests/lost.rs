//! `pipeline train` in several processes of which one is lost: killed, stopped or cut off, at any time; and two that
//! want one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::program::pipeline;
use crate::world::{MODEL, data, end, end_well, pair, port, signal, steps, train, train_by, wait_for_step};

/// Long enough for several pairs to start at once on two busy cores.
const TIMEOUT: u64 = 15;

/// What docs/examples promises: half a minute after --timeout.
const PROMISED: Duration = Duration::from_secs(TIMEOUT + 30);

fn words(steps: u64) -> String {
    format!("{MODEL} --steps {steps}").replace("--timeout 60", &format!("--timeout {TIMEOUT}"))
}

/// The run goes on from its last checkpoint, none of which is damaged: at the earliest from the one that was due at the
/// last line of metrics, or where the writer was killed `in_flight` checkpoints before it; at the latest from the step
/// whose line was lost with the rank.
fn goes_on(data: &Path, run: &Path, in_flight: f64) {
    let done = steps(run);
    let words = format!("{MODEL} --steps {}", done as u64 + 2);
    let [first, second] = pair(data, run, [&words, &words]);
    let (code, stderr) = end(first);
    assert_eq!(code, Some(0), "{stderr}");
    end_well([second]);
    let damaged = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut damaged =
        damaged.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("bad".as_ref()));
    assert_eq!(damaged.next(), None);
    let from =
        stderr.split(&format!("continuing {} at step ", run.display())).nth(1).unwrap_or_else(|| panic!("{stderr}"));
    let from: f64 = from.lines().next().unwrap().parse().unwrap();
    let last = done - done % 2.0 - 2.0 * in_flight;
    assert!((last..=done + 1.0).contains(&from), "{from} of {done}: {stderr}");
    assert_eq!(steps(run), done + 2.0);
}

#[test]
fn a_rank_that_is_lost_ends_the_run_with_its_name_and_the_run_goes_on_from_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    thread::scope(|scope| {
        for (lost, how) in [(1, "-KILL"), (1, "-STOP"), (0, "-KILL"), (0, "-STOP")] {
            let (data, run) = (&data, folder.path().join(format!("lost-{lost}{how}")));
            scope.spawn(move || {
                let children = pair(data, &run, [&words(100_000), &words(100_000)]);
                wait_for_step(&run, 5.0);
                let begun = Instant::now();
                signal(&children[lost], how);
                let [first, second] = children;
                let (mut gone, left) = if lost == 0 { (first, second) } else { (second, first) };
                let (code, stderr) = end(left);
                let took = begun.elapsed();
                assert_eq!(code, Some(2), "{stderr}");
                assert!(stderr.contains(&format!("rank {lost} no longer answers")), "{how} {lost}: {stderr}");
                assert!(took < PROMISED, "{how} {lost}: {took:?}");
                if how == "-STOP" {
                    // Let go on, it finds that it is alone.
                    signal(&gone, "-CONT");
                    let (code, stderr) = end(gone);
                    assert_eq!(code, Some(2), "{stderr}");
                    assert!(stderr.contains(&format!("rank {} no longer answers", 1 - lost)), "{stderr}");
                } else {
                    gone.wait().unwrap();
                }
                // Who ends in order waits for the disk.
                goes_on(data, &run, if lost == 0 && how == "-KILL" { 2.0 } else { 0.0 });
            });
        }
    });
}

/// While the processes find each other, agree, and join: wherever they are by then.
#[test]
fn a_rank_that_is_lost_before_the_first_step_ends_the_run_on_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    for after in [200, 700] {
        thread::scope(|scope| {
            for (lost, how) in [(1, "-KILL"), (1, "-STOP"), (0, "-KILL"), (0, "-STOP")] {
                let (data, run) = (&data, folder.path().join(format!("early-{after}-{lost}{how}")));
                scope.spawn(move || {
                    let begun = Instant::now();
                    let children = pair(data, &run, [&words(100_000), &words(100_000)]);
                    thread::sleep(Duration::from_millis(after));
                    signal(&children[lost], how);
                    let [first, second] = children;
                    let (mut gone, left) = if lost == 0 { (first, second) } else { (second, first) };
                    let (code, stderr) = end(left);
                    let took = begun.elapsed();
                    gone.kill().unwrap();
                    gone.wait().unwrap();
                    assert_eq!(code, Some(2), "{stderr}");
                    assert!(took < PROMISED, "{how} {lost}: {took:?}");
                    let names = [
                        &format!("rank {lost} "),
                        &format!("process {lost};"),
                        &format!("process {lost} no longer answers"),
                        "cannot reach the others at 127.0.0.1:",
                    ];
                    let said =
                        stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{stderr}"));
                    assert!(names.iter().any(|name| said.contains(*name)), "{how} {lost}: {stderr}");
                });
            }
        });
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
fn a_run_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (data, run) = (data(folder.path()), folder.path().join("run"));
    let first = train(&data, &run, &words(100_000)).spawn().unwrap();
    wait_for_step(&run, 1.0);
    let said = "another process trains this run; wait for its end, or use another --run";
    let alone = train(&data, &run, &words(100_000)).spawn().unwrap();
    for child in [alone].into_iter().chain(pair(&data, &run, [&words(100_000), &words(100_000)])) {
        let (code, stderr) = end(child);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
    signal(&first, "-TERM");
    let (code, stderr) = end(first);
    assert_eq!(code, Some(143), "{stderr}");
    let words = words(steps(&run) as u64 + 1);
    end_well([train(&data, &run, &words).spawn().unwrap()]);
}

/// Two machines, of a cable between them: network namespaces that a pair of virtual interfaces joins.
struct Machines {
    names: [String; 2],
    interfaces: [String; 2],
}

impl Machines {
    /// None where the system does not let us.
    fn new(number: u8) -> Option<Self> {
        let unique = format!("{}{number}", std::process::id());
        let names = ["a", "b"].map(|end| format!("dualpath-{unique}{end}"));
        let interfaces = ["a", "b"].map(|end| format!("dp{unique}{end}"));
        let machines = Self { names, interfaces };
        let made = machines.names.iter().all(|name| ip(&["netns", "add", name]));
        let [one, other] = &machines.interfaces;
        let joined = made && ip(&["link", "add", one, "type", "veth", "peer", "name", other]);
        let up = joined
            && (0..2).all(|end| {
                let (name, interface) = (&machines.names[end], &machines.interfaces[end]);
                let address = format!("{}/24", Self::address(end));
                ip(&["link", "set", interface, "netns", name])
                    && ip(&["-n", name, "addr", "add", &address, "dev", interface])
                    && ip(&["-n", name, "link", "set", "lo", "up"])
                    && ip(&["-n", name, "link", "set", interface, "up"])
            });
        up.then_some(machines)
    }

    fn address(end: usize) -> String {
        format!("10.213.77.{}", end + 1)
    }

    /// Process 0 on one machine and process 1 on the other.
    fn train(&self, data: &Path, run: &Path, words: &str) -> [Child; 2] {
        [0, 1].map(|rank| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &self.names[rank]]).arg(pipeline().get_program());
            command.env("GLOO_SOCKET_IFNAME", &self.interfaces[rank]);
            let run = if rank == 0 { run.to_path_buf() } else { run.with_extension("never") };
            let place = format!("--world 2 --rank {rank} --master {}:29500", Self::address(0));
            train_by(command, data, &run, &format!("{words} {place}")).spawn().unwrap()
        })
    }

    fn cable(&self, end: usize, state: &str) {
        assert!(ip(&["-n", &self.names[end], "link", "set", &self.interfaces[end], state]));
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // Where no namespace took it, the cable is still here.
        ip(&["link", "del", &self.interfaces[0]]);
        for name in &self.names {
            ip(&["netns", "del", name]);
        }
    }
}

fn ip(words: &[&str]) -> bool {
    Command::new("ip").args(words).output().is_ok_and(|output| output.status.success())
}

#[test]
fn two_machines_that_are_cut_off_each_say_whom_they_lost_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    thread::scope(|scope| {
        for end_of_cable in [0, 1] {
            let (data, run): (_, PathBuf) = (&data, folder.path().join(format!("cut-{end_of_cable}")));
            scope.spawn(move || {
                let Some(machines) = Machines::new(end_of_cable as u8) else {
                    println!("skipped: no network namespaces can be made (root and iproute2 are needed)");
                    return;
                };
                let children = machines.train(data, &run, &words(100_000));
                wait_for_step(&run, 5.0);
                let begun = Instant::now();
                machines.cable(end_of_cable, "down");
                for (rank, child) in children.into_iter().enumerate() {
                    let (code, stderr) = end(child);
                    let took = begun.elapsed();
                    assert_eq!(code, Some(2), "{stderr}");
                    assert!(stderr.contains(&format!("rank {} no longer answers", 1 - rank)), "{rank}: {stderr}");
                    assert!(took < PROMISED, "{rank}: {took:?}");
                }
                machines.cable(end_of_cable, "up");
                let done = steps(&run);
                let words = words(done as u64 + 2);
                end_well(machines.train(data, &run, &words));
                assert_eq!(steps(&run), done + 2.0);
            });
        }
    });
}
