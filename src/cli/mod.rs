//! The commands, their arguments and their exit codes.

mod act;
mod check;
mod client;
mod demo;
mod explain;
mod init;
mod purge;
mod run;
mod stats;

use std::fmt::Display;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

/// How a command ended; the numbers are a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// Bad usage, input or configuration.
    Bad = 1,
    /// Could not run or was not reached: an address in use, no permission, 401, 403.
    Unable = 2,
    /// Partly done: some members of the fleet have not confirmed.
    Partly = 3,
}

/// Why a command did not do what it was asked: one line that says what to do.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn bad(message: impl Display) -> Self {
        Failure { exit: Exit::Bad, message: message.to_string() }
    }

    fn unable(message: impl Display) -> Self {
        Failure { exit: Exit::Unable, message: message.to_string() }
    }
}

/// A caching reverse proxy whose nodes share one deduplicated cache.
#[derive(Debug, Parser)]
#[command(
    name = "groupcache-proxy",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Examples:\n  groupcache-proxy demo                                   a fleet of three on this machine\n  \
                  groupcache-proxy run --origin http://127.0.0.1:9000     a node in front of a server\n  \
                  groupcache-proxy                                        a node as conf/proxy.yaml says"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Arguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node (what happens without a command, too).
    Run(run::Arguments),
    /// Check a configuration and print what is in effect.
    Check(check::Arguments),
    /// Start a fleet on this machine with a sample origin.
    Demo(demo::Arguments),
    /// Write a commented configuration.
    Init(init::Arguments),
    /// Show the statistics of a node.
    Stats(stats::Arguments),
    /// Tell what a node knows of a URL, without fetching it.
    Explain(explain::Arguments),
    /// Make entries disappear from all nodes.
    Purge(purge::Arguments),
    /// Let a node read its configuration again.
    Reload(act::ReloadArguments),
    /// Let a node leave its fleet, or stay after all.
    Drain(act::DrainArguments),
}

/// Which node a command speaks to, and as whom.
#[derive(Clone, Debug, Args)]
struct NodeArguments {
    /// URL of the node; otherwise GROUPCACHE_URL, otherwise admin.address of the configuration
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    /// File with the token; otherwise GROUPCACHE_ADMIN_TOKEN or GROUPCACHE_READ_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// Configuration that names the node
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: std::path::PathBuf,
}

/// Where the configuration is looked for.
const DEFAULT_CONFIG: &str = "conf/proxy.yaml";

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let ended = match cli.command {
        None => run::run(&cli.run),
        Some(Command::Run(arguments)) => run::run(&arguments),
        Some(Command::Check(arguments)) => check::run(&arguments),
        Some(Command::Demo(arguments)) => demo::run(&arguments),
        Some(Command::Init(arguments)) => init::run(&arguments),
        Some(Command::Stats(arguments)) => stats::run(&arguments),
        Some(Command::Explain(arguments)) => explain::run(&arguments),
        Some(Command::Purge(arguments)) => purge::run(&arguments),
        Some(Command::Reload(arguments)) => act::reload(&arguments),
        Some(Command::Drain(arguments)) => act::drain(&arguments),
    };
    match ended {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            eprintln!("groupcache-proxy: {}", failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Help goes to standard output; anything else is one line on standard error.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let wrong: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let wrong = wrong.join(" ");
    eprintln!("groupcache-proxy: {} (see groupcache-proxy --help)", wrong.trim_start_matches("error: "));
    ExitCode::from(Exit::Bad as u8)
}

/// Prints to standard output; a reader that went away ends the program quietly, as `| head` expects.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(Exit::Done as i32),
        other => other.map_err(|error| Failure::unable(format!("standard output: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent_and_every_help_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        assert!(command.render_long_help().to_string().contains("Example"));
        for sub in command.get_subcommands_mut() {
            let help = sub.render_long_help().to_string();
            assert!(help.contains("Example"), "{}: {help}", sub.get_name());
        }
    }

    #[test]
    fn the_default_command_is_run() {
        for (line, config, origin) in [
            ("groupcache-proxy", DEFAULT_CONFIG, None),
            ("groupcache-proxy run", DEFAULT_CONFIG, None),
            ("groupcache-proxy --config other.yaml", "other.yaml", None),
            ("groupcache-proxy run --origin pictures --listen :8080 --ttl 60s", DEFAULT_CONFIG, Some("pictures")),
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let arguments = match cli.command {
                Some(Command::Run(arguments)) => arguments,
                None => cli.run,
                other => panic!("{other:?}"),
            };
            assert_eq!(arguments.config, std::path::Path::new(config), "{line}");
            assert_eq!(arguments.origin.as_deref(), origin, "{line}");
        }
        for wrong in
            ["groupcache-proxy run --listen :1", "groupcache-proxy run --origin a --watch", "groupcache-proxy x"]
        {
            assert!(Cli::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
    }
}
