//! What a user of a GPU runs first.

use super::*;

#[test]
fn the_selftest_passes() {
    let Some(gpu) = Gpu::get() else { return };
    let output = gpu.run(&["selftest", "--device", "cuda", "--quick"]);
    assert!(output.status.success(), "{output}");
    assert!(output.stdout.contains(" 0 failed"), "{output}");
}
