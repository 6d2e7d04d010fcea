//! What is wrong with a configuration, and where.

use std::fmt;

/// A place in a configuration file; both numbers count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line of the file.
    pub line: usize,
    /// Column in that line.
    pub column: usize,
}

impl Position {
    /// The beginning of a file.
    pub(super) const START: Position = Position { line: 1, column: 1 };
}

/// One mistake, or one warning.
///
/// Displayed as `FILE:LINE:COLUMN: key: message` without a line break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name as it was given; "command line" for settings without a file.
    pub file: String,
    /// Where in the file; `None` where there is no text to point at.
    pub position: Option<Position>,
    /// The key with all keys above it, such as `groups[0].freshness.max`; empty where the text is not YAML.
    pub key: String,
    /// What is wrong and what was expected; never holds a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if let Some(position) = self.position {
            write!(formatter, ":{}:{}", position.line, position.column)?;
        }
        if !self.key.is_empty() {
            write!(formatter, ": {}", self.key)?;
        }
        // Texts of other libraries and names of files may hold line breaks; a problem is one line.
        let message: String = self.message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        write!(formatter, ": {message}")
    }
}

/// All mistakes of one configuration, in the order of the file; displayed as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts the problems by their place and drops repetitions: a mistake in `defaults` is found once per group.
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.position);
        let mut kept: Vec<Problem> = Vec::with_capacity(problems.len());
        for problem in problems {
            if !kept.contains(&problem) {
                kept.push(problem);
            }
        }
        Problems(kept)
    }

    /// The problems in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            problem.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
