//! `pipeline make-ref`: a reference file for `evaluate --inception`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use pipeline::Runtime;
use stages::evaluate::features::Keep;
use stages::evaluate::reference::WriteReference;

use crate::commands::evaluate::input::Input;
use crate::commands::evaluate::metrics::Network;
use crate::commands::writing;
use crate::exit::Outcome;
use crate::show;

/// Make a reference file of real images: their statistics, and some of the pictures for precision and recall, as the ADM
/// evaluator's files have them.
#[derive(Debug, Clone, Args)]
pub(crate) struct MakeRefArgs {
    /// Folder of pictures, of one size unless they are cropped; or an .npz file with arr_0
    #[arg(long, value_name = "DIR|NPZ")]
    images: PathBuf,
    /// Weights of the Inception network of FID (docs/evaluation.md)
    #[arg(long, value_name = "F.safetensors")]
    inception: PathBuf,
    /// The file to write
    #[arg(long, value_name = "REF.npz")]
    out: PathBuf,
    /// Crop the pictures of a folder to so many pixels a side, as ADM does
    #[arg(long, value_name = "N")]
    crop: Option<usize>,
    /// Pictures that go into the file, evenly spread over all
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pictures: u64,
    /// auto, cpu or cuda:0
    #[arg(long, default_value = "auto")]
    devices: String,
    /// Pictures that go through the network together
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,
}

pub(crate) fn run(args: &MakeRefArgs, runtime: &Runtime) -> Result<Outcome> {
    let open = || Input::open("pictures", &args.images, args.batch, args.crop);
    let input = open()?;
    if input.size()?.is_none() {
        bail!("{}: holds no pictures; give a folder of them, or an .npz file with arr_0", args.images.display());
    }
    if input.count() < 2 {
        bail!("{}: two pictures at least are needed for statistics", args.images.display());
    }
    writing::free("--out", &args.out)?;
    let network = Network::open(&args.inception, &args.devices, args.batch)?;
    let stopped = || Ok(Outcome::Interrupted("stopped; nothing was written".to_owned()));
    let Some(measured) = network.measure(input, Keep::Nothing, runtime)? else { return stopped() };
    let statistics = measured.statistics;
    // The pictures once more: holding them would take more memory than reading them takes time.
    let write = WriteReference::create(&args.out, &statistics, network.weights, args.pictures)?;
    let finished = open()?.pictures(args.batch)?.into(write).run(runtime)?;
    if finished.interrupted {
        return stopped();
    }
    show::result(&format!(
        "wrote {}: statistics of {} pictures, {} of which are in it",
        args.out.display(),
        statistics.count,
        finished.output
    ));
    Ok(Outcome::Done)
}
