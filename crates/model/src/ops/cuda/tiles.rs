//! How attention is cut: the tiles of queries and keys that a block of threads works on, by the shapes and the GPU's shared
//! memory.

use super::matrix::Matrix;
use crate::kernels::attention::Heads;
use crate::ops::sequences::Sequences;

/// A block's threads stand in a square of this side.
pub const SIDE: usize = 16;

/// Sizes of the tiles; multiples of [`SIDE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// Numbers of a head.
    pub size: usize,
}

impl Tiles {
    /// The first of `limits`, for queries and keys, for which the shared memory is enough; no tile is larger than the shapes
    /// need. `None` where even the last is too large.
    pub fn choose(
        limits: &[(usize, usize)],
        [queries, keys, size]: [usize; 3],
        shared: usize,
        bytes: fn(&Tiles) -> usize,
    ) -> Option<Self> {
        let tile = |count: usize, most: usize| count.next_multiple_of(SIDE).min(most);
        let tiles =
            limits.iter().map(|limit| Self { queries: tile(queries, limit.0), keys: tile(keys, limit.1), size });
        tiles.into_iter().find(|tiles| bytes(tiles) <= shared)
    }

    /// Columns of a head's tile: as many for each of a row's threads.
    pub fn width(&self) -> usize {
        self.size.next_multiple_of(SIDE)
    }

    /// A line of a head's tile in shared memory; one more than is used, so that threads that walk down a column meet no
    /// bank twice.
    pub fn line(&self) -> usize {
        self.width() + 1
    }
}

/// What all attention kernels are told of the shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Sequences, all of the same length.
    pub sequences: usize,
    /// Positions of each.
    pub length: usize,
    /// Queries of each: all positions, or the last alone.
    pub queries: usize,
}

impl Extent {
    /// `None` for sequences of several lengths.
    pub fn of(queries: &Sequences) -> Option<Self> {
        let length = queries.uniform_length()?;
        let each = if queries.last_only() { 1 } else { length };
        Some(Self { sequences: queries.count(), length, queries: each })
    }
}

/// The tiles of one kernel, whose shared memory `bytes` tells.
pub fn tiles(
    on: &Matrix,
    extent: Extent,
    heads: Heads,
    limits: &[(usize, usize)],
    bytes: fn(&Tiles) -> usize,
) -> Option<Tiles> {
    let shared = on.client().properties().hardware.max_shared_memory_size;
    Tiles::choose(limits, [extent.queries, extent.length, heads.head_size], shared, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_as_large_as_shared_memory_allows() {
        const LIMITS: [(usize, usize); 3] = [(64, 64), (32, 32), (16, 16)];
        let bytes: fn(&Tiles) -> usize = |tiles| 4 * 2 * (tiles.queries + tiles.keys) * tiles.line();
        let choose = |shape, shared| Tiles::choose(&LIMITS, shape, shared, bytes);
        let tiles = choose([1024, 1024, 64], 227 << 10).unwrap();
        assert_eq!((tiles.queries, tiles.keys, tiles.width()), (64, 64, 64));
        let tiles = choose([1, 1024, 64], 227 << 10).unwrap();
        assert_eq!((tiles.queries, tiles.keys), (16, 64));
        let tiles = choose([7, 7, 1], 48 << 10).unwrap();
        assert_eq!((tiles.queries, tiles.keys, tiles.width()), (16, 16, 16));
        let tiles = choose([1024, 1024, 128], 64 << 10).unwrap();
        assert_eq!((tiles.queries, tiles.keys), (16, 16));
        assert_eq!(choose([64, 64, 4096], 48 << 10), None);
    }
}
