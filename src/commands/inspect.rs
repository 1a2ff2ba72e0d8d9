//! `pipeline inspect`: what an encoded dataset holds.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use shards::{Dataset, Io};

use crate::exit::Outcome;

/// Show what an encoded dataset holds; every shard's index is checked, and with --all every byte.
#[derive(Debug, Clone, Args)]
pub(crate) struct InspectArgs {
    /// Dataset that `pipeline encode` wrote
    #[arg(value_name = "DATA")]
    pub(crate) data: PathBuf,
    /// Read and check every byte
    #[arg(long)]
    pub(crate) all: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &InspectArgs) -> Result<Outcome> {
    let dataset = Dataset::open(&args.data, Io::Auto)?;
    let manifest = &dataset.manifest;
    let mut per_class = vec![0u64; manifest.classes.len()];
    for shard in &dataset.shards {
        if args.all {
            shard.verify()?;
        }
        for &label in shard.labels() {
            if let Some(count) = usize::try_from(label).ok().and_then(|label| per_class.get_mut(label)) {
                *count += 1;
            }
        }
    }
    if args.json {
        let object = json!({
            "samples": manifest.samples,
            "shards": manifest.shards.len(),
            "hash": format!("{:016x}", dataset.hash()),
            "classes": manifest.classes,
            "samples_per_class": per_class,
            "schema": manifest.schema,
            "skipped": manifest.skipped,
            "verified": args.all,
        });
        println!("{object}");
        return Ok(Outcome::Done);
    }
    println!("{} samples in {} shards, hash {:016x}", manifest.samples, manifest.shards.len(), dataset.hash());
    for column in &manifest.schema.columns {
        println!("column {:<8} {:?} {:?}", column.name, column.dtype, column.shape);
    }
    println!("scaling factor {}, shift {}", manifest.schema.scaling_factor, manifest.schema.shift_factor);
    for (class, count) in manifest.classes.iter().zip(per_class) {
        println!("class {class:<24} {count}");
    }
    if !manifest.skipped.is_empty() {
        println!("{} files were skipped when it was encoded", manifest.skipped.len());
    }
    if args.all {
        println!("every byte agrees with its checksum");
    }
    Ok(Outcome::Done)
}
