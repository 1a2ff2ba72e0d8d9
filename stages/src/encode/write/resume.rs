//! Takes over the shards that an earlier run finished: they must be what this run would write itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use shards::{Io, Schema, Scratch, ShardEntry, ShardError, ShardReader, Skipped};

use super::{Finished, Recipe, WriteError, WriteShards, file_name};
use crate::encode::decode;
use crate::encode::list::ImageList;
use crate::encode::stats::Stats;

impl WriteShards {
    /// Takes over a shard that an earlier run finished; `None` if there is none of that number.
    pub(super) fn take_finished(&self, shard: u64, list: &ImageList) -> Result<Option<Finished>, WriteError> {
        let file = file_name(shard);
        let path = self.dir.join(&file);
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |source: ShardError| match source.is_corrupt() {
            true => WriteError::Damaged { source },
            false => source.into(),
        };
        let reader = ShardReader::open(&path, Io::Pread).map_err(damaged)?;
        let header = reader.header();
        self.recipe.check_same(&path, &header.schema, &header.provenance)?;
        let wanted = self.header(shard);
        check_equal(&path, "shard", &header.shard.into(), &wanted.shard.into())?;
        check_equal(&path, "shards", &header.shards.into(), &wanted.shards.into())?;
        let skipped = self.check_samples(shard, &reader, list)?;
        let stats = self.stats_of(&reader).map_err(damaged)?;
        let (samples, bytes, xxh3) = (reader.len() as u32, reader.file_len(), reader.xxh3());
        Ok(Some(Finished { entry: ShardEntry { file, samples, bytes, xxh3 }, skipped, stats }))
    }

    /// Checks a finished shard's samples against the list; the files that were skipped.
    fn check_samples(&self, shard: u64, reader: &ShardReader, list: &ImageList) -> Result<Vec<Skipped>, WriteError> {
        let other = |sample: usize, wanted: &str| WriteError::OtherSamples {
            path: reader.path().to_owned(),
            sample,
            found: reader.key(sample).unwrap_or("nothing").to_owned(),
            wanted: wanted.to_owned(),
        };
        let (mut sample, mut skipped) = (0, Vec::new());
        let first = shard * self.recipe.layout.shard;
        for image in (first..self.end_of(shard)).filter_map(|position| list.image(position)) {
            if reader.source_indices().get(sample) == Some(&image.source_index) {
                if reader.key(sample) != Some(&image.key) || reader.labels().get(sample) != Some(&image.label) {
                    return Err(other(sample, &image.key));
                }
                sample += 1;
                continue;
            }
            let Some(fault) = decode::fault_of(&image)? else {
                let shard = reader.path().to_owned();
                return Err(WriteError::NoLongerSkipped { image: image.place, shard });
            };
            skipped.push(Skipped { key: image.key, reason: fault.to_string() });
        }
        match sample == reader.len() {
            true => Ok(skipped),
            false => Err(other(sample, "no more")),
        }
    }

    fn stats_of(&self, reader: &ShardReader) -> Result<Stats, ShardError> {
        let (mut stats, mut bytes, mut scratch) = (Stats::new(&self.recipe.schema), Vec::new(), Scratch::new());
        for block in 0..reader.blocks() {
            for (column, declared) in reader.columns().iter().enumerate() {
                bytes.resize(reader.block_len(block) * declared.sample_bytes(), 0);
                reader.read_block(block, column, &mut bytes, &mut scratch)?;
                stats.add(column, &bytes);
            }
        }
        Ok(stats)
    }
}

impl Recipe {
    /// Refuses a shard or manifest of another recipe, and names the first difference.
    pub(super) fn check_same(
        &self,
        path: &Path,
        schema: &Schema,
        provenance: &BTreeMap<String, Value>,
    ) -> Result<(), WriteError> {
        let object = |schema, provenance| serde_json::json!({ "provenance": provenance, "schema": schema });
        check_equal(path, "", &object(schema, provenance), &object(&self.schema, &self.provenance))
    }
}

/// Refuses values that differ, and names the innermost key at which they do.
fn check_equal(path: &Path, key: &str, found: &Value, wanted: &Value) -> Result<(), WriteError> {
    if let (Value::Object(found), Value::Object(wanted)) = (found, wanted) {
        for name in found.keys().chain(wanted.keys()) {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let value = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or(Value::Null);
            check_equal(path, &key, &value(found), &value(wanted))?;
        }
        return Ok(());
    }
    if found == wanted {
        return Ok(());
    }
    Err(WriteError::Different {
        path: path.to_owned(),
        what: key.to_owned(),
        found: found.to_string(),
        wanted: wanted.to_string(),
    })
}
