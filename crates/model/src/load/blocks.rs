//! Whether weights can be held in the blocks that `dtype` names.

use std::collections::BTreeSet;

use numalign_config::Dtype;

use super::devices::ModelDevice;
use super::gguf::kind::Kind;
use crate::error::ModelError;

/// The kind that `dtype` names, and the one that writers of GGUF files take for rows that are no multiple of 256.
fn kinds_of(dtype: Dtype) -> Option<[Kind; 2]> {
    Some(match dtype {
        Dtype::F32 | Dtype::Bf16 | Dtype::F16 => return None,
        Dtype::Q8_0 => [Kind::Q8_0; 2],
        Dtype::Q4_0 => [Kind::Q4_0; 2],
        Dtype::Q4_1 => [Kind::Q4_1; 2],
        Dtype::Q4K => [Kind::Q4_K, Kind::Q5_0],
        Dtype::Q5K => [Kind::Q5_K, Kind::Q5_1],
        Dtype::Q6K => [Kind::Q6_K, Kind::Q8_0],
    })
}

/// Refuses blocks that `file` does not hold and that are not made while loading, and blocks on a GPU. `file` are the kinds of
/// blocks of the products' weights; a file has several, since its writers give some weights more bits.
///
/// # Errors
/// As above.
pub fn check(dtype: Dtype, file: &BTreeSet<Kind>, device: ModelDevice) -> Result<(), ModelError> {
    let Some(kinds) = kinds_of(dtype) else {
        return Ok(());
    };
    let refuse = |reason: String, advice: &str| Err(ModelError::Dtype { dtype, reason, advice: advice.to_owned() });
    if device != ModelDevice::Cpu {
        return refuse("weights in blocks are held on CPUs alone".to_owned(), "take dtype: bf16, or device: cpu");
    }
    if kinds.iter().any(|kind| file.contains(kind)) {
        return Ok(());
    }
    let makes = matches!(dtype, Dtype::Q8_0 | Dtype::Q4_0);
    match file.is_empty() {
        true if makes => Ok(()),
        true => refuse(
            "the files hold no such blocks".to_owned(),
            "from plain weights q8_0 and q4_0 are made; the other types are read from a .gguf file that has them",
        ),
        false => {
            let names: Vec<String> = file.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect();
            let reason = format!("the file holds its weights in {}", names.join(", "));
            refuse(reason, "name the type that the file has, or f32 to hold its numbers plain")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(dtype: Dtype, file: &[Kind]) -> Result<(), String> {
        let file = file.iter().copied().collect();
        check(dtype, &file, ModelDevice::Cpu).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_keeps_its_own_blocks_and_two_types_are_made() {
        assert_eq!(fits(Dtype::Q4K, &[Kind::Q4_K, Kind::Q6_K]), Ok(()));
        assert_eq!(fits(Dtype::Q6K, &[Kind::Q4_K, Kind::Q6_K]), Ok(()));
        assert_eq!(fits(Dtype::Q4K, &[Kind::Q5_0, Kind::Q8_0]), Ok(()));
        assert_eq!(fits(Dtype::F32, &[Kind::Q4_K]), Ok(()));
        assert_eq!(fits(Dtype::Q8_0, &[]), Ok(()));
        assert_eq!(fits(Dtype::Q4_0, &[]), Ok(()));
        assert_eq!(fits(Dtype::Q4K, &[]), Err("dtype q4_k: the files hold no such blocks".to_owned()));
        let other = fits(Dtype::Q4_0, &[Kind::Q8_0]);
        assert_eq!(other, Err("dtype q4_0: the file holds its weights in q8_0".to_owned()));
    }

    #[test]
    fn a_gpu_holds_no_blocks() {
        let gpu = ModelDevice::Cuda { first: 0 };
        assert!(check(Dtype::Q8_0, &BTreeSet::new(), gpu).is_err());
        assert!(check(Dtype::Bf16, &BTreeSet::new(), gpu).is_ok());
    }
}
