//! `report.html` and `figures.json` of a demonstration, gathered from what its parts left behind.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use image::RgbImage;
use pipeline::{Flow, Runtime};
use serde::Serialize;
use stages::encode::crop::{AdmCrop, Resize};
use stages::encode::decode::Decode;
use stages::encode::list::{ImageList, ListImages, Numbering};
use stages::evaluate::neighbours::{Accuracy, Distances};
use stages::nets::autoencoder::VaeChoice;
use stages::procedural;
use stages::sample::reconstruct::{Reconstruct, Reconstructions};
use stages::sample::write::file_name;
use stages::train::run_dir::{Metrics, RunDir};

use super::{DemoArgs, PartRecord, Places, SIZE, command_lines, shell};
use crate::commands::evaluate::{DistanceToTrain, Evaluation};
use crate::commands::report::grids;
use crate::report::{Headline, OwnCommand, Page, Part, Reconstruction, SampleRow, Verdict};
use crate::show;

/// What each part does, in the order of the parts.
const PARTS: [(&str, &str); 5] = [
    ("draw", "Procedural pictures of mixed sizes as JPEG files in class folders, and a held-out part."),
    ("encode", "Decode, centre-crop, and store the autoencoder's posterior in compressed shards."),
    ("train", "Stream the shards and train the transformer on two noisy views of each image."),
    ("sample", "Integrate from noise with classifier-free guidance, and decode."),
    ("evaluate", "Find the nearest real image of every sample."),
];

/// `figures.json`: what the run did, in numbers.
#[derive(Debug, Serialize)]
struct Figures<'a> {
    seed: u64,
    /// Wall time of each part.
    seconds: BTreeMap<&'static str, f64>,
    steps: u64,
    velocity_loss: FirstAndLast,
    alignment_loss: FirstAndLast,
    condition_cosine: FirstAndLast,
    /// Mean over the records of the run.
    train_images_per_s: f64,
    /// Share of the time, mean over the records of the run.
    train_data_wait: f64,
    evaluation: &'a Evaluation,
}

#[derive(Debug, Serialize)]
struct FirstAndLast {
    first: f64,
    last: f64,
}

/// Writes both files, or nothing of the report if an interrupt was requested meanwhile: then false.
pub(super) fn write(
    args: &DemoArgs,
    places: &Places,
    lines: &[Vec<String>],
    records: &[PartRecord],
    evaluation: &Evaluation,
    runtime: &Runtime,
) -> Result<bool> {
    let metrics = RunDir::at(&places.run).read_metrics()?;
    let (Some(first), Some(last)) = (metrics.first(), metrics.last()) else {
        anyhow::bail!("{} has no metrics", places.run.display());
    };
    let course = |of: fn(&Metrics) -> f64| FirstAndLast { first: of(first), last: of(last) };
    let figures = Figures {
        seed: args.seed,
        seconds: PARTS.iter().zip(records).map(|((name, _), record)| (*name, record.seconds)).collect(),
        steps: last.step,
        velocity_loss: course(|m| m.velocity_loss),
        alignment_loss: course(|m| m.alignment_loss),
        condition_cosine: course(|m| m.features.as_ref().map_or(f64::NAN, |features| features.condition.cosine)),
        train_images_per_s: mean(&metrics, |m| m.images_per_s),
        train_data_wait: mean(&metrics, |m| m.data_wait),
        evaluation,
    };
    save(args, "figures.json", &serde_json::to_string_pretty(&figures)?)?;

    let Some(reconstructions) = reconstructions(places, runtime)? else { return Ok(false) };
    let page = Page {
        title: "A diffusion transformer in minutes".to_owned(),
        lead: lead(args, last),
        headline: headline(records, &figures),
        parts: parts(lines, records),
        metrics: &metrics,
        samples: samples(args, places)?,
        reconstructions,
        grids: grids(&RunDir::at(&places.run))?,
        judged_how: "Every sample is reduced to 32 x 32 pixels and compared with the held-out real images, pixel by \
                     pixel; it counts as right if the nearest of them is of the class that was asked for. Distances \
                     are root mean square differences in levels of 0 to 255."
            .to_owned(),
        judgement: judgement(evaluation),
        own_data: own_data(args),
    };
    save(args, "report.html", &page.render()?)?;
    Ok(true)
}

fn mean(metrics: &[Metrics], of: fn(&Metrics) -> f64) -> f64 {
    metrics.iter().map(of).sum::<f64>() / metrics.len() as f64
}

fn save(args: &DemoArgs, name: &str, text: &str) -> Result<()> {
    let path = args.out.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn lead(args: &DemoArgs, last: &Metrics) -> String {
    format!(
        "{} drawn images of {} classes were encoded to latents, a transformer was trained on them for {} steps with \
         dual-path condition alignment, and pictures were sampled from it. All of it went through the commands that \
         real work goes through; they are below, with what they did and how long they took.",
        args.per_class * procedural::CLASSES.len(),
        procedural::CLASSES.len(),
        last.step
    )
}

fn headline(records: &[PartRecord], figures: &Figures<'_>) -> Vec<Headline> {
    let evaluation = figures.evaluation;
    let total: f64 = records.iter().map(|record| record.seconds).sum();
    let headline = |label: &str, value: String, note: String| Headline { label: label.to_owned(), value, note };
    vec![
        headline(
            "samples of the right class",
            show::percent(evaluation.nearest_neighbour_accuracy.share()),
            format!("chance is {}", show::percent(evaluation.chance)),
        ),
        headline(
            "from images to samples",
            format!("{:.1} min", total / 60.0),
            format!("of which training {}", show::duration(records[2].seconds)),
        ),
        headline(
            "velocity loss",
            format!("{:.2}", figures.velocity_loss.last),
            format!("at the start {:.2}", figures.velocity_loss.first),
        ),
        headline(
            "images trained a second",
            format!("{:.0}", figures.train_images_per_s),
            "two views of each".to_owned(),
        ),
        headline(
            "training waited for data",
            format!("{:.2} %", 100.0 * figures.train_data_wait),
            "of its time".to_owned(),
        ),
    ]
}

fn parts(lines: &[Vec<String>], records: &[PartRecord]) -> Vec<Part> {
    let commands = std::iter::once(String::new()).chain(lines.iter().map(|words| shell(words)));
    let parts = PARTS.iter().zip(commands).zip(records);
    parts
        .map(|(((name, what), command), record)| Part {
            name: (*name).to_owned(),
            what: (*what).to_owned(),
            seconds: record.seconds,
            command,
            flow: record.flow.clone(),
        })
        .collect()
}

/// The pictures in the order of their numbers: balanced labels put the classes one after the other.
fn samples(args: &DemoArgs, places: &Places) -> Result<Vec<SampleRow>> {
    let classes = ImageList::scan(&places.train, Numbering::Folders)?.classes().to_vec();
    let mut rows = Vec::new();
    for (class, name) in (0..).zip(classes) {
        let numbers = class * args.samples_per_class..(class + 1) * args.samples_per_class;
        let images = numbers.map(|i| picture(&places.samples.join(file_name(i))));
        rows.push(SampleRow { class: name, images: images.collect::<Result<_>>()? });
    }
    Ok(rows)
}

fn picture(path: &std::path::Path) -> Result<RgbImage> {
    Ok(image::open(path).with_context(|| format!("cannot read {}", path.display()))?.to_rgb8())
}

/// The first held-out image of each class, and what the autoencoder makes of it.
fn reconstructions(places: &Places, runtime: &Runtime) -> Result<Option<Vec<Reconstruction>>> {
    let list = ImageList::scan(&places.held_out, Numbering::Folders)?.first_of_each_class();
    let classes = list.classes().to_vec();
    #[rustfmt::skip]
    let finished = Flow::from(ListImages::all(list))  //   -> ImageRef
        .then(Decode::strict)                                    //   -> Decoded         u8 [H, W, 3]
        .then(AdmCrop::to(SIZE, Resize::Exact))                  //   -> Decoded         u8 [S, S, 3]
        .then(Reconstruct::with(VaeChoice::parse("tiny")?))      //   -> Reconstruction
        .into(Reconstructions::default())
        .run(runtime)?;
    if finished.interrupted {
        return Ok(None);
    }
    let named = finished.output.into_iter().map(|pair| Reconstruction {
        class: format!("{} ({:.1} dB)", classes[pair.label as usize], pair.psnr),
        original: pair.original,
        decoded: pair.decoded,
    });
    Ok(Some(named.collect()))
}

fn judgement(evaluation: &Evaluation) -> Vec<Verdict> {
    let verdict = |what: &str, value: String| Verdict { what: what.to_owned(), value };
    let counted = |Accuracy { hits, count }: Accuracy| format!("{hits} of {count}");
    let mut table = vec![verdict("samples of the right class", counted(evaluation.nearest_neighbour_accuracy))];
    for (class, accuracy) in &evaluation.by_class {
        table.push(verdict(class, counted(*accuracy)));
    }
    if let Some(accuracy) = evaluation.train_accuracy {
        table.push(verdict("real training images judged the same way", show::percent(accuracy.share())));
    }
    if let Some(DistanceToTrain { samples, reference }) = evaluation.distance_to_train {
        let shown = |Distances { least, median }: Distances| format!("least {least:.1}, median {median:.1}");
        table.push(verdict("distance of samples to the nearest training image", shown(samples)));
        table.push(verdict("the same for held-out real images", shown(reference)));
    }
    table
}

/// The same commands with names that a user would give.
fn own_data(args: &DemoArgs) -> Vec<OwnCommand> {
    let places = Places {
        train: "photos/train".into(),
        held_out: "photos/held-out".into(),
        latents: "latents".into(),
        run: "runs/first".into(),
        samples: "samples".into(),
    };
    let comments = [
        "photos/train holds a folder of JPEG or PNG files for each class; for photographs add --vae and a download of \
         stabilityai/sd-vae-ft-mse, since the embedded autoencoder has seen drawings only",
        "Ctrl-C saves; the same command continues",
        "the newest checkpoint of the run",
        "photos/held-out is laid out like photos/train",
    ];
    let lines = command_lines(args, &places);
    let commands = comments.iter().zip(lines);
    commands.map(|(comment, words)| OwnCommand { comment: (*comment).to_owned(), command: shell(&words) }).collect()
}
