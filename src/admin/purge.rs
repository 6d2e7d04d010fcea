//! `POST purge`, and the method `PURGE` on the listeners for clients.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use crate::config::parse_duration as duration;
use crate::edge::endpoints::EndpointRequest;
use crate::group::Group;
use crate::purge::{Target, VALUE_BYTES_MAX};
use crate::purging::{PURGE_TIMEOUT_DEFAULT, PurgeRequest, Receipt};
use crate::semantics::target::{self, Authority};
use crate::server::node::Node;

/// A purge as it is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    group: Option<String>,
    #[serde(default, alias = "keys")]
    key: OneOrMany,
    #[serde(default, alias = "prefixes")]
    prefix: OneOrMany,
    #[serde(default, alias = "paths")]
    path: OneOrMany,
    #[serde(default, alias = "urls")]
    url: OneOrMany,
    #[serde(default, alias = "tags")]
    tag: OneOrMany,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    soft: bool,
    #[serde(default)]
    dry_run: bool,
    timeout: Option<Timeout>,
    #[serde(default)]
    accept_partial: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        OneOrMany::Many(Vec::new())
    }
}

impl OneOrMany {
    fn list(&self) -> &[String] {
        match self {
            OneOrMany::One(text) => std::slice::from_ref(text),
            OneOrMany::Many(texts) => texts,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Timeout {
    Seconds(f64),
    Text(String),
}

/// A purge that makes sense, and what its caller accepts.
pub(super) struct Wanted {
    pub request: PurgeRequest,
    /// Whether 207 may tell that not every member confirmed.
    pub accept_partial: bool,
}

/// Reads the body of `POST purge`.
///
/// # Errors
/// What is wrong with it, in one line.
pub(super) fn read(node: &Node, body: &[u8]) -> Result<Wanted, String> {
    let body: Body = serde_json::from_slice(body).map_err(|error| format!("the body is no purge: {error}"))?;
    let timeout = match &body.timeout {
        None => PURGE_TIMEOUT_DEFAULT,
        Some(Timeout::Seconds(seconds)) => Duration::try_from_secs_f64(*seconds)
            .map_err(|_| "timeout: expected seconds, or a duration such as 5s".to_owned())?,
        Some(Timeout::Text(text)) => {
            duration(text).map_err(|_| "timeout: expected seconds, or a duration such as 5s".to_owned())?
        }
    };
    let timeout = timeout.min(TIMEOUT_MAX);
    let groups = node.groups.load();
    let group = match &body.group {
        None => None,
        Some(name) => Some(groups.find(name).ok_or_else(|| format!("group: there is no group {name:?}"))?.clone()),
    };
    let in_group = |what: &str| group.as_ref().ok_or_else(|| format!("{what}: say in which group"));
    let kinds = [&body.key, &body.prefix, &body.path, &body.url, &body.tag];
    let kinds = kinds.iter().filter(|kind| !kind.list().is_empty()).count() + usize::from(body.all);
    if kinds != 1 {
        return Err("expected exactly one of key(s), prefix(es), path(s), url(s), tag(s) and all".to_owned());
    }
    let mut targets = Vec::new();
    for key in body.key.list() {
        let group = in_group("key")?;
        targets.push(Target::Key(group.name.clone(), group.keys.by_query_rule(key.as_bytes())));
    }
    for prefix in body.prefix.list() {
        targets.push(Target::Prefix(in_group("prefix")?.name.clone(), Bytes::copy_from_slice(prefix.as_bytes())));
    }
    for path in body.path.list() {
        let group = in_group("path")?;
        let path = path.split_once('?').map_or(&**path, |(path, _)| path);
        targets.push(Target::Path(group.name.clone(), Bytes::copy_from_slice(path.as_bytes())));
        // A path as clients write it means the same object.
        if let Ok((routed, key)) = route(node, path.as_bytes(), None)
            && routed.name == group.name
            && key != path.as_bytes()
        {
            targets.push(Target::Path(routed.name.clone(), key));
        }
    }
    for url in body.url.list() {
        let (group, key) = route(node, url.as_bytes(), None).map_err(|error| format!("url: {error}"))?;
        targets.push(Target::Key(group.name.clone(), key));
    }
    for tag in body.tag.list() {
        if tag.is_empty() || tag.contains('\n') {
            return Err("tag: expected a name".to_owned());
        }
        if tag.len() > VALUE_BYTES_MAX {
            return Err(format!("tag: longer than {VALUE_BYTES_MAX} bytes, which no tag is that is kept"));
        }
        targets
            .push(Target::Tag(group.as_ref().map(|group| group.name.clone()), Bytes::copy_from_slice(tag.as_bytes())));
    }
    if body.all {
        targets.push(Target::Group(in_group("all")?.name.clone()));
    }
    if targets.len() > TARGETS_MAX {
        return Err(format!("more than {TARGETS_MAX} targets in one purge"));
    }
    let request = PurgeRequest { targets, soft: body.soft, dry_run: body.dry_run, timeout };
    Ok(Wanted { request, accept_partial: body.accept_partial })
}

/// The purge of the object that a request with the method `PURGE` names.
///
/// # Errors
/// No group serves it.
pub(super) fn of_method(node: &Node, request: &EndpointRequest) -> Result<PurgeRequest, String> {
    let (group, key) = route(node, &request.target, Some(&request.host))?;
    let targets = vec![Target::Key(group.name.clone(), key)];
    Ok(PurgeRequest { targets, timeout: PURGE_TIMEOUT_DEFAULT, ..PurgeRequest::default() })
}

/// Group and key of a target or URL.
fn route(node: &Node, text: &[u8], host: Option<&[u8]>) -> Result<(Arc<Group>, Bytes), String> {
    let target = target::Target::parse(text).map_err(|error| error.to_string())?;
    let host = host.map(Authority::parse).transpose().map_err(|_| "a bad Host".to_owned())?;
    let authority = target.site.as_ref().map(|(_, authority)| authority).or(host.as_ref());
    let groups = node.groups.load();
    let mut key = Vec::new();
    let site = groups.sites.route(authority, target.path, target.query, &mut key);
    let site = site.map_err(|_| "no group serves it".to_owned())?;
    Ok((site.group.clone(), key.into()))
}

/// What the caller of a purge is told with which status.
pub(super) fn status(receipt: &Receipt, accept_partial: bool) -> u16 {
    match (receipt.complete, accept_partial) {
        (true, _) => 200,
        (false, true) => 207,
        (false, false) => 503,
    }
}

/// The most bytes that the body of a purge may have: what fits into one frame between peers.
pub(super) const BODY_BYTES_MAX: usize = 128 * 1024;
/// The most targets of one purge.
const TARGETS_MAX: usize = 1000;
/// Nobody is made to wait longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);
