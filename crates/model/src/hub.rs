//! Hub ids: the local Hugging Face cache first, then the hub itself where that is allowed.
//! Called by the loader only.
//!
//! Honours `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN`, with the meaning
//! that `huggingface_hub` gives them.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::ModelError;
use crate::weights::Safetensors;

/// Whether `name` has the form of a hub id: one or two parts of letters, digits, `.`, `_` and `-`.
pub fn is_hub_id(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 || name.len() > 200 {
        return false;
    }
    parts.iter().all(|part| {
        let mut characters = part.chars();
        characters.next().is_some_and(|first| first.is_ascii_alphanumeric() || first == '_')
            && characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    })
}

/// The folder that holds the files of hub model `id`, fetched first if need be.
pub fn folder_of(id: &str) -> Result<PathBuf, ModelError> {
    let cache = cache_folder().ok_or_else(|| ModelError::Hub {
        name: id.to_owned(),
        reason: "no HOME, HF_HOME or HF_HUB_CACHE says where the cache is".to_owned(),
    })?;
    if let Some(folder) = cached(&cache, id) {
        return Ok(folder);
    }
    if flag("HF_HUB_OFFLINE") {
        return Err(ModelError::Hub {
            name: id.to_owned(),
            reason: format!("it is not in {} and HF_HUB_OFFLINE is set", cache.display()),
        });
    }
    fetch(&cache, id)
}

/// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("HF_HUB_CACHE") {
        return Some(folder);
    }
    if let Some(home) = set("HF_HOME") {
        return Some(home.join("hub"));
    }
    set("HOME").map(|home| home.join(".cache/huggingface/hub"))
}

fn flag(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// A complete snapshot of `id` in the cache.
fn cached(cache: &Path, id: &str) -> Option<PathBuf> {
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    let commit = std::fs::read_to_string(repository.join("refs/main")).ok()?;
    let folder = repository.join("snapshots").join(commit.trim());
    complete(&folder).then_some(folder)
}

fn complete(folder: &Path) -> bool {
    if !folder.join("config.json").is_file() {
        return false;
    }
    if folder.join("model.safetensors").is_file() {
        return true;
    }
    match Safetensors::shard_names(&folder.join("model.safetensors.index.json")) {
        Ok(names) => names.iter().all(|name| folder.join(name).is_file()),
        Err(_) => false,
    }
}

fn fetch(cache: &Path, id: &str) -> Result<PathBuf, ModelError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| ModelError::Hub {
        name: id.to_owned(),
        reason: format!("{what}: {error}"),
    };
    let mut builder = ApiBuilder::from_cache(Cache::new(cache.to_owned())).with_progress(false).with_retries(2);
    if let Ok(endpoint) = std::env::var("HF_ENDPOINT")
        && !endpoint.is_empty()
    {
        builder = builder.with_endpoint(endpoint);
    }
    if let Ok(token) = std::env::var("HF_TOKEN")
        && !token.is_empty()
    {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(|error| failed("the hub client does not start", &error))?;
    let repository = api.repo(Repo::new(id.to_owned(), RepoType::Model));
    tracing::info!("fetching {id} into {}", cache.display());

    let config = repository.get("config.json").map_err(|error| failed("config.json", &error))?;
    // A folder without a tokenizer is fine for numbers.
    if let Err(error) = repository.get("tokenizer.json") {
        tracing::warn!("{id} has no tokenizer.json ({error})");
    }
    get_weights(&repository).map_err(|(file, error)| failed(&file, &error))?;
    match config.parent() {
        Some(folder) => Ok(folder.to_owned()),
        None => Err(failed("config.json", &"it lies in no folder")),
    }
}

fn get_weights(repository: &ApiRepo) -> Result<(), (String, ApiError)> {
    let single = "model.safetensors".to_owned();
    let Err(error) = repository.get(&single) else {
        return Ok(());
    };
    let name = "model.safetensors.index.json";
    // The error of the usual file is the one to show when there is no index either.
    let Ok(index) = repository.get(name) else {
        return Err((single, error));
    };
    for shard in Safetensors::shard_names(&index).unwrap_or_default() {
        repository.get(&shard).map_err(|error| (shard.clone(), error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids() {
        for good in ["gpt2", "openai-community/gpt2", "a/b.c_d-e", "_x/y"] {
            assert!(is_hub_id(good), "{good}");
        }
        for bad in ["", "/", "a/", "a/b/c", "../x", "a b", "-x", "a/..", "a\\b"] {
            assert!(!is_hub_id(bad), "{bad}");
        }
    }
}
