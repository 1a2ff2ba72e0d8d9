//! What a set of pictures is given as, looked at before anything long begins.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pipeline::Flow;
use stages::device::cores;
use stages::encode::crop::{AdmCrop, Resize};
use stages::encode::decode::Decode;
use stages::encode::list::{ImageList, ListImages};
use stages::evaluate::pictures::{self, GatherPictures, NpzPictures, PictureBatch};
use stages::evaluate::reference::Stored;
use stages::evaluate::stored_features::StoredFeatures;
use stages::exchange::npz::Npz;

/// A set of pictures, or what is known of one.
pub(crate) struct Input {
    /// "samples" or "reference".
    pub(crate) what: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
    /// Statistics that the file has.
    pub(crate) stored: Option<Stored>,
    /// Of what it holds.
    pub(crate) identity: u64,
    /// Pixels a side that pictures of a folder are cropped to, as the ADM crop does.
    crop: Option<usize>,
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
            let identity = list.hash();
            return Ok(Self { what, path: path_buf, content: Content::Folder(list), stored: None, identity, crop });
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
        Ok(Self { what, path: path_buf, content, stored: Some(stored), identity: npz.identity(), crop })
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

    /// The pictures; of features and statistics there are none, which is an error.
    pub(crate) fn pictures(self, batch: usize) -> Result<Flow<PictureBatch>> {
        Ok(match self.content {
            Content::Folder(list) => {
                let decoded = Flow::from(ListImages::all(list)) // -> ImageRef
                    .then(Decode::skipping) //                     -> Decoded       u8 [H, W, 3]
                    .workers(cores())
                    .depth(1); // whole pictures, as in `pipeline encode`
                let gather = GatherPictures::of(batch); //         -> PictureBatch  u8 [B, H, W, 3]
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

/// Refuses pictures of two sizes: distances between them say how they were resized.
pub(crate) fn same_size(samples: &Input, reference: &Input) -> Result<()> {
    if let (Some(ours), Some(theirs)) = (samples.size()?, reference.size()?)
        && ours != theirs
    {
        bail!(
            "the samples are of {}x{} pixels and the pictures of the reference of {}x{}; give a reference of the samples' size, \
             of a folder by --crop",
            ours.0,
            ours.1,
            theirs.0,
            theirs.1
        );
    }
    Ok(())
}
