//! Walks a tree key by key and collects what is wrong, going on with a stand-in so that everything else is seen too.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::problem::{Position, Problem};
use super::units::Expected;
use super::yaml::{Entry, Node, Scalar, Value, join};

/// Collects the problems of one file. A configuration that was built while it reported any must not be used.
pub(super) struct Checker<'e> {
    pub(super) file: String,
    /// Where relative paths start.
    pub(super) folder: PathBuf,
    pub(super) environment: &'e dyn Environment,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

/// A map whose keys are taken one by one; what was never asked for is unknown.
pub(super) struct Section<'n> {
    pub(super) path: String,
    pub(super) position: Position,
    entries: Vec<(&'n Entry, Taken)>,
    known: Vec<&'static str>,
    /// Something else stood where a map belongs, which was reported: nothing in it can be missing.
    no_map: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    No,
    Yes,
}

impl<'n> Section<'n> {
    /// The value of `key`. Ask for every key that may stand here, whether it is needed or not.
    pub(super) fn take(&mut self, key: &'static str) -> Option<&'n Node> {
        self.known.push(key);
        let (entry, taken) = self.entries.iter_mut().find(|(entry, _)| entry.key == key)?;
        *taken = Taken::Yes;
        Some(&entry.node)
    }

    /// Whether `key` was written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(entry, _)| entry.key == key)
    }

    /// Where `key` was written.
    pub(super) fn position_of(&self, key: &str) -> Option<Position> {
        self.entries.iter().find(|(entry, _)| entry.key == key).map(|(entry, _)| entry.node.position)
    }

    /// Whether a key was written that nobody has asked for yet.
    pub(super) fn has_unknown(&self) -> bool {
        self.entries.iter().any(|(_, taken)| *taken == Taken::No)
    }

    /// The path of `key` in this section.
    pub(super) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Reports the keys that nobody took.
    pub(super) fn finish(self, checker: &mut Checker<'_>) {
        for (entry, _) in self.entries.iter().filter(|(_, taken)| *taken == Taken::No) {
            let message = match nearest(&entry.key, &self.known) {
                Some(near) => format!("unknown key, did you mean {near}?"),
                None => format!("unknown key, expected one of {}", self.known.join(", ")),
            };
            checker.problem(entry.key_position, &entry.node.path, message);
        }
    }
}

impl Checker<'_> {
    /// Reports a mistake; the message says what is wrong and what was expected.
    pub(super) fn problem(&mut self, position: Position, key: &str, message: impl Into<String>) {
        let (file, key) = (self.file.clone(), key.to_owned());
        self.problems.push(Problem { file, position: Some(position), key, message: message.into() });
    }

    /// Reports something that works, but hardly as it was meant.
    pub(super) fn warn(&mut self, position: Position, key: &str, message: impl Into<String>) {
        let (file, key) = (self.file.clone(), key.to_owned());
        self.warnings.push(Problem { file, position: Some(position), key, message: message.into() });
    }

    /// Reports that `node` is not what was expected.
    pub(super) fn unexpected(&mut self, node: &Node, expected: impl AsRef<str>) {
        let message = format!("found {}, expected {}", node.shown(), expected.as_ref());
        self.problem(node.position, &node.path, message);
    }

    /// Reports that `key` is not there.
    pub(super) fn missing(&mut self, section: &Section<'_>, key: &str, expected: &str) {
        if !section.no_map {
            self.problem(section.position, &section.path_of(key), format!("missing, expected {expected}"));
        }
    }

    /// The map `node`. Nothing at all is an empty map: its keys may all be commented out.
    pub(super) fn section<'n>(&mut self, node: Option<&'n Node>, path: String, position: Position) -> Section<'n> {
        let no_map = matches!(node.map(|node| &node.value), Some(Value::Scalar(_) | Value::List(_)));
        let entries = match node.map(|node| &node.value) {
            Some(Value::Map(entries)) => entries.iter().map(|entry| (entry, Taken::No)).collect(),
            Some(Value::Null) | None => Vec::new(),
            Some(Value::Scalar(_) | Value::List(_)) => {
                node.into_iter().for_each(|node| self.unexpected(node, "a map of keys and values"));
                Vec::new()
            }
        };
        let position = node.map_or(position, |node| node.position);
        Section { path, position, entries, known: Vec::new(), no_map }
    }

    /// The map below `key`.
    pub(super) fn subsection<'n>(&mut self, section: &mut Section<'n>, key: &'static str) -> Section<'n> {
        let node = section.take(key);
        self.section(node, section.path_of(key), section.position)
    }

    /// The text of `node` as `read` understands it; `None` when it cannot, which is reported.
    pub(super) fn read<T>(&mut self, node: &Node, read: impl FnOnce(&str) -> Result<T, Expected>) -> Option<T> {
        match &node.value {
            Value::Scalar(Scalar { unset: true, .. }) => None,
            Value::Scalar(scalar) => match read(&scalar.text) {
                Ok(value) => Some(value),
                Err(expected) => {
                    self.unexpected(node, expected);
                    None
                }
            },
            _ => {
                // The reader knows best what it would have taken, and says so when it refuses a text.
                let expected = read(REFUSED_BY_ALL).err().unwrap_or_else(|| "a text".into());
                self.unexpected(node, expected);
                None
            }
        }
    }

    /// The value of `key`, or `default` when it is not there.
    pub(super) fn leaf<T>(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        default: T,
        read: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> T {
        section.take(key).and_then(|node| self.read(node, read)).unwrap_or(default)
    }

    /// The value of `key`, or `None` when it is not there.
    pub(super) fn optional<T>(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> Option<T> {
        section.take(key).and_then(|node| self.read(node, read))
    }

    /// The elements of a list of texts, each with its node; a single text stands for a list of one.
    pub(super) fn one_or_list<'n, T>(
        &mut self,
        node: &'n Node,
        expected: &str,
        mut read: impl FnMut(&str) -> Result<T, Expected>,
    ) -> Vec<(&'n Node, T)> {
        match &node.value {
            Value::Scalar(_) => self.read(node, read).map(|value| (node, value)).into_iter().collect(),
            Value::List(list) => {
                list.iter().filter_map(|element| Some((element, self.read(element, &mut read)?))).collect()
            }
            Value::Map(_) | Value::Null => {
                self.unexpected(node, expected);
                Vec::new()
            }
        }
    }

    /// The elements of a list of texts below `key`, or `default` when the key is not there.
    pub(super) fn list<T>(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        default: Vec<T>,
        mut read: impl FnMut(&str) -> Result<T, Expected>,
    ) -> Vec<T> {
        let Some(node) = section.take(key) else { return default };
        match &node.value {
            Value::List(list) => list.iter().filter_map(|element| self.read(element, &mut read)).collect(),
            Value::Null => Vec::new(),
            Value::Scalar(Scalar { unset: true, .. }) => default,
            Value::Scalar(_) | Value::Map(_) => {
                self.unexpected(node, "a list, such as [one, two]");
                default
            }
        }
    }

    /// Reports that the path in `node` does not lead to what was expected, and where it leads.
    pub(super) fn unexpected_path(&mut self, node: &Node, expected: &str, path: &Path, why: &str) {
        let expected = match node.is_from_file() {
            true => expected.to_owned(),
            false => format!("{expected} ({}: {why})", path.display()),
        };
        self.unexpected(node, expected);
    }

    /// A path as written in the file, from the folder of the file.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        let path = Path::new(path);
        if self.folder.as_os_str().is_empty() { path.to_owned() } else { self.folder.join(path) }
    }
}

/// A text that no reader takes but those that take any.
const REFUSED_BY_ALL: &str = "\0";

/// The known key that `key` was probably meant to be.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |name: &str| strsim::damerau_levenshtein(key, name);
    let near = known.iter().copied().min_by_key(|name| distance(name))?;
    // A distance of half the name is no likeness. "header_time" and "head" begin alike, which is one as well.
    let alike = distance(near) <= (near.len() / 3).max(1) + 1;
    let begins_alike = || known.iter().copied().find(|name| key.len() > 2 && name.starts_with(key));
    if alike { Some(near) } else { begins_alike() }
}
