//! Autoencoders of the Hugging Face hub, through the cache that Python's `huggingface_hub` uses too.
//!
//! What the cache holds is taken as it is, without asking the network whether there is something newer: an encode that
//! is continued next week must see the same weights. What it does not hold is downloaded once. `HF_HOME` moves the
//! cache, `HF_ENDPOINT` names another server; a token that `huggingface-cli login` left in the cache is sent along.

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo};

use super::{CONFIG_FILE, WEIGHTS_FILE};

/// `org/name`, each of letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubId(String);

impl HubId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let part = |p: &str| {
            p.starts_with(|c: char| c.is_ascii_alphanumeric())
                && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let parts: Vec<_> = text.split('/').collect();
        matches!(parts[..], [org, name] if part(org) && part(name)).then(|| Self(text.to_owned()))
    }
}

/// The directory of the cache that holds the autoencoder, and the commit that it is of. The error is one sentence with
/// what to do.
pub(super) fn snapshot(id: &HubId) -> Result<(PathBuf, String), String> {
    let cache = Cache::from_env();
    let place = cache.path().display().to_string();
    let repository = cache.repo(Repo::model(id.0.clone()));
    let cached = || [CONFIG_FILE, WEIGHTS_FILE].map(|file| repository.get(file));
    let files = match cached() {
        [Some(config), Some(_)] => config,
        _ => {
            download(id).map_err(|reason| {
                format!(
                    "no such directory, not in the cache {place}, and cannot be downloaded ({reason}); on a machine \
                     with a network run `huggingface-cli download {} --local-dir DIR`, and pass --vae DIR here",
                    id.0
                )
            })?;
            let [Some(config), Some(_)] = cached() else {
                return Err(format!("was downloaded, but is not in the cache {place}; pass a directory instead"));
            };
            config
        }
    };
    let dir = files.parent().map(PathBuf::from).unwrap_or_default();
    let revision = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((dir, revision))
}

/// The error is short: what went wrong, without the address.
fn download(id: &HubId) -> Result<(), String> {
    let api = ApiBuilder::from_env().with_progress(true).build().map_err(|error| short(&error))?;
    let repository = api.model(id.0.clone());
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        repository.get(file).map_err(|error| format!("{file}: {}", short(&error)))?;
    }
    Ok(())
}

/// The first line, without the address that the transport puts in front.
fn short(error: &ApiError) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.rsplit_once(": ").map_or(line, |(_, reason)| reason).to_owned()
}
