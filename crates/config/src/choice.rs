//! The settings that take one of a few names, each enum with its names as the user writes and the checkpoint stores them;
//! and those that take a name or something more.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A setting with a fixed list of names.
pub trait Choice: Copy + PartialEq + 'static {
    /// Every choice, in the order in which they are listed to the user.
    const ALL: &'static [Self];

    /// The name as the user writes it; the same as in the checkpoint.
    fn name(self) -> &'static str;
}

macro_rules! choices {
    ($(
        $(#[$attribute:meta])*
        $kind:ident { $($(#[$of_variant:meta])* $variant:ident = $name:literal,)+ }
    )+) => {$(
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $kind {
            $($(#[$of_variant])* #[serde(rename = $name)] $variant,)+
        }

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
    )+};
}

choices! {
    /// What is learnt: which projectors train, and what a sample looks like.
    Stage {
        /// number → number
        Nn = "nn",
        /// text → number
        Text = "text",
        /// text with numbers inside → number
        Mixed = "mixed",
    }

    /// How a value becomes the scalar that the input projector sees, and how its target is scaled.
    ValueEncoding {
        /// `x = (v − (min+max)/2) / ((max−min)/√12)`
        Standard = "standard",
        /// `x = v`
        Raw = "raw",
        /// `x = (u(v) − offset) / scale` with `u(v) = sign(v)·ln(1 + |v|/log_threshold)`: orders of magnitude apart
        /// become steps apart; standardised over the range as `standard` is.
        Signlog = "signlog",
        /// `standard`, and beside it `sin` and `cos` of `2π(v − min)/period` for `fourier_periods` periods, the longest
        /// as long as the range and each half of the one before.
        Fourier = "fourier",
    }

    /// How a target becomes the number that the output projector learns.
    TargetEncoding {
        /// As `standard`, or as `raw` where the inputs are.
        Linear = "linear",
        /// As the inputs of [`ValueEncoding::Signlog`].
        Signlog = "signlog",
    }

    /// How generated values lie in their range.
    Distribution {
        /// Every value equally often.
        Uniform = "uniform",
        /// Uniform in `sign(v)·ln(1 + |v|/log_threshold)`: every order of magnitude above the threshold equally often.
        Log = "log",
    }

    /// How a table of samples is read.
    TableFormat {
        /// An object per line.
        Jsonl = "jsonl",
        /// A header and a record per row.
        Csv = "csv",
        /// Columns, compressed.
        Parquet = "parquet",
    }

    /// What becomes of a row with an empty cell, or with no number where one is needed.
    #[derive(Default)]
    MissingCells {
        /// It is refused.
        #[default]
        Refuse = "refuse",
        /// It is left out.
        Skip = "skip",
    }

    /// How the projectors are found.
    Solver {
        /// Gradient steps on whatever trains.
        Adam = "adam",
        /// The output projector alone, as the least-squares solution over one pass.
        Exact = "exact",
        /// Gradient steps, with the output projector solved every `solve_every` steps and at the end.
        Alternate = "alternate",
    }

    /// Which positions' hidden states become the one that is read.
    Pooling {
        /// The last position.
        Last = "last",
        /// The mean over all positions.
        Mean = "mean",
        /// The mean over the positions of projected numbers.
        Numbers = "numbers",
    }

    /// The training loss, in encoded units.
    Loss {
        /// `e²`
        Mse = "mse",
        /// `e²/2` up to `huber_delta`, from there on the tangent line.
        Huber = "huber",
        /// `(e·scale / max(|target|, 1 % of the range))²`, `scale` turning encoded units into value units.
        Relative = "relative",
    }

    /// What a `mixed` question asks for.
    Task {
        /// The smallest number.
        Min = "min",
        /// The largest number.
        Max = "max",
        /// The mean of the numbers.
        Mean = "mean",
        /// How many numbers there are.
        Count = "count",
    }

    /// How the frozen model's weights lie in memory. From `q8_0` on they are GGML's blocks.
    #[derive(Default)]
    Dtype {
        /// IEEE 754 single precision.
        #[default]
        F32 = "f32",
        /// The upper half of an `f32`.
        Bf16 = "bf16",
        /// IEEE 754 half precision; numbers beyond ±65504 become infinite.
        F16 = "f16",
        /// 8 bits and a scale for each 32 numbers.
        Q8_0 = "q8_0",
        /// 4 bits and a scale for each 32 numbers.
        Q4_0 = "q4_0",
        /// 4 bits, a scale and a minimum for each 32 numbers.
        Q4_1 = "q4_1",
        /// 4 bits, with scales of scales and of minima for 256 numbers.
        Q4K = "q4_k",
        /// 5 bits, with scales of scales and of minima for 256 numbers.
        Q5K = "q5_k",
        /// 6 bits, with scales of scales for 256 numbers.
        Q6K = "q6_k",
    }

    /// To what the factors of the frozen model's matrix products are rounded; the sums are `f32` in any case.
    #[derive(Default)]
    Arithmetic {
        /// Not at all.
        #[default]
        F32 = "f32",
        /// To 10 bits of mantissa, with the range of `f32`: NVIDIA's matrix units from compute capability 8.0 on.
        Tf32 = "tf32",
        /// To 7 bits of mantissa, with the range of `f32`.
        Bf16 = "bf16",
        /// To IEEE 754 half precision.
        F16 = "f16",
    }

    /// To what a CPU rounds the factors of the frozen model's matrix products. A GPU follows `dtype` and `exact_f32` instead.
    #[derive(Default)]
    CpuArithmetic {
        /// Not at all.
        #[default]
        F32 = "f32",
        /// To 7 bits of mantissa; products and sums as `VDPBF16PS` has them.
        Bf16 = "bf16",
    }

    /// Which projectors `model_path_load` brings; the others start fresh.
    LoadedProjections {
        /// Both of them.
        Both = "both",
        /// The input projector.
        Input = "input",
        /// The output projector.
        Output = "output",
    }

    /// How gradient rows are reduced.
    CollectiveChoice {
        /// NCCL where every replica is on a GPU of its own, else gRPC.
        Auto = "auto",
        /// By the coordinator.
        Grpc = "grpc",
        /// By NVIDIA's collective library.
        Nccl = "nccl",
    }
}

impl From<CpuArithmetic> for Arithmetic {
    fn from(on_cpu: CpuArithmetic) -> Self {
        match on_cpu {
            CpuArithmetic::F32 => Self::F32,
            CpuArithmetic::Bf16 => Self::Bf16,
        }
    }
}

impl Dtype {
    /// Bytes of so many numbers of a weight, in whole blocks.
    pub fn bytes(self, numbers: u64) -> u64 {
        let (block, bytes) = match self {
            Dtype::F32 => (1, 4),
            Dtype::Bf16 | Dtype::F16 => (1, 2),
            Dtype::Q8_0 => (32, 34),
            Dtype::Q4_0 => (32, 18),
            Dtype::Q4_1 => (32, 20),
            // Scales of parts of a block are a byte each in memory.
            Dtype::Q4K => (256, 148),
            Dtype::Q5K => (256, 180),
            Dtype::Q6K => (256, 210),
        };
        numbers.div_ceil(block) * bytes
    }

    /// Whether numbers lie in blocks with scales.
    pub fn is_quantised(self) -> bool {
        !matches!(self, Dtype::F32 | Dtype::Bf16 | Dtype::F16)
    }

    /// The type of the tables of embeddings, which never lie in blocks.
    pub fn of_tables(self) -> Self {
        if self.is_quantised() { Dtype::F32 } else { self }
    }
}

impl TargetEncoding {
    /// What `target` is when nobody sets it.
    pub fn following(values: ValueEncoding) -> Self {
        if values == ValueEncoding::Signlog { TargetEncoding::Signlog } else { TargetEncoding::Linear }
    }
}

impl Distribution {
    /// What `distribution` is when nobody sets it.
    pub fn following(values: ValueEncoding) -> Self {
        if values == ValueEncoding::Signlog { Distribution::Log } else { Distribution::Uniform }
    }
}

/// The device a worker is asked to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChoice {
    /// A GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// `cuda` (the local rank chooses) or `cuda:N`.
    Cuda(Option<usize>),
}

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

/// Where a run continues from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resume {
    /// The newest valid checkpoint of the run folder, or a fresh start where there is none.
    Auto,
    /// This checkpoint.
    File(PathBuf),
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
    fn assert_stored_under_its_name<T: Choice + Serialize>() {
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
        assert_stored_under_its_name::<Pooling>();
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
