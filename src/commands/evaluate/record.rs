//! What is kept of an evaluation: its numbers and all that decides them, as JSON beside the samples.

use std::fs;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::EvaluateArgs;
use crate::show;

/// The record of `pipeline sample`, beside its images.
const SAMPLING: &str = "samples.json";

/// What every record has beside its numbers.
#[derive(Debug, Serialize)]
pub(super) struct Circumstances {
    /// xxh3 of what the reference holds: of a file its arrays, of a folder the pixels of its pictures, as they were measured.
    pub(super) reference: String,
    /// The same of the samples; null where `sampling` says which weights and settings made them.
    pub(super) samples: Option<String>,
    /// `samples.json` without the class of each image; null for samples of other origin.
    pub(super) sampling: Value,
    /// Pixels a side that the reference's pictures were cropped to; null where they were taken as they are.
    pub(super) crop: Option<usize>,
    /// Pictures that went through the network together; null where there is none.
    pub(super) batch: Option<usize>,
    /// `cpu` or `cuda`.
    pub(super) device: &'static str,
    /// Of this program.
    pub(super) version: &'static str,
}

impl Circumstances {
    /// `identity` of the samples.
    pub(super) fn of(reference: u64, identity: u64, sampling: Value, device: &'static str) -> Self {
        let hexadecimal = |hash: u64| format!("{hash:016x}");
        Self {
            reference: hexadecimal(reference),
            samples: sampling.is_null().then(|| hexadecimal(identity)),
            sampling,
            crop: None,
            batch: None,
            device,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// `samples.json` of a folder of `count` pictures, without the lists that it has for each image; null if there is none, or it
/// is of an npz file. A folder that is not finished, and one of such folders, are no set of samples.
pub(super) fn of_folder(folder: &Path, count: u64) -> Result<Value> {
    let record = read(folder)?;
    if record.is_null() {
        let place = folder.display();
        for entry in fs::read_dir(folder).with_context(|| format!("{place}: cannot be listed"))? {
            let entry = entry.with_context(|| format!("{place}: cannot be listed"))?;
            if entry.path().join(SAMPLING).exists() {
                let name = entry.file_name();
                bail!(
                    "{place}: holds folders of samples, such as {}; give one of them, since their pictures are of several settings",
                    name.to_string_lossy()
                );
            }
        }
    }
    if record["format"] == "npz" {
        return Ok(Value::Null);
    }
    if let Some(wanted) = record["count"].as_u64()
        && wanted != count
    {
        let advice = match wanted > count {
            true => "the command of `pipeline sample` that made it goes on with it",
            false => "take away those that it did not make",
        };
        bail!("{}: {SAMPLING} says {wanted} pictures, and it holds {count}; {advice}", folder.display());
    }
    Ok(record)
}

/// The same of a file of `count` pictures: null if it is not the one that `samples.json` beside it describes.
pub(super) fn of_file(file: &Path, count: u64) -> Result<Value> {
    let named = file.file_name().is_some_and(|name| name == stages::sample::write::WriteSamples::NPZ);
    let Some(folder) = file.parent().filter(|_| named) else { return Ok(Value::Null) };
    // The parent of a bare name is "".
    let record = read(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    let describes = record["format"] == "npz" && record["count"] == count;
    Ok(if describes { record } else { Value::Null })
}

fn read(folder: &Path) -> Result<Value> {
    let path = folder.join(SAMPLING);
    if !path.try_exists().with_context(|| format!("cannot read {}", path.display()))? {
        return Ok(Value::Null);
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut record: Value = serde_json::from_slice(&text).with_context(|| {
        format!("{} is not JSON, so nothing says how the samples were made; remove it, or sample again", path.display())
    })?;
    if let Some(fields) = record.as_object_mut() {
        ["labels", "class_names", "classes"].into_iter().for_each(|long| {
            fields.remove(long);
        });
    }
    Ok(record)
}

/// Prints what was found, for a person or as JSON, and keeps the JSON where --record says, or else beside the samples. `kind`
/// tells the evaluations of one set of samples apart.
pub(super) fn tell(args: &EvaluateArgs, kind: &str, found: &impl Serialize, lines: &str) -> Result<()> {
    let json = serde_json::to_string(found)?;
    // First what cannot fail.
    show::result(if args.json { &json } else { lines });
    let path = args.metrics.record.clone().unwrap_or_else(|| beside(&args.samples, kind));
    let part = PathBuf::from(format!("{}.part", path.display()));
    match fs::write(&part, &json).and_then(|()| fs::rename(&part, &path)) {
        Ok(()) => show::say(&format!("the record of this evaluation is {}", path.display())),
        Err(error) if args.metrics.record.is_some() => {
            return Err(error).with_context(|| format!("cannot write {}", path.display()));
        }
        // The samples may lie where nothing can be written.
        Err(error) => show::say(&format!(
            "warning: the record of this evaluation could not be kept as {} ({error}); --record names another file",
            path.display()
        )),
    }
    Ok(())
}

/// `samples.<kind>.json` for the folder `samples` and the file `samples.npz`, in the folder that they are in.
fn beside(samples: &Path, kind: &str) -> PathBuf {
    let path = absolute(samples).unwrap_or_else(|_| samples.to_owned());
    // A path that ends in `..` has no name of its own.
    let path = if path.file_name().is_none() { fs::canonicalize(&path).unwrap_or(path) } else { path };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = if path.is_dir() { &name } else { name.strip_suffix(".npz").unwrap_or(&name) };
    path.with_file_name(format!("{name}.{kind}.json"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_attached_to_the_samples_that_it_describes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |record: &Value| fs::write(folder.path().join(SAMPLING), record.to_string()).unwrap();
        let [ours, other] = ["samples.npz", "other.npz"].map(|name| folder.path().join(name));
        assert_eq!(of_folder(folder.path(), 3).unwrap(), Value::Null);

        write(&json!({ "format": "png", "count": 3, "labels": [0, 1, 0], "seed": 4 }));
        assert_eq!(of_folder(folder.path(), 3).unwrap(), json!({ "format": "png", "count": 3, "seed": 4 }));
        assert_eq!(of_file(&ours, 3).unwrap(), Value::Null);
        let refused = |count| of_folder(folder.path(), count).unwrap_err().to_string();
        assert!(refused(2).ends_with(
            "samples.json says 3 pictures, and it holds 2; the command of `pipeline sample` that made it goes on with it"
        ));
        assert!(refused(4).ends_with("says 3 pictures, and it holds 4; take away those that it did not make"));
        assert!(
            of_folder(folder.path().parent().unwrap(), 9)
                .is_err_and(|error| { error.to_string().contains("holds folders of samples") })
        );

        write(&json!({ "format": "npz", "count": 3 }));
        assert_eq!(of_file(&ours, 3).unwrap(), json!({ "format": "npz", "count": 3 }));
        assert_eq!([of_file(&ours, 2).unwrap(), of_file(&other, 3).unwrap()], [Value::Null, Value::Null]);
        assert_eq!(of_folder(folder.path(), 8).unwrap(), Value::Null);

        fs::write(folder.path().join(SAMPLING), "half a rec").unwrap();
        for broken in [of_folder(folder.path(), 3), of_file(&ours, 3)] {
            assert!(broken.unwrap_err().to_string().contains("samples.json is not JSON"));
        }
    }

    #[test]
    fn a_record_lies_beside_a_folder_and_beside_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let samples = folder.path().join("cfg-1.5");
        fs::create_dir(&samples).unwrap();
        assert_eq!(beside(&samples, "vae"), folder.path().join("cfg-1.5.vae.json"));
        assert_eq!(beside(&samples.join("samples.npz"), "vae"), samples.join("samples.vae.json"));
        assert_eq!(beside(&samples.join("."), "vae"), folder.path().join("cfg-1.5.vae.json"));
    }
}
