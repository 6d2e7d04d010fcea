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
//! 7. Majorities are counted among the members of the list of now. Two lists that differ by one member still have majorities
//!    in common; hence members are listed, and changed one at a time. Lists that differ by more promise nothing.

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
    /// No lease is needed: the node is alone, or its fleet goes on serving in a partition.
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
    others: Vec<String>,
    /// Whether this node is a member.
    member: bool,
    begun: Duration,
    settled: bool,
    heard: HashMap<String, Heard>,
    booked: HashMap<u64, Duration>,
}

/// What another member said last.
#[derive(Debug)]
struct Heard {
    life: u64,
    asked_at: Duration,
    /// When the last question was sent that it said yes to.
    granted_at: Option<Duration>,
    settled: bool,
}

impl Leases {
    /// The members of now; `strict` and who they are may change at any time.
    pub fn follow(&mut self, strict: bool, others: Vec<String>, member: bool, now: Duration) {
        let strict = strict && !others.is_empty();
        if strict && !self.strict {
            *self = Leases { begun: now, ..Leases::default() };
        }
        (self.strict, self.member) = (strict, member);
        self.heard.retain(|url, _| others.contains(url));
        self.others = others;
    }

    /// Whether leases are kept at all.
    pub fn are_kept(&self) -> bool {
        self.strict
    }

    /// How many of the members are a majority.
    pub fn majority(&self) -> usize {
        self.size() / 2 + 1
    }

    /// How many others a majority takes beside this node.
    fn others_needed(&self) -> usize {
        self.majority() - usize::from(self.member)
    }

    fn size(&self) -> usize {
        self.others.len() + usize::from(self.member)
    }

    /// When this node's own lease runs out; `None` while it needs none.
    pub fn until(&self) -> Option<Duration> {
        if !self.strict {
            return None;
        }
        let mut granted: Vec<Duration> = self.heard.values().filter_map(|heard| heard.granted_at).collect();
        granted.sort_unstable_by(|one, other| other.cmp(one));
        let slowest = granted.get(self.others_needed().saturating_sub(1)).filter(|_| self.settled);
        Some(slowest.map_or(Duration::ZERO, |at| at.saturating_add(LEASE)))
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

    /// Another member answered a question that was sent at `asked_at`; what it said that this node lacks is applied.
    pub fn heard(&mut self, url: &str, asked_at: Duration, answer: &LeaseAnswer) {
        if !self.strict || !self.others.iter().any(|other| other == url) {
            return;
        }
        let before = self.heard.get(url).filter(|heard| heard.life == answer.life);
        // Who was settled when it was asked too early is asked again soon.
        let settled = before.is_some_and(|heard| heard.settled)
            || (answer.settled && asked_at >= self.begun.saturating_add(SETTLE_AFTER));
        let granted_at = before.and_then(|heard| heard.granted_at).max(answer.settled.then_some(asked_at));
        let asked_at = before.map_or(asked_at, |heard| heard.asked_at.max(asked_at));
        self.heard.insert(url.to_owned(), Heard { life: answer.life, asked_at, granted_at, settled });
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
        Some(LeaseAnswer { life: own_life, settled: self.settled, booked: Vec::new() })
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
        let enough = self.size() - self.majority() + 1;
        let settled = self.heard.values().filter(|heard| heard.settled).count();
        let reached =
            self.heard.values().filter(|heard| heard.asked_at >= from && now <= heard.asked_at + LEASE).count();
        match () {
            () if settled >= enough => Settling::Settled,
            () if reached == self.others.len() => Settling::Empty,
            () if reached >= self.others_needed() && now >= self.begun + SETTLE_PATIENCE => Settling::Empty,
            () => Settling::Wait,
        }
    }

    /// From now on this node books leases and may hold one.
    pub fn settle(&mut self) {
        self.settled = self.strict;
    }

    /// Which lives have answered a question sent at most [`LEASE`] ago.
    fn lives(&self, now: Duration) -> HashSet<u64> {
        let recent = self.heard.values().filter(|heard| now <= heard.asked_at.saturating_add(LEASE));
        recent.map(|heard| heard.life).collect()
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
        let alive = leases.lives(now);
        if self.confirmed.intersection(&alive).count() < leases.others_needed() {
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
/// Lives that have a lease by this node at once: every member, and lives before them. Beyond that nobody new gets one.
const BOOKED_MAX: usize = 16 * 1024;

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
