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
    former: Vec<Former>,
    /// How long former members are told of purges.
    forget: Duration,
    /// How the ring sees a key: `None` where it cannot carry it.
    ring_key: fn(&[u8]) -> Option<std::borrow::Cow<'_, [u8]>>,
}

/// A member that was found and is not found any more. It may only have left the ring: behind a split of the network, while it
/// drains, or while it is watched after it came back, it lives on and answers what it has. So it is told of purges as members are.
pub struct Former<P: ?Sized = dyn Peer> {
    /// Its URL.
    pub url: String,
    /// How it is told.
    pub peer: Arc<P>,
    /// When it was found last, on the clock of [`crate::clock::Now::monotonic`].
    pub since: Duration,
}

impl<P: ?Sized> Clone for Former<P> {
    fn clone(&self) -> Self {
        Former { url: self.url.clone(), peer: self.peer.clone(), since: self.since }
    }
}

impl<P: ?Sized> Former<P> {
    /// Who is a former member once there is another list: of the other members of the list `before` and of those who were former
    /// then, whoever does not come with the new list, for `forget`.
    pub fn of(
        former: &[Self],
        before: impl Iterator<Item = (String, Arc<P>)>,
        comes: impl Fn(&str) -> bool,
        forget: Duration,
        now: Duration,
    ) -> Vec<Self> {
        let newly = before.map(|(url, peer)| Former { url, peer, since: now });
        let mut all: Vec<Self> = former.iter().cloned().chain(newly).collect();
        all.retain(|former| !comes(&former.url) && former.since.saturating_add(forget) > now);
        if all.len() > PEERS_MAX {
            all.drain(..all.len() - PEERS_MAX);
        }
        all
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

    /// Whether it ended in good order, as far as is known: it said goodbye, and was not reached since.
    fn has_left(&self) -> bool {
        false
    }

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
        self.peer.fetch_with(&self.ask, Aside { have: self.have, interims, ..Aside::default() }).await
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
            former: Vec::new(),
            forget: Duration::ZERO,
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
        Fleet { ring: Some(ring), peers, urls, ring_id, peer_deadline, ring_key, ..Fleet::alone() }
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

    /// The same, where these were members; they are told of purges for `forget`.
    pub fn with_former(self, former: Vec<Former>, forget: Duration) -> Self {
        Fleet { former, forget, ..self }
    }

    /// Who hears of purges: all other members, and former ones that have neither said goodbye nor been gone for too long.
    pub fn told(&self, now: Duration) -> impl Iterator<Item = (&str, &Arc<dyn Peer>)> {
        self.named_peers().chain(self.former(now))
    }

    /// The one of them with this URL.
    pub fn told_peer(&self, url: &str, now: Duration) -> Option<&Arc<dyn Peer>> {
        self.told(now).find(|(named, _)| *named == url).map(|(_, peer)| peer)
    }

    /// Former members that may live on.
    pub fn former(&self, now: Duration) -> impl Iterator<Item = (&str, &Arc<dyn Peer>)> {
        let counts = move |former: &&Former| former.since.saturating_add(self.forget) > now && !former.peer.has_left();
        self.former.iter().filter(counts).map(|former| (&*former.url, &former.peer))
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

    /// Former members are kept whatever they are.
    fn former(url: &str, since_seconds: u64) -> Former<str> {
        Former { url: url.to_owned(), peer: url.into(), since: Duration::from_secs(since_seconds) }
    }

    fn after(
        before: &[Former<str>],
        members: &[&str],
        list: &[&str],
        forget: Duration,
        now: u64,
    ) -> Vec<(String, u64)> {
        let members = members.iter().map(|url| ((*url).to_owned(), Arc::from(*url)));
        let comes = |url: &str| list.contains(&url);
        let all = Former::of(before, members, comes, forget, Duration::from_secs(now));
        all.into_iter().map(|former| (former.url, former.since.as_secs())).collect()
    }

    #[test]
    fn who_is_not_found_any_more_is_a_former_member_until_it_is_found_again_or_forgotten() {
        let url = |url: &str, since| (url.to_owned(), since);
        assert_eq!(after(&[], &["a", "b"], &["a", "b"], FORGET, 10), []);
        assert_eq!(after(&[], &["a", "b"], &["a"], FORGET, 10), [url("b", 10)]);
        // From the time when it was found last, also while others come and go.
        let b = [former("b", 10)];
        assert_eq!(after(&b, &["a"], &["c"], FORGET, 20), [url("b", 10), url("a", 20)]);
        assert_eq!(after(&b, &["a"], &["a", "b"], FORGET, 20), []);
        assert_eq!(after(&b, &["a"], &["a"], FORGET, 609), [url("b", 10)]);
        assert_eq!(after(&b, &["a"], &["a"], FORGET, 610), []);
        // Another configuration counts from the same time.
        assert_eq!(after(&b, &["a"], &["a"], FORGET / 10, 70), []);
        assert_eq!(after(&b, &["a"], &[], Duration::ZERO, 10), []);
    }

    #[test]
    fn of_very_many_the_last_are_kept() {
        let urls: Vec<String> = (0..=PEERS_MAX).map(|number| number.to_string()).collect();
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let kept = after(&[], &urls, &[], FORGET, 0);
        assert_eq!((kept.len(), &*kept[0].0), (PEERS_MAX, "1"));
    }
}
