//! What a set of pictures is given as, looked at before anything long begins.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pipeline::Flow;
use serde_json::Value;
use stages::device::cores;
use stages::encode::crop::{AdmCrop, Resize};
use stages::encode::decode::Decode;
use stages::encode::list::{ImageList, ListImages};
use stages::evaluate::pictures::{self, GatherPictures, NpzPictures, PictureBatch, PictureHash};
use stages::evaluate::reference::Stored;
use stages::evaluate::stored_features::StoredFeatures;
use stages::exchange::npz::Npz;

use super::record;

/// A set of pictures, or what is known of one.
pub(crate) struct Input {
    /// "samples" or "reference".
    pub(crate) what: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
    /// Statistics that the file has.
    pub(crate) stored: Option<Stored>,
    pub(crate) identity: Identity,
    /// How the pictures were sampled; null where that is not known.
    pub(crate) sampling: Value,
    /// Whether the file says that the pictures come class by class.
    pub(crate) sorted: bool,
    /// Pixels a side that pictures of a folder are cropped to, as the ADM crop does.
    crop: Option<usize>,
}

/// What identifies a set.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    /// xxh3 of a file's arrays.
    Arrays(u64),
    /// xxh3 of pixels, once the pictures have gone by.
    Pixels(PictureHash),
}

impl Identity {
    pub(crate) fn xxh3(&self) -> u64 {
        match self {
            Self::Arrays(hash) => *hash,
            Self::Pixels(hash) => hash.digest(),
        }
    }
}

/// What can be measured.
pub(crate) enum Content {
    Folder(ImageList),
    Npz(Box<NpzPictures>),
    Features(Box<StoredFeatures>),
    /// Statistics alone.
    Nothing,
}

impl Input {
    /// Looks at a folder or a file: what it holds and, of files, every array's dtype and shape.
    ///
    /// `crop` is for pictures of any size in a folder; of files they are of the size that they have.
    pub(crate) fn open(what: &'static str, path: &Path, batch: usize, crop: Option<usize>) -> Result<Self> {
        let path_buf = path.to_owned();
        if crop == Some(0) {
            bail!("--crop 0: a picture has a pixel at least");
        }
        if path.is_dir() {
            let list = pictures::list(path)?;
            let sampling = record::of_folder(path, list.len() as u64)?;
            let (content, identity) = (Content::Folder(list), Identity::Pixels(PictureHash::default()));
            return Ok(Self { what, path: path_buf, content, stored: None, identity, sampling, sorted: false, crop });
        }
        if crop.is_some() {
            bail!("{}: --crop is for the pictures of a folder, and this is a file", path.display());
        }
        let npz = Npz::open(path)?;
        let stored = Stored::read(&npz)?;
        let content = match () {
            () if StoredFeatures::are_in(&npz) => Content::Features(Box::new(StoredFeatures::open(&npz)?)),
            () if !npz.has("arr_0") && stored.has_statistics() => Content::Nothing,
            () => Content::Npz(Box::new(NpzPictures::open(&npz, batch)?)),
        };
        let sampling = match &content {
            Content::Npz(pictures) => record::of_file(path, pictures.count())?,
            Content::Features(_) => match StoredFeatures::sampling(&npz)? {
                Some(text) => serde_json::from_str(&text)
                    .with_context(|| format!("{}: its array \"sampling\" is not JSON", path.display()))?,
                None => Value::Null,
            },
            Content::Folder(_) | Content::Nothing => Value::Null,
        };
        let (identity, sorted) =
            (Identity::Arrays(npz.identity()), matches!(content, Content::Npz(_)) && are_sorted(&npz));
        Ok(Self { what, path: path_buf, content, stored: Some(stored), identity, sampling, sorted, crop })
    }

    /// Number of pictures.
    pub(crate) fn count(&self) -> u64 {
        match &self.content {
            Content::Folder(list) => list.len() as u64,
            Content::Npz(pictures) => pictures.count(),
            Content::Features(features) => features.count(),
            Content::Nothing => 0,
        }
    }

    /// Width and height of the pictures, of a folder those of the first; none where there are none.
    pub(crate) fn size(&self) -> Result<Option<(u64, u64)>> {
        match &self.content {
            Content::Folder(_) if let Some(side) = self.crop => Ok(Some((side as u64, side as u64))),
            Content::Folder(list) => {
                let Some(first) = list.image(0) else { return Ok(None) };
                let path = self.path.join(&first.key);
                let (width, height) = image::image_dimensions(&path)
                    .with_context(|| format!("{}: is no picture that can be read", path.display()))?;
                Ok(Some((width.into(), height.into())))
            }
            Content::Npz(pictures) => Ok(Some(pictures.size())),
            Content::Features(_) | Content::Nothing => Ok(None),
        }
    }

    /// The pictures; of features and statistics there are none, which is an error. [`Input::identity`] of a folder is known
    /// when they have gone by.
    pub(crate) fn pictures(self, batch: usize) -> Result<Flow<PictureBatch>> {
        let hash = match &self.identity {
            Identity::Pixels(hash) => hash.clone(),
            Identity::Arrays(_) => PictureHash::default(),
        };
        Ok(match self.content {
            Content::Folder(list) => {
                let decoded = Flow::from(ListImages::all(list)) // -> ImageRef
                    .then(Decode::skipping) //                     -> Decoded       u8 [H, W, 3]
                    .workers(cores())
                    .depth(1); // whole pictures, as in `pipeline encode`
                let gather = GatherPictures::of(batch, hash); //   -> PictureBatch  u8 [B, H, W, 3]
                match self.crop {
                    Some(side) => {
                        decoded.then(AdmCrop::to(side, Resize::Exact)).workers(cores()).regroup(gather).depth(1)
                    }
                    None => decoded.regroup(gather).depth(1),
                }
            }
            Content::Npz(pictures) => Flow::from(*pictures).depth(1),
            Content::Features(_) | Content::Nothing => {
                bail!("{}: holds no pictures; give a folder of them, or an .npz file with arr_0", self.path.display())
            }
        })
    }
}

/// Whether `arr_1`, which sampling programs write the classes to, is ascending and not all alike. Nothing else depends on it, so
/// what cannot be read says nothing.
fn are_sorted(npz: &Npz) -> bool {
    let array = npz.array("arr_1").ok().filter(|array| array.shape().len() == 1);
    let classes = array.and_then(|array| array.into_f64().ok()).unwrap_or_default();
    classes.is_sorted() && classes.first() != classes.last()
}

/// Refuses pictures of two sizes: distances between them say how they were resized.
pub(crate) fn same_size(samples: &Input, reference: &Input) -> Result<()> {
    if let (Some(ours), Some(theirs)) = (samples.size()?, reference.size()?)
        && ours != theirs
    {
        bail!(
            "the samples are of {}x{} pixels and the pictures of the reference of {}x{}; give a reference of the samples' size, \
             of a folder by --crop {}",
            ours.0,
            ours.1,
            theirs.0,
            theirs.1,
            ours.0
        );
    }
    Ok(())
}
