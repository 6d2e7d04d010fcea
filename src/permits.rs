//! Permits: how many requests may be at an origin at once, counted for the whole fleet.
//!
//! ```text
//! request that goes to the origin ── take a permit ── at the origin ── end of the answer: give it back
//!                                    │
//!                                    ├─ this node grants:    its gate counts, or lets the request wait in its queue
//!                                    └─ another node grants: a question to it, which stays open while the permit is used
//! ```
//! For each group one node grants: the first on the ring, for a key made of the group's name, that can be reached. A permit
//! of another node is an open question, so that it ends with whoever holds it: with the answer, by a cancelled question, or
//! with the connection when the holder dies.
//!
//! **When the granting node changes** (it died, came back, or the ring is another one), those who hold permits tell the new
//! one, which counts them whether they fit or not, and for [`GRACE`] grants nothing else. Who has waited at another node waits
//! anew at this one when it would be let in there. So the limit holds, but for the sockets of a killed node, which nobody counts
//! and the kernel closes, and for a partition, in which each side grants.
//!
//! **Fairness.** Those who wait are served in turn by the node that asked, each node's in the order of their arrival: a node
//! that floods the queue does not keep the others waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::fields::Fields;
use crate::fleet::{Fleet, Peer, Purpose, Step};
use crate::group::Limit;
use crate::source::{BodyStream, FetchError, Fetched};

/// The gates of this node, one for each group that it was ever asked about.
pub struct Permits {
    gates: Mutex<HashMap<Arc<str>, Arc<Gate>>>,
    /// This node leaves: what it granted is to be counted by another node.
    leaving: watch::Sender<bool>,
}

impl Default for Permits {
    fn default() -> Self {
        Permits { gates: Mutex::default(), leaving: watch::Sender::new(false) }
    }
}

/// What the statistics say of a group's gate at this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GateState {
    /// The limit.
    pub limit: usize,
    /// Permits in use that this node granted.
    pub granted: usize,
    /// Requests that wait for one here.
    pub waiting: usize,
    /// Requests that were refused because too many waited.
    pub refused: u64,
}

impl Permits {
    /// A permit for a request of this node at the origin of `group`; `fleet` gives the fleet of any moment, `own` is this
    /// node's incarnation. Waits for its turn at most as long as the limit says.
    ///
    /// # Errors
    /// [`FetchError::Refused`] with 503: too many wait, or this one waited too long.
    pub async fn take(
        self: &Arc<Self>,
        group: &Arc<str>,
        limit: Limit,
        fleet: impl Fn() -> Arc<Fleet> + Send + Sync + 'static,
        own: u64,
    ) -> Result<Permit, FetchError> {
        let busy = |_| FetchError::refused(503, "the origin is busy");
        let asking = Asking { permits: self.clone(), group: group.clone(), limit, own };
        let backing = timeout(limit.patience, asking.begin(&fleet)).await.map_err(busy)??;
        // A node that is alone may get company while the request is at the origin.
        Ok(Permit(tokio::spawn(asking.keep(backing, fleet)).abort_handle()))
    }

    /// Answers a peer's question: the body of the answer goes on as long as the permit counts.
    ///
    /// # Errors
    /// [`FetchError::Refused`] when too many wait, [`FetchError::Unreachable`] when this node leaves.
    pub async fn grant(
        self: &Arc<Self>,
        group: &Arc<str>,
        limit: Limit,
        purpose: Purpose,
        asker: u64,
        fleet: &Fleet,
    ) -> Result<Fetched, FetchError> {
        let mut leaving = self.leaving.subscribe();
        if *leaving.borrow_and_update() {
            return Err(FetchError::unreachable("this node leaves"));
        }
        let gate = self.gate(group, fleet);
        let turn = gate.pass(limit, purpose, asker);
        let grant = tokio::select! {
            biased;
            grant = turn => grant?,
            _ = leaving.wait_for(|leaving| *leaving) => return Err(FetchError::unreachable("this node leaves")),
        };
        Ok(Fetched {
            status: 200,
            fields: Fields::empty(),
            content_length: None,
            close_delimited: false,
            hop: None,
            body: Box::new(GrantedBody { _grant: grant, leaving }),
        })
    }

    /// This node is about to leave the fleet, or stays after all.
    pub fn set_leaving(&self, leaving: bool) {
        self.leaving.send_replace(leaving);
    }

    /// The state of a group's gate at this node.
    pub fn state(&self, group: &str, limit: Limit) -> GateState {
        let gate = self.gates.lock().get(group).cloned();
        let counts = gate.map(|gate| gate.counts()).unwrap_or_default();
        GateState { limit: limit.requests_max, ..counts }
    }

    /// The gate of a group, which learns here whether this node is the one to ask by its own view.
    fn gate(&self, group: &Arc<str>, fleet: &Fleet) -> Arc<Gate> {
        let first = fleet.owns(&ring_key(group));
        let alone = fleet.peers().next().is_none();
        let gate = self.gates.lock().entry(group.clone()).or_insert_with(|| Arc::new(Gate::new(alone))).clone();
        gate.stand(first);
        gate
    }
}

/// Where the ring has the permits of a group.
fn ring_key(group: &str) -> Vec<u8> {
    // No request has a key with this byte.
    [b"permits\0", group.as_bytes()].concat()
}

/// A request may be at the origin as long as this lives: the task that sees to it that somebody counts it.
pub struct Permit(AbortHandle);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the permit until the answer has ended.
pub fn held_by_body(fetched: Fetched, permit: Option<Permit>) -> Fetched {
    match permit {
        Some(permit) => Fetched { body: Box::new(PermittedBody { body: fetched.body, _permit: permit }), ..fetched },
        None => fetched,
    }
}

struct PermittedBody {
    body: Box<dyn BodyStream>,
    _permit: Permit,
}

#[async_trait]
impl BodyStream for PermittedBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.body.chunk().await
    }
}

/// Who counts a permit.
enum Backing {
    /// This node.
    Here { _grant: Grant },
    /// Another node, as long as the answer to the question goes on.
    There { peer: Arc<dyn Peer>, answer: Box<dyn BodyStream> },
}

/// What it takes to ask for a permit.
struct Asking {
    permits: Arc<Permits>,
    group: Arc<str>,
    limit: Limit,
    own: u64,
}

impl Asking {
    /// Asks whoever grants, and anew where that has become another node meanwhile: a gate that those who are at the origin have
    /// left for another one has room, but not for more.
    async fn begin(&self, fleet: impl Fn() -> Arc<Fleet>) -> Result<Backing, FetchError> {
        loop {
            let asked = fleet();
            // As it is now: whether a peer can be reached changes.
            let first = self.first(&asked);
            let backing = self.ask(&asked, Purpose::Begin).await?;
            match (first, self.first(&fleet())) {
                (None, None) => return Ok(backing),
                (Some(then), Some(now)) if Arc::ptr_eq(&then, &now) => return Ok(backing),
                _ => {}
            }
        }
    }

    /// Whom the next request would ask first; `None` for this node.
    fn first(&self, fleet: &Fleet) -> Option<Arc<dyn Peer>> {
        match fleet.steps(&ring_key(&self.group)).into_iter().next() {
            Some(Step::Peer(peer)) => Some(peer),
            Some(Step::Here) | None => None,
        }
    }

    /// Asks until somebody grants, in the order of the ring.
    async fn ask(&self, fleet: &Fleet, purpose: Purpose) -> Result<Backing, FetchError> {
        for step in fleet.steps(&ring_key(&self.group)) {
            match step {
                Step::Here => {
                    let grant = self.permits.gate(&self.group, fleet).pass(self.limit, purpose, self.own).await?;
                    return Ok(Backing::Here { _grant: grant });
                }
                Step::Peer(peer) => match peer.permit(&self.group, purpose).await {
                    Ok(fetched) => return Ok(Backing::There { peer, answer: fetched.body }),
                    Err(refused @ FetchError::Refused { .. }) => return Err(refused),
                    Err(error) => tracing::debug!(group = %self.group, %error, "a peer grants no permit"),
                },
            }
        }
        Err(FetchError::unreachable("nobody grants permits"))
    }

    /// Sees to it that the permit is counted by whoever is the one to count, until this is aborted.
    async fn keep(self, mut backing: Backing, fleet: impl Fn() -> Arc<Fleet> + Send + Sync) {
        loop {
            let lost = match &mut backing {
                Backing::Here { .. } => {
                    sleep(CHECK_INTERVAL).await;
                    false
                }
                Backing::There { answer, .. } => tokio::select! {
                    biased;
                    _ = answer.chunk() => true,
                    () = sleep(CHECK_INTERVAL) => false,
                },
            };
            let fleet = fleet();
            if lost || !self.is_right(&backing, &fleet) {
                // What counts the request now lets go after another one has it.
                match timeout(CHECK_INTERVAL, self.ask(&fleet, Purpose::Continue)).await {
                    Ok(Ok(counted)) => backing = counted,
                    _ if lost => sleep(RETRY_INTERVAL).await,
                    _ => {}
                }
            }
        }
    }

    /// Whether the permit is counted where the next request would ask first.
    fn is_right(&self, backing: &Backing, fleet: &Fleet) -> bool {
        match (self.first(fleet), backing) {
            (Some(first), Backing::There { peer, .. }) => Arc::ptr_eq(&first, peer),
            (None, Backing::Here { .. }) => true,
            _ => false,
        }
    }
}

/// A permit on its way to the peer that uses it: it never says anything, and ends when this node leaves.
struct GrantedBody {
    _grant: Grant,
    leaving: watch::Receiver<bool>,
}

#[async_trait]
impl BodyStream for GrantedBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let _ = self.leaving.wait_for(|leaving| *leaving).await;
        Err(FetchError::broken("this node leaves"))
    }
}

/// Counts the requests at one group's origin.
struct Gate {
    state: Mutex<Counting>,
}

#[derive(Default)]
struct Counting {
    granted: usize,
    /// The limit that was told last; a reload changes it.
    limit: usize,
    /// Those who wait, by the node that asked; the front is served next.
    waiting: VecDeque<Line>,
    waiting_count: usize,
    tickets: u64,
    refused: u64,
    /// Nobody may begin before.
    opens_at: Option<Instant>,
    /// Whether this node was the first on the ring when it was asked last.
    first: bool,
    asked_at: Option<Instant>,
}

/// Those of one node that wait.
struct Line {
    asker: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Grant>)>,
}

/// One request at the origin.
struct Grant {
    /// `None` once it is given back.
    gate: Option<Arc<Gate>>,
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.state.lock().granted -= 1;
            gate.serve();
        }
    }
}

impl Gate {
    /// `alone`: there is nobody who may hold permits of an earlier life of this node.
    fn new(alone: bool) -> Self {
        let opens_at = (!alone).then(|| Instant::now() + GRACE);
        Gate { state: Mutex::new(Counting { opens_at, first: true, ..Counting::default() }) }
    }

    /// Notes whether this node grants by right or in another's place. Where that begins anew, others may hold permits that it
    /// does not know of.
    fn stand(self: &Arc<Self>, first: bool) {
        let now = Instant::now();
        let closes = {
            let mut state = self.state.lock();
            let idle = state.asked_at.is_none_or(|asked_at| now - asked_at > GRACE) && state.granted == 0;
            let closes = state.first != first || (!first && idle);
            if closes {
                state.opens_at = Some(now + GRACE);
            }
            (state.first, state.asked_at) = (first, Some(now));
            closes
        };
        if closes {
            // Those who wait already, and perhaps nobody else, have to be let in then.
            let gate = Arc::downgrade(self);
            tokio::spawn(async move {
                sleep_until(now + GRACE).await;
                if let Some(gate) = gate.upgrade() {
                    gate.serve();
                }
            });
        }
    }

    async fn pass(self: &Arc<Self>, limit: Limit, purpose: Purpose, asker: u64) -> Result<Grant, FetchError> {
        let (mut turn, ticket, opens_at) = {
            let mut state = self.state.lock();
            state.limit = limit.requests_max;
            if purpose == Purpose::Continue {
                state.granted += 1;
                return Ok(self.grant());
            }
            let opens_at = state.opens_at.filter(|opens_at| *opens_at > Instant::now());
            if opens_at.is_none() && state.waiting_count == 0 && state.granted < state.limit {
                state.granted += 1;
                return Ok(self.grant());
            }
            if state.waiting_count >= limit.waiting_max {
                state.refused += 1;
                return Err(FetchError::refused(503, "too many requests wait for the origin"));
            }
            let (sender, turn) = oneshot::channel();
            (turn, state.join(asker, sender), opens_at)
        };
        // Whoever gives up leaves the queue.
        let _waiting = Waiting { gate: self.clone(), asker, ticket };
        if let Some(opens_at) = opens_at {
            tokio::select! {
                biased;
                grant = &mut turn => return grant.map_err(|_| gone()),
                () = sleep_until(opens_at) => self.serve(),
            }
        }
        turn.await.map_err(|_| gone())
    }

    /// Lets in whoever is next, as long as there is room.
    fn serve(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let open = state.opens_at.is_none_or(|opens_at| opens_at <= Instant::now());
                if !open || state.granted >= state.limit {
                    return;
                }
                let Some(next) = state.next() else { return };
                state.granted += 1;
                next
            };
            if let Err(mut unwanted) = next.send(self.grant()) {
                // Given back here: its end would serve the next one from within.
                unwanted.gate = None;
                self.state.lock().granted -= 1;
            }
        }
    }

    /// What has been counted already.
    fn grant(self: &Arc<Self>) -> Grant {
        Grant { gate: Some(self.clone()) }
    }

    fn counts(&self) -> GateState {
        let state = self.state.lock();
        GateState { limit: state.limit, granted: state.granted, waiting: state.waiting_count, refused: state.refused }
    }
}

impl Counting {
    fn join(&mut self, asker: u64, sender: oneshot::Sender<Grant>) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        match self.waiting.iter_mut().find(|line| line.asker == asker) {
            Some(line) => line.waiting.push_back((ticket, sender)),
            None => self.waiting.push_back(Line { asker, waiting: VecDeque::from([(ticket, sender)]) }),
        }
        self.waiting_count += 1;
        ticket
    }

    /// Takes the first of the node whose turn it is, and puts that node behind the others.
    fn next(&mut self) -> Option<oneshot::Sender<Grant>> {
        let mut line = self.waiting.pop_front()?;
        let next = line.waiting.pop_front();
        if !line.waiting.is_empty() {
            self.waiting.push_back(line);
        }
        let (_, sender) = next?;
        self.waiting_count -= 1;
        Some(sender)
    }

    fn leave(&mut self, asker: u64, ticket: u64) {
        let Some(at) = self.waiting.iter().position(|line| line.asker == asker) else { return };
        let line = &mut self.waiting[at].waiting;
        // Tickets of a line are in order.
        if let Ok(place) = line.binary_search_by_key(&ticket, |(ticket, _)| *ticket) {
            line.remove(place);
            self.waiting_count -= 1;
            if line.is_empty() {
                self.waiting.remove(at);
            }
        }
    }
}

/// A place in the queue.
struct Waiting {
    gate: Arc<Gate>,
    asker: u64,
    ticket: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gate.state.lock().leave(self.asker, self.ticket);
    }
}

fn gone() -> FetchError {
    FetchError::unreachable("the gate is gone")
}

/// How long a node that begins to grant permits lets nobody begin, while those who hold permits of another one tell it so.
/// A node that is back is connected to again within a second (the client of peers tries no less often), the next check
/// notices it, and the rest is for telling; a death is noticed within the silence deadline of a peer, whose default is less.
pub const GRACE: Duration = Duration::from_millis(2000);

/// How often a permit in use is compared with the ring. Less than [`GRACE`], so that a node that comes back hears in time.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Until a lost permit is asked for again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by simulation: nobody came after the gate had opened for good, and so nobody served the one who waited.
    #[tokio::test(start_paused = true)]
    async fn who_waits_while_the_gate_closes_again_is_let_in_when_it_opens() {
        let limit = Limit { requests_max: 1, waiting_max: 10, patience: Duration::from_secs(20) };
        let gate = Arc::new(Gate::new(false));
        gate.stand(true);
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass(limit, Purpose::Begin, 1).await.is_ok() }
        });
        sleep(GRACE / 2).await;
        gate.stand(false);
        sleep(GRACE * 3 / 4).await;
        assert!(!waiting.is_finished(), "closed again");
        assert_eq!(timeout(GRACE, waiting).await.expect("it opens").ok(), Some(true));
    }
}
