//! What the arms of a bench print, and what is made of it.

use std::process::Command;

use serde_json::Value;

/// What the answers say at a JSON pointer, sorted.
pub fn column(answers: &[Value], pointer: &str) -> Vec<f64> {
    let mut values: Vec<f64> =
        answers.iter().map(|answer| answer.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values.
pub fn median(values: &[f64]) -> f64 {
    values[values.len() / 2]
}

/// The JSON object in the last line that a command prints.
pub fn answer(command: &mut Command) -> Value {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let last = printed.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{command:?} printed {last:?}: {error}; {errors}"))
}
