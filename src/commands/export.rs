//! `pipeline export`: a dataset in the form of another program.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use pipeline::{Flow, Runtime};
use shards::{Dataset, Io};
use stages::device::cores;
use stages::exchange::export::{Export, Exported, Format, Opened};

use crate::exit::{Ended, Outcome};
use crate::show::{self, Progress};

/// Export a dataset of latents for another program. An interrupted export continues where it stopped.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExportArgs {
    /// Dataset that `pipeline encode` or `pipeline import` wrote
    #[arg(value_name = "DATA")]
    pub(crate) data: PathBuf,
    /// One file of tensors for each shard, or REPA's directory of arrays
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) to: FormArg,
    /// Folder for the export: new, empty, or that of an interrupted export
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Threads that read, inflate and write [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormArg {
    /// mean, logvar, .. [N, C, h, w] as stored, labels [N]
    Safetensors,
    /// vae-sd/00000/img-mean-std-00000000.npy, f32 [2C, h, w], and vae-sd/dataset.json
    Repa,
}

pub(crate) fn run(args: &ExportArgs, runtime: &Runtime) -> Result<Ended> {
    let dataset = Arc::new(Dataset::open(&args.data, Io::Auto)?);
    let format = match args.to {
        FormArg::Safetensors => Format::Safetensors,
        FormArg::Repa => Format::Repa,
    };
    let total = dataset.len() as u64;
    let export = match Export::open(dataset, format, &args.out)? {
        Opened::Complete => {
            show::result(&format!("{} is complete already: {total} samples (not looked at again)", args.out.display()));
            return Ok(Ended::already());
        }
        Opened::Unfinished(export) => *export,
    };
    let first = export.samples_written();
    if first > 0 {
        show::say(&format!("continuing {}: {first} of {total} samples are there", args.out.display()));
    }
    let workers = args.workers.map_or(cores(), NonZeroUsize::get);
    let (parts, writer) = (export.parts(), export.writer());
    let mut progress = Progress::new("exporting", export.missing() as u64);

    let finished = Flow::from(parts) //                    -> usize
        .then(writer) //                                      -> WrittenPart
        .workers(workers)
        .into(export)
        .observe(progress.interval(), move |report| {
            let parts = report.stages.last().map_or(0, |stage| stage.items);
            progress.at(parts, &format!("exported {parts} parts of {total} samples"));
        })
        .run(runtime)?;

    let Exported { samples, files, bytes, complete } = finished.output;
    if !complete {
        let outcome = Outcome::Interrupted(format!(
            "stopped: {samples} of {total} samples are in {}; run the same command to continue",
            args.out.display()
        ));
        return Ok(Ended { outcome, report: Some(finished.report) });
    }
    show::say(&show::report_lines(&finished.report));
    let rate = bytes as f64 / 1e6 / finished.report.wall.as_secs_f64().max(1e-9);
    show::result(&format!(
        "exported {samples} samples into {files} {} files in {} ({rate:.0} MB/s)",
        format.name(),
        args.out.display()
    ));
    Ok(Ended { outcome: Outcome::Done, report: Some(finished.report) })
}
