//! Which autoencoder a user asks for: the argument of `--vae`.

use std::path::{Path, PathBuf};

use tch::{Device, Kind};

use super::hub::{self, HubId};
use super::{AutoencoderError, AutoencoderKl};

/// What `--vae` names. Cheap to copy to every worker, which then opens an autoencoder of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaeChoice {
    /// The embedded autoencoder.
    Tiny,
    /// A diffusers directory.
    Directory(PathBuf),
    /// A repository of the Hugging Face hub, which lies in the local cache.
    Hub {
        /// `org/name`.
        id: String,
        /// The commit that the cache holds, in hexadecimal.
        revision: String,
        /// The cache's directory of that commit: a diffusers directory.
        dir: PathBuf,
    },
}

impl VaeChoice {
    /// Understands `tiny`, the path of a directory, or a hub id `org/name`, which is downloaded if the local cache (that
    /// of Python's `huggingface_hub`: `HF_HOME`, else `~/.cache/huggingface`) does not hold it.
    ///
    /// # Errors
    /// [`AutoencoderError::Choice`] with what to do instead: for a file, a path that is not there, or a repository that
    /// is neither in the cache nor within reach.
    pub fn parse(text: &str) -> Result<Self, AutoencoderError> {
        if text == "tiny" {
            return Ok(Self::Tiny);
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let wrong = |reason| AutoencoderError::Choice { choice: text.to_owned(), reason };
        if path.exists() {
            let reason = "expected a directory, got a file; pass the directory that holds config.json and the weights";
            return Err(wrong(reason.to_owned()));
        }
        let Some(id) = HubId::parse(text) else {
            let reason = "no such directory; pass `tiny`, a diffusers directory, or a hub id such as \
                          stabilityai/sd-vae-ft-ema";
            return Err(wrong(reason.to_owned()));
        };
        let (dir, revision) = hub::snapshot(&id).map_err(wrong)?;
        Ok(Self::Hub { id: text.to_owned(), revision, dir })
    }

    /// Opens the autoencoder on `device`, to compute in `kind`.
    ///
    /// # Errors
    /// Those of [`AutoencoderKl::open`].
    pub fn open(&self, device: Device, kind: Kind) -> Result<AutoencoderKl, AutoencoderError> {
        match self {
            Self::Tiny => AutoencoderKl::tiny(device, kind),
            Self::Directory(dir) => AutoencoderKl::open(dir, &dir.display().to_string(), device, kind),
            Self::Hub { id, dir, .. } => AutoencoderKl::open(dir, id, device, kind),
        }
    }

    /// The commit of a hub's repository, in hexadecimal.
    pub fn revision(&self) -> Option<&str> {
        match self {
            Self::Hub { revision, .. } => Some(revision),
            Self::Tiny | Self::Directory(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_and_directories_are_understood() {
        assert_eq!(VaeChoice::parse("tiny").unwrap(), VaeChoice::Tiny);
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().display().to_string();
        let choice = VaeChoice::parse(&text).unwrap();
        assert_eq!(choice, VaeChoice::Directory(dir.path().to_owned()));
    }

    #[test]
    fn what_cannot_be_opened_says_what_to_do() {
        let typo = VaeChoice::parse("/no/such/place").unwrap_err().to_string();
        assert_eq!(
            typo,
            "--vae /no/such/place: no such directory; pass `tiny`, a diffusers directory, or a hub id such as stabilityai/sd-vae-ft-ema"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = VaeChoice::parse(&file.path().display().to_string()).unwrap_err().to_string();
        assert!(error.contains("expected a directory, got a file"), "{error}");
    }

    #[test]
    fn an_empty_directory_and_a_whole_pipeline_say_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            || VaeChoice::Directory(dir.path().to_owned()).open(Device::Cpu, Kind::Float).unwrap_err().to_string();
        assert!(open().contains("expected a diffusers directory with config.json"), "{}", open());
        std::fs::create_dir(dir.path().join("vae")).unwrap();
        std::fs::write(dir.path().join("vae/config.json"), "{}").unwrap();
        assert!(open().ends_with(&format!("pass {}", dir.path().join("vae").display())), "{}", open());
    }
}
