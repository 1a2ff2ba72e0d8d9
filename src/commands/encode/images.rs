//! Which images an encode reads, in which order, with which labels.

use std::path::Path;

use anyhow::{Context, Result, bail};
use pipeline::Runtime;
use serde_json::{Value, json};
use stages::encode::list::{ImageList, Numbering, tars, wnids};

use super::EncodeArgs;
use crate::show;

/// The list, and what the dataset records about it.
pub(super) struct Images {
    pub(super) list: ImageList,
    pub(super) order: Value,
    pub(super) labels: &'static str,
}

/// Lists what `--images` names; `None` if an interrupt was requested.
pub(super) fn list(args: &EncodeArgs, workers: usize, runtime: &Runtime) -> Result<Option<Images>> {
    let permuted = json!({ "permutation": "splitmix64 fisher-yates", "seed": args.shuffle_seed });
    let named = match args.labels {
        Some(_) => None,
        None => tars::named(&args.images)?,
    };
    if args.class_names.is_some() && named.is_none() {
        bail!("--class-names is for tars; the classes of folders are named by the folders");
    }
    if args.renumber && (named.is_some() || args.labels.is_some()) {
        bail!("--renumber is for class folders; tars and --labels say the number of each class themselves");
    }
    if args.shuffle_seed != 0 && named.is_some() {
        bail!("--shuffle-seed is for files; samples of tars are stored in the order of the tars");
    }
    let images = match (named, &args.labels) {
        (Some(tars), _) => {
            let classes = args.class_names.as_deref().map(class_names).transpose()?;
            let Some(list) = ImageList::tars(tars, classes, workers, runtime)? else { return Ok(None) };
            Images { list, order: json!("as in the tars"), labels: "cls members" }
        }
        (None, Some(labels)) => Images {
            list: ImageList::flat(&args.images, labels)?.permuted(args.shuffle_seed),
            order: permuted,
            labels: "ground truth file",
        },
        (None, None) => {
            let numbering = if args.renumber { Numbering::Folders } else { Numbering::ImageNet };
            let list = ImageList::scan(&args.images, numbering)?;
            let fixed = !args.renumber && list.classes() == wnids::names();
            let labels = if fixed { "ImageNet-1k wnids" } else { "sorted folders" };
            let wnids = list.classes().iter().filter(|class| wnids::class_of(class).is_some()).count();
            if !fixed && !args.renumber && wnids > 0 {
                show::say(&format!(
                    "note: {wnids} of the {} folders are wnids of ImageNet-1k and the others are not, so classes are \
                     numbered as the folders sort, not as ImageNet numbers them",
                    list.classes().len()
                ));
            }
            Images { list: list.permuted(args.shuffle_seed), order: permuted, labels }
        }
    };
    Ok(Some(match args.limit {
        Some(limit) => Images { list: images.list.limited(limit), ..images },
        None => images,
    }))
}

fn class_names(file: &Path) -> Result<Vec<String>> {
    if file == Path::new("imagenet") {
        return Ok(wnids::names());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("--class-names {}", file.display()))?;
    let names: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    if names.is_empty() || names.iter().any(String::is_empty) {
        bail!("--class-names {}: expected one name on each line", file.display());
    }
    Ok(names)
}
