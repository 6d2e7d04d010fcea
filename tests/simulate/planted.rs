//! The bugs of `planted/` can still be planted: each patch finds the lines that it changes.

use std::fs;
use std::path::Path;

/// Why a patch no longer fits the tree, if one does not.
pub fn misfit() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("tests/simulate/planted");
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut patches: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    assert!(!patches.is_empty(), "no patch in {}", folder.display());
    patches.iter().find_map(|patch| {
        let text = fs::read_to_string(patch).expect("a text");
        let named = text.lines().find_map(|line| line.strip_prefix("--- a/")).expect("a file to be changed");
        let source = fs::read_to_string(root.join(named)).unwrap_or_default();
        let hunks = text.split("\n@@ ").skip(1);
        let fits = hunks.map(before).all(|before| source.matches(&before).count() == 1);
        (!fits).then(|| format!("{}: {named} has changed", patch.display()))
    })
}

/// The lines that a hunk finds.
fn before(hunk: &str) -> String {
    let lines = hunk.lines().skip(1).filter(|line| !line.starts_with('+'));
    lines.map(|line| format!("{}\n", line.get(1..).unwrap_or_default())).collect()
}
