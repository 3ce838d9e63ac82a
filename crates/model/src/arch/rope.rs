//! Rotary positions as `config.json` describes them: the angles' frequencies and their scaled variants.

use super::fields::{Fields, MOST_POSITIONS};
use crate::error::ModelError;

/// Base and scaling of rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// What is done to them.
    pub scaling: RopeScaling,
}

/// How the frequencies differ from the plain ones.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// They are the plain ones.
    None,
    /// All divided by `factor`.
    Linear {
        /// Larger than 0.
        factor: f64,
    },
    /// Llama 3's: long waves divided by `factor`, short ones left alone, those between blended.
    Llama3 {
        /// Divides long waves.
        factor: f64,
        /// Waves longer than `original_positions` by this are long.
        low_freq_factor: f64,
        /// Waves shorter than `original_positions` by this are short.
        high_freq_factor: f64,
        /// Longest sequence before the model was extended.
        original_positions: usize,
    },
}

/// What may stand in the object; anything else might change the arithmetic.
const KNOWN_KEYS: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

impl Rope {
    /// From `rope_parameters` (files of `transformers` 5), or `rope_scaling` and `rope_theta`.
    ///
    /// # Errors
    /// Fields of another type, or a scaling that numalign does not compute.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self, ModelError> {
        let outer_theta = fields.number("rope_theta", 10_000.0)?;
        let object = match fields.object("rope_parameters")? {
            Some(object) => Some(object),
            None => fields.object("rope_scaling")?,
        };
        whole_heads(fields)?;
        let Some(object) = object else {
            return Self { theta: outer_theta, scaling: RopeScaling::None }.checked(fields);
        };
        for key in object.fields.keys() {
            if object.get(key).is_some_and(serde_json::Value::is_object) {
                return Err(fields.unsupported(format!("rotary positions of their own for `{key}` layers")));
            }
        }
        whole_heads(&object)?;
        let kind = match object.text("rope_type")? {
            Some(kind) => kind,
            None => object.text("type")?.unwrap_or("default"),
        };
        let needed = |name: &str| match object.get(name) {
            Some(_) => object.number(name, 0.0),
            None => Err(fields.unsupported(format!("rope_type `{kind}` without {name}"))),
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: needed("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_positions: match object.get("original_max_position_embeddings") {
                    Some(_) => object.size("original_max_position_embeddings", None, MOST_POSITIONS)?,
                    None => fields.size("max_position_embeddings", None, MOST_POSITIONS)?,
                },
            },
            other => {
                let reason = format!("rope_type `{other}` is not known; known: default, linear, llama3");
                return Err(fields.unsupported(reason));
            }
        };
        if let Some(key) = object.fields.keys().find(|key| !KNOWN_KEYS.contains(&key.as_str())) {
            return Err(fields.unsupported(format!("`{key}` of the rotary positions is not known")));
        }
        Self { theta: object.number("rope_theta", outer_theta)?, scaling }.checked(fields)
    }

    fn checked(self, fields: &Fields<'_>) -> Result<Self, ModelError> {
        let numbers = match self.scaling {
            RopeScaling::None => vec![self.theta],
            RopeScaling::Linear { factor } => vec![self.theta, factor],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
                vec![self.theta, factor, low_freq_factor, high_freq_factor, high_freq_factor - low_freq_factor]
            }
        };
        if numbers.iter().all(|number| *number > 0.0 && number.is_finite()) {
            return Ok(self);
        }
        Err(fields.unsupported(format!("rotary positions with impossible numbers: {self:?}")))
    }

    /// Radians per position of each of the `head_size / 2` pairs, in `f32` as `transformers` keeps them
    /// (`modeling_rope_utils.py`).
    pub fn frequencies(&self, head_size: usize) -> Vec<f32> {
        let mut list = Vec::with_capacity(head_size / 2);
        for pair in 0..head_size / 2 {
            let exponent = (2 * pair) as f64 / head_size as f64;
            let plain = (1.0 / libm::pow(self.theta, exponent)) as f32;
            list.push(self.scaled(plain));
        }
        list
    }

    fn scaled(&self, plain: f32) -> f32 {
        match self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor as f32,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let plain = f64::from(plain);
                let length = original_positions as f64;
                let wave = std::f64::consts::TAU / plain;
                if wave > length / low_freq_factor {
                    return (plain / factor) as f32;
                }
                if wave < length / high_freq_factor {
                    return plain as f32;
                }
                let smooth = (length / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                ((1.0 - smooth) * plain / factor + smooth * plain) as f32
            }
        }
    }
}

fn whole_heads(fields: &Fields<'_>) -> Result<(), ModelError> {
    let part = fields.number("partial_rotary_factor", 1.0)?;
    if part == 1.0 {
        return Ok(());
    }
    Err(fields.unsupported(format!("partial_rotary_factor {part}: heads are rotated whole")))
}
