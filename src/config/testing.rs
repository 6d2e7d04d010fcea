//! An environment that is made of values, for tests.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::environment::Environment;

/// Holds what the tests put into it; by default a machine of 4 cores and 16 GiB without a limit of open files.
#[derive(Clone, Debug)]
pub(super) struct TestEnvironment {
    variables: HashMap<String, String>,
    files: HashMap<PathBuf, Vec<u8>>,
    folders: Vec<PathBuf>,
    pub(super) open_files_max: Option<u64>,
    pub(super) allow_unset: bool,
}

impl Default for TestEnvironment {
    fn default() -> Self {
        TestEnvironment::bare().with_file("/proc/meminfo", "MemTotal: 16777216 kB\n")
    }
}

impl TestEnvironment {
    /// One in which not even the machine's memory can be read.
    pub(super) fn bare() -> Self {
        TestEnvironment {
            variables: HashMap::new(),
            files: HashMap::new(),
            folders: Vec::new(),
            open_files_max: None,
            allow_unset: false,
        }
    }

    pub(super) fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    pub(super) fn with_file(mut self, path: impl Into<PathBuf>, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.into(), content.into());
        self
    }

    pub(super) fn with_folder(mut self, path: &str) -> Self {
        self.folders.push(path.into());
        self
    }
}

impl Environment for TestEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_folder(&self, path: &Path) -> bool {
        self.folders.iter().any(|folder| folder == path)
    }

    fn cores(&self) -> usize {
        4
    }

    fn open_files_max(&self) -> Option<u64> {
        self.open_files_max
    }

    fn allows_unset(&self) -> bool {
        self.allow_unset
    }
}
