//! What the fuzz targets assert, on the seeds of `tests/fuzz/corpus` and on pieces of them, so that it is asserted where
//! nobody fuzzes, too.

use std::path::{Path, PathBuf};

#[path = "../fuzz/properties/mod.rs"]
mod properties;

fn seeds(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut seeds: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{target} has no seed");
    seeds
}

/// Shorter by its end, shorter by its beginning, and with one byte in another place's stead: what a line that was cut or
/// damaged on its way looks like.
fn variations(seed: &[u8]) -> Vec<Vec<u8>> {
    let mut variations = vec![seed.to_vec()];
    for at in 0..seed.len().min(400) {
        variations.push(seed[..at].to_vec());
        variations.push(seed[at + 1..].to_vec());
        for byte in [seed[(at * 7 + 3) % seed.len()], b'"', b',', b'0', b'\n', 0, 0xff] {
            let mut damaged = seed.to_vec();
            damaged[at] = byte;
            variations.push(damaged);
        }
    }
    variations
}

#[test]
fn the_seeds_of_the_fuzz_targets_and_pieces_of_them_hold() {
    let mut failures = Vec::new();
    for (target, _) in properties::CASES {
        for seed in seeds(target) {
            let bytes = std::fs::read(&seed).unwrap();
            let holds = |input: &Vec<u8>| std::panic::catch_unwind(|| properties::check(target, input)).is_ok();
            if let Some(input) = variations(&bytes).into_iter().find(|input| !holds(input)) {
                failures.push(format!("{}: {:?}", seed.display(), String::from_utf8_lossy(&input)));
            }
        }
    }
    assert!(failures.is_empty(), "the panics are above; these inputs caused them:\n{}", failures.join("\n"));
}

#[test]
fn every_target_is_built_and_has_seeds() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    for (target, _) in properties::CASES {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in tests/fuzz/Cargo.toml");
        assert!(!seeds(target).is_empty());
    }
    assert_eq!(manifest.matches("[[bin]]").count(), properties::CASES.len());
}
