//! Numbers in memory that begin at a cache line: a load of a vector register then never touches two of them.

/// Bytes of a cache line, and of the widest register.
const LINE: usize = 64;

/// Numbers from the beginning of a cache line on.
#[derive(Debug)]
pub struct Aligned<E> {
    /// A line more than the numbers need.
    memory: Vec<E>,
    start: usize,
    len: usize,
}

impl<E: Copy + Default> Aligned<E> {
    /// `len` times zero.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![E::default(); len + LINE / size_of::<E>()];
        ask_for_huge_pages(&memory);
        let start = memory.as_ptr().align_offset(LINE);
        Self { memory, start, len }
    }

    /// At least `len` numbers; what they held may be lost.
    pub fn grow(&mut self, len: usize) -> &mut [E] {
        if self.len < len {
            *self = Self::zeroed(len);
        }
        self.as_mut_slice()
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[E] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The numbers, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl<E: Copy + Default> Default for Aligned<E> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

/// Asks Linux to back large memory, which nobody has touched yet, with huge pages: a product that reads weights at the memory's full
/// rate otherwise waits for the translation of every 4 KiB.
fn ask_for_huge_pages<E>(memory: &[E]) {
    #[cfg(target_os = "linux")]
    {
        /// Bytes of most huge pages, and of every page.
        const HUGE: usize = 2 << 20;
        const PAGE: usize = 4 << 10;
        // Outwards to whole pages, so that neighbours' ranges join.
        let range = memory.as_ptr_range();
        let start = range.start.addr() & !(PAGE - 1);
        let bytes = range.end.addr().next_multiple_of(PAGE) - start;
        if bytes >= HUGE {
            // SAFETY: the pages hold `memory`, and what they hold does not change. A refusal is no failure.
            unsafe { libc::madvise(range.start.with_addr(start).cast_mut().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_at_a_line_and_are_kept_when_there_is_room() {
        let mut numbers = Aligned::<f32>::zeroed(5);
        numbers.as_mut_slice()[4] = 3.0;
        assert_eq!(numbers.grow(3), [0.0, 0.0, 0.0, 0.0, 3.0]);
        assert_eq!(numbers.grow(40).len(), 40);
        assert_eq!(numbers.as_slice().as_ptr() as usize % LINE, 0);
        assert_eq!(Aligned::<half::bf16>::zeroed(7).as_slice().as_ptr() as usize % LINE, 0);
    }
}
