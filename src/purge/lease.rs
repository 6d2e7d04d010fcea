//! The lease under which a node of a `strict` fleet answers from memory, and what it lets a purge conclude: data and time as a
//! parameter, no I/O; who keeps and asks is [`crate::leasing`].
//!
//! ```text
//! X ── "lease? I have applied V" ── Y: books the lease, then says what X lacks ── X applies that, then counts Y's yes
//! ```
//!
//! 1. X holds a lease until [`LEASE`] after the time at which it *sent* the question that the slowest of a majority (itself
//!    included) said yes to. Only with a lease, checked after a request came and before memory is looked at, memory answers;
//!    without one the origin is asked anew, by a question sent after the request came.
//! 2. Y *books* the yes before it looks which purges X lacks. A purge is *committed* by its acceptor A once a majority has
//!    applied it, confirmed within the last [`LEASE`], and every lease has run out that one of them, asked after it had
//!    applied the purge, has in its book for somebody who has not confirmed.
//! 3. Why no request that came after the acknowledgement gets older data: let X answer from memory at t, the purge be
//!    acknowledged before. Its majority and that of X's lease have a node Y in common. Had Y recorded the purge when it said
//!    yes, X applied it first. Otherwise the yes was in Y's book when A asked, and A waited until it had run out: no lease at t.
//! 4. X's lease is shorter than Y's book says by [`MARGIN`]: clocks need not agree, only run equally fast within 4 %. The clock
//!    goes on while the machine sleeps, and is read after the request came: who was frozen in between finds its lease over.
//! 5. Logs are in memory, so a majority must not forget: a node that starts is *unsettled*, and neither books nor holds a lease,
//!    until it has heard from so many settled others that every majority without its own earlier life has one among them
//!    ([`Leases::settling`]). It asks them no earlier than [`SETTLE_AFTER`]: confirmations of its earlier life count no longer
//!    than that, and what that life had booked has run out. Until then it says that it does not know what is booked.
//! 6. Are there not enough settled ones (the fleet starts, or most of it died at once), somebody purges everything and is
//!    settled: what nobody remembers any more is gone from memory, too.
//! 7. Majorities are counted among the members of a list, and lists change, on one node sooner than on another. Who takes
//!    another list needs, for leases and purges, majorities of both: of the list before and of the new one ("joint
//!    consensus" of Raft). Counted is only who has taken the same list, and needs no list that this node does not need, so
//!    whoever stays with the old one and whoever has left it never both have a majority of it. The list before is *retired* when
//!    a majority of it was on the new one for so long that no lease by the old one is left. A lease that was held when the list
//!    changed is held until it runs out.
//! 8. Who is no member has no lease, and a purge is acknowledged only when it is committed, even if every member has confirmed it:
//!    a node that has not heard yet that it is none may have one.
//! 9. What that takes: a majority of the list before stays in the new one, or nobody can say that it has left; and those who
//!    begin with the new list are no majority of it. Then it does not matter how many members a change is about. Every node
//!    takes the lists in the same order.

use std::time::Duration;

use hashbrown::{HashMap, HashSet};

/// What a node wants to know of another one's lease book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseQuestion {
    /// The life of the node that asks for a lease; what it has applied stands in [`super::Notice::known`].
    pub life: u64,
    /// Whether to say what is booked for others.
    pub wants_booked: bool,
}

/// The answer of a node that takes part in leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// The list of members that it has; equal on nodes with the same.
    pub list: u64,
    /// The lists before whose majorities it still needs.
    pub previous: Vec<u64>,
    /// The life that answers.
    pub life: u64,
    /// Whether it has remembered all purges since before any lease of now.
    pub settled: bool,
    /// Where it was asked for: leases that others may hold by it.
    pub booked: Vec<Booked>,
}

/// A lease that somebody may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booked {
    /// Whose; [`ANYBODY`] for whatever an earlier life of the node that says it may have booked.
    pub life: u64,
    /// For how long still.
    pub remaining: Duration,
}

/// A life that no node has.
pub const ANYBODY: u64 = 0;

/// How it stands with this node's own lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No lease is needed: the node has been alone since it started, or its fleet goes on serving in a partition.
    Free,
    /// Held for so long still.
    Held(Duration),
    /// Not held.
    Lost,
    /// The node has started, or the fleet has: not held yet.
    Unsettled,
}

/// What a node that is not settled has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Nothing: it is settled, or has to hear more.
    Wait,
    /// It has heard enough.
    Settled,
    /// There is nobody to hear enough from: everything is to be purged, and then it is settled.
    Empty,
}

/// The leases as one node sees them: its own, and those that it said yes to. All times are this node's, since its start.
#[derive(Debug, Default)]
pub struct Leases {
    strict: bool,
    list: List,
    /// Lists before that are not retired, oldest first. They are retired in this order, so that of two nodes, which take the same
    /// lists in turn, one needs all that the other needs.
    previous: Vec<List>,
    /// There were more of them than are remembered: nobody can have all majorities that it takes.
    overgrown: bool,
    /// When this node took its list.
    listed_at: Duration,
    /// A lease of before something changed, which runs out then.
    kept_until: Duration,
    begun: Duration,
    settled: bool,
    heard: HashMap<String, Heard>,
    booked: HashMap<u64, Duration>,
}

/// A list of members, as this node sees it.
#[derive(Clone, Debug, Default)]
struct List {
    id: u64,
    others: Vec<String>,
    /// Whether this node is among them.
    member: bool,
}

impl List {
    fn size(&self) -> usize {
        self.others.len() + usize::from(self.member)
    }

    fn majority(&self) -> usize {
        self.size() / 2 + 1
    }

    /// How many others a majority takes beside this node.
    fn others_needed(&self) -> usize {
        self.majority() - usize::from(self.member)
    }
}

/// How a list of members differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListChange {
    /// Whether a majority of the members before stay.
    pub keeps_majority: bool,
    /// Whether those who stay are needed for a majority of the new list.
    pub needs_old: bool,
}

/// What another member said last.
#[derive(Debug)]
struct Heard {
    life: u64,
    asked_at: Duration,
    /// When the last question was sent that it said yes to, with the lists that it has.
    granted_at: Option<Duration>,
    settled: bool,
    list: u64,
    previous: Vec<u64>,
    /// Since when it is known to have its list.
    listed_since: Duration,
}

impl Heard {
    fn is_recent(&self, now: Duration) -> bool {
        now <= self.asked_at.saturating_add(LEASE)
    }
}

impl Leases {
    /// The members of now, in the list `id`; `strict` and who they are may change at any time. Says what a change of the list
    /// means for the leases.
    pub fn follow(
        &mut self,
        strict: bool,
        id: u64,
        others: Vec<String>,
        member: bool,
        now: Duration,
    ) -> Option<ListChange> {
        // Whoever was one of several may not forget them by a list of itself alone.
        let strict = strict && (!others.is_empty() || self.strict);
        let list = List { id, others, member };
        if !strict || !self.strict {
            *self = Leases { strict, list, listed_at: now, begun: now, ..Leases::default() };
            return None;
        }
        if list.id == self.list.id {
            return None;
        }
        self.kept_until = self.until().unwrap_or_default();
        let before = std::mem::replace(&mut self.list, list);
        let list = &self.list;
        let kept = before.others.iter().filter(|other| list.others.contains(other)).count()
            + usize::from(before.member && list.member);
        let change =
            ListChange { keeps_majority: kept >= before.majority(), needs_old: list.size() - kept < list.majority() };
        self.overgrown |= self.previous.len() >= PREVIOUS_MAX;
        if !self.overgrown {
            self.previous.push(before);
        }
        self.heard.retain(|url, _| list.others.contains(url));
        self.listed_at = now;
        Some(change)
    }

    /// Whether leases are kept at all.
    pub fn are_kept(&self) -> bool {
        self.strict
    }

    /// How many lists before still count.
    pub fn previous_lists(&self) -> usize {
        self.previous.len()
    }

    /// This node's list and those before that still count.
    fn lists(&self) -> impl Iterator<Item = &List> {
        std::iter::once(&self.list).chain(&self.previous)
    }

    /// What the other members of a list said, where it counts for this node.
    fn counted<'a>(&'a self, list: &'a List) -> impl Iterator<Item = &'a Heard> {
        let heard = list.others.iter().filter_map(|url| self.heard.get(url));
        heard.filter(|heard| {
            let is_needed = |id: &u64| self.previous.iter().any(|previous| previous.id == *id);
            heard.list == self.list.id && heard.previous.iter().all(is_needed)
        })
    }

    /// Whether those of whom `agrees` is true are, with this node, a majority of every list that counts.
    fn is_majority(&self, agrees: impl Fn(&Heard) -> bool) -> bool {
        !self.overgrown
            && self.lists().all(|list| self.counted(list).filter(|heard| agrees(heard)).count() >= list.others_needed())
    }

    /// When this node's own lease runs out; `None` while it needs none.
    pub fn until(&self) -> Option<Duration> {
        if !self.strict {
            return None;
        }
        let granted = |list: &List| {
            if list.others_needed() == 0 {
                // Never alone among the lists that count: what came before has somebody else in its majority, and is never left.
                return Duration::MAX;
            }
            let mut granted: Vec<Duration> = self.counted(list).filter_map(|heard| heard.granted_at).collect();
            granted.sort_unstable_by(|one, other| other.cmp(one));
            granted.get(list.others_needed() - 1).map_or(Duration::ZERO, |at| at.saturating_add(LEASE))
        };
        let granted = self.lists().map(granted).min();
        // Who is no member is told of no purge.
        let granted = granted.filter(|_| self.settled && self.list.member && !self.overgrown).unwrap_or_default();
        Some(granted.max(self.kept_until))
    }

    /// How it stands.
    pub fn standing(&self, now: Duration) -> Standing {
        match self.until() {
            None => Standing::Free,
            Some(until) if until > now => Standing::Held(until - now),
            Some(_) if self.settled => Standing::Lost,
            Some(_) => Standing::Unsettled,
        }
    }

    /// Another member answered, at `now`, a question that was sent at `asked_at`; what it said that this node lacks is applied.
    /// Says whether that retired the last list before this one.
    pub fn heard(&mut self, url: &str, asked_at: Duration, now: Duration, answer: &LeaseAnswer) -> bool {
        if !self.strict || !self.list.others.iter().any(|other| other == url) {
            return false;
        }
        let before = self.heard.get(url).filter(|heard| heard.life == answer.life);
        // Who was settled when it was asked too early is asked again soon.
        let settled = before.is_some_and(|heard| heard.settled)
            || (answer.settled && asked_at >= self.begun.saturating_add(SETTLE_AFTER));
        let alike = before.filter(|heard| heard.list == answer.list && heard.previous == answer.previous);
        let granted_at = alike.and_then(|heard| heard.granted_at).max(answer.settled.then_some(asked_at));
        // It took the list after the question was sent and before now.
        let listed_since = before.filter(|heard| heard.list == answer.list).map_or(now, |heard| heard.listed_since);
        let asked_at = before.map_or(asked_at, |heard| heard.asked_at.max(asked_at));
        let (list, previous) = (answer.list, answer.previous.clone());
        let heard = Heard { life: answer.life, asked_at, granted_at, settled, list, previous, listed_since };
        self.heard.insert(url.to_owned(), heard);
        self.retire(now)
    }

    /// Drops the lists before this one by which nobody can have a majority any more; says whether none is left of some.
    fn retire(&mut self, now: Duration) -> bool {
        let left_long_ago = |since: Duration| now >= since.saturating_add(SETTLE_AFTER);
        let is_left = |list: &List| {
            let others = self.counted(list).filter(|heard| heard.is_recent(now) && left_long_ago(heard.listed_since));
            others.count() + usize::from(list.member && left_long_ago(self.listed_at)) >= list.majority()
        };
        if self.overgrown {
            return false;
        }
        let left = self.previous.iter().take_while(|list| is_left(list)).count();
        if left == 0 {
            return false;
        }
        // Those that need it still do not count from now on.
        self.kept_until = self.until().unwrap_or_default();
        self.previous.drain(..left);
        self.previous.is_empty()
    }

    /// Books a lease for the node that asks, to be called before it is looked what that one lacks; says what it is told.
    pub fn answer(&mut self, own_life: u64, question: LeaseQuestion, now: Duration) -> Option<LeaseAnswer> {
        if !self.strict {
            return None;
        }
        if self.settled {
            self.booked.retain(|_, until| *until > now);
            if self.booked.len() < BOOKED_MAX || self.booked.contains_key(&question.life) {
                let until = self.booked.entry(question.life).or_default();
                *until = (*until).max(now.saturating_add(LEASE + MARGIN));
            } else {
                return None;
            }
        }
        let previous = self.previous.iter().map(|list| list.id).collect();
        Some(LeaseAnswer {
            list: self.list.id,
            previous,
            life: own_life,
            settled: self.settled && !self.overgrown,
            booked: Vec::new(),
        })
    }

    /// The leases that others may hold by this node, to be called after a purge that is asked about was applied.
    pub fn booked(&self, now: Duration) -> Vec<Booked> {
        // What the life before this one said yes to.
        let earlier = (ANYBODY, self.begun.saturating_add(SETTLE_AFTER));
        let booked = self.booked.iter().map(|(life, until)| (*life, *until)).chain([earlier]);
        let running = booked.filter(|(_, until)| *until > now);
        let mut booked: Vec<Booked> = running.map(|(life, until)| Booked { life, remaining: until - now }).collect();
        booked.sort_unstable_by_key(|booked| booked.life);
        booked
    }

    /// What is to be done to become settled.
    pub fn settling(&self, now: Duration) -> Settling {
        let from = self.begun.saturating_add(SETTLE_AFTER);
        if !self.strict || self.settled || now < from {
            return Settling::Wait;
        }
        // Those that lack a committed purge are at most all but a majority; one more, and somebody has it.
        let is_enough =
            |list: &List| self.counted(list).filter(|heard| heard.settled).count() > list.size() - list.majority();
        let recent = |heard: &&Heard| heard.asked_at >= from && heard.is_recent(now);
        let reached = self.counted(&self.list).filter(recent).count();
        // Somebody remembers, and will take this list, or this node another one.
        let is_elsewhere = |heard: &Heard| heard.settled && heard.list != self.list.id && heard.is_recent(now);
        match () {
            () if self.lists().all(is_enough) => Settling::Settled,
            () if !self.previous.is_empty() || self.heard.values().any(is_elsewhere) => Settling::Wait,
            () if reached == self.list.others.len() => Settling::Empty,
            () if reached >= self.list.others_needed() && now >= self.begun + SETTLE_PATIENCE => Settling::Empty,
            () => Settling::Wait,
        }
    }

    /// From now on this node books leases and may hold one.
    pub fn settle(&mut self) {
        self.settled = self.strict;
    }
}

/// What is known of one purge that is to be committed by a majority.
#[derive(Debug, Default)]
pub struct Commit {
    confirmed: HashSet<u64>,
    /// By life, when what is booked for it runs out.
    booked: HashMap<u64, Duration>,
}

/// How it stands with a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds, whoever was not reached.
    Committed,
    /// It will then, if nothing changes.
    Then(Duration),
    /// A majority has not confirmed it.
    Lacking,
}

impl Commit {
    /// A purge that this node, in its life `own_life`, has recorded; `booked` is its own book since then.
    pub fn new(own_life: u64, booked: &[Booked], now: Duration) -> Self {
        let mut commit = Commit::default();
        commit.confirm(own_life, booked, now);
        commit
    }

    /// A life has applied it, and then said at `now` what is booked.
    pub fn confirm(&mut self, life: u64, booked: &[Booked], now: Duration) {
        self.confirmed.insert(life);
        for Booked { life, remaining } in booked {
            let until = self.booked.entry(*life).or_default();
            *until = (*until).max(now.saturating_add(*remaining));
        }
    }

    /// Whether it holds. Who confirmed and has died since counts no more: what starts in its place knows nothing.
    pub fn verdict(&self, leases: &Leases, now: Duration) -> Verdict {
        if !leases.is_majority(|heard| heard.is_recent(now) && self.confirmed.contains(&heard.life)) {
            return Verdict::Lacking;
        }
        let others = self.booked.iter().filter(|(life, _)| !self.confirmed.contains(*life));
        match others.map(|(_, until)| *until).max().filter(|until| *until > now) {
            Some(until) => Verdict::Then(until),
            None => Verdict::Committed,
        }
    }
}

/// How long a node may answer from memory after it has asked a majority. A purge waits so long for a member that is out of
/// reach; a frozen process of a second, or three lost renewals, should not cost the lease.
pub const LEASE: Duration = Duration::from_secs(2);
/// By how much longer a lease is booked than it is held: as much as two clocks may drift apart meanwhile.
pub const MARGIN: Duration = Duration::from_millis(200);
/// Between two renewals.
pub const RENEW_EVERY: Duration = Duration::from_millis(500);
/// How long a node that starts waits before what it hears can settle it.
pub const SETTLE_AFTER: Duration = LEASE.saturating_add(MARGIN);
/// How long it waits for a settled member that is out of reach, before everything is purged instead.
pub const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
/// Lists before the present one that a node may need majorities of. One change at a time leaves one or two.
pub const PREVIOUS_MAX: usize = 64;
/// Lives that have a lease by this node at once: every member, and lives before them. Beyond that nobody new gets one.
const BOOKED_MAX: usize = 16 * 1024;

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
