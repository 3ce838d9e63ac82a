//! Samples as lines of JSONL: `{"input": …, "output": …}`, which [`crate::table`] reads back.

use crate::sample::{Input, Sample};

/// The line of a sample, without a line ending: `{"input": …, "output": …}`. A number is written in the fewest
/// digits that read back to the same bits.
pub fn write_line(sample: &Sample) -> String {
    let input = match &sample.input {
        Input::Number(value) => serde_json::Value::from(*value),
        Input::Text(text) => serde_json::Value::from(text.as_str()),
    };
    format!("{{\"input\": {input}, \"output\": {}}}", serde_json::Value::from(sample.target))
}
