//! Typed access to the fields of a `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::kernels::activation::Activation;

/// Positions; a size beyond this or the next three is a damaged file, not a model.
pub const MOST_POSITIONS: u64 = 1 << 20;
/// Features of any kind.
pub const MOST_WIDTH: u64 = 1 << 20;
/// Blocks.
pub const MOST_LAYERS: u64 = 10_000;
/// Tokens.
pub const MOST_VOCABULARY: u64 = 1 << 26;

/// Typed access to the JSON object, with the file and the field in every error.
pub struct Fields<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The object itself.
    pub fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The value of `name`; none if it is missing or `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// The error of a `value` that is not `wanted`.
    pub fn wrong(&self, name: &str, value: &Value, wanted: &str) -> ModelError {
        ModelError::Damaged { path: self.path.to_owned(), reason: format!("{name} is {value}, not {wanted}") }
    }

    /// A string, if `name` is there.
    ///
    /// # Errors
    /// The value is not a string.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, other, "a string")),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// The value is neither.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// The value is not a number.
    pub fn number(&self, name: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(name, value, "a number")),
        }
    }

    /// A whole number from 1 to `most`.
    ///
    /// # Errors
    /// The value is another, or missing without a default.
    pub fn size(&self, name: &str, default: Option<usize>, most: u64) -> Result<usize, ModelError> {
        match (self.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => {
                Err(ModelError::Damaged { path: self.path.to_owned(), reason: format!("{name} is missing") })
            }
            (Some(value), _) => match value.as_u64() {
                Some(size) if (1..=most).contains(&size) => Ok(size as usize),
                _ => Err(self.wrong(name, value, &format!("a whole number from 1 to {most}"))),
            },
        }
    }

    /// A positive number.
    ///
    /// # Errors
    /// The value is none.
    pub fn positive(&self, name: &str, default: f64) -> Result<f32, ModelError> {
        let value = self.number(name, default)? as f32;
        if value > 0.0 && value.is_finite() {
            return Ok(value);
        }
        Err(self.unsupported(format!("{name} {value} is not positive")))
    }

    /// The activation function that `name` holds, by its name in `transformers.activations.ACT2FN`.
    ///
    /// # Errors
    /// A function that is not known.
    pub fn activation(&self, name: &str, default: &str) -> Result<Activation, ModelError> {
        let value = self.text(name)?.unwrap_or(default);
        activation_named(value).ok_or_else(|| {
            self.unsupported(format!(
                "{name} `{value}` is not known; known: gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, quick_gelu, relu, \
                 silu, swish, tanh"
            ))
        })
    }

    /// The object that `name` holds, if any.
    ///
    /// # Errors
    /// The value is not an object.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Fields { path: self.path, fields })),
            Some(other) => Err(self.wrong(name, other, "an object")),
        }
    }

    /// The model is sound, but not one that numalign computes.
    pub fn unsupported(&self, reason: String) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), reason }
    }
}

fn activation_named(name: &str) -> Option<Activation> {
    Some(match name {
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        _ => return None,
    })
}
