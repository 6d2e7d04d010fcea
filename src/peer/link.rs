//! Which protocol a peer speaks: the native one, or on a Go ring perhaps Go's.
//!
//! A peer is asked for the upgrade first. Only on a ring that Go peers can be part of, and only when it answers the upgrade as
//! a Go server does, it is asked in Go's way from then on, and once a minute for the upgrade again. Everywhere else a refused
//! upgrade is an error: whoever could make a node fall back could also take its proof away.

use std::sync::Arc;

use async_trait::async_trait;

use crate::fleet::{self, Begun, Health, PurgeFailure, Purpose, Then, Unasked};
use crate::peer::client::NativePeer;
use crate::peer::go_client::GoPeer;
use crate::peer::{Peer, PeerStatus};
use crate::purge::{Notice, Reply, Target};
use crate::source::{Aside, Ask, EntryId, FetchError, Fetched, Source};

/// A peer, in whichever protocol it speaks.
pub struct PeerLink {
    native: NativePeer,
    /// Only on a Go ring.
    go: Option<GoPeer>,
}

impl PeerLink {
    /// A peer of a ring that has only nodes of ours.
    pub fn native(native: NativePeer) -> Self {
        PeerLink { native, go: None }
    }

    /// A peer of a Go ring, which may be a Go server.
    pub fn on_go_ring(native: NativePeer, go: GoPeer) -> Self {
        PeerLink { native, go: Some(go) }
    }

    /// Opens the connections now, so that the first question need not.
    pub fn connect(&self) {
        self.native.connect();
    }

    /// Whether this peer is known to be a Go server, and may therefore be asked only for keys that Go can carry
    /// ([`crate::peer::go::go_can_carry`]).
    pub fn is_go(&self) -> bool {
        self.go_peer().is_some()
    }

    fn go_peer(&self) -> Option<&GoPeer> {
        self.go.as_ref().filter(|_| self.native.speaks_go())
    }
}

#[async_trait]
impl Source for PeerLink {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        self.fetch_with(ask, Aside::default()).await
    }

    async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        if let Some(go) = self.go_peer() {
            return go.fetch(ask).await;
        }
        match self.native.fetch_with(ask, aside).await {
            // This question found out.
            Err(error @ FetchError::Unreachable(_)) => match self.go_peer() {
                Some(go) => go.fetch(ask).await,
                None => Err(error),
            },
            answer => answer,
        }
    }
}

#[async_trait]
impl Peer for PeerLink {
    async fn peek(&self, ask: &Ask, have: EntryId) -> Result<Option<Fetched>, FetchError> {
        match self.go_peer() {
            Some(go) => go.peek(ask, have).await,
            None => self.native.peek(ask, have).await,
        }
    }

    fn status(&self) -> PeerStatus {
        match self.go_peer() {
            Some(go) => go.status(),
            None => self.native.status(),
        }
    }
}

#[async_trait]
impl fleet::Peer for PeerLink {
    fn begin(self: Arc<Self>, ask: &Ask, have: EntryId, then: Then) {
        if self.go.is_none() {
            return self.native.begin(ask, have, then);
        }
        then(Begun::Later(Box::new(Unasked { peer: self, ask: ask.clone(), have })));
    }

    async fn purge(&self, notice: &Notice) -> Result<Reply, PurgeFailure> {
        match self.go_peer() {
            Some(go) => purge_of_go(go, notice).await,
            None => Ok(self.native.purge(notice).await?),
        }
    }

    async fn offer(&self, ask: &Ask) -> Result<(), FetchError> {
        match self.go_peer() {
            Some(_) => Ok(()),
            None => self.native.offer(ask).await,
        }
    }

    async fn replicate(&self, ask: &Ask) -> Result<(), FetchError> {
        match self.go_peer() {
            Some(_) => Err(FetchError::unreachable("Go's protocol cannot say it")),
            None => self.native.replicate(ask).await,
        }
    }

    async fn peek(&self, ask: &Ask) -> Result<Option<Fetched>, FetchError> {
        Peer::peek(self, ask, EntryId::default()).await
    }

    async fn permit(&self, group: &Arc<str>, purpose: Purpose) -> Result<Fetched, FetchError> {
        match self.go_peer() {
            Some(_) => Err(FetchError::unreachable("Go's protocol cannot say it")),
            None => self.native.permit(group, purpose).await,
        }
    }

    fn incarnation(&self) -> Option<u64> {
        self.status().incarnation
    }

    fn has_left(&self) -> bool {
        // Who is no member and cannot say goodbye has none to be waited for.
        self.go_peer().is_some() || self.native.has_left()
    }

    fn health(&self) -> Health {
        match self.go_peer() {
            // Nothing but questions tells whether it is there.
            Some(_) => Health::Up,
            None => self.native.health(),
        }
    }
}

/// What of the purges Go's protocol can say: keys, one by one, and only to the forks. Such a peer tells nothing of what it knows, so
/// that every notice is understood.
async fn purge_of_go(go: &GoPeer, notice: &Notice) -> Result<Reply, PurgeFailure> {
    let mut said_all = !notice.dry_run;
    for target in notice.records.iter().flat_map(|record| &record.targets) {
        match &**target {
            Target::Key(group, key) if !notice.dry_run => go.delete(group, key).await?,
            _ => said_all = false,
        }
    }
    match said_all {
        true => Ok(Reply { understood: true, ..Reply::default() }),
        false => Err(PurgeFailure::Cannot),
    }
}
