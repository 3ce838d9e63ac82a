#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use numalign_fuzz::{structure, targets};

fuzz_target!(|input: &[u8]| {
    let _ = targets::jsonl(input);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    structure::mutate(structure::json_lines, fuzzer_mutate, data, size, max_size, seed)
});
