//! How a fill begins: most of what a peer is asked is answered at once and whole, and then no task is needed for it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Basis, Came, Filling, Received};
use crate::cache::{FlightKey, Landed, Route};
use crate::clock::Now;
use crate::fleet::{Begun, Fleet, Health, Peer, Pending};
use crate::flight::Fill;
use crate::purge::Stamp;
use crate::purging::Dating;
use crate::source::{FetchError, Fetched, InterimSink, Method, ReadyBody};
use crate::stats::Outcome;

/// A question that the owner was asked before the fill became a task.
pub(super) struct First {
    pub answer: Box<dyn Pending>,
    pub asked_at: Now,
    /// Which purges were recorded before it was asked.
    pub known: Stamp,
    /// Who was asked, and the view by which it was the owner.
    pub peer: Arc<dyn Peer>,
    pub fleet: Arc<Fleet>,
}

impl Filling {
    /// Begins the fill. An owner is asked without a task, because most of its answers arrive whole and are handed out where they
    /// are read; everything else becomes a task of its own.
    pub fn start(mut self, fill: Fill<FlightKey, Landed>) {
        let fleet = self.cache.fleet.load_full();
        let owner = match fill.key().route {
            // What is so large that it is to come slowly does not come at once.
            Route::Fleet if self.ahead_bytes_max.is_some() => None,
            Route::Fleet => fleet.owner(&self.request.key).filter(|owner| owner.health() == Health::Up).cloned(),
            Route::Here => None,
        };
        let (Some(owner), Ok(ask)) = (owner, self.ask_peer()) else {
            self.spawn(fill, None);
            return;
        };
        // For all that follows: certainly not later than the question.
        let now = self.cache.now();
        if let Some((entry, stamp)) = self.landed_meanwhile(&fill, now) {
            return fill.land(Landed::Entry(entry, Outcome::Hit, None, Dating::of(stamp)), Bytes::new());
        }
        if let Some(replica) = self.replica_to_ask(&fleet, now) {
            tokio::spawn(Box::pin(self.run_by_replica(fill, replica, fleet)));
            return;
        }
        let known = self.before_asking();
        let (peer, have) = (owner.clone(), self.have());
        owner.begin(&ask, have, Box::new(move |begun| self.proceed(fill, begun, now, known, peer, fleet)));
    }

    /// What becomes a task is moved a dozen times before and after it runs. In a box it stays where it is.
    fn spawn(self, fill: Fill<FlightKey, Landed>, first: Option<First>) {
        tokio::spawn(Box::pin(self.run(fill, first)));
    }

    async fn run_by_replica(mut self, fill: Fill<FlightKey, Landed>, replica: Arc<dyn Peer>, fleet: Arc<Fleet>) {
        let known = self.before_asking();
        let asked_at = self.cache.now();
        let fetched = self.peek_at_replica(&replica).await;
        let answer = |fetched| Box::new(Answered(fetched));
        let first = fetched.map(|fetched| First { answer: answer(fetched), asked_at, known, peer: replica, fleet });
        self.run(fill, first).await;
    }

    fn proceed(
        self,
        fill: Fill<FlightKey, Landed>,
        begun: Begun,
        asked_at: Now,
        known: Stamp,
        peer: Arc<dyn Peer>,
        fleet: Arc<Fleet>,
    ) {
        let answer: Box<dyn Pending> = match begun {
            Begun::Whole(fetched, body) if self.is_plain(&fetched, &body) => {
                let came = Came::with(&fetched, asked_at, known.clone());
                if !self.is_outdated(&fetched, &came) {
                    return self.land(fill, fetched, &body, came);
                }
                Box::new(Answered(Fetched { body: Box::new(ReadyBody::new([body])), ..fetched }))
            }
            Begun::Whole(fetched, body) => {
                Box::new(Answered(Fetched { body: Box::new(ReadyBody::new([body])), ..fetched }))
            }
            Begun::Later(answer) => answer,
        };
        self.spawn(fill, Some(First { answer, asked_at, known, peer, fleet }));
    }

    /// Whether an answer means what it says: nothing of ours has to be put together with it.
    fn is_plain(&self, fetched: &Fetched, body: &Bytes) -> bool {
        self.request.method == Method::Get
            && matches!(self.basis, Basis::Nothing)
            && fetched.status != 304
            && fetched.content_length == Some(body.len() as u64)
    }

    /// What [`Filling::run`] does with a response whose body is here.
    fn land(&self, fill: Fill<FlightKey, Landed>, fetched: Fetched, body: &Bytes, came: Came) {
        self.group.stats.peer_loads.increment();
        let Received { fetched: _, head, extent, role, reservation } = self.receive(fetched, came, fill.key().route);
        let head = Arc::new(head);
        // A slice of a large read buffer, which must live no longer than it takes to read on.
        let body = Bytes::copy_from_slice(body);
        if reservation.is_none() {
            fill.charge(self.cache.ledger.charge(body.len()));
        }
        self.settle(&fill, &head, std::slice::from_ref(&body), extent, role.zip(reservation));
        fill.land(Landed::Streaming(head), body);
    }
}

/// An answer that need not be waited for.
struct Answered(Fetched);

#[async_trait]
impl Pending for Answered {
    async fn answer(self: Box<Self>, _: &dyn InterimSink) -> Result<Fetched, FetchError> {
        Ok(self.0)
    }
}
