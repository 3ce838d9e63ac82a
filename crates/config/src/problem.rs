//! What is wrong with a configuration, in words: one line per problem, all problems together.
//! Built by `layer`, `resolve` and `checks`; printed by the `cli`.

use std::fmt;

/// Longest value that is printed; the rest is cut.
const SHOWN_CHARS: usize = 80;

/// One thing that is wrong, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
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

impl Problem {
    /// A problem of a whole source, such as a file that cannot be read.
    pub(crate) fn of_source(origin: String, message: String, hint: &str) -> Problem {
        Problem { origin, key: None, value: None, message, hint: Some(hint.to_string()) }
    }

    /// A problem of a key whose value does not matter, such as one that is unknown.
    pub(crate) fn of_key(origin: String, key: &str, message: String, hint: String) -> Problem {
        Problem { origin, key: Some(key.to_string()), value: None, message, hint: Some(hint) }
    }
}

impl fmt::Display for Problem {
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

/// Every problem of a configuration. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(crate) fn new(problems: Vec<Problem>) -> ConfigErrors {
        ConfigErrors { problems }
    }

    /// The problems: first those of the file, the environment and the flags as such, then those of
    /// the keys.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

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
    fn a_problem_is_one_line_whatever_the_value_holds() {
        let problem = Problem {
            origin: "run.yaml".to_string(),
            key: Some("lr".to_string()),
            value: Some("a\nb\u{1b}".to_string()),
            message: "must be a number".to_string(),
            hint: None,
        };
        assert_eq!(problem.to_string(), "run.yaml: lr = a\\nb\\u{1b}: must be a number");
    }

    #[test]
    fn long_values_are_cut_and_empty_ones_are_visible() {
        assert_eq!(one_line(&"x".repeat(100), 80), format!("{}…", "x".repeat(80)));
        assert_eq!(one_line(&"x".repeat(80), 80), "x".repeat(80));
        assert_eq!(one_line("", 80), "\"\"");
    }

    #[test]
    fn errors_print_a_line_each() {
        let first = Problem::of_source("a".to_string(), "is wrong".to_string(), "mend it");
        let second = Problem::of_key("b".to_string(), "k", "unknown key".to_string(), "no".into());
        let errors = ConfigErrors::new(vec![first, second]);
        assert_eq!(errors.to_string(), "a: is wrong; hint: mend it\nb: k: unknown key; hint: no");
    }
}
