#![no_main]

use libfuzzer_sys::fuzz_target;
use numalign_fuzz::targets;

fuzz_target!(|input: &[u8]| {
    let _ = targets::csv(input);
});
