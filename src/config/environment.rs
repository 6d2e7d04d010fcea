//! What a configuration takes from outside of its file: variables, other files, the limits of the process.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use super::yaml::{Node, Value};

/// The surroundings of a configuration, behind a trait so that tests need none.
pub trait Environment {
    /// The value of the environment variable `name`; `None` when it is not set or is not UTF-8.
    fn variable(&self, name: &str) -> Option<String>;

    /// The content of a file.
    ///
    /// # Errors
    /// As [`std::fs::read`].
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Whether `path` is a folder that can be seen.
    fn is_folder(&self, path: &Path) -> bool;

    /// How many processor cores this process may use, by affinity and by the container's quota.
    fn cores(&self) -> usize;

    /// How many files and connections this process may hold open at the moment; `None` for no limit. A program that
    /// raises its limit does so before it loads a configuration.
    fn open_files_max(&self) -> Option<u64>;

    /// Whether a variable that must be set, and a file that must be there, may be missing (`check --allow-unset`).
    /// A value that needs one then counts as correct, and the configuration holds a placeholder instead.
    fn allows_unset(&self) -> bool {
        false
    }
}

/// The surroundings of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnvironment {
    /// The answer of [`Environment::allows_unset`].
    pub allow_unset: bool,
}

impl Environment for SystemEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn is_folder(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn cores(&self) -> usize {
        // The standard library reads affinity and, on Linux, the quota of both versions of control groups.
        std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
    }

    fn open_files_max(&self) -> Option<u64> {
        let (now, _) = rlimit::getrlimit(rlimit::Resource::NOFILE).ok()?;
        (now < rlimit::INFINITY).then_some(now)
    }

    fn allows_unset(&self) -> bool {
        self.allow_unset
    }
}

/// A reference that could not be replaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// The text is wrong, whatever the environment holds.
    Wrong(String),
    /// Right, but what it names is missing.
    Missing(String),
}

/// Replaces the references in every text of a tree. What could not be replaced is reported, with the node, to `report`;
/// the node is then marked so that no check complains about its text as well.
pub(super) fn replace_all(
    root: &mut Node,
    environment: &dyn Environment,
    folder: &Path,
    report: &mut dyn FnMut(&Node, Unresolved),
) {
    root.for_each_mut(&mut |node| {
        let Value::Scalar(scalar) = &mut node.value else { return };
        if !scalar.text.contains('$') {
            return;
        }
        match replace(&scalar.text, environment, folder) {
            Ok(text) if text == scalar.text => {}
            Ok(text) => scalar.written = Some(std::mem::replace(&mut scalar.text, text)),
            Err(unresolved) => {
                scalar.unset = true;
                report(node, unresolved);
            }
        }
    });
}

/// Replaces `${NAME}`, `${NAME:-text}` and `${file:PATH}`; `$${` stands for a plain `${`.
///
/// As in a shell, `${NAME:-text}` takes the text when the variable is not set or empty. A file's last line break is
/// dropped. What was put in is not looked at again: a value may hold `${`.
pub(super) fn replace(text: &str, environment: &dyn Environment, folder: &Path) -> Result<String, Unresolved> {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, from) = rest.split_at(dollar);
        replaced.push_str(before);
        if let Some(after) = from.strip_prefix("$${") {
            replaced.push_str("${");
            rest = after;
        } else if let Some(after) = from.strip_prefix("${") {
            let Some((reference, after)) = after.split_once('}') else {
                return Err(Unresolved::Wrong("found \"${\" without \"}\"; \"$${\" stands for a plain \"${\"".into()));
            };
            replaced.push_str(&resolve(reference, environment, folder)?);
            rest = after;
        } else {
            replaced.push('$');
            rest = &from[1..];
        }
    }
    replaced.push_str(rest);
    Ok(replaced)
}

fn resolve(reference: &str, environment: &dyn Environment, folder: &Path) -> Result<String, Unresolved> {
    if let Some(path) = reference.strip_prefix("file:") {
        let missing = |why: String| Unresolved::Missing(format!("cannot read the file {path:?}: {why}"));
        let content = environment.read_file(&folder.join(path)).map_err(|error| missing(error.to_string()))?;
        let content = String::from_utf8(content).map_err(|_| missing("it is not UTF-8".into()))?;
        return Ok(content.strip_suffix('\n').map(|c| c.strip_suffix('\r').unwrap_or(c)).unwrap_or(&content).into());
    }
    let (name, otherwise) = match reference.split_once(":-") {
        Some((name, otherwise)) => (name, Some(otherwise)),
        None => (reference, None),
    };
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins_well || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        let message = format!("found \"${{{reference}}}\", expected ${{NAME}}, ${{NAME:-text}} or ${{file:PATH}}");
        return Err(Unresolved::Wrong(message));
    }
    match (environment.variable(name), otherwise) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(otherwise)) => Ok(otherwise.to_owned()),
        (None, None) => Err(Unresolved::Missing(format!(
            "the environment variable {name} is not set; set it, or write ${{{name}:-text}}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestEnvironment;
    use super::*;

    #[test]
    fn references_are_replaced() {
        let environment = TestEnvironment::default()
            .with_variable("NAME", "value")
            .with_variable("EMPTY", "")
            .with_variable("NESTED", "${NAME}")
            .with_file("/conf/secret", "top\n")
            .with_file("/conf/lines", "a\nb\r\n")
            .with_file("/abs", "absolute");
        for (text, expected) in [
            ("plain $ text }", Ok("plain $ text }")),
            ("${NAME}", Ok("value")),
            ("a${NAME}b${NAME:-x}", Ok("avaluebvalue")),
            ("${UNSET:-text}", Ok("text")),
            ("${UNSET:-}", Ok("")),
            ("${EMPTY}", Ok("")),
            ("${EMPTY:-text}", Ok("text")),
            ("${NESTED}", Ok("${NAME}")),
            ("$${NAME}", Ok("${NAME}")),
            ("$$", Ok("$$")),
            ("${file:secret}", Ok("top")),
            ("${file:lines}", Ok("a\nb")),
            ("${file:/abs}", Ok("absolute")),
            ("${UNSET}", Err("UNSET is not set")),
            ("${file:none}", Err("cannot read the file \"none\"")),
            ("${NAME", Err("without \"}\"")),
            ("${}", Err("expected ${NAME}")),
            ("${A-B}", Err("expected ${NAME}")),
            ("${1A}", Err("expected ${NAME}")),
        ] {
            match (replace(text, &environment, Path::new("/conf")), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(Unresolved::Wrong(found) | Unresolved::Missing(found)), Err(expected)) => {
                    assert!(found.contains(expected), "{text}: {found}");
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
