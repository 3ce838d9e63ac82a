//! Where the hub's cache and token are, by the rules of `huggingface_hub/constants.py` and `utils/_auth.py`: `~` and
//! `$VARIABLE` in paths are expanded, `HUGGINGFACE_HUB_CACHE` and `XDG_CACHE_HOME` count. An empty variable counts as
//! not set.

use std::path::PathBuf;

/// The hub's variables, as far as they are set.
pub struct HubEnv<F>(F);

impl HubEnv<fn(&str) -> Option<String>> {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self(|name| std::env::var(name).ok())
    }
}

impl<F: Fn(&str) -> Option<String>> HubEnv<F> {
    /// `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `hub` in the home of the hub's files; `None` where nothing says
    /// where that is.
    pub fn cache(&self) -> Option<PathBuf> {
        match self.set("HF_HUB_CACHE").or_else(|| self.set("HUGGINGFACE_HUB_CACHE")) {
            Some(folder) => Some(self.expanded(&folder)),
            None => Some(self.home()?.join("hub")),
        }
    }

    /// `HF_TOKEN`, else what the file at `HF_TOKEN_PATH` or in the home of the hub's files holds, unless
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
    pub fn token(&self) -> Option<String> {
        if self.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        let text = self.set("HF_TOKEN").or_else(|| self.set("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let path = match self.set("HF_TOKEN_PATH") {
                Some(path) => self.expanded(&path),
                None => self.home()?.join("token"),
            };
            std::fs::read_to_string(path).ok()
        })?;
        let token = text.replace(['\r', '\n'], "").trim().to_owned();
        Some(token).filter(|token| !token.is_empty())
    }

    /// Whether nothing may be fetched.
    pub fn is_offline(&self) -> bool {
        match self.set("HF_HUB_OFFLINE") {
            Some(_) => self.flag("HF_HUB_OFFLINE"),
            None => self.flag("TRANSFORMERS_OFFLINE"),
        }
    }

    /// `HF_HOME`, else `huggingface` in `XDG_CACHE_HOME`, else in `~/.cache`.
    fn home(&self) -> Option<PathBuf> {
        if let Some(home) = self.set("HF_HOME") {
            return Some(self.expanded(&home));
        }
        if let Some(cache) = self.set("XDG_CACHE_HOME") {
            return Some(self.expanded(&cache).join("huggingface"));
        }
        self.set("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface"))
    }

    fn set(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn flag(&self, name: &str) -> bool {
        let value = self.set(name).unwrap_or_default().to_ascii_uppercase();
        matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
    }

    /// A leading `~` stands for the user's home, `$NAME` and `${NAME}` for a variable; an unknown one stays.
    fn expanded(&self, path: &str) -> PathBuf {
        let home = self.set("HOME").filter(|_| path == "~" || path.starts_with("~/"));
        let path = home.map_or_else(|| path.to_owned(), |home| format!("{}{}", home.trim_end_matches('/'), &path[1..]));
        let mut out = String::new();
        let mut rest = path.as_str();
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let (name, length) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some((name, _)) => (name, name.len() + 2),
                None => {
                    let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                    (&after[..end], end)
                }
            };
            match (self.0)(name).filter(|_| !name.is_empty()) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..at + 1 + length]),
            }
            rest = &after[length..];
        }
        out.push_str(rest);
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn cache(variables: &[(&str, &str)]) -> Option<PathBuf> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        HubEnv(get).cache()
    }

    /// Each expectation is what `huggingface_hub` 0.36.0 says with the same variables.
    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let home = ("HOME", "/h");
        for (variables, expected) in [
            (vec![], "/h/.cache/huggingface/hub"),
            (vec![("XDG_CACHE_HOME", "~/x")], "/h/x/huggingface/hub"),
            (vec![("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (vec![("HF_HOME", "~")], "/h/hub"),
            (vec![("HF_HOME", "$BASE/hf"), ("BASE", "/data")], "/data/hf/hub"),
            (vec![("HF_HOME", "${BASE}x/$NONE"), ("BASE", "/data")], "/datax/$NONE/hub"),
            (vec![("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "~/old")], "/h/old"),
            (vec![("HF_HUB_CACHE", "~/new"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/h/new"),
        ] {
            let all = [&variables[..], &[home]].concat();
            assert_eq!(cache(&all).as_deref(), Some(Path::new(expected)), "{variables:?}");
        }
        assert_eq!(cache(&[]), None);
    }

    #[test]
    fn the_token_is_of_the_variable_else_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), " hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap().to_owned();
        let token = |more: &[(&str, &str)]| {
            let get = |name: &str| match name {
                "HOME" => Some(home.clone()),
                _ => more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
            };
            HubEnv(get).token()
        };
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("HF_TOKEN_PATH", "~/token")]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", "$HOME")]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", "~"), ("HF_TOKEN", "hf_var\r\n")]).as_deref(), Some("hf_var"));
        assert_eq!(token(&[("HF_HOME", "~"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }
}
