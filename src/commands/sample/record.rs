//! `samples.json`: everything that changes the images, beside them, written before the first. It decides whether a folder
//! of samples can be gone on with: by what files hold, not by where they lie.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use stages::sample::decode::Rounding;
use stages::sample::generate::SampleSettings;
use stages::sample::request::Labels;

use crate::show;

/// What is recorded.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    /// The file of the weights.
    pub(super) checkpoint: String,
    /// xxh3 of the averaged weights, f32 in the order of the layout.
    pub(super) weights_xxh3: String,
    /// Steps that were trained; null where a file of weights does not say.
    pub(super) step: Option<u64>,
    pub(super) count: u64,
    pub(super) settings: SampleSettings,
    pub(super) label_scheme: Labels,
    /// Class indices that were asked for.
    pub(super) classes: Vec<i64>,
    /// Class index of each image, in the order of the images.
    pub(super) labels: Vec<i64>,
    /// Name of each class of the run; a class index is an index into them.
    pub(super) class_names: Vec<String>,
    /// Images that were sampled together: it decides how products are summed, so in f32 pixels may differ by a level in 0.1 % of
    /// the values between two sizes.
    pub(super) batch: u64,
    /// `cpu` or `cuda`.
    pub(super) device: &'static str,
    /// What the network computed in: `f32` or `bf16`.
    pub(super) precision: &'static str,
    pub(super) vae: String,
    /// xxh3 of its weights.
    pub(super) vae_xxh3: String,
    /// What latents are divided by before they are decoded.
    pub(super) scaling_factor: f64,
    /// What is added to them then.
    pub(super) shift_factor: f64,
    /// `repa`: 255 clamp((x + 1) / 2), truncated; `sit`: clamp(127.5 x + 128), truncated.
    pub(super) rounding: Rounding,
    /// `png` or `npz`.
    pub(super) format: &'static str,
    /// File that the images start from; null for noise drawn from the seed.
    pub(super) noise: Option<String>,
    /// xxh3 of that file.
    pub(super) noise_xxh3: Option<String>,
    /// File of the latents, if it was asked for.
    pub(super) latents: Option<String>,
    /// Of the program that began.
    pub(super) version: &'static str,
}

const NAME: &str = "samples.json";
const PART: &str = "samples.json.part";

impl Record {
    /// Makes `folder` that of these samples: writes the record into a folder that is new or empty, and accepts one that
    /// holds the same record. Another `batch` is accepted where this process does all of the work (`is_all`): shares of several
    /// are whole batches.
    pub(super) fn claim(&self, folder: &Path, rank: u64, is_all: bool) -> Result<()> {
        let place = folder.display();
        let path = folder.join(NAME);
        fs::create_dir_all(folder).with_context(|| format!("cannot make {place}"))?;
        let ours = serde_json::to_value(self)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {place}"))? {
            names.push(entry.with_context(|| format!("cannot read {place}"))?.file_name());
        }
        // Another process that shares the folder may write it at any time, and images after it.
        if names.iter().any(|name| name == NAME)
            || path.try_exists().with_context(|| format!("cannot read {}", path.display()))?
        {
            let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut theirs: Value = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not JSON; give a new folder", path.display()))?;
            if let Some(difference) = difference(&theirs, &ours) {
                bail!(
                    "{place} holds samples that were made otherwise ({difference}); give another --out, or remove it"
                );
            }
            // One number, or all sizes so far where it was begun with one and continued with another.
            let mut sizes = match theirs["batch"].take() {
                Value::Array(sizes) => sizes,
                one => vec![one],
            };
            let ours = &ours["batch"];
            if !is_all && sizes != [ours.clone()] {
                bail!(
                    "{place} was begun with --batch {}, and shares of several processes are whole batches; give it again",
                    sizes[0]
                );
            }
            if !sizes.contains(ours) {
                show::say(&format!(
                    "{place} was begun with --batch {}: with {ours} the images that are left may differ slightly from those of one \
                     size, in f32 by a level in 0.1 % of the values",
                    sizes[0]
                ));
                sizes.push(ours.clone());
                theirs["batch"] = Value::Array(sizes);
                return write(folder, rank, &theirs);
            }
            return Ok(());
        }
        for name in names {
            if !name.to_string_lossy().starts_with(PART) {
                let name = name.to_string_lossy();
                bail!(
                    "cannot write samples into {place}: it holds {name} and no {NAME}, so it is no folder of samples; \
                       give a new one"
                );
            }
        }
        write(folder, rank, &ours)
    }
}

/// Makes `record` that of the samples in `folder`. Durable before the first image, so that no image lies beside settings that nobody
/// knows.
fn write(folder: &Path, rank: u64, record: &Value) -> Result<()> {
    let path = folder.join(NAME);
    // Of one process: another may claim the folder at the same time, and says the same.
    let part = folder.join(format!("{PART}{rank}"));
    let write = || {
        let mut file = fs::File::create(&part)?;
        file.write_all(serde_json::to_string_pretty(record)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, &path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Where something lies, what its hash stands for beside it; what changes no image; and what `claim` decides by itself.
const NO_DIFFERENCE: [&str; 5] = ["checkpoint", "vae", "noise", "version", "batch"];

/// What differs first between two records, in words; an earlier version may have had other keys.
fn difference(theirs: &Value, ours: &Value) -> Option<String> {
    let decisive = |record: &Value| -> Vec<(String, Value)> {
        let fields = flatten("", record).into_iter().filter(|(key, _)| !NO_DIFFERENCE.contains(&key.as_str()));
        // Of the file of the latents, only whether there is one: it looks itself whether it belongs to the images.
        fields
            .map(|(key, value)| if key == "latents" { (key, Value::Bool(!value.is_null())) } else { (key, value) })
            .collect()
    };
    let (theirs, ours) = (decisive(theirs), decisive(ours));
    let shown = |value: Option<&Value>| match value {
        None => "none".to_owned(),
        Some(Value::Array(all)) => format!("a list of {}", all.len()),
        Some(value) => value.to_string(),
    };
    let get = |all: &[(String, Value)], key: &str| all.iter().find(|(name, _)| name == key).map(|(_, v)| v.clone());
    // Lists last: they follow from other keys, as the classes of the images from the seed.
    let mut all: Vec<_> = ours.iter().chain(&theirs).collect();
    all.sort_by_key(|(_, value)| value.is_array());
    all.into_iter()
        .map(|(key, _)| (key, get(&theirs, key), get(&ours, key)))
        .find(|(_, theirs, ours)| theirs != ours)
        .map(|(key, theirs, ours)| format!("{key}: {} there, {} here", shown(theirs.as_ref()), shown(ours.as_ref())))
}

fn flatten(prefix: &str, value: &Value) -> Vec<(String, Value)> {
    let Value::Object(object) = value else { return vec![(prefix.to_owned(), value.clone())] };
    let name = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    object.iter().flat_map(|(key, value)| flatten(&name(key), value)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_difference_is_named_with_both_values() {
        let record = |steps: u64, labels: &[i64]| json!({ "settings": { "steps": steps }, "labels": labels });
        assert_eq!(difference(&record(3, &[1]), &record(3, &[1])), None);
        let text = difference(&record(3, &[1]), &record(4, &[1])).unwrap();
        assert_eq!(text, "settings.steps: 3 there, 4 here");
        let text = difference(&record(3, &[1, 2]), &record(3, &[1])).unwrap();
        assert_eq!(text, "labels: a list of 2 there, a list of 1 here");
        let text = difference(&record(3, &[1, 2]), &record(4, &[1])).unwrap();
        assert_eq!(text, "settings.steps: 3 there, 4 here");
        let text = difference(&json!({}), &json!({ "rounding": "repa" })).unwrap();
        assert_eq!(text, "rounding: none there, \"repa\" here");
    }

    #[test]
    fn where_files_lie_is_no_difference_and_what_they_hold_is() {
        let record = |place: &str, hash: &str| {
            json!({ "checkpoint": place, "weights_xxh3": hash, "vae": place, "vae_xxh3": hash, "noise": place, "noise_xxh3": hash,
                    "latents": place, "version": place, "batch": place.len() })
        };
        assert_eq!(difference(&record("runs/a", "1"), &record("./runs/a", "1")), None);
        let text = difference(&record("runs/a", "1"), &record("runs/a", "2")).unwrap();
        assert!(text.ends_with("_xxh3: \"1\" there, \"2\" here"), "{text}");
        let text = difference(&json!({ "latents": null }), &json!({ "latents": "l.safetensors" })).unwrap();
        assert_eq!(text, "latents: false there, true here");
    }
}
