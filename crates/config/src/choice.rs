//! The names of the choices (`nn`, `adam`, `min`, …) in one place each.
//! Read by `parse` (text to choice), `keys` (choice to text) and whoever prints one.

use std::fmt;

use crate::types::{
    CollectiveChoice, DeviceChoice, Distribution, Dtype, LoadedProjections, Loss, Readout, Resume, Solver, Stage,
    TargetEncoding, Task, ValueEncoding,
};

/// A setting with a fixed list of names.
pub trait Choice: Copy + PartialEq + 'static {
    /// Every choice, in the order in which they are listed to the user.
    const ALL: &'static [Self];

    /// The name as the user writes it; the same as in the checkpoint.
    fn name(self) -> &'static str;
}

/// The compiler refuses a list that misses a variant, since `name` matches all of them.
macro_rules! choices {
    ($kind:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl Choice for $kind {
            const ALL: &'static [$kind] = &[$($kind::$variant),+];

            fn name(self) -> &'static str {
                match self {
                    $($kind::$variant => $name),+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choices!(Stage { Nn = "nn", Text = "text", Mixed = "mixed" });
choices!(ValueEncoding { Standard = "standard", Raw = "raw", Signlog = "signlog", Fourier = "fourier" });
choices!(TargetEncoding { Linear = "linear", Signlog = "signlog" });
choices!(Distribution { Uniform = "uniform", Log = "log" });
choices!(Solver { Adam = "adam", Exact = "exact", Alternate = "alternate" });
choices!(Readout { Last = "last", Mean = "mean", Numbers = "numbers" });
choices!(Loss { Mse = "mse", Huber = "huber", Relative = "relative" });
choices!(Dtype { F32 = "f32", Bf16 = "bf16", F16 = "f16" });
choices!(Task { Min = "min", Max = "max", Mean = "mean", Count = "count" });
choices!(LoadedProjections { Both = "both", Input = "input", Output = "output" });
choices!(CollectiveChoice { Auto = "auto", Grpc = "grpc", Nccl = "nccl" });

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(None) => f.write_str("cuda"),
            DeviceChoice::Cuda(Some(index)) => write!(f, "cuda:{index}"),
        }
    }
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resume::Auto => f.write_str("auto"),
            Resume::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the user writes is what the checkpoint stores.
    fn assert_stored_under_its_name<T: Choice + serde::Serialize>() {
        for choice in T::ALL {
            let stored = serde_json::to_value(choice).unwrap();
            assert_eq!(stored, serde_json::Value::from(choice.name()));
        }
    }

    #[test]
    fn names_equal_the_stored_ones() {
        assert_stored_under_its_name::<Stage>();
        assert_stored_under_its_name::<ValueEncoding>();
        assert_stored_under_its_name::<TargetEncoding>();
        assert_stored_under_its_name::<Distribution>();
        assert_stored_under_its_name::<Solver>();
        assert_stored_under_its_name::<Readout>();
        assert_stored_under_its_name::<Loss>();
        assert_stored_under_its_name::<Dtype>();
        assert_stored_under_its_name::<Task>();
        assert_stored_under_its_name::<LoadedProjections>();
        assert_stored_under_its_name::<CollectiveChoice>();
    }

    #[test]
    fn devices_print_as_they_are_written() {
        assert_eq!(DeviceChoice::Cuda(Some(3)).to_string(), "cuda:3");
        assert_eq!(DeviceChoice::Cuda(None).to_string(), "cuda");
    }
}
