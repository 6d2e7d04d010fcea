//! Structural checks: what the map in `src/lib.rs` and the README promise about the tree, as ordinary tests.
//!
//! They read text, not syntax: comments and test modules are left out line by line, which the layout by rustfmt allows.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Who may import whom, from the top down: a module imports modules of lower rows and never one of its own row or above.
/// Modules that stand together as one word, joined by `+`, are one story in several files and know each other.
const LAYERS: &[(&str, &str)] = &[
    ("the command line", "cli"),
    // The endpoints report what the composition holds, and the composition puts them on the listeners.
    ("composition", "server+admin"),
    ("edges, in and out", "edge peer origin"),
    ("decisions", "cache+fill+following+hop+invalidate+purging+renewal+replicas+warm"),
    ("what decisions stand on", "parts permits slot"),
    ("mechanism and data", "entry fences fleet flight group heat remembered store"),
    ("the seam", "source"),
    ("rules of HTTP", "freshness purge semantics logging"),
    ("leaves", "clock config fields key membership memory ring samples stats"),
];

/// Which modules may name pingora: the composition and few places besides, so that its upgrades stay at the edges.
const KNOW_PINGORA: &[(&str, &str)] = &[
    ("src/server", "composition: listeners and services"),
    ("src/edge/", "edge towards clients"),
    ("src/peer/", "edge towards peers"),
    ("src/origin/", "edge towards origins"),
    ("src/config/check/tls.rs", "a key fits its certificate by the same TLS library that will use them"),
];

/// Longer files than [`LINES_MAX`] without the tests at their end, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[
    ("src/config/tests.rs", "one table row per mistake that a file can have"),
    ("src/freshness/tests.rs", "one table row per rule of RFC 9111"),
    ("src/edge/tests.rs", "conversations written out byte by byte"),
];

/// Files of `tests/it` that pause, each with its reason. The others order events instead. In `tests/simulate` all time is
/// simulated.
const MAY_SLEEP: &[(&str, &str)] = &[
    ("tests/it/kit/nginx.rs", "waits for another process to listen"),
    ("tests/it/kit/go.rs", "waits for another process to listen"),
    ("tests/it/kit/node.rs", "waits for another process to be ready, to write a line, or to end"),
    ("tests/it/kit/poll.rs", "waits for what another process can only be asked for"),
    ("tests/it/crowds.rs", "lets the time pass in which a slow origin must not count as a silent owner"),
];

const LINES_MAX: usize = 900;

#[test]
fn imports_point_down() {
    let mut wrong = String::new();
    let mut modules = BTreeSet::new();
    for file in files("src", "rs") {
        let name = relative(&file);
        let module = top_module(&name);
        if matches!(module, "lib" | "main" | "testing") || is_test_file(&name) {
            continue;
        }
        let Some((row, team)) = place(module) else {
            writeln!(wrong, "{name}: {module} has no place in the layers").unwrap();
            continue;
        };
        modules.insert(module.to_owned());
        for (number, line) in code_lines(&read(&file)) {
            assert!(!line.contains("use crate::{"), "{name}:{number}: one `use crate::module` per line");
            for imported in line.split("crate::").skip(1) {
                let imported =
                    imported.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()).next().unwrap_or_default();
                let allowed = imported == module
                    || place(imported).is_some_and(|(other_row, other_team)| {
                        other_row > row || (other_row == row && other_team == team && team.contains('+'))
                    });
                if !allowed {
                    writeln!(wrong, "{name}:{number}: {module} may not import {imported}").unwrap();
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(modules.contains("cache") && modules.contains("store"), "the tree was not found: {modules:?}");
}

#[test]
fn pingora_is_named_at_the_edges_only() {
    let mut naming = BTreeSet::new();
    for file in files("src", "rs") {
        let name = relative(&file);
        for (number, line) in code_lines(&read(&file)) {
            if !line.contains("pingora::") && !line.contains("pingora_") {
                continue;
            }
            let place = KNOW_PINGORA.iter().find(|(place, _)| name.starts_with(place));
            naming.insert(place.unwrap_or_else(|| panic!("{name}:{number}: names pingora below the edges")).0);
        }
    }
    let listed: BTreeSet<_> = KNOW_PINGORA.iter().map(|(place, _)| *place).collect();
    assert_eq!(naming, listed, "places that may name pingora and do not");
}

#[test]
fn files_stay_readable() {
    let mut long = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for file in files(folder, "rs") {
            let lines = read(&file).lines().take_while(|line| *line != "mod tests {").count();
            if lines > LINES_MAX {
                long.push((relative(&file), lines));
            }
        }
    }
    let unlisted: Vec<_> =
        long.iter().filter(|(name, _)| !LONG_FILES.iter().any(|(listed, _)| listed == name)).collect();
    assert!(unlisted.is_empty(), "longer than {LINES_MAX} lines without a listed reason: {unlisted:?}");
    for (listed, _) in LONG_FILES {
        assert!(long.iter().any(|(name, _)| name == listed), "{listed} is listed as long and is not");
    }
}

#[test]
fn tests_with_sockets_stay_on_loopback_and_order_events() {
    let networks = ["10.", "172.16.", "192.168."];
    for file in files("tests", "rs").into_iter().chain(files("tests", "go")) {
        let name = relative(&file);
        if name.ends_with("tidy.rs") {
            continue;
        }
        for (number, line) in code_lines(&read(&file)) {
            assert!(!line.contains("\"/tmp"), "{name}:{number}: temporary folders come from tempfile");
            let address = networks.iter().find(|network| {
                line.match_indices(**network).any(|(at, _)| {
                    let before = line[..at].chars().next_back().unwrap_or(' ');
                    let after = line[at + network.len()..].chars().next().unwrap_or(' ');
                    !before.is_ascii_alphanumeric()
                        && before != '.'
                        && after.is_ascii_digit()
                        && line[at..].matches('.').count() > 2
                })
            });
            assert!(address.is_none(), "{name}:{number}: a private address; examples use 192.0.2.0/24 (RFC 5737)");
            let simulated = name.starts_with("tests/simulate/");
            let sleeps = line.contains("sleep(") && !simulated && !MAY_SLEEP.iter().any(|(listed, _)| *listed == name);
            assert!(
                !sleeps,
                "{name}:{number}: order events instead of waiting for them, or list the file with its reason"
            );
            for (at, _) in line.match_indices("127.0.0.1:") {
                let port = line[at + 10..].chars().take_while(char::is_ascii_digit).collect::<String>();
                assert!(matches!(port.as_str(), "" | "0" | "1" | "9"), "{name}:{number}: the fixed port {port}");
            }
        }
    }
}

#[test]
fn the_readme_names_what_there_is() {
    let readme = read(&root().join("README.md"));
    for file in files("conf", "yaml").into_iter().chain(files("conf", "svg")) {
        let name = relative(&file);
        assert!(readme.contains(&name), "{name} is not in README.md");
    }
    for (_, rest) in readme.match_indices("](").map(|(at, mark)| readme[at..].split_at(mark.len())) {
        let target = rest.split([')', '#']).next().unwrap_or_default();
        let here = !target.is_empty() && !target.contains("://");
        assert!(!here || root().join(target).exists(), "README.md links to {target}, which is not there");
    }
    let makefile = read(&root().join("Makefile"));
    for (at, _) in readme.match_indices("make ") {
        let in_code = readme[..at].ends_with(['`', '\n']) || readme[..at].ends_with("    ");
        let is_in_name = |letter: &char| letter.is_ascii_lowercase() || *letter == '-';
        let target: String = readme[at + 5..].chars().take_while(is_in_name).collect();
        assert!(!in_code || makefile.contains(&format!("\n{target}: ")), "README.md: make {target} is no target");
    }
}

#[test]
fn the_changelog_knows_this_version() {
    let changelog = read(&root().join("CHANGELOG.md"));
    let heading = format!("\n## {}", env!("CARGO_PKG_VERSION"));
    assert!(changelog.contains(&heading), "CHANGELOG.md has no heading for {}", env!("CARGO_PKG_VERSION"));
}

#[test]
fn tidy_itself_sees_what_it_looks_for() {
    let text = "use crate::store::Store; // crate::a\n/// crate::b\n#[cfg(test)]\nuse crate::c;\nlet url = \"http://x\";\n\
                #[cfg(test)]\nmod tests {\n    use crate::d;\n}\n";
    let lines: Vec<(usize, &str)> = code_lines(text).collect();
    assert_eq!(lines, [(1, "use crate::store::Store; "), (5, "let url = \"http://x\";")]);
    assert_eq!(top_module("src/store/mod.rs"), "store");
    assert_eq!(top_module("src/cache.rs"), "cache");
    assert!(is_test_file("src/peer/wire_tests.rs") && is_test_file("src/cache/tests.rs"));
    assert!(!is_test_file("src/freshness/mod.rs"));
}

/// Row of a module, counted from above, and the word it stands in.
fn place(module: &str) -> Option<(usize, &'static str)> {
    LAYERS.iter().enumerate().find_map(|(row, (_, words))| {
        words.split(' ').find(|word| word.split('+').any(|name| name == module)).map(|word| (row, word))
    })
}

/// `store` of `src/store/index.rs`.
fn top_module(name: &str) -> &str {
    let name = name.strip_prefix("src/").unwrap_or(name);
    name.split(['/', '.']).next().unwrap_or_default()
}

fn is_test_file(name: &str) -> bool {
    let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    stem == "tests" || stem == "testing" || stem.ends_with("_tests") || name.starts_with("src/testing/")
}

/// Numbered lines without comments; test modules at the end of a file and items only for tests are left out.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_tests = false;
    let mut lines = text.lines().enumerate().peekable();
    std::iter::from_fn(move || {
        loop {
            let (index, line) = lines.next()?;
            if line.trim_start().starts_with("#[cfg(test)]") {
                let next = lines.next().map(|(_, next)| next).unwrap_or_default();
                in_tests |= next.starts_with("mod ") && next.ends_with('{');
                continue;
            }
            let code = match line.find("//") {
                Some(at) if !line[..at].ends_with(':') => &line[..at],
                _ => line,
            };
            if !in_tests && !code.trim().is_empty() {
                return Some((index + 1, code));
            }
        }
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root()).expect("a file of the project").to_string_lossy().into_owned()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// All files below a folder with this extension, sorted.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("an entry of the folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
