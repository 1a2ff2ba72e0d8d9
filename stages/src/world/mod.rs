//! Many processes and devices that train one network: who they are, how they meet, and what they tell each other.
//!
//! A *rank* is a device that trains, with a thread, a copy of the network and a slice of every global batch of its own. A *process*
//! drives one or several ranks and reads the data for all of them; the *world* is all ranks of all processes. In the order in which a
//! run uses them:
//!
//! | module | what |
//! |---|---|
//! | [`launch`] | which process of how many this is, from flags, torchrun's variables or SLURM's |
//! | [`meeting`] | the processes find each other and make sure that they are to do the same |
//! | [`peers`] | the ranks: weights from rank 0, sums, the end of the run, and who is to blame where one is lost |
//!
//! Meeting and peers look at one board of keys, which also tells who still lives.
//!
//! [`share`] is for encoding and sampling, where processes need not meet.
//!
//! The gradients themselves are summed by [`crate::native::c10d::Exchange`], inside the training step.
//!
//! Rank 0 alone reads checkpoints and writes anything; the others need no run directory. What a rank draws and which samples it
//! takes does not depend on the world ([`crate::load::plan`], [`crate::method::views`]).

mod board;
pub mod launch;
pub mod meeting;
pub mod peers;
pub mod share;
#[cfg(test)]
mod wire;

use crate::native::NativeError;

/// Why ranks cannot go on together.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The store of rank 0 cannot be had.
    #[error(
        "{who} cannot reach the others at {place}: {source}; the first process must be running there, and its port be reachable"
    )]
    Unreachable {
        /// This process.
        who: String,
        /// Host and port.
        place: String,
        /// What was said.
        source: NativeError,
    },
    /// A process did not say what it is, or a rank did not join.
    #[error("{who} waited {seconds} s for {whom}; start all ranks within --timeout, or give them longer")]
    Late {
        /// This process or rank.
        who: String,
        /// Whom it waited for.
        whom: String,
        /// How long.
        seconds: u64,
    },
    /// Two processes were started differently.
    #[error("the processes are not to do the same: {0}; nothing was begun")]
    Differ(String),
    /// Another rank said why it ended.
    #[error("{0}")]
    Failed(String),
    /// A collective failed; [`peers::Peers::blame`] says whom it lost.
    #[error("a collective failed: {0}")]
    Collective(NativeError),
    /// Ranks do not answer any more.
    #[error("{whom} no longer answers: killed, stopped or cut off ({heard})")]
    Lost {
        /// Which ranks.
        whom: String,
        /// What this rank noticed of it.
        heard: String,
    },
    /// All ranks are there, and yet a collective failed.
    #[error("ranks lost each other, and all of them still answer: {0}")]
    Torn(String),
    /// Ranks no longer compute the same.
    #[error(
        "at step {step} the weights of rank {rank} are not those of rank 0, first in {parameter}: memory or hardware of that rank \
         may be faulty"
    )]
    Diverged {
        /// Steps done.
        step: u64,
        /// The first such rank.
        rank: usize,
        /// The first such parameter.
        parameter: String,
    },
    /// libtorch.
    #[error(transparent)]
    Native(#[from] NativeError),
}
