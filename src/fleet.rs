//! Who the peers are now: a ring and one source each, replaced as a whole.

use std::sync::Arc;

use crate::ring::Ring;
use crate::source::Source;

/// A node's view of its fleet at one moment. A fill keeps the view it started with.
pub struct Fleet {
    ring: Option<Ring>,
    /// By the ring's index; `None` is this node itself.
    peers: Vec<Option<Arc<dyn Source>>>,
    ring_id: String,
    /// How the ring sees a key: `None` where it cannot carry it.
    ring_key: fn(&[u8]) -> Option<std::borrow::Cow<'_, [u8]>>,
}

/// Who is asked next for a key.
#[derive(Clone)]
pub enum Step {
    /// This node loads from its origin.
    Here,
    /// This peer is asked.
    Peer(Arc<dyn Source>),
}

impl Fleet {
    /// A fleet of one: every key is ours.
    pub fn alone() -> Self {
        Fleet { ring: None, peers: Vec::new(), ring_id: String::new(), ring_key: |key| Some(key.into()) }
    }

    /// A fleet on `ring`. `peers` follows the ring's order; the place of this node itself is `None` (there may be none: such a
    /// node owns nothing). `ring_key` gives the bytes by which the ring knows a key.
    pub fn new(
        ring: Ring,
        peers: Vec<Option<Arc<dyn Source>>>,
        ring_key: fn(&[u8]) -> Option<std::borrow::Cow<'_, [u8]>>,
    ) -> Self {
        let ring_id = ring.id().to_string();
        Fleet { ring: Some(ring), peers, ring_id, ring_key }
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
    /// at the end. Nothing comes after [`Step::Here`].
    pub fn steps(&self, key: &[u8]) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(ring) = &self.ring {
            let ring_key = (self.ring_key)(key).unwrap_or(key.into());
            for index in ring.preference(&ring_key) {
                match &self.peers[index] {
                    Some(peer) => steps.push(Step::Peer(peer.clone())),
                    None => break,
                }
            }
        }
        steps.push(Step::Here);
        steps
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
