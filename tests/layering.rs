//! The rules of the layout, read from the manifests and the sources.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn dependencies(manifest: &str, table: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let parsed: toml::Table = text.parse().unwrap();
    parsed.get(table).and_then(toml::Value::as_table).map(|t| t.keys().cloned().collect()).unwrap_or_default()
}

/// All Rust sources of a folder that git would carry, with their text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{folder}");
    found
}

/// The code of a file before its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

/// Those sources that are no file of tests.
fn sources_of_code(folder: &str) -> impl Iterator<Item = (PathBuf, String)> {
    sources(folder).into_iter().filter(|(path, _)| path.file_stem().is_some_and(|stem| stem != "tests"))
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn crates_know_only_what_lies_below_them() {
    let ours = ["pipeline", "shards", "stages", "dualpath"];
    let known = |manifest: &str| -> Vec<String> {
        dependencies(manifest, "dependencies").into_iter().filter(|d| ours.contains(&d.as_str())).collect()
    };
    assert!(known("pipeline/Cargo.toml").is_empty());
    assert!(known("shards/Cargo.toml").is_empty());
    assert_eq!(known("stages/Cargo.toml"), ["pipeline", "shards"]);
    assert_eq!(known("Cargo.toml"), ["pipeline", "shards", "stages"]);
}

#[test]
fn tensors_stay_in_stages_and_the_command_line_in_the_program() {
    for manifest in ["Cargo.toml", "pipeline/Cargo.toml", "shards/Cargo.toml"] {
        let dependencies = dependencies(manifest, "dependencies");
        assert!(!dependencies.iter().any(|d| d == "tch" || d == "torch-sys"), "{manifest}");
    }
    for manifest in ["pipeline/Cargo.toml", "shards/Cargo.toml", "stages/Cargo.toml"] {
        let dependencies = dependencies(manifest, "dependencies");
        assert!(!dependencies.iter().any(|d| d == "clap" || d == "anyhow"), "{manifest}");
        assert!(dependencies.iter().any(|d| d == "thiserror"), "{manifest}");
    }
}

#[test]
fn no_lock_of_ours_lies_on_the_path_of_a_sample() {
    for folder in ["pipeline/src", "shards/src", "stages/src"] {
        for (path, text) in sources_of_code(folder) {
            for lock in ["Mutex", "Condvar", "RwLock"] {
                let used = code(&text).lines().any(|line| line.contains(lock) && !line.trim_start().starts_with("//"));
                assert!(!used, "{} uses {lock}", name(&path));
            }
        }
    }
}

#[test]
fn threads_are_started_by_the_engine_alone() {
    for folder in ["shards/src", "stages/src", "src"] {
        for (path, text) in sources_of_code(folder) {
            let code = code(&text);
            for way in ["thread::spawn", "thread::Builder", "thread::scope"] {
                assert!(!code.contains(way), "{} starts threads", name(&path));
            }
        }
    }
}

#[test]
fn the_method_does_no_input_or_output() {
    for (path, text) in sources("stages/src/method") {
        assert!(!code(&text).contains("std::fs") && !code(&text).contains("File::"), "{}", name(&path));
    }
}

/// libtorch's own generator is one for the process: what tests draw from it changes with the tests that run beside them, and
/// what training draws could not be resumed.
#[test]
fn random_values_come_from_seeds_alone() {
    for folder in ["stages/src", "src", "tests", "benches"] {
        for (path, text) in sources(folder) {
            for way in ["manual_seed", "::randn(", "::rand(", "::randint(", "::randperm(", "multinomial("] {
                let drawn = text.lines().any(|line| line.contains(way) && !line.contains(&format!("\"{way}\"")));
                assert!(!drawn, "{} draws with {way}", name(&path));
            }
        }
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            assert!(root().join(target).exists(), "{document} links to {target}");
        }
    }
}

#[test]
fn no_file_is_a_dumping_ground() {
    for folder in ["pipeline/src", "shards/src", "stages/src", "src"] {
        for (path, text) in sources(folder) {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            assert!(!["utils", "util", "common", "helpers", "types", "prelude"].contains(&stem), "{}", name(&path));
            let lines = code(&text).lines().count();
            assert!(lines <= 500, "{} has {lines} lines of code; split it by verb", name(&path));
        }
    }
}

#[test]
fn the_readme_holds_the_python_reader_that_is_tested_with_the_format() {
    let text = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    assert!(text("README.md").contains(text("shards/golden/read_shard.py").trim_end()));
}
