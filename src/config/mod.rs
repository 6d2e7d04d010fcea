//! The configuration file, parsed once into checked values: later code never checks again.
//!
//! The way of a file: its text becomes a tree in which every value knows its place (`yaml`); references to variables and
//! files are replaced in the tree's texts (`environment`); the tree is walked key by key, and every mistake is collected
//! while the walk goes on (`check`, with `section` as its tool and `units` and `check::text` as its readers). What comes
//! out is a [`Config`] or all [`Problems`]. `print` shows a configuration with its defaults, `schema` describes the file
//! to editors.
//!
//! A key is added in four places: a value in `values`, its reading in `check`, its printing in `print`, its description
//! in `schema`. Tests compare the four.

mod check;
mod environment;
mod peer_list;
mod print;
mod problem;
mod resources;
mod schema;
mod section;
#[cfg(test)]
mod testing;
mod units;
mod values;
mod yaml;

use std::path::Path;
use std::time::Duration;

pub use environment::{Environment, SystemEnvironment};
pub use peer_list::{PEERS_MAX, parse_peer_list};
pub use problem::{Position, Problem, Problems};
pub use units::{Amount, duration as parse_duration};
pub use values::*;

use check::text::listen_address_short;
use environment::Unresolved;
use section::Checker;
use yaml::{Entry, Node, Scalar, Value};

/// Everything that a node is told at its start, checked. Two are equal when they mean the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients are answered; at least one.
    pub listen: Vec<Listener>,
    /// How much memory everything that is kept may take.
    pub memory_bytes: u64,
    /// How many threads serve.
    pub threads: usize,
    /// Which entry makes room.
    pub eviction: Eviction,
    /// What SIGTERM starts.
    pub shutdown: Shutdown,
    /// What is written to standard error.
    pub log: Log,
    /// What clients may use.
    pub limits: Limits,
    /// Who may look and who may act.
    pub admin: Admin,
    /// The proxies that share the cache; `None`: this one alone.
    pub fleet: Option<Fleet>,
    /// At least one, in the order of the file; names differ, and so do pairs of host and path.
    pub groups: Vec<Group>,
    marks: print::Marks,
}

/// A configuration without mistakes.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The checked values.
    pub config: Config,
    /// What works, but hardly as it was meant; in the order of the file.
    pub warnings: Vec<Problem>,
    /// SHA-256 of the file's bytes in hexadecimal digits.
    pub sha256: String,
}

impl Config {
    /// Reads and checks the file `path`; relative paths in it start at its folder.
    ///
    /// # Errors
    /// All mistakes of the file together, or that it cannot be read.
    pub fn load(path: &Path, environment: &dyn Environment) -> Result<Loaded, Problems> {
        let name = path.to_string_lossy();
        let unreadable = |why: String| {
            let message = format!("cannot be read ({why}), expected a configuration file in YAML");
            Problems::new(vec![Problem { file: name.to_string(), position: None, key: String::new(), message }])
        };
        let bytes = environment.read_file(path).map_err(|error| unreadable(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".into()))?;
        Config::parse(&text, &name, path.parent().unwrap_or(Path::new("")), environment)
    }

    /// Checks the text of a file; `file` is its name in messages, `folder` where relative paths start.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn parse(text: &str, file: &str, folder: &Path, environment: &dyn Environment) -> Result<Loaded, Problems> {
        let mut checker = checker(file, folder, environment);
        let (root, malformed) = yaml::parse(text);
        for malformed in malformed {
            checker.problem(malformed.position, &malformed.path, malformed.message);
        }
        let Some(mut root) = root else { return Err(Problems::new(checker.problems)) };
        replace_references(&mut checker, &mut root);
        let config = check::config(&mut checker, &root);
        if !checker.problems.is_empty() {
            return Err(Problems::new(checker.problems));
        }
        let warnings = Problems::new(checker.warnings).into_vec();
        Ok(Loaded { config, warnings, sha256: sha256(text.as_bytes()) })
    }

    /// The configuration of `run --origin`, which needs no file: one group for all requests.
    ///
    /// `origin` is a URL or the path of a folder; `listen` an address, `:8080` for every address of the machine; `ttl`
    /// what `freshness.default` would say. What is `None` keeps its default.
    ///
    /// # Errors
    /// All mistakes together, with the command line's options as keys.
    pub fn for_origin(origin: &str, listen: Option<&str>, ttl: Option<Duration>) -> Result<Config, Problems> {
        Config::for_origin_in(origin, listen, ttl, &SystemEnvironment::default())
    }

    /// [`Config::for_origin`] in other surroundings than those of this process.
    ///
    /// # Errors
    /// As [`Config::for_origin`].
    pub fn for_origin_in(
        origin: &str,
        listen: Option<&str>,
        ttl: Option<Duration>,
        environment: &dyn Environment,
    ) -> Result<Config, Problems> {
        let mut checker = checker("command line", Path::new(""), environment);
        let mut keys = Vec::new();
        if let Some(text) = listen {
            match listen_address_short(text) {
                Ok(address) => keys.push(("listen", list_of(vec![("address", scalar(address))]))),
                Err(expected) => checker.unexpected(&node("listen[0].address", scalar(text)), expected),
            }
        }
        let source = if origin.contains("://") { "origin" } else { "directory" };
        let mut group = vec![("name", scalar("all")), (source, scalar(origin))];
        if let Some(ttl) = ttl {
            group.push(("freshness", map_of(vec![("default", scalar(units::show_duration(ttl)))])));
        }
        keys.push(("groups", list_of(group)));
        let root = node("", map_of(keys));
        let config = check::config(&mut checker, &root);
        match checker.problems.is_empty() {
            true => Ok(config),
            false => Err(Problems::new(checker.problems.into_iter().map(as_option).collect())),
        }
    }

    /// The configuration as YAML: every key, `# default` on what nobody wrote, secrets as `***`.
    pub fn effective(&self) -> String {
        print::effective(self)
    }

    /// The JSON Schema of the file, for editors.
    pub fn schema() -> String {
        schema::schema()
    }
}

/// SHA-256 in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checker<'e>(file: &str, folder: &Path, environment: &'e dyn Environment) -> Checker<'e> {
    let (file, folder) = (file.to_owned(), folder.to_owned());
    Checker { file, folder, environment, problems: Vec::new(), warnings: Vec::new() }
}

fn replace_references(checker: &mut Checker<'_>, root: &mut Node) {
    let (environment, folder) = (checker.environment, checker.folder.clone());
    environment::replace_all(root, environment, &folder, &mut |node, unresolved| match unresolved {
        Unresolved::Missing(message) if environment.allows_unset() => {
            checker.warn(node.position, &node.path, format!("{message} (allowed, a placeholder stands for it)"));
        }
        Unresolved::Missing(message) | Unresolved::Wrong(message) => {
            checker.problem(node.position, &node.path, message);
        }
    });
}

/// A problem of a configuration without a file, with the option of the command line in place of the key.
fn as_option(problem: Problem) -> Problem {
    let key = match problem.key.as_str() {
        key if key.starts_with("listen") => "--listen",
        key if key.contains("freshness") => "--ttl",
        key if key.starts_with("groups") => "--origin",
        key => key,
    };
    Problem { position: None, key: key.to_owned(), ..problem }
}

fn scalar(text: impl ToString) -> Value {
    Value::Scalar(Scalar { text: text.to_string(), written: None, unset: false })
}

fn list_of(entries: Vec<(&str, Value)>) -> Value {
    Value::List(vec![node("", map_of(entries))])
}

fn map_of(entries: Vec<(&str, Value)>) -> Value {
    let entry = |(key, value): (&str, Value)| Entry {
        key: key.to_owned(),
        key_position: Position::START,
        node: node(key, value),
    };
    Value::Map(entries.into_iter().map(entry).collect())
}

fn node(path: &str, value: Value) -> Node {
    let mut node = Node { position: Position::START, path: String::new(), value };
    node.move_to(path);
    node
}

#[cfg(test)]
mod tests;
