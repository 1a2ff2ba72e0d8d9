//! `pipeline bench encode`: the front end (decode and crop) on one thread and on all, then a whole encode into a folder
//! that is removed again.
//!
//! The front end is what Python's preprocessing does in a process: read, decode, crop, one image after the other. Its
//! threads share nothing, so their scaling is that of the machine's cores.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser};
use pipeline::{BoxError, End, Flow, Report, Runtime, Sink, Source, Stage, Stop, Worker};
use serde_json::{Value, json};
use shards::{Dataset, Io, Scratch};
use stages::data::{Decoded, ImageRef};
use stages::device::cores;
use stages::encode::crop::AdmCrop;
use stages::encode::decode::Decode;
use stages::encode::list::{ImageList, Numbering};

use crate::commands::encode::{self, EncodeArgs, Encoded, ResizeArg};
use crate::commands::launching::ShareArgs;
use crate::exit::Outcome;
use crate::report::FlowRecord;
use crate::show;

/// Measure an encode stage by stage: images a second, what each stage costs, and what holds it up.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchEncodeArgs {
    /// Folder with one folder of images for each class
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// As in encode
    #[arg(long, value_name = "VAE", default_value = "tiny")]
    vae: String,
    /// As in encode
    #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = encode::size_in_range)]
    size: usize,
    /// As in encode
    #[arg(long, value_enum, default_value_t = ResizeArg::Exact)]
    resize: ResizeArg,
    /// As in encode
    #[arg(long, default_value = "auto")]
    devices: String,
    /// As in encode
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// As in encode
    #[arg(long, value_name = "N", value_parser = encode::batch_in_range)]
    batch: Option<usize>,
    /// As in encode
    #[arg(long, value_name = "KIND", default_value = "auto")]
    precision: String,
    /// Images to encode, at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    limit: usize,
    /// Images for the front end, which is far faster: the list is gone through again and again until so many are done
    #[arg(long, value_name = "N", default_value = "2048")]
    front_images: NonZeroUsize,
    /// Leave the encode out: decode and crop alone
    #[arg(long)]
    front_only: bool,
    /// Where the encode writes: a folder of its own in this one is made, and removed at the end [default: the system's]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BenchEncodeArgs, runtime: &Runtime) -> Result<Outcome> {
    let workers = args.workers.map_or_else(cores, NonZeroUsize::get);
    let list = ImageList::scan(&args.images, Numbering::ImageNet)?.permuted(0);
    let Some(alone) = front_end(args, &list, 1, runtime)? else { return Ok(stopped()) };
    let Some(together) = front_end(args, &list, workers, runtime)? else { return Ok(stopped()) };
    let mut found = json!({
        "front_end": {
            "decode_ms": alone.decode.as_secs_f64() * 1e3 / alone.images as f64,
            "crop_ms": alone.crop.as_secs_f64() * 1e3 / alone.images as f64,
            "images_per_s_one_worker": alone.rate(),
            "images_per_s": together.rate(),
            "workers": workers,
            "scaling": together.rate() / alone.rate() / workers as f64,
        }
    });
    if !args.front_only {
        let Some(whole) = whole(args, runtime)? else { return Ok(stopped()) };
        let Value::Object(whole) = whole else {
            bail!("the figures of the encode are no object; a defect of the program")
        };
        found.as_object_mut().context("the figures are no object; a defect of the program")?.extend(whole);
    }
    match args.json {
        true => show::result(&found.to_string()),
        false => show::result(&table(&found)),
    }
    Ok(Outcome::Done)
}

fn stopped() -> Outcome {
    Outcome::Interrupted("stopped; nothing was measured".to_owned())
}

/// What decoding and cropping took.
#[derive(Debug, Clone, Copy, Default)]
struct Front {
    images: usize,
    decode: Duration,
    crop: Duration,
    wall: Duration,
}

impl Front {
    fn rate(&self) -> f64 {
        self.images as f64 / self.wall.as_secs_f64().max(1e-9)
    }
}

/// Decodes and crops on `workers` threads; `None` if an interrupt was requested.
fn front_end(args: &BenchEncodeArgs, list: &ImageList, workers: usize, runtime: &Runtime) -> Result<Option<Front>> {
    let (size, resize) = (args.size, args.resize.into());
    let finished = Flow::from(Again { list: list.clone(), at: 0, left: args.front_images.get() }) // -> ImageRef
        .then(move |worker: Worker| {
            let (decode, crop) = (Decode::strict(worker)?, AdmCrop::to(size, resize)(worker)?);
            Ok(FrontEnd { decode, crop })
        })
        .workers(workers) //                                                                         -> Front
        .into(Add(Front::default()))
        .run(runtime)?;
    Ok(finished.output.map(|front| Front { wall: finished.report.wall, ..front }))
}

/// Source: the images of a list, again and again.
struct Again {
    list: ImageList,
    at: u64,
    left: usize,
}

impl Source for Again {
    type Item = ImageRef;

    fn next(&mut self, _: &Stop) -> Result<Option<ImageRef>, BoxError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        (self.left, self.at) = (left, (self.at + 1) % self.list.len() as u64);
        Ok(self.list.image(self.at))
    }
}

/// Stage: one thread that decodes and crops, and says how long each took.
struct FrontEnd {
    decode: Decode,
    crop: AdmCrop,
}

impl Stage for FrontEnd {
    type In = ImageRef;
    type Out = Front;

    fn process(&mut self, image: ImageRef) -> Result<Front, BoxError> {
        let begun = Instant::now();
        let decoded = self.decode.process(image)?;
        let decode = begun.elapsed();
        let cropped: Decoded = self.crop.process(decoded)?;
        let crop = begun.elapsed() - decode;
        drop(cropped);
        Ok(Front { images: 1, decode, crop, wall: Duration::ZERO })
    }
}

/// Sink: adds up; `None` if the flow was interrupted.
struct Add(Front);

impl Sink for Add {
    type In = Front;
    type Output = Option<Front>;

    fn consume(&mut self, item: Front) -> Result<ControlFlow<()>, BoxError> {
        self.0.images += item.images;
        self.0.decode += item.decode;
        self.0.crop += item.crop;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, end: End) -> Result<Option<Front>, BoxError> {
        Ok((end == End::Complete).then_some(self.0))
    }
}

/// What the command line of an encode gives where only the two folders are named.
#[derive(Debug, Parser)]
struct Defaults {
    #[command(flatten)]
    encode: EncodeArgs,
}

/// A folder that is removed when the measurement ends, however it ends.
struct ScratchFolder(PathBuf);

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        // It holds nothing that anybody needs.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A whole encode; `None` if an interrupt was requested.
fn whole(args: &BenchEncodeArgs, runtime: &Runtime) -> Result<Option<Value>> {
    let parent = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = ScratchFolder(parent.join(format!("dualpath-bench-{}", std::process::id())));
    let words =
        ["encode".as_ref(), "--images".as_ref(), args.images.as_os_str(), "--out".as_ref(), scratch.0.as_os_str()];
    let Defaults { encode: defaults } = Defaults::try_parse_from(words)?;
    let encode_args = EncodeArgs {
        vae: args.vae.clone(),
        size: args.size,
        resize: args.resize,
        devices: args.devices.clone(),
        workers: args.workers,
        batch: args.batch,
        precision: args.precision.clone(),
        limit: Some(args.limit),
        sharing: ShareArgs::all(),
        ..defaults
    };
    let Encoded::Now { finished, .. } = encode::encode(&encode_args, runtime)? else { return Ok(None) };
    if !finished.output.complete {
        return Ok(None);
    }
    Ok(Some(figures(&finished.report, finished.output.samples, &scratch.0)?))
}

fn figures(report: &Report, images: u64, data: &Path) -> Result<Value> {
    let flow = FlowRecord::of(report);
    let stages: serde_json::Map<_, _> = flow
        .stages
        .iter()
        .map(|stage| {
            let shares = stage.shares(flow.wall_s);
            let figures = json!({
                "workers": stage.workers, "busy": shares.busy, "starved": shares.starved, "blocked": shares.blocked,
                "ms_per_image": stage.busy_s * 1e3 / images as f64,
            });
            (stage.name.clone(), figures)
        })
        .collect();
    let (raw, stored, entropy) = mean_column(data)?;
    Ok(json!({
        "images": images,
        "seconds": flow.wall_s,
        "images_per_s": images as f64 / flow.wall_s,
        "stages": stages,
        "stage_order": flow.stages.iter().map(|stage| &stage.name).collect::<Vec<_>>(),
        "bottleneck": flow.bottleneck().map(|stage| stage.name.clone()),
        "mean": { "raw_bytes": raw, "stored_bytes": stored, "entropy_bytes": entropy, "over_entropy": stored as f64 / entropy - 1.0 },
    }))
}

/// Bytes of the column `mean` raw, stored, and by the order-0 entropy of its 16-bit values: what an ideal code for each
/// value on its own would need.
fn mean_column(data: &Path) -> Result<(u64, u64, f64)> {
    let dataset = Dataset::open(data, Io::Auto)?;
    let (mut raw, mut stored, mut counts, mut scratch) = (0, 0, vec![0u64; 1 << 16], Scratch::new());
    let mut bytes = Vec::new();
    for shard in &dataset.shards {
        for block in 0..shard.blocks() {
            bytes.resize(shard.block_len(block) * shard.columns()[0].sample_bytes(), 0);
            shard.read_block(block, 0, &mut bytes, &mut scratch)?;
            bytes.as_chunks::<2>().0.iter().for_each(|pair| counts[usize::from(u16::from_le_bytes(*pair))] += 1);
            raw += bytes.len() as u64;
            stored += shard.stored_len(block, 0).unwrap_or(0);
        }
    }
    let total: f64 = counts.iter().map(|count| *count as f64).sum();
    let used = counts.iter().filter(|count| **count > 0).map(|count| *count as f64);
    let bits: f64 = used.map(|count| -count * (count / total).log2()).sum();
    Ok((raw, stored, bits / 8.0))
}

fn table(found: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let front = &found["front_end"];
    let mut text = format!(
        "front end   decode {:.2} ms, crop {:.2} ms an image; {:.0} images/s on one worker, {:.0} on {} ({:.0} % of linear)\n",
        number(&front["decode_ms"]),
        number(&front["crop_ms"]),
        number(&front["images_per_s_one_worker"]),
        number(&front["images_per_s"]),
        front["workers"],
        100.0 * number(&front["scaling"]),
    );
    let Some(order) = found["stage_order"].as_array() else { return text };
    for name in order.iter().filter_map(Value::as_str) {
        let stage = &found["stages"][name];
        text += &format!(
            "{name:<18} {:>2} x  {:>9.3} ms an image   busy {:>3.0} %   starved {:>3.0} %   blocked {:>3.0} %\n",
            number(&stage["workers"]),
            number(&stage["ms_per_image"]),
            100.0 * number(&stage["busy"]),
            100.0 * number(&stage["starved"]),
            100.0 * number(&stage["blocked"]),
        );
    }
    text += &format!(
        "encode      {} images in {:.1} s: {:.2} images/s, held up by {}\n",
        found["images"],
        number(&found["seconds"]),
        number(&found["images_per_s"]),
        found["bottleneck"].as_str().unwrap_or("nothing"),
    );
    let mean = &found["mean"];
    text += &format!(
        "mean        {} bytes stored of {}: {:+.2} % over the order-0 entropy of its values\n",
        mean["stored_bytes"],
        mean["raw_bytes"],
        100.0 * number(&mean["over_entropy"]),
    );
    text
}
