//! What can go wrong in a run, and where.
//!
//! Stages return errors of their own as [`BoxError`]; the engine adds the place and hands out one [`FlowError`].

use std::any::Any;
use std::error::Error;
use std::fmt;

/// The error of a stage, of any kind.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The first error of a run, and its place.
///
/// Displayed as `stage "decode", item 17: <source>`. Since the text already holds the source's own text,
/// [`Error::source`] goes on with what lies *behind* `source`; to look for a kind of error, downcast the field.
#[derive(Debug)]
pub struct FlowError {
    /// Name of the stage, with the branch in brackets behind a split: `decode`, `feed[1]`.
    pub stage: String,
    /// Number of the item in the stage's own input, from 0; for a source, the item that it was making. `None` where
    /// no item is to blame: factories, `finish`, and a plan that cannot be run.
    pub item: Option<u64>,
    /// What the stage returned, a [`Panicked`] or a [`PlanError`].
    pub source: BoxError,
}

impl fmt::Display for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage \"{}\"", self.stage)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        write!(f, ": {}", self.source)
    }
}

impl Error for FlowError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// A stage panicked: a bug of the stage, not of its input.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {message}")]
pub struct Panicked {
    /// The text that was given to `panic!`.
    pub message: String,
}

impl Panicked {
    /// Keeps the text of a panic that was caught.
    pub(crate) fn caught(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self { message: text.unwrap_or("(the panic carried no text)").to_owned() }
    }
}

/// A flow that cannot be run as it was written down; found before any thread starts.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// `.workers(0)`.
    #[error("has 0 workers: give it at least 1")]
    NoWorkers,
    /// `.depth(0)`.
    #[error("is followed by a link of depth 0: give it at least 1")]
    NoDepth,
    /// `.depth(n)` or `.workers(n)` asks for a link that no machine could fill.
    #[error("asks for a link with room for {room} items: depth and workers together may be at most {most}")]
    TooDeep {
        /// Items asked for.
        room: usize,
        /// Most items that a link may hold.
        most: usize,
    },
    /// `.split(0, ..)`.
    #[error("splits into 0 branches: give it at least 1")]
    NoBranches,
    /// The closure given to `.split` returned a line that does not start at its branch.
    #[error("leaves branch {branch} unused: the line returned for a branch must start at that branch")]
    UnusedBranch {
        /// Which branch, from 0.
        branch: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_place_and_its_chain_does_not_repeat_it() {
        let error = FlowError { stage: "decode".into(), item: Some(17), source: "bad marker".into() };
        assert_eq!(error.to_string(), "stage \"decode\", item 17: bad marker");
        assert!(Error::source(&error).is_none());
    }
}
