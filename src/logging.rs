//! The log: to standard error, for people or as JSON, pingora's own lines included.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat, LogLevel};

/// Starts the log of this process; a second call changes nothing.
pub fn start(log: &Log) {
    let filter = filter(log.level);
    // Registering also takes over the records of the `log` crate, through which pingora speaks.
    let _ = match log.format {
        LogFormat::Text => {
            let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            tracing_subscriber::registry().with(filter).with(lines.with_ansi(colours)).try_init()
        }
        LogFormat::Json => {
            let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).json().flatten_event(true);
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
    };
}

fn filter(level: LogLevel) -> Targets {
    let own = level_filter(level);
    // Libraries tell of every connection at their info; what matters of it is said by us.
    let libraries = own.min(LevelFilter::WARN);
    Targets::new().with_default(libraries).with_target("groupcache_proxy", own)
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_are_quieter_than_we_are() {
        for (level, target, line, shown) in [
            (LogLevel::Info, "groupcache_proxy::server", Level::INFO, true),
            (LogLevel::Info, "pingora_core::server", Level::INFO, false),
            (LogLevel::Info, "pingora_core::server", Level::WARN, true),
            (LogLevel::Trace, "pingora_core::server", Level::INFO, false),
            (LogLevel::Trace, "groupcache_proxy::fill", Level::TRACE, true),
            (LogLevel::Error, "pingora_proxy", Level::WARN, false),
            (LogLevel::Error, "groupcache_proxy", Level::WARN, false),
        ] {
            assert_eq!(filter(level).would_enable(target, &line), shown, "{level:?} {target} {line}");
        }
    }
}
