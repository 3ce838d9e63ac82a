//! docs/CONFIGURATION.md is the table of keys, as a page. `WRITE_PAGES=1 cargo test --test configuration_page`
//! writes it anew.

use std::fmt::Write;
use std::path::Path;

use numalign_config::{Key, KeyDefault, keys, schema};
use serde_json::Value;

/// Set, the page is written in place of being compared.
const WRITE: &str = "WRITE_PAGES";

const HEAD: &str = "\
# Configuration

Every key of a run. This page is made from the table in `crates/config/src/keys.rs`; a test keeps it current. Words of the field are
explained in the [glossary](ARCHITECTURE.md#glossary), and [TRAINING.md](TRAINING.md) says which settings to choose.

A key can be set in three places. If it is set in several, the first in this list wins:

1. a flag: `--batch-size 16` or `--batch_size 16`
2. an environment variable: `NUMALIGN_BATCH_SIZE=16`, and `NUMALIGN_DATASET_FILE` for `dataset.file`
3. a line in the YAML file: `batch_size: 16`

`numalign config show FILE` prints all keys of a run, `numalign config check FILE` reports all mistakes at once, and `numalign config
schema` prints a JSON Schema, with which an editor completes and checks the file. [config/config.yaml](../config/config.yaml) is a
template. Keys of `launch` that are no settings of a run, such as `--chaos`, are in `numalign launch --help`.

A key with **yes** under *recipe* decides the bytes of the result. It is stored in the checkpoint and must stay as it is on resume; only
`num_epochs` may grow. All others may change at any time.

";

/// The groups as headings, in the table's order.
fn groups() -> Vec<&'static str> {
    let mut found: Vec<&str> = Vec::new();
    for key in keys() {
        if !found.contains(&key.group) {
            found.push(key.group);
        }
    }
    found
}

fn heading(group: &str) -> String {
    let name = group.trim_start_matches("Keys: ");
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn number(value: &Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |number| format!("{number}"))
}

/// Bounds beyond which nobody goes by chance are not told.
fn bounds(schema: &Value) -> String {
    let told = |keyword: &str| schema.get(keyword).filter(|bound| bound.as_f64().is_some_and(|b| b.abs() < 1e8));
    let least = told("minimum").map(|bound| format!("from {}", number(bound)));
    let least = least.or_else(|| told("exclusiveMinimum").map(|bound| format!("above {}", number(bound))));
    let most = told("maximum").map(|bound| format!("to {}", number(bound)));
    let most = most.or_else(|| told("exclusiveMaximum").map(|bound| format!("below {}", number(bound))));
    [least, most].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// What the key takes, in words.
fn values(key: &Key, schema: &Value) -> String {
    let name = key.value_name();
    let mut words = Vec::new();
    for part in name.split('|') {
        words.push(match part {
            "N" => format!("a whole number {}", bounds(schema)),
            "X" => format!("a number {}", bounds(schema)),
            "TIME" => format!("a time {}", bounds(schema)),
            "NAME" => "text".to_owned(),
            "PATH" => "a path".to_owned(),
            "CHAR" => "a character".to_owned(),
            "A..B,…" => "a list of ranges, `[[0, 80], [1, 5]]`".to_owned(),
            "L:POOLING,…" => "a list of places, `[1:mean, 2:last]`".to_owned(),
            word if word.contains(',') => {
                format!("a list of {}", word.split(',').map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", "))
            }
            word => format!("`{word}`"),
        });
    }
    words.iter().map(|word| word.trim()).collect::<Vec<_>>().join(", ")
}

fn default(key: &Key) -> String {
    match key.default {
        KeyDefault::Value(text) => format!("`{text}`"),
        KeyDefault::Derived(text) => text.replace('<', "\\<"),
        KeyDefault::Unset => "–".to_owned(),
    }
}

fn row(key: &Key, schema: &Value) -> String {
    let mut meaning = key.help.replace('<', "\\<");
    for old in key.deprecated {
        let _ = write!(meaning, ". Once called `{old}`");
    }
    let is_stored = if key.stored().is_some() { "yes" } else { "" };
    let cells = [format!("`{}`", key.name), values(key, schema), default(key), is_stored.to_owned(), meaning];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
}

fn page() -> String {
    let schema = schema();
    let mut page = HEAD.to_owned();
    for group in groups() {
        let heading = heading(group);
        let _ = writeln!(page, "- [{heading}](#{})", heading.to_lowercase());
    }
    for group in groups() {
        let _ = write!(
            page,
            "\n## {}\n\n| key | values | default | recipe | meaning |\n|---|---|---|---|---|\n",
            heading(group)
        );
        for key in keys().iter().filter(|key| key.group == group) {
            page.push_str(&row(key, &schema["properties"][key.name]));
        }
    }
    page.push_str("\nA time is a number of seconds, or a number with a unit: `500ms`, `2s`, `3min`, `1h`.\n");
    page
}

#[test]
fn the_page_of_all_keys_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/CONFIGURATION.md");
    let wanted = page();
    for key in keys() {
        assert!(wanted.contains(&format!("| `{}` |", key.name)), "{}", key.name);
    }
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differing =
        wanted.lines().zip(found.lines().chain(std::iter::repeat(""))).find(|(wanted, found)| wanted != found);
    assert!(found == wanted, "docs/CONFIGURATION.md is not current; {WRITE}=1 writes it; first: {differing:?}");
}
