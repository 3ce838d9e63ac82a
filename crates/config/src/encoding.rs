//! The settings of encoders and losses: which of them apply, and the defaults that follow from others.
//! Called by `resolve`.

use crate::parse;
use crate::reader::Reader;
use crate::types::{Distribution, Loss, TargetEncoding, ValueEncoding};

/// Where the range holds 0, values below a millionth count as small.
const SMALL: f64 = 1e-6;
const FOURIER_PERIODS: usize = 8;
const MOST_PERIODS: u64 = 64;

/// The recipe's part about encoders; what does not apply, or follows from the rest, is `None`.
pub(crate) struct Encoders {
    pub(crate) value_encoding: ValueEncoding,
    pub(crate) fourier_periods: Option<usize>,
    pub(crate) log_threshold: Option<f64>,
    pub(crate) target: Option<TargetEncoding>,
    pub(crate) distribution: Option<Distribution>,
}

impl Encoders {
    pub(crate) fn target_encoding(&self) -> TargetEncoding {
        self.target.unwrap_or(TargetEncoding::following(self.value_encoding))
    }
}

/// Reads the encoders' keys; `None` where one of them is invalid, which is then noted.
pub(crate) fn read(reader: &mut Reader, min_val: Option<f64>, max_val: Option<f64>) -> Option<Encoders> {
    let value_encoding: Option<ValueEncoding> = reader.value("value_encoding", parse::choice);
    let fourier = value_encoding.map(|encoding| encoding == ValueEncoding::Fourier);
    let periods = |raw: &_| Ok(parse::whole(raw, 1, MOST_PERIODS)? as usize);
    let fourier_periods =
        only_where(reader, "fourier_periods", "value_encoding fourier", fourier, periods, Some(FOURIER_PERIODS));
    let target = reader.value_or("target", parse::choice, value_encoding.map(TargetEncoding::following));
    let distribution = reader.value_or("distribution", parse::choice, value_encoding.map(Distribution::following));
    let logarithmic = match (value_encoding, target, distribution) {
        (Some(values), Some(target), Some(distribution)) => Some(
            values == ValueEncoding::Signlog || target == TargetEncoding::Signlog || distribution == Distribution::Log,
        ),
        _ => None,
    };
    let threshold = match (min_val, max_val) {
        (Some(min), Some(max)) => Some(default_threshold(min, max)),
        _ => None,
    };
    let uses = "value_encoding signlog, target signlog or distribution log";
    let log_threshold = only_where(reader, "log_threshold", uses, logarithmic, parse::positive_float, threshold);
    let value_encoding = value_encoding?;
    Some(Encoders {
        value_encoding,
        fourier_periods: fourier_periods?,
        log_threshold: log_threshold?,
        target: target.filter(|target| *target != TargetEncoding::following(value_encoding)),
        distribution: distribution.filter(|chosen| *chosen != Distribution::following(value_encoding)),
    })
}

/// δ of the Huber loss, where it is the loss.
pub(crate) fn huber_delta(reader: &mut Reader, loss: Option<Loss>) -> Option<Option<f64>> {
    let huber = loss.map(|loss| loss == Loss::Huber);
    only_where(reader, "huber_delta", "loss huber", huber, parse::positive_float, Some(1.0))
}

/// A key that means something only where `applies`: refused elsewhere, `default` where it is not set.
fn only_where<T: ToString>(
    reader: &mut Reader,
    name: &'static str,
    place: &str,
    applies: Option<bool>,
    parse: impl Fn(&crate::raw::Raw) -> Result<T, parse::Fault>,
    default: Option<T>,
) -> Option<Option<T>> {
    if applies == Some(true) {
        return reader.value_or(name, parse, default).map(Some);
    }
    let set = reader.optional(name, parse)?;
    if applies == Some(false) && set.is_some() {
        reader.note(name, format!("means something only with {place}"), Some("leave it out".to_string()));
        return None;
    }
    Some(None)
}

/// The smallest magnitude of the range, or [`SMALL`] where it holds 0.
fn default_threshold(min: f64, max: f64) -> f64 {
    let smallest = if min > 0.0 { min } else { -max };
    if smallest > 0.0 { smallest.max(f64::from(f32::MIN_POSITIVE)) } else { SMALL }
}
