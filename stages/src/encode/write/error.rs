//! Why a dataset cannot be written or continued.

use std::io;
use std::path::PathBuf;

use shards::ShardError;

use crate::data::Place;
use crate::encode::decode;

/// Why a dataset cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The folder holds something else.
    #[error("{dir}: the folder is not empty (it holds {found}); give a new or empty folder, or that of an unfinished dataset to continue",
            dir = .dir.display())]
    Occupied {
        /// The output folder.
        dir: PathBuf,
        /// The first foreign name.
        found: String,
    },
    /// The folder holds a dataset that was encoded otherwise.
    #[error("{path}: was written with {what} = {found} where this command says {wanted}; give another folder, or the settings of that dataset",
            path = .path.display())]
    Different {
        /// The shard or manifest.
        path: PathBuf,
        /// Which part of the configuration.
        what: String,
        /// Its value in the folder.
        found: String,
        /// Its value in this command.
        wanted: String,
    },
    /// A finished shard does not hold the files that the list gives.
    #[error("{path}: holds {found} at sample {sample} where the list of images has {wanted}; the images changed since: delete the shard, or give another folder",
            path = .path.display())]
    OtherSamples {
        /// The shard.
        path: PathBuf,
        /// Sample in the shard.
        sample: usize,
        /// What it holds.
        found: String,
        /// What it should hold.
        wanted: String,
    },
    /// A file was skipped when a finished shard was written, and can be decoded now.
    #[error("{image}: was skipped when {shard} was written and can be decoded now; delete that shard, and the same command makes it again",
            shard = .shard.display())]
    NoLongerSkipped {
        /// The image.
        image: Place,
        /// The shard.
        shard: PathBuf,
    },
    /// A finished shard is damaged.
    #[error("{source}; delete this file, and the same command makes it again")]
    Damaged {
        /// What is wrong, with the file.
        source: ShardError,
    },
    /// There is a shard that the dataset does not have.
    #[error("{path}: the dataset has {shards} shards, numbered from 0; delete this file, or give another folder", path = .path.display())]
    Surplus {
        /// The shard.
        path: PathBuf,
        /// Shards of the dataset.
        shards: u64,
    },
    /// No image of a shard could be decoded.
    #[error(
        "none of the {files} images of shard {shard} can be decoded (the first: {key}: {reason}); give images, or a smaller selection"
    )]
    NothingDecoded {
        /// The shard.
        shard: u64,
        /// Files in it.
        files: usize,
        /// Key of the first.
        key: String,
        /// Why it was skipped.
        reason: String,
    },
    /// There is no image to encode.
    #[error("the list of images is empty; raise the limit")]
    NoImages,
    /// The dataset would have more shards than can be numbered.
    #[error("{0} images do not fit in 2^32 shards")]
    TooMany(u64),
    /// The stream ended before the list did.
    #[error("the stream ended at position {at} of {of}; this is a defect of the program")]
    Short {
        /// Positions seen.
        at: u64,
        /// Length of the list.
        of: u64,
    },
    /// The folder could not be read or made.
    #[error("{path}: {source}; check the path, its permissions and the free space", path = .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A skipped file could not be read again.
    #[error(transparent)]
    Decode(#[from] decode::DecodeError),
    /// The shard format's own errors.
    #[error("{0}")]
    Shard(#[from] ShardError),
}
