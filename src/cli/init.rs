//! `init`: a commented configuration that runs as it is.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{DEFAULT_CONFIG, Exit, Failure, print};
use crate::samples::PICTURES;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  groupcache-proxy init                                    with sample pictures, to try it\n  \
                        groupcache-proxy init --origin http://127.0.0.1:9000     for a server of yours\n  \
                        groupcache-proxy init --kubernetes --origin http://web:80 -    objects for kubectl apply\n\n\
                        An existing file is never overwritten."
)]
pub(super) struct Arguments {
    /// Where the configuration is written; - is standard output
    #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
    output: PathBuf,
    /// What the first group answers from: a URL, or a folder
    #[arg(long, value_name = "URL|DIR")]
    origin: Option<String>,
    /// The objects of a fleet in Kubernetes, its configuration among them
    #[arg(long)]
    kubernetes: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.kubernetes {
        return kubernetes(arguments);
    }
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

/// Writes the objects of a fleet in Kubernetes.
fn kubernetes(arguments: &Arguments) -> Result<Exit, Failure> {
    let text = objects(arguments.origin.as_deref())?;
    let output = match arguments.output == Path::new(DEFAULT_CONFIG) {
        true => PathBuf::from(DEFAULT_OBJECTS),
        false => arguments.output.clone(),
    };
    if output == Path::new("-") {
        print(&text)?;
        return Ok(Exit::Done);
    }
    write_new(&output, text.as_bytes())?;
    let secret = "kubectl create secret generic groupcache --from-literal=secret=$(openssl rand -hex 32)";
    let apply = format!("kubectl apply -f {}", output.display());
    print(&format!("wrote {}; name your image in it, then: {secret} && {apply}\n", output.display()))?;
    Ok(Exit::Done)
}

fn objects(origin: Option<&str>) -> Result<String, Failure> {
    let config = match origin {
        None => KUBERNETES_CONFIG.to_owned(),
        Some(origin) if origin.contains("://") && !origin.chars().any(char::is_control) => {
            let value = serde_json::Value::from(origin);
            KUBERNETES_CONFIG.replacen(KUBERNETES_SOURCE, &format!("    origin: {value}\n"), 1)
        }
        Some(_) => return Err(Failure::bad("--origin: expected a URL: pods share no folder")),
    };
    let indented: String = config
        .lines()
        .skip_while(|line| line.starts_with('#') || line.is_empty())
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") })
        .collect();
    Ok(KUBERNETES_OBJECTS.replacen("    # proxy.yaml\n", &indented, 1))
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
const KUBERNETES_CONFIG: &str = include_str!("../../conf/kubernetes.yaml");
const KUBERNETES_SOURCE: &str = "    origin: http://origin:80\n";
const KUBERNETES_OBJECTS: &str = include_str!("init/kubernetes.yaml");
const DEFAULT_OBJECTS: &str = "groupcache.yaml";
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
    fn the_objects_for_kubernetes_hold_a_configuration_that_loads() {
        let text = objects(Some("http://web.internal:81")).unwrap();
        assert!(KUBERNETES_CONFIG.contains(KUBERNETES_SOURCE) && !text.contains("# proxy.yaml\n"));
        let (_, config) = text.split_once("  proxy.yaml: |\n").unwrap();
        let config: String = config
            .lines()
            .take_while(|line| line.is_empty() || line.starts_with("    "))
            .fold(String::new(), |all, line| all + line.strip_prefix("    ").unwrap_or(line) + "\n");
        let loaded = Config::parse(&config, "proxy.yaml", Path::new(""), &SystemEnvironment { allow_unset: true });
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}\nin\n{config}"));
        match &loaded.config.groups[0].source {
            GroupSource::Origin(origin) => assert_eq!(origin.urls[0].to_string(), "http://web.internal:81/"),
            GroupSource::Directory(_) => panic!("{text}"),
        }
        assert!(objects(Some("folder")).is_err());
    }

    #[test]
    fn a_file_that_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("conf/mine.yaml");
        let arguments = Arguments { output: output.clone(), origin: None, kubernetes: false };
        assert_eq!(run(&arguments).unwrap(), Exit::Done);
        assert!(folder.path().join("conf/pictures").join(PICTURES[0].name).is_file());
        std::fs::write(&output, "mine").unwrap();
        assert_eq!(run(&arguments).unwrap_err().exit, Exit::Bad);
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "mine");
    }
}
