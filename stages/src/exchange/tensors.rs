//! The safetensors form: one file a shard.
//!
//! ```text
//! OUT/shard-00000.safetensors
//!   mean, logvar, ..   [N, C, h, w]   every column under its own name, as stored: f16 or f32, unscaled
//!   labels             i64 [N]        class indices
//!   source_index       i64 [N]        number of the sample in its source
//!   flags              u8 [N]         what was odd about the image (see the shard format)
//! OUT/shard-00001.safetensors ..      up to 8,192 samples each; sorted names are the dataset's order
//! ```
//!
//! The metadata are strings: `format` "pt", `dataset` (its hash), `shard`, `shards`, `scaling_factor`, `shift_factor`,
//! `scaling_applied`, `pixel_range`, `semantics` (a JSON object, column to meaning) and `classes` (a JSON list).
//!
//! A loader such as LightningDiT's `ImgLatentDataset` finds the files by `*.safetensors` and counts by `labels`, both of
//! which hold here; it takes a drawn sample named `latents`, and `latents_flip`. Nothing is drawn for it here, because a
//! trainer should draw anew at every step: in its `__getitem__` read `mean` and `logvar` instead and use
//! `mean + torch.exp(logvar.float() / 2) * torch.randn_like(mean.float())`, times `scaling_factor`. Columns of mirrored
//! images are `mean_flip` and `logvar_flip`.
//!
//! The file is written block by block; in memory are one block of one column, and labels.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use shards::{DType, Dataset, Schema, Scratch, ShardReader};

use super::ExportError;
use super::export::write_whole;

/// Name of the file of a shard.
pub fn file(shard: usize) -> String {
    format!("shard-{shard:05}.safetensors")
}

/// Names beside those of the columns.
const TAKEN: [&str; 4] = ["labels", "source_index", "flags", "__metadata__"];

/// Refuses columns whose names are taken.
pub(super) fn check_names(schema: &Schema) -> Result<(), ExportError> {
    match schema.columns.iter().find(|column| TAKEN.contains(&column.name.as_str())) {
        Some(column) => Err(ExportError::NameTaken { column: column.name.clone() }),
        None => Ok(()),
    }
}

/// Writes the file of a shard; bytes written.
pub(super) fn write(dir: &Path, dataset: &Dataset, shard: usize, scratch: &mut Scratch) -> Result<u64, ExportError> {
    let reader = &dataset.shards[shard];
    let (header, data_len) = header(dataset, reader).ok_or(ExportError::TooLarge { shard })?;
    let mut damaged = None;
    let written = write_whole(&dir.join(file(shard)), |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut block = Vec::new();
        for (column, declared) in reader.columns().iter().enumerate() {
            for number in 0..reader.blocks() {
                block.resize(reader.block_len(number) * declared.sample_bytes(), 0);
                if let Err(error) = reader.read_block(number, column, &mut block, scratch) {
                    damaged = Some(error);
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                out.write_all(&block)?;
            }
        }
        for label in reader.labels() {
            out.write_all(&i64::from(*label).to_le_bytes())?;
        }
        for index in reader.source_indices() {
            out.write_all(&i64::from(*index).to_le_bytes())?;
        }
        out.write_all(reader.flags())
    });
    if let Some(error) = damaged {
        return Err(error.into());
    }
    written?;
    Ok(8 + header.len() as u64 + data_len)
}

/// The JSON header, padded to a multiple of 8, and the length of the data behind it; `None` where that overflows.
fn header(dataset: &Dataset, reader: &ShardReader) -> Option<(Vec<u8>, u64)> {
    let schema = &reader.header().schema;
    let mut entries = BTreeMap::new();
    let mut end = 0_u64;
    let mut add = |name: &str, dtype: &str, shape: Vec<u64>, bytes: u64| {
        let start = end;
        end = start.checked_add(bytes)?;
        entries.insert(name.to_owned(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
        Some(())
    };
    let samples = reader.len() as u64;
    for column in &schema.columns {
        let dtype = match column.dtype {
            DType::F16 => "F16",
            DType::F32 => "F32",
        };
        let shape = [samples].into_iter().chain(column.shape.iter().map(|side| u64::from(*side))).collect();
        add(&column.name, dtype, shape, samples.checked_mul(column.sample_bytes() as u64)?)?;
    }
    add("labels", "I64", vec![samples], 8 * samples)?;
    add("source_index", "I64", vec![samples], 8 * samples)?;
    add("flags", "U8", vec![samples], samples)?;

    let semantics: BTreeMap<_, _> = schema.columns.iter().map(|column| (&column.name, column.semantics)).collect();
    let metadata: BTreeMap<&str, String> = BTreeMap::from([
        ("format", "pt".to_owned()),
        ("dataset", format!("{:016x}", dataset.hash())),
        ("shard", reader.header().shard.to_string()),
        ("shards", reader.header().shards.to_string()),
        ("scaling_factor", schema.scaling_factor.to_string()),
        ("shift_factor", schema.shift_factor.to_string()),
        ("scaling_applied", schema.scaling_applied.to_string()),
        ("pixel_range", json!(schema.pixel_range).to_string()),
        ("semantics", json!(semantics).to_string()),
        ("classes", json!(dataset.manifest.classes).to_string()),
    ]);
    entries.insert("__metadata__".to_owned(), json!(metadata));
    let mut bytes = Value::from_iter(entries).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Some((bytes, end))
}
