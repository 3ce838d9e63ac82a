//! What is wrong with a configuration: one line per error, all errors together.

use std::fmt;

/// Longest value that is printed; the rest is cut.
const SHOWN_CHARS: usize = 80;

/// Why one value is refused, before its key is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParseError {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl ParseError {
    /// A refusal without a hint.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        ParseError { message: message.into(), hint: None }
    }

    /// A refusal that says what to do.
    pub(crate) fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        ParseError { message: message.into(), hint: Some(hint.into()) }
    }
}

/// One thing that is wrong, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// A file's path, an environment variable's name, a flag's spelling, or `default`.
    pub origin: String,
    /// The key as in the table, or as it was written where it is unknown.
    pub key: Option<String>,
    /// The value as it was written.
    pub value: Option<String>,
    /// What is wrong and what is allowed.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl ConfigError {
    /// An error of a whole source, such as a file that cannot be read.
    pub(crate) fn of_source(origin: String, message: String, hint: &str) -> ConfigError {
        ConfigError { origin, key: None, value: None, message, hint: Some(hint.to_string()) }
    }

    /// An error of a key whose value does not matter, such as one that is unknown.
    pub(crate) fn of_key(origin: String, key: &str, message: &str, hint: String) -> ConfigError {
        ConfigError { origin, key: Some(key.to_string()), value: None, message: message.to_string(), hint: Some(hint) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", one_line(&self.origin, usize::MAX))?;
        if let Some(key) = &self.key {
            write!(f, "{}", one_line(key, SHOWN_CHARS))?;
            if let Some(value) = &self.value {
                write!(f, " = {}", one_line(value, SHOWN_CHARS))?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&one_line(&self.message, usize::MAX))?;
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {}", one_line(hint, usize::MAX))?;
        }
        Ok(())
    }
}

/// Every error of a configuration. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(errors))]
pub struct ConfigErrors {
    /// First those of the file, the environment and the flags as such, then those of the keys.
    pub errors: Vec<ConfigError>,
}

fn lines(errors: &[ConfigError]) -> String {
    errors.iter().map(ConfigError::to_string).collect::<Vec<_>>().join("\n")
}

/// `text` on one line: control characters escaped, and cut after `limit` characters.
fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == limit {
            line.push('…');
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    if line.is_empty() {
        line.push_str("\"\"");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_the_value_holds() {
        let error = ConfigError {
            origin: "run.yaml".to_string(),
            key: Some("lr".to_string()),
            value: Some("a\nb\u{1b}".to_string()),
            message: "must be a number".to_string(),
            hint: None,
        };
        assert_eq!(error.to_string(), "run.yaml: lr = a\\nb\\u{1b}: must be a number");
    }

    #[test]
    fn long_values_are_cut_and_empty_ones_are_visible() {
        assert_eq!(one_line(&"x".repeat(100), 80), format!("{}…", "x".repeat(80)));
        assert_eq!(one_line(&"x".repeat(80), 80), "x".repeat(80));
        assert_eq!(one_line("", 80), "\"\"");
    }

    #[test]
    fn errors_print_a_line_each() {
        let first = ConfigError::of_source("a".to_string(), "is wrong".to_string(), "mend it");
        let second = ConfigError::of_key("b".to_string(), "k", "unknown key", "no".into());
        let errors = ConfigErrors { errors: vec![first, second] };
        assert_eq!(errors.to_string(), "a: is wrong; hint: mend it\nb: k: unknown key; hint: no");
    }
}
