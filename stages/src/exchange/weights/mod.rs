//! Weights of networks from and to other programs.
//!
//! | file | reads | writes |
//! |---|---|---|
//! | `torch.save` of SiT or REPA: a state dict, or `{model, ema, opt, args}` | yes | a state dict |
//! | safetensors with SiT's names, one of our checkpoints, or one of our files of weights | yes | yes |
//!
//! ```text
//! file    which form, which state dict          archive, pickle, stored: how a .pt is read without executing it
//! names   wrappers taken off
//! sizes   the network, from shapes
//! import  shapes checked, values as f32          time: SiT's direction of time turned into ours
//! write   safetensors or .pt
//! ```
//!
//! Names are those of [`crate::method::layout`], which are SiT's and REPA's: a file that leaves is read there with
//! `load_state_dict(strict=True)` by a network that has the same parts. Not here: optimiser states, networks that are
//! not made of SiT blocks, and big-endian files.
//!
//! Files may come from anywhere. No length or shape in them is trusted before it was compared with the file's size, and
//! nothing in them is executed.

pub(super) mod archive;
mod file;
mod import;
mod names;
mod pickle;
mod sizes;
mod stored;
mod time;
mod torch;
mod write;

#[cfg(test)]
mod goldens;
#[cfg(test)]
mod hostile;

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::method::config::{LatentShape, ModelConfig};
use crate::nets::weights::Mismatch;
use crate::train::checkpoint::CheckpointError;

pub use archive::ArchiveError;
pub use import::{ImportOptions, Imported, Time, import, open};
pub use pickle::{PickleError, PickleFault};
pub use sizes::Hints;
pub use stored::ViewFault;
pub use torch::TorchError;
pub use write::{Form, write};

/// `format` in the metadata of a file of ours.
pub const FORMAT: &str = "dualpath-weights-1";

/// Name of the fixed position embedding, which SiT stores and this network does not.
const POSITION: &str = "pos_embed";

/// The weights of one network, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkWeights {
    /// Sizes.
    pub model: ModelConfig,
    /// Latents and classes that it was trained for.
    pub latent: LatentShape,
    /// Every parameter, in the order of [`crate::method::layout::layout`].
    pub flat: Vec<f32>,
}

/// Which weights of a training checkpoint are meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Which {
    /// The exponential moving average, which is what is sampled.
    #[default]
    Ema,
    /// What the optimiser changes.
    Raw,
}

impl Which {
    /// The key of the state dict that is meant: by its name, or the only one.
    fn choose(self, keys: &[&str]) -> Option<String> {
        let wanted: &[&str] = match self {
            Self::Ema => &["ema"],
            Self::Raw => &["model", "state_dict"],
        };
        let named = wanted.iter().chain(&[""]).find(|name| keys.contains(name));
        match (named, keys) {
            (Some(name), _) => Some((*name).to_owned()),
            (None, [only]) => Some((*only).to_owned()),
            (None, _) => None,
        }
    }
}

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsFileError {
    /// The system refused.
    #[error("{path}: {source}; check the path, its permissions and the free space", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The form of PyTorch before 1.6.
    #[error("{path}: the form of PyTorch before 1.6; load and save it again with a current one", path = .path.display())]
    Legacy {
        /// The file.
        path: PathBuf,
    },
    /// Neither form.
    #[error("{path}: neither a file of torch.save nor safetensors", path = .path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// A file of `torch.save` that cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TorchError,
    },
    /// A safetensors file that cannot be read.
    #[error("{path}: not a readable safetensors file ({reason}); copy or download it again", path = .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state dict that was asked for is not there.
    #[error("{path}: holds no {which} weights (its dictionaries of tensors: {found})", path = .path.display())]
    Which {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        which: Which,
        /// Keys of state dicts that are there, or "none".
        found: String,
    },
    /// Not a network that this program has.
    #[error("{path}: {reason}", path = .path.display())]
    Network {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Names or shapes of other tensors than the network's.
    #[error("{path}: its tensors are not those of the network: {mismatch}", path = .path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// All differences.
        mismatch: Mismatch,
    },
    /// One of our checkpoints, of a newer program or with other values than were written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// More than a `.pt` is written for.
    #[error("{path}: more than 4 GiB, which is not written as .pt; name a .safetensors file", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ema => "averaged (--ema)",
            Self::Raw => "raw (--raw)",
        })
    }
}
