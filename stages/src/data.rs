//! The nouns of the edges of encode and load: what one stage hands to the next. Those of sampling lie with its stages.
//!
//! Each type says its shape, dtype, value range and units. Host data are `ndarray` arrays or plain vectors and may
//! cross threads; tensors are made by the thread that owns their device, and never appear before [`LatentBatch`].
//!
//! ```text
//! encode   ImageRef -> Decoded -> Decoded (cropped) -> PixelBatch -> MomentsBatch -> shards
//! load     BlockTicket -> MomentsBlock -> HostBatch -> LatentBatch
//! ```
//!
//! Two words are kept apart everywhere: *moments* are the posterior of the autoencoder (mean and log-variance,
//! unscaled, as stored), a *latent* is a draw from it times the scaling factor (what the network sees).

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use half::f16;
use ndarray::Array4;
use pipeline::Slab;
use tch::Tensor;

use crate::load::plan::Window;

/// Where one image is, before anything is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// Position in the dataset's order (for folders after the seeded permutation), from 0: decides shard and block.
    pub position: u64,
    /// Index in the source's own order (files sorted by path, tars as they lie), from 0.
    pub source_index: u32,
    /// Name within the source, for example `n01440764/n01440764_10026.JPEG`.
    pub key: String,
    /// Class index, from 0.
    pub label: i32,
    /// Where its bytes are.
    pub place: Place,
}

/// Where the bytes of an image are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file of its own.
    File(PathBuf),
    /// A member of a tar.
    Member {
        /// The tar.
        tar: Arc<PathBuf>,
        /// Bytes of the tar that hold the member: headers, content, padding.
        range: Range<u64>,
        /// Name of the image in the tar.
        name: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Member { tar, name, .. } => write!(f, "{}: {name}", tar.display()),
        }
    }
}

/// One decoded image: u8 RGB, 0..=255, interleaved `[height, width, 3]`.
#[derive(Debug, Clone)]
pub struct Pixels {
    /// Which image.
    pub image: ImageRef,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height * width * 3` values, row-major, RGB.
    pub rgb: Vec<u8>,
    /// What was odd about the file: bits of [`flags`].
    pub flags: u8,
}

/// Bits of [`Pixels::flags`], as the shard format stores them.
pub use shards::flags;

/// What decoding one file gave: pixels, or with `--on-error skip` the reason why there are none.
#[derive(Debug, Clone)]
pub enum Decoded {
    /// The image.
    Pixels(Pixels),
    /// The file could not be decoded, and the user asked to go on without it.
    Skipped {
        /// Which image.
        image: ImageRef,
        /// One sentence.
        reason: String,
    },
}

/// Cropped images that the autoencoder is given at once, in order: u8 0..=255, planar `[B, 3, size, size]`.
#[derive(Debug)]
pub struct PixelBatch {
    /// One entry for each row of `pixels`.
    pub images: Vec<ImageRef>,
    /// One entry for each row of `pixels`: bits of [`flags`].
    pub flags: Vec<u8>,
    /// `[B, 3, size, size]`.
    pub pixels: Array4<u8>,
    /// Files between these images that were skipped, with the reason.
    pub skipped: Vec<(ImageRef, String)>,
}

/// The posteriors of the images of one [`PixelBatch`], unscaled.
#[derive(Debug)]
pub struct MomentsBatch {
    /// One entry for each row.
    pub images: Vec<ImageRef>,
    /// One entry for each row: bits of [`flags`].
    pub flags: Vec<u8>,
    /// The little-endian values of each column of the dataset, in the order and dtype of its schema, sample after
    /// sample: of an encode f16 `[B, C, h, w]`, means and log-variances clamped to [-30, 20]
    /// ([`Store::columns`](crate::encode::store::Store::columns)). Empty where there are no images.
    pub columns: Vec<Vec<u8>>,
    /// Files between these images that were skipped, with the reason.
    pub skipped: Vec<(ImageRef, String)>,
}

/// A block that is to be read, and the buffer that it goes into.
#[derive(Debug)]
pub struct BlockTicket {
    /// The part of the order that needs the block.
    pub window: Arc<Window>,
    /// Entry of `window.blocks`. Tickets come window by window, and within one by slot from 0 on.
    pub slot: u32,
    /// Holds whatever it held before.
    pub buffer: Slab<BlockBuffer>,
}

/// A block that was read, checked and inflated.
#[derive(Debug)]
pub struct MomentsBlock {
    /// The part of the order that needs the block.
    pub window: Arc<Window>,
    /// Entry of `window.blocks`.
    pub slot: u32,
    /// The samples of the block, all of them, in dataset order.
    pub buffer: Slab<BlockBuffer>,
}

/// Memory of one block of n samples, lent by the loader: f16 moments, unscaled, sample after sample.
#[derive(Debug, Default)]
pub struct BlockBuffer {
    /// Posterior means (or drawn samples), `n * C * h * w` values.
    pub mean: Vec<f16>,
    /// Posterior log-variances, the same length; empty if the dataset has none.
    pub logvar: Vec<f16>,
    /// Class index of each sample.
    pub labels: Vec<i64>,
    /// Position of the first sample in the dataset.
    pub first_position: u64,
}

/// One training batch on the host, in the order of the plan: f16 moments `[B, C, h, w]`.
///
/// The loader lends it as a `Slab`: the memory goes back when the batch is dropped.
#[derive(Debug, Clone, Default)]
pub struct HostBatch {
    /// Number of the global batch, from 0 at the start of training.
    pub batch: u64,
    /// Posterior means, `B * C * h * w` values.
    pub mean: Vec<f16>,
    /// Posterior log-variances, the same length; empty if the dataset stores means only.
    pub logvar: Vec<f16>,
    /// Class index of each sample.
    pub labels: Vec<i64>,
    /// Position of each sample in the dataset (`ImageRef::position`).
    pub positions: Vec<u64>,
    /// `[B, C, h, w]`.
    pub shape: [usize; 4],
}

/// What the network is trained on: latents on the device.
#[derive(Debug)]
pub struct LatentBatch {
    /// f32 `[B, C, h, w]`, a draw from the posterior times the scaling factor: about unit variance. This is x_* of the
    /// paper.
    pub latents: Tensor,
    /// i64 `[B]`, class indices in `0..classes`.
    pub labels: Tensor,
}
