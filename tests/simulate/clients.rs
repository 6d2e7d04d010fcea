//! Simulated clients: what they ask, and what they check of each answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use groupcache_proxy::cache::{Payload, Request};
use groupcache_proxy::entry::Entry;
use groupcache_proxy::fields::Fields;
use groupcache_proxy::key::HashedKey;
use groupcache_proxy::source::{Fetched, Method};
use tokio::time::Instant;

use crate::network::Place;
use crate::node::Node;
use crate::origin::{HEAD_MAX, Kind, SHORT_LIFETIME, body_of, text, version_in, version_of_tag};
use crate::purges::Floor;
use crate::trace::event;
use crate::world::{FaultKind, PEER_MAX, World};

/// What a client got.
pub enum Got {
    /// A whole body with this status, and the outcome in a word.
    Whole(u16, Vec<u8>, &'static str),
    /// A head alone: its status, entity tag and length, as far as they are there, and the outcome.
    Head(u16, Option<Bytes>, Option<u64>, &'static str),
    /// A body that broke off.
    Broken,
    /// No answer but a status.
    Failed(u16),
}

/// One `GET` for a key at a place, checked; returns whether it was answered with what it asked for.
pub async fn request(world: Arc<World>, place: Place, key: Bytes) -> bool {
    request_by(world, place, key, Method::Get).await
}

/// One request for a key at a place, checked; returns whether it was answered with what it asked for.
pub async fn request_by(world: Arc<World>, place: Place, key: Bytes, method: Method) -> bool {
    let Some(node) = world.node(place) else { return false };
    world.network.running(place).await;
    if node.is_dead() {
        return false;
    }
    let (begun, floor) = (Instant::now(), world.journal.floor(node.incarnation, &key));
    let fields = world.journal.client_asks(node.incarnation);
    let head = if method == Method::Head { "the head of " } else { "" };
    event!(world.trace, "client asks node {place} for {head}{}", text(&key));
    let got = async {
        match method {
            Method::Get => get(&node, &key, fields).await,
            Method::Head => head_of(&node, &key, fields).await,
        }
    };
    let got = tokio::time::timeout(HANG, got).await;
    world.network.running(place).await;
    if node.is_dead() {
        world.journal.count("lost with their node");
        return false;
    }
    let Ok(got) = got else {
        let detail = format!("{} at node {place}, asked {:?} ago", text(&key), begun.elapsed());
        world.trace.broken("every request ends", detail);
        return false;
    };
    check(&world, place, &key, begun, floor, got)
}

/// What a client of `node` gets for `key`; `fields` are forwarded.
pub async fn get(node: &Node, key: &Bytes, fields: Fields) -> Got {
    let request = Request { forwarded: fields, ..Request::plain(key.clone()) };
    let (cache, group) = (&node.cache, &node.group);
    let hashed = HashedKey::new(group.id, key);
    if let Some(hit) = cache.find_fresh(group, &hashed, Fields::empty, &request.directives, cache.now()) {
        return Got::Whole(hit.entry.status, hit.entry.body.to_segments().concat(), "hit");
    }
    let answer = cache.get(group, &request).await;
    let outcome = answer.outcome.as_str();
    match answer.payload {
        Payload::Entry(entry) => Got::Whole(entry.status, entry.body.to_segments().concat(), outcome),
        Payload::Stream(head, mut reader) => {
            let mut body = Vec::new();
            loop {
                match reader.chunk().await {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) => return Got::Whole(head.status, body, outcome),
                    Err(_) => return Got::Broken,
                }
            }
        }
        // The lane that passes requests on asks the same origin.
        Payload::Pass(_) => {
            let Some(ask) = group.ask(key, Method::Get, Fields::empty()) else { return Got::Failed(400) };
            let Ok(_permit) = cache.permit(group).await else { return Got::Failed(503) };
            match group.source.fetch(&ask).await {
                Ok(fetched) => read(fetched, outcome).await,
                Err(_) => Got::Failed(502),
            }
        }
        Payload::Failure { status, .. } => Got::Failed(status),
    }
}

/// The same of a `HEAD`.
async fn head_of(node: &Node, key: &Bytes, fields: Fields) -> Got {
    let request = Request { method: Method::Head, forwarded: fields, ..Request::plain(key.clone()) };
    let (cache, group) = (&node.cache, &node.group);
    let hashed = HashedKey::new(group.id, key);
    let of_entry = |entry: &Entry, outcome| {
        Got::Head(entry.status, tag_in(entry.fields().get("etag")), Some(entry.body.len()), outcome)
    };
    if let Some(hit) = cache.find_fresh(group, &hashed, Fields::empty, &request.directives, cache.now()) {
        return of_entry(&hit.entry, "hit");
    }
    let answer = cache.get(group, &request).await;
    let outcome = answer.outcome.as_str();
    match answer.payload {
        Payload::Entry(entry) => of_entry(&entry, outcome),
        Payload::Stream(head, _) => {
            Got::Head(head.status, tag_in(head.fields.get("etag")), head.content_length, outcome)
        }
        Payload::Pass(_) => {
            let Some(ask) = group.ask(key, Method::Head, Fields::empty()) else { return Got::Failed(400) };
            let Ok(_permit) = cache.permit(group).await else { return Got::Failed(503) };
            match group.source.fetch(&ask).await {
                Ok(fetched) => {
                    Got::Head(fetched.status, tag_in(fetched.fields.get("etag")), fetched.content_length, outcome)
                }
                Err(_) => Got::Failed(502),
            }
        }
        Payload::Failure { status, .. } => Got::Failed(status),
    }
}

fn tag_in(field: Option<&[u8]>) -> Option<Bytes> {
    field.map(Bytes::copy_from_slice)
}

async fn read(mut fetched: Fetched, outcome: &'static str) -> Got {
    let mut body = Vec::new();
    loop {
        match fetched.body.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Got::Whole(fetched.status, body, outcome),
            Err(_) => return Got::Broken,
        }
    }
}

fn check(world: &World, place: Place, key: &Bytes, begun: Instant, floor: Floor, got: Got) -> bool {
    let (trace, journal) = (&world.trace, &world.journal);
    let ended = Instant::now();
    let faults = journal.faults_between(begun, ended);
    let troubled = world.origin.last_trouble().is_some_and(|at| at + TROUBLE_REMEMBERED >= begun);
    let frozen = faults.iter().any(|fault| fault.what == FaultKind::Pause(place));
    // Who waited for an answer that turned out to be another's asks once more.
    let answers = if Kind::of(key) == Kind::Private { 2 } else { 1 };
    // Without a lease it lets the flight pass that began before it came, here and at the owner.
    let answers = if world.strict { answers * 4 } else { answers };
    let mut limit = HEAD_MAX * answers + BODY_MAX + (PEER_MAX + HEAD_MAX) * faults.len() as u32;
    if let Some(turn) = world.node(place).and_then(|node| node.group.limit) {
        limit += turn.patience * answers;
    }
    if !frozen && ended - begun > limit {
        let detail = format!("{} at node {place} took {:?}, limit {limit:?}", text(key), ended - begun);
        trace.broken("deadline", detail);
    }
    let (status, version, outcome, bytes) = match got {
        Got::Whole(status, body, outcome) => (status, version_in(key, &body), outcome, body.len() as u64),
        Got::Head(status, tag, length, outcome) => {
            let version = tag.as_deref().and_then(version_of_tag);
            // The length of another version is another body's.
            let is_its_own = |version: &u64| length.is_none_or(|length| length == body_of(key, *version).len() as u64);
            (status, version.filter(is_its_own), outcome, length.unwrap_or_default())
        }
        Got::Broken => {
            journal.count("broken");
            event!(trace, "node {place} breaks {}", text(key));
            if faults.is_empty() && !troubled {
                trace.broken("bodies break with their source alone", format!("{} at node {place}", text(key)));
            }
            return false;
        }
        Got::Failed(status) => {
            journal.count("failed");
            event!(trace, "node {place} fails {} with {status}", text(key));
            if !troubled {
                let detail = format!("{status} for {} at node {place}", text(key));
                trace.broken("what the origin can answer is answered", detail);
            }
            return false;
        }
    };
    journal.count(outcome);
    let Some(version) = version.filter(|_| status == 200) else {
        let detail = format!("{} at node {place}: {status} and {bytes} bytes", text(key));
        trace.broken("body integrity", detail);
        return false;
    };
    event!(trace, "node {place} answers {} with version {version} ({outcome})", text(key));
    if !floor.allows(version, troubled) {
        let detail = format!("{} at node {place}: version {version} after purges of {floor:?}", text(key));
        trace.broken("nothing older than a purge", detail);
    }
    if Kind::of(key) == Kind::Short && !troubled {
        let slack = HEAD_MAX + BODY_MAX + PEER_MAX * faults.len() as u32;
        let oldest = begun.checked_sub(SHORT_LIFETIME + slack).map_or(1, |at| world.origin.oldest_since(key, at));
        if version < oldest {
            let detail =
                format!("{} at node {place}: version {version}, {oldest} is older than its lifetime", text(key));
            trace.broken("freshness", detail);
        }
    }
    true
}

/// Nothing lasts so long.
const HANG: Duration = Duration::from_secs(120);
/// For what comes after the head, and the hop.
const BODY_MAX: Duration = Duration::from_secs(2);
/// How long a failure of the origin is remembered, and a fill that it hit may have taken before.
const TROUBLE_REMEMBERED: Duration = Duration::from_millis(1100);
