//! Who the peers are now: a ring and one source each, replaced as a whole.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::config::PEERS_MAX;
use crate::purge::{Notice, Reply};
use crate::ring::Ring;
use crate::source::{Aside, Ask, EntryId, FetchError, Fetched, InterimSink, Source};

/// A node's view of its fleet at one moment. A fill keeps the view it started with.
pub struct Fleet {
    ring: Option<Ring>,
    /// By the ring's index; `None` is this node itself.
    peers: Vec<Option<Arc<dyn Peer>>>,
    /// By the ring's index: by what name purges know the nodes.
    urls: Vec<String>,
    ring_id: String,
    /// Whether a purge needs a majority and leases, rather than every member.
    strict: bool,
    /// Whether memory moves with the keys when members come and go.
    warm: bool,
    peer_deadline: Duration,
    lost: Vec<Lost>,
    /// How the ring sees a key: `None` where it cannot carry it.
    ring_key: fn(&[u8]) -> Option<std::borrow::Cow<'_, [u8]>>,
}

/// A former member that was not listed and has not left: it fell silent, or its name is gone. It may live on behind a split of the
/// network and answer what it has: no purge is complete without it until `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its URL.
    pub url: String,
    /// When it is taken to be gone for good, on the clock of [`crate::clock::Now::monotonic`].
    pub until: Duration,
}

impl Lost {
    /// Whom a node misses once it has another list: of the other members of the list `before`, which are named with whether each has
    /// left in good order, and of those that were `missed` then, whoever neither `comes` with the new list nor has left. One that is
    /// newly missed is so for `forget` from `now`; where that is zero, nobody is missed.
    pub fn of(
        missed: &[Lost],
        before: &[(&str, bool)],
        comes: impl Fn(&str) -> bool,
        forget: Duration,
        now: Duration,
    ) -> Vec<Lost> {
        if forget.is_zero() {
            return Vec::new();
        }
        let has_left = |url: &str| before.iter().any(|(member, left)| *member == url && *left);
        let newly = before.iter().map(|(url, _)| Lost { url: (*url).to_owned(), until: now.saturating_add(forget) });
        let mut lost: Vec<Lost> = missed.iter().cloned().chain(newly).collect();
        lost.retain(|lost| !comes(&lost.url) && !has_left(&lost.url) && lost.until > now);
        if lost.len() > PEERS_MAX {
            lost.drain(..lost.len() - PEERS_MAX);
        }
        lost
    }
}

/// What a node wants of another one beside answers.
#[async_trait]
pub trait Peer: Source + 'static {
    /// Asks as [`Source::fetch`] does, without a task that waits: `then` is called once, by whoever hears the peer first or at
    /// once, and must not wait. `have` names the body that the asker has. A question whose `then` was not called yet cannot be
    /// cancelled.
    fn begin(self: Arc<Self>, ask: &Ask, have: EntryId, then: Then) {
        then(Begun::Later(Box::new(Unasked { peer: self, ask: ask.clone(), have })));
    }

    /// Tells it of purges, and waits until it has applied them.
    ///
    /// # Errors
    /// Whether it has applied them is not known.
    async fn purge(&self, notice: &Notice) -> Result<Reply, PurgeFailure>;

    /// Lets it, if it is the key's owner, take what this node has for `ask`.
    ///
    /// # Errors
    /// It was not taken.
    async fn offer(&self, ask: &Ask) -> Result<(), FetchError>;

    /// Lets it take what this node, the owner of a hot key, has for `ask`, and answer peeks with it for a while.
    ///
    /// # Errors
    /// It did not; or it is no node that could.
    async fn replicate(&self, ask: &Ask) -> Result<(), FetchError> {
        let _ = ask;
        Err(FetchError::unreachable("this peer takes no replicas"))
    }

    /// What it has in memory for `ask`.
    ///
    /// # Errors
    /// As [`Source::fetch`].
    async fn peek(&self, ask: &Ask) -> Result<Option<Fetched>, FetchError>;

    /// Asks it, as the node that grants them, for a permit for a request at the origin of `group`; the permit lasts as long
    /// as the body of the answer, which never says anything.
    ///
    /// # Errors
    /// [`FetchError::Refused`]: it is the one to ask, and too many wait. [`FetchError::Unreachable`]: another one is asked.
    async fn permit(&self, group: &Arc<str>, purpose: Purpose) -> Result<Fetched, FetchError>;

    /// The random number of its present life, where it is known.
    fn incarnation(&self) -> Option<u64>;

    /// Whether it is worth a question now.
    fn health(&self) -> Health {
        Health::Up
    }
}

/// How it stands with a peer, as far as the choice of whom to ask goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers, or was never yet reached.
    Up,
    /// It is leaving: it is asked for what it has, and not to load anything.
    Draining,
    /// It is known not to answer.
    Down,
}

/// Why a peer has not confirmed a purge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PurgeFailure {
    /// It was not reached, or did not answer.
    #[error(transparent)]
    Unreachable(#[from] FetchError),
    /// Its protocol cannot say it.
    #[error("it speaks a protocol without purges")]
    Cannot,
}

/// What is known of an answer when the first of it is.
#[allow(clippy::large_enum_variant, reason = "one lives for a moment per question, and a box would be an allocation")]
pub enum Begun {
    /// All of it: a head without its body, and the body, which is as long as declared and undamaged.
    Whole(Fetched, Bytes),
    /// It takes longer, or failed; dropping this cancels the question.
    Later(Box<dyn Pending>),
}

/// An answer that is waited for.
#[async_trait]
pub trait Pending: Send {
    /// Waits for the head; `interims` hears the interim answers before it.
    ///
    /// # Errors
    /// As [`Source::fetch`].
    async fn answer(self: Box<Self>, interims: &dyn InterimSink) -> Result<Fetched, FetchError>;
}

/// A question that a peer is asked when somebody waits for its answer.
pub(crate) struct Unasked<P: ?Sized> {
    pub peer: Arc<P>,
    pub ask: Ask,
    pub have: EntryId,
}

#[async_trait]
impl<P: Source + ?Sized> Pending for Unasked<P> {
    async fn answer(self: Box<Self>, interims: &dyn InterimSink) -> Result<Fetched, FetchError> {
        self.peer.fetch_with(&self.ask, Aside { have: self.have, interims }).await
    }
}

/// What is done with what [`Peer::begin`] learns.
pub type Then = Box<dyn FnOnce(Begun) + Send>;

/// What a permit is wanted for (see [`crate::permits`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The request has not begun: it waits for its turn.
    Begin,
    /// The request is under way, and another node than before is to count it.
    Continue,
}

/// Who is asked next for a key.
#[derive(Clone)]
pub enum Step {
    /// This node loads from its origin.
    Here,
    /// This peer is asked.
    Peer(Arc<dyn Peer>),
}

impl Fleet {
    /// A fleet of one: every key is ours.
    pub fn alone() -> Self {
        Fleet {
            ring: None,
            peers: Vec::new(),
            urls: Vec::new(),
            ring_id: String::new(),
            strict: false,
            warm: true,
            peer_deadline: PEER_DEADLINE_DEFAULT,
            lost: Vec::new(),
            ring_key: |key| Some(key.into()),
        }
    }

    /// A fleet on `ring`. `peers` follows the ring's order; the place of this node itself is `None` (there may be none: such a
    /// node owns nothing). `ring_key` gives the bytes by which the ring knows a key.
    pub fn new(
        ring: Ring,
        peers: Vec<Option<Arc<dyn Peer>>>,
        ring_key: fn(&[u8]) -> Option<std::borrow::Cow<'_, [u8]>>,
    ) -> Self {
        let ring_id = ring.id().to_string();
        let urls = (0..peers.len()).map(|index| index.to_string()).collect();
        let peer_deadline = PEER_DEADLINE_DEFAULT;
        let lost = Vec::new();
        Fleet { ring: Some(ring), peers, urls, ring_id, strict: false, warm: true, peer_deadline, lost, ring_key }
    }

    /// The same with the URLs of all nodes, in the ring's order.
    pub fn named(self, urls: Vec<String>) -> Self {
        debug_assert_eq!(urls.len(), self.peers.len());
        Fleet { urls, ..self }
    }

    /// The same, where a majority decides about purges and only who holds a lease answers from memory ([`crate::purge::lease`]).
    pub fn with_leases(self, strict: bool) -> Self {
        Fleet { strict, ..self }
    }

    /// Whether that is so here.
    pub fn keeps_leases(&self) -> bool {
        self.strict
    }

    /// The same, where keys change hands with what is in memory of them ([`crate::warm`]), as they do unless said otherwise, or
    /// without.
    pub fn with_warm_resharding(self, warm: bool) -> Self {
        Fleet { warm, ..self }
    }

    /// Whether they do here.
    pub fn is_warm(&self) -> bool {
        self.warm
    }

    /// The same with peers that may be silent for so long (`fleet.timeouts.silence`).
    pub fn with_peer_deadline(self, peer_deadline: Duration) -> Self {
        Fleet { peer_deadline, ..self }
    }

    /// The same, where these were members and have not left.
    pub fn with_lost(self, lost: Vec<Lost>) -> Self {
        Fleet { lost, ..self }
    }

    /// The URLs of former members that may live on.
    pub fn lost(&self, now: Duration) -> impl Iterator<Item = &str> {
        self.lost.iter().filter(move |lost| lost.until > now).map(|lost| &*lost.url)
    }

    /// How long a peer may be silent: for so long a client waits for all nodes to hear of what its request made invalid.
    pub fn peer_deadline(&self) -> Duration {
        self.peer_deadline
    }

    /// Whether this node is the key's owner by its own view of the ring, whatever anybody's health.
    pub fn owns(&self, key: &[u8]) -> bool {
        match self.owner_index(key) {
            None => true,
            Some(index) => self.peers[index].is_none(),
        }
    }

    /// The ring's index of the key's owner; `None` in a fleet of one.
    pub fn owner_index(&self, key: &[u8]) -> Option<usize> {
        let ring = self.ring.as_ref()?;
        ring.owner(&(self.ring_key)(key).unwrap_or(key.into()))
    }

    /// Whom to ask, in order: the owner, then each next peer on the ring, and this node where its own turn comes, at the latest
    /// at the end. Nothing comes after [`Step::Here`]. Peers that are known to be down or leaving are left out.
    pub fn steps(&self, key: &[u8]) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(ring) = &self.ring {
            let ring_key = (self.ring_key)(key).unwrap_or(key.into());
            for index in ring.preference(&ring_key) {
                match &self.peers[index] {
                    Some(peer) if peer.health() != Health::Up => {}
                    Some(peer) => steps.push(Step::Peer(peer.clone())),
                    None => break,
                }
            }
        }
        steps.push(Step::Here);
        steps
    }

    /// The key's owner; `None` where that is this node.
    pub fn owner(&self, key: &[u8]) -> Option<&Arc<dyn Peer>> {
        self.peers[self.owner_index(key)?].as_ref()
    }

    /// The nodes after the key's owner, in the ring's order; `None` is this node itself.
    pub fn after_owner(&self, key: &[u8]) -> impl Iterator<Item = Option<&Arc<dyn Peer>>> {
        let ring_key = (self.ring_key)(key).unwrap_or(key.into()).into_owned();
        let order = self.ring.iter().flat_map(move |ring| ring.preference(&ring_key));
        order.skip(1).map(|index| self.peers[index].as_ref())
    }

    /// The first peer on the ring that could have the key without this node, and is up.
    pub fn stand_in(&self, key: &[u8]) -> Option<&Arc<dyn Peer>> {
        self.first_peer(key, |health| health == Health::Up)
    }

    /// The first peer on the ring that has the key if it stood in for this node: as [`Fleet::stand_in`], but also one that is
    /// leaving by now, because that one still says what it has.
    pub fn stood_in(&self, key: &[u8]) -> Option<&Arc<dyn Peer>> {
        self.first_peer(key, |health| health != Health::Down)
    }

    fn first_peer(&self, key: &[u8], counts: fn(Health) -> bool) -> Option<&Arc<dyn Peer>> {
        let ring_key = (self.ring_key)(key).unwrap_or(key.into());
        let mut peers = self.ring.as_ref()?.preference(&ring_key).filter_map(|index| self.peers[index].as_ref());
        peers.find(|peer| counts(peer.health()))
    }

    /// Whether this node is the key's owner once the peer in its life `leaving` and those that are not up are left out.
    pub fn owns_without(&self, key: &[u8], leaving: u64) -> bool {
        let Some(ring) = &self.ring else { return true };
        let ring_key = (self.ring_key)(key).unwrap_or(key.into());
        let counts = |peer: &Arc<dyn Peer>| peer.health() == Health::Up && peer.incarnation() != Some(leaving);
        let mut acting = ring.preference(&ring_key).map(|index| &self.peers[index]);
        acting.find(|peer| peer.as_ref().is_none_or(counts)).is_some_and(Option::is_none)
    }

    /// All other nodes.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<dyn Peer>> {
        self.peers.iter().flatten()
    }

    /// All other nodes with their URLs.
    pub fn named_peers(&self) -> impl Iterator<Item = (&str, &Arc<dyn Peer>)> {
        self.urls.iter().zip(&self.peers).filter_map(|(url, peer)| Some((&**url, peer.as_ref()?)))
    }

    /// The other node with this URL.
    pub fn peer(&self, url: &str) -> Option<&Arc<dyn Peer>> {
        self.named_peers().find(|(named, _)| *named == url).map(|(_, peer)| peer)
    }

    /// The URL of this node, where it is among them.
    pub fn own_url(&self) -> Option<&str> {
        let index = self.peers.iter().position(Option::is_none)?;
        self.urls.get(index).map(String::as_str)
    }

    /// The URL of the key's owner; `None` where that is this node.
    pub fn owner_url(&self, key: &[u8]) -> Option<&str> {
        let index = self.owner_index(key)?;
        self.peers[index].as_ref()?;
        self.urls.get(index).map(String::as_str)
    }

    /// The ring, where there is one.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Identity of the ring: equal on nodes that agree. Empty in a fleet of one.
    pub fn ring_id(&self) -> &str {
        &self.ring_id
    }
}

/// The peer deadline where nothing else is said.
const PEER_DEADLINE_DEFAULT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const FORGET: Duration = Duration::from_secs(600);

    fn lost(url: &str, until_seconds: u64) -> Lost {
        Lost { url: url.to_owned(), until: Duration::from_secs(until_seconds) }
    }

    #[test]
    fn who_is_missed_was_a_member_or_missed_before_and_has_neither_left_nor_come_back() {
        let at = Duration::from_secs;
        type Case<'a> = (&'a [Lost], &'a [(&'a str, bool)], &'a [&'a str], u64, Vec<Lost>);
        let cases: [Case<'_>; 8] = [
            (&[], &[("a", false), ("b", false)], &["a", "b"], 10, vec![]),
            (&[], &[("a", false), ("b", false)], &["a"], 10, vec![lost("b", 610)]),
            (&[], &[("a", false), ("b", true)], &["a"], 10, vec![]),
            // Who is missed stays so from the time when it was missed first, also while others come and go.
            (&[lost("b", 610)], &[("a", false)], &["c"], 20, vec![lost("b", 610), lost("a", 620)]),
            (&[lost("b", 610)], &[("a", false)], &["a", "b"], 20, vec![]),
            (&[lost("b", 610)], &[("a", false)], &["a"], 609, vec![lost("b", 610)]),
            (&[lost("b", 610)], &[("a", false)], &["a"], 610, vec![]),
            (&[], &[], &["a"], 10, vec![]),
        ];
        for (missed, before, list, now, expected) in cases {
            let found = Lost::of(missed, before, |url| list.contains(&url), FORGET, at(now));
            assert_eq!(found, expected, "{missed:?} {before:?} {list:?} at {now}");
        }
        assert_eq!(Lost::of(&[], &[("a", false)], |_| false, Duration::ZERO, at(10)), []);
    }

    #[test]
    fn of_very_many_the_last_are_missed() {
        let urls: Vec<String> = (0..=PEERS_MAX).map(|number| number.to_string()).collect();
        let before: Vec<(&str, bool)> = urls.iter().map(|url| (&**url, false)).collect();
        let found = Lost::of(&[], &before, |_| false, FORGET, Duration::ZERO);
        assert_eq!((found.len(), &*found[0].url), (PEERS_MAX, "1"));
    }
}
