//! Bare projectors: the four tensors of a safetensors file that says nothing about where they came from.

use std::path::Path;

use numalign_projector::Layout;
use safetensors::SafeTensors;

use crate::error::CheckpointError;
use crate::file::read_whole;
use crate::tensor::read_tensors;

/// Projectors without a run behind them.
#[derive(Debug, Clone, PartialEq)]
pub struct BareProjectors {
    /// As `layout` has them.
    pub parameters: Vec<f32>,
    /// Tensors of the file that are no projectors.
    pub passed_over: Vec<String>,
}

impl BareProjectors {
    /// The tensors of `layout` in the safetensors file at `path`, f32 and in PyTorch's `Linear` layout.
    ///
    /// # Errors
    /// A file that cannot be read or is no safetensors file; a tensor that is missing, not f32, of another shape, or holds
    /// a number that is not finite, by its name.
    pub fn read(path: &Path, layout: Layout) -> Result<Self, CheckpointError> {
        let unfit = |reason: String| CheckpointError::NotProjectors { path: path.to_owned(), reason };
        let bytes = read_whole(path)?;
        let parsed = SafeTensors::deserialize(&bytes)
            .map_err(|error| unfit(format!("it is not a whole safetensors file ({error})")))?;
        let wanted = layout.tensors();
        let is_wanted = |name: &str| wanted.iter().any(|tensor| tensor.name == name);
        let names: Vec<String> = parsed.names().into_iter().map(str::to_owned).collect();
        let (_, mut passed_over): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| is_wanted(name));
        passed_over.sort();
        let tensors = read_tensors(&parsed, is_wanted).map_err(unfit)?;
        let mut parameters = vec![0.0f32; layout.len()];
        for tensor in &wanted {
            let Some(stored) = tensors.get(tensor.name) else {
                let found = match passed_over.is_empty() {
                    true => String::new(),
                    false => format!("; it has {}", passed_over.join(", ")),
                };
                return Err(unfit(format!("tensor {} is missing{found}", tensor.name)));
            };
            if stored.shape != tensor.shape {
                return Err(unfit(format!("tensor {} is {:?}, not {:?}", tensor.name, stored.shape, tensor.shape)));
            }
            let values = stored.f32s().ok_or_else(|| unfit(format!("tensor {} is not f32", tensor.name)))?;
            if let Some(place) = values.iter().position(|value| !value.is_finite()) {
                return Err(unfit(format!("tensor {} has {} at index {place}", tensor.name, values[place])));
            }
            parameters[tensor.range.clone()].copy_from_slice(&values);
        }
        Ok(Self { parameters, passed_over })
    }
}
