//! Replays the fuzz targets' seeds, so that targets and seeds cannot rot between two fuzz runs.
#![forbid(unsafe_code)]
// clippy.toml allows panics only in `#[test]` functions.
#![allow(clippy::unwrap_used)]

// Some of it is there for tests/differential only.
#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_imports, clippy::unwrap_used, clippy::expect_used)]
mod targets;

use std::fs;
use std::path::Path;

/// Runs every seed. Those called `bad-…` must be refused, the others must not.
fn replay(target: &str, run: fn(&[u8]) -> bool) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds = 0;
    for file in fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let good = !path.file_name().unwrap().to_string_lossy().starts_with("bad-");
        assert_eq!(run(&fs::read(&path).unwrap()), good, "{}", path.display());
        seeds += 1;
    }
    assert!(seeds > 1, "{} holds no seeds", dir.display());
}

macro_rules! replay {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target), targets::$target);
        }
    )*

    #[test]
    fn every_target_is_replayed() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        let mut found: Vec<_> = fs::read_dir(fuzz)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        found.sort();
        assert_eq!(found, [$(stringify!($target)),*]);
    }};
}

replay! { cmsg cni coalesce config cut env_file key packet value virtio }
