//! Which autoencoder a user asks for: the argument of `--vae`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tch::Device;

use super::{AutoencoderError, AutoencoderKl};

/// What `--vae` names. Cheap to copy to every worker, which then opens an autoencoder of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaeChoice {
    /// The embedded autoencoder.
    Tiny,
    /// A diffusers directory.
    Directory(PathBuf),
}

impl VaeChoice {
    /// Understands `tiny` or the path of a directory.
    ///
    /// # Errors
    /// [`AutoencoderError::Choice`] with what to do instead: for a hub id (`org/name`), a file, or a path that is not
    /// there.
    pub fn parse(text: &str) -> Result<Self, AutoencoderError> {
        if text == "tiny" {
            return Ok(Self::Tiny);
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let reason = if path.exists() {
            "expected a directory, got a file; pass the directory that holds config.json and the weights".to_owned()
        } else if is_hub_id(text) {
            format!(
                "no such directory, and hub ids are not downloaded here; download it \
                 (huggingface-cli download {text} --local-dir DIR) and pass --vae DIR"
            )
        } else {
            "no such directory; pass `tiny` or a diffusers directory".to_owned()
        };
        Err(AutoencoderError::Choice { choice: text.to_owned(), reason })
    }

    /// Opens the autoencoder on `device`.
    ///
    /// # Errors
    /// Those of [`AutoencoderKl::open`].
    pub fn open(&self, device: Device) -> Result<AutoencoderKl, AutoencoderError> {
        match self {
            Self::Tiny => AutoencoderKl::tiny(device),
            Self::Directory(dir) => AutoencoderKl::open(dir, device),
        }
    }
}

impl FromStr for VaeChoice {
    type Err = AutoencoderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for VaeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tiny => f.write_str("tiny"),
            Self::Directory(dir) => dir.display().fmt(f),
        }
    }
}

/// `org/name`, each of letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
fn is_hub_id(text: &str) -> bool {
    let part = |p: &str| {
        p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(text.split('/').collect::<Vec<_>>()[..], [org, name] if part(org) && part(name))
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
        assert_eq!(choice.to_string(), text);
    }

    #[test]
    fn what_cannot_be_opened_says_what_to_do() {
        let hub = VaeChoice::parse("stabilityai/sd-vae-ft-ema").unwrap_err().to_string();
        assert!(hub.starts_with("--vae stabilityai/sd-vae-ft-ema: no such directory"), "{hub}");
        assert!(hub.ends_with("pass --vae DIR"), "{hub}");
        let typo = VaeChoice::parse("/no/such/place").unwrap_err().to_string();
        assert_eq!(typo, "--vae /no/such/place: no such directory; pass `tiny` or a diffusers directory");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = VaeChoice::parse(&file.path().display().to_string()).unwrap_err().to_string();
        assert!(error.contains("expected a directory, got a file"), "{error}");
    }

    #[test]
    fn an_empty_directory_and_a_whole_pipeline_say_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let open = || VaeChoice::Directory(dir.path().to_owned()).open(Device::Cpu).unwrap_err().to_string();
        assert!(open().contains("expected a diffusers directory with config.json"), "{}", open());
        std::fs::create_dir(dir.path().join("vae")).unwrap();
        std::fs::write(dir.path().join("vae/config.json"), "{}").unwrap();
        assert!(open().ends_with(&format!("pass {}", dir.path().join("vae").display())), "{}", open());
    }
}
