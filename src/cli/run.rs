//! `run`: a node.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{DEFAULT_CONFIG, Exit, Failure};
use crate::config::{Config, SystemEnvironment, parse_duration};
use crate::server::{ConfigFile, Options, StartError};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  groupcache-proxy run --config conf/fleet.yaml\n  \
                        groupcache-proxy run --origin http://127.0.0.1:9000 --listen :8080 --ttl 60s\n\n\
                        SIGTERM drains and ends the node, SIGHUP makes it read its configuration again.")]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub(super) config: PathBuf,
    /// Read the configuration again whenever it changes
    #[arg(long)]
    watch: bool,
    /// Instead of a configuration: the server or the folder to put the cache in front of
    #[arg(long, value_name = "URL|DIR", conflicts_with_all = ["config", "watch"])]
    pub(super) origin: Option<String>,
    /// With --origin: where to listen; :8080 is every address of this machine
    #[arg(long, value_name = "ADDRESS", requires = "origin")]
    listen: Option<String>,
    /// With --origin: how long an answer is fresh when the origin does not say, such as 60s
    #[arg(long, value_name = "TIME", requires = "origin", value_parser = duration)]
    ttl: Option<Duration>,
    /// End when standard input ends: whoever started this node holds its other end
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    // Before the configuration is loaded: the number of connections follows from this limit. Without the permission it stays.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES_WANTED);
    let options = match &arguments.origin {
        Some(origin) => {
            let config =
                Config::for_origin(origin, arguments.listen.as_deref(), arguments.ttl).map_err(Failure::bad)?;
            Options { config, sha256: String::new(), file: None, until_input_ends: arguments.until_input_ends }
        }
        None => {
            let loaded = match Config::load(&arguments.config, &SystemEnvironment::default()) {
                Ok(loaded) => loaded,
                Err(problems) if arguments.config.exists() => {
                    // Each on a line that begins with its place in the file, as `check` prints them.
                    eprintln!("{problems}");
                    return Ok(Exit::Bad);
                }
                Err(_) => {
                    return Err(Failure::bad(format!(
                        "{} is not there; write one with: groupcache-proxy init, or try: groupcache-proxy demo",
                        arguments.config.display()
                    )));
                }
            };
            for warning in &loaded.warnings {
                eprintln!("{warning} (warning)");
            }
            let file = ConfigFile { path: arguments.config.clone(), watch: arguments.watch };
            Options {
                config: loaded.config,
                sha256: loaded.sha256,
                file: Some(file),
                until_input_ends: arguments.until_input_ends,
            }
        }
    };
    crate::logging::start(&options.config.log);
    crate::server::run(options).map(|()| Exit::Done).map_err(|error| match error {
        StartError::Group { .. } => Failure::bad(error),
        StartError::Listen(_) | StartError::Fleet(_) | StartError::System(_) => Failure::unable(error),
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|expected| format!("expected {expected}"))
}

/// What a busy node needs at most: limits.connections follows from what it gets.
const OPEN_FILES_WANTED: u64 = 1 << 20;
