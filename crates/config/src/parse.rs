//! Turns a written value into a typed one, strictly: nothing is rounded, guessed or cut.
//! Called by `resolve`, once per key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::choice::Choice;
use crate::raw::Raw;
use crate::types::{DeviceChoice, Resume, Task};

/// Longest duration: far above any use, far below what would overflow a clock.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

fn fault<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { message: message.into(), hint: None })
}

fn fault_with_hint<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { message: message.into(), hint: Some(hint.into()) })
}

/// `true` or `false`, and nothing else.
pub(crate) fn boolean(raw: &Raw) -> Result<bool, Fault> {
    let text = match raw {
        Raw::Bool(value) => return Ok(*value),
        Raw::Text(text) => text,
        other => return fault(format!("must be true or false, not {}", other.kind())),
    };
    let meant = match text.as_str() {
        "true" => return Ok(true),
        "false" => return Ok(false),
        other => other.to_ascii_lowercase(),
    };
    match meant.as_str() {
        "true" | "yes" | "on" | "y" | "1" => fault_with_hint("must be true or false", "write true"),
        "false" | "no" | "off" | "n" | "0" => fault_with_hint("must be true or false", "write false"),
        _ => fault("must be true or false"),
    }
}

/// A whole number from `least` to `most`.
pub(crate) fn whole(raw: &Raw, least: u64, most: u64) -> Result<u64, Fault> {
    let allowed = match most {
        u64::MAX => format!("a whole number, at least {least}"),
        most => format!("a whole number from {least} to {most}"),
    };
    let value = match raw {
        Raw::Int(value) => *value,
        Raw::Float(value) if value.is_finite() && value.fract() == 0.0 => {
            return fault_with_hint(
                format!("must be {allowed}"),
                "write it with digits only, without a fraction or an exponent",
            );
        }
        Raw::Float(_) => return fault(format!("must be {allowed}")),
        Raw::Text(text) => match text.parse::<i128>() {
            Ok(value) => value,
            Err(_) => return fault(format!("must be {allowed}")),
        },
        other => return fault(format!("must be {allowed}, not {}", other.kind())),
    };
    match u64::try_from(value) {
        Ok(value) if value >= least && value <= most => Ok(value),
        _ if value > i128::from(u64::MAX) => fault(format!("must be {allowed}; the largest possible is {}", u64::MAX)),
        _ => fault(format!("must be {allowed}")),
    }
}

/// A finite number.
pub(crate) fn float(raw: &Raw) -> Result<f64, Fault> {
    let value = match raw {
        Raw::Int(value) => *value as f64,
        Raw::Float(value) => *value,
        Raw::Text(text) => match text.parse::<f64>() {
            Ok(value) => value,
            Err(_) if text.contains(',') => {
                return fault_with_hint("must be a number", "write the decimals after a point");
            }
            Err(_) => return fault("must be a number"),
        },
        other => return fault(format!("must be a number, not {}", other.kind())),
    };
    if !value.is_finite() {
        return fault("must be a finite number");
    }
    // Adding 0 turns -0 into 0, so that equal settings have equal bytes.
    Ok(value + 0.0)
}

/// A number above 0 that stays above 0 and finite in single precision, which the updates use.
pub(crate) fn positive_float(raw: &Raw) -> Result<f64, Fault> {
    let value = float(raw)?;
    if value <= 0.0 {
        return fault("must be above 0");
    }
    if value < f64::from(f32::MIN_POSITIVE) || value > f64::from(f32::MAX) {
        return fault(format!("must be from {:e} to {:e}, the range of single precision", f32::MIN_POSITIVE, f32::MAX));
    }
    Ok(value)
}

/// A number that stays finite in single precision.
pub(crate) fn bound(raw: &Raw) -> Result<f64, Fault> {
    let value = float(raw)?;
    if value.abs() > f64::from(f32::MAX) {
        return fault(format!("must be from -{0:e} to {0:e}, the range of single precision", f32::MAX));
    }
    Ok(value)
}

/// Text that is not empty. Whole numbers are taken as their digits.
pub(crate) fn text(raw: &Raw) -> Result<String, Fault> {
    let text = match raw {
        Raw::Text(text) => text.clone(),
        Raw::Int(value) => value.to_string(),
        Raw::Float(_) | Raw::Bool(_) => {
            return fault_with_hint(
                format!("must be text, not {}", raw.kind()),
                "put it in quotes if it is meant as text",
            );
        }
        other => return fault(format!("must be text, not {}", other.kind())),
    };
    if text.is_empty() {
        return fault_with_hint("must not be empty", "leave it out to use the default");
    }
    if text.contains('\0') {
        return fault("must not contain the character NUL");
    }
    Ok(text)
}

/// A path, relative to the current directory.
pub(crate) fn path(raw: &Raw) -> Result<PathBuf, Fault> {
    Ok(PathBuf::from(text(raw)?))
}

/// The path of a file to write: it must name a file.
pub(crate) fn file_to_write(raw: &Raw) -> Result<String, Fault> {
    let text = text(raw)?;
    let path = Path::new(&text);
    let last = text.rsplit('/').next().unwrap_or("");
    if matches!(last, "" | "." | "..") || path.is_dir() {
        let suggestion = path.join("projectors.safetensors");
        return fault_with_hint("must name a file, not a folder", format!("write {}", suggestion.display()));
    }
    Ok(text)
}

/// One of the names of `T`.
pub(crate) fn choice<T: Choice>(raw: &Raw) -> Result<T, Fault> {
    let written = match raw {
        Raw::Text(text) => text.as_str(),
        _ => "",
    };
    for choice in T::ALL {
        if choice.name() == written {
            return Ok(*choice);
        }
    }
    let message = match T::ALL {
        [only] => format!("must be {}", only.name()),
        all => format!("must be one of {}", names(all)),
    };
    for choice in T::ALL {
        if choice.name().eq_ignore_ascii_case(written.trim()) {
            return fault_with_hint(message, format!("write {}", choice.name()));
        }
    }
    fault(message)
}

fn names<T: Choice>(choices: &[T]) -> String {
    let names: Vec<&str> = choices.iter().map(|choice| choice.name()).collect();
    names.join(", ")
}

/// A list of tasks: at least one, none twice. A YAML list, or text such as `min,max` or `[min, max]`.
pub(crate) fn tasks(raw: &Raw) -> Result<Vec<Task>, Fault> {
    let items = match raw {
        Raw::List(items) => items.clone(),
        Raw::Text(text) => split_list(text),
        other => {
            return fault(format!("must be a list of {}, not {}", names(Task::ALL), other.kind()));
        }
    };
    let mut tasks: Vec<Task> = Vec::new();
    for item in &items {
        let task = match choice::<Task>(item) {
            Ok(task) => task,
            Err(_) => {
                return fault(format!("must be a list of {}, not of {item}", names(Task::ALL)));
            }
        };
        if tasks.contains(&task) {
            return fault_with_hint(
                format!("must not repeat a task, and {task} is there twice"),
                "name each task once; they are drawn with equal chance",
            );
        }
        tasks.push(task);
    }
    if tasks.is_empty() {
        return fault(format!("must name at least one of {}", names(Task::ALL)));
    }
    Ok(tasks)
}

fn split_list(text: &str) -> Vec<Raw> {
    let trimmed = text.trim();
    let inner = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(trimmed);
    if inner.trim().is_empty() {
        return Vec::new();
    }
    inner.split(',').map(|item| Raw::Text(item.trim().to_string())).collect()
}

/// A span of time: a number of seconds, or a number with `ms`, `s`, `min` or `h`.
pub(crate) fn duration(raw: &Raw) -> Result<Duration, Fault> {
    const ALLOWED: &str = "must be a time such as 0.5, 0.5s, 500ms or 2min";
    let (number, seconds_per_unit) = match raw {
        Raw::Int(_) | Raw::Float(_) => (raw.clone(), 1.0),
        Raw::Text(text) => {
            let (digits, unit) = split_unit(text);
            (Raw::Text(digits.to_string()), unit)
        }
        other => return fault(format!("{ALLOWED}, not {}", other.kind())),
    };
    let Ok(number) = float(&number) else {
        return fault(ALLOWED);
    };
    if number < 0.0 {
        return fault("must not be negative");
    }
    // Milliseconds are divided, since 0.001 has no exact binary form.
    let seconds = match seconds_per_unit {
        0.001 => number / 1000.0,
        unit => number * unit,
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => fault("must be at most 30 days, which is 720h"),
    }
}

fn split_unit(text: &str) -> (&str, f64) {
    let text = text.trim();
    for (unit, seconds) in [("ms", 0.001), ("min", 60.0), ("s", 1.0), ("h", 3600.0)] {
        if let Some(digits) = text.strip_suffix(unit) {
            return (digits.trim_end(), seconds);
        }
    }
    (text, 1.0)
}

/// A span of time above 0.
pub(crate) fn positive_duration(raw: &Raw) -> Result<Duration, Fault> {
    let duration = duration(raw)?;
    if duration.is_zero() {
        return fault("must be above 0");
    }
    Ok(duration)
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub(crate) fn device(raw: &Raw) -> Result<DeviceChoice, Fault> {
    const ALLOWED: &str = "must be auto, cpu, cuda or cuda:N";
    let Raw::Text(text) = raw else {
        return fault(format!("{ALLOWED}, not {}", raw.kind()));
    };
    match text.as_str() {
        "auto" => return Ok(DeviceChoice::Auto),
        "cpu" => return Ok(DeviceChoice::Cpu),
        "cuda" => return Ok(DeviceChoice::Cuda(None)),
        _ => {}
    }
    let index = text.strip_prefix("cuda:").unwrap_or("");
    if !index.is_empty()
        && index.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(index) = index.parse()
    {
        return Ok(DeviceChoice::Cuda(Some(index)));
    }
    if text.eq_ignore_ascii_case("gpu") {
        return fault_with_hint(ALLOWED, "write cuda");
    }
    fault(ALLOWED)
}

/// `-1` for the model's own last hidden state (`None`), or the number of a block, from 1.
pub(crate) fn layer(raw: &Raw) -> Result<Option<usize>, Fault> {
    const MOST_LAYERS: u64 = 10_000;
    let last = match raw {
        Raw::Int(value) => *value == -1,
        Raw::Text(text) => text == "-1",
        _ => false,
    };
    if last {
        return Ok(None);
    }
    match whole(raw, 1, MOST_LAYERS) {
        Ok(layer) => Ok(Some(layer as usize)),
        Err(_) => fault(format!(
            "must be -1 (the model's own last hidden state) or the number of a block from 1 to {MOST_LAYERS}"
        )),
    }
}

/// `auto` or the path of a checkpoint.
pub(crate) fn resume(raw: &Raw) -> Result<Resume, Fault> {
    if let Raw::Bool(_) = raw {
        return fault_with_hint(
            "must be auto or the path of a checkpoint, not true or false",
            "write auto, or leave it out for a fresh start",
        );
    }
    match text(raw)?.as_str() {
        "auto" => Ok(Resume::Auto),
        other => Ok(Resume::File(PathBuf::from(other))),
    }
}

/// The name of a run, which becomes the name of a folder.
pub(crate) fn run_id(raw: &Raw) -> Result<String, Fault> {
    const LONGEST_NAME: usize = 128;
    let name = text(raw)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(wrong) = name.chars().find(|c| !allowed(*c)) {
        return fault(format!("must have letters, digits, '.', '_' and '-' only, not {wrong:?}"));
    }
    if name.starts_with(['.', '-']) {
        return fault("must not start with '.' or '-'");
    }
    if name.len() > LONGEST_NAME {
        return fault(format!("must have at most {LONGEST_NAME} characters, and it has {}", name.len()));
    }
    Ok(name)
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
