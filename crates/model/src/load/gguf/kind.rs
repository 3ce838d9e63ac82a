//! GGML's tensor types: their codes and names, and the block layout of those that are read.

/// A tensor type that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "GGML's own names")]
pub enum Kind {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// 32 signed bytes and a scale.
    Q8_0,
    /// 32 four-bit numbers and a scale.
    Q4_0,
    /// 32 four-bit numbers, a scale and a minimum.
    Q4_1,
    /// 32 five-bit numbers and a scale.
    Q5_0,
    /// 32 five-bit numbers, a scale and a minimum.
    Q5_1,
    /// 256 two-bit numbers in 16 groups with scales and minima.
    Q2_K,
    /// 256 three-bit numbers in 16 groups with scales.
    Q3_K,
    /// 256 four-bit numbers in 8 groups with scales and minima.
    Q4_K,
    /// 256 five-bit numbers in 8 groups with scales and minima.
    Q5_K,
    /// 256 six-bit numbers in 16 groups with scales.
    Q6_K,
}

/// Codes, and per block the numbers and the bytes, of what is read (`ggml.h`, `ggml-common.h`).
const READ: [(Kind, u32, u64, u64); 13] = [
    (Kind::F32, 0, 1, 4),
    (Kind::F16, 1, 1, 2),
    (Kind::BF16, 30, 1, 2),
    (Kind::Q8_0, 8, 32, 34),
    (Kind::Q4_0, 2, 32, 18),
    (Kind::Q4_1, 3, 32, 20),
    (Kind::Q5_0, 6, 32, 22),
    (Kind::Q5_1, 7, 32, 24),
    (Kind::Q2_K, 10, 256, 84),
    (Kind::Q3_K, 11, 256, 110),
    (Kind::Q4_K, 12, 256, 144),
    (Kind::Q5_K, 13, 256, 176),
    (Kind::Q6_K, 14, 256, 210),
];

/// Names of the types that are not read.
const OTHERS: [(u32, &str); 29] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl Kind {
    /// All types that are read.
    pub fn all() -> impl Iterator<Item = Self> {
        READ.iter().map(|row| row.0)
    }

    /// The type of a code; none where it is not read.
    pub fn from_code(code: u32) -> Option<Self> {
        READ.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    /// Numbers and bytes of a block.
    pub fn block(self) -> (u64, u64) {
        READ.iter().find(|row| row.0 == self).map_or((1, 1), |row| (row.2, row.3))
    }

    /// Names of all types that are read, for messages.
    pub fn names() -> String {
        let names: Vec<String> = Self::all().map(|kind| format!("{kind:?}")).collect();
        names.join(", ")
    }
}

/// GGML's name of a type, read or not.
pub fn name_of(code: u32) -> String {
    if let Some(kind) = Kind::from_code(code) {
        return format!("{kind:?}");
    }
    match OTHERS.iter().find(|(other, _)| *other == code) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("of the unknown type {code}"),
    }
}
