//! The hub's cache and the checkpoints' folder.

use std::path::Path;

use numalign_model::load::hub;

use super::{Check, Status};

pub fn checks() -> Vec<Check> {
    vec![cache(), checkpoints(Path::new(numalign_config::RUNS_FOLDER))]
}

fn cache() -> Check {
    let Some(folder) = hub::cache_folder() else {
        let detail = "no HOME, HF_HOME or HF_HUB_CACHE says where it is";
        return Check::bad("hub cache", Status::Warning, detail, "set HF_HOME, or give models as folders");
    };
    let offline = if hub::is_offline() { ", HF_HUB_OFFLINE is set" } else { "" };
    let detail = format!("{}{offline}", folder.display());
    match write_somewhere(&folder) {
        Ok(()) => Check::ok("hub cache", detail),
        Err(reason) => {
            let hint = "models in it can be read, none can be fetched; set HF_HOME to a folder of your own";
            Check::bad("hub cache", Status::Warning, format!("{detail}: {reason}"), hint)
        }
    }
}

fn checkpoints(folder: &Path) -> Check {
    let place = std::env::current_dir().unwrap_or_default().join(folder);
    match write_somewhere(folder) {
        Ok(()) => Check::ok("checkpoints", format!("{} can be written to", place.display())),
        Err(reason) => {
            let detail = format!("{} cannot be written to: {reason}", place.display());
            Check::bad("checkpoints", Status::Failure, detail, "start numalign in a folder of your own")
        }
    }
}

/// Writes and removes a small file in `folder`, or in the nearest folder above it that exists.
fn write_somewhere(folder: &Path) -> Result<(), String> {
    if folder.exists() && !folder.is_dir() {
        return Err("it is a file".to_owned());
    }
    let present = folder.ancestors().find(|path| path.is_dir());
    let present = present.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".numalign-doctor").tempfile_in(present);
    let file = file.map_err(|error| format!("{}: {error}", present.display()))?;
    std::io::Write::write_all(&mut file.as_file(), b"numalign").map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_made_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(write_somewhere(&folder.path().join("a/b/c")), Ok(()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
        assert!(write_somewhere(Path::new("/proc/no/such/folder")).is_err());
    }
}
