//! How old answers are, counted in purges: what is noted before a question, and checked after it (see [`crate::purge`]).

use super::{Basis, Filling};
use crate::clock::Now;
use crate::purge::{Overtaking, Stamp, Tags};
use crate::purging::Dating;
use crate::source::Fetched;

/// How an answer came.
#[derive(Clone)]
pub(crate) struct Came {
    /// When the question was sent.
    pub asked_at: Now,
    /// Which purges the answer is not older than.
    pub dating: Dating,
}

impl Came {
    /// `fetched` answers a question that was sent when the purges `known` were recorded here.
    pub fn with(fetched: &Fetched, asked_at: Now, known: Stamp) -> Self {
        let over_hop = fetched.hop.as_ref().and_then(|hop| hop.stamp.clone());
        let dating = Dating::of(known);
        Came { asked_at, dating: Dating { stamp: over_hop.map_or(dating.stamp, Stamp::of_hop), ..dating } }
    }
}

impl Filling {
    /// To be called before a question is sent: which purges overtake its answer if they come from now on.
    pub(super) fn before_asking(&mut self) -> Stamp {
        let known = self.cache.purges.known();
        // What is confirmed or completed is as old as the entry, whenever the origin says so.
        if self.basis_is_purged() {
            self.basis = Basis::Nothing;
        }
        known
    }

    /// Whether whoever answered had not heard of a purge that this node knew when it asked.
    pub(super) fn is_outdated(&self, fetched: &Fetched, came: &Came) -> bool {
        let Some(hop) = fetched.hop.as_ref().filter(|hop| hop.stamp.is_some()) else { return false };
        self.overtaken(&came.dating.stamp, &hop.tags).is_some_and(|first| first <= came.dating.reach)
    }

    /// Whether what we have may not be used any more: it went from memory while this fill was on its way.
    fn basis_is_purged(&self) -> bool {
        let (Basis::Confirm(entry) | Basis::Complete(entry)) = &self.basis else { return false };
        let (purges, group) = (&self.cache.purges, &self.group.name);
        purges.overtaken(&self.asked, Overtaking::Hard, group, &self.request.key, entry.tags()).is_some()
    }

    /// Which purge an answer with this stamp and these tags has not seen.
    pub(super) fn overtaken(&self, stamp: &Stamp, tags: &Tags) -> Option<u64> {
        self.cache.purges.overtaken(stamp, Overtaking::Any, &self.group.name, &self.request.key, tags)
    }
}
