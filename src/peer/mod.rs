//! The conversation between proxies.
//!
//! **Who asks, who answers.** The ring gives every key one owner. A node that misses asks the owner ([`Peer::load`]); the
//! owner answers from memory or from the origin and never asks a third node, so a question crosses at most one hop whatever
//! the two rings look like. A *peek* ([`Peer::peek`]) is answered from memory alone. Beside questions a node tells others of
//! *purges*, and can *offer* an owner what it was given for the owner's key, which the owner then takes by a peek; an owner can let
//! a further node take a *replica* in the same way.
//! The cache is on both ends: it asks through [`Peer`], and it answers as [`Owner`].
//!
//! **How they talk.** One connection (or a configured few) leads from each node to each other node, opened with the first
//! question and kept. [`handshake`] makes strangers peers; [`protocol`] has the messages. A question goes through these
//! states, seen from the asker:
//!
//! | state   | left by                          | what a failure means here                                    |
//! |---------|----------------------------------|--------------------------------------------------------------|
//! | sent    | `Accepted`, `Loading` (repeated) | *unreachable*: somebody else is asked                        |
//! | waiting | `Head`, `Failure`                | silence: *unreachable*; `Failure`: as the owner says         |
//! | head    | `Data` (repeated), `End`         | *broken*: whoever reads sees it                              |
//! | ended   |                                  | length and checksum were right; only now is the body whole   |
//!
//! **Signs of life.** The owner says `Accepted` at once and `Loading` every quarter of a second until the head. A question
//! without a sign for [`client::Timeouts::silence`] is given up, and so is a connection on which nothing at all arrives. How
//! long a head may take is not decided here: a slow origin is not a dead peer.
//!
//! **Credit.** Of each body the owner sends only as much as the asker has granted, and the asker grants what its reader took.
//! A slow reader therefore slows itself, and costs one window of memory on either side.
//!
//! **What may fail.** A peer that cannot be reached is retried in the background and fails at once meanwhile, so that no
//! request waits for a dead node more than once. A peer that is refused (another secret, another version) says so in
//! [`PeerStatus`]. Garbage ends the connection it came on, and nothing else. With Go's groupcache the older protocol is spoken
//! ([`go`]), but only on a ring that Go peers can be part of ([`link`]).

mod checksum;
pub mod client;
mod connection;
pub mod dial;
mod exchange;
pub mod go;
pub mod go_client;
pub mod handshake;
pub mod link;
pub mod memory;
pub mod protocol;
mod purges;
pub mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::fields::Fields;
use crate::fleet::Purpose;
use crate::peer::handshake::Secrets;
use crate::peer::protocol::Identity;
use crate::purge::{Notice, Reply};
use crate::source::{Aside, Ask, EntryId, FetchError, Fetched, Fits, InterimSink, Method, Source, Whole};

/// Somebody who answers peers: the cache.
#[async_trait]
pub trait Owner: Send + Sync {
    /// Answers from memory or from the origin, and never by asking a peer. Dropping the future cancels the question. When
    /// `context.have` is still the body, the answer may be a head with [`crate::source::Hop::not_modified`] and no body.
    /// `interims` hears the interim answers that come before.
    ///
    /// # Errors
    /// [`FetchError::Refused`] for whatever the origin did or did not do: the asker gives this to its clients and asks nobody
    /// else. [`FetchError::Unreachable`] only when the asker should try somebody else.
    async fn get_as_owner(
        &self,
        ask: Ask,
        context: AskContext,
        interims: &dyn InterimSink,
    ) -> Result<Fetched, FetchError>;

    /// What [`Owner::get_as_owner`] would answer, if memory has it whole, fresh and in one piece: most questions are of this
    /// kind, and nothing has to wait for their answer. Everything else, and whatever is in doubt, is `None`; so is what does not
    /// fit, because it will be asked for once more and should count once.
    fn at_once(&self, ask: &Ask, context: &AskContext, fits: Fits<'_>) -> Option<Whole> {
        let _ = (ask, context, fits);
        None
    }

    /// Answers from memory alone, or not.
    ///
    /// # Errors
    /// As [`Owner::get_as_owner`].
    async fn peek(&self, ask: Ask, context: AskContext) -> Result<Option<Fetched>, FetchError> {
        let _ = (ask, context);
        Ok(None)
    }

    /// Hears of purges, and answers when they are applied.
    ///
    /// # Errors
    /// [`FetchError::Unreachable`]: nothing was applied.
    async fn purge(&self, notice: Notice) -> Result<Reply, FetchError> {
        let _ = notice;
        Err(FetchError::unreachable("this node has nothing to purge"))
    }

    /// The asker has an answer for a key that this node may own, and gives it to a peek.
    ///
    /// # Errors
    /// [`FetchError::Unreachable`]: it was not taken.
    async fn offered(&self, ask: Ask, context: AskContext) -> Result<(), FetchError> {
        let _ = (ask, context);
        Ok(())
    }

    /// The asker owns a hot key, and gives a replica of what it has to a peek.
    ///
    /// # Errors
    /// [`FetchError::Unreachable`]: there is none here now.
    async fn replicate(&self, ask: Ask, context: AskContext) -> Result<(), FetchError> {
        let _ = (ask, context);
        Err(FetchError::unreachable("this node takes no replicas"))
    }

    /// Grants the asker a permit for a request at the origin of `group`, for as long as the body of the answer goes on.
    ///
    /// # Errors
    /// [`FetchError::Refused`] when too many wait; [`FetchError::Unreachable`]: another node is to be asked.
    async fn permit(&self, group: &str, purpose: Purpose, context: AskContext) -> Result<Fetched, FetchError> {
        let _ = (group, purpose, context);
        Err(FetchError::unreachable("this node grants nothing"))
    }

    /// The question behind a bare key, as Go peers ask: which target has this key in this group? `None`: there is no such
    /// group, or it has no such key. Without a group's own rule the target is the key after a slash.
    fn ask_for_key(&self, group: &str, key: Bytes) -> Option<Ask> {
        let target = if key.starts_with(b"/") { key.clone() } else { [b"/", &key[..]].concat().into() };
        Some(Ask { group: group.into(), key, target, host: None, method: Method::Get, fields: Fields::empty() })
    }
}

/// What a node knows of purges: the first that is exchanged on a new connection, before any question.
#[async_trait]
pub trait KnowsPurges: Send + Sync {
    /// What to say first.
    fn greeting(&self) -> Notice;

    /// Takes the answer in, whatever this node lacked; returns what the other one lacks.
    async fn greeted(&self, reply: Reply) -> Option<Notice>;
}

/// What an asker says beside its question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AskContext {
    /// The asker's view of the ring; zero when it has none (a Go peer).
    pub ring_id: u64,
    /// The asker's incarnation; zero when it has none.
    pub asker: u64,
    /// The body that the asker holds already.
    pub have: EntryId,
}

/// Somebody who can be asked as the owner of a key.
#[async_trait]
pub trait Peer: Source {
    /// [`Source::fetch`], naming the body that is held already, which the peer may confirm instead of sending it again.
    ///
    /// # Errors
    /// As [`Source::fetch`].
    async fn load(&self, ask: &Ask, have: EntryId) -> Result<Fetched, FetchError> {
        self.fetch_with(ask, Aside { have, ..Aside::default() }).await
    }

    /// Asks for what the peer has in memory, fresh or not; `None` when it has nothing. Never makes the peer fetch.
    ///
    /// # Errors
    /// As [`Source::fetch`].
    async fn peek(&self, ask: &Ask, have: EntryId) -> Result<Option<Fetched>, FetchError>;

    /// How it stands with this peer.
    fn status(&self) -> PeerStatus;
}

/// How it stands with a peer, for statistics and for the choice of the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// In one word.
    pub state: PeerState,
    /// `native`, `go`, or `unknown` before the first contact.
    pub protocol: &'static str,
    /// Its software's version.
    pub version: Option<String>,
    /// Its view of the ring.
    pub ring_id: Option<u64>,
    /// Questions asked of it.
    pub requests: u64,
    /// Questions that it did not answer.
    pub errors: u64,
    /// Bytes of bodies that arrived and were not yet taken by their readers.
    pub buffered_bytes: u64,
    /// The random number of its life, as it said when it was last connected.
    pub incarnation: Option<u64>,
    /// How long it takes to answer from its memory, as a moving average; `None` before the first such answer.
    pub hit_time: Option<std::time::Duration>,
}

/// How it stands with a peer, in one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Connected, or never yet reached and therefore not yet given up.
    Up,
    /// It was reached once and is not now.
    Down(String),
    /// It is leaving and takes no new questions.
    Draining,
    /// It answers and does not want us, or we not it.
    Refused(String),
}

impl PeerState {
    /// The word for statistics.
    pub fn as_str(&self) -> &'static str {
        match self {
            PeerState::Up => "up",
            PeerState::Down(_) => "down",
            PeerState::Draining => "draining",
            PeerState::Refused(_) => "refused",
        }
    }
}

/// What this node tells peers about itself, shared by all of its connections.
pub struct LocalNode {
    software: String,
    incarnation: u64,
    ring_id: AtomicU64,
    secrets: ArcSwap<Secrets>,
    purges: OnceCell<Arc<dyn KnowsPurges>>,
    standing: Mutex<Standing>,
    /// Not a watch channel, which wakes those who wait in a random order.
    standing_changed: Notify,
}

/// What peers are told whenever it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Standing {
    draining: bool,
    ring_id: u64,
}

impl LocalNode {
    /// `incarnation` is the random number of this life of the node, the one in its [`EntryId`]s.
    pub fn new(software: impl Into<String>, incarnation: u64, secrets: Secrets) -> Arc<Self> {
        Arc::new(LocalNode {
            software: software.into(),
            incarnation,
            ring_id: AtomicU64::new(0),
            secrets: ArcSwap::from_pointee(secrets),
            purges: OnceCell::new(),
            standing: Mutex::default(),
            standing_changed: Notify::new(),
        })
    }

    /// Names who knows of purges; the first caller wins.
    pub fn set_purges(&self, purges: Arc<dyn KnowsPurges>) {
        let _ = self.purges.set(purges);
    }

    /// Sets the view of the ring that new questions carry, and tells it to all connected peers.
    pub fn set_ring_id(&self, ring_id: u64) {
        self.ring_id.store(ring_id, Ordering::Relaxed);
        self.change_standing(|standing| standing.ring_id = ring_id);
    }

    /// The present view of the ring.
    pub fn ring_id(&self) -> u64 {
        self.ring_id.load(Ordering::Relaxed)
    }

    /// Replaces the secrets; new handshakes use them.
    pub fn set_secrets(&self, secrets: Secrets) {
        self.secrets.store(Arc::new(secrets));
    }

    /// Tells all connected peers that this node is leaving, or that it stays after all.
    pub fn set_draining(&self, draining: bool) {
        self.change_standing(|standing| standing.draining = draining);
    }

    /// Whether peers are told that this node is leaving.
    pub fn is_draining(&self) -> bool {
        self.standing.lock().draining
    }

    fn change_standing(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.lock());
        self.standing_changed.notify_waiters();
    }

    /// Waits until it is another one than was told.
    async fn standing_other_than(&self, told: Standing) -> Standing {
        loop {
            let changed = self.standing_changed.notified();
            tokio::pin!(changed);
            // Registered before the look: a change between look and wait is not missed.
            changed.as_mut().enable();
            let now = *self.standing.lock();
            if now != told {
                return now;
            }
            changed.await;
        }
    }

    /// The random number of this life of the node.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn secrets(&self) -> Arc<Secrets> {
        self.secrets.load_full()
    }

    fn identity(&self, sign_milliseconds: u32) -> Identity {
        Identity {
            software: self.software.clone(),
            ring_id: self.ring_id(),
            incarnation: self.incarnation,
            draining: self.is_draining(),
            sign_milliseconds,
        }
    }
}

#[cfg(test)]
mod tests;
