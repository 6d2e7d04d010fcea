//! `purge`: makes entries disappear from all nodes of a fleet.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::client::post;
use super::{Exit, Failure, NodeArguments, print};
use crate::config::parse_duration;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  groupcache-proxy purge http://127.0.0.1:8080/thumbnails/dawn.png\n  \
                        groupcache-proxy purge --group thumbnails --prefix 2026/ --dry-run\n  \
                        groupcache-proxy purge --tag article-17 --soft\n\n\
                        Exit code 0: every member of the fleet confirmed, or cannot answer from memory (fleet.partition: strict).\n\
                        3: some did not confirm yet; they are told until they do.")]
pub(super) struct Arguments {
    /// URLs (or, with --group, keys) of single objects
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// The group of keys, prefixes, paths and tags
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// All keys that begin with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<String>,
    /// Whatever the origin gave this tag
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// A path with all its queries
    #[arg(long, value_name = "PATH")]
    path: Vec<String>,
    /// Everything in the group
    #[arg(long)]
    all: bool,
    /// What matches only becomes stale
    #[arg(long)]
    soft: bool,
    /// Only count what matches
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for the members
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = timeout)]
    timeout: Duration,
    /// The receipt as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let question = question(arguments)?;
    // A URL names a node, too: the last resort when nothing else does.
    let url = arguments.targets.iter().find(|target| target.contains("://"));
    let node = match (arguments.node.find(None), url) {
        (Err(_), Some(url)) => arguments.node.find(Some(url))?,
        (found, _) => found?,
    };
    let token = arguments.node.token()?;
    let reply = post(&node, "/_groupcache/purge", &question.to_string(), token.as_deref(), arguments.timeout)?;
    let text = String::from_utf8_lossy(&reply.body);
    let receipt: Option<Value> = serde_json::from_str(&text).ok();
    let exit = match reply.status {
        200 => Exit::Done,
        207 | 503 if receipt.as_ref().is_some_and(|receipt| receipt["nodes"].is_array()) => Exit::Partly,
        400 | 413 => return Err(Failure::bad(text.trim())),
        status => return Err(Failure::unable(format!("{node} answers {status}: {}", text.trim()))),
    };
    match receipt {
        Some(receipt) if !arguments.json => print(&lines(&receipt, arguments.dry_run))?,
        _ => print(&format!("{}\n", text.trim_end()))?,
    }
    Ok(exit)
}

fn timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|expected| format!("expected {expected}"))
}

/// The body of the question.
fn question(arguments: &Arguments) -> Result<Value, Failure> {
    let Arguments { targets, group, prefix, tag, path, all, soft, dry_run, timeout, .. } = arguments;
    let kinds = [targets, prefix, tag, path].iter().filter(|kind| !kind.is_empty()).count() + usize::from(*all);
    if kinds == 0 {
        return Err(Failure::bad("purge what? Give URLs, or one of --prefix, --tag, --path and --all"));
    }
    if kinds > 1 {
        return Err(Failure::bad(
            "one kind of target at a time: URLs, --prefix, --tag, --path or --all; the node is named with --node",
        ));
    }
    let mut question = Map::new();
    let mut add = |name: &str, value: Value| question.insert(name.to_owned(), value);
    let are_urls = targets.iter().all(|target| target.contains("://") || target.starts_with('/'));
    match group {
        Some(group) => drop(add("group", json!(group))),
        None if targets.is_empty() && tag.is_empty() => return Err(Failure::bad("in which group? Give --group")),
        None if !are_urls => {
            return Err(Failure::bad("a target is a URL such as http://host/path or /path, or a key with --group"));
        }
        None => {}
    }
    let is_key = group.is_some() && !targets.iter().any(|target| target.contains("://"));
    for (name, values) in
        [(if is_key { "keys" } else { "urls" }, targets), ("prefixes", prefix), ("tags", tag), ("paths", path)]
    {
        if !values.is_empty() {
            add(name, json!(values));
        }
    }
    for (name, value) in [("all", *all), ("soft", *soft), ("dry_run", *dry_run)] {
        if value {
            add(name, json!(true));
        }
    }
    add("timeout", json!(timeout.as_secs_f64()));
    Ok(Value::Object(question))
}

/// What all did, then each member.
fn lines(receipt: &Value, dry_run: bool) -> String {
    let said = if dry_run { "would go" } else { "purged" };
    let mut text = format!("{} entries {said}, number {}\n", receipt["entries"], receipt["sequence"]);
    for node in receipt["nodes"].as_array().into_iter().flatten() {
        let word = |name: &str| node[name].as_str().unwrap_or("-").replace(char::is_control, "");
        text.push_str(&format!(
            "  {:<32} {:<12} {:>8} entries {:>6} ms\n",
            word("url"),
            word("state"),
            node["entries"],
            node["milliseconds"]
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_node_that_is_given_as_a_target_is_told_from_no_target() {
        for (line, expected) in
            [("", "purge what?"), ("http://127.0.0.1:8080 --tag t", "--node"), ("/a --all", "--node")]
        {
            let line = Line::try_parse_from(std::iter::once("purge").chain(line.split_whitespace())).unwrap();
            let failure = question(&line.arguments).unwrap_err().message;
            assert!(failure.contains(expected), "{failure}");
        }
    }

    #[test]
    fn what_is_typed_is_what_is_asked() {
        for (line, expected) in [
            ("http://h/a", Ok(r#"{"timeout":5.0,"urls":["http://h/a"]}"#)),
            ("/a /b --soft", Ok(r#"{"soft":true,"timeout":5.0,"urls":["/a","/b"]}"#)),
            ("a --group g", Ok(r#"{"group":"g","keys":["a"],"timeout":5.0}"#)),
            ("--group g --prefix a/", Ok(r#"{"group":"g","prefixes":["a/"],"timeout":5.0}"#)),
            ("--group g --path a --dry-run", Ok(r#"{"dry_run":true,"group":"g","paths":["a"],"timeout":5.0}"#)),
            ("--tag t --timeout 2s", Ok(r#"{"tags":["t"],"timeout":2.0}"#)),
            ("--group g --all", Ok(r#"{"all":true,"group":"g","timeout":5.0}"#)),
            ("--prefix a", Err(())),
            ("--all", Err(())),
            ("a", Err(())),
            ("", Err(())),
            ("/a --tag t", Err(())),
        ] {
            let line = Line::try_parse_from(std::iter::once("purge").chain(line.split_whitespace())).unwrap();
            let asked = question(&line.arguments).map(|question| question.to_string()).map_err(|_| ());
            assert_eq!(asked, expected.map(str::to_owned), "{line:?}");
        }
    }
}
