//! A value as it was written, before its key says what it should be.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// One YAML node, or the text of an environment variable or flag. A mapping keeps repeated keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(Raw, Raw)>),
}

impl Raw {
    /// What kind of value this is, for messages such as "not a list".
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Raw::Null => "nothing",
            Raw::Bool(_) => "true or false",
            Raw::Int(_) | Raw::Float(_) => "a number",
            Raw::Text(_) => "text",
            Raw::List(_) => "a list",
            Raw::Map(_) => "a mapping",
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Null => f.write_str("null"),
            Raw::Bool(value) => write!(f, "{value}"),
            Raw::Int(value) => write!(f, "{value}"),
            Raw::Float(value) => write!(f, "{value:?}"),
            Raw::Text(value) => f.write_str(value),
            Raw::List(items) => {
                let items: Vec<String> = items.iter().map(Raw::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Raw::Map(_) => f.write_str("{…}"),
        }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

/// The visits that cannot fail.
macro_rules! visits {
    ($($name:ident($value:ident: $type:ty) => $raw:expr;)+) => {
        $(fn $name<E>(self, $value: $type) -> Result<Raw, E> {
            Ok($raw)
        })+
    };
}

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value without a tag")
    }

    visits! {
        visit_bool(value: bool) => Raw::Bool(value);
        visit_u64(value: u64) => Raw::Int(value.into());
        visit_i64(value: i64) => Raw::Int(value.into());
        visit_u128(value: u128) => i128::try_from(value).map_or(Raw::Float(value as f64), Raw::Int);
        visit_i128(value: i128) => Raw::Int(value);
        visit_f64(value: f64) => Raw::Float(value);
        visit_str(value: &str) => Raw::Text(value.to_string());
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Raw {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn every_kind_of_node_is_read() {
        assert_eq!(read("~"), Raw::Null);
        assert_eq!(read("true"), Raw::Bool(true));
        assert_eq!(read("'true'"), Raw::Text("true".to_string()));
        assert_eq!(read("-3"), Raw::Int(-3));
        assert_eq!(read("18446744073709551616"), Raw::Int(18446744073709551616));
        assert_eq!(read("1.5"), Raw::Float(1.5));
        assert_eq!(read("[1, a]").to_string(), "[1, a]");
    }

    #[test]
    fn repeated_keys_are_kept() {
        let Raw::Map(entries) = read("a: 1\na: 2") else { panic!("not a mapping") };
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn tags_are_refused() {
        let error = serde_yaml::from_str::<Raw>("!big 3").unwrap_err().to_string();
        assert!(error.contains("without a tag"), "{error}");
    }
}
