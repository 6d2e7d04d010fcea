//! Peers that are called instead of connected to: the cache's side of the seam is the real one, the protocol is left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use groupcache_proxy::fleet::{self, PurgeFailure, Purpose};
use groupcache_proxy::peer::client::Timeouts;
use groupcache_proxy::peer::{AskContext, Owner};
use groupcache_proxy::purge::{Notice, Reply};
use groupcache_proxy::source::{Aside, Ask, BodyStream, Deaf, EntryId, FetchError, Fetched, ReadyBody, Source, Whole};
use parking_lot::Mutex;

use crate::network::{Network, Place};
use crate::random::Random;

/// Who answers at which place.
pub struct Hosts {
    random: Random,
    hosts: Mutex<Vec<Option<Host>>>,
}

/// One life that answers.
#[derive(Clone)]
pub struct Host {
    pub owner: Arc<dyn Owner>,
    pub incarnation: u64,
    pub alive: Arc<AtomicBool>,
}

impl Hosts {
    pub fn new(seed: u64, nodes: usize) -> Self {
        Hosts { random: Random::new(seed, "turns"), hosts: Mutex::new(vec![None; nodes]) }
    }

    pub fn join(&self, place: Place, host: Host) {
        self.hosts.lock()[place] = Some(host);
    }

    pub fn leave(&self, place: Place) {
        self.hosts.lock()[place] = None;
    }

    fn at(&self, place: Place) -> Option<Host> {
        self.hosts.lock()[place].clone()
    }
}

/// A peer, as one node calls it.
pub struct DirectPeer {
    pub network: Arc<Network>,
    pub hosts: Arc<Hosts>,
    pub takes_time: bool,
    pub from: Place,
    /// The life that asks.
    pub asker: u64,
    pub to: Place,
}

impl DirectPeer {
    async fn under_way(&self) {
        match self.takes_time {
            true => tokio::time::sleep(self.network.delay()).await,
            false => self.hosts.random.jostle(TURNS_MAX).await,
        }
    }

    /// The other side, when the question has got there.
    async fn there(&self) -> Result<Host, FetchError> {
        self.under_way().await;
        if !self.network.passes(self.from, self.to) || !self.network.passes(self.to, self.from) {
            tokio::time::sleep(Timeouts::default().silence).await;
            return Err(FetchError::unreachable("silent"));
        }
        self.hosts.at(self.to).ok_or_else(|| FetchError::unreachable("connection refused"))
    }

    fn context(&self) -> AskContext {
        AskContext { asker: self.asker, ..AskContext::default() }
    }

    async fn back<T>(&self, host: &Host, answer: Result<T, FetchError>) -> Result<T, FetchError> {
        self.under_way().await;
        match host.alive.load(Ordering::SeqCst) {
            true => answer,
            false => Err(FetchError::unreachable("the connection failed")),
        }
    }
}

#[async_trait]
impl Source for DirectPeer {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        self.fetch_with(ask, Aside::default()).await
    }

    async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        let host = self.there().await?;
        let context = AskContext { have: aside.have, ..self.context() };
        // As the server does it: what memory has whole needs no future.
        let answer = match host.owner.at_once(ask, &context, &|_, _| true) {
            Some(Whole { status, fields, hop, body }) => Ok(Fetched {
                status,
                fields,
                content_length: Some(body.len() as u64),
                close_delimited: false,
                hop: Some(hop),
                body: Box::new(ReadyBody::new([body])),
            }),
            None => host.owner.get_as_owner(ask.clone(), context, &Deaf).await,
        };
        let mut fetched = self.back(&host, answer).await?;
        fetched.body = Box::new(DirectBody { body: fetched.body, alive: host.alive });
        Ok(fetched)
    }
}

#[async_trait]
impl fleet::Peer for DirectPeer {
    async fn purge(&self, notice: &Notice) -> Result<Reply, PurgeFailure> {
        let host = self.there().await?;
        let answer = host.owner.purge(notice.clone()).await;
        Ok(self.back(&host, answer).await?)
    }

    async fn offer(&self, ask: &Ask) -> Result<(), FetchError> {
        let host = self.there().await?;
        let answer = host.owner.offered(ask.clone(), self.context()).await;
        self.back(&host, answer).await
    }

    async fn replicate(&self, ask: &Ask) -> Result<(), FetchError> {
        let host = self.there().await?;
        let answer = host.owner.replicate(ask.clone(), self.context()).await;
        self.back(&host, answer).await
    }

    async fn peek(&self, ask: &Ask) -> Result<Option<Fetched>, FetchError> {
        let host = self.there().await?;
        let context = AskContext { have: EntryId::default(), ..self.context() };
        let answer = host.owner.peek(ask.clone(), context).await;
        self.back(&host, answer).await
    }

    async fn permit(&self, group: &Arc<str>, purpose: Purpose) -> Result<Fetched, FetchError> {
        let host = self.there().await?;
        let answer = host.owner.permit(group, purpose, self.context()).await;
        let mut fetched = self.back(&host, answer).await?;
        fetched.body = Box::new(DirectBody { body: fetched.body, alive: host.alive });
        Ok(fetched)
    }

    fn incarnation(&self) -> Option<u64> {
        self.hosts.at(self.to).map(|host| host.incarnation)
    }
}

struct DirectBody {
    body: Box<dyn BodyStream>,
    alive: Arc<AtomicBool>,
}

#[async_trait]
impl BodyStream for DirectBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let chunk = self.body.chunk().await?;
        match self.alive.load(Ordering::SeqCst) {
            true => Ok(chunk),
            false => Err(FetchError::broken("the connection failed")),
        }
    }
}

const TURNS_MAX: u64 = 6;
