//! Products whose factors are rounded to bfloat16 (`arithmetic: bf16`): two inner indices at a time, as `VDPBF16PS` has them.
//!
//! Either way a weight is used, an element of the result is one chain over pairs of inner indices in ascending order, from zero
//! on; what a link of the chain is, [`dot`] defines. An inner size that is odd ends with a pair whose second index is zero. So the
//! bits depend neither on the rows beside a row, nor on threads, nor on whether the processor has the instruction.

mod dot;
mod left;
mod product;
mod tile;
mod turn;
mod weight;

#[cfg(test)]
pub use dot::SWITCHED_OFF;
pub use dot::has_instruction;
pub use weight::Pairs;

#[cfg(test)]
mod oracle;
