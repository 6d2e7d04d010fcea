//! `drain` and `reload`: what signals do, told to a running node.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::post;
use super::{Exit, Failure, NodeArguments, print};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  groupcache-proxy drain                               the node of conf/proxy.yaml\n  \
                        groupcache-proxy drain http://127.0.0.1:8081 --undo\n\n\
                        The node says that it is not ready, peers ask others, and those take over what it has in memory. It \
                        goes on answering until it is told to stay (--undo) or to end (SIGTERM)."
)]
pub(super) struct DrainArguments {
    /// URL of the node
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// The node stays after all
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  groupcache-proxy reload\n  groupcache-proxy reload http://127.0.0.1:8081\n\n\
                        As SIGHUP, but what is wrong with the file is told here.")]
pub(super) struct ReloadArguments {
    /// URL of the node
    #[arg(value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn drain(arguments: &DrainArguments) -> Result<Exit, Failure> {
    let node = arguments.node.find(arguments.url.as_deref())?;
    let body = if arguments.undo { "{\"undo\": true}" } else { "{}" };
    let reply = post(&node, "/_groupcache/drain", body, arguments.node.token()?.as_deref(), Duration::ZERO)?;
    let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let state = answer["state"].as_str().unwrap_or("unknown").to_owned();
    match reply.status {
        200 => {
            print(&format!("{node} is {state}\n"))?;
            Ok(Exit::Done)
        }
        409 => Err(Failure::unable(format!("{node} is {state} and cannot stay"))),
        status => Err(Failure::unable(format!("{node} answers {status}"))),
    }
}

pub(super) fn reload(arguments: &ReloadArguments) -> Result<Exit, Failure> {
    let node = arguments.node.find(arguments.url.as_deref())?;
    let reply = post(&node, "/_groupcache/reload", "{}", arguments.node.token()?.as_deref(), Duration::ZERO)?;
    match reply.status {
        200 => {
            let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let keys = answer["needs_restart"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let keys: Vec<&str> = keys.collect();
            print(&match keys[..] {
                [] => format!("{node} has read its configuration again\n"),
                _ => {
                    format!("{node} has read its configuration again; these keys need a restart: {}\n", keys.join(", "))
                }
            })?;
            Ok(Exit::Done)
        }
        400 => Err(Failure::bad(String::from_utf8_lossy(&reply.body).trim())),
        status => Err(Failure::unable(format!("{node} answers {status}"))),
    }
}
