//! What this node knows of a target and would do with a request for it. Looks, and touches nothing: no counter moves, no
//! entry is used, nothing is fetched.

use percent_encoding::percent_decode;
use serde::Serialize;

use crate::clock::Now;
use crate::config::GroupSource;
use crate::fields::{Fields, FieldsBuilder};
use crate::freshness::Verdict;
use crate::group::Group;
use crate::key::HashedKey;
use crate::peer::go::go_key;
use crate::purge::lease::Standing;
use crate::remembered::Memory;
use crate::semantics::forward::Credentials;
use crate::semantics::target::{Authority, Target};
use crate::server::members::Members;
use crate::server::node::Node;
use crate::store::Role;

use super::stats::{lease_state, rfc3339};

/// `GET explain`.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    group: String,
    key: String,
    /// What tells the variant from others of the key; empty while nothing is known to vary.
    variant: String,
    /// By the ring, whatever its health.
    owner: String,
    /// Who is asked now.
    acting_owner: String,
    /// `main`, `hot`, or nothing.
    stored: Option<&'static str>,
    /// In seconds.
    age: Option<u64>,
    /// In seconds; negative when stale.
    ttl: Option<i64>,
    /// Until when the entry may answer at all, if nothing better is to be had.
    stale_until: Option<String>,
    tags: Vec<String>,
    origin_url: Option<String>,
    /// As `fleet.lease.state` of the statistics; nothing where nobody keeps leases.
    lease: Option<&'static str>,
    reason: String,
}

/// Explains the target of `path=`, with the request's fields of `header=`.
///
/// # Errors
/// What is wrong with the question.
pub(super) fn explain(node: &Node, query: Option<&[u8]>, now: Now) -> Result<Explanation, String> {
    let question = Question::parse(query.unwrap_or_default())?;
    let target = Target::parse(&question.target).map_err(|error| format!("path: {error}"))?;
    let host =
        question.fields.get("host").map(Authority::parse).transpose().map_err(|_| "header: a bad Host".to_owned())?;
    let authority = target.site.as_ref().map(|(_, authority)| authority).or(host.as_ref());
    let groups = node.groups.load();
    let mut key = Vec::new();
    let site = groups
        .sites
        .route(authority, target.path, target.query, &mut key)
        .map_err(|_| "path: no group serves it".to_owned())?;
    let group = &site.group;
    let members = node.members.load();
    let (owner, acting_owner) = owners(node, &members, &key);
    let mut memory = Known::of(node, group, &key, &question.fields, now);
    let lease = Some(node.cache.lease()).filter(|lease| *lease != Standing::Free);
    if matches!(lease, Some(Standing::Lost | Standing::Unsettled)) && memory.stored.is_some() {
        memory.reason = "no lease: the origin is asked before memory answers".to_owned();
    }
    Ok(Explanation {
        group: group.name.to_string(),
        origin_url: origin_url(node, group, &key),
        key: String::from_utf8_lossy(&key).into_owned(),
        variant: memory.variant,
        owner,
        acting_owner,
        stored: memory.stored,
        age: memory.age,
        ttl: memory.ttl,
        stale_until: memory.stale_until,
        tags: memory.tags,
        lease: lease.map(lease_state),
        reason: memory.reason,
    })
}

/// What is asked to be explained.
struct Question {
    target: Vec<u8>,
    fields: Fields,
}

impl Question {
    fn parse(query: &[u8]) -> Result<Self, String> {
        let (mut target, mut fields) = (None, FieldsBuilder::default());
        for parameter in query.split(|&byte| byte == b'&').filter(|parameter| !parameter.is_empty()) {
            let at = memchr::memchr(b'=', parameter).unwrap_or(parameter.len());
            let value: Vec<u8> = percent_decode(parameter.get(at + 1..).unwrap_or_default()).collect();
            match &parameter[..at] {
                b"path" if target.is_none() => target = Some(value),
                b"header" => {
                    let colon = memchr::memchr(b':', &value).ok_or("header: expected 'Name: value'")?;
                    fields
                        .push(&value[..colon], value[colon + 1..].trim_ascii())
                        .map_err(|_| "header: not a header field".to_owned())?;
                }
                _ => return Err("expected ?path=TARGET, and perhaps &header=Name:%20value".to_owned()),
            }
        }
        let target = target.ok_or("expected ?path=TARGET with the percent-encoded target")?;
        Ok(Question { target, fields: fields.finish() })
    }
}

/// What memory holds of the asked variant.
#[derive(Default)]
struct Known {
    variant: String,
    stored: Option<&'static str>,
    age: Option<u64>,
    ttl: Option<i64>,
    stale_until: Option<String>,
    tags: Vec<String>,
    reason: String,
}

impl Known {
    fn of(node: &Node, group: &Group, key: &[u8], fields: &Fields, now: Now) -> Known {
        if !group.cached {
            return Known { reason: "pass: the group is not cached".into(), ..Known::default() };
        }
        if group.cookies_pass && fields.contains("cookie") {
            return Known { reason: "pass: cookies".into(), ..Known::default() };
        }
        let credentials = Credentials { authorization: fields.contains("authorization"), cookies: false };
        let forwarded = group.forward.forwarded(fields, credentials);
        let hashed = HashedKey::new(group.id, key);
        let Some((slot, role)) = node.cache.store.peek(&hashed) else {
            let reason = match node.cache.remembered.recall(hashed.hash(), now) {
                Some(Memory::Uncacheable) => "pass: the last answer may not be shared".to_owned(),
                Some(Memory::Failed(status)) => format!("error: loading failed a moment ago, {status}"),
                None => "miss: not stored".to_owned(),
            };
            return Known { reason, ..Known::default() };
        };
        let variant = slot.rule().variant_key(&forwarded);
        let names = slot.rule().names();
        let sent = names.iter().map(|name| {
            let value = forwarded.get(name).unwrap_or_default();
            format!("{name}: {}", String::from_utf8_lossy(value))
        });
        let shown = sent.collect::<Vec<_>>().join(", ");
        let entry = variant.as_ref().and_then(|_| slot.select(|| forwarded.clone()));
        let Some(entry) = entry else {
            return Known { variant: shown, reason: "miss: another variant is stored".into(), ..Known::default() };
        };
        let freshness = &entry.freshness;
        let reason = match freshness.verdict(&group.rules, &group.directives(fields), now) {
            Verdict::Fresh => "hit".to_owned(),
            Verdict::StaleAccepted | Verdict::StaleWhileRevalidate => "stale: answered from memory".to_owned(),
            Verdict::Revalidate { .. } => "stale: the origin is asked first".to_owned(),
        };
        let useful = freshness.useful_for(&group.rules, now);
        Known {
            variant: shown,
            stored: Some(match role {
                Role::Main => "main",
                Role::Hot => "hot",
            }),
            age: Some(freshness.age(now).as_secs()),
            ttl: Some(freshness.remaining(now).div_euclid(1000)),
            tags: entry.tags().iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect(),
            stale_until: Some(rfc3339(now.wall_seconds.saturating_add_unsigned(useful.as_secs()))),
            reason,
        }
    }
}

fn owners(node: &Node, members: &Members, key: &[u8]) -> (String, String) {
    let Some(ring) = &members.ring else { return (node.own_url(), node.own_url()) };
    let ring_key = match ring.kind().is_go() {
        true => go_key(key).unwrap_or_else(|| key.to_vec()),
        false => key.to_vec(),
    };
    let owner = ring.owner(&ring_key).and_then(|index| members.list.get(index)).map(|member| member.url.clone());
    let acting = members.acting_owner(&ring_key).map(|member| member.url.clone());
    // Nobody else is there: this node loads for itself.
    (owner.unwrap_or_default(), acting.unwrap_or_else(|| node.own_url()))
}

/// What a fill asks for.
fn origin_url(node: &Node, group: &Group, key: &[u8]) -> Option<String> {
    let (_, target) = group.keys.target_of(key)?;
    let target = String::from_utf8_lossy(&target);
    let current = node.current.load();
    let configured = current.config.groups.iter().find(|configured| *configured.name == *group.name)?;
    Some(match &configured.source {
        GroupSource::Directory(root) => {
            let root = std::path::absolute(root).unwrap_or_else(|_| root.clone());
            format!("file://{}{target}", root.display())
        }
        GroupSource::Origin(origin) => format!("{}{target}", origin.urls.first()?.to_string().trim_end_matches('/')),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_target_and_fields() {
        for (query, expected) in [
            ("path=/a%2520b%3Fx%3D1", Ok(("/a%20b?x=1", 0))),
            ("path=/a&header=Host%3A%20h&header=Accept%3A%20b", Ok(("/a", 2))),
            ("", Err(())),
            ("header=Host%3A%20h", Err(())),
            ("path=/a&header=nonsense", Err(())),
            ("path=/a&header=a%0Ab%3A%20c", Err(())),
            ("path=/a&other=1", Err(())),
        ] {
            let question = Question::parse(query.as_bytes());
            let found =
                question.map(|question| (String::from_utf8(question.target).unwrap(), question.fields.iter().count()));
            assert_eq!(found.map_err(|_| ()), expected.map(|(target, fields)| (target.to_owned(), fields)), "{query}");
        }
    }
}
