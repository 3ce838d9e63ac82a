//! Hub ids: the local Hugging Face cache first, then the hub itself where that is allowed.
//!
//! Honours `HF_ENDPOINT` and `HF_HUB_DOWNLOAD_TIMEOUT`, with the meaning that `huggingface_hub` gives them, and the variables
//! of `hub_env.rs`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::hub_env::HubEnv;
use super::weights::Safetensors;
use crate::error::ModelError;

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

/// A model of the hub, as `id` or `id@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `organisation/name` or `name`.
    pub id: String,
    /// A branch, a tag or a commit; `main` where none is given.
    pub revision: Option<String>,
}

impl HubName {
    /// Reads `id` or `id@revision`; none where it has another form.
    pub fn parse(name: &str) -> Option<Self> {
        let (id, revision) = match name.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (name, None),
        };
        let fits = is_hub_id(id) && revision.is_none_or(is_revision);
        fits.then(|| Self { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Where `cache` holds the model.
    fn repository(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.id.replace('/', "--")))
    }

    /// Its snapshot in `cache`, whole or not: a revision is a name that stands for a commit, or a commit.
    fn snapshot(&self, cache: &Path) -> Option<PathBuf> {
        let repository = self.repository(cache);
        let commit = match std::fs::read_to_string(repository.join("refs").join(self.revision())) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => self.revision.clone()?,
        };
        let folder = repository.join("snapshots").join(commit);
        folder.is_dir().then_some(folder)
    }

    fn error(&self, reason: String) -> ModelError {
        ModelError::Hub { name: self.to_string(), reason }
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.id),
            None => f.write_str(&self.id),
        }
    }
}

/// Whether `name` can be a branch, a tag, a commit or `refs/pr/N`: a path within the cache's `refs`.
fn is_revision(name: &str) -> bool {
    let fits = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+'))
    };
    name.len() <= 200 && name.split('/').all(fits)
}

/// The folder that holds the files of hub model `name`, fetched first if need be.
///
/// # Errors
/// The hub cannot be reached or has no such model or revision, and the cache does not hold it.
pub fn folder_of(name: &HubName) -> Result<PathBuf, ModelError> {
    let cache = cache_folder()
        .ok_or_else(|| name.error("no HOME, HF_HOME or HF_HUB_CACHE says where the cache is".to_owned()))?;
    let snapshot = name.snapshot(&cache);
    let absent = match snapshot.as_deref().map(first_absent) {
        Some(None) => return Ok(snapshot.unwrap_or_default()),
        Some(Some(file)) => format!("its copy in {} lacks {file}", cache.display()),
        None => format!("it is not in {}", cache.display()),
    };
    if is_offline() {
        return Err(name.error(format!("{absent}, and HF_HUB_OFFLINE is set")));
    }
    fetch(&cache, name)
}

/// Whether the cache holds all of hub model `name`.
pub fn is_cached(name: &HubName) -> bool {
    let snapshot = cache_folder().and_then(|cache| name.snapshot(&cache));
    snapshot.is_some_and(|folder| first_absent(&folder).is_none())
}

/// Where `huggingface_hub` has its cache; `None` where nothing says so.
pub fn cache_folder() -> Option<PathBuf> {
    HubEnv::of_process().cache()
}

/// Whether nothing may be fetched.
pub fn is_offline() -> bool {
    HubEnv::of_process().is_offline()
}

/// The first of a snapshot's files that is not there; a link to a blob that is gone is not there either.
fn first_absent(folder: &Path) -> Option<String> {
    let is_absent = |name: &String| !folder.join(name).is_file();
    let weights = match folder.join("model.safetensors").is_file() {
        true => Vec::new(),
        false => match Safetensors::shard_names(&folder.join("model.safetensors.index.json")) {
            Ok(names) => names,
            Err(_) => vec!["model.safetensors".to_owned()],
        },
    };
    ["config.json".to_owned()].into_iter().chain(weights).find(is_absent)
}

/// Fetches on a separate thread, since the client would wait for a silent server without end.
fn fetch(cache: &Path, name: &HubName) -> Result<PathBuf, ModelError> {
    let hub_error = |reason: String| name.error(reason);
    let failed = |what: &str, error: &dyn std::fmt::Display| hub_error(format!("{what}: {error}"));
    // The client puts links into the cache and wants to know where they are.
    let cache = std::path::absolute(cache).map_err(|error| failed("the cache", &error))?;
    let mut builder = ApiBuilder::from_cache(Cache::new(cache.clone())).with_progress(false).with_retries(2);
    if let Some(endpoint) = text("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    builder = builder.with_token(HubEnv::of_process().token());
    let timeout = match text("HF_HUB_DOWNLOAD_TIMEOUT") {
        None => TIMEOUT,
        Some(seconds) => seconds
            .parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| hub_error(format!("HF_HUB_DOWNLOAD_TIMEOUT is `{seconds}`, not a number of seconds")))?,
    };
    let api = builder.build().map_err(|error| failed("the hub client does not start", &error))?;
    let repo = Repo::with_revision(name.id.clone(), RepoType::Model, name.revision().to_owned());
    tracing::info!("fetching {name} into {}", cache.display());
    let pulse = Pulse::default();
    let fetcher = Fetcher { files: api.repo(repo.clone()), cached: Cache::new(cache).repo(repo), pulse: pulse.clone() };
    let (sender, answer) = mpsc::channel();
    let thread = std::thread::Builder::new().name("hub".to_owned());
    // Nobody listens any more after the timeout.
    let started = thread.spawn(move || drop(sender.send(fetcher.fetch())));
    started.map_err(|error| failed("no thread", &error))?;
    let (mut seen, mut since) = (pulse.count(), Instant::now());
    loop {
        match answer.recv_timeout(Duration::from_millis(100)) {
            Ok(fetched) => return fetched.map_err(hub_error),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(hub_error("the hub client panicked".to_owned())),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if pulse.count() != seen {
            (seen, since) = (pulse.count(), Instant::now());
        }
        if since.elapsed() > timeout {
            return Err(hub_error(format!("the server has said nothing for {:.0} s", timeout.as_secs_f64())));
        }
    }
}

/// An environment variable that is set and not blank.
fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// How long a server may be silent, unless `HF_HUB_DOWNLOAD_TIMEOUT` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Counts signs of life of a download.
#[derive(Clone, Default)]
struct Pulse(Arc<AtomicU64>);

impl Pulse {
    fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl hf_hub::api::Progress for Pulse {
    fn init(&mut self, _: usize, _: &str) {
        self.beat();
    }

    fn update(&mut self, _: usize) {
        self.beat();
    }

    fn finish(&mut self) {
        self.beat();
    }
}

/// Fetches the files of one model into the cache.
struct Fetcher {
    files: ApiRepo,
    cached: CacheRepo,
    pulse: Pulse,
}

impl Fetcher {
    /// The folder of the complete snapshot; the weights come last, so that nothing incomplete looks complete.
    fn fetch(&self) -> Result<PathBuf, String> {
        let config = self.get("config.json").map_err(|error| reason("config.json", &error))?;
        let has_tokenizer = self.get_if_there("tokenizer.json")?
            || self.get_if_there("vocab.json")? && self.get_if_there("merges.txt")?;
        if !has_tokenizer {
            // Fine for numbers.
            tracing::warn!("the model has no tokenizer.json");
        }
        for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
            self.get_if_there(name)?;
        }
        self.get_weights()?;
        match config.parent() {
            Some(folder) => Ok(folder.to_owned()),
            None => Err("config.json lies in no folder".to_owned()),
        }
    }

    /// A file that not every model has; false where this one has none.
    fn get_if_there(&self, name: &str) -> Result<bool, String> {
        match self.get(name) {
            Ok(_) => Ok(true),
            Err(error) if status(&error) == Some(404) => Ok(false),
            Err(error) => Err(reason(name, &error)),
        }
    }

    fn get_weights(&self) -> Result<(), String> {
        let single = "model.safetensors";
        let error = match self.get(single) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // The error of the usual file is the one to show when there is no index either.
        let Ok(index) = self.get("model.safetensors.index.json") else {
            return Err(reason(single, &error));
        };
        for shard in Safetensors::shard_names(&index).map_err(|error| error.to_string())? {
            self.get(&shard).map_err(|error| reason(&shard, &error))?;
        }
        Ok(())
    }

    /// One file; where another process is fetching it, its result.
    fn get(&self, name: &str) -> Result<PathBuf, ApiError> {
        loop {
            self.pulse.beat();
            if let Some(path) = self.cached.get(name) {
                return Ok(path);
            }
            match self.files.download_with_progress(name, self.pulse.clone()) {
                // The client has waited some seconds for the lock.
                Err(ApiError::LockAcquisition(_)) => tracing::info!("another process is fetching {name}"),
                other => return other,
            }
        }
    }
}

/// The HTTP status of a refusal.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        // The client's own error type is not within reach, but its text is fixed.
        ApiError::RequestError(error) => error.to_string().strip_prefix("http status: ")?.parse().ok(),
        _ => None,
    }
}

fn reason(file: &str, error: &ApiError) -> String {
    match status(error) {
        Some(401 | 403) => format!("{file}: {error}; there is no such model, or HF_TOKEN does not open it"),
        Some(404) => format!("{file}: {error}; there is no such model, or it has no such file"),
        _ => format!("{file}: {error}"),
    }
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

    #[test]
    fn revisions_follow_an_at_sign() {
        let parsed = |name: &str| HubName::parse(name).map(|name| (name.id, name.revision));
        assert_eq!(parsed("gpt2"), Some(("gpt2".to_owned(), None)));
        for revision in ["main", "v1.0", "0123abc", "refs/pr/1", "a+b_c-d"] {
            let expected = Some(("a/b".to_owned(), Some(revision.to_owned())));
            assert_eq!(parsed(&format!("a/b@{revision}")), expected);
        }
        for bad in ["a/b@", "@main", "a/b@../x", "a/b@x/../y", "a/b@/x", "a/b@x/", "a/b@x y", "a/b@x@y", "a/b@.x"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
