//! What is stored under new facts: an entry that the origin confirms with 304, or describes anew in the answer to a `HEAD`.

use crate::cache::{FlightKey, Landed};
use crate::clock::Now;
use crate::entry::{Entry, Parts};
use crate::fields::{FieldLines, Fields};
use crate::fill::{Came, Filling, Shelf};
use crate::flight::Fill;
use crate::freshness::{self, HeadEffect};
use crate::key::HashedKey;
use crate::purge::Tags;
use crate::purging::Dating;
use crate::semantics::forward::stays_inside;
use crate::semantics::validators::{StoredValidators, Validators};
use crate::source::{Fetched, Method};
use crate::store::Role;

impl Filling {
    /// The origin confirmed what we have (RFC 9111 section 4.3.4): the same body under fresh facts. `None` when it means
    /// something else.
    pub(crate) fn confirm(
        &self,
        fill: &Fill<FlightKey, Landed>,
        stale: &Entry,
        fetched: &Fetched,
        came: &Came,
    ) -> Option<Entry> {
        if freshness::selected_by_304(&[stale.fields()], &fetched.fields).is_empty() {
            return None;
        }
        let received_at = self.cache.now();
        let updated = freshness::updated_by_304(&self.group.rules, stale.fields(), &fetched.fields, received_at);
        // A 304 that forbids storing from now on confirms nothing that others may have: the answer itself decides who gets it.
        if self.judge(Method::Get, stale.status, &updated, came.asked_at, received_at).storable.is_err() {
            if !self.speaks_for_itself() {
                self.cache.remove_entry(&self.group, &self.request.key, stale);
            }
            return None;
        }
        Some(self.renew(fill, stale, (&fetched.fields, &updated), self.role_of_origin_answers(), came))
    }

    /// What the answer to a `HEAD` says of the entry that a `GET` would be answered with (RFC 9111 section 4.3.5). Only the
    /// node that asked the origin takes its fields over; copies elsewhere hear that they are outdated.
    pub(crate) fn update_by_head(&self, fill: &Fill<FlightKey, Landed>, fetched: &Fetched, came: &Came) {
        let (group, received_at) = (&self.group, self.cache.now());
        let key = HashedKey::new(group.id, &self.request.key);
        let applied = self.cache.purges.applied();
        let Some((slot, role)) = self.cache.store.peek(&key) else { return };
        // Of the entry and of what is said of it now, the older counts.
        let stamp = &came.dating.stamp;
        // One of this node's own from before the first purge has zero, too.
        let of_this_node = fetched.hop.as_ref().is_none_or(|hop| hop.stamp.is_none());
        let own = of_this_node && stamp.arrival <= applied.arrival;
        let dating = Dating { stamp: if own { stamp.clone() } else { applied }, ..came.dating.clone() };
        let came = &Came { dating, ..came.clone() };
        let Some(stored) = slot.select(|| self.request.forwarded.clone()) else { return };
        let mut head = fetched.fields.to_builder();
        if let Some(length) = fetched.content_length {
            head.push_checked(b"Content-Length", length.to_string().as_bytes());
        }
        let (length, head) = (Some(stored.body.len()), head.finish());
        match freshness::updated_by_head(&group.rules, stored.fields(), length, fetched.status, &head, received_at) {
            HeadEffect::Update(updated) if fetched.hop.is_none() => {
                self.renew(fill, stored, (&head, &updated), role, came);
            }
            HeadEffect::Nothing | HeadEffect::Update(_) => {}
            HeadEffect::Stale => {
                let shelf = Shelf {
                    role,
                    rule: slot.rule().clone(),
                    variant: slot.rule().variant_key(&self.request.forwarded).unwrap_or_default(),
                };
                let expired = stored.expired(received_at);
                self.cache.replace(group, fill.key(), shelf, stored, expired, &came.dating.stamp);
            }
        }
    }

    /// `stored` under the fields `updated`, which `news` made of its own, judged anew; it takes the place of the old one in
    /// the store, unless something else has taken it meanwhile.
    fn renew(
        &self,
        fill: &Fill<FlightKey, Landed>,
        stored: &Entry,
        (news, updated): (&Fields, &Fields),
        role: Role,
        came: &Came,
    ) -> Entry {
        let received_at = self.cache.now();
        // What is stored came of a GET, whatever the method of the request that renews it.
        let judgement = self.judge(Method::Get, stored.status, updated, came.asked_at, received_at);
        let fields = freshness::fields_to_store(&self.group.rules, &judgement.directives, updated, received_at);
        let fields = fields.without(stays_inside);
        let rule = self.rule_of(&fields);
        let sent = self.sent_for(&rule);
        // As with other fields, what is said anew counts.
        let tags = if Tags::are_in(updated) { Tags::of(updated) } else { stored.tags().clone() };
        let storable = judgement.storable.is_ok() && !tags.are_too_many();
        let parts = Parts {
            id: self.cache.next_entry_id(),
            body_id: stored.body_id(),
            status: stored.status,
            validators: renewed_validators(stored, news, &fields, received_at),
            freshness: judgement.freshness,
            fields,
            sent,
            tags,
            body: stored.body.clone(),
        };
        let entry = Entry::new(&self.request.key, parts, self.cache.ledger.charge(0));
        match (storable, rule.variant_key(&self.request.forwarded)) {
            (true, Some(variant)) => {
                let shelf = Shelf { role, rule, variant };
                self.cache.replace(&self.group, fill.key(), shelf, stored, entry.clone(), &came.dating.stamp);
            }
            _ if self.speaks_for_itself() => {}
            _ => self.cache.remove_entry(&self.group, &self.request.key, stored),
        }
        entry
    }
}

/// The validators in `fields`, which `news` made of those of `stored`.
///
/// A `Last-Modified` that stays is as strong as it was when the body came: a second change within that second shows in no
/// later `Date` (RFC 9110 section 8.8.2.2). One that is new is measured by the `Date` beside it, and never by ours.
fn renewed_validators(stored: &Entry, news: &FieldLines, fields: &FieldLines, received_at: Now) -> StoredValidators {
    let found = StoredValidators::of(fields, received_at.wall_seconds);
    let (before, said) = (stored.validators.in_block(stored.fields()), Validators::of(news, received_at.wall_seconds));
    let stays = found.in_block(fields).last_modified_seconds == before.last_modified_seconds;
    let is_strong = if stays { before.last_modified_is_strong } else { said.last_modified_is_strong };
    if is_strong { found } else { found.with_date_of_ours() }
}
