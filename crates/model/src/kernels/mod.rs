//! The arithmetic of a frozen language model on the CPU, as plain functions over `f32` slices.
//!
//!
//! Every function here keeps one rule: **the bits of a row depend on that row alone** — not on how many
//! rows stand beside it, not on the number of threads, and not on the instruction set. That holds because
//!
//! * each element of a matrix product is one chain of fused multiply-adds in ascending order of the inner index; of products
//!   in bfloat16, a chain over pairs of indices that is the instruction's ([`bf16`]),
//! * each sum over a row is kept in 16 partial sums with a fixed final order ([`lanes::sum`]),
//! * `exp` and its relatives are polynomials made of multiply-adds ([`math`]), not calls into the platform,
//! * Rust never contracts or reorders floating-point operations on its own.
//!
//! So AVX-512, AVX2 and portable code differ in speed only.

pub mod activation;
pub mod aligned;
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
pub mod backward;
pub mod bf16;
pub mod blocks;
pub mod causal;
pub mod dispatch;
#[cfg(target_arch = "x86_64")]
pub mod few_rows;
pub mod forward;
pub mod lanes;
pub mod math;
pub mod matmul;
pub mod norm;
pub mod panels;
pub mod quantised;
#[cfg(test)]
mod reference;
pub mod rotary;
pub mod row_lanes;
pub mod rows;
pub mod serial;
pub mod tile;
pub mod transpose;
#[cfg(target_arch = "x86_64")]
mod turned;
pub mod vocabulary;
