//! `pipeline evaluate`: samples against real images.

pub(crate) mod input;
mod latents;
pub(crate) mod metrics;
mod record;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use pipeline::{Flow, Runtime};
use serde::Serialize;
use stages::device::cores;
use stages::encode::crop::{AdmCrop, Resize};
use stages::encode::decode::Decode;
use stages::encode::list::{ImageList, ListImages, Numbering};
use stages::evaluate::neighbours::{
    Accuracy, CollectNearest, CollectPictures, Distances, FindNearest, Nearest, Neighbourhood, Pictures, QUERY_BLOCK,
    QueryBlocks, SIDE, chance, class_accuracy,
};
use stages::evaluate::samples::SampleList;

use self::metrics::MetricsArgs;
use self::record::{Circumstances, tell};
use crate::commands::writing;
use crate::exit::Outcome;
use crate::show::{self, Progress};

/// Compare samples with real images: FID, sFID, IS, precision and recall with --inception; else at 32 x 32 pixels, whether the
/// nearest is of the sample's class, and whether samples are copies of training images.
#[derive(Debug, Clone, Args)]
pub(crate) struct EvaluateArgs {
    /// Folder that `pipeline sample` wrote; with --inception any folder of pictures, or an .npz file
    #[arg(long, value_name = "DIR|NPZ")]
    pub(crate) samples: PathBuf,
    /// Folder with one folder of real images for each class, none of them trained on; with --inception any folder of pictures of
    /// one size, or an .npz file
    #[arg(long, value_name = "DIR|NPZ")]
    pub(crate) reference: PathBuf,
    /// Folder with one folder of images for each class, those that were trained on
    #[arg(long, value_name = "DIR")]
    pub(crate) train: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
}

/// What the samples are like; accuracies are serialised as shares in 0..=1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Evaluation {
    /// Number of samples.
    pub(crate) count: usize,
    /// Number of real images.
    pub(crate) reference_count: usize,
    /// xxh3 of them as they were compared, with their classes.
    #[serde(skip)]
    pub(crate) reference: u64,
    /// The same of the samples.
    #[serde(skip)]
    pub(crate) samples: u64,
    /// Samples whose nearest reference image is of their own class.
    pub(crate) nearest_neighbour_accuracy: Accuracy,
    /// What a reference image drawn at random would give, in 0..=1.
    pub(crate) chance: f64,
    /// The same accuracy for the samples of each class that has any.
    pub(crate) by_class: BTreeMap<String, Accuracy>,
    /// The same accuracy for the training images of these classes: what real images get.
    pub(crate) train_accuracy: Option<Accuracy>,
    /// How near the training images are.
    pub(crate) distance_to_train: Option<DistanceToTrain>,
}

/// An evaluation with what decides it.
#[derive(Debug, Serialize)]
struct NearestRecord<'a> {
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    #[serde(flatten)]
    circumstances: Circumstances,
}

/// Distances to the nearest training image, in levels of 0..=255.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct DistanceToTrain {
    /// Of the samples.
    pub(crate) samples: Distances,
    /// Of the reference images: what pictures that were not trained on give.
    pub(crate) reference: Distances,
}

pub(crate) fn run(args: &EvaluateArgs, runtime: &Runtime) -> Result<Outcome> {
    let (features, record) = (&args.metrics.save_features, &args.metrics.record);
    features.iter().try_for_each(|path| writing::possible("--save-features", path))?;
    record.iter().try_for_each(|path| writing::possible("--record", path))?;
    if let Some(inception) = &args.metrics.inception {
        return metrics::run(args, inception, runtime);
    }
    if args.metrics.features.is_some() {
        return latents::run(args, runtime);
    }
    let Some(evaluation) = evaluate(args, runtime)? else {
        return Ok(Outcome::Interrupted("stopped; evaluation leaves nothing behind, run it again".to_owned()));
    };
    let sampling = record::of_folder(&args.samples, evaluation.count as u64)?;
    let circumstances = Circumstances::of(evaluation.reference, evaluation.samples, sampling, "cpu");
    tell(args, "nearest", &NearestRecord { evaluation: &evaluation, circumstances }, &lines(&evaluation))?;
    if !args.json {
        show::say(
            "FID, sFID, IS, precision and recall need --inception F.safetensors (docs/evaluation.md); without these weights \
             --features vae gives a Frechet distance of latents",
        );
    }
    Ok(Outcome::Done)
}

/// Evaluates, and prints nothing but progress. `None` if an interrupt was requested before the end.
pub(crate) fn evaluate(args: &EvaluateArgs, runtime: &Runtime) -> Result<Option<Evaluation>> {
    if args.samples.is_file() {
        bail!(
            "{}: nearest real images are looked for among the pictures of a folder; a file of samples is measured by \
             --features vae or --inception",
            args.samples.display()
        );
    }
    let listed = SampleList::open(&args.samples)?;
    let count = listed.images().len();
    let reference = real_images("--reference", &args.reference, &listed)?;
    if reference.classes().len() < 2 {
        bail!(
            "--reference {}: one class only, so every neighbour is of it; give a folder of two classes or more",
            args.reference.display()
        );
    }
    let train = match &args.train {
        Some(folder) if fs::canonicalize(folder).ok() == fs::canonicalize(&args.reference).ok() => bail!(
            "--train and --reference are the same folder {}; the reference must be images that were not trained on",
            folder.display()
        ),
        Some(folder) => Some(real_images("--train", folder, &listed)?),
        None => None,
    };

    let Some(samples) = read(&args.samples, listed.images().clone(), runtime)? else { return Ok(None) };
    let Some(reference) = read(&args.reference, reference, runtime)? else { return Ok(None) };
    let among_reference = neighbourhood(&reference)?;
    let Some(nearest) = search("samples", &samples, &among_reference, runtime)? else { return Ok(None) };
    let by_class = class_accuracy(&samples, &nearest, &reference);
    let mut evaluation = Evaluation {
        count,
        reference_count: reference.len(),
        reference: reference.xxh3(),
        samples: samples.xxh3(),
        nearest_neighbour_accuracy: by_class.values().copied().sum(),
        chance: chance(&samples, &reference),
        by_class,
        train_accuracy: None,
        distance_to_train: None,
    };

    if let (Some(folder), Some(train)) = (&args.train, train) {
        let Some(train) = read(folder, train, runtime)? else { return Ok(None) };
        let Some(nearest) = search("training images", &train, &among_reference, runtime)? else { return Ok(None) };
        let of_train = class_accuracy(&train, &nearest, &reference);
        // Classes without samples are not part of the figure that this stands beside.
        let sampled = of_train.into_iter().filter(|(class, _)| evaluation.by_class.contains_key(class));
        evaluation.train_accuracy = Some(sampled.map(|(_, accuracy)| accuracy).sum());

        let among_train = neighbourhood(&train)?;
        let Some(of_samples) = search("samples", &samples, &among_train, runtime)? else { return Ok(None) };
        let Some(of_reference) = search("reference images", &reference, &among_train, runtime)? else {
            return Ok(None);
        };
        evaluation.distance_to_train = Distances::of(&of_samples)
            .zip(Distances::of(&of_reference))
            .map(|(samples, reference)| DistanceToTrain { samples, reference });
    }
    Ok(Some(evaluation))
}

/// Lists a tree of real images, which must have every class that has samples; it may have others.
fn real_images(flag: &str, folder: &Path, samples: &SampleList) -> Result<ImageList> {
    let list = ImageList::scan(folder, Numbering::Folders)?;
    let sampled = samples.sampled_classes();
    let missing: Vec<_> = sampled.iter().filter(|class| !list.classes().iter().any(|known| known == *class)).collect();
    let place = folder.display();
    match missing[..] {
        [] => Ok(list),
        [first, ..] if missing.len() == sampled.len() => {
            bail!(
                "{flag} {place}: has none of the classes of the samples (such as {first:?}); its folders must bear their names"
            )
        }
        [first] => {
            bail!("{flag} {place}: has no class {first:?}, of which there are samples; add a folder of that name")
        }
        [first, ..] => bail!(
            "{flag} {place}: has no class {first:?}, of which there are samples, nor {} others; add folders of their names",
            missing.len() - 1
        ),
    }
}

/// All images of a list as small pictures; `None` if an interrupt was requested.
fn read(folder: &Path, list: ImageList, runtime: &Runtime) -> Result<Option<Arc<Pictures>>> {
    let (count, classes) = (list.len(), list.classes().to_vec());
    let (folder, mut progress) = (folder.display().to_string(), Progress::new("reading", count as u64));
    #[rustfmt::skip]
    let finished = Flow::from(ListImages::all(list))        // -> ImageRef
        .then(Decode::skipping).workers(cores())                       // -> Decoded  u8 [H, W, 3]
        .depth(1) // whole pictures, as in `pipeline encode`
        .then(AdmCrop::to(SIDE, Resize::Exact)).workers(cores())       // -> Decoded  u8 [32, 32, 3]
        .into(CollectPictures::of(classes))
        .observe(progress.interval(), move |report| {
            let done = report.stages.last().map_or(0, |stage| stage.items);
            progress.at(done, &format!("read {done}/{count} images of {folder}"));
        })
        .run(runtime)?;
    Ok((!finished.interrupted).then(|| Arc::new(finished.output)))
}

fn neighbourhood(pictures: &Arc<Pictures>) -> Result<Arc<Neighbourhood>> {
    let prepared = Neighbourhood::of(Arc::clone(pictures));
    Ok(Arc::new(prepared.ok_or_else(|| anyhow!("there are no images to compare with"))?))
}

/// The nearest of a set for each of the queries; `None` if an interrupt was requested.
fn search(
    what: &'static str,
    queries: &Arc<Pictures>,
    among: &Arc<Neighbourhood>,
    runtime: &Runtime,
) -> Result<Option<Vec<Nearest>>> {
    let (count, mut progress) = (queries.len(), Progress::new("comparing", queries.len() as u64));
    #[rustfmt::skip]
    let finished = Flow::from(QueryBlocks::of(count))                                               // -> Range of rows
        .then(FindNearest::of(Arc::clone(queries), Arc::clone(among))).workers(cores())             // -> Vec<Nearest>
        .into(CollectNearest::default())
        .observe(progress.interval(), move |report| {
            let blocks = report.stages.last().map_or(0, |stage| stage.items) as usize;
            let done = (blocks * QUERY_BLOCK).min(count);
            progress.at(done as u64, &format!("compared {done}/{count} {what}"));
        })
        .run(runtime)?;
    Ok((!finished.interrupted).then_some(finished.output))
}

/// What a person reads of it.
pub(crate) fn lines(evaluation: &Evaluation) -> String {
    let Evaluation { count, nearest_neighbour_accuracy, chance, by_class, train_accuracy, distance_to_train, .. } =
        evaluation;
    let mut text = format!(
        "{} of {count} samples ({}) have their nearest reference image in their own class; chance {}\n",
        nearest_neighbour_accuracy.hits,
        show::percent(nearest_neighbour_accuracy.share()),
        show::percent(*chance)
    );
    for (class, accuracy) in by_class {
        let Accuracy { hits, count } = accuracy;
        text += &format!("class {class:<24} {:>7}  ({hits} of {count})\n", show::percent(accuracy.share()));
    }
    if let Some(accuracy) = train_accuracy {
        let Accuracy { hits, count } = accuracy;
        text += &format!(
            "{hits} of {count} training images of these classes ({}) have theirs in their own class\n",
            show::percent(accuracy.share())
        );
    }
    if let Some(DistanceToTrain { samples, reference }) = distance_to_train {
        for (what, distances) in [("samples", samples), ("reference images", reference)] {
            let Distances { least, median } = distances;
            text += &format!(
                "nearest training image of {what:<16}  least {least:>6.2}  median {median:>6.2}  levels of 0 to 255\n"
            );
        }
        text += &match (samples.least, reference.least) {
            (0.0, _) => format!("at least one sample is a copy of a training image at {SIDE} x {SIDE} pixels\n"),
            (of_samples, of_reference) => format!(
                "no sample is closer to a training image than {of_samples:.2} levels; the closest reference image is \
                 at {of_reference:.2}\n"
            ),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation() -> Evaluation {
        let of = |hits, count| Accuracy { hits, count };
        Evaluation {
            count: 64,
            reference_count: 160,
            reference: 1,
            samples: 2,
            nearest_neighbour_accuracy: of(58, 64),
            chance: 0.125,
            by_class: BTreeMap::from([("blue-ring".to_owned(), of(28, 32)), ("red-disc".to_owned(), of(30, 32))]),
            train_accuracy: None,
            distance_to_train: None,
        }
    }

    #[test]
    fn a_person_reads_counts_shares_and_distances() {
        let text = lines(&evaluation());
        let first = "58 of 64 samples (90.6 %) have their nearest reference image in their own class; chance 12.5 %\n";
        assert!(text.starts_with(first), "{text}");
        assert_eq!(text.lines().count(), 3);

        let distances = |least| Distances { least, median: 20.0 };
        let with_train = |least| Evaluation {
            train_accuracy: Some(Accuracy { hits: 3, count: 4 }),
            distance_to_train: Some(DistanceToTrain { samples: distances(least), reference: distances(11.5) }),
            ..evaluation()
        };
        let text = lines(&with_train(12.345));
        assert!(text.contains("3 of 4 training images of these classes (75.0 %)"), "{text}");
        let last =
            "no sample is closer to a training image than 12.35 levels; the closest reference image is at 11.50\n";
        assert!(text.ends_with(last), "{text}");
        assert!(lines(&with_train(0.0)).contains("is a copy of a training image"));
    }

    #[test]
    fn json_holds_shares_and_null_for_what_was_not_asked() {
        let json: serde_json::Value = serde_json::to_value(evaluation()).unwrap();
        let expected = serde_json::json!({
            "count": 64,
            "reference_count": 160,
            "nearest_neighbour_accuracy": 0.90625,
            "chance": 0.125,
            "by_class": { "blue-ring": 0.875, "red-disc": 0.9375 },
            "train_accuracy": null,
            "distance_to_train": null,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_requested_interrupt_ends_the_evaluation_as_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let (samples, reference) = (folder.path().join("samples"), folder.path().join("reference"));
        for (folder, level) in [("reference/dark", 20), ("reference/light", 220), ("samples", 30)] {
            let path = samples.parent().unwrap().join(folder);
            fs::create_dir_all(&path).unwrap();
            image::RgbImage::from_pixel(40, 40, image::Rgb([level; 3])).save(path.join("000000.png")).unwrap();
        }
        let record = serde_json::json!({ "labels": [0], "class_names": ["dark", "light"] });
        fs::write(samples.join("samples.json"), record.to_string()).unwrap();

        let args = EvaluateArgs { samples, reference, train: None, json: false, metrics: MetricsArgs::default() };
        assert!(evaluate(&args, &Runtime::default()).unwrap().is_some());
        let runtime = Runtime::default();
        runtime.interrupt().request();
        assert!(matches!(run(&args, &runtime).unwrap(), Outcome::Interrupted(_)));
    }
}
