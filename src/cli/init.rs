//! `init`: a commented configuration that runs as it is.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{DEFAULT_CONFIG, Exit, Failure, print};
use crate::samples::PICTURES;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  groupcache-proxy init                                    with sample pictures, to try it\n  \
                        groupcache-proxy init --origin http://127.0.0.1:9000     for a server of yours\n\n\
                        An existing file is never overwritten."
)]
pub(super) struct Arguments {
    /// Where the configuration is written; - is standard output
    #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
    output: PathBuf,
    /// What the first group answers from: a URL, or a folder
    #[arg(long, value_name = "URL|DIR")]
    origin: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let text = configuration(arguments.origin.as_deref())?;
    if arguments.output == Path::new("-") {
        print(&text)?;
        return Ok(Exit::Done);
    }
    let folder = arguments.output.parent().unwrap_or(Path::new(""));
    if !folder.as_os_str().is_empty() {
        std::fs::create_dir_all(folder).map_err(|error| Failure::unable(format!("{}: {error}", folder.display())))?;
    }
    write_new(&arguments.output, text.as_bytes())?;
    if arguments.origin.is_none() {
        let pictures = folder.join("pictures");
        std::fs::create_dir_all(&pictures)
            .map_err(|error| Failure::unable(format!("{}: {error}", pictures.display())))?;
        for picture in PICTURES {
            // Pictures of the user's own under these names stay.
            let _ = write_new(&pictures.join(picture.name), picture.bytes);
        }
    }
    let config = match arguments.output == Path::new(DEFAULT_CONFIG) {
        true => String::new(),
        false => format!(" --config {}", arguments.output.display()),
    };
    print(&format!("wrote {}; start it with: groupcache-proxy run{config}\n", arguments.output.display()))?;
    Ok(Exit::Done)
}

/// The shipped configuration, with another source where one is named.
fn configuration(origin: Option<&str>) -> Result<String, Failure> {
    let Some(origin) = origin else { return Ok(SHIPPED.to_owned()) };
    if origin.chars().any(|c| c.is_control()) {
        return Err(Failure::bad("--origin holds a control character, expected a URL or a folder"));
    }
    let key = if origin.contains("://") { "origin" } else { "directory" };
    // JSON's strings are YAML's, too.
    let value = serde_json::Value::from(origin);
    Ok(SHIPPED.replacen(SHIPPED_SOURCE, &format!("    {key}: {value}\n"), 1))
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    made.and_then(|mut file| file.write_all(bytes)).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            Failure::bad(format!("{} exists and is not overwritten; name another file", path.display()))
        }
        _ => Failure::unable(format!("{}: {error}", path.display())),
    })
}

const SHIPPED: &str = include_str!("../../conf/proxy.yaml");
const SHIPPED_SOURCE: &str = "    directory: pictures\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, GroupSource, SystemEnvironment};

    #[test]
    fn what_is_written_loads_and_asks_the_named_source() {
        assert!(SHIPPED.contains(SHIPPED_SOURCE));
        let folder = tempfile::tempdir().unwrap();
        for (origin, expected) in [
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000/".to_owned()),
            (".", folder.path().display().to_string()),
        ] {
            let text = configuration(Some(origin)).unwrap();
            let loaded = Config::parse(&text, "proxy.yaml", folder.path(), &SystemEnvironment::default()).unwrap();
            let source = match &loaded.config.groups[0].source {
                GroupSource::Origin(origin) => origin.urls[0].to_string(),
                GroupSource::Directory(path) => path.display().to_string(),
            };
            assert!(source.starts_with(&expected), "{source}");
        }
    }

    #[test]
    fn a_file_that_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("conf/mine.yaml");
        let arguments = Arguments { output: output.clone(), origin: None };
        assert_eq!(run(&arguments).unwrap(), Exit::Done);
        assert!(folder.path().join("conf/pictures").join(PICTURES[0].name).is_file());
        std::fs::write(&output, "mine").unwrap();
        assert_eq!(run(&arguments).unwrap_err().exit, Exit::Bad);
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "mine");
    }
}
