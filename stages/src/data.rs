//! The nouns of the edges of encode and load: what one stage hands to the next. Those of sampling lie with its stages.
//!
//! Each type says its shape, dtype, value range and units. Host data are `ndarray` arrays or plain vectors and may
//! cross threads; tensors are made by the thread that owns their device, and never appear before [`LatentBatch`].
//!
//! ```text
//! encode   ImageRef -> Decoded -> Decoded (cropped) -> PixelBatch -> MomentsBatch -> shards
//! load     ScatterTicket -> HostBatch -> LatentBatch
//!          BlockTicket -> BatchDraft -> HostBatch, where everything stays in memory
//! ```
//!
//! Two words are kept apart everywhere: *moments* are the posterior of the autoencoder (mean and log-variance,
//! unscaled, as stored), a *latent* is a draw from it times the scaling factor (what the network sees).

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use half::f16;
use ndarray::Array4;
use pipeline::Slab;
use tch::Tensor;

use crate::load::LoadError;
use crate::native::NativeError;
use crate::native::memory::HostArray;
use crate::native::rows::Filling;

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

/// What is next where everything stays in memory: perhaps a block to read, and rows to take once it is there.
#[derive(Debug)]
pub struct BlockTicket {
    /// The block that the rows wait for, counted over all shards.
    pub block: Option<u32>,
    /// What it holds, once it was read.
    pub buffer: Option<BlockBuffer>,
    /// In the order of the plan.
    pub picks: Slab<Vec<Pick>>,
}

/// The next sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Its block.
    pub block: u32,
    /// Row of the block.
    pub row: u32,
}

/// One block in memory.
#[derive(Debug, Default)]
pub struct BlockBuffer {
    /// Which block.
    pub place: BlockPlace,
    /// Of the images as they are.
    pub latents: LatentBuffers,
    /// Of their mirror images; unused unless these are loaded.
    pub mirrored: LatentBuffers,
    /// Whether the block could not be read: it then holds nothing that counts.
    pub is_bad: bool,
    /// Whether somebody told that it was lost after it had been read.
    pub told: AtomicBool,
    /// Why it could not be read, until that was told.
    pub fault: Option<LoadError>,
}

/// The latents of one block, unscaled.
#[derive(Debug, Default)]
pub struct LatentBuffers {
    /// Posterior means (or drawn samples).
    pub mean: ColumnBuffer,
    /// Posterior log-variances; unused if the dataset has none.
    pub logvar: ColumnBuffer,
}

/// The f16 values of one column of one block, sample after sample.
#[derive(Debug, Default)]
pub struct ColumnBuffer {
    /// Where and how they are.
    pub form: ColumnForm,
    /// Little-endian; its room stays when the block goes.
    pub bytes: Vec<u8>,
}

/// How the values of a [`ColumnBuffer`] lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColumnForm {
    /// As the codec of the column has them: values, or byte planes.
    #[default]
    Stored,
    /// Not here: the shard is in memory, and they lie there as values.
    InPlace,
    /// Values that were computed from what is stored.
    Converted,
}

/// Where a block of a dataset is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockPlace {
    /// Number of the shard.
    pub shard: usize,
    /// Block of the shard.
    pub block: usize,
    /// Samples in it.
    pub samples: u32,
    /// Of its first sample, in the dataset.
    pub position: u64,
    /// Of its first sample, in the shard.
    pub row: usize,
}

/// The rows of one batch and the memory they go into. Made in order at one place, so that copying may be done at
/// several.
#[derive(Debug)]
pub struct BatchDraft {
    /// Holds whatever it held before, but for `batch`, `rows`, `filled` and `faults`.
    pub batch: Slab<HostBatch>,
    /// One entry for each row: the block and the row of the block.
    pub rows: Slab<Vec<(Arc<BlockBuffer>, u32)>>,
}

/// A few blocks to read, and where their rows go.
#[derive(Debug)]
pub struct ScatterTicket {
    /// The blocks, and what begins.
    pub lists: Slab<ScatterLists>,
    /// Slices, counted from the first of the stream, that are complete when this ticket and all before it are done.
    pub complete: u64,
}

/// The lists of a [`ScatterTicket`], whose memory is used again.
#[derive(Debug, Default)]
pub struct ScatterLists {
    /// Blocks to read, at least one.
    pub reads: Vec<BlockRead>,
    /// Slices that this ticket or one behind it are the first to write to, in order.
    pub begun: Vec<Arc<Filling>>,
    /// Why blocks could not be read.
    pub faults: Vec<LoadError>,
}

/// A block to read.
#[derive(Debug)]
pub struct BlockRead {
    /// Its number.
    pub block: u32,
    /// Where its rows go.
    pub targets: Vec<Target>,
}

/// One row of a block and its place in a batch.
#[derive(Debug, Clone)]
pub struct Target {
    /// The batch.
    pub batch: Arc<Filling>,
    /// Row of the batch.
    pub at: u32,
    /// Row of the block.
    pub row: u32,
}

/// One rank's slice of a training batch on the host, in the order of the plan: f16 moments `[B, C, h, w]`.
///
/// The loader lends it as a `Slab`: the memory goes back when the batch is dropped.
#[derive(Debug)]
pub struct HostBatch {
    /// Number of the global batch, from 0 at the start of training.
    pub batch: u64,
    /// Rows of the global batch that are here.
    pub rows: Range<usize>,
    /// Posterior means, `B * C * h * w` values.
    pub mean: HostArray<f16>,
    /// Posterior log-variances, the same length; empty if the dataset stores means only.
    pub logvar: HostArray<f16>,
    /// Class index of each sample.
    pub labels: HostArray<i64>,
    /// Position of each sample in the dataset (`ImageRef::position`).
    pub positions: Vec<u64>,
    /// `[B, C, h, w]`.
    pub shape: [usize; 4],
    /// Rows whose sample could not be read, with what stands there instead: the nearest readable row before it, or
    /// after it where there is none before. All other rows are what they would have been.
    pub filled: Vec<u32>,
    /// Blocks that were found unreadable since the batch before.
    pub faults: Vec<LoadError>,
    used: bool,
}

impl HostBatch {
    /// Memory for a slice of `shape`, zeros; `pinned` so that a GPU can copy it by itself.
    ///
    /// # Errors
    /// libtorch has no pinned memory to give.
    pub fn with_room(shape: [usize; 4], has_logvar: bool, pinned: bool) -> Result<Self, NativeError> {
        let values = shape.iter().product();
        Ok(Self {
            batch: 0,
            rows: 0..shape[0],
            mean: HostArray::zeros(values, pinned)?,
            logvar: HostArray::zeros(if has_logvar { values } else { 0 }, pinned)?,
            labels: HostArray::zeros(shape[0], pinned)?,
            positions: vec![0; shape[0]],
            shape,
            filled: Vec::with_capacity(shape[0]),
            faults: Vec::new(),
            used: false,
        })
    }

    /// Begins to be slice `rows` of batch `batch`, with no fault. Memory that comes back from its first use is settled
    /// ([`HostArray::settle`]): all that it held is lost then.
    pub fn begin(&mut self, batch: u64, rows: Range<usize>) {
        if std::mem::replace(&mut self.used, true) {
            self.mean.settle();
            self.logvar.settle();
        }
        (self.batch, self.rows) = (batch, rows);
        self.filled.clear();
        self.faults.clear();
    }
}

/// What the network is trained on: latents on the device.
#[derive(Debug)]
pub struct LatentBatch {
    /// f32 `[V, B, C, h, w]`, a draw from the posterior times the scaling factor: about unit variance. This is x_* of
    /// the paper: one for all views (V = 1), or one for each.
    pub latents: Tensor,
    /// i64 `[B]`, class indices in `0..classes`.
    pub labels: Tensor,
}
