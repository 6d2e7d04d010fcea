//! The cache as peers know it: a question by name of a group, answered from memory or from the origin.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::protocols::Stream;
use tokio::sync::watch;

use crate::cache::{Cache, Request};
use crate::edge::endpoints::UpgradedConnection;
use crate::fields::Fields;
use crate::fleet::Purpose;
use crate::group::Group;
use crate::peer::server::PeerServer;
use crate::peer::{AskContext, KnowsPurges, LocalNode, Owner};
use crate::purge::{Notice, Reply};
use crate::server::groups::Groups;
use crate::server::node::Node;
use crate::source::{Aside, Ask, FetchError, Fetched, Fits, InterimSink, Method, Whole};

/// Answers peers from the cache of this node.
pub struct CacheOwner {
    /// The cache.
    pub cache: Arc<Cache>,
    /// The groups of now.
    pub groups: Arc<ArcSwap<Groups>>,
    /// This node's view of the ring.
    pub local: Arc<LocalNode>,
}

impl CacheOwner {
    /// A question by another ring is answered all the same, and never passed on; but while rings differ a key is loaded once for
    /// each owner.
    fn count_disagreement(&self, group: &Group, key: &[u8], context: &AskContext) {
        let other_ring = ![0, self.local.ring_id()].contains(&context.ring_id);
        if other_ring && !self.cache.owns(key) {
            group.stats.ring_disagreements.increment();
        }
    }
}

#[async_trait]
impl Owner for CacheOwner {
    async fn get_as_owner(
        &self,
        ask: Ask,
        context: AskContext,
        interims: &dyn InterimSink,
    ) -> Result<Fetched, FetchError> {
        let Some(group) = self.groups.load().find(&ask.group).cloned() else {
            // The asker knows a group that this node does not: a reload under way. The next on the ring may know it.
            return Err(FetchError::unreachable("this node has no such group"));
        };
        // The key alone decides what the origin is asked: a peer cannot choose another target for it.
        if group.keys.target_of(&ask.key).is_none() {
            return Err(FetchError::refused(502, "not a key of this group"));
        }
        self.count_disagreement(&group, &ask.key, &context);
        let request = Request::from_ask(&group, &ask);
        self.cache.get_as_owner(&group, &request, Aside { have: context.have, interims, ..Aside::default() }).await
    }

    fn at_once(&self, ask: &Ask, context: &AskContext, fits: Fits<'_>) -> Option<Whole> {
        // Nothing is asked of the origin, so what the target says does not matter.
        let groups = self.groups.load();
        let group = groups.find(&ask.group)?;
        let answer = self.cache.find_for_peer(group, ask, context.have, fits)?;
        self.count_disagreement(group, &ask.key, context);
        Some(answer)
    }

    async fn peek(&self, ask: Ask, _: AskContext) -> Result<Option<Fetched>, FetchError> {
        let group = self.groups.load().find(&ask.group).cloned();
        Ok(group.and_then(|group| self.cache.peek(&group, &Request::from_ask(&group, &ask))))
    }

    async fn purge(&self, notice: Notice) -> Result<Reply, FetchError> {
        Ok(self.cache.receive_purges(notice).await)
    }

    async fn offered(&self, ask: Ask, context: AskContext) -> Result<(), FetchError> {
        let Some(group) = self.groups.load().find(&ask.group).cloned() else { return Ok(()) };
        self.cache.take_over(&group, &ask, context.asker).await
    }

    async fn replicate(&self, ask: Ask, context: AskContext) -> Result<(), FetchError> {
        let Some(group) = self.groups.load().find(&ask.group).cloned() else {
            return Err(FetchError::unreachable("this node has no such group"));
        };
        if group.keys.target_of(&ask.key).is_none() {
            return Err(FetchError::unreachable("not a key of this group"));
        }
        self.cache.take_replica(&group, &ask, context.asker).await
    }

    async fn permit(&self, group: &str, purpose: Purpose, context: AskContext) -> Result<Fetched, FetchError> {
        let Some(group) = self.groups.load().find(group).cloned() else {
            return Err(FetchError::unreachable("this node has no such group"));
        };
        self.cache.grant_permit(&group, purpose, context.asker).await
    }

    fn ask_for_key(&self, group: &str, key: Bytes) -> Option<Ask> {
        self.groups.load().find(group)?.ask(&key, Method::Get, Fields::empty())
    }
}

#[async_trait]
impl KnowsPurges for CacheOwner {
    fn greeting(&self) -> Notice {
        self.cache.purges_greeting()
    }

    async fn greeted(&self, reply: Reply) -> Option<Notice> {
        self.cache.purges_greeted(reply).await
    }
}

/// A peer's connection, from its upgrade to the end of this node.
pub struct Conversation {
    peers: Arc<PeerServer>,
    stop: watch::Receiver<bool>,
}

impl Conversation {
    /// A conversation with `node`.
    pub fn of(node: &Node) -> Self {
        Conversation { peers: node.peers.clone(), stop: node.lifecycle.stop_watch() }
    }
}

#[async_trait]
impl UpgradedConnection for Conversation {
    async fn run(self: Box<Self>, stream: Stream, read: Bytes) {
        self.peers.serve(stream, read, self.stop).await;
    }
}
