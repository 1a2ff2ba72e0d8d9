//! The facts about a dataset: as `--json` prints them, and as a person reads them.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;
use shards::{Dataset, Schema, Skipped, excerpt, flags};
use stages::encode::list::wnids;
use stages::exchange::channels::channel_means;

/// Lines of classes, and of skipped files, that a person is shown.
const MOST_CLASSES: usize = 20;
const MOST_SKIPPED: usize = 10;

/// Everything that the manifest and the indices of the shards say; no block is read for it.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    samples: u64,
    shards: usize,
    blocks: usize,
    /// Identifies the contents.
    hash: String,
    /// All shards, as files.
    bytes: u64,
    columns: Vec<ColumnFacts>,
    schema: Schema,
    provenance: BTreeMap<String, Value>,
    classes: Vec<String>,
    samples_per_class: Vec<u64>,
    balance: Balance,
    flags: Flags,
    stats: Value,
    histograms: Value,
    skipped: Vec<Skipped>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<Record>,
}

#[derive(Debug, Serialize)]
struct ColumnFacts {
    name: String,
    codec: String,
    stored_bytes: u64,
    raw_bytes: u64,
}

/// Samples of a class. The median is that of the classes, the upper of two.
#[derive(Debug, Serialize)]
struct Balance {
    min: u64,
    median: u64,
    max: u64,
    empty_classes: usize,
}

/// Samples whose image was odd in some way.
#[derive(Debug, Default, Serialize)]
struct Flags {
    png: u64,
    cmyk: u64,
    grey: u64,
    alpha: u64,
}

impl Flags {
    fn add(&mut self, bits: u8) {
        for (count, bit) in [
            (&mut self.png, flags::PNG),
            (&mut self.cmyk, flags::CMYK),
            (&mut self.grey, flags::GRAY),
            (&mut self.alpha, flags::ALPHA),
        ] {
            *count += u64::from(bits & bit != 0);
        }
    }
}

/// One sample.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    position: usize,
    shard: String,
    key: String,
    label: i32,
    class: Option<String>,
    source_index: u32,
    flags: Vec<&'static str>,
    /// Mean of each channel, by column.
    channel_means: BTreeMap<String, Vec<f64>>,
}

impl Summary {
    pub(super) fn of(dataset: &Dataset) -> Self {
        let manifest = &dataset.manifest;
        let mut samples_per_class = vec![0_u64; manifest.classes.len()];
        let mut flags = Flags::default();
        for shard in &dataset.shards {
            for &label in shard.labels() {
                if let Some(count) = usize::try_from(label).ok().and_then(|label| samples_per_class.get_mut(label)) {
                    *count += 1;
                }
            }
            shard.flags().iter().for_each(|bits| flags.add(*bits));
        }
        let mut sorted = samples_per_class.clone();
        sorted.sort_unstable();
        let balance = Balance {
            min: sorted.first().copied().unwrap_or_default(),
            median: sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
            max: sorted.last().copied().unwrap_or_default(),
            empty_classes: sorted.iter().filter(|count| **count == 0).count(),
        };
        let columns = manifest.schema.columns.iter().enumerate().map(|(c, column)| ColumnFacts {
            name: column.name.clone(),
            codec: column.codec.name(column.dtype).to_owned(),
            stored_bytes: (dataset.shards.iter())
                .flat_map(|shard| (0..shard.blocks()).filter_map(move |block| shard.stored_len(block, c)))
                .sum(),
            raw_bytes: manifest.samples * column.sample_bytes() as u64,
        });
        Self {
            samples: manifest.samples,
            shards: dataset.shards.len(),
            blocks: dataset.blocks(),
            hash: format!("{:016x}", dataset.hash()),
            bytes: dataset.shards.iter().map(shards::ShardReader::file_len).sum(),
            columns: columns.collect(),
            schema: manifest.schema.clone(),
            provenance: manifest.provenance.clone(),
            classes: manifest.classes.clone(),
            samples_per_class,
            balance,
            flags,
            stats: serde_json::to_value(&manifest.stats).unwrap_or_default(),
            histograms: serde_json::to_value(&manifest.histograms).unwrap_or_default(),
            skipped: manifest.skipped.clone(),
            sample: None,
        }
    }
}

impl Record {
    pub(super) fn read(dataset: &Dataset, position: usize) -> Result<Self> {
        let Some(place) = dataset.block_of(position) else {
            bail!("--sample {position}: the dataset has samples 0 to {}", dataset.len().saturating_sub(1));
        };
        let shard = &dataset.shards[place.block.shard];
        let row = place.block.block * dataset.manifest.schema.block_samples as usize + place.index;
        let (label, bits) = (shard.labels()[row], shard.flags()[row]);
        let names = [(flags::PNG, "png"), (flags::CMYK, "cmyk"), (flags::GRAY, "grey"), (flags::ALPHA, "alpha")];
        let class = usize::try_from(label).ok().and_then(|label| dataset.manifest.classes.get(label));
        Ok(Self {
            position,
            shard: dataset.manifest.shards[place.block.shard].file.clone(),
            key: shard.key(row).unwrap_or_default().to_owned(),
            label,
            class: class.cloned(),
            source_index: shard.source_indices()[row],
            flags: names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect(),
            channel_means: channel_means(dataset, place)?,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} samples in {} shards and {} blocks, {} bytes",
            self.samples, self.shards, self.blocks, self.bytes
        )?;
        writeln!(f, "hash {}", self.hash)?;
        let Schema { scaling_factor, shift_factor, scaling_applied, pixel_range: [low, high], .. } = self.schema;
        let applied = if scaling_applied { "applied" } else { "not applied" };
        writeln!(f, "scaling factor {scaling_factor}, shift {shift_factor}, {applied}; pixels in {low} to {high}")?;

        writeln!(f, "\ncolumns")?;
        for (facts, column) in self.columns.iter().zip(&self.schema.columns) {
            let ColumnFacts { name, codec, stored_bytes, raw_bytes } = facts;
            let ratio = *stored_bytes as f64 / (*raw_bytes).max(1) as f64;
            let semantics = serde_json::to_value(column.semantics).unwrap_or_default();
            let semantics = semantics.as_str().unwrap_or_default().replace('_', " ");
            let (dtype, shape) = (column.dtype.name(), &column.shape);
            writeln!(f, "  {name:<12} {dtype} {shape:?}, {semantics}, {codec}")?;
            writeln!(f, "  {:<12} {stored_bytes} bytes, {ratio:.3} of {raw_bytes}", "")?;
        }

        writeln!(f, "\nprovenance")?;
        for (key, value) in &self.provenance {
            facts(f, key, value)?;
        }

        let Balance { min, median, max, empty_classes } = self.balance;
        writeln!(
            f,
            "\n{} classes: {min} to {max} samples each, median {median}, {empty_classes} without any",
            self.classes.len()
        )?;
        for (class, count) in self.classes.iter().zip(&self.samples_per_class).take(MOST_CLASSES) {
            let name = match wnids::readable(class) {
                name if name == class => String::new(),
                name => format!("  {name}"),
            };
            writeln!(f, "  {:<24} {count:>7}{name}", excerpt(class))?;
        }
        and_more(f, self.classes.len(), MOST_CLASSES)?;
        let Flags { png, cmyk, grey, alpha } = self.flags;
        writeln!(f, "odd images: {png} PNG, {cmyk} CMYK, {grey} grey, {alpha} with alpha")?;

        if let Some(stats) = self.stats.as_object().filter(|stats| !stats.is_empty()) {
            writeln!(f, "\nstatistics         channel       mean        std        min        max  not finite")?;
            for (column, channels) in stats {
                for (c, channel) in channels.as_array().into_iter().flatten().enumerate() {
                    let number = |name: &str| channel[name].as_f64().unwrap_or(f64::NAN);
                    let [mean, std, min, max] = ["mean", "std", "min", "max"].map(number);
                    let strange = channel["non_finite"].as_u64().unwrap_or_default();
                    writeln!(
                        f,
                        "  {column:<16} {c:>7} {mean:>10.4} {std:>10.4} {min:>10.4} {max:>10.4} {strange:>11}"
                    )?;
                }
            }
        }

        if !self.skipped.is_empty() {
            writeln!(f, "\n{} files were skipped", self.skipped.len())?;
            for Skipped { key, reason } in self.skipped.iter().take(MOST_SKIPPED) {
                writeln!(f, "  {}: {}", excerpt(key), excerpt(reason))?;
            }
            and_more(f, self.skipped.len(), MOST_SKIPPED)?;
        }

        if let Some(record) = &self.sample {
            let Record { position, shard, key, label, class, source_index, flags, channel_means } = record;
            writeln!(f, "\nsample {position} ({shard})")?;
            let class = class.as_deref().unwrap_or("without a name");
            writeln!(f, "  {}, class {label} ({}), number {source_index} of its source", excerpt(key), excerpt(class))?;
            if !flags.is_empty() {
                writeln!(f, "  {}", flags.join(", "))?;
            }
            for (column, means) in channel_means {
                let means: Vec<_> = means.iter().map(|mean| format!("{mean:.4}")).collect();
                writeln!(f, "  {column:<12} mean of each channel {}", means.join(" "))?;
            }
        }
        Ok(())
    }
}

/// `vae.name  tiny`: one line for each value of a nested object.
fn facts(f: &mut fmt::Formatter<'_>, key: &str, value: &Value) -> fmt::Result {
    match value {
        Value::Object(object) => object.iter().try_for_each(|(name, value)| facts(f, &format!("{key}.{name}"), value)),
        Value::Null => Ok(()),
        Value::String(text) => writeln!(f, "  {:<28} {}", excerpt(key), excerpt(text)),
        value => writeln!(f, "  {:<28} {value}", excerpt(key)),
    }
}

fn and_more(f: &mut fmt::Formatter<'_>, all: usize, shown: usize) -> fmt::Result {
    match all.checked_sub(shown) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(f, "  and {more} more"),
    }
}
