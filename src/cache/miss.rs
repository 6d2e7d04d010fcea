//! What a look into memory gives, and what a request has that memory cannot answer.

use std::time::Duration;

use super::{Answer, Hit, Payload, Request};
use crate::clock::Now;
use crate::entry::Entry;
use crate::fill::Basis;
use crate::freshness::Verdict;
use crate::group::Group;
use crate::purge::Stamp;
use crate::semantics::variant::VariantKey;
use crate::slot::Slot;
use crate::stats::Outcome;
use crate::store::Role;

/// A request that memory cannot answer, and what memory has for it.
pub(super) struct Miss {
    /// `fwd` of `Cache-Status`.
    pub forward: &'static str,
    /// An entry that the origin may confirm.
    pub stale: Option<Stale>,
    /// Ranges of what is wanted.
    pub incomplete: Option<Entry>,
    /// The variant by what was known of the key's `Vary`; the empty one while nothing is known.
    pub variant: VariantKey,
    /// Which purges were applied when the request came, before memory was looked at.
    pub asked: Stamp,
    /// Without a lease: only an answer that was asked for after the request came will do.
    pub anew: bool,
}

/// What a look into memory found.
pub(super) struct Looked {
    /// Whether memory may answer ([`crate::purge::lease`]); known before all else.
    pub leased: bool,
    /// Which purges were applied before it.
    pub asked: Stamp,
    pub found: Option<(Slot, Role)>,
}

impl Miss {
    pub fn because(forward: &'static str, asked: Stamp) -> Self {
        Miss { forward, stale: None, incomplete: None, variant: VariantKey::default(), asked, anew: false }
    }

    /// Of what memory has nothing may be answered but what the origin, or an owner with a lease, confirms now.
    pub fn without_lease(found: Lookup, asked: Stamp) -> Self {
        let miss = match found {
            Lookup::Fresh(hit) | Lookup::Stale(hit) => {
                let stale = Stale { entry: hit.entry, if_error: false, if_slow: None };
                Miss { stale: Some(stale), ..Miss::because("stale", asked) }
            }
            Lookup::Incomplete(_) => Miss::because("partial", asked),
            Lookup::Absent(reason) => Miss::because(reason, asked),
        };
        Miss { anew: true, ..miss }
    }

    /// Says with the answer that a lease was lacking; where that is why there is none, as something that will pass.
    pub fn noting_lease(&self, mut answer: Answer) -> Answer {
        if !self.anew {
            return answer;
        }
        if let (Payload::Failure { .. }, Some(_)) = (&answer.payload, &self.stale) {
            let report = answer.report;
            answer = Answer::failure(503, "cut off from the fleet, and the origin does not answer");
            answer.report = report;
        }
        answer.report.detail.get_or_insert("no-lease");
        answer
    }

    pub fn basis(&self) -> Basis {
        match (&self.stale, &self.incomplete) {
            (Some(stale), _) => Basis::Confirm(stale.entry.clone()),
            (None, Some(entry)) => Basis::Complete(entry.clone()),
            (None, None) => Basis::Nothing,
        }
    }

    /// The stale entry as an answer after a failure, where that is allowed. `status` is that of the origin's failure, if it
    /// was an answer.
    pub fn in_place_of_failure(&self, status: Option<u16>) -> Option<Answer> {
        let stale = self.stale.as_ref().filter(|stale| stale.if_error)?;
        Some(self.stale_answer(stale, "error", status))
    }

    pub fn stale_answer(&self, stale: &Stale, detail: &'static str, status: Option<u16>) -> Answer {
        let mut answer = Answer::from_entry(stale.entry.clone(), Outcome::Stale, Some(detail), self.asked.clone());
        answer.report.forward = Some(self.forward);
        answer.report.forward_status = status;
        answer
    }
}

/// An entry that has to be validated first, and what it may do if that fails.
pub(super) struct Stale {
    pub entry: Entry,
    pub if_error: bool,
    pub if_slow: Option<Duration>,
}

/// What memory holds for a request.
pub(super) enum Lookup {
    Fresh(Hit),
    /// It is not fresh, or not fresh enough for this request.
    Stale(Hit),
    /// Ranges of the representation, but not those that are wanted.
    Incomplete(Entry),
    Absent(&'static str),
}

/// What memory holds for the request in what it found under the key.
pub(super) fn lookup(group: &Group, request: &Request, found: Option<(Slot, Role)>, now: Now) -> Lookup {
    let Some((slot, role)) = found else {
        return Lookup::Absent("uri-miss");
    };
    let Some(entry) = slot.select(|| request.forwarded.clone()).cloned() else {
        return Lookup::Absent("vary-miss");
    };
    if !request.is_answered_by(&entry) {
        return Lookup::Incomplete(entry);
    }
    match entry.freshness.verdict(&group.rules, &request.directives, now) {
        Verdict::Fresh => Lookup::Fresh(Hit { entry, role }),
        _ => Lookup::Stale(Hit { entry, role }),
    }
}
