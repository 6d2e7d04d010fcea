//! Leases as this node keeps and gives them: renewal with the other members, and purges that a majority decides. Why that is
//! enough is told in [`crate::purge::lease`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::cache::Cache;
use crate::clock::Now;
use crate::fleet::{Fleet, Peer};
use crate::purge::lease::{
    Commit, LEASE, LeaseAnswer, LeaseQuestion, Leases, RENEW_EVERY, Settling, Standing, Verdict,
};
use crate::purge::{Notice, Target};
use crate::purging::PurgeRequest;

/// This node's lease, and those that it has said yes to.
pub(crate) struct Leasing {
    /// Nanoseconds of this node's clock; what every hit looks at.
    until: AtomicU64,
    leases: Mutex<Leases>,
    /// Who is being asked: one question at a time.
    asking: Mutex<BTreeSet<String>>,
}

impl Default for Leasing {
    fn default() -> Self {
        Leasing { until: AtomicU64::new(u64::MAX), leases: Mutex::default(), asking: Mutex::default() }
    }
}

impl Leasing {
    /// Whether memory may answer a request that came before `now`. To be asked before it is looked which purges are applied,
    /// and before memory is looked at.
    #[inline]
    pub fn lets_memory_answer(&self, now: Now) -> bool {
        // With what is seen here, everything is seen that was applied before the lease was renewed.
        let until = self.until.load(Ordering::Acquire);
        until == u64::MAX || until > nanoseconds(now.monotonic)
    }

    /// The members of now.
    pub fn follow(&self, fleet: &Fleet, now: Now) {
        let others = fleet.named_peers().map(|(url, _)| url.to_owned()).collect();
        let (strict, member) = (fleet.keeps_leases(), fleet.own_url().is_some());
        let id =
            fleet.ring().map_or(0, |ring| u64::from_be_bytes(ring.id().to_bytes()[..8].try_into().unwrap_or_default()));
        let Some(change) = self.change(|leases| leases.follow(strict, id, others, member, now.monotonic)) else {
            return;
        };
        if !change.keeps_majority {
            tracing::warn!(
                "no majority of the members before is left in fleet.peers: until this node restarts it has no lease, and \
                 memory answers nothing unasked"
            );
        }
        if !change.needs_old {
            tracing::warn!(
                "those who are new in fleet.peers are a majority: while they cannot reach the others, a purge may be \
                 acknowledged that those have not heard of"
            );
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Leases) -> T) -> T {
        let mut leases = self.leases.lock();
        let changed = change(&mut leases);
        self.until.store(leases.until().map_or(u64::MAX, nanoseconds), Ordering::Release);
        changed
    }

    fn are_kept(&self) -> bool {
        self.leases.lock().are_kept()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    // Centuries; and one less than what means "always".
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX - 1)
}

impl Cache {
    /// Renews this node's lease as long as it lives; to be run once in every node.
    pub async fn keep_lease(self: Arc<Self>) {
        let cache = Arc::downgrade(&self);
        drop(self);
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Standing::Free;
        loop {
            ticks.tick().await;
            let Some(cache) = cache.upgrade() else { return };
            if cache.leasing.are_kept() {
                cache.become_settled().await;
                for (url, peer) in cache.fleet.load().named_peers() {
                    cache.renew_behind(url, peer);
                }
            }
            told = cache.tell_standing(told);
        }
    }

    /// How it stands with this node's lease.
    pub fn lease(&self) -> Standing {
        self.leasing.leases.lock().standing(self.now().monotonic)
    }

    /// How many lists of members before the present one still count for this node's lease.
    pub fn previous_lists(&self) -> usize {
        self.leasing.leases.lock().previous_lists()
    }

    /// Returns when this node has had its first lease, needs none, or has waited for it long enough.
    pub async fn leased(&self) {
        let until = self.now().monotonic.saturating_add(FIRST_LEASE_MAX);
        while self.lease() == Standing::Unsettled && self.now().monotonic < until {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Writes to the log when the lease was lost or regained since `told`.
    fn tell_standing(&self, told: Standing) -> Standing {
        let standing = self.lease();
        match (told, standing) {
            (Standing::Held(_), Standing::Lost) => {
                tracing::warn!(
                    "the lease ran out: no contact with a majority of the fleet, memory answers nothing unasked"
                );
            }
            (Standing::Lost | Standing::Unsettled | Standing::Free, Standing::Held(_)) => {
                tracing::info!("a majority of the fleet gave a lease: memory answers");
            }
            _ => {}
        }
        standing
    }

    fn renew_behind(self: &Arc<Self>, url: &str, peer: &Arc<dyn Peer>) {
        if self.leasing.asking.lock().insert(url.to_owned()) {
            let (cache, url, peer) = (self.clone(), url.to_owned(), peer.clone());
            tokio::spawn(async move {
                cache.renew(&url, &*peer, false).await;
                cache.leasing.asking.lock().remove(&url);
            });
        }
    }

    /// Asks one member; what it says that this node lacks is applied before it counts. `None`: it gave no answer that counts.
    async fn renew(self: &Arc<Self>, url: &str, peer: &dyn Peer, wants_booked: bool) -> Option<(LeaseAnswer, u64)> {
        let asked_at = self.now().monotonic;
        let notice = Notice {
            known: Some(self.purges.applied().vector),
            lease: Some(LeaseQuestion { life: self.incarnation(), wants_booked }),
            ..Notice::default()
        };
        let reply = tokio::time::timeout(LEASE, peer.purge(&notice)).await.ok()?.ok()?;
        let answer = reply.lease?;
        if let Some(missing) = reply.missing
            && !self.receive_purges(*missing).await.understood
        {
            return None;
        }
        let now = self.now().monotonic;
        if self.leasing.change(|leases| leases.heard(url, asked_at, now, &answer)) {
            tracing::info!("a majority of the members before has the new list of members: the old one counts no more");
        }
        Some((answer, reply.applied.of(self.incarnation())))
    }

    async fn become_settled(self: &Arc<Self>) {
        let settling = self.leasing.leases.lock().settling(self.now().monotonic);
        match settling {
            Settling::Wait => {}
            Settling::Settled => self.leasing.change(Leases::settle),
            Settling::Empty => {
                tracing::info!("nobody remembers all purges: the fleet begins with empty memory");
                // Told to everybody, as every purge is; here it is over when this returns.
                let everything = vec![Target::Everything];
                let request = PurgeRequest { targets: everything, ..PurgeRequest::default() };
                self.purge_everywhere(request).await;
                self.leasing.change(Leases::settle);
            }
        }
    }

    /// Books a lease for another node; `None` where none are kept.
    pub(crate) fn book_lease(&self, question: LeaseQuestion) -> Option<LeaseAnswer> {
        let (own_life, now) = (self.incarnation(), self.now().monotonic);
        self.leasing.leases.lock().answer(own_life, question, now)
    }

    /// The answer with what is booked, if it was asked for.
    pub(crate) fn with_booked(&self, answer: LeaseAnswer, question: Option<LeaseQuestion>) -> LeaseAnswer {
        match question.is_some_and(|question| question.wants_booked) {
            true => LeaseAnswer { booked: self.leasing.leases.lock().booked(self.now().monotonic), ..answer },
            false => answer,
        }
    }

    /// Whether purges of `fleet` are a majority's to decide.
    pub(crate) fn commits_by_majority(&self, fleet: &Fleet) -> bool {
        fleet.keeps_leases() && self.leasing.are_kept()
    }

    /// Sets `committed` once the purge with this number, which is recorded here, holds for everybody who has not confirmed it,
    /// too. Runs until it is dropped, or that is so.
    pub(crate) async fn commit(self: Arc<Self>, fleet: Arc<Fleet>, sequence: u64, committed: watch::Sender<bool>) {
        let own_life = self.incarnation();
        let now = || self.now().monotonic;
        let booked = self.leasing.leases.lock().booked(now());
        let mut commit = Commit::new(own_life, &booked, now());
        let mut confirming = JoinSet::new();
        for (url, peer) in fleet.named_peers() {
            let (cache, url, peer) = (self.clone(), url.to_owned(), peer.clone());
            let Some(confirmed) = self.confirmed_by(&url) else { continue };
            confirming.spawn(async move {
                confirmed.reaches(sequence).await;
                loop {
                    match cache.renew(&url, &*peer, true).await {
                        Some((answer, applied)) if applied >= sequence => return answer,
                        _ => tokio::time::sleep(ASK_AGAIN).await,
                    }
                }
            });
        }
        loop {
            let verdict = commit.verdict(&self.leasing.leases.lock(), now());
            let wait = match verdict {
                Verdict::Committed => {
                    committed.send_replace(true);
                    return;
                }
                Verdict::Then(at) => at.saturating_sub(now()),
                // Contacts grow old and are renewed meanwhile.
                Verdict::Lacking => ASK_AGAIN,
            };
            tokio::select! {
                biased;
                Some(Ok(answer)) = confirming.join_next() => commit.confirm(answer.life, &answer.booked, now()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// How long a node that starts is not ready for lack of a lease: its first takes about half of this.
const FIRST_LEASE_MAX: Duration = Duration::from_secs(8);
/// Until a member that has confirmed is asked again what is booked.
const ASK_AGAIN: Duration = Duration::from_millis(100);
