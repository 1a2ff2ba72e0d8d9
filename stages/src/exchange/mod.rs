//! Datasets of latents in the forms of other programs: export, import; and what checks and shows them.
//!
//! | form | one file holds | values |
//! |---|---|---|
//! | `safetensors` ([`tensors`]) | a shard | the columns as they are stored, f16 or f32 |
//! | `repa` ([`repa`]) | a sample | f32, mean and standard deviation, one after the other: what REPA trains on |
//!
//! An export is a copy in the dataset's order, which for an encode is the seeded order and not that of the files:
//! `keys.json` names the source of each sample. Nothing is shuffled, scaled or drawn on the way.
//!
//! ```text
//! export   Parts      which files are still missing      -> usize
//!          WritePart  read, inflate, convert, write      -> WrittenPart
//!          Export     counts; keys.json, dataset_info.json last
//! ```
//!
//! [`import`] is the way back from REPA's form, [`verify`] checks a dataset on several threads, and [`preview`] makes
//! pictures of some of its samples.
//!
//! A part is one file of tensors or one folder of a thousand arrays. Workers take whole parts, so that one reads while
//! another inflates and a third writes; a part appears under its name when it is whole. Memory is a block of samples for
//! each worker.

pub mod channels;
pub mod export;
pub mod import;
pub mod npy;
pub mod npz;
pub mod preview;
pub mod repa;
pub mod tensors;
pub mod verify;
pub mod weights;
pub(crate) mod zip;

mod font;

#[cfg(test)]
mod fixture;
#[cfg(test)]
pub(crate) mod numpy;

use std::io;
use std::path::PathBuf;

use shards::ShardError;

/// Why a dataset cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The folder holds something else.
    #[error("{dir}: the folder is not empty and holds no export (but {found}); give a new or empty folder", dir = .dir.display())]
    Occupied {
        /// The output folder.
        dir: PathBuf,
        /// The first foreign name.
        found: String,
    },
    /// The folder holds another export.
    #[error("{path}: this is an export of {found} where this command exports {wanted}; give another folder", path = .path.display())]
    Different {
        /// The record of the export.
        path: PathBuf,
        /// Form and dataset in the folder.
        found: String,
        /// Form and dataset of this command.
        wanted: String,
    },
    /// Another process writes here.
    #[error("{dir}: another process is exporting into this folder; wait for it, or give another folder", dir = .dir.display())]
    Busy {
        /// The output folder.
        dir: PathBuf,
    },
    /// REPA's form has no place for these columns.
    #[error("the dataset cannot be written in REPA's form, which is mean and standard deviation, unscaled: {reason}")]
    NotRepa {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A column is called as something else in the file is.
    #[error(
        "the dataset has a column named {column}, which a file of tensors uses for something else; it cannot be exported --to safetensors"
    )]
    NameTaken {
        /// Its name.
        column: String,
    },
    /// More bytes than an array in memory can have; a shard as the format allows it never has.
    #[error("the columns of shard {shard} are too large for one file")]
    TooLarge {
        /// The shard.
        shard: usize,
    },
    /// The system refused.
    #[error("{path}: {source}; check the path, its permissions and the free space", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The dataset is damaged.
    #[error("{0}")]
    Shard(#[from] ShardError),
}
