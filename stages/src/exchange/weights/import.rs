//! Reading a file of weights as a network of ours.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::Xxh3;

use super::file::WeightsFile;
use super::sizes::{self, Hints, Sizes};
use super::stored::Stored;
use super::{FORMAT, NetworkWeights, POSITION, WeightsFileError, Which, names, time};
use crate::method::config::{LatentShape, ModelConfig};
use crate::method::layout::layout;
use crate::method::network::position_embedding;
use crate::nets::weights::Mismatch;
use crate::train::checkpoint;

/// Which way time runs in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Time {
    /// SiT's if the network predicts a variance that is of no use, as SiT's own do, else ours.
    #[default]
    Auto,
    /// As here and in REPA: 0 is data.
    Ours,
    /// As in SiT: 0 is noise.
    Reversed,
}

/// How to read a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImportOptions {
    /// Which weights of a training checkpoint.
    pub which: Which,
    /// Which way time runs.
    pub time: Time,
    /// What the user says about the network.
    pub hints: Hints,
    /// The network of the run that a checkpoint belongs to.
    pub known: Option<(ModelConfig, LatentShape)>,
}

/// A file that was read.
#[derive(Debug)]
pub struct Imported {
    /// The network.
    pub weights: NetworkWeights,
    /// Key of the state dict that was taken from a training checkpoint; "" where the file holds one alone.
    pub key: String,
    /// The floats in the file, such as `f32` or `f16, f32`.
    pub floats: String,
    /// What was changed or left out, a sentence each.
    pub notes: Vec<String>,
}

/// What every version's `format` begins with.
const FORMATS: &str = "dualpath-weights-";

/// How far a stored position embedding may be from the fixed one, beside the rounding of its dtype: averaging 400,000
/// times in f32, as SiT and REPA do with it, lets it drift by some 1e-4.
const POSITION_TOLERANCE: f64 = 2e-3;

/// Reads a file of any form as a network of ours: names, shapes and the direction of time.
///
/// # Errors
/// If it is no such file, or its tensors are not those of a SiT or DDT on SiT blocks; [`WeightsFileError::Checkpoint`] if
/// it is one of our checkpoints, and of a newer program or damaged.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, WeightsFileError> {
    network(path, WeightsFile::open(path, options.which)?, options)
}

/// Reads a file that [`super::write()`] wrote as safetensors, which says itself what no shape tells.
///
/// # Errors
/// If it is none, or damaged.
pub fn open(path: &Path) -> Result<NetworkWeights, WeightsFileError> {
    let file = WeightsFile::open(path, Which::Ema)?;
    if !file.metadata.get("format").is_some_and(|format| format.starts_with(FORMATS)) {
        let reason = "is no file of this program; make one of it with `pipeline import-weights`".to_owned();
        return Err(WeightsFileError::Network { path: path.to_owned(), reason });
    }
    Ok(network(path, file, &ImportOptions::default())?.weights)
}

fn network(path: &Path, file: WeightsFile, options: &ImportOptions) -> Result<Imported, WeightsFileError> {
    let WeightsFile { file, len, key, mut tensors, metadata } = file;
    let strange = |reason: String| WeightsFileError::Network { path: path.to_owned(), reason };
    let stored = match metadata.get("format").map(String::as_str) {
        Some(format) if format == FORMAT => Some(described(path, &metadata)?),
        Some(format) if format.starts_with(FORMATS) => {
            return Err(strange(format!(
                "its format is {format}, and this program reads {FORMAT}; use a newer program"
            )));
        }
        _ => None,
    };
    let mut notes = names::leave_out(&mut tensors);
    let joined = names::join_blocks(&mut tensors);
    if joined > 0 {
        notes.push(format!("decoder_blocks of an early REPA became the last {joined} blocks"));
    }
    let known = options.known.clone().or(stored);
    let Sizes { model, latent, one_embedder, notes: more } =
        sizes::infer(&tensors, known, &options.hints).map_err(strange)?;
    notes.extend(more);

    let taken = take(&tensors, &model, &latent, one_embedder)
        .map_err(|mismatch| WeightsFileError::Tensors { path: path.to_owned(), mismatch })?;
    // Tensors that share memory could be larger together than the file many times over; an embedding may serve twice.
    let bytes: u128 = taken.sources.iter().map(|stored| u128::from(stored.bytes())).sum();
    if bytes > 2 * u128::from(len) {
        return Err(strange("its tensors share their memory; save copies of them".to_owned()));
    }
    let mut damaged = 0;
    let mut read = |stored: &Stored| {
        let (values, whole) =
            stored.read(&file).map_err(|source| WeightsFileError::Io { path: path.to_owned(), source })?;
        damaged += usize::from(!whole);
        Ok::<_, WeightsFileError>(values)
    };
    if let Some(position) = tensors.get(POSITION) {
        check_position(position, &read(position)?, &model, &latent).map_err(strange)?;
    }
    let reversed = match options.time {
        Time::Auto => taken.with_variance,
        Time::Ours => false,
        Time::Reversed => true,
    };
    let specs = layout(&model, &latent);
    let mut flat = Vec::with_capacity(specs.iter().map(|spec| spec.len() as usize).sum());
    let mut hash = Xxh3::new();
    for (spec, source) in specs.iter().zip(&taken.sources) {
        let mut values = read(source)?;
        if !(one_embedder && spec.name.starts_with(SECOND_EMBEDDER)) {
            hash.update(bytemuck::cast_slice(&values));
        }
        if taken.with_variance && spec.name.starts_with(OUTPUT) {
            values = without_variance(&values, latent.channels as usize, values.len() / source.shape[0] as usize);
        }
        if reversed && spec.name == "t_embedder.mlp.0.weight" {
            time::turn_embedding(&mut values);
        }
        if reversed && spec.name.starts_with(OUTPUT) {
            time::negate(&mut values);
        }
        flat.extend(values);
    }
    checkpoint::check_values(path, &metadata, &key, &hash)?;
    if taken.with_variance {
        notes.push(format!("the last layer predicts {} channels: kept the velocity, {0} / 2", 2 * latent.channels));
    }
    if reversed {
        notes.push("time ran from noise to data, as in SiT: turned, so that 0 is data".to_owned());
    }
    if damaged > 0 {
        notes.push(format!(
            "WARNING: {damaged} tensors have not the checksum that the file states; it is damaged, or was saved \
             without checksums"
        ));
    }
    let floats: BTreeMap<&str, ()> =
        taken.sources.iter().filter_map(|stored| Some((stored.float?.name(), ()))).collect();
    let floats = floats.into_keys().collect::<Vec<_>>().join(", ");
    Ok(Imported { weights: NetworkWeights { model, latent, flat }, key, floats, notes })
}

/// Name of the condition encoder's own patch embedding.
const SECOND_EMBEDDER: &str = "s_embedder.";

/// Name of the last layer, whose outputs are the velocity.
const OUTPUT: &str = "final_layer.linear.";

/// What a file of ours says of its network.
fn described(path: &Path, metadata: &HashMap<String, String>) -> Result<(ModelConfig, LatentShape), WeightsFileError> {
    fn parse<T: DeserializeOwned>(path: &Path, key: &str, text: Option<&String>) -> Result<T, WeightsFileError> {
        let parsed = text
            .ok_or_else(|| "missing".to_owned())
            .and_then(|text| serde_json::from_str(text).map_err(|e| shards::excerpt(&e.to_string())));
        parsed.map_err(|reason| WeightsFileError::Network {
            path: path.to_owned(),
            reason: format!("{key} in its metadata is no description of this program ({reason}); export it again"),
        })
    }
    Ok((parse(path, "model", metadata.get("model"))?, parse(path, "latent", metadata.get("latent"))?))
}

/// Where each parameter comes from.
struct Taken<'a> {
    /// In the order of the layout.
    sources: Vec<&'a Stored>,
    /// Whether the last layer has twice the channels.
    with_variance: bool,
}

fn take<'a>(
    tensors: &'a BTreeMap<String, Stored>,
    model: &ModelConfig,
    latent: &LatentShape,
    one_embedder: bool,
) -> Result<Taken<'a>, Mismatch> {
    let mut mismatch = Mismatch::default();
    let mut left: BTreeMap<&str, &Stored> = tensors.iter().map(|(name, stored)| (name.as_str(), stored)).collect();
    left.remove(POSITION);
    let outputs = (model.patch * model.patch * latent.channels) as u64;
    let with_variance =
        tensors.get("final_layer.linear.weight").is_some_and(|w| w.shape.first() == Some(&(2 * outputs)));
    let mut sources = Vec::new();
    for spec in layout(model, latent) {
        let mut expected: Vec<u64> = spec.shape.iter().map(|&side| side as u64).collect();
        if with_variance && spec.name.starts_with(OUTPUT) {
            expected[0] *= 2;
        }
        let name = match one_embedder && spec.name.starts_with(SECOND_EMBEDDER) {
            true => spec.name.replace(SECOND_EMBEDDER, "x_embedder."),
            false => spec.name.clone(),
        };
        left.remove(name.as_str());
        match tensors.get(&name) {
            None => mismatch.missing.push(spec.name),
            Some(stored) if stored.shape != expected => {
                mismatch.misshapen.push(format!("{}: expected {expected:?}, got {:?}", spec.name, stored.shape));
            }
            Some(stored) => sources.push(stored),
        }
    }
    mismatch.unexpected.extend(left.into_keys().map(shards::excerpt));
    match mismatch == Mismatch::default() {
        true => Ok(Taken { sources, with_variance }),
        false => Err(mismatch),
    }
}

/// Keeps the first `channels` of every `2 channels` rows of `row` values: rows are ordered (row, column, channel).
fn without_variance(values: &[f32], channels: usize, row: usize) -> Vec<f32> {
    values.chunks_exact(2 * channels * row).flat_map(|place| &place[..channels * row]).copied().collect()
}

fn check_position(stored: &Stored, values: &[f32], model: &ModelConfig, latent: &LatentShape) -> Result<(), String> {
    let grid = latent.height / model.patch;
    let expected = [1, (grid * grid) as u64, model.hidden as u64];
    if stored.shape != expected && stored.shape != expected[1..] {
        return Err(format!("pos_embed has the shape {:?} where {expected:?} is expected", stored.shape));
    }
    let mut fixed = vec![0.0_f32; values.len()];
    position_embedding(model.hidden, grid).copy_data(&mut fixed, values.len());
    let tolerance = POSITION_TOLERANCE + stored.float.map_or(0.0, super::stored::Float::rounding);
    let near = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) <= tolerance;
    match values.iter().zip(&fixed).all(near) {
        true => Ok(()),
        false => {
            Err("its pos_embed is not SiT's fixed one (sine and cosine, columns first), which this network has".into())
        }
    }
}
