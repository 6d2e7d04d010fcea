//! The sections `groups` and `defaults`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::section::{Checker, Section};
use super::super::units::{self, Amount, Expected, duration, duration_above_zero};
use super::super::values::{
    Cookies, Freshness, Group, GroupSource, HeaderEdit, HeaderEdits, HostPattern, IgnoredHeaders, Matching,
    NamePattern, OriginHost, OriginTimeouts, Pass, Query, Queue, RequestDirectives, RequestHeaders, SetCookie,
    Variants,
};
use super::super::yaml::{Entry, Node, Value};
use super::{origin, text};

const COOKIES: &[(&str, Cookies)] = &[("strip", Cookies::Strip), ("bypass", Cookies::Bypass)];
const SET_COOKIE: &[(&str, SetCookie)] =
    &[("private", SetCookie::Private), ("strip", SetCookie::Strip), ("share", SetCookie::Share)];
const DIRECTIVES: &[(&str, RequestDirectives)] =
    &[("ignore", RequestDirectives::Ignore), ("honour", RequestDirectives::Honour)];

/// Keys whose maps are one value: a group's replaces that of `defaults` whole.
const WHOLE_MAPS: [&str; 1] = ["query"];

/// Answers with these statuses mean the same for every client; others depend on the request that caused them, and one
/// client could fill the cache with errors for all.
const NEGATIVE_STATUSES: [u16; 4] = [403, 404, 410, 451];

/// Reads all groups, each completed by `defaults`, which is checked by itself as well.
pub(super) fn groups(
    checker: &mut Checker<'_>,
    section: &mut Section<'_>,
    defaults: Option<&Node>,
    memory_bytes: u64,
) -> Vec<Group> {
    if let Some(node) = defaults {
        group(checker, node, Completeness::Part, memory_bytes);
    }
    let expected = "a list of groups, such as [{ name: all, origin: \"http://127.0.0.1:9000\" }]";
    let Some(node) = section.take("groups") else {
        checker.missing(section, "groups", expected);
        return Vec::new();
    };
    let Value::List(list) = &node.value else {
        checker.unexpected(node, expected);
        return Vec::new();
    };
    if list.is_empty() {
        checker.unexpected(node, "at least one group");
    }
    let mut groups: Vec<Group> = Vec::new();
    for element in list {
        let merged = defaults.map_or_else(|| element.clone(), |defaults| inherit(element, defaults));
        let group = group(checker, &merged, Completeness::Whole, memory_bytes);
        differs(checker, &merged, &group, &groups);
        groups.push(group);
    }
    groups
}

/// Whether what every group needs must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Completeness {
    /// A group.
    Whole,
    /// `defaults`.
    Part,
}

/// Reports a name or a match that an earlier group has. What could not be read has a stand-in, which says nothing.
fn differs(checker: &mut Checker<'_>, node: &Node, group: &Group, earlier: &[Group]) {
    if !group.name.is_empty() && earlier.iter().any(|other| other.name == group.name) {
        let place = entry(node, "name").map_or(node, |entry| &entry.node);
        checker.problem(place.position, &place.path, format!("another group is named {:?} already", group.name));
    }
    let hosts = |group: &Group| match group.matching.hosts.as_slice() {
        [] => vec![None],
        hosts => hosts.iter().cloned().map(Some).collect::<Vec<_>>(),
    };
    let same = |other: &&Group| {
        let same_path = other.matching.path == group.matching.path && !group.matching.path.is_empty();
        same_path && hosts(other).iter().any(|host| hosts(group).contains(host))
    };
    if let Some(other) = earlier.iter().find(same) {
        let place = entry(node, "match").map_or(node, |entry| &entry.node);
        let message = format!("the group {:?} matches the same path and host already", other.name);
        checker.problem(place.position, &format!("{}.match", node.path), message);
    }
}

fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Entry> {
    match &node.value {
        Value::Map(map) => map.iter().find(|entry| entry.key == key),
        _ => None,
    }
}

/// The group with what it does not say itself taken from `defaults`, key by key, in maps within maps too.
fn inherit(group: &Node, defaults: &Node) -> Node {
    let mut merged = merge(group, defaults);
    // A group that names its source overrides the other kind of source.
    for (own, other) in [("directory", "origin"), ("origin", "directory")] {
        if entry(group, own).is_some()
            && entry(group, other).is_none()
            && let Value::Map(map) = &mut merged.value
        {
            map.retain(|entry| entry.key != other);
        }
    }
    merged
}

fn merge(own: &Node, defaults: &Node) -> Node {
    let (Value::Map(own_map), Value::Map(default_map)) = (&own.value, &defaults.value) else { return own.clone() };
    let mut map = own_map.clone();
    for inherited in default_map {
        match map.iter_mut().find(|entry| entry.key == inherited.key) {
            None => map.push(inherited.clone()),
            Some(entry) if WHOLE_MAPS.contains(&entry.key.as_str()) => {}
            Some(entry) => {
                if entry.key == "origin" && matches!(inherited.node.value, Value::Map(_)) {
                    long_form(&mut entry.node);
                }
                entry.node = merge(&entry.node, &inherited.node);
            }
        }
    }
    Node { position: own.position, path: own.path.clone(), value: Value::Map(map) }
}

/// Writes the origin `URL` as `{ urls: URL }`, so that it can inherit the other keys.
fn long_form(origin: &mut Node) {
    if matches!(origin.value, Value::Scalar(_) | Value::List(_)) {
        let urls = Entry { key: "urls".into(), key_position: origin.position, node: origin.clone() };
        origin.value = Value::Map(vec![urls]);
    }
}

fn group(checker: &mut Checker<'_>, node: &Node, completeness: Completeness, node_memory_bytes: u64) -> Group {
    let mut section = checker.section(Some(node), node.path.clone(), node.position);
    let name_node = section.take("name");
    if name_node.is_none() && completeness == Completeness::Whole {
        checker.missing(&section, "name", "a name of letters, digits, - and _");
    }
    let name = name_node.and_then(|node| checker.read(node, text::group_name)).unwrap_or_default();
    let matching = matching(checker, &mut section);
    let cache = checker.leaf(&mut section, "cache", true, text::boolean);
    let source = origin::source(checker, &mut section, completeness);
    let origin_host = checker.leaf(&mut section, "origin_host", OriginHost::Origin, |text| match text {
        "origin" => Ok(OriginHost::Origin),
        "client" => Ok(OriginHost::Client),
        name => text::host_header(name).map(OriginHost::Name),
    });
    let key_prefix = checker.leaf(&mut section, "key", String::new(), text::key_prefix);
    let query = query(checker, &mut section);
    let request_headers = request_headers(checker, &mut section);
    let request_directives =
        checker.leaf(&mut section, "request_directives", RequestDirectives::Ignore, text::word(DIRECTIVES));
    let cookies = checker.leaf(&mut section, "cookies", Cookies::Strip, text::word(COOKIES));
    let set_cookie = checker.leaf(&mut section, "set_cookie", SetCookie::Private, text::word(SET_COOKIE));
    let headers = headers(checker, &mut section);
    let variants = variants(checker, &mut section);
    let pass = pass(checker, &mut section, matches!(source, GroupSource::Directory(_)));
    let memory = checker.leaf(&mut section, "memory", Amount::Percent(100.0), units::amount);
    let memory_bytes = memory.of(node_memory_bytes).min(node_memory_bytes);
    let max_object_node = section.take("max_object");
    let max_object_bytes = max_object_node.and_then(|node| checker.read(node, units::size)).unwrap_or(32 << 20);
    if let Some(node) = max_object_node
        && max_object_bytes > memory_bytes
    {
        let message = format!("is more than the memory of the group ({})", units::show_size(memory_bytes));
        checker.warn(node.position, &node.path, message);
    }
    let max_concurrency = max_concurrency(checker, &mut section, &source);
    let queue = queue(checker, &mut section);
    let timeouts = timeouts(checker, &mut section);
    let freshness = freshness(checker, &mut section);
    section.finish(checker);
    Group {
        name,
        matching,
        cache,
        source,
        origin_host,
        key_prefix,
        query,
        request_headers,
        request_directives,
        cookies,
        set_cookie,
        headers,
        variants,
        pass,
        memory,
        memory_bytes,
        max_object_bytes,
        max_concurrency,
        queue,
        timeouts,
        freshness,
    }
}

/// The path is empty where the match could not be read.
fn matching(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Matching {
    let mut section = checker.subsection(section, "match");
    let path_node = section.take("path");
    let mut path = match path_node {
        None => "/".to_owned(),
        Some(node) => checker.read(node, text::path_prefix).unwrap_or_default(),
    };
    if let Some(node) = path_node
        && path.starts_with("/_groupcache/")
    {
        checker.unexpected(node, "another path: what begins with /_groupcache/ never belongs to a group");
    }
    let mut hosts: Vec<HostPattern> = Vec::new();
    if let Some(node) = section.take("host") {
        let expected = "a host such as example.com, *.example.com, or a list of hosts";
        let found = checker.one_or_list(node, expected, text::host_pattern);
        if matches!(&node.value, Value::List(list) if list.is_empty()) {
            checker.unexpected(node, "at least one host; without this key every host matches");
        }
        for (node, host) in found {
            match hosts.contains(&host) {
                true => checker.problem(node.position, &node.path, format!("{} appears twice", node.shown())),
                false => hosts.push(host),
            }
        }
    }
    if hosts.is_empty() && section.has("host") {
        path.clear();
    }
    section.finish(checker);
    Matching { path, hosts }
}

fn query(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Query {
    let expected = "keep, drop, sort, { only: [NAME, ...] } or { except: [NAME, ...] }";
    let Some(node) = section.take("query") else { return Query::Keep };
    if !matches!(node.value, Value::Map(_)) {
        let read = |text: &str| match text {
            "keep" => Ok(Query::Keep),
            "drop" => Ok(Query::Drop),
            "sort" => Ok(Query::Sort),
            _ => Err(expected.into()),
        };
        return checker.read(node, read).unwrap_or(Query::Keep);
    }
    let mut section = checker.section(Some(node), node.path.clone(), node.position);
    let (has_only, has_except) = (section.has("only"), section.has("except"));
    let only: Vec<NamePattern> = checker.list(&mut section, "only", Vec::new(), text::parameter);
    let except: Vec<NamePattern> = checker.list(&mut section, "except", Vec::new(), text::parameter);
    section.finish(checker);
    match (has_only, has_except) {
        (true, false) => Query::Only(only),
        (false, true) => Query::Except(except),
        _ => {
            checker.unexpected(node, expected);
            Query::Keep
        }
    }
}

fn request_headers(checker: &mut Checker<'_>, section: &mut Section<'_>) -> RequestHeaders {
    let expected = "safe, all, or a list of headers besides the safe ones";
    let Some(node) = section.take("request_headers") else { return RequestHeaders::Safe };
    if let Value::List(list) = &node.value {
        let read = |text: &str| match text::free_header_name(text)?.to_ascii_lowercase() {
            name if name == "cookie" => Err(Expected::from("another header; see the key cookies")),
            name => Ok(name),
        };
        return RequestHeaders::SafeAnd(list.iter().filter_map(|element| checker.read(element, read)).collect());
    }
    let read = |text: &str| match text {
        "safe" => Ok(RequestHeaders::Safe),
        "all" => Ok(RequestHeaders::All),
        _ => Err(expected.into()),
    };
    checker.read(node, read).unwrap_or(RequestHeaders::Safe)
}

fn headers(checker: &mut Checker<'_>, section: &mut Section<'_>) -> HeaderEdits {
    let mut section = checker.subsection(section, "headers");
    let edits = HeaderEdits {
        to_origin: header_edits(checker, section.take("to_origin")),
        to_client: header_edits(checker, section.take("to_client")),
    };
    section.finish(checker);
    edits
}

fn header_edits(checker: &mut Checker<'_>, node: Option<&Node>) -> Vec<HeaderEdit> {
    let Some(node) = node else { return Vec::new() };
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        Value::Null => &[],
        Value::Scalar(_) | Value::List(_) => {
            checker.unexpected(node, "a map of headers: NAME: value sets, NAME: null removes");
            &[]
        }
    };
    let mut edits: Vec<HeaderEdit> = Vec::new();
    for entry in entries {
        let name = match text::free_header_name(&entry.key) {
            Ok(name) => name,
            Err(expected) => {
                let message = format!("found {:?}, expected {expected}", entry.key);
                checker.problem(entry.key_position, &entry.node.path, message);
                continue;
            }
        };
        if edits.iter().any(|edit| edit.name.eq_ignore_ascii_case(&name)) {
            let message = "appears twice: the names of headers do not depend on small and capital letters";
            checker.problem(entry.key_position, &entry.node.path, message);
            continue;
        }
        let value = match entry.node.value {
            Value::Null => None,
            _ => match checker.read(&entry.node, text::header_value) {
                Some(value) => Some(value),
                None => continue,
            },
        };
        edits.push(HeaderEdit { name, value });
    }
    edits
}

fn variants(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Variants {
    let mut section = checker.subsection(section, "variants");
    let max = checker.leaf(&mut section, "max", 32, text::number(1, 1024));
    let accept = vec!["image/avif".to_owned(), "image/webp".to_owned()];
    let accept_encoding = vec!["br".to_owned(), "gzip".to_owned()];
    let variants = Variants {
        max: u32::try_from(max).unwrap_or(32),
        accept: checker.list(&mut section, "accept", accept, text::media_type),
        accept_encoding: checker.list(&mut section, "accept_encoding", accept_encoding, text::coding),
    };
    section.finish(checker);
    variants
}

fn pass(checker: &mut Checker<'_>, section: &mut Section<'_>, is_directory: bool) -> Pass {
    let expected = "all, none, or a list of methods such as [POST, PUT]";
    let otherwise = if is_directory { Pass::Only(Vec::new()) } else { Pass::All };
    let Some(node) = section.take("pass") else { return otherwise };
    let pass = match &node.value {
        Value::List(list) => {
            Pass::Only(list.iter().filter_map(|element| checker.read(element, text::method)).collect())
        }
        _ => {
            let read = |text: &str| match text {
                "all" => Ok(Pass::All),
                "none" => Ok(Pass::Only(Vec::new())),
                _ => Err(expected.into()),
            };
            checker.read(node, read).unwrap_or(otherwise.clone())
        }
    };
    if is_directory && pass != otherwise {
        // What `defaults` says is meant for the groups with an origin.
        if node.path == section.path_of("pass") {
            checker.unexpected(node, "none: a directory answers GET and HEAD only");
        }
        return otherwise;
    }
    pass
}

fn max_concurrency(checker: &mut Checker<'_>, section: &mut Section<'_>, source: &GroupSource) -> Option<u32> {
    let node = section.take("max_concurrency")?;
    let most = checker.read(node, text::number(0, 1_000_000)).and_then(|most| u32::try_from(most).ok());
    let most = most.filter(|most| *most > 0)?;
    if let GroupSource::Directory(_) = source {
        // What `defaults` says is meant for the groups with an origin.
        if node.path == section.path_of("max_concurrency") {
            checker.warn(node.position, &node.path, "does nothing for a directory");
        }
        return None;
    }
    Some(most)
}

fn queue(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Queue {
    let mut section = checker.subsection(section, "queue");
    let length = checker.leaf(&mut section, "length", 1000, text::number(0, 100_000));
    let timeout = checker.leaf(&mut section, "timeout", Duration::from_secs(10), duration);
    section.finish(checker);
    Queue { length: u32::try_from(length).unwrap_or(1000), timeout }
}

fn timeouts(checker: &mut Checker<'_>, section: &mut Section<'_>) -> OriginTimeouts {
    let mut section = checker.subsection(section, "timeouts");
    let mut leaf = |key, seconds| checker.leaf(&mut section, key, Duration::from_secs(seconds), duration_above_zero);
    let timeouts = OriginTimeouts {
        connect: leaf("connect", 1),
        first_byte: leaf("first_byte", 15),
        between_bytes: leaf("between_bytes", 10),
        total: leaf("total", 300),
    };
    section.finish(checker);
    timeouts
}

fn freshness(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Freshness {
    let mut section = checker.subsection(section, "freshness");
    let ignore = {
        let words = text::word(&[("cache-control", 0), ("expires", 1), ("vary", 2)]);
        let found = checker.list(&mut section, "ignore", Vec::new(), words);
        IgnoredHeaders { cache_control: found.contains(&0), expires: found.contains(&1), vary: found.contains(&2) }
    };
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    let default_node = section.take("default");
    let default = default_node.and_then(|node| checker.read(node, duration)).unwrap_or(Duration::ZERO);
    let heuristic_max = checker.leaf(&mut section, "heuristic_max", DAY, duration);
    let max = checker.leaf(&mut section, "max", 365 * DAY, duration);
    if let Some(node) = default_node
        && default > max
    {
        let message = format!("is more than freshness.max ({}), which counts", units::show_duration(max));
        checker.warn(node.position, &node.path, message);
    }
    let negative = negative(checker, section.take("negative"));
    let errors = checker.leaf(&mut section, "errors", Duration::from_secs(1), duration);
    let jitter_percent = checker.leaf(&mut section, "jitter", 5.0, units::percent);
    let stale_while_revalidate = checker.leaf(&mut section, "stale_while_revalidate", Duration::ZERO, duration);
    let stale_if_error = checker.leaf(&mut section, "stale_if_error", HOUR, duration);
    let slow_node = section.take("stale_if_slow");
    let stale_if_slow = slow_node.and_then(|node| checker.read(node, duration)).filter(|slow| !slow.is_zero());
    if let (Some(node), Some(_), true) = (slow_node, stale_if_slow, stale_if_error.is_zero()) {
        checker.warn(node.position, &node.path, "does nothing while stale_if_error is 0s");
    }
    section.finish(checker);
    Freshness {
        ignore,
        default,
        heuristic_max,
        max,
        negative,
        errors,
        jitter_percent,
        stale_while_revalidate,
        stale_if_error,
        stale_if_slow,
    }
}

/// A map that is written replaces the built-in one: `{}` switches it off.
fn negative(checker: &mut Checker<'_>, node: Option<&Node>) -> BTreeMap<u16, Duration> {
    let five_seconds = Duration::from_secs(5);
    let Some(node) = node else { return [(404, five_seconds), (410, five_seconds)].into() };
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        _ => {
            checker.unexpected(node, "a map of statuses and durations, such as { 404: 5s, 410: 5s }");
            &[]
        }
    };
    let mut negative = BTreeMap::new();
    for entry in entries {
        let status = entry.key.parse().ok().filter(|status| NEGATIVE_STATUSES.contains(status));
        let time = checker.read(&entry.node, duration);
        match (status, time) {
            (Some(status), Some(time)) => {
                negative.insert(status, time);
            }
            (None, _) => {
                let statuses = NEGATIVE_STATUSES.map(|status| status.to_string());
                let statuses = text::one_of(&statuses.each_ref().map(String::as_str));
                let message = format!("found the status {:?}, expected {statuses}", entry.key);
                checker.problem(entry.key_position, &entry.node.path, message);
            }
            (Some(_), None) => {}
        }
    }
    negative
}
