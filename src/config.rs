//! What is trained, from a preset, a TOML file and `--set key=value`, resolved once.
//!
//! The preset gives every key a value; the file and `--set` change some of them. A key that no preset has is an
//! error that names the nearest one. What was resolved is written into the run directory, and that is what a
//! continued run and `pipeline sample` read.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use stages::method::config::{LatentShape, ModelConfig};
use stages::method::ema::EmaConfig;
use stages::method::objective::config::ObjectiveConfig;
use stages::train::config::{ScheduleConfig, TrainConfig};
use stages::train::optimiser::OptimiserConfig;
use toml::{Table, Value};
use xxhash_rust::xxh3::Xxh3;

use crate::presets;

/// What a run was trained on, as its dataset says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataConfig {
    /// Identity of the dataset: hash of its shards.
    pub(crate) dataset: String,
    /// Channels, rows, columns, classes.
    pub(crate) latent: LatentShape,
    /// Factor between what the autoencoder gives and what the network sees.
    pub(crate) scaling_factor: f64,
    /// Shift that is taken off before.
    pub(crate) shift_factor: f64,
    /// The autoencoder that made them: `tiny` or a directory.
    pub(crate) vae: String,
    /// Hash of its weights.
    pub(crate) vae_xxh3: String,
    /// Names of the classes, by index.
    pub(crate) class_names: Vec<String>,
}

/// `config.toml` of a run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunConfig {
    pub(crate) model: ModelConfig,
    pub(crate) objective: ObjectiveConfig,
    pub(crate) optimiser: OptimiserConfig,
    pub(crate) ema: EmaConfig,
    pub(crate) train: ScheduleConfig,
    pub(crate) data: DataConfig,
}

impl RunConfig {
    pub(crate) fn new(config: TrainConfig, data: DataConfig) -> Self {
        let TrainConfig { model, objective, optimiser, ema, train } = config;
        Self { model, objective, optimiser, ema, train, data }
    }

    pub(crate) fn train_config(&self) -> TrainConfig {
        let Self { model, objective, optimiser, ema, train, data: _ } = self.clone();
        TrainConfig { model, objective, optimiser, ema, train }
    }

    pub(crate) fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Reads `config.toml` of a run directory.
    pub(crate) fn parse(text: &str, place: &Path) -> Result<Self> {
        toml::from_str(text).with_context(|| {
            format!("{} is not the configuration of a run of this program", place.join("config.toml").display())
        })
    }

    /// What must be the same in every process that trains together, by name.
    pub(crate) fn facts(&self, arithmetic: &str) -> Result<Vec<(String, String)>> {
        let version = format!("{}, build {}", env!("CARGO_PKG_VERSION"), build());
        let own = [("version", version), ("the way of computing", arithmetic.to_owned())];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        let keys = flatten(&Table::try_from(self)?).into_iter().map(|(key, value)| (key, value.to_string()));
        Ok(own.chain(keys).collect())
    }

    /// The first key whose value differs, as (key, ours, theirs).
    pub(crate) fn first_difference(&self, other: &Self) -> Result<Option<(String, String, String)>> {
        let (ours, theirs) = (flatten(&Table::try_from(self)?), flatten(&Table::try_from(other)?));
        Ok(ours
            .into_iter()
            .zip(theirs)
            .find(|(a, b)| a != b)
            .map(|((key, ours), (_, theirs))| (key, ours.to_string(), theirs.to_string())))
    }
}

/// Tells two builds of one version apart: the hash of the program's file.
fn build() -> String {
    let hash = || -> std::io::Result<u64> {
        // The program that runs, also where another has taken its name since.
        let mut file = fs::File::open("/proc/self/exe").or_else(|_| fs::File::open(std::env::current_exe()?))?;
        let (mut hash, mut bytes) = (Xxh3::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut bytes)? {
                0 => return Ok(hash.digest()),
                len => hash.update(&bytes[..len]),
            }
        }
    };
    hash().map_or("unknown".to_owned(), |hash| format!("{hash:016x}"))
}

/// Resolves a configuration: a preset, changed by a TOML file (which may name its preset in a key `preset`) and by
/// `key=value` settings.
pub(crate) fn resolve(preset_name: Option<&str>, file: Option<&Path>, settings: &[String]) -> Result<TrainConfig> {
    let mut changes = match file {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            text.parse::<Table>().with_context(|| format!("{} is not TOML", path.display()))?
        }
        None => Table::new(),
    };
    let in_file = match changes.remove("preset") {
        Some(Value::String(name)) => Some(name),
        Some(other) => bail!("preset = {other} must be a name in quotes"),
        None => None,
    };
    let name = preset_name.or(in_file.as_deref()).unwrap_or("dupa-xl/2");
    let preset = presets::find(name)?;
    let mut resolved = Table::try_from(preset.base)?;
    for setting in preset.settings {
        apply(&mut resolved, setting).with_context(|| format!("preset {name}"))?;
    }

    let place = file.map_or_else(String::new, |path| format!("{}: ", path.display()));
    for (key, value) in flatten(&changes) {
        set(&mut resolved, &key, value).with_context(|| format!("{place}{key}"))?;
    }
    for setting in settings {
        apply(&mut resolved, setting).with_context(|| format!("--set {setting}"))?;
    }
    Ok(resolved.try_into()?)
}

/// Applies one `key=value`.
fn apply(table: &mut Table, setting: &str) -> Result<()> {
    let (key, text) = setting.split_once('=').context("write it as key=value")?;
    let (key, text) = (key.trim(), text.trim());
    // A bare word is a string: --set model.backbone=sit needs no quotes.
    let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    set(table, key, value.unwrap_or_else(|| Value::String(text.to_owned())))
}

fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let known = flatten(table);
    let Some((_, old)) = known.iter().find(|(name, _)| name == key) else {
        let names = known.iter().map(|(name, _)| name.as_str());
        bail!("there is no key {key:?}; the nearest is {:?}", nearest(key, names));
    };
    let value = match (old, value) {
        (Value::Float(_), Value::Integer(whole)) => Value::Float(whole as f64),
        (old, value) if old.same_type(&value) => value,
        (old, value) => bail!("{key} = {value} must be of type {}, like {old}", old.type_str()),
    };
    let mut path: Vec<&str> = key.split('.').collect();
    let Some(last) = path.pop() else { bail!("an empty key") };
    let mut place = table;
    for part in path {
        place =
            place.get_mut(part).and_then(Value::as_table_mut).context("a key of the preset leads through tables")?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

/// All values with their dotted keys, in order.
fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                all.extend(flatten(inner).into_iter().map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            other => all.push((key.clone(), other.clone())),
        }
    }
    all
}

/// The candidate that is most like `word`.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    // The last part of a dotted key is what people remember.
    let tail = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let similarity = |candidate: &str| match tail(candidate) {
        same if same == tail(word) => 2.0,
        other => strsim::jaro_winkler(word, candidate).max(strsim::jaro_winkler(word, &other)),
    };
    candidates.max_by(|a, b| similarity(a).total_cmp(&similarity(b))).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use stages::method::config::Backbone;

    use super::*;

    #[test]
    fn settings_change_values_and_keep_types() {
        let settings = ["optimiser.lr=1", "model.backbone=sit", "train.batch = 64"].map(str::to_owned);
        let config = resolve(Some("dupa-s/2"), None, &settings).unwrap();
        assert_eq!((config.optimiser.lr, config.train.batch), (1.0, 64));
        assert_eq!(config.model.backbone, Backbone::Sit);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let message = |setting: &str| format!("{:#}", resolve(None, None, &[setting.to_owned()]).unwrap_err());
        assert!(message("optimizer.lrr=1").contains("\"optimiser.lr\""), "{}", message("optimizer.lrr=1"));
        assert!(message("batch=1").contains("\"train.batch\""), "{}", message("batch=1"));
        assert!(message("train.clip=1").contains("\"optimiser.clip\""), "{}", message("train.clip=1"));
        assert!(message("train.batch=big").contains("must be of type integer"), "{}", message("train.batch=big"));
    }

    #[test]
    fn a_run_from_before_there_was_a_key_goes_on_with_its_default() {
        let train = resolve(Some("dupa-s/2"), None, &[]).unwrap();
        let text = toml::to_string(&train).unwrap();
        let older: Vec<&str> = text.lines().filter(|line| !line.starts_with("flip =")).collect();
        assert!(older.len() + 1 == text.lines().count(), "{text}");
        assert_eq!(toml::from_str::<TrainConfig>(&older.join("\n")).unwrap(), train);
    }

    #[test]
    fn a_file_names_its_preset_and_changes_some_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        fs::write(&path, "preset = \"dupa-b/2\"\n[train]\nsteps = 7\n").unwrap();
        let config = resolve(None, Some(&path), &[]).unwrap();
        assert_eq!((config.model.hidden, config.train.steps), (768, 7));
        fs::write(&path, "[trian]\nsteps = 7\n").unwrap();
        let message = format!("{:#}", resolve(None, Some(&path), &[]).unwrap_err());
        assert!(message.contains("run.toml") && message.contains("\"train.steps\""), "{message}");
    }
}
