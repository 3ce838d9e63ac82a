//! The tokenizer of a model folder, with the ids that `transformers` gives: `tokenizer.json`, else `vocab.json` and
//! `merges.txt`; around them the added and special tokens of `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json`.
//!
//! The order in which tokens are added decides their ids; it is that of `TokenizersBackend` in transformers 5.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::AddedToken;
use tokenizers::processors::template::{Template, TemplateProcessing};

use super::byte_level::{Document, Parts, QWEN_2, bytes, merge, sequence, split};
use super::json;
use super::weights::read_text;
use crate::arch::Architecture;
use crate::error::ModelError;
use crate::tokenizer::Tokenizer;

/// Files beyond these sizes are refused.
const MOST_TOKENIZER: u64 = 256 << 20;
const MOST_SETTINGS: u64 = 16 << 20;

/// Roles of special tokens, in the order in which they are added.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Hub models whose ids are those of GPT-2's published vocabulary, should their files hold no tokenizer.
const GPT_2: [&str; 4] = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"];

/// The tokenizer of `folder`; `hub_id` is what it was fetched as.
///
/// # Errors
/// Files that are damaged or cannot be read. A folder without a tokenizer is none: what is missing is told when a text
/// comes.
pub fn folder_tokenizer(
    folder: &Path,
    architecture: &Architecture,
    hub_id: Option<&str>,
) -> Result<Tokenizer, ModelError> {
    let there = |name: &str| folder.join(name).symlink_metadata().is_ok();
    if there("tokenizer.json") {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_json(&path, read_text(&path, MOST_TOKENIZER)?.as_bytes())?;
        if let Tokenizer::File(file) = &mut tokenizer {
            TokenSettings::read(folder)?.add_to(&mut file.tokenizer, None);
        }
        return Ok(tokenizer);
    }
    if there("vocab.json") && there("merges.txt") {
        return from_vocabulary(folder);
    }
    if let Architecture::Gpt2(config) = architecture
        && hub_id.is_some_and(|id| GPT_2.contains(&id.strip_prefix("openai-community/").unwrap_or(id)))
    {
        return Ok(Tokenizer::gpt2(config.vocab_size));
    }
    Ok(Tokenizer::Missing("the folder has neither tokenizer.json nor vocab.json with merges.txt".to_owned()))
}

/// The kinds of `vocab.json` and `merges.txt` that are read, under the names of their classes in `transformers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gpt2,
    Qwen2,
}

impl Kind {
    fn of(class: Option<&str>, model_type: &str) -> Result<Self, String> {
        match class.map(|class| class.strip_suffix("Fast").unwrap_or(class)) {
            Some("GPT2Tokenizer") => Ok(Self::Gpt2),
            Some("Qwen2Tokenizer") => Ok(Self::Qwen2),
            Some(class) => {
                Err(format!("tokenizer_class `{class}` is read from tokenizer.json only, which is not there"))
            }
            None => match model_type {
                "gpt2" => Ok(Self::Gpt2),
                "qwen2" | "qwen3" => Ok(Self::Qwen2),
                _ => Err(format!(
                    "for model_type `{model_type}` vocab.json and merges.txt are read only where tokenizer_config.json \
                     names tokenizer_class GPT2Tokenizer or Qwen2Tokenizer"
                )),
            },
        }
    }

    /// Special tokens where no file names them.
    fn defaults(self) -> &'static [&'static str] {
        match self {
            Self::Gpt2 => &["bos_token", "eos_token", "unk_token"],
            Self::Qwen2 => &["eos_token", "unk_token", "pad_token"],
        }
    }
}

fn from_vocabulary(folder: &Path) -> Result<Tokenizer, ModelError> {
    let settings = TokenSettings::read(folder)?;
    let config = object(folder, "config.json")?;
    let text = |name: &str| config.get(name).and_then(Json::as_str);
    let class = settings.class.as_deref().or(text("tokenizer_class"));
    let kind = match Kind::of(class, text("model_type").unwrap_or_default()) {
        Ok(kind) => kind,
        Err(reason) => return Ok(Tokenizer::Missing(reason)),
    };
    let path = folder.join("vocab.json");
    let text = read_text(&path, MOST_TOKENIZER)?;
    let vocab: BTreeMap<String, u32> = serde_json::from_str(&text)
        .map_err(|error| ModelError::Damaged { path: path.clone(), reason: format!("not a vocabulary: {error}") })?;
    let merges_path = folder.join("merges.txt");
    let merges_text = read_text(&merges_path, MOST_TOKENIZER)?;
    let mut merges = Vec::new();
    for (number, line) in merges_text.lines().enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        let damaged = |reason| ModelError::Damaged { path: merges_path.clone(), reason };
        let line_number = number + 1;
        let (left, right) =
            merge(line).ok_or_else(|| damaged(format!("line {line_number} is not a pair of tokens: {line:?}")))?;
        let made = [left, right].concat();
        if let Some(token) = [left, right, &made].into_iter().find(|token| !vocab.contains_key(*token)) {
            return Err(damaged(format!("line {line_number} has a token that vocab.json lacks: {token:?}")));
        }
        merges.push((left, right));
    }
    let (normalizer, pre_tokenizer) = match kind {
        Kind::Gpt2 => (Json::Null, bytes(true, settings.add_prefix_space)),
        Kind::Qwen2 => (
            serde_json::json!({ "type": "NFC" }),
            sequence(vec![split(QWEN_2), bytes(false, settings.add_prefix_space)]),
        ),
    };
    let document = Document::from(Parts {
        vocab: vocab.iter().map(|(token, id)| (token.as_str(), *id)).collect(),
        merges,
        added_tokens: Vec::new(),
        normalizer,
        pre_tokenizer,
        post_processor: Json::Null,
        ignore_merges: false,
    });
    let json = serde_json::to_vec(&document)
        .map_err(|error| ModelError::Damaged { path: path.clone(), reason: error.to_string() })?;
    let mut tokenizer = Tokenizer::from_json(&path, &json)?;
    if let Tokenizer::File(file) = &mut tokenizer {
        let (bos, eos) = (settings.add_bos, settings.add_eos);
        let named = settings.add_to(&mut file.tokenizer, Some(kind));
        let token = |role: &str, wanted: bool| named.get(role).filter(|_| wanted).cloned();
        let template = template(&file.tokenizer, token("bos_token", bos), token("eos_token", eos));
        let template = template.map_err(|reason| ModelError::Damaged { path, reason })?;
        file.tokenizer.with_post_processor(Some(template));
    }
    Ok(tokenizer)
}

/// The template that puts `bos` before a text and `eos` behind it.
fn template(
    tokenizer: &tokenizers::Tokenizer,
    bos: Option<String>,
    eos: Option<String>,
) -> Result<TemplateProcessing, String> {
    let mut special = Vec::new();
    for token in [&bos, &eos].into_iter().flatten() {
        let id = tokenizer.token_to_id(token).ok_or_else(|| format!("{token:?} is not in the vocabulary"))?;
        special.push((token.clone(), id));
    }
    let pieces: Vec<String> = bos.into_iter().chain(["$A".to_owned()]).chain(eos).collect();
    Template::try_from(pieces)
        .and_then(|single| {
            let mut builder = TemplateProcessing::builder();
            builder.single(single).special_tokens(special).build().map_err(|error| error.to_string())
        })
        .map_err(|error| format!("special tokens around a text: {error}"))
}

/// A file of `folder` that holds a JSON object; an empty one where it is not there.
fn object(folder: &Path, name: &str) -> Result<Map<String, Json>, ModelError> {
    let path = folder.join(name);
    if path.symlink_metadata().is_err() {
        return Ok(Map::new());
    }
    match json::parse(&read_text(&path, MOST_SETTINGS)?) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(ModelError::Damaged { path, reason: "not a JSON object".to_owned() }),
        Err(error) => Err(ModelError::Damaged { path, reason: format!("not JSON: {error}") }),
    }
}

/// What the files beside the vocabulary say.
#[derive(Default)]
struct TokenSettings {
    class: Option<String>,
    add_prefix_space: bool,
    split_special_tokens: bool,
    /// Where special tokens are added, these stand around a text; a `tokenizer.json` says so itself.
    add_bos: bool,
    add_eos: bool,
    /// Tokens with their properties, by id.
    decoder: BTreeMap<u64, AddedToken>,
    /// Special tokens by role; none where a file says that there is none.
    roles: BTreeMap<String, Option<AddedToken>>,
    /// Further special tokens.
    extra: Vec<AddedToken>,
}

impl TokenSettings {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        let mut config = object(folder, "tokenizer_config.json")?;
        let flag = |config: &Map<String, Json>, name: &str| config.get(name).and_then(Json::as_bool).unwrap_or(false);
        let mut settings = Self {
            class: config.get("tokenizer_class").and_then(Json::as_str).map(str::to_owned),
            add_prefix_space: flag(&config, "add_prefix_space"),
            split_special_tokens: flag(&config, "split_special_tokens"),
            add_bos: flag(&config, "add_bos_token"),
            add_eos: flag(&config, "add_eos_token"),
            ..Self::default()
        };
        if let Some(Json::Object(decoder)) = config.remove("added_tokens_decoder") {
            for (id, token) in &decoder {
                if let (Ok(id), Some(token)) = (id.parse(), added_token(token)) {
                    settings.decoder.insert(id, token);
                }
            }
            settings.take_special(&config);
        } else {
            for (key, value) in object(folder, "special_tokens_map.json")? {
                config.insert(key, value);
            }
            settings.take_special(&config);
            for (content, id) in object(folder, "added_tokens.json")? {
                let Some(id) = id.as_u64() else {
                    continue;
                };
                let named = settings.roles.values().flatten().chain(&settings.extra);
                let special = named.into_iter().any(|token| token.content == content);
                settings.decoder.insert(id, AddedToken::from(content, special));
            }
        }
        Ok(settings)
    }

    /// The special tokens that `config` names.
    fn take_special(&mut self, config: &Map<String, Json>) {
        for (key, value) in config {
            let has_role = ROLES.contains(&key.as_str());
            match (key.as_str(), value) {
                ("additional_special_tokens" | "extra_special_tokens", Json::Array(tokens)) => {
                    for token in tokens.iter().filter_map(added_token) {
                        if self.extra.iter().all(|known| known.content != token.content) {
                            self.extra.push(token);
                        }
                    }
                }
                ("extra_special_tokens", Json::Object(tokens)) => {
                    for (role, token) in tokens {
                        self.roles.insert(role.clone(), added_token(token));
                    }
                }
                (_, Json::Null) if has_role => {
                    self.roles.insert(key.clone(), None);
                }
                _ if has_role || key.ends_with("_token") => {
                    if let Some(token) = added_token(value) {
                        self.roles.insert(key.clone(), Some(token));
                    }
                }
                _ => {}
            }
        }
    }

    /// Adds the tokens that `tokenizer` lacks. In a vocabulary of a known kind, roles that no file names have that kind's
    /// defaults. Answers with the text of each role's token.
    fn add_to(mut self, tokenizer: &mut tokenizers::Tokenizer, kind: Option<Kind>) -> BTreeMap<String, String> {
        for role in kind.map(Kind::defaults).unwrap_or_default() {
            let token = || Some(AddedToken::from("<|endoftext|>", true));
            self.roles.entry((*role).to_owned()).or_insert_with(token);
        }
        let known: Vec<String> =
            tokenizer.get_added_tokens_decoder().values().map(|token| token.content.clone()).collect();
        let mut tokens: Vec<AddedToken> = Vec::new();
        let is_named = |content: &str| self.roles.values().flatten().any(|token| token.content == content);
        for token in self.decoder.values() {
            if !known.contains(&token.content) {
                tokens.push(AddedToken { special: token.special || is_named(&token.content), ..token.clone() });
            }
        }
        let others = self.roles.iter().filter(|(role, _)| !ROLES.contains(&role.as_str())).map(|(_, token)| token);
        let by_role = ROLES.iter().filter_map(|role| self.roles.get(*role)).chain(others).flatten();
        for token in by_role.chain(&self.extra) {
            let added = |all: &[AddedToken]| all.iter().any(|other| other.content == token.content);
            if !known.contains(&token.content) && !added(&tokens) {
                tokens.push(AddedToken { special: true, ..token.clone() });
            }
        }
        if !tokens.is_empty() {
            tokenizer.add_tokens(&tokens);
        }
        if kind == Some(Kind::Qwen2) {
            let named = self.roles.values().flatten().chain(&self.extra);
            let plain: Vec<_> = named.map(|token| AddedToken::from(token.content.as_str(), true)).collect();
            tokenizer.add_tokens(&plain);
        }
        tokenizer.set_encode_special_tokens(self.split_special_tokens);
        self.roles.into_iter().filter_map(|(role, token)| Some((role, token?.content))).collect()
    }
}

/// A token as its text or with its properties.
fn added_token(value: &Json) -> Option<AddedToken> {
    match value {
        Json::String(content) => Some(AddedToken::from(content.as_str(), true)),
        Json::Object(fields) => {
            let flag = |name: &str| fields.get(name).and_then(Json::as_bool);
            let special = flag("special").unwrap_or(false);
            let token = AddedToken::from(fields.get("content")?.as_str()?, special);
            Some(
                token
                    .single_word(flag("single_word").unwrap_or(false))
                    .lstrip(flag("lstrip").unwrap_or(false))
                    .rstrip(flag("rstrip").unwrap_or(false))
                    .normalized(flag("normalized").unwrap_or(!special)),
            )
        }
        _ => None,
    }
}
