//! Where the answers of a group come from: the keys `directory` and `origin`.

use std::path::PathBuf;
use std::time::Duration;

use super::super::section::{Checker, Section};
use super::super::units::duration_above_zero;
use super::super::values::{Balance, GroupSource, Health, Origin, Url};
use super::super::yaml::{Node, Value};
use super::group::Completeness;
use super::{text, tls};

const BALANCES: &[(&str, Balance)] = &[("round_robin", Balance::RoundRobin)];

/// Reads `directory` and `origin`, of which a group has one.
pub(super) fn source(checker: &mut Checker<'_>, section: &mut Section<'_>, completeness: Completeness) -> GroupSource {
    let directory_node = section.take("directory");
    let origin_node = section.take("origin");
    let directory = directory_node.map(|node| directory(checker, node));
    let origin = origin_node.map(|node| origin(checker, node, completeness));
    if let (Some(first), Some(second), Completeness::Whole) = (directory_node, origin_node, completeness) {
        let later = if first.position > second.position { first } else { second };
        checker.problem(later.position, &later.path, "found both directory and origin, expected exactly one of them");
    }
    match (directory, origin) {
        (_, Some(origin)) => GroupSource::Origin(origin),
        (Some(directory), None) => GroupSource::Directory(directory),
        (None, None) => {
            if completeness == Completeness::Whole {
                checker.missing(section, "origin", "the URL of an origin, or directory with the path of a folder");
            }
            GroupSource::Origin(empty_origin())
        }
    }
}

fn directory(checker: &mut Checker<'_>, node: &Node) -> PathBuf {
    let Some(written) = checker.read(node, text::not_empty("the path of a folder")) else { return PathBuf::new() };
    let path = checker.resolve(&written);
    if !checker.environment.is_folder(&path) {
        checker.unexpected_path(node, "a folder", &path, "no such folder");
    }
    path
}

/// Stands in for an origin that is missing or unreadable.
fn empty_origin() -> Origin {
    let url = Url { https: false, host: "unset.invalid".into(), port: 80, path: "/".into() };
    Origin {
        urls: vec![url],
        balance: Balance::RoundRobin,
        retries: 1,
        health: Health { path: None, every: Duration::from_secs(5) },
        resolve: Duration::from_secs(30),
        ca: None,
    }
}

fn origin(checker: &mut Checker<'_>, node: &Node, completeness: Completeness) -> Origin {
    let mut origin = empty_origin();
    if !matches!(node.value, Value::Map(_)) {
        urls(checker, node, &mut origin);
        return origin;
    }
    let mut section = checker.section(Some(node), node.path.clone(), node.position);
    let urls_known = match section.take("urls") {
        Some(node) => urls(checker, node, &mut origin),
        None => {
            if completeness == Completeness::Whole {
                checker.missing(&section, "urls", "an http:// or https:// URL, or a list of URLs");
            }
            false
        }
    };
    origin.balance = checker.leaf(&mut section, "balance", origin.balance, text::word(BALANCES));
    let retries = checker.leaf(&mut section, "retries", origin.retries.into(), text::number(0, 10));
    origin.retries = u32::try_from(retries).unwrap_or(origin.retries);
    {
        let mut section = checker.subsection(&mut section, "health");
        origin.health.path = checker.optional(&mut section, "path", text::target);
        origin.health.every = checker.leaf(&mut section, "every", origin.health.every, duration_above_zero);
        section.finish(checker);
    }
    origin.resolve = checker.leaf(&mut section, "resolve", origin.resolve, duration_above_zero);
    origin.ca = tls::authorities(checker, &mut section, "ca");
    if origin.ca.is_some() && urls_known && origin.urls.iter().all(|url| !url.https) {
        checker.warn(section.position, &section.path_of("ca"), "does nothing: no URL of the origin is https://");
    }
    section.finish(checker);
    origin
}

/// Puts the URLs into `origin`; `false` when none could be read.
fn urls(checker: &mut Checker<'_>, node: &Node, origin: &mut Origin) -> bool {
    let found = checker.one_or_list(node, "an http:// or https:// URL, or a list of URLs", text::origin_url);
    if matches!(&node.value, Value::List(list) if list.is_empty()) {
        checker.unexpected(node, "at least one URL");
    }
    let mut urls: Vec<Url> = Vec::new();
    for (node, url) in found {
        match urls.contains(&url) {
            true => checker.problem(node.position, &node.path, format!("{url} appears twice")),
            false => urls.push(url),
        }
    }
    let known = !urls.is_empty();
    if known {
        origin.urls = urls;
    }
    known
}
