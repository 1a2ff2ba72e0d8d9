//! Running the program under test.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The program as a command.
pub fn pipeline() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pipeline"))
}

/// It with arguments as [`run`] takes them, to be started: nothing of what it says is kept.
pub fn start(line: &str, paths: &[&Path]) -> Command {
    let mut command = pipeline();
    command.args(words(line, paths)).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn words(line: &str, paths: &[&Path]) -> Vec<OsString> {
    let mut paths = paths.iter();
    let word = |word: &str| match word {
        "{}" => paths.next().expect("one path for each {}").as_os_str().to_owned(),
        word => word.into(),
    };
    line.split_whitespace().map(word).collect()
}

/// Runs it with arguments, separated by spaces; words in braces are replaced by the paths given, in order.
pub fn run(line: &str, paths: &[&Path]) -> Output {
    pipeline().args(words(line, paths)).output().expect("the program was built for this test")
}

/// Runs it and asserts success; the text of stdout.
#[track_caller]
pub fn succeed(line: &str, paths: &[&Path]) -> String {
    let output = run(line, paths);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pipeline {line}\n{stderr}");
    String::from_utf8(output.stdout).expect("output is text")
}

/// Runs it and asserts exit code 2 with one line of error that holds `part`.
#[track_caller]
pub fn refuse(line: &str, paths: &[&Path], part: &str) {
    let output = run(line, paths);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "pipeline {line}\n{stderr}");
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(part), "pipeline {line}: expected {part:?} in\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// Starts it and kills it (SIGKILL) as soon as `now` says so; false if it got to its end before. It asserts that it did not
/// fail by itself.
#[track_caller]
pub fn killed_when(command: &mut Command, mut now: impl FnMut() -> bool) -> bool {
    let mut child = command.spawn().expect("the program was built for this test");
    while !now() && child.try_wait().expect("a child can be waited for").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("a child can be killed");
    let ended = child.wait().expect("a child can be waited for");
    assert!(ended.success() || ended.signal() == Some(9), "it ended by itself: {ended}");
    !ended.success()
}

/// A small labelled set: `classes` folders of `each` JPEGs of mixed sizes, drawn by a formula.
pub fn images(root: &Path, classes: usize, each: usize) -> PathBuf {
    let folder = root.join("images");
    for class in 0..classes {
        let class_folder = folder.join(format!("class-{class}"));
        std::fs::create_dir_all(&class_folder).expect("a temporary folder can be written");
        for i in 0..each {
            let (width, height) = (70 + 13 * i as u32, 90 - 5 * (i as u32 % 8));
            let picture = image::RgbImage::from_fn(width, height, |x, y| {
                let stripe = if (x / (4 + class as u32) + y / 9).is_multiple_of(2) { 200 } else { 40 };
                image::Rgb([stripe, (x * 255 / width) as u8, (y * 2 + 30 * class as u32) as u8])
            });
            picture.save(class_folder.join(format!("{i:03}.jpg"))).expect("a temporary folder can be written");
        }
    }
    folder
}

/// A linear congruential generator (Knuth's MMIX constants), so that a failure can be repeated.
pub fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 53) as f64
}
