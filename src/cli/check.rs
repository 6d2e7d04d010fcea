//! `check`: every mistake of a configuration at once, or what is in effect.

use std::path::PathBuf;

use clap::Args;

use super::{DEFAULT_CONFIG, Exit, Failure, print};
use crate::config::{Config, SystemEnvironment};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  groupcache-proxy check --config conf/fleet.yaml --allow-unset\n\n\
                        Every mistake is one line: FILE:LINE:COLUMN: key: what is wrong, what was expected.")]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Accept variables that are not set and referenced files that are not there, as on a machine that is not the node's
    #[arg(long)]
    allow_unset: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let environment = SystemEnvironment { allow_unset: arguments.allow_unset };
    match Config::load(&arguments.config, &environment) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("{warning} (warning)");
            }
            print(&loaded.config.effective())?;
            Ok(Exit::Done)
        }
        Err(problems) => {
            eprintln!("{problems}");
            Ok(Exit::Bad)
        }
    }
}
