//! Turns a written value into a typed one, strictly: nothing is rounded, guessed or cut. And the checks of values that are
//! typed already.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use crate::choice::{Choice, DeviceChoice, Resume, Task};
use crate::error::ParseError;
use crate::raw::Raw;

/// Longest duration: far above any use, far below what would overflow a clock.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// More blocks than any model has.
pub(crate) const MOST_LAYERS: u64 = 10_000;

pub(crate) fn refuse<T>(message: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError::new(message))
}

pub(crate) fn refuse_with_hint<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError::with_hint(message, hint))
}

/// Refuses a value of a wrong kind.
fn refuse_kind<T>(allowed: &str, raw: &Raw) -> Result<T, ParseError> {
    refuse(format!("must be {allowed}, not {}", raw.kind()))
}

/// `true` or `false`, and nothing else.
pub(crate) fn boolean(raw: &Raw) -> Result<bool, ParseError> {
    const ALLOWED: &str = "must be true or false";
    let text = match raw {
        Raw::Bool(value) => return Ok(*value),
        Raw::Text(text) => text.as_str(),
        other => return refuse_kind("true or false", other),
    };
    match (text, text.to_ascii_lowercase().as_str()) {
        ("true", _) => Ok(true),
        ("false", _) => Ok(false),
        (_, "true" | "yes" | "on" | "y" | "1") => refuse_with_hint(ALLOWED, "write true"),
        (_, "false" | "no" | "off" | "n" | "0") => refuse_with_hint(ALLOWED, "write false"),
        _ => refuse(ALLOWED),
    }
}

fn whole_numbers(least: u64, most: u64) -> String {
    match most {
        u64::MAX => format!("a whole number, at least {least}"),
        most => format!("a whole number from {least} to {most}"),
    }
}

/// A whole number from `least` to `most`.
pub(crate) fn whole(raw: &Raw, least: u64, most: u64) -> Result<u64, ParseError> {
    let allowed = whole_numbers(least, most);
    let value = match raw {
        Raw::Int(value) => Some(*value),
        Raw::Float(value) if value.is_finite() && value.fract() == 0.0 => {
            let hint = "write it with digits only, without a fraction or an exponent";
            return refuse_with_hint(format!("must be {allowed}"), hint);
        }
        Raw::Float(_) => None,
        Raw::Text(text) => text.parse().ok(),
        other => return refuse_kind(&allowed, other),
    };
    value.map_or_else(|| refuse(format!("must be {allowed}")), |value| within(value, least, most))
}

/// `value`, where it is from `least` to `most`.
pub(crate) fn within(value: i128, least: u64, most: u64) -> Result<u64, ParseError> {
    let allowed = whole_numbers(least, most);
    match u64::try_from(value) {
        Ok(value) if value >= least && value <= most => Ok(value),
        _ if value > i128::from(u64::MAX) => refuse(format!("must be {allowed}; the largest possible is {}", u64::MAX)),
        _ => refuse(format!("must be {allowed}")),
    }
}

/// A number.
pub(crate) fn float(raw: &Raw) -> Result<f64, ParseError> {
    let value = match raw {
        Raw::Int(value) => *value as f64,
        Raw::Float(value) => *value,
        Raw::Text(text) => match text.parse() {
            Ok(value) => value,
            Err(_) if text.contains(',') => {
                return refuse_with_hint("must be a number", "write the decimals after a point");
            }
            Err(_) => return refuse("must be a number"),
        },
        other => return refuse_kind("a number", other),
    };
    // Adding 0 turns -0 into 0, so that equal settings have equal bytes.
    Ok(value + 0.0)
}

/// Refuses a number that is not finite in single precision, which the updates use.
pub(crate) fn finite(value: f64) -> Result<(), ParseError> {
    if !value.is_finite() {
        return refuse("must be a finite number");
    }
    if value.abs() > f64::from(f32::MAX) {
        return refuse(format!("must be from -{0:e} to {0:e}, the range of single precision", f32::MAX));
    }
    Ok(())
}

/// Refuses a number that does not stay above 0 and finite in single precision.
pub(crate) fn positive(value: f64) -> Result<(), ParseError> {
    if !value.is_finite() {
        return refuse("must be a finite number");
    }
    if value <= 0.0 {
        return refuse("must be above 0");
    }
    if value < f64::from(f32::MIN_POSITIVE) || value > f64::from(f32::MAX) {
        return refuse(format!(
            "must be from {:e} to {:e}, the range of single precision",
            f32::MIN_POSITIVE,
            f32::MAX
        ));
    }
    Ok(())
}

/// Text. Whole numbers are taken as their digits.
pub(crate) fn text(raw: &Raw) -> Result<String, ParseError> {
    match raw {
        Raw::Text(text) => Ok(text.clone()),
        Raw::Int(value) => Ok(value.to_string()),
        Raw::Float(_) | Raw::Bool(_) => {
            let message = format!("must be text, not {}", raw.kind());
            refuse_with_hint(message, "put it in quotes if it is meant as text")
        }
        other => refuse_kind("text", other),
    }
}

/// Refuses text that is empty, or holds what no path may hold.
pub(crate) fn not_empty(text: &str) -> Result<(), ParseError> {
    if text.is_empty() {
        return refuse_with_hint("must not be empty", "leave it out to use the default");
    }
    if text.contains('\0') {
        return refuse("must not contain the character NUL");
    }
    Ok(())
}

/// Refuses what is no path of a file to write.
pub(crate) fn names_a_file(text: &str) -> Result<(), ParseError> {
    not_empty(text)?;
    let path = Path::new(text);
    let last = text.rsplit('/').next().unwrap_or("");
    if matches!(last, "" | "." | "..") || path.is_dir() {
        let hint = format!("write {}", path.join("projectors.safetensors").display());
        return refuse_with_hint("must name a file, not a folder", hint);
    }
    Ok(())
}

/// Refuses what is no name of a run, which becomes the name of a folder.
pub(crate) fn names_a_folder(name: &str) -> Result<(), ParseError> {
    const LONGEST_NAME: usize = 128;
    not_empty(name)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(wrong) = name.chars().find(|c| !allowed(*c)) {
        return refuse(format!("must have letters, digits, '.', '_' and '-' only, not {wrong:?}"));
    }
    if name.starts_with(['.', '-']) {
        return refuse("must not start with '.' or '-'");
    }
    if name.len() > LONGEST_NAME {
        return refuse(format!("must have at most {LONGEST_NAME} characters, and it has {}", name.len()));
    }
    Ok(())
}

/// One of the names of `T`.
pub(crate) fn choice<T: Choice>(raw: &Raw) -> Result<T, ParseError> {
    let written = if let Raw::Text(text) = raw { text.as_str() } else { "" };
    if let Some(choice) = T::ALL.iter().find(|choice| choice.name() == written) {
        return Ok(*choice);
    }
    let message = format!("must be one of {}", names::<T>().join(", "));
    match T::ALL.iter().find(|choice| choice.name().eq_ignore_ascii_case(written.trim())) {
        Some(meant) => refuse_with_hint(message, format!("write {}", meant.name())),
        None => refuse(message),
    }
}

/// The names of `T`, in their order.
pub(crate) fn names<T: Choice>() -> Vec<&'static str> {
    T::ALL.iter().map(|choice| choice.name()).collect()
}

/// A list of tasks: a YAML list, or text such as `min,max` or `[min, max]`.
pub(crate) fn tasks(raw: &Raw) -> Result<Vec<Task>, ParseError> {
    let allowed = format!("a list of {}", names::<Task>().join(", "));
    let Some(items) = list(raw) else { return refuse_kind(&allowed, raw) };
    let task = |item| choice(item).or_else(|_| refuse(format!("must be {allowed}, not of {item}")));
    items.iter().map(task).collect()
}

/// Refuses a list of tasks that is empty or repeats one.
pub(crate) fn tasks_once(tasks: &[Task]) -> Result<(), ParseError> {
    each_once(tasks, "a task", "name each task once; they are drawn with equal chance")?;
    match tasks.is_empty() {
        true => refuse(format!("must name at least one of {}", names::<Task>().join(", "))),
        false => Ok(()),
    }
}

/// Refuses a list that repeats an item; `item` is what one is called.
pub(crate) fn each_once<T: PartialEq + Display>(items: &[T], item: &str, hint: &str) -> Result<(), ParseError> {
    match items.iter().enumerate().find(|(index, value)| items[..*index].contains(value)) {
        Some((_, value)) => refuse_with_hint(format!("must not repeat {item}, and {value} is there twice"), hint),
        None => Ok(()),
    }
}

/// The items of a YAML list, or of text such as `a,b` or `[a, b]`.
pub(crate) fn list(raw: &Raw) -> Option<Vec<Raw>> {
    let text = match raw {
        Raw::List(items) => return Some(items.clone()),
        Raw::Text(text) => text.trim(),
        _ => return None,
    };
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    match inner.trim().is_empty() {
        true => Some(Vec::new()),
        false => Some(inner.split(',').map(|item| Raw::Text(item.trim().to_string())).collect()),
    }
}

/// A span of time: a number of seconds, or a number with `ms`, `s`, `min` or `h`.
pub(crate) fn duration(raw: &Raw) -> Result<Duration, ParseError> {
    const ALLOWED: &str = "a time such as 0.5, 0.5s, 500ms or 2min";
    let (number, seconds_per_unit) = match raw {
        Raw::Int(_) | Raw::Float(_) => (raw.clone(), 1.0),
        Raw::Text(text) => split_unit(text),
        other => return refuse_kind(ALLOWED, other),
    };
    let Some(number) = float(&number).ok().filter(|number| number.is_finite()) else {
        return refuse(format!("must be {ALLOWED}"));
    };
    if number < 0.0 {
        return refuse("must not be negative");
    }
    // Milliseconds are divided, since 0.001 has no exact binary form.
    let seconds = match seconds_per_unit {
        0.001 => number / 1000.0,
        unit => number * unit,
    };
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    not_too_long(duration).map(|()| duration)
}

fn split_unit(text: &str) -> (Raw, f64) {
    let text = text.trim();
    for (unit, seconds) in [("ms", 0.001), ("min", 60.0), ("s", 1.0), ("h", 3600.0)] {
        if let Some(digits) = text.strip_suffix(unit) {
            return (Raw::Text(digits.trim_end().to_string()), seconds);
        }
    }
    (Raw::Text(text.to_string()), 1.0)
}

/// Refuses a duration by which a clock may overflow.
pub(crate) fn not_too_long(duration: Duration) -> Result<(), ParseError> {
    if duration <= LONGEST { Ok(()) } else { refuse("must be at most 30 days, which is 720h") }
}

/// Refuses a duration that is 0 or too long.
pub(crate) fn above_zero(duration: Duration) -> Result<(), ParseError> {
    if duration.is_zero() { refuse("must be above 0") } else { not_too_long(duration) }
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub(crate) fn device(raw: &Raw) -> Result<DeviceChoice, ParseError> {
    const ALLOWED: &str = "auto, cpu, cuda or cuda:N";
    let Raw::Text(text) = raw else { return refuse_kind(ALLOWED, raw) };
    match text.as_str() {
        "auto" => return Ok(DeviceChoice::Auto),
        "cpu" => return Ok(DeviceChoice::Cpu),
        "cuda" => return Ok(DeviceChoice::Cuda(None)),
        _ => {}
    }
    let index = text.strip_prefix("cuda:").filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()));
    match index.and_then(|index| index.parse().ok()) {
        Some(index) => Ok(DeviceChoice::Cuda(Some(index))),
        None if text.eq_ignore_ascii_case("gpu") => refuse_with_hint(format!("must be {ALLOWED}"), "write cuda"),
        None => refuse(format!("must be {ALLOWED}")),
    }
}

/// `-1` for the model's own last hidden state (`None`), 0 for the embeddings, or the number of a block.
pub(crate) fn layer(raw: &Raw) -> Result<Option<usize>, ParseError> {
    if *raw == Raw::Int(-1) || *raw == Raw::Text("-1".to_string()) {
        return Ok(None);
    }
    match whole(raw, 0, MOST_LAYERS) {
        Ok(layer) => Ok(Some(layer as usize)),
        Err(_) => refuse(format!(
            "must be -1 (the model's own last hidden state), 0 (the embeddings) or the number of a block from 1 to {MOST_LAYERS}"
        )),
    }
}

/// `auto` or the path of a checkpoint.
pub(crate) fn resume(raw: &Raw) -> Result<Resume, ParseError> {
    if let Raw::Bool(_) = raw {
        let message = "must be auto or the path of a checkpoint, not true or false";
        return refuse_with_hint(message, "write auto, or leave it out for a fresh start");
    }
    let text = text(raw)?;
    Ok(if text == "auto" { Resume::Auto } else { Resume::File(text.into()) })
}
