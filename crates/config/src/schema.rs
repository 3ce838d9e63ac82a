//! The keys as a JSON Schema, by which editors complete and check configuration files.

use serde_json::{Map, Value as Json, json};

use crate::key::{About, Key, KeyDefault, keys};
use crate::source::{HELPER_PREFIX, MERGE_KEY};

/// The JSON Schema (draft 2020-12) of a configuration file. It knows each key by itself; the rules between keys are left to
/// [`crate::resolve`].
pub fn schema() -> Json {
    let mut top = Map::new();
    let mut groups: Map<String, Json> = Map::new();
    for key in keys() {
        for (spelling, schema) in spellings(key) {
            if let Some((group, inner)) = spelling.split_once('.') {
                let members = groups.entry(group).or_insert_with(|| json!({}));
                members[inner] = schema.clone();
            }
            top.insert(spelling.to_string(), schema);
        }
    }
    for (group, members) in groups {
        top.insert(group, mapping(members));
    }
    let mut schema = mapping(Json::Object(top));
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("numalign configuration");
    schema["patternProperties"] = json!({ format!("^{HELPER_PREFIX}"): {} });
    schema
}

/// A mapping of these members and no others, apart from a merge key.
fn mapping(mut members: Json) -> Json {
    members[MERGE_KEY] = json!({ "type": ["object", "array"], "items": { "type": "object" } });
    json!({ "type": ["object", "null"], "properties": members, "additionalProperties": false })
}

/// The key's schema under each of its spellings.
fn spellings(key: &Key) -> Vec<(&'static str, Json)> {
    let schema = of_key(key);
    let mut all = vec![(key.name, schema.clone())];
    for old in key.deprecated {
        let mut schema = schema.clone();
        schema["deprecated"] = json!(true);
        schema["description"] = json!(format!("Old spelling of {}. {}", key.name, key.help));
        all.push((old, schema));
    }
    all
}

fn of_key(key: &Key) -> Json {
    let About { mut schema, default, .. } = (key.about)();
    // A null is a key that is not set.
    for keyword in ["type", "enum"] {
        if let Some(Json::Array(allowed)) = schema.get_mut(keyword) {
            allowed.push(if keyword == "type" { json!("null") } else { Json::Null });
        }
    }
    let mut description = key.help.to_string();
    if let KeyDefault::Derived(text) = key.default {
        description.push_str(&format!(". Default: {text}"));
    }
    if key.stored().is_some() {
        description.push_str(". Stored in the checkpoint");
    }
    schema["description"] = json!(description);
    if let Some(default) = default {
        schema["default"] = default;
    }
    schema
}
