//! `explain`: what a node knows of a URL.

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::client::get;
use super::{Exit, Failure, NodeArguments, print};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  groupcache-proxy explain /thumbnails/dawn.png\n  \
                        groupcache-proxy explain http://127.0.0.1:8080/thumbnails/dawn.png -H 'Accept-Encoding: br'\n\n\
                        Nothing is fetched: the answer is what the node has and would do.")]
pub(super) struct Arguments {
    /// The URL, or its path and query
    #[arg(value_name = "URL")]
    url: String,
    /// A header of the request; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The JSON as the node sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let question = question(&arguments.url, &arguments.headers)?;
    // A URL names a node, too: the last resort when nothing else does.
    let node = match arguments.node.find(None) {
        Err(_) if arguments.url.contains("://") => arguments.node.find(Some(&arguments.url))?,
        found => found?,
    };
    let reply = get(&node, &question, arguments.node.token()?.as_deref())?;
    let text = String::from_utf8_lossy(&reply.body);
    match reply.status {
        200 if arguments.json => print(&format!("{}\n", text.trim_end()))?,
        200 => {
            let facts = serde_json::from_str(&text)
                .map_err(|error| Failure::unable(format!("{node} sends no explanation: {error}")))?;
            print(&lines(&facts))?;
        }
        400 => return Err(Failure::bad(text.trim())),
        status => return Err(Failure::unable(format!("{node} answers {status}: {}", text.trim()))),
    }
    Ok(Exit::Done)
}

/// The target of the question to the node.
fn question(url: &str, headers: &[String]) -> Result<String, Failure> {
    let (host, path) = match url.split_once("://") {
        Some((_, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (Some(authority), if path.is_empty() { "/" } else { path })
        }
        None if url.starts_with('/') => (None, url),
        None => return Err(Failure::bad(format!("{url:?} is not a URL, expected http://host/path or /path"))),
    };
    let mut question = format!("/_groupcache/explain?path={}", encoded(path));
    let host = host.map(|host| format!("Host: {host}"));
    for header in host.iter().chain(headers) {
        if !header.contains(':') {
            return Err(Failure::bad(format!("{header:?} is not a header, expected 'Name: value'")));
        }
        question.push_str("&header=");
        question.push_str(&encoded(header));
    }
    Ok(question)
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, KEPT_OUT).to_string()
}

/// What is encoded in a value of our query: everything but what RFC 3986 section 2.3 calls unreserved, and the slash.
const KEPT_OUT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// One fact per line, in the node's order.
fn lines(facts: &Value) -> String {
    let Some(facts) = facts.as_object() else { return format!("{facts}\n") };
    let mut text = String::new();
    // Where nobody keeps leases there is nothing to tell.
    let is_told = |name: &&&str| **name != "lease" || !facts.get("lease").is_none_or(Value::is_null);
    for name in FACTS.iter().filter(is_told) {
        let value = match facts.get(*name) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.chars().filter(|c| !c.is_control()).collect(),
            Some(other) => other.to_string(),
        };
        let unit = if matches!(*name, "age" | "ttl") && value != "-" { " s" } else { "" };
        text.push_str(&format!("{:<13} {value}{unit}\n", name.replace('_', " ")));
    }
    text
}

const FACTS: &[&str] = &[
    "group",
    "key",
    "variant",
    "owner",
    "acting_owner",
    "stored",
    "age",
    "ttl",
    "stale_until",
    "tags",
    "origin_url",
    "lease",
    "reason",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_carries_the_target_byte_for_byte() {
        for (url, headers, expected) in [
            ("/a%20b?x=1&y", vec![], Some("/_groupcache/explain?path=/a%2520b%3Fx%3D1%26y")),
            (
                "http://h:1/a",
                vec!["Accept: b"],
                Some("/_groupcache/explain?path=/a&header=Host%3A%20h%3A1&header=Accept%3A%20b"),
            ),
            ("http://h", vec![], Some("/_groupcache/explain?path=/&header=Host%3A%20h")),
            ("a", vec![], None),
            ("/a", vec!["nonsense"], None),
        ] {
            let headers: Vec<String> = headers.into_iter().map(str::to_owned).collect();
            assert_eq!(question(url, &headers).ok().as_deref(), expected, "{url}");
        }
    }
}
