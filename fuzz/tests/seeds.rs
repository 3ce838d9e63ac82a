//! Replays every kept seed, whole and cut short at up to 64 places: no target panics, and each accepts one of its seeds.

use std::path::Path;

use numalign_fuzz::targets::ALL;

#[test]
fn the_seeds_panic_nowhere() {
    for target in ALL {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target.name);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut accepted = 0;
        for entry in entries {
            let path = entry.unwrap().path();
            let seed = std::fs::read(&path).unwrap();
            // A panic's message names the target only; this names the seed.
            println!("{}", path.display());
            accepted += usize::from((target.run)(&seed).is_ok());
            for length in (0..seed.len()).step_by(seed.len().div_ceil(64).max(1)) {
                let _ = (target.run)(&seed[..length]);
            }
        }
        assert!(accepted > 0, "{} accepts no seed", target.name);
    }
}
