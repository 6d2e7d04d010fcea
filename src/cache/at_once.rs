//! The short way of a peer's question: out of memory, without a future.

use super::Cache;
use crate::freshness::{RequestDirectives, Verdict};
use crate::group::Group;
use crate::key::HashedKey;
use crate::source::{Ask, Hop, Method, Whole};

impl Cache {
    /// What [`Cache::get_as_owner`] answers to a plain `GET`, if memory has it fresh, whole and in one piece. Counts as
    /// [`Cache::get_as_owner`] does when it finds something, and nothing otherwise.
    pub fn find_for_peer(&self, group: &Group, ask: &Ask) -> Option<Whole> {
        if ask.method != Method::Get || !is_plain(ask) {
            return None;
        }
        let now = self.now();
        let key = HashedKey::new(group.id, &ask.key);
        let directives = RequestDirectives::default();
        let entry = self.store.find_if(&key, |slot, _| {
            let entry = slot.select(|| ask.fields.clone())?;
            let verdict = entry.freshness.verdict(&group.rules, &directives, now);
            let in_one_piece = entry.body.is_whole() && entry.body.segments().len() <= 1;
            (verdict == Verdict::Fresh && in_one_piece).then(|| entry.clone())
        })?;
        group.stats.gets.increment();
        group.stats.server_requests.increment();
        group.stats.cache_hits.increment();
        let hop = Hop {
            freshness: entry.freshness.over_hop(now),
            shareable: true,
            storable: true,
            sent: entry.sent.clone(),
            entry: entry.id,
            hit: true,
            not_modified: false,
        };
        let body = entry.body.segments().first().cloned().unwrap_or_default();
        Some(Whole { status: entry.status, fields: entry.fields.clone(), hop, body })
    }
}

/// Whether all fields of the question are such as select a variant: none asks for a range, and none is the client's word on
/// caching, which may travel among them.
fn is_plain(ask: &Ask) -> bool {
    ask.fields.iter().all(|(name, _)| {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        !(is("range") || is("if-range") || is("cache-control") || is("pragma"))
    })
}
