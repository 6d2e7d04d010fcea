//! Purges as this node carries them out: here, and on all other members of the fleet.
//!
//! ```text
//! accepted here or heard from a peer ── recorded ── flights closed ── whoever is storing waited for ── removed ── applied
//!                                          ╰─ told to every member and former member, again and again until it confirms or has left
//! ```
//! Why nothing slips through is told in [`crate::purge`]. A peer is told by one task at a time, which takes along whatever it has
//! not confirmed yet: many purges at once cost few messages.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::cache::{Cache, Landed};
use crate::entry::Entry;
use crate::fleet::{Health, Peer, PurgeFailure};
use crate::group::Group;
use crate::key::{GroupId, HashedKey};
use crate::purge::{Batch, Notice, Overtaking, Position, Record, Reply, Stamp, Tags, Target, in_records};
use crate::store::{FoundKeys, Inserted};

/// A purge as somebody wants it.
#[derive(Clone, Debug, Default)]
pub struct PurgeRequest {
    /// What is to go.
    pub targets: Vec<Target>,
    /// Whether it only becomes stale.
    pub soft: bool,
    /// Whether it is only counted.
    pub dry_run: bool,
    /// How long to wait for the other members.
    pub timeout: Duration,
}

/// What became of a purge, as its caller is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// Its number among the purges that this node accepted; of a dry run, that of the last one.
    pub sequence: u64,
    /// Whether every member confirmed or, where leases are kept, can answer nothing from memory before it does.
    pub complete: bool,
    /// Entries that went, became stale, or would.
    pub entries: u64,
    /// Member by member; this node comes first.
    pub nodes: Vec<NodeReceipt>,
}

/// What one member said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeReceipt {
    /// Its URL in the fleet; empty in a fleet of one.
    pub url: String,
    /// In one word.
    pub state: NodeState,
    /// Its entries.
    pub entries: u64,
    /// How long it took.
    pub milliseconds: u64,
}

/// What a member did with a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It has applied the purge.
    Confirmed,
    /// It has not confirmed yet; it is told until it does.
    Unreachable,
    /// It has not confirmed, and it has no lease under which it could answer from memory before it has heard of the purge.
    WithoutLease,
    /// It speaks a protocol that cannot say it.
    CannotPurge,
}

/// How old an answer is, counted in purges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dating {
    /// Which purges it is not older than.
    pub stamp: Stamp,
    /// Whoever asked when no more purges of the log were applied than these may have it, whatever it was overtaken by.
    pub reach: u64,
}

impl Dating {
    /// That of what this node asked for, or found, itself.
    pub fn of(stamp: Stamp) -> Self {
        Dating { reach: stamp.arrival, stamp }
    }
}

/// What carrying purges out takes beside the log.
#[derive(Default)]
pub(crate) struct Spread {
    couriers: Mutex<HashMap<String, Arc<Courier>>>,
    /// The groups that ever fetched something here: purges name them, the store numbers them.
    groups: ArcSwap<Vec<Option<Arc<str>>>>,
    /// Purges are applied one after the other, in the order of the log.
    applying: tokio::sync::Mutex<()>,
}

/// What one peer was told.
struct Courier {
    /// Up to which purge of this node the peer has confirmed.
    confirmed: Arc<Progress>,
    told: Mutex<Told>,
    running: AtomicBool,
}

/// A number that only grows. Who waits for it goes on in the order in which they came, unlike with a watch channel.
pub(crate) struct Progress {
    reached: AtomicU64,
    grown: Notify,
}

#[derive(Default)]
struct Told {
    /// What the peer said of recent purges.
    outcomes: VecDeque<(u64, NodeState, u64)>,
    /// The peer was seen to lack purges, perhaps of others.
    lacks: bool,
}

/// What happens to an entry that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Remove,
    Expire,
    Count,
}

impl Spread {
    /// Notes the name of a group that is about to fetch something.
    pub fn note_group(&self, group: &Group) {
        let at = usize::from(group.id.0);
        if self.groups.load().get(at).is_some_and(Option::is_some) {
            return;
        }
        self.groups.rcu(|groups| {
            let mut groups = Vec::clone(groups);
            groups.resize(groups.len().max(at + 1), None);
            groups[at] = Some(group.name.clone());
            groups
        });
    }

    /// All numbers that the group of this name ever had: a reload may have given it another one. Without a name, all groups.
    fn group_ids(&self, name: Option<&Arc<str>>) -> Vec<GroupId> {
        let groups = self.groups.load();
        let is_meant =
            |known: &Option<Arc<str>>| known.as_ref().is_some_and(|known| name.is_none_or(|name| known == name));
        let numbered = groups.iter().zip(0u16..);
        numbered.filter(|(known, _)| is_meant(known)).map(|(_, id)| GroupId(id)).collect()
    }

    /// The courier to a peer; one that is new has told everything before `sequence`.
    fn courier(&self, url: &str, sequence: u64) -> Arc<Courier> {
        let mut couriers = self.couriers.lock();
        if let Some(courier) = couriers.get(url) {
            return courier.clone();
        }
        let courier = Arc::new(Courier {
            confirmed: Arc::new(Progress::from(sequence.saturating_sub(1))),
            told: Mutex::default(),
            running: AtomicBool::new(false),
        });
        couriers.insert(url.to_owned(), courier.clone());
        courier
    }
}

impl Progress {
    fn from(reached: u64) -> Self {
        Progress { reached: AtomicU64::new(reached), grown: Notify::new() }
    }

    fn now(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }

    fn advance(&self, to: u64) {
        if self.reached.fetch_max(to, Ordering::SeqCst) < to {
            self.grown.notify_waiters();
        }
    }

    /// Returns when it is as large as that.
    pub async fn reaches(&self, wanted: u64) {
        loop {
            let mut grown = pin!(self.grown.notified());
            grown.as_mut().enable();
            if self.now() >= wanted {
                return;
            }
            grown.await;
        }
    }
}

impl Courier {
    fn confirm(&self, sequence: u64) {
        self.confirmed.advance(sequence);
    }

    fn note(&self, sequence: u64, state: NodeState, entries: u64) {
        let mut told = self.told.lock();
        if told.outcomes.len() >= OUTCOMES_MAX {
            told.outcomes.pop_front();
        }
        told.outcomes.push_back((sequence, state, entries));
    }

    /// What became of these purges together.
    fn outcome(&self, sequences: &[u64]) -> (NodeState, u64) {
        let told = self.told.lock();
        let last_said = |sequence: &u64| told.outcomes.iter().rev().find(|(noted, ..)| noted == sequence);
        sequences.iter().filter_map(last_said).fold(
            (NodeState::Confirmed, 0),
            |(together, sum), (_, state, entries)| {
                (if *state == NodeState::Confirmed { together } else { *state }, sum + entries)
            },
        )
    }
}

impl Cache {
    /// Purges on all members of the fleet and tells what each of them did. The purge goes on when nobody waits for this any
    /// more, and members that did not confirm in time are told until they do.
    pub async fn purge_everywhere(self: &Arc<Self>, request: PurgeRequest) -> Receipt {
        let started = Instant::now();
        let (fleet, now) = (self.fleet.load_full(), self.now().monotonic);
        let mut nodes = JoinSet::new();
        let (own, sequence);
        // More than fits into one record is several purges, which hold when the last one holds.
        let records = in_records(request.targets);
        let (mut committing, mut holds) = (None, None);
        if request.dry_run {
            sequence = self.purges.sequence();
            let records = records.into_iter().zip((0..=u64::MAX).rev()).map(|(targets, sequence)| Record {
                position: Position { incarnation: self.incarnation(), sequence },
                soft: request.soft,
                targets,
            });
            let records = records.collect();
            let notice = Arc::new(Notice { dry_run: true, records, ..Notice::default() });
            for (url, peer) in fleet.told(now) {
                let (url, peer, notice) = (url.to_owned(), peer.clone(), notice.clone());
                nodes.spawn(async move {
                    let asked = tokio::time::timeout(request.timeout, peer.purge(&notice)).await;
                    let (state, entries) = match asked {
                        Ok(Ok(reply)) => (NodeState::Confirmed, reply.entries.iter().map(|(_, entries)| entries).sum()),
                        Ok(Err(PurgeFailure::Cannot)) => (NodeState::CannotPurge, 0),
                        Ok(Err(PurgeFailure::Unreachable(_))) | Err(_) => (NodeState::Unreachable, 0),
                    };
                    NodeReceipt { url, state, entries, milliseconds: milliseconds_since(started) }
                });
            }
            own = self.receive_purges(Notice::clone(&notice)).await.entries.iter().map(|(_, entries)| entries).sum();
        } else {
            // Who has left is not waited for; should it come back, it hears of everything when it is connected.
            self.spread.couriers.lock().retain(|url, _| fleet.told_peer(url, now).is_some());
            let accept = |targets| self.purges.accept(targets, request.soft, now);
            let positions: Vec<Position> = records.into_iter().map(accept).collect();
            let sequences: Vec<u64> = positions.iter().map(|position| position.sequence).collect();
            sequence = sequences.last().copied().unwrap_or_default();
            let applying = tokio::spawn(self.clone().apply_purges());
            let (commit, committed) = watch::channel(false);
            let by_majority = self.commits_by_majority(&fleet);
            if by_majority {
                holds = Some(committed.clone());
            }
            for (url, peer) in fleet.told(now) {
                let courier = self.spread.courier(url, sequence);
                // Who is no member and not reached either may be gone for good.
                let is_gone = peer.health() == Health::Down && fleet.peer(url).is_none();
                let patience = if is_gone { request.timeout.min(fleet.peer_deadline()) } else { request.timeout };
                self.send_off(url, &courier);
                let (url, mut committed, sequences) = (url.to_owned(), committed.clone(), sequences.clone());
                nodes.spawn(async move {
                    // A majority that confirmed may have died since, or somebody who is no member any more has a lease.
                    let otherwise = tokio::select! {
                        biased;
                        () = courier.confirmed.reaches(sequence), if !by_majority => NodeState::Confirmed,
                        Ok(_) = committed.wait_for(|committed| *committed) => NodeState::WithoutLease,
                        () = tokio::time::sleep(patience) => NodeState::Unreachable,
                    };
                    let confirmed = courier.confirmed.now() >= sequence;
                    let (state, entries) = if confirmed { courier.outcome(&sequences) } else { (otherwise, 0) };
                    NodeReceipt { url, state, entries, milliseconds: milliseconds_since(started) }
                });
            }
            if by_majority {
                // When everybody is being told.
                committing = Some(AbortOnDrop(tokio::spawn(self.clone().commit(fleet.clone(), sequence, commit))));
            }
            let _ = applying.await;
            own = positions.iter().filter_map(|position| self.purges.entries(*position)).sum();
        }
        let own = NodeReceipt {
            url: fleet.own_url().unwrap_or_default().to_owned(),
            state: NodeState::Confirmed,
            entries: own,
            milliseconds: milliseconds_since(started),
        };
        let mut others = nodes.join_all().await;
        drop(committing);
        let holds = holds.is_none_or(|committed| *committed.borrow());
        others.sort_by(|one, other| one.url.cmp(&other.url));
        let nodes: Vec<NodeReceipt> = std::iter::once(own).chain(others).collect();
        Receipt {
            sequence,
            complete: holds
                && nodes.iter().all(|node| matches!(node.state, NodeState::Confirmed | NodeState::WithoutLease)),
            entries: nodes.iter().map(|node| node.entries).sum(),
            nodes,
        }
    }

    /// Whether a request that came when `asked` was applied may have what purges beyond `reach` may have overtaken.
    pub(crate) fn may_have(&self, group: &Group, key: &[u8], tags: &Tags, reach: u64, asked: &Stamp) -> bool {
        if asked.arrival <= reach {
            return true;
        }
        let stamp = Stamp { arrival: reach, ..Stamp::default() };
        let overtaken = self.purges.overtaken(&stamp, Overtaking::Any, &group.name, key, tags);
        overtaken.is_none_or(|first| first > asked.arrival)
    }

    /// Which purges are recorded now: to be kept with a request that goes past the cache.
    pub fn purges_known(&self) -> Stamp {
        self.purges.known()
    }

    /// What remembering purges is charged for, in bytes.
    pub fn purges_charged_bytes(&self) -> usize {
        self.purges.charged_bytes()
    }

    /// How many purges this node has accepted, and how many of them not every member has confirmed.
    pub fn purges_accepted(&self) -> (u64, u64) {
        let (sequence, fleet) = (self.purges.sequence(), self.fleet.load());
        let couriers = self.spread.couriers.lock();
        let confirmed = fleet.told(self.now().monotonic).filter_map(|(url, _)| couriers.get(url));
        let confirmed = confirmed.map(|courier| courier.confirmed.now()).min();
        (sequence, confirmed.map_or(0, |confirmed| sequence.saturating_sub(confirmed)))
    }

    /// Former members that have not said goodbye: no purge is complete without them.
    pub fn former_members(&self) -> Vec<String> {
        self.fleet.load().former(self.now().monotonic).map(|(url, _)| url.to_owned()).collect()
    }

    /// What another node tells of purges; answers when it is applied.
    pub async fn receive_purges(self: &Arc<Self>, notice: Notice) -> Reply {
        let now = self.now().monotonic;
        // Before it is looked what the asker lacks: what is recorded later, somebody else has to see in the book.
        let lease = notice.lease.and_then(|question| self.book_lease(question));
        if notice.dry_run {
            let mut entries = Vec::with_capacity(notice.records.len());
            for record in &notice.records {
                let mut count = 0;
                for target in &record.targets {
                    count += self.act_on(target, Action::Count).await;
                }
                entries.push((record.position, count));
            }
            return Reply { understood: true, applied: self.purges.applied().vector, entries, missing: None, lease };
        }
        let says_nothing = notice.records.is_empty() && notice.claims.is_empty() && notice.lease.is_some();
        let understood = says_nothing || self.purges.record(&notice, now).is_ok();
        if understood && !says_nothing {
            // Whoever asked may leave; what is recorded has to be applied all the same.
            let _ = tokio::spawn(self.clone().apply_purges()).await;
        }
        let entries = notice
            .records
            .iter()
            .map(|record| (record.position, self.purges.entries(record.position).unwrap_or_default()));
        let missing = notice.known.as_ref().map(|known| self.purges.missing(known, now));
        let applied = self.purges.applied().vector;
        Reply {
            understood,
            applied,
            entries: entries.collect(),
            missing: missing.filter(|missing| !missing.claims.is_empty()).map(Box::new),
            // After it is known what is applied.
            lease: lease.map(|answer| self.with_booked(answer, notice.lease)),
        }
    }

    /// The first words on a new connection to a peer: what this node knows.
    pub fn purges_greeting(&self) -> Notice {
        Notice { known: Some(self.purges.known().vector), ..Notice::default() }
    }

    /// The peer's answer to the greeting: applies what this node lacks, and tells what the peer lacks.
    pub async fn purges_greeted(self: &Arc<Self>, reply: Reply) -> Option<Notice> {
        if let Some(missing) = reply.missing {
            self.receive_purges(*missing).await;
        }
        let lacking = self.purges.missing(&reply.applied, self.now().monotonic);
        (!lacking.claims.is_empty()).then_some(lacking)
    }

    /// Purges these keys on all nodes, for the answer to an unsafe request, which waits at most `patience`.
    pub(crate) async fn purge_keys(
        self: &Arc<Self>,
        group: &Group,
        keys: Vec<Bytes>,
        patience: Duration,
    ) -> (u64, Option<Position>) {
        if keys.is_empty() {
            return (0, None);
        }
        let targets = keys.into_iter().map(|key| Target::Key(group.name.clone(), key)).collect();
        let receipt =
            self.purge_everywhere(PurgeRequest { targets, timeout: patience, ..PurgeRequest::default() }).await;
        let position = Position { incarnation: self.incarnation(), sequence: receipt.sequence };
        (receipt.nodes.first().map_or(0, |own| own.entries), Some(position))
    }

    /// The owner of a key was seen to lack purges that this node knows: it is told, behind.
    pub(crate) fn tell_owner(self: &Arc<Self>, key: &[u8]) {
        let fleet = self.fleet.load();
        let Some(url) = fleet.owner_url(key) else { return };
        let courier = self.spread.courier(url, self.purges.sequence() + 1);
        courier.told.lock().lacks = true;
        self.send_off(url, &courier);
    }

    /// Up to which of this node's purges the peer has confirmed; `None` when it has left.
    pub(crate) fn confirmed_by(&self, url: &str) -> Option<Arc<Progress>> {
        // One that were made here would tell nobody.
        Some(self.spread.couriers.lock().get(url)?.confirmed.clone())
    }

    /// Starts the task that tells the peer, unless it runs.
    fn send_off(self: &Arc<Self>, url: &str, courier: &Arc<Courier>) {
        if !courier.running.swap(true, Ordering::SeqCst) {
            tokio::spawn(self.clone().tell(url.to_owned(), courier.clone()));
        }
    }

    async fn tell(self: Arc<Self>, url: String, courier: Arc<Courier>) {
        let mut pause = RETRY_MIN;
        loop {
            let Some(peer) = self.fleet.load().told_peer(&url, self.now().monotonic).cloned() else {
                // It left: nobody waits for it any more.
                let mut couriers = self.spread.couriers.lock();
                if couriers.get(&url).is_some_and(|present| Arc::ptr_eq(present, &courier)) {
                    couriers.remove(&url);
                }
                return;
            };
            match self.tell_once(&*peer, &courier).await {
                Ok(true) => pause = RETRY_MIN,
                Ok(false) => {
                    courier.running.store(false, Ordering::SeqCst);
                    let more = courier.told.lock().lacks || courier.confirmed.now() < self.purges.sequence();
                    if !more || courier.running.swap(true, Ordering::SeqCst) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = url, %error, "a peer was not told of a purge");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Tells the peer once; says whether there was anything to tell.
    async fn tell_once(&self, peer: &dyn Peer, courier: &Courier) -> Result<bool, PurgeFailure> {
        let confirmed = courier.confirmed.now();
        let now = || self.now().monotonic;
        let lacks = courier.told.lock().lacks;
        let notice = if lacks { Notice::default() } else { self.purges.own_after(confirmed, now()) };
        if !lacks && notice.claims.is_empty() {
            return Ok(false);
        }
        let own = |notice: &Notice| {
            let own = notice.claims.iter().find(|claim| claim.position.incarnation == self.incarnation());
            own.map(|claim| claim.position.sequence)
        };
        match peer.purge(&notice).await {
            Ok(reply) if reply.understood && !lacks => self.confirmed(courier, &reply, own(&notice)),
            // It lacks more than that: a new life, or one that was out of reach.
            Ok(reply) => {
                let missing = self.purges.missing(&reply.applied, now());
                let reply = match missing.claims.is_empty() {
                    true => reply,
                    false => peer.purge(&missing).await?,
                };
                if reply.understood {
                    courier.told.lock().lacks = false;
                    self.confirmed(courier, &reply, own(&missing));
                    let applied = reply.applied.of(self.incarnation());
                    courier.confirm(applied);
                }
            }
            Err(PurgeFailure::Cannot) => {
                courier.told.lock().lacks = false;
                if let Some(last) = own(&notice) {
                    // Of one that a later, equal one stands for there is no record, and it was not carried out either.
                    let first = confirmed.max(last.saturating_sub(OUTCOMES_MAX as u64)) + 1;
                    (first..=last).for_each(|sequence| courier.note(sequence, NodeState::CannotPurge, 0));
                    courier.confirm(last);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn confirmed(&self, courier: &Courier, reply: &Reply, sequence: Option<u64>) {
        for (position, entries) in &reply.entries {
            if position.incarnation == self.incarnation() {
                courier.note(position.sequence, NodeState::Confirmed, *entries);
            }
        }
        sequence.into_iter().for_each(|sequence| courier.confirm(sequence));
    }

    /// Applies what the log holds and is not applied yet.
    pub(crate) async fn apply_purges(self: Arc<Self>) {
        let _turn = self.spread.applying.lock().await;
        while let Some(batch) = self.purges.front() {
            let entries = self.apply(&batch).await;
            self.purges.finish(&batch, entries);
        }
    }

    async fn apply(&self, batch: &Batch) -> u64 {
        for target in &batch.targets {
            if let Target::Key(name, key) = &**target {
                for group in self.spread.group_ids(Some(name)) {
                    self.fences.raise(HashedKey::new(group, key).hash());
                }
            }
        }
        let wide: Vec<&Arc<Target>> =
            batch.targets.iter().filter(|target| !matches!(&***target, Target::Key(..))).collect();
        if !wide.is_empty() {
            let groups = self.spread.groups.load();
            self.flights.detach(|flight, landed| {
                let name = groups.get(usize::from(flight.group.0)).and_then(Option::as_deref).unwrap_or_default();
                wide.iter().any(|target| match (&***target, landed) {
                    (Target::Tag(..), Some(landed)) => target.matches(name, &flight.key, landed.tags()),
                    (target, _) => target.matches_key(name, &flight.key),
                })
            });
            // Who passed the check of `insert` before this purge was recorded has stored by now, and is found below.
            self.slot_writers.iter().for_each(|writer| drop(writer.lock()));
            // It knows hashes alone.
            self.remembered.clear();
        }
        let action = if batch.soft { Action::Expire } else { Action::Remove };
        let mut entries = 0;
        for target in &batch.targets {
            entries += self.act_on(target, action).await;
        }
        entries
    }

    /// Does it to all entries that match; returns how many.
    async fn act_on(&self, target: &Target, action: Action) -> u64 {
        // Of a group that never fetched anything there is nothing here.
        let groups = self.spread.group_ids(target.group());
        let mut entries = 0;
        match target {
            Target::Key(_, key) => {
                for group in groups {
                    entries += self.act_on_key(group, key, action, |_| true);
                }
            }
            Target::Path(_, path) => {
                let with_query = [path, &b"?"[..]].concat();
                for group in groups {
                    entries += self.act_on_key(group, path, action, |_| true);
                    entries += self.act_on_prefix(group, &with_query, action).await;
                }
            }
            Target::Everything | Target::Group(_) | Target::Prefix(..) => {
                for group in groups {
                    entries += self.act_on_prefix(group, target.value(), action).await;
                }
            }
            Target::Tag(group, tag) => {
                let groups = if group.is_some() { groups.into_iter().map(Some).collect() } else { vec![None] };
                for group in groups {
                    entries += self.act_on_tag(group, tag, action).await;
                }
            }
        }
        entries
    }

    async fn act_on_tag(&self, group: Option<GroupId>, tag: &[u8], action: Action) -> u64 {
        let mut entries = 0;
        let mut place = None;
        loop {
            let (keys, next) = self.store.keys_with_tag(group, tag, place);
            for (group, key) in keys.iter() {
                entries += self.act_on_key(group, key, action, |entry| entry.tags().may_have(tag));
            }
            if next.is_none() {
                return entries;
            }
            place = next;
            tokio::task::yield_now().await;
        }
    }

    async fn act_on_prefix(&self, group: GroupId, prefix: &[u8], action: Action) -> u64 {
        let mut entries = 0;
        let mut before = FoundKeys::default();
        loop {
            let keys = self.store.keys_with_prefix(group, prefix, before.last());
            for (group, key) in keys.iter() {
                entries += self.act_on_key(group, key, action, |_| true);
            }
            if keys.last().is_none() {
                return entries;
            }
            before = keys;
            tokio::task::yield_now().await;
        }
    }

    fn act_on_key(&self, group: GroupId, key: &[u8], action: Action, matches: impl Fn(&Entry) -> bool) -> u64 {
        let key = HashedKey::new(group, key);
        let _writing = self.slot_writer(&key).lock();
        if action != Action::Count {
            self.remembered.forget(key.hash());
        }
        let Some((slot, role)) = self.store.peek(&key) else { return 0 };
        let all = slot.entries().count();
        let matching: Vec<_> = slot.entries().filter(|entry| matches(entry)).cloned().collect();
        let now = self.now();
        match action {
            _ if matching.is_empty() => {}
            Action::Count => {}
            Action::Remove if matching.len() == all => drop(self.store.remove(&key)),
            Action::Remove | Action::Expire => {
                let changed = match action {
                    Action::Expire => Some(slot.with_each(|entry| matches(entry).then(|| entry.expired(now)))),
                    _ => slot.without_each(|entry| matches(entry)),
                };
                let stored = changed.map(|changed| self.store.insert(role, &key, changed));
                if !matches!(stored, Some(Inserted::Stored { .. })) {
                    self.store.remove(&key);
                }
            }
        }
        matching.len() as u64
    }
}

impl Landed {
    /// By which tags, and by how many purges of the log, it may have been overtaken.
    pub(crate) fn tags_and_reach(&self) -> (&Tags, u64) {
        match self {
            Landed::Streaming(head) => (&head.tags, head.dating.reach),
            Landed::Entry(entry, .., dating) => (entry.tags(), dating.reach),
        }
    }

    /// The names under which it can be purged beside its key.
    pub(crate) fn tags(&self) -> &Tags {
        self.tags_and_reach().0
    }
}

/// A task that ends with whoever wanted it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn milliseconds_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Until a peer that was not reached is told again, at first and at most; in between it doubles.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Purges whose outcome at a peer is remembered for receipts; callers wait for few at a time.
const OUTCOMES_MAX: usize = 1024;
/// How long a purge waits for the members where its caller does not say.
pub const PURGE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
