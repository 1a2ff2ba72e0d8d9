//! `pipeline verify`: whether a dataset on disk is what was written.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use pipeline::{Flow, Runtime};
use serde_json::json;
use shards::{Depth, Manifest};
use stages::device::cores;
use stages::exchange::verify::{Findings, ShardNumbers, Verdicts, VerifyShard, warnings};

use crate::exit::Outcome;
use crate::show::{self, Progress};

/// Check every byte of a dataset and name each damaged block; exit code 3 if there is any.
#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyArgs {
    /// Dataset that `pipeline encode` or `pipeline import` wrote
    #[arg(value_name = "DATA")]
    pub(crate) data: PathBuf,
    /// Read headers, footers and tails only: finds missing, cut and exchanged shards, not a flipped bit in a block
    #[arg(long)]
    pub(crate) fast: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &VerifyArgs, runtime: &Runtime) -> Result<Outcome> {
    let manifest = Arc::new(Manifest::load(&args.data)?);
    let depth = if args.fast { Depth::Fast } else { Depth::Full };
    let shards = manifest.shards.len() as u64;
    let mut progress = Progress::new("verifying", shards);

    let finished = Flow::from(ShardNumbers::of(&manifest)) //         -> usize
        .then(VerifyShard::of(&args.data, &manifest, depth)) //          -> Verdict
        .workers(cores())
        .into(Verdicts::default())
        .observe(progress.interval(), move |report| {
            let done = report.stages.last().map_or(0, |stage| stage.items);
            progress.at(done, &format!("verified {done}/{shards} shards"));
        })
        .run(runtime)?;

    let Findings { verified, errors } = finished.output;
    let (seconds, warnings) = (finished.report.wall.as_secs_f64(), warnings(&manifest));
    let rate = verified.bytes as f64 / 1e6 / seconds.max(1e-9);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    if args.json {
        let object = json!({
            "depth": if args.fast { "fast" } else { "full" },
            "complete": !finished.interrupted,
            "shards": verified.shards,
            "blocks": verified.blocks,
            "samples": verified.samples,
            "bytes": verified.bytes,
            "seconds": seconds,
            "mb_per_s": rate,
            "bad": errors,
            "warnings": warnings,
        });
        show::result(&object.to_string());
    } else {
        errors.iter().for_each(|error| show::result(error));
        warnings.iter().for_each(|warning| show::result(&format!("warning: {warning}")));
        show::result(&format!(
            "{} shards, {} blocks and {} samples in {} bytes read in {seconds:.1} s ({rate:.0} MB/s): {}",
            verified.shards,
            verified.blocks,
            verified.samples,
            verified.bytes,
            match errors.len() {
                0 if args.fast => "every shard is there, with its index".to_owned(),
                0 => "every byte agrees with its checksum".to_owned(),
                n => format!("{n} found wrong"),
            }
        ));
    }
    if !errors.is_empty() {
        return Ok(Outcome::Damaged(format!(
            "{}: {} found wrong; copy the shards named above again, or delete them and dataset.json and run the command \
             that wrote them",
            args.data.display(),
            errors.len()
        )));
    }
    if finished.interrupted {
        return Ok(Outcome::Interrupted(format!(
            "stopped after {} of {shards} shards, of which none is wrong; run it again for all",
            verified.shards
        )));
    }
    Ok(Outcome::Done)
}
