//! The kinds of values that keys take: how each is read, checked once it is typed, shown, and told to an editor.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::choice::{Choice, DeviceChoice, Pooling, Resume, Task};
use crate::error::ParseError;
use crate::parse::{self, MOST_LAYERS, names, refuse, refuse_with_hint};
use crate::raw::Raw;
use crate::span::{self, Span};
use crate::tap::{self, MOST_TAPS, Tap};

type Parse<T> = Box<dyn Fn(&Raw) -> Result<T, ParseError>>;
type Check<T> = Box<dyn Fn(&T) -> Result<(), ParseError>>;

/// A kind of value of type `T`.
pub(crate) struct Kind<T> {
    parse: Parse<T>,
    check: Check<T>,
    show: Box<dyn Fn(&T) -> Json>,
    /// What stands for the value in a usage text, such as `N` or `true|false`.
    pub(crate) value_name: String,
    /// The keywords of a JSON Schema for it; `type` is a list.
    pub(crate) schema: Json,
}

impl<T: 'static> Kind<T> {
    fn new(
        value_name: &str,
        schema: Json,
        parse: impl Fn(&Raw) -> Result<T, ParseError> + 'static,
        show: impl Fn(&T) -> Json + 'static,
    ) -> Kind<T> {
        let (parse, show) = (Box::new(parse), Box::new(show));
        Kind { parse, check: Box::new(|_| Ok(())), show, value_name: value_name.to_string(), schema }
    }

    /// With a check of what the type alone does not refuse.
    fn checked(self, check: impl Fn(&T) -> Result<(), ParseError> + 'static) -> Kind<T> {
        Kind { check: Box::new(check), ..self }
    }

    /// The value as it was written in a file, a variable or a flag.
    pub(crate) fn parse(&self, raw: &Raw) -> Result<T, ParseError> {
        let value = (self.parse)(raw)?;
        self.check(&value).map(|()| value)
    }

    /// Refuses what [`Kind::parse`] would never give.
    pub(crate) fn check(&self, value: &T) -> Result<(), ParseError> {
        (self.check)(value)
    }

    /// The value as a configuration file has it.
    pub(crate) fn show(&self, value: &T) -> Json {
        (self.show)(value)
    }
}

fn as_it_is<T: Serialize>(value: &T) -> Json {
    json!(value)
}

/// `true` or `false`.
pub(crate) fn boolean() -> Kind<bool> {
    Kind::new("true|false", json!({ "type": ["boolean"] }), parse::boolean, as_it_is)
}

/// `false`, for what is not possible; `true` is left to a rule, which says why.
pub(crate) fn refused() -> Kind<bool> {
    Kind::new("false", json!({ "type": ["boolean"], "enum": [false] }), parse::boolean, as_it_is)
}

/// A whole number from `least` to `most`, which fits the type.
pub(crate) fn whole<T>(least: u64, most: u64) -> Kind<T>
where
    T: Copy + TryFrom<u64> + TryInto<u64> + Serialize + 'static,
{
    let mut schema = json!({ "type": ["integer"], "minimum": least });
    if most < u64::MAX {
        schema["maximum"] = json!(most);
    }
    let read = move |raw: &Raw| {
        let value = parse::whole(raw, least, most)?;
        T::try_from(value).map_err(|_| ParseError::new(format!("{value} is too large")))
    };
    let within = move |value: &T| {
        let value: u64 = (*value).try_into().unwrap_or(u64::MAX);
        parse::within(value.into(), least, most).map(|_| ())
    };
    Kind::new("N", schema, read, as_it_is).checked(within)
}

/// A whole number, or `auto` where the caller has worked it out by then.
pub(crate) fn whole_or_auto(least: u64, most: u64) -> Kind<usize> {
    let schema = json!({ "type": ["integer", "string"], "minimum": least, "maximum": most, "pattern": "^auto$" });
    Kind { value_name: "N|auto".to_string(), schema, ..whole(least, most) }
}

/// A number above 0.
pub(crate) fn positive() -> Kind<f64> {
    let schema = json!({ "type": ["number"], "exclusiveMinimum": 0, "maximum": f32::MAX });
    Kind::new("X", schema, parse::float, as_it_is).checked(|value| parse::positive(*value))
}

/// A number of either sign, or `auto` where the caller has worked it out by then.
pub(crate) fn number_or_auto() -> Kind<f64> {
    let schema = json!({
        "type": ["number", "string"], "minimum": -f32::MAX, "maximum": f32::MAX, "pattern": "^auto$",
    });
    let read = |raw: &Raw| match raw {
        Raw::Text(text) if text == "auto" => {
            refuse_with_hint("is worked out from a dataset, and there is none", "set dataset.file, or give a number")
        }
        raw => parse::float(raw),
    };
    Kind::new("X|auto", schema, read, as_it_is).checked(|value| parse::finite(*value))
}

/// A share of a whole, from 0 up to, but not including, 1.
pub(crate) fn share() -> Kind<f64> {
    let schema = json!({ "type": ["number"], "minimum": 0, "exclusiveMaximum": 1 });
    Kind::new("X", schema, parse::float, as_it_is).checked(|value| match (0.0..1.0).contains(value) {
        true => Ok(()),
        false => refuse("must be at least 0 and below 1"),
    })
}

/// Ranges of values.
pub(crate) fn ranges() -> Kind<Vec<Span>> {
    let schema = json!({ "type": ["array", "string"], "items": { "type": "array", "items": { "type": "number" } } });
    Kind::new("A..B,…", schema, span::spans, as_it_is).checked(|spans| span::have_widths(spans))
}

/// The character between two fields of CSV, or `tab`.
pub(crate) fn separator() -> Kind<String> {
    const REFUSED: &str = "must be one character, such as ; or tab";
    let read = |raw: &Raw| match parse::text(raw)?.as_str() {
        "tab" | "\\t" => Ok("\t".to_string()),
        text if text.len() == 1 && text.is_ascii() && !matches!(text, "\"" | "\n" | "\r") => Ok(text.to_string()),
        _ => refuse(REFUSED),
    };
    Kind::new("CHAR", text_schema(), read, |text: &String| json!(if text == "\t" { "tab" } else { text.as_str() }))
        .checked(|text| if text.len() == 1 { Ok(()) } else { refuse(REFUSED) })
}

/// Text, or digits without quotes.
fn text_schema() -> Json {
    json!({ "type": ["string", "integer"], "minLength": 1 })
}

/// Text that is not empty: a name.
pub(crate) fn text() -> Kind<String> {
    Kind::new("NAME", text_schema(), parse::text, as_it_is).checked(|text| parse::not_empty(text))
}

/// The name of a run.
pub(crate) fn run_id() -> Kind<String> {
    let pattern = "^[A-Za-z0-9_][A-Za-z0-9._-]*$";
    let schema = json!({ "type": ["string", "integer"], "pattern": pattern, "maxLength": 128 });
    Kind::new("NAME", schema, parse::text, as_it_is).checked(|text| parse::names_a_folder(text))
}

fn path(check: fn(&str) -> Result<(), ParseError>) -> Kind<PathBuf> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let read = |raw: &Raw| parse::text(raw).map(PathBuf::from);
    Kind::new("PATH", text_schema(), read, move |path| json!(text(path))).checked(move |path| check(&text(path)))
}

/// The path of a file to read.
pub(crate) fn input_file() -> Kind<PathBuf> {
    path(parse::not_empty)
}

/// The path of a file to write.
pub(crate) fn output_file() -> Kind<PathBuf> {
    path(parse::names_a_file)
}

/// `auto` or the path of a checkpoint.
pub(crate) fn resume() -> Kind<Resume> {
    Kind::new("auto|PATH", text_schema(), parse::resume, |resume| json!(resume.to_string()))
        .checked(|resume| parse::not_empty(&resume.to_string()))
}

/// One of the names of a [`Choice`].
pub(crate) fn choice<T: Choice>() -> Kind<T> {
    let schema = json!({ "type": ["string"], "enum": names::<T>() });
    Kind::new(&names::<T>().join("|"), schema, parse::choice, |choice: &T| json!(choice.name()))
}

/// A list of tasks, none of them twice.
pub(crate) fn tasks() -> Kind<Vec<Task>> {
    let items = json!({ "enum": names::<Task>() });
    let schema = json!({
        "type": ["array", "string"], "items": items, "minItems": 1, "uniqueItems": true, "minLength": 1,
    });
    Kind::new(&names::<Task>().join(","), schema, parse::tasks, as_it_is).checked(|tasks| parse::tasks_once(tasks))
}

fn span(least: &str, check: fn(Duration) -> Result<(), ParseError>) -> Kind<Duration> {
    const PATTERN: &str = r"^\s*[0-9.]+([eE][+-]?[0-9]+)?\s*(ms|s|min|h)?\s*$";
    let schema = json!({ "type": ["number", "string"], least: 0, "pattern": PATTERN });
    Kind::new("TIME", schema, parse::duration, |time| json!(format!("{}s", time.as_secs_f64())))
        .checked(move |time| check(*time))
}

/// A span of time, 0 allowed.
pub(crate) fn time() -> Kind<Duration> {
    span("minimum", parse::not_too_long)
}

/// A span of time above 0.
pub(crate) fn positive_time() -> Kind<Duration> {
    span("exclusiveMinimum", parse::above_zero)
}

/// A span of time above 0, or `auto`, which is `None`.
pub(crate) fn time_or_auto() -> Kind<Option<Duration>> {
    let Kind { parse, check, show, mut schema, .. } = positive_time();
    let pattern = schema["pattern"].as_str().unwrap_or_default().to_owned();
    schema["pattern"] = json!(format!("{pattern}|^auto$"));
    let read = move |raw: &Raw| match raw {
        Raw::Text(text) if text.trim() == "auto" => Ok(None),
        raw => parse(raw).map(Some),
    };
    let shown = move |time: &Option<Duration>| time.as_ref().map_or(json!("auto"), &show);
    Kind::new("TIME|auto", schema, read, shown).checked(move |time| time.as_ref().map_or(Ok(()), &check))
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub(crate) fn device() -> Kind<DeviceChoice> {
    let examples = ["auto", "cpu", "cuda", "cuda:1"];
    let schema = json!({ "type": ["string"], "pattern": "^(auto|cpu|cuda|cuda:[0-9]+)$", "examples": examples });
    Kind::new("auto|cpu|cuda|cuda:N", schema, parse::device, |device| json!(device.to_string()))
}

/// One of the names of a [`Choice`]; editors are told of lists too, which mean several taps.
pub(crate) fn choice_or_list<T: Choice>() -> Kind<T> {
    let one = names::<T>().join("|");
    let items = json!({ "enum": names::<T>() });
    let schema = json!({
        "type": ["string", "array"], "pattern": format!(r"^\[?\s*({one})(\s*,\s*({one}))*\s*\]?$"),
        "items": items, "minItems": 1, "uniqueItems": true,
    });
    Kind { schema, ..choice() }
}

/// A list of places, none of them twice.
pub(crate) fn taps() -> Kind<Vec<Tap>> {
    let place = format!("(-1|[0-9]+):({})", names::<Pooling>().join("|"));
    let list = format!(r"{place}(\s*,\s*{place})*");
    let items = json!({ "type": "string", "pattern": format!("^{place}$") });
    let schema = json!({
        "type": ["array", "string"], "items": items, "uniqueItems": true, "maxItems": MOST_TAPS,
        "pattern": format!(r"^(\[\s*({list})?\s*\]|\s*{list}\s*)$"),
    });
    Kind::new("L:POOLING,…", schema, tap::taps, as_it_is).checked(|taps| tap::distinct(taps))
}

/// Several layers as text.
const LIST_OF_NUMBERS: &str = r"^\[?\s*-?[0-9]+(\s*,\s*-?[0-9]+)*\s*\]?$";

/// The number of a block, 0 for the embeddings, or -1, which is `None`: the model's own last hidden state. Lists, which
/// mean several taps, are told to editors and read before this.
pub(crate) fn block() -> Kind<Option<usize>> {
    let one = json!({ "type": "integer", "minimum": -1, "maximum": MOST_LAYERS });
    let schema = json!({
        "type": ["integer", "array", "string"], "minimum": -1, "maximum": MOST_LAYERS,
        "items": one, "minItems": 1, "uniqueItems": true, "pattern": LIST_OF_NUMBERS,
    });
    let shown = |block: &Option<usize>| block.map_or(json!(-1), |block| json!(block));
    let is_block = |block: usize| parse::layer(&Raw::Int(block as i128)).map(|_| ());
    Kind::new("-1|N", schema, parse::layer, shown).checked(move |block| block.map_or(Ok(()), is_block))
}

/// A key that may stay unset.
pub(crate) fn optional<T: 'static>(kind: Kind<T>) -> Kind<Option<T>> {
    let Kind { parse, check, show, value_name, schema } = kind;
    let shown = move |value: &Option<T>| value.as_ref().map_or(Json::Null, &show);
    Kind::new(&value_name, schema, move |raw| parse(raw).map(Some), shown)
        .checked(move |value| value.as_ref().map_or(Ok(()), &check))
}

#[cfg(test)]
#[path = "kind_tests.rs"]
mod tests;
